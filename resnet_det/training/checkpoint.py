"""Checkpoints that survive crashes, full disks and truncated files.

A checkpoint is a dict of tensors and plain containers::

    model, optimizer, schedule, scaler   state dicts
    iteration                            the next iteration to run
    rng                                  one random state per process
    window                               the values since the last line of metrics.json
    meta                                 plain facts: name of the net, preprocessing, ...
    matching_heuristics                  True, so that Detectron2's own checkpointer matches a
                                         classifier's names to the ends of a detector's names

Files have Detectron2's names: ``model_0000999.pth`` after iteration 999, and ``model_final.pth``.
The text file ``last_checkpoint`` holds the name of the newest one.
"""

import contextlib
import logging
import random
import re
import socket
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..files import whole_file, write_whole
from ..weights.pickles import WeightsError
from ..weights.torch_files import read_torch
from . import distributed

logger = logging.getLogger(__name__)


class Checkpointer:
    """Saves checkpoints to a folder, and finds the newest readable one.

    Args:
        folder: created if absent. All checkpoints are kept, as in Detectron2.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def save(self, name: str, newest: bool = True, **state: Any) -> Path:
        """Write ``<name>.pth`` and, if ``newest``, name it in ``last_checkpoint``.

        Even if this is interrupted, ``last_checkpoint`` names a complete file.

        Returns:
            the path of the checkpoint.

        Raises:
            OSError: the file cannot be written, for example because the disk is full. The previous
                checkpoint is intact.
            TypeError: ``state`` holds an object that could not be read back.
        """
        _check_plain(state, "")
        path = self.folder / f"{name}.pth"
        try:
            content = {**state, "matching_heuristics": True}
            # All checkpoints share the name of their temporary file, so that the next one replaces
            # the possibly large file that a killed process left.
            with whole_file(path, ".checkpoint.tmp") as temporary, open(temporary, "wb") as file:
                torch.save(content, file)
            if newest:
                write_whole(self.folder / "last_checkpoint", path.name)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            previous = self._named()
            intact = f"the previous one, {previous}, is intact" if previous else "none exists yet"
            raise OSError(f"cannot write the checkpoint {path}: {error}; {intact}") from error
        return path

    def latest(self) -> Path | None:
        """Path of the newest readable checkpoint, or None if there is no checkpoint.

        Call it in every process: the main process chooses a file, and the others check that they
        see the same one. It chooses the file that ``last_checkpoint`` names. If that one is
        damaged, it logs a warning and chooses the newest readable file.

        Raises:
            RuntimeError: every checkpoint is damaged.
            ValueError: a process and the main process see different files, because the folder is
                not shared or not up to date.

        Every process raises the same error.
        """
        choice = self._newest() if distributed.is_main() else None
        choice = distributed.all_gather_objects(choice)[0]
        if isinstance(choice, RuntimeError):
            raise choice
        path, checksums = choice
        own = None if distributed.is_main() else self._difference(path, checksums)
        for rank, difference in enumerate(distributed.all_gather_objects(own)):
            if difference:
                raise ValueError(
                    f"OUTPUT_DIR: {self.folder} is not the same folder for every process: process "
                    f"0 resumes from {path.name if path else 'nothing'}, but process {rank} "
                    f"{difference}: give a folder on a disk that all machines share"
                )
        return path

    def _newest(self):
        """Find the newest readable checkpoint.

        Returns (path, checksums), (None, None) if there are no checkpoints, or the RuntimeError to
        raise if all are damaged.
        """
        candidates = self._candidates()
        for path in candidates:
            problem = _damage(path)
            if problem is None:
                if path != candidates[0]:
                    logger.warning("falling back to the checkpoint %s", path)
                return path, _checksums(path)
            logger.warning("the checkpoint %s is unreadable (%s)", path, problem)
        if candidates:
            return RuntimeError(
                f"no checkpoint in {self.folder} is readable: remove them to start from scratch"
            )
        return None, None

    def _difference(self, path, checksums):
        """Describe what this process sees instead of the main process's choice; None if the
        same."""
        where, own = f"on {socket.gethostname()}", [own.name for own in self._candidates()]
        if path is None:
            return f"{where} finds {own[0]}" if own else None
        if not path.is_file():
            return f"{where} does not find that file, but {own[0] if own else 'nothing'}"
        damage = _damage(path)
        if damage:
            return f"{where} cannot read that file ({damage})"
        return (
            None if _checksums(path) == checksums else f"{where} finds another file with that name"
        )

    def load_latest(self) -> dict[str, Any] | None:
        """Load the checkpoint of :meth:`latest`; None if there is no checkpoint.

        Raises:
            RuntimeError, ValueError: see :meth:`latest`.
        """
        path = self.latest()
        if path is None:
            return None
        logger.info("resuming from %s", path)
        return load(path)

    def facts(self) -> dict[str, Any]:
        """The facts (``meta``) of the newest readable checkpoint; {} if there is none.

        Unlike :meth:`latest`, it needs no other process.
        """
        for path in self._candidates():
            with contextlib.suppress(FileNotFoundError, RuntimeError):  # :meth:`latest` names it
                return load(path).get("meta", {})
        return {}

    def _named(self):
        try:
            name = (self.folder / "last_checkpoint").read_text().strip()
        except FileNotFoundError:
            return None
        return self.folder / name if name else None

    def _candidates(self):
        """The file that ``last_checkpoint`` names, then all ``model_<iteration>.pth``, newest
        first, then ``model_final.pth``, which may be all that is left of a run."""
        named = self._named()
        files = self.folder.iterdir() if self.folder.is_dir() else ()
        numbered = (re.fullmatch(r"model_(\d+)\.pth", path.name) for path in files)
        found = sorted(((int(m[1]), m[0]) for m in numbered if m), reverse=True)
        others = [self.folder / name for _, name in found]
        final = self.folder / "model_final.pth"
        others += [final] * final.is_file()
        return [named] * bool(named) + [path for path in others if path != named]


def load(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU, without running code from it.

    Raises:
        FileNotFoundError: no such file.
        RuntimeError: the file is damaged or not a checkpoint. The message names it.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(path)
    try:
        return read_torch(path)
    except WeightsError as error:
        raise RuntimeError(f"cannot read the checkpoint {path}: {error}") from error


def rng_state(device: str | torch.device | None = None) -> dict[str, Any]:
    """States of the random generators of Python, numpy, torch and, if given, a CUDA ``device``.

    This is fast enough for every iteration; :func:`storable` converts a state to be saved.
    """
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
    }
    if device is not None and torch.device(device).type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def storable(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state of :func:`rng_state` in plain containers, for a checkpoint."""
    kind, keys, *rest = state["numpy"]
    return {**state, "numpy": [kind, keys.tolist(), *rest]}


def set_rng_state(state: Mapping[str, Any], device: str | torch.device | None = None) -> None:
    """Restore the states that :func:`rng_state` or :func:`storable` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device is not None and torch.device(device).type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


# The errors that zipfile raises for damaged files: unknown methods, passwords, bad names or
# offsets.
_BROKEN_ZIP = (
    OSError, EOFError, RuntimeError, ValueError, LookupError, zipfile.BadZipFile, zlib.error,
    struct.error,
)  # fmt: skip


def _damage(path):
    """Read the whole file and verify its checksums. Returns a description of the damage, or
    None."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
        return f"the checksum of {bad} does not match" if bad else None
    except _BROKEN_ZIP as error:
        return str(error)


def _checksums(path):
    """(name, CRC) of every record in an undamaged file. Files with equal checksums are equal."""
    with zipfile.ZipFile(path) as archive:
        return [(record.filename, record.CRC) for record in archive.infolist()]


def _check_plain(value, where):
    if isinstance(value, dict):
        for key, item in value.items():
            _check_plain(item, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _check_plain(item, f"{where}[{index}]")
    elif not (
        isinstance(value, torch.Tensor)
        or value is None
        or type(value) in (bool, int, float, str, bytes)
    ):
        raise TypeError(
            f"a checkpoint holds tensors and plain containers, but {where} is a "
            f"{type(value).__module__}.{type(value).__qualname__}"
        )
