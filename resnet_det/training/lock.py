"""One run at a time in an output folder: a second one would cut off the first one's metrics."""

import contextlib
import fcntl
import logging
import os
import socket
import time
from pathlib import Path

from . import distributed

logger = logging.getLogger(__name__)

PATIENCE = 10.0  # seconds in which a predecessor that was told to stop may still end


class FolderInUse(ValueError):
    """Another process runs in the folder."""


@contextlib.contextmanager
def alone_in(folder):
    """Hold a folder for the run of these processes, by a lock on its file ``.lock``.

    The main process holds it. The system drops it when that process ends, however it ends, even
    where its data workers outlive it. On a file system without locks a line in the log says so.
    A process must not enter it twice at once: leaving the inner one would free the folder.

    Raises (in every process; both name the folder):
        FolderInUse: another process holds it; says which.
        ValueError: no file can be made in it.
    """
    file = refusal = None
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
    """Lock an open file within PATIENCE; FolderInUse where another process keeps it, else None.

    A record lock (lockf) belongs to this process alone. One of flock would live on in the forked
    workers of a process that was killed.
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
                "OUTPUT_DIR: %s: its file system has no locks (%s): start no second run in it",
                folder,
                error,
            )
            return None
    with contextlib.suppress(OSError):  # the name is for the message alone
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} of {socket.gethostname()}".encode(), 0)
    return None
