"""One run at a time in an output folder: a second one would delete the metrics of the first."""

import contextlib
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from . import distributed

logger = logging.getLogger(__name__)

PATIENCE = 10.0  # seconds to wait for an earlier run that was told to stop


class FolderInUse(ValueError):
    """Another process runs in the folder."""


@contextlib.contextmanager
def alone_in(folder: str | Path) -> Iterator[None]:
    """Hold a folder for the run of these processes, by a lock on its file ``.lock``.

    The main process holds the lock. The system drops it when that process ends, in whatever way,
    even if its data workers outlive it. A file system without locks gets a warning in the log.
    Do not nest it: leaving the inner block would free the folder.

    Raises (the same in every process; the message names the folder):
        FolderInUse: another process holds the folder; the message names it.
        ValueError: the folder cannot be written to.
    """
    file: int | None = None
    refusal: ValueError | None = None
    if distributed.is_main():
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            file = os.open(Path(folder, ".lock"), os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            refusal = ValueError(
                f"OUTPUT_DIR: {folder} cannot be written to ({error}): give another OUTPUT_DIR, "
                "or make this one writable"
            )
        else:
            refusal = _lock(file, folder)
    try:
        refusal = distributed.all_gather_objects(refusal)[0]
        if refusal is not None:
            raise refusal
        yield
    finally:
        if file is not None:
            os.close(file)


def _lock(file, folder):
    """Lock an open file, waiting up to PATIENCE; FolderInUse if another process keeps it, else None.

    A record lock (``lockf``) belongs to this process alone. A lock of ``flock`` would live on in
    the forked workers of a process that was killed.
    """
    end = time.monotonic() + PATIENCE
    waited = False
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except (BlockingIOError, PermissionError):
            holder = os.pread(file, 200, 0).decode(errors="replace") or "another process"
            if time.monotonic() > end:
                return FolderInUse(
                    f"OUTPUT_DIR: {folder} is in use by {holder}: end that run first, or give "
                    "another OUTPUT_DIR"
                )
            if not waited:
                logger.warning("OUTPUT_DIR: %s: waiting for %s to end", folder, holder)
            waited = True
            time.sleep(0.2)
        except OSError as error:
            logger.warning(
                "OUTPUT_DIR: %s: its file system has no locks (%s): do not start a second run in it",
                folder,
                error,
            )
            return None
    with contextlib.suppress(OSError):  # the name is only for the message
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} of {socket.gethostname()}".encode(), 0)
    return None
