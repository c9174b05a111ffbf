"""Classification pretraining: the weights that a detector starts from.

This module implements the interface :class:`resnet_det.engines.Engine`.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from fvcore.common.config import CfgNode

from ..config.defaults import ConfigError
from ..config.loading import load_config, parse_config
from ..data.classification.large_images import LargeImages
from ..data.classification.small_images import SmallImages
from ..evaluation import responses
from ..evaluation.classification import count_errors, write_results
from ..files import safe_name, write_whole
from ..nets.classifier import Classifier
from ..training import distributed, precise_bn
from ..weights.loading import read
from .checks import check_classifier, check_images, check_schedule, check_trainable
from .class_matching import tested_places
from .classifier_data import Images, mean_image, normalise, read_images
from .classifier_nets import ClassifierLoss, build, load_member, load_to_train, load_trained
from .provenance import check_resumed, checkpoint_facts, commit
from .results import check_expected
from .run import (
    build_trainer,
    evaluation_settings,
    final_results,
    last_checkpoint,
    make_datasets,
    running,
    start,
)
from .scaling import for_processes

__all__ = [
    "check",
    "check_schedule",
    "evaluate",
    "layer_responses",
    "load_config",
    "train",
]

logger = logging.getLogger(__name__)


def check_config(cfg: CfgNode, resume: bool) -> None:
    """Check a config's keys for training, without reading data.

    Raises:
        ConfigError, UnknownDataset, ValueError: a key or a dataset's name is wrong.
    """
    check_classifier(cfg)
    check_trainable(cfg, resume)
    check_schedule(cfg)
    if len(cfg.DATASETS.TRAIN) != 1:
        raise ConfigError(f"DATASETS.TRAIN: {cfg.DATASETS.TRAIN}: a classifier needs one dataset")


def check(cfg: CfgNode, resume: bool = False) -> None:
    """Validate config and data without training.

    Raises:
        ConfigError, DatasetError, ValueError: see :func:`train`.
    """
    cfg = for_processes(cfg, resume)
    check_config(cfg, resume)
    prepare(cfg, start(cfg))


def train(cfg: CfgNode, resume: bool = False) -> dict[str, float]:
    """Train the classifier of a config, compute precise BN if enabled, evaluate, and save.

    Args:
        cfg: from :func:`load_config`.
        resume: continue from the last checkpoint of ``OUTPUT_DIR``, if there is one.

    Returns:
        dict of the final metrics, in per cent: ``classification/top1_error``, ``.../top5_error``.

    Raises:
        ConfigError, DatasetError, WeightsError: a key, a dataset or a file is wrong. The message
            names it.
        FolderInUse: another process runs in ``OUTPUT_DIR``.
    """
    cfg = for_processes(cfg, resume)
    check_config(cfg, resume)
    with running(cfg, resume) as (device, seed):
        return _train(cfg, resume, device, seed)


def _train(cfg, resume, device, seed):
    images, tests, places = prepare(cfg, device)
    net = build(cfg, len(images.classes))
    state, seed = last_checkpoint(cfg, resume, seed)
    mean, source = None, cfg.DATASETS.TRAIN[0]
    if state is not None:
        facts, source = state.get("meta", {}), cfg.OUTPUT_DIR
        check_resumed(facts, cfg, images.classes)
        mean = facts.get("mean_image")
    elif cfg.MODEL.WEIGHTS:
        mean = load_to_train(net, cfg, images.classes).get("mean_image")
        source = cfg.MODEL.WEIGHTS
    elif cfg.RESNET_DET.PER_PIXEL_MEAN:
        mean = mean_image(images, cfg)
    normalise(cfg, mean, source, images, *tests.values())

    facts = checkpoint_facts(cfg, images.classes, seed)
    if mean is not None:
        facts["mean_image"] = mean.cpu()
    trainer = build_trainer(cfg, ClassifierLoss(net).to(device), facts, state)
    small = {"padding": cfg.RESNET_DET.CROP_PADDING} if isinstance(images, SmallImages) else {}
    batches = partial(
        images.training_batches,
        total_batch=cfg.SOLVER.IMS_PER_BATCH,
        size=cfg.INPUT.CROP.SIZE[0],
        flip=cfg.INPUT.RANDOM_FLIP == "horizontal",
        seed=seed,
        rank=distributed.get_rank(),
        world=distributed.get_world_size(),
        **small,
    )

    def test(model):
        return _evaluate([(model.eval().net, range(len(images.classes)))], tests, places, cfg)

    def compute_precise_bn(model):
        precise_bn.update(model, batches(start_iter=0), cfg.TEST.PRECISE_BN.NUM_ITER)

    trainer.run(
        batches(start_iter=trainer.iteration),
        test if tests else None,
        compute_precise_bn if cfg.TEST.PRECISE_BN.ENABLED else None,
    )
    return final_results(cfg, trainer)


def prepare(
    cfg: CfgNode, device: torch.device
) -> tuple[Images, dict[str, Images], dict[str, list[int]]]:
    """Make, read and check the datasets that a config trains and tests on.

    Returns:
        (training images, {name: test images}, {name: index among the trained classes of each class
        of the test set}).

    Raises:
        ConfigError: a test set has classes that the training set lacks.
        DatasetError: a dataset is damaged, or test images are unusable.
        ValueError: the test images are smaller than INPUT.CROP.SIZE.
    """
    make_datasets(*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    name = cfg.DATASETS.TRAIN[0]
    images = read_images(name, cfg, device, cfg.RESNET_DET.SKIP_BAD_DATA)
    tests = {test: read_images(test, cfg, device) for test in cfg.DATASETS.TEST}
    places = _places(tests, images.classes, name, cfg)
    for test, test_images in tests.items():
        test_images.check_test_crop(cfg.INPUT.CROP.SIZE[0])
        if isinstance(test_images, LargeImages):
            check_images(cfg, test, test_images.image_records())
    return images, tests, places


def _places(tests, classes, source, cfg):
    """For each test set, by name, the index of each of its classes among ``classes``."""
    by_order = cfg.RESNET_DET.CLASSES_BY_ORDER
    return {
        name: tested_places(images.classes, name, classes, source, by_order)
        for name, images in tests.items()
    }


def evaluate(cfg: CfgNode) -> dict[str, float]:
    """Evaluate ``MODEL.WEIGHTS``, with ``RESNET_DET.ENSEMBLE``, on ``DATASETS.TEST``.

    Returns:
        dict of metrics, see :func:`train`.

    Raises:
        ConfigError, DatasetError, WeightsError, FolderInUse: see :func:`train`.
    """
    check_classifier(cfg)
    if not cfg.DATASETS.TEST or not cfg.MODEL.WEIGHTS:
        raise ConfigError("DATASETS.TEST and MODEL.WEIGHTS: evaluation needs both")
    with running(cfg) as (device, _):
        make_datasets(*cfg.DATASETS.TEST)
        tests = {name: read_images(name, cfg, device) for name in cfg.DATASETS.TEST}
        state, facts = read(cfg.MODEL.WEIGHTS)
        net, classes = load_trained(cfg, state, facts, next(iter(tests.values())).classes)
        places = _places(tests, classes, cfg.MODEL.WEIGHTS, cfg)
        mean = facts.get("mean_image")
        normalise(cfg, mean, cfg.MODEL.WEIGHTS, *tests.values())
        others = [load_member(path, cfg, classes, mean) for path in cfg.RESNET_DET.ENSEMBLE]
        nets = [(net, range(len(classes))), *others]
        nets = [(net.to(device).eval(), order) for net, order in nets]
        metrics = _evaluate(nets, tests, places, cfg)
    logger.info("results: %s", ", ".join(f"{key} {value:.2f}" for key, value in metrics.items()))
    check_expected(cfg, metrics)
    return metrics


def _evaluate(
    nets: Sequence[tuple[Classifier, Sequence[int]]],
    tests: Mapping[str, Images],
    places: Mapping[str, Sequence[int]],
    cfg: CfgNode,
) -> dict[str, float]:
    """Compute the errors of the nets' mean softmax on each test set. Writes ``results.json`` per
    set.

    On a test set with a subset of the classes, the nets choose only among these. Scores are in the
    class order of the first net, not of the test set, so that ties are always resolved the same
    way.

    Args:
        nets: list of (net, its index of each class of the first net).
        places: from :func:`_places`.
    """
    metrics: dict[str, float] = {}
    size = cfg.INPUT.CROP.SIZE[0]
    for name, images in tests.items():
        scored = sorted(places[name])
        models = []
        for net, order in nets:
            model = partial(net.dense, size=size) if cfg.TEST.AUG.ENABLED else net
            models.append(partial(_columns, model, [order[place] for place in scored]))
        column = torch.tensor([scored.index(place) for place in places[name]])
        batches = images.test_batches(
            size=size, rank=distributed.get_rank(), world=distributed.get_world_size()
        )
        batches = ((views, column.to(labels.device)[labels]) for views, labels in batches)
        with evaluation_settings(cfg):
            counted = count_errors(models, batches)
        parts = distributed.all_gather_objects(counted)
        total = sum(count for _, count in parts)
        errors = {k: 100 * sum(wrong[k] for wrong, _ in parts) / total for k in parts[0][0]}
        prefix = f"{name}/" if len(tests) > 1 else ""
        metrics |= {f"{prefix}classification/top{k}_error": e for k, e in errors.items()}
        if distributed.is_main():
            facts = {"dataset": name, "net": cfg.MODEL.BACKBONE.NAME, "nets": len(nets)}
            facts["commit"] = commit()
            if isinstance(images, LargeImages):
                facts["views"] = str(images.views)
            folder = Path(cfg.OUTPUT_DIR) / "inference" / safe_name(name)
            write_results(folder, errors, total, facts)
    return metrics


def _columns(
    model: Callable[[torch.Tensor], torch.Tensor], index: list[int], images: torch.Tensor
) -> torch.Tensor:
    return model(images)[:, index]


def layer_responses(folder: str | Path) -> dict[str, float]:
    """Layer responses of a finished run on its test set; see
    :mod:`resnet_det.evaluation.responses`.

    They are cached in ``responses.json`` beside the weights, and recomputed if the weights are
    newer.

    Raises:
        ConfigError, WeightsError: the folder holds no finished classifier.
    """
    weights, kept = Path(folder) / "model_final.pth", Path(folder) / "responses.json"
    if weights.exists() and kept.exists() and kept.stat().st_mtime > weights.stat().st_mtime:
        return json.loads(kept.read_text())
    state, facts = read(weights)
    if "config" not in facts:
        raise ConfigError(f"{weights}: carries no config: give a checkpoint of tools/pretrain.py")
    cfg = parse_config(facts["config"], weights, ["MODEL.WEIGHTS", str(weights)])
    check_classifier(cfg)
    if not cfg.DATASETS.TEST:
        raise ConfigError(
            f"{weights}: its config has no DATASETS.TEST, on which layer responses are computed"
        )
    name = cfg.DATASETS.TEST[0]
    device = start(cfg)
    make_datasets(name)
    test = read_images(name, cfg, device)
    net, _ = load_trained(cfg, state, facts, test.classes)
    normalise(cfg, facts.get("mean_image"), str(weights), test)
    images = (views[0] for views, _ in test.test_batches(size=cfg.INPUT.CROP.SIZE[0]))
    result = responses.layer_responses(net.to(device), images)
    write_whole(kept, json.dumps(result, indent=1) + "\n")
    return result
