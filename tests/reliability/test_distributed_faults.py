"""Several processes: a port in use, a death, other numbers of processes, torchrun's restarts."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from importlib.util import find_spec
from unittest import mock

import pytest
from small_runs import python
from test_resume import assert_same_runs, timeless

from resnet_det.config.loading import load_config
from resnet_det.engines import classifier, pick
from resnet_det.training import distributed


@pytest.fixture
def busy():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def test_a_port_in_use_is_named(busy, monkeypatch):
    environment = {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1"}
    for name, value in (environment | {"MASTER_PORT": busy}).items():
        monkeypatch.setenv(name, str(value))
    words = f"error: process 0 of 2 could not meet .*127.0.0.1:{busy}.*if the port is taken"
    with pytest.raises(SystemExit, match=words):
        distributed.launch(distributed.init, "cpu")


def _dies(rank_to_die):
    if distributed.launch_info().rank == rank_to_die:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def test_a_killed_process_ends_the_launch(capfd):
    with pytest.raises(SystemExit, match="process 1 was killed by SIGKILL.*--resume"):
        distributed.launch(_dies, 1, num_gpus=2)


def _hangs():
    distributed.TIMEOUT = timedelta(seconds=1)
    distributed.init("cpu")
    if distributed.is_main():
        distributed.barrier()
    time.sleep(600)


def test_a_process_that_hangs_ends_the_others(capfd):
    with pytest.raises(SystemExit):
        distributed.launch(_hangs, num_gpus=2)
    said = capfd.readouterr().err
    assert "process 0 of 2 stops because another process ended or hangs" in said


def _mistaken():
    raise ValueError("there is no such thing")


@pytest.mark.parametrize("rank, code", [(0, "error: there is no such thing"), (1, 1)])
def test_a_mistake_in_launched_processes_is_one_line(monkeypatch, rank, code):
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")  # and put back what the launch sets
    with pytest.raises(SystemExit) as stopped:
        distributed._launched(rank, _mistaken, (), {}, 0)
    assert stopped.value.code == code


@pytest.mark.parametrize(
    "words",
    [
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]:2",
        "NCCL error in: ProcessGroupNCCL.cpp:3763, remote process exited or there was a network error",
        "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting",
        "NCCL communicator was aborted on rank 0.",
        "[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=880, ...",
    ],
)
def test_a_dead_peer_is_known_by_the_words_of_gloo_and_nccl(words):
    """The messages are torch 2.14's; NCCL's are from bug reports, not tested on a GPU."""
    assert distributed.LOST.search(words)
    assert not distributed.LOST.search("NCCL error: invalid usage, ncclInvalidUsage")


ENGINES = ["classifier", "torchvision", *["detectron2"] * bool(find_spec("detectron2"))]


def _train(engine, configs, *overrides, resume=False):
    """One iteration of an engine's small config; what it refuses."""
    config = configs / ("classifier.yaml" if engine == "classifier" else "detector.yaml")
    train, load = classifier.train, load_config
    if engine != "classifier":
        train, load = pick(engine).train, pick(engine).load_config
    keys = ["SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "()", "DATASETS.TEST", "()"]
    keys += ["TEST.PRECISE_BN.ENABLED", "False", "OUTPUT_DIR", engine]
    try:
        train(load(config, [*keys, *overrides]), resume)
    except ValueError as error:
        return str(error)


def _on_own_disks(configs):
    """Run in each process, which works in a folder of its own and writes there what it is told."""
    disk = configs / str(distributed.launch_info().rank)
    disk.mkdir()
    os.chdir(disk)
    said = {}
    for engine in ENGINES:
        first = _train(engine, configs)
        again = _train(engine, configs, resume=True)
        with mock.patch("torch.cuda.is_available", lambda: True):
            one = _train(engine, configs, "OUTPUT_DIR", "other", "MODEL.DEVICE", "cuda:1")
        said[engine] = [first, again, one]
    (disk / "said.json").write_text(json.dumps(said))


def test_each_engine_refuses_a_disk_that_is_not_shared_and_one_gpu_for_all(configs):
    distributed.launch(_on_own_disks, configs, num_gpus=2)
    for rank in "01":
        said = json.loads((configs / rank / "said.json").read_text())
        assert list(said) == ENGINES
        for first, again, one in said.values():
            assert first is None
            assert "resumes from model_final.pth, but process 1 on" in again
            assert "cuda:1: names one device for 2 processes" in one


@pytest.mark.slow
def test_another_number_of_processes_keeps_batch_and_schedule(configs):
    """2 and 1 in turn; the draws inside the model differ, as the log warns."""
    done = python(
        "kill_and_resume.py", "torchvision", configs / "detector.yaml", configs, "2,1", 0,
        "SIGTERM", "SIGUSR1", "SIGTERM",
    )  # fmt: skip
    assert len(done.stdout.splitlines()) == 3
    for path in configs.glob("parts*/model_final.pth"):
        lines = [
            [(line["iteration"], line.get("lr"), sorted(line)) for line in timeless(folder)]
            for folder in (configs / "whole", path.parent)
        ]
        assert lines[0] == lines[1]


MEETING = """
import os, time
from resnet_det.training import distributed

rank, again = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"] == "1"
time.sleep(2 if again and rank == "1" else 0)
distributed.init("cpu")
assert distributed.all_gather_objects(rank) == ["0", "1"]
if not again:
    os._exit(1)
distributed.shutdown()
"""


def test_a_restarted_process_does_not_wait_for_a_dead_one(tmp_path):
    """The store of torchrun still has the address of process 1 in the attempt before."""
    (tmp_path / "meeting.py").write_text(MEETING)
    root = os.path.join(os.path.dirname(__file__), "../..")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "--max-restarts", "1", tmp_path / "meeting.py"],
        env=os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine", ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]
)
def test_torchrun_restarts_from_the_checkpoint(configs, engine):
    """``--resume`` also begins: the same command starts the run and goes on with it."""
    tool = os.path.join(os.path.dirname(__file__), "../../tools/train_net.py")

    def start(output):
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone",
             "--nproc-per-node", "2", "--max-restarts", "1", tool, "--engine", engine,
             "--config-file", configs / "detector.yaml", "--resume", "OUTPUT_DIR", output,
             "SOLVER.MAX_ITER", "60"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    whole = start(configs / "whole")
    assert whole.wait() == 0, whole.stdout.read()[-3000:]
    run = start(configs / "parts")
    while not (configs / "parts/last_checkpoint").exists():
        assert run.poll() is None, run.stdout.read()[-3000:]
        time.sleep(0.05)
    ranks = subprocess.run(
        ["pgrep", "-P", str(run.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    os.kill(int(ranks[-1]), signal.SIGKILL)
    output = run.communicate(timeout=600)[0]
    assert run.returncode == 0, output[-3000:]
    assert "stops because another process ended" in output or "exitcode: -9" in output
    assert_same_runs(configs / "whole", configs / "parts")
    print(json.dumps(timeless(configs / "parts")[-1]))
