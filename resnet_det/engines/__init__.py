"""The engines that run a config: two for detectors, and one for classifiers."""

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from fvcore.common.config import CfgNode

ENGINES = ("auto", "detectron2", "torchvision")

Found = tuple[np.ndarray, np.ndarray, np.ndarray]  # boxes (N, 4), scores (N,), classes (N,)


class Detector(Protocol):
    """A trained detector that is ready to run: an engine's, or one in another runtime.

    Attributes:
        classes: class names, in the order of the class indices.
    """

    classes: tuple[str, ...]

    def __call__(self, images: Sequence[np.ndarray]) -> list[Found]:
        """Detect the objects in RGB images, uint8 (H, W, 3), which all have the same size.

        Returns:
            Per image: boxes float32 (N, 4), x1 y1 x2 y2 in its pixels; scores float32 (N,); and
            classes int64 (N,), by descending score.
        """


class Engine(Protocol):
    """The interface of an engine: a module with these functions.

    The engines are :mod:`.embedded`, :mod:`.on_detectron2.engine` and :mod:`.classifier`. A user's
    mistake raises a ValueError (ConfigError, DatasetError, WeightsError, FolderInUse) whose message
    names it. If there are several processes, each raises the same error.
    """

    def load_config(self, path: str | Path, overrides: Sequence[Any] = ()) -> CfgNode:
        """Read a YAML file and ``KEY, VALUE`` overrides. Returns a checked and frozen config."""

    def check_schedule(self, cfg: CfgNode) -> None:
        """Raise the errors that :meth:`train` raises about ``SOLVER``, without reading data."""

    def check(self, cfg: CfgNode, resume: bool = False) -> None:
        """Raise the errors that :meth:`train` raises before it needs weights."""

    def training_records(self, cfg: CfgNode) -> list[dict[str, Any]]:
        """Read the records to train on, Detectron2's standard dicts. Only detectors have it."""

    def train(self, cfg: CfgNode, resume: bool = False) -> dict[str, float]:
        """Train, evaluate on ``DATASETS.TEST``, and return the metrics in the main process."""

    def evaluate(self, cfg: CfgNode) -> dict[str, float]:
        """Evaluate ``MODEL.WEIGHTS`` and return the metrics in the main process."""

    def load_detector(
        self,
        weights: str | Path,
        config: str | Path | None = None,
        overrides: Sequence[Any] = (),
        *,
        score_thresh: float,
        classes: Sequence[str] | None = None,
    ) -> Detector:
        """Load a trained detector, as its config tests it. (A classifier's engine lacks this.)

        Args:
            weights: a checkpoint.
            config: a YAML config that replaces the one in the checkpoint.
            overrides: ``KEY, VALUE, ...`` that override the config.
            score_thresh: the detector returns at least the objects that score as much.
            classes: class names that replace those in the checkpoint.
        """


def pick(name: str = "auto") -> Engine:
    """Return an engine for detectors. "auto" is Detectron2 if installed, else the embedded one.

    Raises:
        ValueError: the name is unknown, or it names Detectron2 and Detectron2 cannot be used.
    """
    if name not in ENGINES:
        raise ValueError(f"engine {name!r}: use one of {', '.join(ENGINES)}")
    if name != "torchvision" and importlib.util.find_spec("detectron2") is not None:
        try:
            return importlib.import_module(".on_detectron2.engine", __name__)
        except ImportError as error:
            problem = f"cannot be used: {error}"
    else:
        problem = "is not installed"
    if name == "detectron2":
        raise ValueError(
            f"engine 'detectron2': Detectron2 {problem}; see its install page, "
            "https://detectron2.readthedocs.io/en/latest/tutorials/install.html, "
            "or use engine 'torchvision'"
        )
    return importlib.import_module(".embedded", __name__)
