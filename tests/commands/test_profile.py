"""``--profile N``: the trace and the table of N iterations, in each engine."""

import json
import re
from collections import Counter

import pytest
import torch
import yaml
from small_configs import CLASSIFIER, DETECTOR

from resnet_det.commands import pretrain, train_net
from resnet_det.config.defaults import ConfigError
from resnet_det.nets import build_net
from resnet_det.nets.layers import Conv2d
from resnet_det.training.profiling import profiling


@pytest.fixture
def run(tmp_path, few_scenes, monkeypatch):
    """Train a small config without tests for so many iterations."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(few_scenes))

    def train(main, config, iterations, *options):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        keys = {"SOLVER.MAX_ITER": iterations, "SOLVER.STEPS": "()", "DATASETS.TEST": "()",
                "TEST.EVAL_PERIOD": 0, "OUTPUT_DIR": tmp_path / "output"}  # fmt: skip
        pairs = [str(word) for pair in keys.items() for word in pair]
        main(["--config-file", str(path), *options, *pairs])
        return tmp_path / "output/profile"

    return train


@pytest.mark.parametrize("kind", [
    "classifier", "torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2),
])  # fmt: skip
def test_the_trace_holds_the_iterations_asked_for(run, kind):
    config = CLASSIFIER | {"TEST": {}} if kind == "classifier" else DETECTOR
    main = pretrain.main if kind == "classifier" else train_net.main
    engine = [] if kind == "classifier" else ["--engine", kind]
    folder = run(main, config, 14, "--profile", "3", *engine)
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    count = Counter(event["name"] for event in events if event.get("ph") == "X")
    assert [name for name in count if re.match(r"ProfilerStep", name)] == [
        "ProfilerStep#10", "ProfilerStep#11", "ProfilerStep#12",
    ]  # fmt: skip
    convolutions = [m for m in build_net("cifar_resnet20").modules() if isinstance(m, Conv2d)]
    least = 3 * len(convolutions)  # a detector has those of its RPN besides
    for name in ("aten::conv2d", "aten::convolution_backward"):
        assert count[name] == least if kind == "classifier" else count[name] > least
    table = (folder / "operators.txt").read_text()
    assert "Self CPU" in table and "convolution_backward" in table


def test_a_run_that_is_too_short_is_refused_before_it_starts(run, tmp_path):
    message = "--profile 2: needs 12 iterations, but the run makes only 11: raise SOLVER.MAX_ITER"
    for main, config in ((pretrain.main, CLASSIFIER | {"TEST": {}}), (train_net.main, DETECTOR)):
        with pytest.raises(ConfigError, match=message):
            run(main, config, 11, "--profile", "2")
    assert not (tmp_path / "output").exists()


def test_only_the_iterations_after_the_checkpoint_count(run):
    output = run(pretrain.main, CLASSIFIER | {"TEST": {}}, 5).parent  # saves after 3 and 5
    (output / "last_checkpoint").write_text("model_0000002.pth")
    message = "makes only 10 after model_0000002.pth: raise SOLVER.MAX_ITER to at least 15"
    with pytest.raises(ConfigError, match=message):
        run(pretrain.main, CLASSIFIER | {"TEST": {}}, 13, "--profile", "2", "--resume")


@pytest.mark.parametrize("steps, line", [(9, ""), (10, ""), (12, "profile of 2 iterations")])
def test_a_run_that_ends_early_claims_only_what_it_profiled(tmp_path, caplog, steps, line):
    caplog.set_level("INFO")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    with profiling(tmp_path / "profile", 50):
        for _ in range(steps):
            optimizer.step()
    assert f"--profile 50: needs 60 iterations, but the run ended after {steps}" in caplog.text
    assert ("wrote the profile" in caplog.text) == bool(line) and line in caplog.text
    assert (tmp_path / "profile").exists() == bool(line)


@pytest.mark.parametrize("parse", [train_net.parse, pretrain.parse])
@pytest.mark.parametrize("option", ["--eval-only", "--replay=not_finite_0000007.pth"])
def test_only_training_can_be_profiled(parse, option, capsys):
    with pytest.raises(SystemExit):
        parse(["--config-file", "quickstart.yaml", option, "--profile", "2"])
    assert f"remove {option.partition('=')[0]}" in capsys.readouterr().err
