"""Residual networks exactly as in the paper, and detectors on them.

nets        the networks: ``build_net(name)``, a name of ``NETS``; weights in and out
data        datasets under Detectron2's names, images, loaders, the embedded scenes
training    the loop, schedules, checkpoints, several processes, the lock on an output folder
evaluation  VOC and COCO average precision, tables, pictures, the report page
engines     the detector on torchvision (embedded) or on Detectron2
config      Detectron2's YAML language, in the part that the embedded engine honours; its
            config_values: whether a value is built as its key's default

Where Detectron2 is installed, ``import resnet_det`` registers every net as a backbone of it, and
its RoI heads: ``MODEL.BACKBONE.NAME: paper_resnet101``, ``MODEL.ROI_HEADS.NAME: PaperROIHeads``.
"""

import warnings as _warnings
from importlib.util import find_spec as _find_spec

from .nets import NETS, build_net

__all__ = ["NETS", "build_net"]

if _find_spec("detectron2"):
    try:
        with _warnings.catch_warnings():  # of torch, about what fvcore does as it is imported
            _warnings.filterwarnings("ignore", ".*torch.jit.script", FutureWarning)
            from . import plugin as _registered  # noqa: F401
    except (ImportError, AttributeError, OSError) as _error:  # broken, or built for another torch
        _warnings.warn(f"Detectron2 is here but cannot be used: {_error}", stacklevel=2)
