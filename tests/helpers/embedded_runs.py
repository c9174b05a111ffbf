"""Runs of the embedded engine's tools, and what they leave."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent.parent


def tool(name, *args, check=True, torchrun=0):
    launcher = [sys.executable]
    if torchrun:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={torchrun}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*launcher, str(ROOT / "tools" / name), *map(str, args)],
        env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    if check:
        assert run.returncode == 0, run.stdout + run.stderr
    return run


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def final_weights(output):
    return torch.load(Path(output, "model_final.pth"), weights_only=True)["model"]
