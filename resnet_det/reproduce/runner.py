"""Start a table's commands, one after another or several at once."""

import contextlib
import os
import shlex
import subprocess
import sys
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .planning import ROOT


class Runner:
    """Runs commands of tools/, some at once; ends them gently when it is told to stop."""

    def __init__(self, jobs, say=print):
        self.jobs, self.say = jobs, say
        self.running, self.stopped = set(), False
        self.pretrainings = defaultdict(threading.Lock)

    def execute(self, command, log):
        """Run ``tools/...`` with its output in the file ``log``; True if it succeeded."""
        threads = str(max(1, (os.cpu_count() or 1) // self.jobs))
        environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
        tool, *options = command
        with open(log, "a") as file:
            file.write(f"$ {shlex.join(['python', *command])}\n")
            file.flush()
            process = subprocess.Popen(
                [sys.executable, ROOT / tool, "--config-file", ROOT / options[1], *options[2:]],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
            )
            self.running.add(process)
            try:
                return process.wait() == 0
            finally:
                self.running.discard(process)

    @contextlib.contextmanager
    def pretraining(self, weights):
        """Enter where the weights exist or no other cell is making them: two would share a folder."""
        held = None
        while weights and not held and not weights.exists() and not self.stopped:
            if self.pretrainings[weights].acquire(timeout=1):
                held = self.pretrainings[weights]
        try:
            yield
        finally:
            if held:
                held.release()

    def chain(self, runs):
        """Run what is not finished of a cell's runs; returns the log of one that failed, or None."""
        for run in runs:
            with run.lock:  # another cell may share it
                if self.stopped:
                    return None
                if run.metrics() is not None:
                    continue
                log = run.folder.with_name(run.folder.name + ".log")
                log.parent.mkdir(parents=True, exist_ok=True)
                self.say(f"{run.folder}: {run.iterations} iterations, log in {log}")
                with self.pretraining(run.pretrained):
                    done = not self.stopped and self.execute(run.command, log)
                if not done or run.metrics() is None:
                    return log
                self.say(f"{run.folder}: finished")
        return None

    def all(self, plan):
        """Run a plan, ``jobs`` cells at a time; returns the logs of those that failed."""
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                return [log for log in pool.map(self.chain, plan.values()) if log]
            except BaseException:
                self.stopped = True
                for process in list(self.running):
                    process.terminate()  # it saves a checkpoint
                raise


def last_line(log):
    lines = [line for line in Path(log).read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it wrote nothing"
