"""All commands: their help, their names, and their errors for invalid input."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from resnet_det import __main__ as console
from resnet_det.commands import cli, pretrain, train_alternating, train_net
from resnet_det.config.defaults import ConfigError

TOOLS = Path(__file__).parents[2] / "tools"
THREADS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
MODULES = {name: module for name, (module, _) in console.COMMANDS.items()}


def module(name):
    return importlib.import_module(f"resnet_det.commands.{MODULES[name]}")


@pytest.mark.parametrize("name", MODULES)
def test_help_explains_every_argument_and_has_an_example(name, monkeypatch, capsys):
    parsers, make = [], cli.parser
    monkeypatch.setattr(cli, "parser", lambda doc: parsers.append(make(doc)) or parsers[-1])
    with pytest.raises(SystemExit) as end:
        module(name).main(["--help"])
    assert end.value.code == 0
    assert f"    resnet-det {name} " in capsys.readouterr().out
    assert [action.dest for action in parsers[0]._actions if not action.help] == []


def test_every_command_has_a_name_and_a_tool():
    modules = {path.stem for path in Path(cli.__file__).parent.glob("*.py")}
    assert modules - {"__init__", "cli"} == set(MODULES.values())
    for name, stem in MODULES.items():
        tool = TOOLS / f"{stem}.py"
        assert os.access(tool, os.X_OK), tool
        assert f"`resnet-det {name}`" in tool.read_text()
        assert f"run({stem}.main)" in tool.read_text()


def test_the_console_script_runs_the_command(monkeypatch, capsys):
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setattr(sys, "argv", ["resnet-det", "model-table", "cifar_resnet20"])
    with pytest.raises(SystemExit) as end:
        console.main()
    assert not end.value.code and "| cifar_resnet20 " in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["resnet-det", "model-table", "cifar_resnet21"])
    with pytest.raises(SystemExit, match="error: .*cifar_resnet21.*cifar_resnet20"):
        console.main()
    for word, hint in (
        ("traim", "did you mean train?"),
        ("x", "resnet-det --help lists the commands"),
    ):
        monkeypatch.setattr(sys, "argv", ["resnet-det", word])
        with pytest.raises(SystemExit) as end:
            console.main()
        assert end.value.code == f"error: unknown command {word}; {hint}"


def test_the_console_script_sets_how_threads_wait_before_torch_is_loaded():
    """If `import resnet_det` has loaded torch, the script restarts itself in the same process."""
    code = (
        "import os, sys\n"
        f"names = {THREADS}\n"
        "print(os.getpid(), *map(os.environ.get, names), flush=True)\n"
        "if 'OMP_WAIT_POLICY' in os.environ: sys.exit()\n"
        "sys.modules['detectron2'] = None\n"
        "from resnet_det import __main__\n"
        "sys.modules['torch'] = None\n"
        "__main__.main()"
    )
    environment = {k: v for k, v in os.environ.items() if k not in THREADS}
    environment["PYTHONPATH"] = str(TOOLS.parent)
    first, *before, again, policy, spins = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    assert before == ["None", "None"] and first == again
    assert (policy, spins) == ("PASSIVE", "1000")


@pytest.mark.parametrize("command", [train_net, train_alternating, pretrain])
@pytest.mark.parametrize("words, reason", [
    (["--num-gpus", "0"], "--num-gpus: '0': give a whole number of at least 1"),
    (["--num-gpus", "-1"], "--num-gpus: '-1': give a whole number of at least 1"),
    (["SEED", "1", "--resume"], "go before the KEY VALUE pairs"),
    (["--eval-only", "--resume"], "--eval-only only evaluates MODEL.WEIGHTS: remove --resume"),
])  # fmt: skip
def test_wrong_options_end_before_anything_starts(command, words, reason, capsys):
    with pytest.raises(SystemExit) as end:
        command.main(["--config-file", "quickstart.yaml", *words])
    assert end.value.code == 2 and reason in capsys.readouterr().err


def test_bad_input_ends_with_one_line():
    def main():
        raise ConfigError("SOLVER.BASE_LR: what to do")

    with pytest.raises(SystemExit) as end:
        cli.run(main)
    assert end.value.code == "error: SOLVER.BASE_LR: what to do"
    with pytest.raises(SystemExit) as end:
        cli.run(lambda: 1)
    assert end.value.code == 1


def test_too_little_memory_is_one_line_that_says_what_to_lower():
    def main():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")

    with pytest.raises(SystemExit, match="error: CUDA out of memory: lower SOLVER.IMS_PER_BATCH"):
        cli.run(main)


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_of_a_pipe_that_has_ended_costs_no_traceback(lines):
    """Whether the lines fill the buffer or are first written when the command ends."""
    code = f"from resnet_det.commands.cli import run; run(lambda: print('line\\n' * {lines}))"
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "")
