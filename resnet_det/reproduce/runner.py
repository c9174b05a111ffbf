"""Run the commands of a plan, one after another or several in parallel."""

import contextlib
import os
import shlex
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

import torch

from ..config.defaults import ConfigError
from .planning import Plan, Run


class Runner:
    """Runs a plan's commands, ``jobs`` cells at a time, each on GPUs of its own if there are any.

    Args:
        processes: number of processes, and GPUs, of each training.
        say: called with one line of text when a run starts or ends.

    Raises:
        ConfigError: there are fewer GPUs than ``processes``.
    """

    def __init__(self, jobs: int, processes: int = 1, say: Callable[[str], object] = print) -> None:
        self.jobs, self.processes, self.say = jobs, processes, say
        self._free: Queue[dict[str, str]] = Queue()
        for index in range(jobs):
            self._free.put(own_gpus(index, processes))
        self.stopped = False
        self._running: set[subprocess.Popen[bytes]] = set()
        self._pretrainings: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)

    def run_all(self, plan: Plan) -> list[Path]:
        """Run a plan. Returns the log files of the runs that failed."""
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                return [log for log in pool.map(self.run_chain, plan.values()) if log]
            except BaseException:
                self.stopped = True
                for process in list(self._running):
                    process.terminate()  # it saves a checkpoint
                raise

    def run_chain(self, runs: Sequence[Run]) -> Path | None:
        """Run a cell's unfinished runs. Returns the log file of the one that failed, or None."""
        environment = self._free.get()
        try:
            return self._run_chain(runs, environment)
        finally:
            self._free.put(environment)

    def _run_chain(self, runs: Sequence[Run], environment: Mapping[str, str]) -> Path | None:
        for run in runs:
            with run.lock:
                if self.stopped:
                    return None
                if run.metrics() is not None:
                    continue
                log = run.folder.with_name(run.folder.name + ".log")
                log.parent.mkdir(parents=True, exist_ok=True)
                self.say(f"{run.folder}: {run.iterations} iterations, log in {log}")
                with self._pretraining(run.pretrained):
                    done = not self.stopped and self._execute(run, log, environment)
                if not done or run.metrics() is None:
                    return log
                self.say(f"{run.folder}: finished")
        return None

    def _execute(self, run: Run, log: Path, environment: Mapping[str, str]) -> bool:
        """Run a command and append its output to ``log``. Returns whether it succeeds."""
        threads = str(max(1, (os.cpu_count() or 1) // (self.jobs * self.processes)))
        module, *words = run.command
        command = [module, "--num-gpus", str(self.processes), *words]
        with open(log, "a") as file:
            file.write(f"$ {shlex.join(['python', '-m', *command])}\n")
            file.flush()
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={
                    "OMP_NUM_THREADS": threads,
                    "OMP_WAIT_POLICY": "PASSIVE",
                    **os.environ,
                    **environment,
                },
            )
            self._running.add(process)
            try:
                return process.wait() == 0
            finally:
                self._running.discard(process)

    @contextlib.contextmanager
    def _pretraining(self, weights: Path | None) -> Iterator[None]:
        """Wait until the weights exist or no other cell is training them."""
        held = None
        while weights and not held and not weights.exists() and not self.stopped:
            if self._pretrainings[weights].acquire(timeout=1):
                held = self._pretrainings[weights]
        try:
            yield
        finally:
            if held:
                held.release()


def own_gpus(index: int, processes: int) -> dict[str, str]:
    """The environment in which job ``index`` sees only its own GPUs. Jobs share GPUs if there are
    too few. Empty on a machine without GPUs.

    Raises:
        ConfigError: there are fewer GPUs than ``processes``.
    """
    count = torch.cuda.device_count()
    if not count:
        return {}
    if count < processes:
        raise ConfigError(f"--num-gpus {processes}: this machine has {count}")
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",")[:count] if named else [str(gpu) for gpu in range(count)]
    groups = count // processes
    first = index % groups * processes
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus[first : first + processes])}


def last_line(log: str | Path) -> str:
    lines = [line for line in Path(log).read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no output"
