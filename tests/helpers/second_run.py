"""Run by test_lock.py: starts a run beside a running one, and after the kill of that one.

    python second_run.py ENGINE CONFIG FOLDER PROCESSES

ENGINE, and how a run starts, are as in kill_and_resume.py; the config is of many iterations. Prints
a JSON object: process id of the ``first`` run, exit ``statuses`` and output (``refusal``) of the
second, whether the first one's metrics were ``kept``, how many of its data ``workers`` outlived it,
and the output of the ``third`` run, which came then.
"""

import contextlib
import json
import os
import signal
import sys
from pathlib import Path

from kill_and_resume import attempt, newest, wait

from resnet_det.training import lock, read_metrics


def main(engine, config, folder, world):
    lock.PATIENCE, output, started = 1.0, Path(folder) / "out", []
    metrics, log = output / "metrics.json", Path(f"{output}.log")

    def start():
        children = attempt(engine, config, output, int(world), 1)
        started.extend(children)
        return children

    def progress(children):
        """Wait until there is another checkpoint, and a line of metrics."""
        before = newest(output)
        while newest(output) == before or not read_metrics(metrics):
            if wait(children, 0.05) is not None:
                sys.exit(log.read_text()[-3000:])

    def kill(children):
        for child in children:
            os.kill(child, signal.SIGKILL)
        wait(children)

    try:
        first = start()
        progress(first)
        begun = read_metrics(metrics)
        size = log.stat().st_size
        report = {"first": first[0], "statuses": wait(start(), 60)}
        report["refusal"] = log.read_text()[size:]
        progress(first)
        report["kept"] = read_metrics(metrics)[: len(begun)] == begun
        workers = []
        for child in first:
            workers += Path(f"/proc/{child}/task/{child}/children").read_text().split()
        kill(first)
        report["workers"] = sum(Path("/proc", worker).exists() for worker in workers)
        size = log.stat().st_size
        third = start()
        progress(third)
        report["third"] = log.read_text()[size:]
        kill(third)
        print(json.dumps(report))
    finally:
        for child in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)  # with its data workers


if __name__ == "__main__":
    main(*sys.argv[1:])
