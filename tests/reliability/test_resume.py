"""A run that is killed at any moment and resumed equals the uninterrupted one bit for bit."""

import json
import random

import pytest
import torch
from small_runs import python

from resnet_det.training import read_metrics

TIMES = {"time", "data_time", "rank_data_time", "eta_seconds"}


def timeless(folder):
    lines = read_metrics(folder / "metrics.json")
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def assert_same(one, other, where=""):
    """Both hold the same tensors, bit for bit, and plain values."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one.keys() - TIMES:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other)):
            assert_same(a, b, f"{where}[{i}]")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), where
    else:
        assert one == other or str(one) == str(other) == "nan", where  # the AP of no object


def assert_same_runs(whole, parts):
    assert_same(timeless(whole), timeless(parts))
    states = [torch.load(f / "model_final.pth", weights_only=True) for f in (whole, parts)]
    assert {"model", "iteration", "meta"} <= states[0].keys()
    for state in states:
        state.pop("meta")  # the output folder's name is in its config
    assert_same(*states)


def check(configs, engine, world, signals, seed=0):
    config = configs / ("classifier.yaml" if engine == "classifier" else "detector.yaml")
    done = python("kill_and_resume.py", engine, config, configs, world, seed, *signals)
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [r["signal"] for r in reports] == list(signals)
    for report in reports:
        # Of two processes the last gets all but SIGKILL; the other stops with it.
        *others, status = report["statuses"]
        hit, other = {
            "SIGKILL": (-9, -9), "DEATH": (-9, 1), "SIGTERM": (143, 143), "SIGUSR1": (138, 143),
            "SIGINT": (130, 143),
        }[report["signal"]]  # fmt: skip
        if not report["finished"]:  # a signal may come while a run that is done ends
            assert status == hit and set(others) <= {other}, report
        if report["signal"] == "DEATH" and not report["finished"]:
            log = (configs / f"{report['folder']}.log").read_text()
            assert "stops because another process ended" in log
    assert not all(r["finished"] for r in reports)
    finished = sorted(configs.glob("parts*/model_final.pth"))
    assert finished
    for path in finished:
        assert_same_runs(configs / "whole", path.parent)
    return reports


@pytest.mark.parametrize("engine", ["classifier", "torchvision"])
def test_killed_and_resumed(configs, engine):
    check(configs, engine, 1, ["SIGKILL", "SIGUSR1", "SIGINT"])


def test_killed_and_resumed_in_two_processes(configs):
    check(configs, "torchvision", 2, ["DEATH", "SIGTERM"])


@pytest.mark.detectron2
@pytest.mark.parametrize("world", [1, 2])
def test_killed_and_resumed_on_detectron2(configs, world):
    check(configs, "detectron2", world, ["SIGKILL", "SIGTERM", "SIGINT", "SIGUSR1"])


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize(
    "engine",
    ["classifier", "torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)],
)
def test_killed_at_twenty_moments(configs, engine, world, record_property):
    signals = ["SIGKILL"] * 20 + ["SIGTERM", "SIGUSR1"] + ["DEATH"] * 2 * (world - 1)
    random.Random(world).shuffle(signals)
    reports = check(configs, engine, world, signals, seed=world)
    record_property("reports", reports)
    print(engine, world, "cut while writing:", sum(r["cut"] for r in reports))
