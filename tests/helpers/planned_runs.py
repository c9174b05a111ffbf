"""A table's plan and its commands, in the tests of the reproduction."""

import os
from pathlib import Path

from resnet_det.reproduce.table import Number

ROOT = Path(__file__).parents[2]
ERROR = Number("classification/top1_error", "test error %", 8.0)
CLASSIFIER = "configs/quickstart_classifier.yaml"


def commands(log):
    return [line for line in Path(log).read_text().splitlines() if line.startswith("$ ")]


# Stands for a command where only its place in the plan matters: as quick as a process can be. Its
# options, and what a finished run leaves:
OPTIONS = """
import json, pathlib, sys, time
words = [word for word in sys.argv[3:] if word != "--resume"]
options = dict(zip(words[::2], words[1::2]))
"""
FINISHED = """
(folder / "config.yaml").write_text("SOLVER: {MAX_ITER: %s}" % options["SOLVER.MAX_ITER"])
line = {"iteration": int(options["SOLVER.MAX_ITER"]) - 1, "classification/top1_error": 50.0}
(folder / "metrics.json").write_text(json.dumps(line))
(folder / "model_final.pth").touch()
"""


def command(folder, monkeypatch, does):
    """The name of a module that stands for a command."""
    (folder / "stand_in.py").write_text(OPTIONS + does + FINISHED)
    path = [str(folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
    return "stand_in"


def environment():
    """The environment of a command of this checkout, run in another folder and on one core."""
    path = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    path = os.pathsep.join(filter(None, path))
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
