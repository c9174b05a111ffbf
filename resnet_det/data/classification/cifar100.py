"""CIFAR-100 with its 100 fine classes, from the official archive in the python layout."""

import os
from collections import Counter

import numpy as np

from ...records import DatasetError
from ..check import Report
from ..specs import ClassificationSpec
from .cifar10 import parse_batch, read_dict, read_files

FOLDER, ARCHIVE = "cifar-100-python", "cifar-100-python.tar.gz"
SPLITS = {"cifar100_train": ("train", 50_000), "cifar100_test": ("test", 10_000)}  # file, images


class Cifar100(ClassificationSpec):
    """A split of CIFAR-100, named in ``SPLITS``."""

    def paths(self) -> list[str]:
        """The paths at which CIFAR-100 may be found. One of them is enough."""
        return [FOLDER, ARCHIVE]

    def missing(self, root: str) -> str | None:
        places = [os.path.join(root, place) for place in self.paths()]
        return None if any(map(os.path.exists, places)) else places[0]

    def read_images(
        self, root: str, skip_bad: bool = False
    ) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        file, count = SPLITS[self.name]
        content = read_files(root, FOLDER, ARCHIVE, [file, "meta"])
        if content is None:
            raise DatasetError(
                root,
                "holds no CIFAR-100: python tools/get_data.py cifar100 downloads it; or put "
                f"{FOLDER} or {ARCHIVE} there",
            )
        (path, batch), (meta, names) = content
        classes = read_dict(names, meta, "fine_label_names")["fine_label_names"]
        if not isinstance(classes, list) or len(set(map(str, classes))) != 100:
            raise DatasetError(meta, "'fine_label_names' is not a list of 100 names")
        images, labels = parse_batch(batch, path, "fine_labels", count, len(classes))
        return images.reshape(-1, 3, 32, 32), labels, tuple(map(str, classes))

    def check(self, root: str, workers: int) -> Report:
        _, labels, classes = self.read_images(root)
        return self.report(root, classes, Counter(labels.tolist()), [])
