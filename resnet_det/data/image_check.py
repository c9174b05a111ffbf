"""Decode images ahead of their use, each version of a file once."""

import hashlib
import logging
import os

import torch
from torch.utils.data import Dataset

from . import pixels
from .loader import make_loader

logger = logging.getLogger(__name__)

FEW = 200  # images that are decoded sooner in this process than in workers that must start first
DECODED = "decoded_images.txt"  # in the cache folder: one key per line of an image that is usable


def cache_folder():
    """$RESNET_DET_CACHE, else ``resnet_det`` beside torch.hub's folder: ~/.cache/torch/resnet_det."""
    default = os.path.join(os.path.dirname(torch.hub.get_dir()), "resnet_det")
    return os.path.expanduser(os.environ.get("RESNET_DET_CACHE") or default)


def unusable(records, num_workers=0):
    """Decode the images of records that were not found usable before, and remember those that are.

    An image is decoded again if its path, size, modification time or expected shape changes.

    Args:
        records: list of dicts with ``file_name``, and ``height`` and ``width`` if they are known.
        num_workers: processes that decode.

    Returns:
        list of :class:`~resnet_det.data.pixels.ImageError`, one per unusable image.
    """
    path = os.path.join(cache_folder(), DECODED)
    known = _read(path)
    keyed = [(record, _key(record)) for record in records]
    new = [pair for pair in keyed if pair[1] not in known]
    if not new:
        return []
    logger.info("decoding %d test images that were not decoded before", len(new))
    loader = make_loader(
        _Decoded(new),
        batch_size=16,
        num_workers=num_workers if len(new) > FEW else 0,
        collate=list,
        partial=True,
    )
    decoded, faults = [], []
    try:
        for keys, bad in loader:
            decoded += keys or []
            faults += bad
    finally:
        _append(path, decoded)
    return [pixels.ImageError(*fault) for fault in faults]


class _Decoded(Dataset):
    """``(key, faults)`` of each pair (record, key), as :func:`.loader.make_loader` takes them."""

    def __init__(self, pairs):
        self.pairs = pairs

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        record, key = self.pairs[index]
        try:
            pixels.check_size(pixels.read_image(record["file_name"]), record)
        except pixels.ImageError as error:
            return None, [(error.file, error.what)]
        return key, []


def _key(record):
    """What an image's usability depends on, as a short text; None for a file that is not there."""
    path = os.path.abspath(record["file_name"])
    try:
        file = os.stat(path)
    except OSError:
        return None
    facts = (path, file.st_size, file.st_mtime_ns, record.get("height"), record.get("width"))
    return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()


def _read(path):
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return set(file.read().split())
    except OSError:
        return set()


def _append(path, keys):
    """Add keys to the cache. Runs may do so at once: a line that two of them mixed is no key."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "a", encoding="ascii") as file:
            file.write("".join(f"{key}\n" for key in keys))
    except OSError as error:
        logger.warning("%s: cannot be written, so the images are decoded again: %s", path, error)
