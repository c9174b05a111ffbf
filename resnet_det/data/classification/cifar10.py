"""CIFAR-10 (section 4.2), from the official archives in the python or the binary layout."""

import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...records import DatasetError
from ...weights.pickles import WeightsError, read_pickle
from ..check import Report
from ..specs import ClassificationSpec

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
PER_FILE = 10_000  # images per file of the archive
PIXELS = 3 * 32 * 32
MAX_BYTES = 2**28  # to read per file: CIFAR-100's have 155 MB, so a longer one raises an error

TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
# Split -> (files, begin and end of its images in units of files). The paper's 45k/5k split is not
# published; ours holds out the last 5,000 images of data_batch_5 (the archive's order is random).
SPLITS = {
    "cifar10_train": (TRAIN, 0, 5),
    "cifar10_train45k": (TRAIN, 0, 4.5),
    "cifar10_val5k": (TRAIN, 4.5, 5),
    "cifar10_test": (("test_batch",), 0, 1),
}


class Cifar10(ClassificationSpec):
    """A split of CIFAR-10, named in ``SPLITS``."""

    def paths(self) -> list[str]:
        """The paths at which CIFAR-10 may be found. One of them is enough."""
        return _places()

    def missing(self, root: str) -> str | None:
        return missing(root)

    def read_images(
        self, root: str, skip_bad: bool = False
    ) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        return *read(self.name, root), CLASSES

    def check(self, root: str, workers: int) -> Report:
        counts = Counter(read(self.name, root)[1].tolist())
        report = self.report(root, CLASSES, counts, [])
        _, begin, end = SPLITS[self.name]
        if (begin, end) == (int(begin), int(end)):  # whole files have balanced classes
            report.faults += [
                f"{root}: CIFAR-10: {counts[label]} of {report.images} images have the class {name}"
                for label, name in enumerate(CLASSES)
                if counts[label] != report.images / len(CLASSES)
            ]
        return report


def missing(root: str) -> str | None:
    """The first path at which CIFAR-10 is looked for, if it is at none of them; otherwise None."""
    places = [os.path.join(root, place) for place in _places()]
    return None if any(map(os.path.exists, places)) else places[0]


def _places() -> list[str]:
    return [place for folder, archive, *_ in _LAYOUTS for place in (folder, archive)]


def read(name: str, root: str) -> tuple[np.ndarray, np.ndarray]:
    """Read a split in ``SPLITS`` from the first of these that exists under ``root``:

    ``cifar-10-batches-py/``, ``cifar-10-python.tar.gz``, ``cifar-10-batches-bin/``,
    ``cifar-10-binary.tar.gz``. An archive is read without unpacking it to disk.

    Returns:
        (uint8 array (N, 3, 32, 32) in RGB, int64 array (N,)), in the archive's order.

    Raises:
        DatasetError: a file is missing, truncated or malformed. The message names it.
    """
    files, begin, end = SPLITS[name]
    for folder, archive, suffix, parse in _LAYOUTS:
        content = read_files(root, folder, archive, [file + suffix for file in files])
        if content is None:
            continue
        parts = [parse(data, path) for path, data in content]
        images, labels = (np.concatenate(arrays) for arrays in zip(*parts))
        part = slice(round(begin * PER_FILE), round(end * PER_FILE))
        return images[part].reshape(-1, 3, 32, 32), labels[part]
    places = ", ".join(_places())
    raise DatasetError(
        root,
        f"holds no CIFAR-10: python tools/get_data.py cifar10 downloads it; or put one of {places} "
        "there",
    )


def read_files(
    root: str, folder: str, archive: str, names: Sequence[str]
) -> list[tuple[str, bytes]] | None:
    """Read files in ``folder`` or, if it is absent, in the ``archive`` of that folder.

    Returns:
        (path for messages, content) of each file, or None if ``root`` holds neither.

    Raises:
        DatasetError: a file is missing, or the archive is damaged.
    """
    source = os.path.join(root, folder)
    if os.path.isdir(source):
        content = _from_folder(source, names)
    elif os.path.isfile(source := os.path.join(root, archive)):
        content = _from_archive(source, folder, names)
    else:
        return None
    return [(os.path.join(source, name), content[name]) for name in names]


def _from_folder(folder: str, names: Sequence[str]) -> dict[str, bytes]:
    content = {}
    for name in names:
        path = os.path.join(folder, name)
        try:
            with open(path, "rb") as file:
                content[name] = file.read(MAX_BYTES)
        except OSError as error:
            raise DatasetError(path, f"cannot be read: {error.strerror}") from error
    return content


def _from_archive(path: str, folder: str, names: Sequence[str]) -> dict[str, bytes]:
    """Read the files in one pass, because a compressed archive can only be read sequentially."""
    wanted = {f"{folder}/{name}": name for name in names}
    content = {}
    try:
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                if member.isfile() and member.name in wanted:
                    file = archive.extractfile(member)
                    content[wanted[member.name]] = file.read(MAX_BYTES)  # type: ignore[union-attr]
                if len(content) == len(names):
                    break
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DatasetError(path, f"is not a complete .tar.gz: {error}") from error
    missing = [member for member, name in wanted.items() if name not in content]
    if missing:
        raise DatasetError(path, f"lacks {', '.join(missing)}")
    return content


def _parse_binary(content: bytes, path: str) -> tuple[np.ndarray, np.ndarray]:
    """Parse records of one label byte and 3,072 pixel bytes: the red, green and blue planes."""
    if len(content) != PER_FILE * (1 + PIXELS):
        raise DatasetError(
            path, f"has {len(content):,} bytes instead of {PER_FILE * (1 + PIXELS):,}"
        )
    rows = np.frombuffer(content, np.uint8).reshape(PER_FILE, 1 + PIXELS)
    return rows[:, 1:], _checked(rows[:, 0], path, PER_FILE, len(CLASSES))


def _parse_python(content: bytes, path: str) -> tuple[np.ndarray, np.ndarray]:
    return parse_batch(content, path, "labels", PER_FILE, len(CLASSES))


def parse_batch(
    content: bytes, path: str, key: str, count: int, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Read a pickled ``{"data": uint8 (count, 3072), <key>: list of labels, ...}``."""
    batch = read_dict(content, path, "data", key)
    data, labels = batch["data"], batch[key]
    data = data.numpy() if hasattr(data, "numpy") else data
    if getattr(data, "shape", None) != (count, PIXELS) or data.dtype != np.uint8:
        raise DatasetError(path, f"'data' is not a uint8 array of {count} x {PIXELS}")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DatasetError(path, f"{key!r} is not a list of integers")
    return data, _checked(np.array(labels), path, count, classes)


def read_dict(content: bytes, path: str, *keys: str) -> dict[str, Any]:
    """Read a pickled dict with these keys, without running code from the pickle."""
    try:
        batch = read_pickle(path, content)
    except WeightsError as error:
        raise DatasetError(path, str(error).removeprefix(f"{path}: ")) from error
    if not isinstance(batch, dict) or not set(keys) <= batch.keys():
        raise DatasetError(path, f"holds no {' and '.join(map(repr, keys))}")
    return batch


def _checked(labels: np.ndarray, path: str, count: int, classes: int) -> np.ndarray:
    if labels.shape != (count,):
        raise DatasetError(path, f"has {len(labels)} labels for {count} images")
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        what = f"image {wrong[0]} has the label {labels[wrong[0]]}, not 0 to {classes - 1}"
        raise DatasetError(path, what)
    return labels.astype(np.int64)


# folder, archive, ending of the files, parser
_LAYOUTS = (
    ("cifar-10-batches-py", "cifar-10-python.tar.gz", "", _parse_python),
    ("cifar-10-batches-bin", "cifar-10-binary.tar.gz", ".bin", _parse_binary),
)
