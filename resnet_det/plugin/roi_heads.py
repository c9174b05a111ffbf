"""Our nets in Detectron2's registries: what ``import resnet_det`` brings into any project of it.

It asks for no config key beyond Detectron2's own:

* backbones ``<name>`` (C4: ``MODEL.RESNETS.OUT_FEATURES``), ``<name>_fpn`` and
  ``<name>_retinanet_fpn`` for every net of ``NETS``; the name says the depth and the channels, and
  a key of ``MODEL.RESNETS`` that asks for others is refused (:mod:`.net_keys`);
* RoI heads ``PaperROIHeads``: the head of the very net that ``MODEL.BACKBONE.NAME`` names;
* our datasets.

Where a project's config has the node ``RESNET_DET`` (``resnet_det.config.loading.defaults.add_resnet_det_config``),
its GLOBAL_CONTEXT is honoured by ``PaperROIHeads``, and ``improved(cfg, model)`` is the model as
BOX_REFINEMENT, MULTI_SCALE_TEST and ENSEMBLE test it.

In a LazyConfig, ``L(PaperBackbone)(name="paper_resnet34", out_features=["res4"], freeze_at=2,
norm="FrozenBN")`` and ``L(PaperROIHeads)(res5=L(build_head)(name="paper_resnet34", ...), ...)``.

Both compute as :mod:`resnet_det.nets.fast` says unless ``RESNET_DET.FAST`` or ``fast`` is False.
"""

from functools import partial

import torch
from detectron2.config import configurable
from detectron2.layers import ROIAlign, ShapeSpec
from detectron2.modeling import (
    ROI_HEADS_REGISTRY,
    GeneralizedRCNN,
)
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, Res5ROIHeads
from detectron2.structures import Boxes, Instances

from ..config.defaults import ConfigError
from ..detector import appendix
from ..detector.net_keys import check_head, net_options
from ..nets import NETS, build_net, meta_net
from ..nets.fast import channels_last_on_gpu, speed_up, take_stride
from ..nets.roi_align import pool_exactly, strided_roi_align
from .backbones import _own

# ---- backbones


# ---- RoI heads


def build_head(name, **options):
    """The head of the net ``name`` (``NETS``) as :class:`Stages`; options as ``build_net``'s."""
    return build_net(name, **options).split()[1]


class ExactPool(torch.nn.Module):
    """A pooler of one level that keeps the regions' corners under mixed precision.

    Detectron2's ``ROIAlign`` rounds them to the type of the maps: :func:`.pool_exactly` does not.
    """

    def __init__(self, pool):
        super().__init__()
        self.pool = pool

    def forward(self, x, rois):
        return pool_exactly(self.pool, x, rois)


def keep_corners(model):
    """Put :class:`ExactPool` around the pooler of every level in a Detectron2 model; returns it."""
    for pooler in [m for m in model.modules() if isinstance(m, ROIPooler)]:
        for i, pool in enumerate(pooler.level_poolers):
            if not isinstance(pool, ExactPool):
                pooler.level_poolers[i] = ExactPool(pool)
    return model


class StridedROIAlign(ExactPool):
    """Detectron2's ``ROIAlign`` at every ``step``-th bin of its grid."""

    def __init__(self, pool, step):
        super().__init__(pool)
        size = pool.output_size
        size = size[0] if isinstance(size, tuple) else size
        self.grid = (size, pool.spatial_scale, pool.sampling_ratio, pool.aligned, step)
        self.step = step

    def forward(self, x, rois):
        if torch.jit.is_tracing():  # a trace would keep this image's size and number of samples
            return super().forward(x, rois)[:, :, :: self.step, :: self.step]
        return strided_roi_align(x, rois, *self.grid)


@ROI_HEADS_REGISTRY.register()
class PaperROIHeads(Res5ROIHeads):
    """Fast R-CNN on a net's own head: conv5_x, a CIFAR net's last stage, or VGG's fc6 and fc7.

    It is Detectron2's ``Res5ROIHeads`` (masks included) with another body. The parameters carry
    the stages' own names: ``roi_heads.res5.0.conv1.weight``, ``roi_heads.fc6.weight``.

    Args:
        res5: the head, :class:`Stages` as of :func:`build_head`.
        fast: :func:`resnet_det.nets.fast.speed_up`, and RoIAlign gives only what the head reads.
        context: the whole image's vector stands behind each region's (:mod:`.appendix`), so
            ``box_predictor`` takes twice as many numbers.
        others: as Detectron2's ``Res5ROIHeads``.
    """

    @configurable
    def __init__(self, *, res5, fast=True, context=False, **others):
        super().__init__(res5=res5, **others)
        if context and self.mask_on:
            raise ConfigError("mask_head: a head with context finds boxes alone")
        self.context = context
        del self.res5  # its stages stand here by their own names instead
        if fast:
            speed_up(res5, channels_last_on_gpu)
            pool = self.pooler.level_poolers[0]
            if type(pool) is ROIAlign:
                step = take_stride(res5)
                if step > 1:
                    self.pooler.level_poolers[0] = StridedROIAlign(pool, step)
        keep_corners(self.pooler)
        self.stage_names, self.layout = res5.names, res5.layout
        for name, stage in res5.named_children():
            self.add_module(name, stage)

    @classmethod
    def from_config(cls, cfg, input_shape):
        name = cls._net_name(cfg)
        check_head(cfg, name)
        net = meta_net(name, **net_options(cfg, name))
        cut, features = net.trunk_names[-1], list(cfg.MODEL.ROI_HEADS.IN_FEATURES)
        if features != [cut] or cut not in input_shape:
            raise ConfigError(
                f"MODEL.ROI_HEADS.IN_FEATURES: {features}, of the backbone's {list(input_shape)}: "
                f"the head of {name} takes [{cut!r}]"
            )
        if net.has_fully_connected_head:
            resolution = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION
            if resolution != net.pooled:
                raise ConfigError(
                    f"MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION: {resolution}: "
                    f"fc6 of {name} takes {net.pooled}"
                )
            if cfg.MODEL.MASK_ON:
                raise ConfigError(f"MODEL.MASK_ON: the head of {name} gives vectors, not maps")
        appendix.check(cfg)
        own = {"fast": _own(cfg, "FAST", True), "context": _own(cfg, "GLOBAL_CONTEXT", False)}
        if own["context"]:
            channels = 2 * net.channels[net.stage_names[-1]]
            own["box_predictor"] = FastRCNNOutputLayers(cfg, ShapeSpec(channels=channels))
        return super().from_config(cfg, input_shape) | own

    @staticmethod
    def _net_name(cfg):
        name = cfg.MODEL.BACKBONE.NAME
        if name == "build_resnet_backbone":  # Detectron2's own ResNet: ours of that depth fits it
            name = f"paper_resnet{cfg.MODEL.RESNETS.DEPTH}"
        if name not in NETS:
            raise ConfigError(
                f"MODEL.BACKBONE.NAME: {name}: PaperROIHeads needs a net of its own: "
                f"build_resnet_backbone or one of {', '.join(NETS)}"
            )
        return name

    @classmethod
    def _build_res5_block(cls, cfg):
        name = cls._net_name(cfg)
        net = build_net(name, **net_options(cfg, name))
        return net.split()[1], net.channels[net.stage_names[-1]]

    def _shared_roi_transform(self, features, boxes):
        x = self.pooler(features, boxes)
        x = x if self.layout is None else self.layout(x)
        for name in self.stage_names:
            x = getattr(self, name)(x)
        return x if x.dim() == 4 else x[:, :, None, None]  # whose mean over the map is itself

    def forward(self, images, features, proposals, targets=None):
        if not self.context:
            return super().forward(images, features, proposals, targets)
        if self.training:
            proposals = self.label_and_sample_proposals(proposals, targets)
        boxes = [p.proposal_boxes.tensor for p in proposals]
        x = appendix.with_context(partial(self.regions, features), boxes, images.image_sizes)
        predictions = self.box_predictor(x)
        if self.training:
            return [], self.box_predictor.losses(predictions, proposals)
        return self.box_predictor.inference(predictions, proposals)[0], {}

    def regions(self, features, boxes):
        """Maps by name, boxes (N_i, 4) of each image -> the vectors of all regions (sum N_i, C)."""
        maps = [features[f] for f in self.in_features]
        return self._shared_roi_transform(maps, [Boxes(b) for b in boxes]).mean((2, 3))

    def classify(self, vectors, boxes):
        """-> of each image scores (N_i, K), without the background, and boxes (N_i, K, 4)."""
        predictor = self.box_predictor
        predictions = predictor(vectors)
        regions = [Instances((0, 0), proposal_boxes=Boxes(b)) for b in boxes]
        scores = [s[:, :-1] for s in predictor.predict_probs(predictions, regions)]
        found = predictor.predict_boxes(predictions, regions)
        found = [b.view(len(b), b.shape[1] // 4, 4) for b in found]
        return scores, [b.expand(-1, self.num_classes, -1) for b in found]


class _Parts(torch.nn.Module):
    """A ``GeneralizedRCNN`` with ``PaperROIHeads``, as :class:`.appendix.Improved` asks for it."""

    def __init__(self, model):
        super().__init__()
        self.model, self.training = model, model.training
        heads = model.roi_heads
        self.context, self.regions, self.classify = heads.context, heads.regions, heads.classify

    def trunk(self, pictures):
        images = self.model.preprocess_image([{"image": p} for p in pictures])
        return images, self.model.backbone(images.tensor)

    def propose(self, images, features, batch):
        if self.model.proposal_generator is None:
            found = [x["proposals"].to(self.model.device) for x in batch]
        else:
            found, _ = self.model.proposal_generator(images, features, None)
        return [p.proposal_boxes.tensor for p in found]

    @staticmethod
    def finish(batch, sizes, found):
        results = [
            Instances(size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)
            for size, (boxes, scores, classes) in zip(sizes, found)
        ]
        return GeneralizedRCNN._postprocess(results, batch, sizes)


def improved(cfg, model, others=(), orders=None):
    """A detector, with the ``others`` of its ensemble, as ``RESNET_DET`` tests it.

    ``orders`` as for :class:`.appendix.Improved`.

    With MULTI_SCALE_TEST a sample needs ``scales`` beside ``image``:
    :class:`resnet_det.engines.on_detectron2.data.Mapper` gives them.
    """
    return appendix.Improved([_Parts(m) for m in (model, *others)], cfg, orders)


# ---- datasets
