"""Folders of synthetic data, each drawn as a whole and marked with the version of its drawing."""

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

from ...records import DatasetError

logger = logging.getLogger(__name__)


def log_start(images: int, folder: str) -> None:
    """Say that drawing begins, as it takes long. A warning is shown even before a run sets up its
    log, which is when most datasets are drawn."""
    logger.warning(
        "drawing %d images in %s: this is done once and may take minutes", images, folder
    )


@dataclass(frozen=True)
class DrawnFolder:
    """A folder that this package draws. Its ``about.json`` holds the version of the drawing.

    Attributes:
        name: the folder's name under the datasets' folder.
        version: version of the drawing; results on different versions are not comparable.
        draw: ``draw(root, workers)`` draws ``<root>/<name>``, completely or not at all.
        source_missing: ``source_missing(root)`` returns the first absent path among those needed
            to draw the folder, or None.
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
            DatasetError: the folder has another version, or its source is absent or damaged.
        """
        if not os.path.isdir(os.path.join(root, self.name)):
            self.draw(root, workers)
        self.check_version(root)

    def check_drawn(self, root: str) -> None:
        """Raise unless the folder exists in this version.

        Reading a dataset never draws it: another project may only look the dataset up by name.

        Raises:
            DatasetError: the folder is absent or has another version. The message names the command
                that draws it.
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
        """The first absent path among the folder's sources. None if the folder is already drawn or
        nothing is absent."""
        there = os.path.isdir(os.path.join(root, self.name))
        return None if there else self.source_missing(root)
