"""Allow one run at a time in an output folder: a second run would delete the first one's
metrics."""

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
    """Another process is running in the folder."""


@contextlib.contextmanager
def alone_in(folder: str | Path) -> Iterator[None]:
    """Lock a folder for this run, through its file ``.lock``.

    The main process holds the lock. The system releases it when that process ends for any reason,
    even if its data workers outlive it. On a file system without locks, a warning is logged
    instead. Do not nest calls: leaving the inner block would release the folder.

    Raises:
        FolderInUse: another process holds the folder.
        ValueError: the folder cannot be written to.

    Every process raises the same error; the message names the folder.
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
    """Lock an open file, waiting up to PATIENCE seconds. Returns FolderInUse if another process
    keeps it, otherwise None.

    A record lock (``lockf``) belongs to this process alone. An ``flock`` lock would persist in the
    forked workers of a killed process.
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
