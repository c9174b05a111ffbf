"""Two "machines": two torchrun agents that meet on this one (``--nnodes 2``, c10d, gloo)."""

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
import torch
from test_resume import timeless

from resnet_det.training.checkpoint import load

TOOLS = Path(__file__).parents[2] / "tools"
SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"  # as in docs/multi_gpu.md


@pytest.fixture
def start(tmp_path):
    """Start a tool by one agent of two processes, or by two of one; returns the agents.

    They and their processes are ended after the test.
    """
    started = []

    def begin(machines, *words):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        launch = [
            sys.executable, "-W", "ignore", "-m", "torch.distributed.run",
            "--nnodes", machines, "--nproc-per-node", 2 // machines, "--rdzv-backend", "c10d",
            "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", uuid.uuid4().hex,
            "--signals-to-handle", SIGNALS,
        ]  # fmt: skip
        agents = []
        for _ in range(machines):
            log = tmp_path / f"agent{len(started)}.log"
            with log.open("w") as file:
                agent = subprocess.Popen(
                    [str(word) for word in (*launch, *words)], stdout=file, stderr=file,
                    env=os.environ | {"PYTHONPATH": str(TOOLS.parent), "OMP_NUM_THREADS": "1"},
                    start_new_session=True,
                )  # fmt: skip
            agent.log = log
            started.append(agent)
            agents.append(agent)
        return agents

    yield begin
    for agent in started:
        if agent.poll() is None:
            os.killpg(agent.pid, signal.SIGKILL)


def finished(agents, timeout=300):
    """Wait for agents. Returns their exit codes and what they and their processes printed."""
    codes = [agent.wait(timeout) for agent in agents]
    return codes, "".join(agent.log.read_text() for agent in agents)


def test_two_machines_train_as_one_with_two_processes(start, configs):
    keys = ["SOLVER.MAX_ITER", 4, "SOLVER.STEPS", "()", "TEST.EVAL_PERIOD", 0]
    words = [TOOLS / "pretrain.py", "--config-file", configs / "classifier.yaml", *keys]
    runs = {name: start(machines, *words, "OUTPUT_DIR", configs / name)
            for name, machines in (("one", 1), ("two", 2))}  # fmt: skip
    for agents in runs.values():
        codes, said = finished(agents)
        assert set(codes) == {0}, said
    assert timeless(configs / "one") == timeless(configs / "two")
    one, two = (load(configs / name / "model_final.pth") for name in runs)
    assert len(one["rng"]) == len(two["rng"]) == 2  # processes
    assert all(torch.equal(value, two["model"][name]) for name, value in one["model"].items())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("to", [0, 1])
@pytest.mark.parametrize("engine", [
    "classifier", "torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2),
])  # fmt: skip
def test_a_signal_to_one_machine_saves_and_ends_both(start, configs, engine, to, number):
    if engine == "classifier":
        words = [TOOLS / "pretrain.py", "--config-file", configs / "classifier.yaml"]
    else:
        words = [TOOLS / "train_net.py", "--config-file", configs / "detector.yaml",
                 "--engine", engine]  # fmt: skip
    output = configs / "run"
    long = ["SOLVER.MAX_ITER", 100_000, "SOLVER.CHECKPOINT_PERIOD", 100_000, "TEST.EVAL_PERIOD", 0]
    agents = start(2, *words, *long, "OUTPUT_DIR", output)
    while not (output / "metrics.json").exists() or not (output / "metrics.json").stat().st_size:
        assert all(agent.poll() is None for agent in agents), finished(agents)
        time.sleep(0.1)
    agents[to].send_signal(number)
    codes, said = finished(agents, timeout=60)
    assert 0 not in codes, said
    name = (output / "last_checkpoint").read_text()
    state = load(output / name)
    assert name == f"model_{state['iteration'] - (engine != 'detectron2'):07d}.pth"
