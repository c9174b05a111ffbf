"""The Detectron2 plugin: components that ``import resnet_det`` registers in any Detectron2 project.

They need no config keys but Detectron2's.

* Backbones: ``<name>`` (C4: ``MODEL.RESNETS.OUT_FEATURES``), ``<name>_fpn`` and
  ``<name>_retinanet_fpn`` for every net in ``NETS``. The name determines depth and widths; a key of
  ``MODEL.RESNETS`` that contradicts it is an error (:mod:`resnet_det.detector.net_keys`).
* RoI heads ``PaperROIHeads``: the head of the net that ``MODEL.BACKBONE.NAME`` names.
* The anchors ``TorchvisionAnchorGenerator``, for the detectors that torchvision trained.
* Proposal generator ``PaperRPN``: Detectron2's RPN, with ``RESNET_DET.EVEN_POSITIVES``.
* Our synthetic datasets, under their names; :func:`.datasets.register_dataset` adds others of ours.

If the project's config has the node ``RESNET_DET``
(:func:`resnet_det.config.defaults.add_resnet_det_config`), backbones, RPN and heads use its
``FAST``, ``GLOBAL_CONTEXT`` and ``EVEN_POSITIVES``. The other keys of the node are for the engines
in :mod:`resnet_det.engines`.

In a LazyConfig: ``L(PaperBackbone)(name="paper_resnet34", out_features=["res4"], freeze_at=2,
norm="FrozenBN")`` and ``L(PaperROIHeads)(res5=L(build_head)(name="paper_resnet34", ...), ...)``.
"""

from . import anchors, backbones, datasets, roi_heads, rpn

__all__ = ["anchors", "backbones", "datasets", "roi_heads", "rpn"]
