"""Files and folders that are written whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(target: str | Path, temporary: str | None = None) -> Iterator[Path]:
    """Yield the path of a temporary file to write, which is then renamed to ``target``.

    ``target`` never holds half of the content, not even after a power cut. After an error or an
    interruption it is as it was, and the temporary file is removed.

    Args:
        target: path in a folder that exists.
        temporary: name of the temporary file, in the same folder. The default is made from the
            target's name, so that the next write replaces what a killed process left. Processes
            that write the same target at once need a name each.
    """
    target = Path(target)
    path = target.with_name(temporary or f".{target.name}.tmp")
    try:
        yield path
        _flush(path)
        os.replace(path, target)
        _flush(target.parent)  # makes the new name survive a power cut
    finally:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(target: str | Path) -> Iterator[str]:
    """Yield a temporary folder to fill, which is then renamed to ``target``.

    After an error or an interruption the temporary folder is removed. If another process made
    ``target`` meanwhile, that folder is kept.
    """
    root, name = os.path.split(target)
    os.makedirs(root or ".", exist_ok=True)
    folder = tempfile.mkdtemp(prefix=f".{name}-", dir=root or ".")
    try:
        yield folder
        os.chmod(folder, 0o755)  # mkdtemp's folder is private
        try:
            os.rename(folder, target)
        except OSError:
            if not os.path.isdir(target):
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _flush(path: Path) -> None:
    """Have the system write a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
