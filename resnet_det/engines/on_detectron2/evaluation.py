"""Evaluate a Detectron2 model with our evaluators and the improvements of Appendix B."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from detectron2 import __version__ as detectron2_version
from detectron2.config import CfgNode, get_cfg
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.modeling import GeneralizedRCNN, GeneralizedRCNNWithTTA, build_model
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils import comm
from torch import Tensor, nn

from ...config.defaults import ConfigError, add_resnet_det_config
from ...detector.appendix import Detections, Size
from ...detector.build import build_improved, has_test_improvements
from ...detector.weights import fit_trained
from ...files import safe_name
from ...plugin.roi_heads import PaperROIHeads, keep_corners
from ...training import distributed
from ...weights.facts import Facts
from .. import Found
from ..class_matching import TestSet
from ..ensembles import read_members
from ..results import BOX, BOX_TTA, Scores, publish, score_detector
from ..run import evaluation_settings, precision_of_tests
from .checkpointer import stored_keys
from .data import Mapper, in_format


def to_arrays(output: Mapping[str, Instances]) -> Found:
    """The boxes, scores and classes of a model's output for an image."""
    found = output["instances"].to("cpu")
    return (
        found.pred_boxes.tensor.float().numpy(),
        found.scores.float().numpy(),
        found.pred_classes.numpy(),
    )


class Detector:
    """A model that is ready to run; see :class:`resnet_det.engines.Detector`.

    Args:
        model: from :func:`as_tested`.
        classes: its class names.
    """

    def __init__(self, model: nn.Module, cfg: CfgNode, classes: tuple[str, ...]) -> None:
        self.model, self.classes = model.eval(), classes
        self.mapper = Mapper(cfg, is_train=False)
        self.precision = precision_of_tests(cfg, shared=False)

    @torch.no_grad()
    def __call__(self, images: Sequence[np.ndarray]) -> list[Found]:
        with self.precision:
            outputs = self.model([self._sample(x) for x in images])
        return [to_arrays(output) for output in outputs]

    def _sample(self, image: np.ndarray) -> dict[str, Any]:
        size = dict(zip(("height", "width"), image.shape))
        return self.mapper.sample(in_format(image, self.mapper.image_format), size)


class Evaluator(DatasetEvaluator):
    """Computes VOC's or COCO's average precision on a dataset, with our evaluators.

    Args:
        test: the dataset, with the detector's index of each of its classes.
        folder: folder for the results and for the files to submit to the devkit or the test server.

    Attributes:
        scores: what :func:`.results.score_detector` returns, in the main process, after
            :meth:`evaluate`.
    """

    def __init__(self, test: TestSet, folder: str) -> None:
        self.test, self.folder = test, folder
        self.scores: Scores | None = None
        self.reset()

    def reset(self) -> None:
        self.predictions: list[dict[str, Any]] = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for record, output in zip(inputs, outputs):
            found = dict(zip(("boxes", "scores", "classes"), to_arrays(output)))
            self.predictions.append({"image_id": record["image_id"], **found})

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Returns ``{"bbox": metrics}``; ``{}`` without annotations or outside the main process."""
        predictions = list(chain.from_iterable(comm.gather(self.predictions)))
        if not comm.is_main_process():
            return {}
        self.scores = score_detector(self.test, predictions, self.folder)
        return {} if self.scores is None else {"bbox": self.scores[0].metrics}


def evaluate_model(
    model: nn.Module,
    tests: Mapping[str, TestSet],
    cfg: CfgNode,
    weights_facts: Facts | None = None,
    *,
    augment: bool = False,
    iteration: int | None = None,
) -> dict[str, float]:
    """Evaluate a model on test sets and publish the results.

    Args:
        model: from :func:`as_tested`.
        tests: from :func:`.class_matching.match_test_sets`.
        weights_facts, iteration: see :func:`.results.publish`.
        augment: evaluate it with Detectron2's test-time augmentation (``TEST.AUG``) as well.

    Returns:
        dict of metrics in the main process, {} in the others.
    """
    scored = {BOX: _scored(model, tests, cfg, "inference")}
    if augment:
        copies = GeneralizedRCNNWithTTA(cfg, distributed.unwrap(model))
        scored[BOX_TTA] = _scored(copies, tests, cfg, "inference_TTA")
    details = {"engine": f"Detectron2 {detectron2_version}", "processes": comm.get_world_size()}
    return publish(cfg, scored, details, weights_facts, iteration)


def _scored(model, tests, cfg, folder):
    """Dataset name -> (evaluation, dataset, predictions), in the main process."""
    scored = {}
    for name, test in tests.items():
        evaluator = Evaluator(test, f"{cfg.OUTPUT_DIR}/{folder}/{safe_name(name)}")
        loader = build_detection_test_loader(
            test.dataset.records,
            mapper=Mapper(cfg, False),
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )
        with evaluation_settings(cfg):
            inference_on_dataset(model, loader, evaluator)
        if evaluator.scores is not None:
            scored[name] = evaluator.scores
    return scored


class Parts(nn.Module):
    """Adapts a ``GeneralizedRCNN`` with ``PaperROIHeads`` to
    :class:`...detector.appendix.Detector`."""

    def __init__(self, model: GeneralizedRCNN) -> None:
        super().__init__()
        self.model, self.training = model, model.training
        heads = model.roi_heads
        self.context, self.regions, self.classify = heads.context, heads.regions, heads.classify

    def trunk(self, pictures: Sequence[Tensor]) -> tuple[ImageList, dict[str, Tensor]]:
        images = self.model.preprocess_image([{"image": p} for p in pictures])
        return images, self.model.backbone(images.tensor)

    def propose(
        self, images: ImageList, features: dict[str, Tensor], batch: Sequence[Mapping]
    ) -> list[Tensor]:
        if self.model.proposal_generator is None:
            found = [x["proposals"].to(self.model.device) for x in batch]
        else:
            found, _ = self.model.proposal_generator(images, features, None)
        return [p.proposal_boxes.tensor for p in found]

    def finish(
        self, batch: Sequence[Mapping], sizes: list[Size], found: list[Detections]
    ) -> list[dict[str, Instances]]:
        results = [
            Instances(size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)
            for size, (boxes, scores, classes) in zip(sizes, found)
        ]
        return GeneralizedRCNN._postprocess(results, batch, sizes)


def as_tested(model: nn.Module, cfg: CfgNode, classes: Sequence[str] | None = None) -> nn.Module:
    """The model in the form that the config tests: unchanged, or with Appendix B's improvements.

    In mixed precision (TEST_AMP) the corners of regions stay exact. With MULTI_SCALE_TEST each
    sample needs ``scales`` in addition to ``image``; :class:`.data.Mapper` adds it.

    Args:
        classes: names of the classes that the model was trained on, if known.

    Raises:
        ConfigError, WeightsError: a member of RESNET_DET.ENSEMBLE does not fit.
    """
    if cfg.RESNET_DET.TEST_AMP:
        keep_corners(model)
    if not has_test_improvements(cfg):
        return model
    detectors = [Parts(distributed.unwrap(model))]
    orders: list[list[int] | None] = [None]
    for member in read_members(cfg, classes):
        own = get_cfg()
        add_resnet_det_config(own)
        keys = stored_keys(member.facts, member.path)
        if keys.get("MODEL.ROI_HEADS.NAME") == "Res5ROIHeads":
            keys["MODEL.ROI_HEADS.NAME"] = "PaperROIHeads"  # the same head, with :class:`Parts`
        own.merge_from_list([*chain.from_iterable(keys.items()), *member.overrides])
        other = build_model(own)
        if not isinstance(getattr(other, "roi_heads", None), PaperROIHeads):
            raise ConfigError(
                f"RESNET_DET.ENSEMBLE: {member.path}: has MODEL.META_ARCHITECTURE "
                f"{own.MODEL.META_ARCHITECTURE} and MODEL.ROI_HEADS.NAME {own.MODEL.ROI_HEADS.NAME}: "
                "give Faster R-CNNs with PaperROIHeads or Res5ROIHeads"
            )
        fit_trained(other, member.state, member.facts, own)
        detectors.append(Parts(other))
        orders.append(member.order)
    return build_improved(detectors, cfg, orders)
