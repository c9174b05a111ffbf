"""Write files and folders atomically: completely or not at all. Also safe names for them."""

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def check_target(path: str | Path) -> None:
    """Check that a file can have this path.

    Raises:
        ValueError: it is a folder, or below a file.
    """
    if Path(path).is_dir():
        raise ValueError(f"{path}: is a folder; name a file")
    for place in Path(path).parents:
        if place.is_file():
            raise ValueError(f"{path}: {place} is a file; name a file in a folder")


@contextlib.contextmanager
def whole_file(target: str | Path, temporary: str | None = None) -> Iterator[Path]:
    """Yield the path of a temporary file to write, and rename the file to ``target`` on exit.

    ``target`` never holds partial content, not even after a power cut. After an error or an
    interruption it is unchanged, and the temporary file is removed.

    Args:
        target: path of the file. Its folder is created if absent.
        temporary: name of the temporary file, in the same folder. The default derives from the
            target's name, so that the next write replaces a file that a killed process left.
            Processes that write the same target at once need different names.

    Raises:
        ValueError: see :func:`check_target`.
    """
    target = Path(target)
    check_target(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    path = target.with_name(temporary or f".{target.name}.tmp")
    try:
        yield path
        _flush(path)
        os.replace(path, target)
        _flush(target.parent)  # makes the new name survive a power cut
    finally:
        path.unlink(missing_ok=True)


def write_whole(target: str | Path, text: str) -> None:
    """Write a text file by :func:`whole_file`."""
    with whole_file(target) as file:
        file.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def whole_folder(target: str | Path) -> Iterator[str]:
    """Yield a temporary folder to fill, and rename it to ``target`` on exit.

    After an error or an interruption, the temporary folder is removed. If another process created
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


def safe_name(name: str) -> str:
    """A name for the files of the dataset ``name``: the same if a file may have it, else short and
    unique, as "BCCD_split_train-1c9f1a2b" for "voc:/data/BCCD?split=train"."""
    if re.fullmatch(r"[\w+-][\w.+-]{,99}", name):
        return name
    path, _, query = name.partition("?")
    last = re.split("[/:]", path.rstrip("/"))[-1]
    words = re.sub(r"\W+", "_", f"{last}_{query}")[:40].strip("_")
    return f"{words}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _flush(path: Path) -> None:
    """Flush a file or a folder to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
