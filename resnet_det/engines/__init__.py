"""How a config runs: the two engines of a detector, and the classifier's."""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from fvcore.common.config import CfgNode

ENGINES = ("auto", "detectron2", "torchvision")


class Engine(Protocol):
    """The contract of an engine: a module with these functions.

    Engines are :mod:`.embedded`, :mod:`.on_detectron2.engine` and :mod:`.classifier`. What the
    user got wrong raises a ValueError (ConfigError, DatasetError, WeightsError, FolderInUse) that
    names it; in several processes, each raises the same.
    """

    def load_config(self, path: str | Path, overrides: Sequence[Any] = ()) -> CfgNode:
        """Read a YAML file, with ``KEY, VALUE`` overrides; the config is checked and frozen."""

    def check_schedule(self, cfg: CfgNode) -> None:
        """Refuse a ``SOLVER`` that :meth:`train` would refuse, without looking at data."""

    def check(self, cfg: CfgNode, resume: bool = False) -> None:
        """Refuse what :meth:`train` would refuse before it needs weights."""

    def train(self, cfg: CfgNode, resume: bool = False) -> dict[str, float]:
        """Train, evaluate on ``DATASETS.TEST``, and return the metrics in the main process."""

    def evaluate(self, cfg: CfgNode) -> dict[str, float]:
        """Evaluate ``MODEL.WEIGHTS`` and return the metrics in the main process."""

    def launch(self, main: Callable[..., Any], *args: Any, **processes: Any) -> Any:
        """Run ``main(*args)`` in several processes, as :func:`resnet_det.training.distributed.launch`."""


def pick(name: str = "auto") -> Engine:
    """Return an engine of detectors; "auto" is Detectron2 if installed, else the embedded one.

    Raises:
        ValueError: the name is unknown, or names Detectron2 and that is not installed.
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
            "or use --engine torchvision"
        )
    return importlib.import_module(".embedded", __name__)
