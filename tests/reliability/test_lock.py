"""A second run in a running one's folder is an error; the kernel releases a killed run's lock."""

import errno
import json
import os
import signal
import socket
import time
from functools import partial

import pytest
import yaml
from small_runs import python

from resnet_det.config.defaults import ConfigError
from resnet_det.config.loading import load_config as embedded
from resnet_det.engines import alternating, classifier, pick
from resnet_det.training import FolderInUse, alone_in, lock


def in_a_fork(function):
    """Process id of a fork that runs ``function``."""
    child = os.fork()
    if not child:
        try:
            function()
        finally:
            os._exit(1)
    return child


def test_a_killed_holder_frees_the_folder_though_its_forks_live(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.3)

    def hold():
        with alone_in(tmp_path / "out"):  # its fork has the file open too, as a data worker has
            (tmp_path / "worker").write_text(str(in_a_fork(lambda: time.sleep(60))))
            time.sleep(60)

    holder = in_a_fork(hold)
    while not (tmp_path / "worker").exists():
        time.sleep(0.01)
    words = f"OUTPUT_DIR: {tmp_path}/out is in use by process {holder} of {socket.gethostname()}"
    with pytest.raises(FolderInUse, match=words), alone_in(tmp_path / "out"):
        pass
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    worker = int((tmp_path / "worker").read_text())
    os.kill(worker, 0)  # it is still there
    with alone_in(tmp_path / "out"):
        assert (tmp_path / "out/.lock").read_text().startswith(f"process {os.getpid()} of")
    os.kill(worker, signal.SIGKILL)


def test_a_predecessor_may_take_some_seconds_to_end(tmp_path, caplog):
    entered = tmp_path / "entered"

    def hold():
        with alone_in(tmp_path / "out"):
            entered.touch()
            time.sleep(0.5)

    holder = in_a_fork(hold)
    while not entered.exists():
        time.sleep(0.01)
    with alone_in(tmp_path / "out"):
        assert f"waiting for process {holder}" in caplog.text
    os.waitpid(holder, 0)


def test_a_file_system_without_locks_is_a_line_in_the_log(tmp_path, caplog, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", none)
    with alone_in(tmp_path):
        assert f"{tmp_path}: its file system has no locks" in caplog.text


@pytest.mark.parametrize(
    "engine",
    ["classifier", "alternating", "torchvision",
     pytest.param("detectron2", marks=pytest.mark.detectron2)],
)  # fmt: skip
def test_what_the_waited_for_run_saved_is_kept(configs, engine):
    output, entered = configs / "out", configs / "entered"

    def hold():
        with alone_in(output):
            entered.touch()
            time.sleep(0.5)  # meanwhile the other is past its first look at the folder
            (output / "metrics.json").write_text("its own")
            (output / "last_checkpoint").write_text("model_0000002.pth")

    holder = in_a_fork(hold)
    while not entered.exists():
        time.sleep(0.01)
    overrides = ["OUTPUT_DIR", str(output), "SOLVER.MAX_ITER", 1, "TEST.EVAL_PERIOD", 0]
    if engine == "classifier":
        train, cfg = classifier.train, embedded(configs / "classifier.yaml", overrides)
    elif engine == "alternating":
        train = partial(alternating.train, pick("torchvision"))
        cfg = embedded(configs / "detector.yaml", overrides)
    else:
        train = pick(engine).train
        cfg = pick(engine).load_config(configs / "detector.yaml", overrides)
    with pytest.raises(ConfigError, match="holds the checkpoints of an earlier run"):
        train(cfg)
    os.waitpid(holder, 0)
    assert (output / "metrics.json").read_text() == "its own"
    assert sorted(os.listdir(output)) == [".lock", "last_checkpoint", "metrics.json"]


def test_weights_that_lie_in_the_output_folder_are_kept(configs):
    weights = configs / "out/model_final.pth"
    weights.parent.mkdir()
    weights.write_bytes(b"a detector from elsewhere")
    cfg = embedded(configs / "detector.yaml", ["OUTPUT_DIR", str(weights.parent)])
    with pytest.raises(ConfigError, match="holds model_final.pth, which this run may replace"):
        pick("torchvision").train(cfg)
    assert weights.read_bytes() == b"a detector from elsewhere"


def test_a_folder_that_cannot_be_made_is_refused_by_name(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file/out"):
        with pytest.raises(ValueError, match=f"OUTPUT_DIR: {folder} cannot be"), alone_in(folder):
            pass


def test_a_full_disk_costs_the_name_of_the_holder_alone(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lock.os, "pwrite", full)
    with alone_in(tmp_path):
        assert (tmp_path / ".lock").read_text() == ""


@pytest.mark.parametrize(
    "engine, world",
    [("classifier", 1), ("torchvision", 2), pytest.param("detectron2", 1, marks=pytest.mark.detectron2),
     pytest.param("detectron2", 2, marks=[pytest.mark.detectron2, pytest.mark.slow])],
)  # fmt: skip
def test_a_second_run_is_refused(configs, engine, world):
    config = configs / ("classifier.yaml" if engine == "classifier" else "detector.yaml")
    content = yaml.safe_load(config.read_text())
    content["SOLVER"] |= {"MAX_ITER": 100000}
    config.write_text(yaml.safe_dump(content))
    report = json.loads(python("second_run.py", engine, config, configs, world).stdout)
    assert report["statuses"] == [1] * world
    assert (
        f"FolderInUse: OUTPUT_DIR: {configs}/out is in use by process {report['first']} of"
        in report["refusal"]
    )
    assert report["kept"]
    assert (report["workers"] > 0) == (engine != "classifier")  # whose images are in memory
    assert "FolderInUse" not in report["third"] and "waiting" not in report["third"]
