"""Evaluate the embedded engine's detectors: load the weights, detect, score."""

import logging
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from fvcore.common.config import CfgNode
from PIL import Image
from torch import nn
from tqdm import tqdm

from ..config.defaults import ConfigError
from ..config.loading import parse_config
from ..data import Dataset, pixels
from ..data.loader import test_batches
from ..detector.build import build_augmented, build_improved, build_model, has_test_improvements
from ..detector.weights import check_statistics, fit_detector, fit_trained, new_layers
from ..files import safe_name
from ..training import distributed
from ..weights.facts import Facts, check_facts
from ..weights.loading import State, read
from . import Found
from .class_matching import TestSet, keep_shared_classes
from .embedded_data import test_mapper
from .ensembles import read_members
from .results import BOX, BOX_TTA, publish, score_detector
from .run import evaluation_settings, precision_of_tests

logger = logging.getLogger(__name__)


def load_to_train(model: nn.Module, cfg: CfgNode, classes: Sequence[str]) -> None:
    """Load ``MODEL.WEIGHTS``, if any, to train on ``classes``.

    The rows of shared classes are loaded. Those of other classes and new layers stay freshly
    initialised.

    Raises:
        ConfigError: the file's facts differ from the config, or frozen norms have no statistics.
        WeightsError: the file does not fit the model.
    """
    path = cfg.MODEL.WEIGHTS
    if path:
        state, facts = read(path)
        check_facts(facts, cfg, path)
        by_order = cfg.RESNET_DET.CLASSES_BY_ORDER
        own = model.state_dict()
        state = keep_shared_classes(own, state, facts, classes, path, by_order)
        match = fit_detector(model, state, facts, path, new_layers(model, cfg))
        logger.info("%s: %s", path, match)
    check_statistics(model)


def load_trained(
    cfg: CfgNode, device: torch.device | str, weights: tuple[State, Facts] | None = None
) -> tuple[nn.Module, Facts]:
    """Load the detector ``MODEL.WEIGHTS``. The file must hold every parameter.

    Args:
        weights: the file's tensors and facts, if they were read before.

    Returns:
        (model on ``device``, the facts that its file carries).

    Raises:
        ConfigError: ``MODEL.WEIGHTS`` is empty, or the file's facts differ from the config.
        WeightsError: the file does not fit the model.
    """
    if not cfg.MODEL.WEIGHTS:
        raise ConfigError("MODEL.WEIGHTS: name the checkpoint to evaluate")
    state, facts = weights or read(cfg.MODEL.WEIGHTS)
    model = build_model(cfg)
    fit_trained(model, state, facts, cfg)
    return model.to(device), facts


def as_tested(
    model: nn.Module,
    cfg: CfgNode,
    device: torch.device | str,
    classes: Sequence[str] | None = None,
) -> nn.Module:
    """The model in the form that the config tests: unchanged, or with Appendix B's improvements.

    Args:
        classes: names of the classes that the model was trained on, if known.
    """
    if not has_test_improvements(cfg):
        return model
    detectors: list[Any] = [model]
    orders: list[list[int] | None] = [None]
    for member in read_members(cfg, classes):
        own = parse_config(member.facts["config"], member.path, member.overrides)
        detectors.append(load_trained(own, device, (member.state, member.facts))[0])
        orders.append(member.order)
    return build_improved(detectors, cfg, orders)


class Detector:
    """A model that is ready to run; see :class:`resnet_det.engines.Detector`.

    Args:
        model: from :func:`as_tested`.
        classes: its class names.
    """

    def __init__(self, model: nn.Module, cfg: CfgNode, classes: tuple[str, ...]) -> None:
        self.model, self.classes = model.eval(), classes
        self.mapper = test_mapper(cfg)
        self.precision = precision_of_tests(cfg, shared=False)

    @torch.no_grad()
    def __call__(self, images: Sequence[np.ndarray]) -> list[Found]:
        with self.precision:
            outputs = self.model([self._sample(image) for image in images])
        return [
            (
                found["boxes"].float().cpu().numpy(),
                found["scores"].float().cpu().numpy(),
                found["classes"].cpu().numpy(),
            )
            for found in outputs
        ]

    def _sample(self, image: np.ndarray) -> dict[str, Any]:
        image = pixels.as_array(Image.fromarray(image), self.mapper.format)
        return self.mapper.sample(image, {}, np.random.default_rng(0))


@torch.no_grad()
def detect(
    model: nn.Module,
    dataset: Dataset,
    cfg: CfgNode,
    *,
    augmented: bool = False,
    skip_bad: bool = False,
) -> list[dict[str, Any]]:
    """Run a model over a dataset. The processes share the images.

    Args:
        augmented: whether the model takes the copies of ``TEST.AUG``.
        skip_bad: see :func:`resnet_det.data.loader.test_batches`.

    Returns:
        One prediction per image in the main process, [] in the others.
    """
    model.eval()
    batches = test_batches(
        dataset.records,
        test_mapper(cfg, augmented),
        rank=distributed.get_rank(),
        world=distributed.get_world_size(),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        skip_bad=skip_bad,
    )
    own = []
    for batch in tqdm(batches, dataset.name, disable=not distributed.is_main(), leave=False):
        for sample, found in zip(batch, model(batch)):
            prediction = {key: value.cpu().numpy() for key, value in found.items()}
            own.append({"image_id": sample["image_id"], **prediction})
    return [prediction for part in distributed.gather_objects(own) for prediction in part]


def evaluate_model(
    model: nn.Module,
    tests: dict[str, TestSet],
    cfg: CfgNode,
    weights_facts: Facts | None = None,
    *,
    augment: bool = False,
    iteration: int | None = None,
) -> dict[str, float]:
    """Evaluate a model on test sets and publish the results.

    Args:
        model: from :func:`as_tested`.
        weights_facts, iteration: see :func:`.results.publish`.
        augment: evaluate it with ``TEST.AUG`` as well.

    Returns:
        dict of metrics in the main process, {} in the others.
    """
    scored = {BOX: _scored(model, tests, cfg, "inference")}
    if augment:
        copies = build_augmented(cast(Any, model), cfg)
        scored[BOX_TTA] = _scored(copies, tests, cfg, "inference_TTA", augmented=True)
    return publish(cfg, scored, weights_facts=weights_facts, iteration=iteration)


def _scored(model, tests, cfg, folder, augmented=False):
    """Dataset name -> (evaluation, dataset, predictions), in the main process."""
    scored = {}
    for name, test in tests.items():
        with evaluation_settings(cfg):
            found = detect(model, test.dataset, cfg, augmented=augmented)
        if distributed.is_main():
            scores = score_detector(test, found, f"{cfg.OUTPUT_DIR}/{folder}/{safe_name(name)}")
            if scores is not None:
                scored[name] = scores
    return scored
