"""Run by test_resume.py: trains once undisturbed, and once killed at random moments and resumed.

    python kill_and_resume.py ENGINE CONFIG FOLDER PROCESSES SEED SIGNAL...

ENGINE is classifier, torchvision or detectron2. PROCESSES: 2, or 2,1 for 2 and 1 in turn. SIGKILL
goes to every process, DEATH is SIGKILL to the last one alone, as are the other signals. FOLDER gets
``whole`` and ``parts0``, ``parts1``...: a run that ends before the next signal makes room for
another. Prints one JSON object a line: the signal, after how many seconds, the exit statuses,
whether a write of a checkpoint was cut, whether all iterations were done, and the folder.
Everything is imported once, and each attempt is a fork of this process, which runs nothing.
"""

import itertools
import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

import torch.utils.tensorboard  # noqa: F401  (so that no attempt has to import it)

from resnet_det.config.loading import load_config
from resnet_det.engines import classifier, pick
from resnet_det.training import distributed


def attempt(engine, config, output, world, workers):
    """Start training (with ``--resume``) in forked processes; their ids."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(world):
        child = os.fork()
        if not child:
            status = 1
            try:
                os.setpgid(0, 0)
                log = os.open(f"{output}.log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
                os.dup2(log, 1), os.dup2(log, 2)
                if world > 1:
                    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world)}
                    os.environ |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world)}
                overrides = ["OUTPUT_DIR", str(output)]
                if engine == "classifier":
                    cfg = load_config(config, overrides)
                    distributed.launch(classifier.train, cfg, True)
                else:
                    overrides += ["DATALOADER.NUM_WORKERS", workers]
                    chosen = pick(engine)
                    distributed.launch(chosen.train, chosen.load_config(config, overrides), True)
                status = 0
            except SystemExit as stopped:
                status = stopped.code
                if isinstance(status, str):
                    print(status, file=sys.stderr)
                    status = 1
            except BaseException:  # noqa: BLE001  (it ends this process either way)
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(child)
    return children


ended = {}  # child -> exit status


def wait(children, seconds=None):
    """Exit statuses (negative: the signal), or None if not all ended within ``seconds``."""
    begin = time.monotonic()
    while True:
        for child in set(children) - set(ended):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                ended[child] = os.waitstatus_to_exitcode(status)
        if set(children) <= set(ended):
            return [ended[child] for child in children]
        if seconds is not None and time.monotonic() - begin > seconds:
            return None
        time.sleep(0.002)


def newest(folder):
    """What changes with each checkpoint."""
    try:
        return (folder / "last_checkpoint").stat().st_mtime_ns
    except FileNotFoundError:
        return None


def main(engine, config, folder, world, seed, *signals):
    folder, draw, worlds = Path(folder), random.Random(int(seed)), world.split(",")
    worlds = itertools.cycle(map(int, worlds))
    if engine != "classifier":
        pick(engine)  # imports it
    begin = time.monotonic()
    if any(wait(attempt(engine, config, folder / "whole", next(worlds), 0))):
        sys.exit((folder / "whole.log").read_text()[-3000:])
    longest, number = time.monotonic() - begin, 0
    for name in [*signals, None]:
        while True:
            output = folder / f"parts{number}"
            children = attempt(engine, config, output, next(worlds), number % 2)
            delay = None
            if name is not None:
                delay = draw.uniform(0, longest * 0.8)
                if name != "SIGKILL":  # the others are for a run that has begun
                    before, delay = newest(output), delay / 4
                    while newest(output) == before and wait(children, 0.01) is None:
                        pass
            statuses = wait(children, delay)
            if not ended.keys().isdisjoint(children):  # one finished, so the other is about to
                statuses = wait(children)
            if statuses is not None and any(statuses):
                sys.exit(Path(f"{output}.log").read_text()[-3000:])
            if statuses is None or name is None:
                break
            number += 1  # it was faster than the signal
        if name is None:
            break
        hit = children if name == "SIGKILL" else children[-1:]
        for child in hit:
            os.kill(child, signal.SIGKILL if name == "DEATH" else signal.Signals[name])
        cut = (output / ".checkpoint.tmp").exists()
        statuses = wait(children)
        report = {"signal": name, "after": delay, "statuses": statuses, "cut": cut}
        report["finished"] = (output / "model_final.pth").exists()
        print(json.dumps(report | {"folder": output.name}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
