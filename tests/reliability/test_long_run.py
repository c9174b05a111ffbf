"""Two thousand iterations of the smallest configs: what a run holds does not grow with its
length."""

import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import pytest
import yaml

from resnet_det.training import read_metrics

ROOT = Path(__file__).parents[2]
ITERATIONS = 2000


def held(pid):
    """Resident MB, open files, threads and children of a process, now."""
    proc = Path(f"/proc/{pid}")
    memory = int((proc / "statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    children = [int(c) for c in (proc / f"task/{pid}/children").read_text().split()]
    return (
        memory,
        len(list((proc / "fd").iterdir())),
        len(list((proc / "task").iterdir())),
        children,
    )


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize(
    "tool, options, config",
    [
        ("pretrain", [], "classifier"),
        ("train_net", ["--engine", "torchvision"], "detector"),
        pytest.param(
            "train_net", ["--engine", "detectron2"], "detector", marks=pytest.mark.detectron2
        ),
    ],
    ids=("classifier", "torchvision", "detectron2"),
)
def test_nothing_grows(configs, tool, options, config):
    path = configs / f"{config}.yaml"
    cfg = yaml.safe_load(path.read_text())
    cfg["SOLVER"] |= {"MAX_ITER": ITERATIONS, "STEPS": [], "CHECKPOINT_PERIOD": 250}
    cfg["TEST"] = {"EVAL_PERIOD": 250}  # evaluations and checkpoints come and go, too
    if config == "detector":
        cfg["DATALOADER"] = {"NUM_WORKERS": 1}
    path.write_text(yaml.safe_dump(cfg | {"OUTPUT_DIR": str(configs / "out")}))
    command = [sys.executable, "-W", "ignore", ROOT / f"tools/{tool}.py", *options]
    with open(configs / "log", "w") as log:
        run = subprocess.Popen([*command, "--config-file", path], stdout=log, stderr=log)
    samples = []
    while run.poll() is None:
        lines = read_metrics(configs / "out/metrics.json")
        if lines:
            try:
                memory, files, threads, children = held(run.pid)
                workers = sum(held(child)[0] for child in children)
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # one ended just then
            samples.append((lines[-1]["iteration"], memory, workers, files, threads, len(children)))
        time.sleep(0.3)
    assert run.returncode == 0, (configs / "log").read_text()[-4000:]

    quarter = ITERATIONS // 4
    parts = [[s for s in samples if n * quarter <= s[0] < (n + 1) * quarter] for n in range(4)]
    times = [line for line in read_metrics(configs / "out/metrics.json") if "time" in line]
    holds = []
    for n, part in enumerate(parts):
        seconds = [o["time"] for o in times if n * quarter <= o["iteration"] < (n + 1) * quarter]
        holds.append([median(column) for column in list(zip(*part))[1:]])
        print(
            f"quarter {n + 1}: {median(seconds):.4f} s an iteration; "
            "{:.0f} MB, workers {:.0f} MB, {:.0f} files, {:.0f} threads, {:.0f} children".format(
                *holds[-1]
            )
        )
    _, second, _, last = holds  # the first quarter still fills caches
    for before, after in zip(second, last):
        assert after <= 1.03 * before
