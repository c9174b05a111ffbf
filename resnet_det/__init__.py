"""Residual networks exactly as in the paper, and detectors on them.

nets        the networks: ``build_net(name)``, for a name in ``NETS``
weights     load and convert weight files, also those of other projects
data        datasets under Detectron2's names, images, loaders, synthetic datasets
training    the training loop, schedules, checkpoints, several processes
evaluation  VOC and COCO average precision, tables, charts, the report
config      configs in Detectron2's YAML format: ``get_config("faster_rcnn_R101.yaml")``
detector    Faster R-CNN, built from a config: ``configure(cfg, "paper_vgg16", head="c4")``
plugin      nets, RoI heads and datasets in Detectron2's registries
engines     train and evaluate a config, with Detectron2 or the embedded engine;
            ``Predictor(weights)(image)`` finds objects
reproduce   reproduce the paper's tables
commands    the commands of ``resnet-det`` and tools/

If Detectron2 is installed, ``import resnet_det`` registers every net as a backbone in it, and the
RoI heads: ``MODEL.BACKBONE.NAME: paper_resnet101``, ``MODEL.ROI_HEADS.NAME: PaperROIHeads``.
Otherwise the import loads nothing: names and subpackages are imported when they are first used.
"""

import importlib as _importlib
import warnings as _warnings
from importlib.util import find_spec as _find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fvcore.common.config import CfgNode

    from .config.defaults import add_resnet_det_config
    from .data.catalog import register_coco, register_voc
    from .detector.configure import configure
    from .engines.predictor import Predictor
    from .nets import NETS, build_net
    from .plugin.backbones import PaperBackbone as PaperBackbone
    from .plugin.roi_heads import PaperROIHeads as PaperROIHeads
    from .plugin.roi_heads import build_head as build_head

__version__ = "0.2.0"
# Without the names that need Detectron2, so that ``from resnet_det import *`` works without it.
__all__ = [
    "NETS",
    "Predictor",
    "__version__",
    "add_resnet_det_config",
    "build_net",
    "configure",
    "get_config",
    "register_coco",
    "register_voc",
]

_HOMES = {
    "NETS": "nets",
    "build_net": "nets",
    "add_resnet_det_config": "config.defaults",
    "configure": "detector.configure",
    "Predictor": "engines.predictor",
    "register_coco": "data.catalog",
    "register_voc": "data.catalog",
    "PaperBackbone": "plugin.backbones",
    "PaperROIHeads": "plugin.roi_heads",
    "build_head": "plugin.roi_heads",
}
_FOLDERS = (
    *("commands", "config", "data", "detector", "engines", "evaluation"),
    *("nets", "plugin", "reproduce", "training", "weights"),
)


def get_config(name: str, engine: str = "auto") -> "CfgNode":
    """Load one of the package's own configs, like Detectron2's ``model_zoo.get_config``.

    Args:
        name: path in ``configs/``, such as "faster_rcnn_R101.yaml"; any other YAML file works too.
        engine: "detectron2", "torchvision" (the embedded engine), or "auto" (Detectron2 if it is
            installed). It determines which keys the config has.

    Returns:
        The checked config. It is frozen: call ``cfg.defrost()`` before changing it.

    Raises:
        ValueError: the config or the engine does not exist, or the config is invalid.
    """
    from .engines import pick

    return pick(engine).load_config(name)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        try:
            home = _importlib.import_module(f".{_HOMES[name]}", __name__)
        except ImportError as error:
            if not _HOMES[name].startswith("plugin."):
                raise
            raise ImportError(
                f"resnet_det.{name} needs Detectron2, which cannot be imported ({error}): install "
                "it as docs/detectron2.md says"
            ) from error
        value = getattr(home, name)
        globals()[name] = value
        return value
    if name in _FOLDERS:
        return _importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_FOLDERS})


if _find_spec("detectron2"):
    try:
        with _warnings.catch_warnings():  # torch's, about what fvcore does on import
            _warnings.filterwarnings("ignore", ".*torch.jit.script", FutureWarning)
            _importlib.import_module(".plugin", __name__)
    except (ImportError, AttributeError, OSError) as _error:  # damaged, or built for another torch
        _warnings.warn(f"Detectron2 is installed but cannot be imported: {_error}", stacklevel=2)
