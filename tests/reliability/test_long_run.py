"""Two thousand iterations of the smallest configs: what a run holds does not grow with its length."""

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
    """MB of its own, open files, threads and the same of every child: what a process holds now."""
    proc = Path(f"/proc/{pid}")
    memory = dict(line.split()[:2] for line in (proc / "smaps_rollup").read_text().splitlines()[1:])
    own = sum(int(memory[f"Private_{kind}:"]) for kind in ("Clean", "Dirty")) / 1024
    children = [int(c) for c in (proc / f"task/{pid}/children").read_text().split()]
    return own, len(list((proc / "fd").iterdir())), len(list((proc / "task").iterdir())), children


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux's /proc")
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
                own, files, threads, children = held(run.pid)
                workers = [held(child)[0] for child in children]
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # one ended just then
            samples.append((lines[-1]["iteration"], own, files, threads, workers))
        time.sleep(0.3)
    assert run.returncode == 0, (configs / "log").read_text()[-4000:]

    quarter = ITERATIONS // 4
    parts = [[s for s in samples if n * quarter <= s[0] < (n + 1) * quarter] for n in range(4)]
    times = [line for line in read_metrics(configs / "out/metrics.json") if "time" in line]
    for n, part in enumerate(parts):
        seconds = [o["time"] for o in times if n * quarter <= o["iteration"] < (n + 1) * quarter]
        print(
            f"quarter {n + 1}: {median(seconds):.4f} s an iteration, "
            f"{median(s[1] for s in part):.0f} MB (most {max(s[1] for s in part):.0f}), workers "
            f"{max(sum(s[4]) for s in part):.0f} MB, {max(s[2] for s in part)} files, "
            f"{max(s[3] for s in part)} threads, {max(len(s[4]) for s in part)} children"
        )
    second, last = parts[1], parts[3]  # the first quarter still fills caches
    assert median(s[1] for s in last) < 1.03 * median(s[1] for s in second)
    for count in (lambda s: s[2], lambda s: s[3], lambda s: len(s[4]), lambda s: sum(s[4]) // 30):
        assert max(map(count, last)) <= max(map(count, second))
