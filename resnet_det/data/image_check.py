"""Decode images before they are needed, once per version of a file."""

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from . import pixels
from .loader import make_loader

logger = logging.getLogger(__name__)

FEW = 200  # up to this many images are decoded in this process: starting workers would take longer
DECODED = "decoded_images.txt"  # in the cache folder: one line per usable image, its key


def cache_folder() -> str:
    """Path of the cache folder: $RESNET_DET_CACHE, by default ~/.cache/torch/resnet_det.

    The default lies beside torch.hub's folder and moves with it.
    """
    default = os.path.join(os.path.dirname(torch.hub.get_dir()), "resnet_det")
    return os.path.expanduser(os.environ.get("RESNET_DET_CACHE") or default)


def unusable(records: Sequence[Mapping[str, Any]], num_workers: int = 0) -> list[pixels.ImageError]:
    """Decode the images that are not yet known to be usable, and record the usable ones in a cache.

    An image is decoded again if its path, size, modification time or expected shape changes.

    Args:
        records: dicts with ``file_name``, and ``height`` and ``width`` if known.
        num_workers: number of processes that decode.

    Returns:
        One error per unusable image.
    """
    path = os.path.join(cache_folder(), DECODED)
    known = _read(path)
    keyed = [(record, _key(record)) for record in records]
    new = [pair for pair in keyed if pair[1] not in known]
    if not new:
        return []
    logger.info("decoding %d test images that were not checked before", len(new))
    loader = make_loader(
        _Decoded(new),
        batch_size=16,
        num_workers=num_workers if len(new) > FEW else 0,
        collate=list,
        partial=True,
    )
    decoded: list[str] = []
    faults: list[tuple[str, str]] = []
    try:
        for keys, bad in loader:
            decoded += keys or []
            faults += bad
    finally:
        _append(path, decoded)
    return [pixels.ImageError(*fault) for fault in faults]


class _Decoded(Dataset):
    """``(key, faults)`` of each pair (record, key), for :func:`.loader.make_loader`."""

    def __init__(self, pairs: Sequence[tuple[Mapping[str, Any], str | None]]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[str | None, list[tuple[str, str]]]:
        record, key = self.pairs[index]
        try:
            pixels.check_size(pixels.read_image(record["file_name"]), record)
        except pixels.ImageError as error:
            return None, [(error.file, error.what)]
        return key, []


def _key(record: Mapping[str, Any]) -> str | None:
    """A digest of everything that decides whether an image is usable; None without the file."""
    path = os.path.abspath(record["file_name"])
    try:
        file = os.stat(path)
    except OSError:
        return None
    facts = (path, file.st_size, file.st_mtime_ns, record.get("height"), record.get("width"))
    return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()


def _read(path: str) -> set[str]:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return set(file.read().split())
    except OSError:
        return set()


def _append(path: str, keys: Iterable[str]) -> None:
    """Add keys to the cache. If two runs append at once, their mixed lines match no image."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "a", encoding="ascii") as file:
            file.write("".join(f"{key}\n" for key in keys))
    except OSError as error:
        logger.warning(
            "%s: cannot be written, so the next run decodes these images again: %s", path, error
        )
