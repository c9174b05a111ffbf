"""Several processes: a port in use, a death, other numbers of processes, torchrun's restarts."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from small_runs import python
from test_resume import assert_same_runs, timeless

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


def _mistaken():
    raise ValueError("there is no such thing")


@pytest.mark.parametrize("rank, code", [(0, "error: there is no such thing"), (1, 1)])
def test_a_mistake_in_launched_processes_is_one_line(monkeypatch, rank, code):
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")  # and put back what the launch sets
    with pytest.raises(SystemExit) as stopped:
        distributed._launched(rank, _mistaken, (), {}, 0)
    assert stopped.value.code == code


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
    assert "stops because another has ended" in output or "exitcode: -9" in output
    assert_same_runs(configs / "whole", configs / "parts")
    print(json.dumps(timeless(configs / "parts")[-1]))
