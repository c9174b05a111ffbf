"""The RoI heads ``PaperROIHeads``, which run a net's own head in Detectron2."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ROIAlign, ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, Res5ROIHeads
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ..config.defaults import ConfigError
from ..detector.appendix import with_context
from ..detector.net_keys import check_appendix, check_head, own_key
from ..nets import NETS, Stages, meta_net
from ..nets.fast import channels_last_on_gpu, speed_up, take_stride
from ..nets.roi_align import pool_exactly, strided_roi_align
from .norms import build_with_norm, net_options
from .registries import suggest_names


def build_head(name: str, **options: Any) -> Stages:
    """The head of the net ``name`` (a key of ``NETS``); options as for :class:`.PaperBackbone`.

    It takes pooled regions (R, C, h, w) and returns the last stage's output, (R, C', h', w') or
    (R, C'), by the stage's name.
    """
    return build_with_norm(name, **options).split()[1]


class ExactPool(nn.Module):
    """A single-level pooler that keeps the corners of regions exact under mixed precision.

    Detectron2's ``ROIAlign`` rounds them to the type of the maps; :func:`.pool_exactly` does not.

    Args:
        pool: maps (B, C, h, w) and regions (R, 5), rows of (image index, box), to (R, C, s, s).
    """

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor, rois: Tensor) -> Tensor:
        return pool_exactly(self.pool, x, rois)


def keep_corners(model: nn.Module) -> None:
    """Wrap the poolers of all levels in a Detectron2 model in :class:`ExactPool`."""
    for pooler in [m for m in model.modules() if isinstance(m, ROIPooler)]:
        for i, pool in enumerate(pooler.level_poolers):
            if not isinstance(pool, ExactPool):
                pooler.level_poolers[i] = ExactPool(pool)


class StridedROIAlign(ExactPool):
    """Detectron2's ``ROIAlign``, but it computes only every ``step``-th bin of its grid."""

    def __init__(self, pool: ROIAlign, step: int) -> None:
        super().__init__(pool)
        size = pool.output_size
        size = size[0] if isinstance(size, tuple) else size
        self.grid = (size, pool.spatial_scale, pool.sampling_ratio, pool.aligned, step)
        self.step = step

    def forward(self, x: Tensor, rois: Tensor) -> Tensor:
        if torch.jit.is_tracing():  # a trace would keep this image's size and number of samples
            return super().forward(x, rois)[:, :, :: self.step, :: self.step]
        return strided_roi_align(x, rois, *self.grid)


@ROI_HEADS_REGISTRY.register()
class PaperROIHeads(Res5ROIHeads):
    """Fast R-CNN on a net's own head: conv5_x, a CIFAR net's last stage, or VGG's fc6 and fc7.

    This is Detectron2's ``Res5ROIHeads``, including masks, with another head. The parameters have
    the stages' own names: ``roi_heads.res5.0.conv1.weight``, ``roi_heads.fc6.weight``.

    Args:
        res5: the head, from :func:`build_head`.
        fast: apply :func:`resnet_det.nets.fast.speed_up`. If the class is not derived, RoIAlign
            then computes only the bins that the head reads, and ``res5`` has no stride.
        context: concatenate the whole image's vector to each region's
            (:func:`resnet_det.detector.appendix.with_context`); ``box_predictor`` then takes twice
            as many channels.
        others: arguments of Detectron2's ``Res5ROIHeads``.
    """

    @configurable
    def __init__(
        self, *, res5: Stages, fast: bool = True, context: bool = False, **others: Any
    ) -> None:
        super().__init__(res5=res5, **others)
        if context and self.mask_on:
            raise ConfigError("mask_head: heads with context only predict boxes: remove it")
        self.context = context
        del self.res5  # its stages are added below, under their own names
        if fast:
            speed_up(res5, channels_last_on_gpu)
            pool = self.pooler.level_poolers[0]
            # A derived head may run res5 on other maps, which are not subsampled.
            if type(pool) is ROIAlign and type(self) is PaperROIHeads:
                step = take_stride(res5)
                if step > 1:
                    self.pooler.level_poolers[0] = StridedROIAlign(pool, step)
        keep_corners(self.pooler)
        self.stage_names, self.layout = res5.names, res5.layout
        for name, stage in res5.named_children():
            self.add_module(name, stage)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        name = cls._net_name(cfg)
        check_head(cfg, name)
        check_appendix(cfg)
        net = meta_net(name)
        if net.trunk_names[-1] not in input_shape:
            raise ConfigError(
                f"MODEL.RESNETS.OUT_FEATURES: the backbone returns {', '.join(input_shape)}, but "
                f"the head of {name} needs {net.trunk_names[-1]}"
            )
        own = {"fast": own_key(cfg, "FAST", True), "context": own_key(cfg, "GLOBAL_CONTEXT", False)}
        if own["context"]:
            channels = 2 * net.channels[net.stage_names[-1]]
            own["box_predictor"] = FastRCNNOutputLayers(cfg, ShapeSpec(channels=channels))
        return super().from_config(cfg, input_shape) | own

    @staticmethod
    def _net_name(cfg: CfgNode) -> str:
        name = cfg.MODEL.BACKBONE.NAME
        if name == "build_resnet_backbone":  # our ResNet of this depth has the same head
            name = f"paper_resnet{cfg.MODEL.RESNETS.DEPTH}"
        if name not in NETS:
            raise ConfigError(
                f"MODEL.BACKBONE.NAME: {name}: PaperROIHeads needs build_resnet_backbone or one of "
                f"{', '.join(NETS)}"
            )
        return name

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[Stages, int]:
        name = cls._net_name(cfg)
        net = build_with_norm(name, **net_options(cfg, name))
        return net.split()[1], net.channels[net.stage_names[-1]]

    def _shared_roi_transform(self, features, boxes):
        x = self.layout(self.pooler(features, boxes))
        for name in self.stage_names:
            x = getattr(self, name)(x)
        return x if x.dim() == 4 else x[:, :, None, None]  # vectors become maps with one cell

    def forward(self, images: Any, features: Any, proposals: Any, targets: Any = None) -> Any:
        if not self.context:
            return super().forward(images, features, proposals, targets)
        if self.training:
            proposals = self.label_and_sample_proposals(proposals, targets)
        boxes = [p.proposal_boxes.tensor for p in proposals]
        x = with_context(partial(self.regions, features), boxes, images.image_sizes)
        predictions = self.box_predictor(x)
        if self.training:
            return [], self.box_predictor.losses(predictions, proposals)
        return self.box_predictor.inference(predictions, proposals)[0], {}

    def regions(self, features: dict[str, Tensor], boxes: list[Tensor]) -> Tensor:
        """Pool the boxes (N_i, 4) of each image and run the head: -> vectors (sum N_i, C)."""
        maps = [features[f] for f in self.in_features]
        return self._shared_roi_transform(maps, [Boxes(b) for b in boxes]).mean((2, 3))

    def classify(
        self, vectors: Tensor, boxes: list[Tensor]
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Returns scores (N_i, K), without the background, and boxes (N_i, K, 4) of each image."""
        predictor = self.box_predictor
        predictions = predictor(vectors)
        regions = [Instances((0, 0), proposal_boxes=Boxes(b)) for b in boxes]
        scores = [s[:, :-1] for s in predictor.predict_probs(predictions, regions)]
        found = predictor.predict_boxes(predictions, regions)
        found = [b.view(len(b), b.shape[1] // 4, 4) for b in found]
        return scores, [b.expand(-1, self.num_classes, -1) for b in found]


suggest_names(ROI_HEADS_REGISTRY, "MODEL.ROI_HEADS.NAME")
