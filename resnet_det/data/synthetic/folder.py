"""A folder of synthetic data: drawn as a whole, with a version."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass

from ...records import DatasetError


@dataclass(frozen=True)
class DrawnFolder:
    """A folder that a program of ours draws, and ``about.json`` in it, which holds the version.

    name: of the folder, under the datasets' folder.
    version: of the drawing; results on folders of different versions do not compare.
    draw: ``draw(root, workers)`` draws ``<root>/<name>``, complete or not at all.
    source_missing: ``source_missing(root)`` is the first absent path of what is needed to draw, or
        None.
    """

    name: str
    version: int
    draw: Callable[[str, int], object]
    source_missing: Callable[[str], str | None] = lambda root: None

    def ensure(self, root: str, workers: int = 1) -> None:
        """Draw the folder if it is absent.

        Args:
            root: the datasets' folder.
            workers: number of processes; see :func:`resnet_det.data.parallel.parallel_map`.

        Raises:
            DatasetError: the folder is of another version, or its source is absent or damaged.
        """
        if not os.path.isdir(os.path.join(root, self.name)):
            self.draw(root, workers)
        self.check_version(root)

    def check_drawn(self, root: str) -> None:
        """Raise unless the folder is there, in this version.

        Reading never draws: another project may have asked for a dataset by its name only.

        Raises:
            DatasetError: names the command that draws the folder.
        """
        target = os.path.join(root, self.name)
        if not os.path.isdir(target):
            raise DatasetError(
                target, f"is absent; draw it with python tools/get_data.py {self.name}"
            )
        self.check_version(root)

    def check_version(self, root: str) -> None:
        """Raise DatasetError if the folder was drawn by another version."""
        target = os.path.join(root, self.name)
        about = os.path.join(target, "about.json")
        try:
            with open(about) as file:
                version = json.load(file)["version"]
        except (OSError, ValueError, KeyError, TypeError):
            version = None
        if version != self.version:
            raise DatasetError(
                about,
                f"not the {self.name} of drawing version {self.version}; delete {target} to draw "
                "them again",
            )

    def missing(self, root: str) -> str | None:
        """The first absent path of what the folder is drawn from, or None if it can be drawn or is
        drawn already."""
        there = os.path.isdir(os.path.join(root, self.name))
        return None if there else self.source_missing(root)
