"""The embedded engine: trains and evaluates the detector of :mod:`.faster_rcnn` by itself."""

import logging

import numpy as np
import torch
from tqdm import tqdm

from .. import training
from ..config.checks import check_users
from ..config.defaults import DETECTOR, ConfigError
from ..config.loading import load_config, parse_config
from ..data import check_names, load_dataset, load_datasets
from ..data.detection import proposals
from ..data.detection.mapper import DetectionMapper, with_usable_annotations
from ..data.loader import test_batches, training_batches
from ..detector.build import build_improved, build_model, in_test
from ..detector.weights import check_statistics, fit_detector, fit_trained, new_layers
from ..training import alone_in, distributed
from ..training.distributed import launch
from ..weights.facts import check_facts
from ..weights.loading import read
from .checks import (
    check_images,
    check_output,
    check_schedule,
    check_testable,
    check_trainable,
    proposal_files,
    test_files,
)
from .class_matching import check_number, check_resumed, keep_shared_classes, match_test_sets
from .provenance import ensemble
from .results import check_expected, publish, score
from .run import make_datasets, run_training, setup

__all__ = ["check", "check_schedule", "evaluate", "launch", "load_config", "predictor", "train"]

logger = logging.getLogger(__name__)


def _load_weights(model, cfg, classes):
    """Load ``MODEL.WEIGHTS``, if it is given, to train on ``classes``: shared ones keep their rows."""
    path = cfg.MODEL.WEIGHTS
    if path:
        state, facts = read(path)
        check_facts(facts, cfg, path)
        by_order = cfg.RESNET_DET.CLASSES_BY_ORDER
        state = keep_shared_classes(model.state_dict(), state, facts, classes, path, by_order)
        match = fit_detector(model, state, facts, path, new_layers(model, cfg))
        logger.info("%s: %s", path, match)
    check_statistics(model)


def _check(cfg):
    if cfg.MODEL.META_ARCHITECTURE == "Classifier":
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE: {cfg.MODEL.META_ARCHITECTURE!r} is no detector: "
            "train it with tools/pretrain.py"
        )
    check_testable(cfg)
    check_users(cfg, DETECTOR)


def _test_mapper(cfg):
    return DetectionMapper(
        cfg.INPUT.MIN_SIZE_TEST,
        cfg.INPUT.MAX_SIZE_TEST,
        format=cfg.INPUT.FORMAT,
        train=False,
        proposals=_proposals(cfg, "TEST"),
        scales=cfg.RESNET_DET.MULTI_SCALE_TEST,
    )


def _proposals(cfg, split):
    """How many precomputed proposals of an image to use, or None."""
    topk = cfg.DATASETS[f"PRECOMPUTED_PROPOSAL_TOPK_{split}"]
    return topk if cfg.MODEL.LOAD_PROPOSALS else None


def _trained(cfg, device, weights=None):
    """The detector ``MODEL.WEIGHTS``, and the facts that its file carries.

    Args:
        weights: (state, facts) of that file, if it was read before.
    """
    if not cfg.MODEL.WEIGHTS:
        raise ConfigError("MODEL.WEIGHTS: name the checkpoint to evaluate")
    state, facts = weights or read(cfg.MODEL.WEIGHTS)
    model = build_model(cfg)
    fit_trained(model, state, facts, cfg)
    return model.to(device), facts


def _in_test(model, cfg, device, classes=None):
    """The model as the config tests it: itself, or with the appendix's improvements.

    ``classes``: that it was trained on, if they are known.
    """
    if not in_test(cfg):
        return model
    detectors, orders = [model], [None]
    for member in ensemble(cfg, classes):
        own = parse_config(member.facts["config"], member.path, member.overrides)
        detectors.append(_trained(own, device, (member.state, member.facts))[0])
        orders.append(member.order)
    return build_improved(detectors, cfg, orders)


def _training_set(cfg):
    dataset = load_datasets(
        cfg.DATASETS.TRAIN,
        skip_bad=cfg.RESNET_DET.SKIP_BAD_DATA,
        proposal_files=proposal_files(cfg, "TRAIN"),
    )
    check_number(cfg, dataset.metadata.classes, f"{dataset.name} (DATASETS.TRAIN)")
    return dataset


def _trainable_records(dataset, cfg):
    if not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        return dataset.records
    return with_usable_annotations(dataset.records, use_difficult=cfg.RESNET_DET.USE_DIFFICULT)


def _test_sets(cfg):
    return {name: load_datasets([name], proposal_files=files) for name, files in test_files(cfg)}


def _check_images(cfg, sets):
    for name, dataset in sets.items():
        check_images(cfg, name, dataset.records)


def _log_skipped(*datasets):
    for line in (line for dataset in datasets for line in dataset.skipped):
        logger.warning("left out: %s", line)


@torch.no_grad()
def detect(model, dataset, cfg, skip_bad=False):
    """Run a model over a dataset, shared by all processes.

    Args:
        skip_bad: see :func:`resnet_det.data.loader.test_batches`.

    Returns:
        list of predictions in the main process, an empty one elsewhere.
    """
    model.eval()
    batches = test_batches(
        dataset.records,
        _test_mapper(cfg),
        rank=distributed.get_rank(),
        world=distributed.get_world_size(),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        skip_bad=skip_bad,
    )
    mine = []
    for batch in tqdm(batches, dataset.name, disable=not distributed.is_main(), leave=False):
        for sample, found in zip(batch, model(batch)):
            prediction = {k: v.cpu().numpy() for k, v in found.items()}
            mine.append({"image_id": sample["image_id"], **prediction})
    return [p for part in distributed.gather_objects(mine) for p in part]


def propose(cfg, name, path):
    """Write the proposals of a ``ProposalNetwork`` (``MODEL.WEIGHTS``) for a dataset to ``path``.

    Detectron2's proposal file format; as many as the RPN gives at test. An image that
    SKIP_BAD_DATA leaves out has none.
    """
    _check(cfg)
    check_names([name])
    device, _ = setup(cfg)
    make_datasets(name)
    skip_bad = cfg.RESNET_DET.SKIP_BAD_DATA
    dataset = load_dataset(name, skip_bad=skip_bad)
    predictions = detect(_trained(cfg, device)[0], dataset, cfg, skip_bad)
    if distributed.is_main():
        found = {record["image_id"]: (np.zeros((0, 4)), np.zeros(0)) for record in dataset.records}
        found |= {p["image_id"]: (p["boxes"], p["logits"]) for p in predictions}
        proposals.write(path, [(image_id, *of_image) for image_id, of_image in found.items()])
    distributed.barrier()


def _evaluate(model, tests, cfg, weights=None):
    scored = {}
    for name, test in tests.items():
        dataset = test.dataset
        predictions = test.select(detect(model, dataset, cfg))
        if distributed.is_main():
            folder = f"{cfg.OUTPUT_DIR}/inference/{name}"
            evaluation = score(dataset, predictions, folder)
            if evaluation is None:
                logger.info("%s has no annotations: wrote submission files to %s", name, folder)
            else:
                scored[name] = evaluation, dataset, predictions
    return publish(cfg, scored, weights=weights) if scored else {}


def check(cfg, resume=False):
    """Refuse a config or data that cannot be trained, without weights: it may be days until these.

    Raises:
        ConfigError, DatasetError, ValueError: as :func:`train`.
    """
    _check(cfg)
    check_trainable(cfg, resume)
    check_schedule(cfg)
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    check_names(names)
    make_datasets(*names)
    dataset, sets = _training_set(cfg), _test_sets(cfg)
    _trainable_records(dataset, cfg)
    match_test_sets(sets, dataset.metadata.classes, dataset.name, cfg)
    _check_images(cfg, sets)
    with torch.device("meta"):
        new_layers(build_model(cfg), cfg)


def train(cfg, resume=False):
    """Train the detector of a config, and evaluate it.

    Args:
        cfg: from :func:`load_config`.
        resume: go on from the last checkpoint of ``OUTPUT_DIR``, if there is one.

    Returns:
        dict of the final metrics in the main process: ``bbox/AP``, 0-100.

    Raises:
        ConfigError, DatasetError, WeightsError: what was given is wrong; names it.
        FolderInUse: another run goes on in ``OUTPUT_DIR``.
    """
    _check(cfg)
    check_trainable(cfg, resume)
    check_schedule(cfg)
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    check_names(names)
    device, seed = setup(cfg)
    make_datasets(*names)
    with alone_in(cfg.OUTPUT_DIR):
        check_output(cfg, resume)
        return _train(cfg, resume, device, seed)


def _train(cfg, resume, device, seed):
    dataset, sets = _training_set(cfg), _test_sets(cfg)
    classes = dataset.metadata.classes
    tests = match_test_sets(sets, classes, dataset.name, cfg)
    _check_images(cfg, sets)
    _log_skipped(dataset, *sets.values())
    records = _trainable_records(dataset, cfg)
    logger.info("training on %d images of %s", len(records), dataset.name)

    model = build_model(cfg)
    checkpointer = training.Checkpointer(cfg.OUTPUT_DIR)
    state = checkpointer.load_latest() if resume else None
    if state is None:
        _load_weights(model, cfg, classes)
    else:
        by_order = cfg.RESNET_DET.CLASSES_BY_ORDER
        check_resumed(state.get("meta", {}), classes, cfg.OUTPUT_DIR, by_order)
    model.to(device)
    mapper = DetectionMapper(
        cfg.INPUT.MIN_SIZE_TRAIN,
        cfg.INPUT.MAX_SIZE_TRAIN,
        sampling=cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING,
        flip=cfg.INPUT.RANDOM_FLIP,
        format=cfg.INPUT.FORMAT,
        train=True,
        use_difficult=cfg.RESNET_DET.USE_DIFFICULT,
        proposals=_proposals(cfg, "TRAIN"),
    )

    def batches(start_iter, seed):
        return training_batches(
            records,
            mapper,
            total_batch=cfg.SOLVER.IMS_PER_BATCH,
            seed=seed,
            rank=distributed.get_rank(),
            world=distributed.get_world_size(),
            start_iter=start_iter,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
            skip_bad=cfg.RESNET_DET.SKIP_BAD_DATA,
        )

    return run_training(
        cfg,
        model,
        batches,
        state,
        checkpointer,
        device,
        seed,
        evaluate=lambda m: _evaluate(_in_test(m, cfg, device), tests, cfg),
        classes=classes,
    )


def evaluate(cfg):
    """Evaluate ``MODEL.WEIGHTS`` on ``DATASETS.TEST``.

    Returns:
        dict of metrics in the main process, as :func:`train`.

    Raises:
        ConfigError, DatasetError, WeightsError, FolderInUse: as :func:`train`.
    """
    _check(cfg)
    if not cfg.DATASETS.TEST:
        raise ConfigError("DATASETS.TEST: name at least one dataset")
    check_names(cfg.DATASETS.TEST)
    device, _ = setup(cfg)
    make_datasets(*cfg.DATASETS.TEST)
    with alone_in(cfg.OUTPUT_DIR):
        sets = _test_sets(cfg)
        _log_skipped(*sets.values())
        model, facts = _trained(cfg, device)
        classes = facts.get("classes")
        tests = match_test_sets(sets, classes, cfg.MODEL.WEIGHTS, cfg)
        metrics = _evaluate(_in_test(model, cfg, device, classes), tests, cfg, facts)
    if distributed.is_main():
        check_expected(cfg, metrics)
    return metrics


def predictor(weights, overrides=()):
    """A function from a picture to its objects, made from a checkpoint of ours alone.

    Args:
        weights: a checkpoint that :func:`train` wrote; it holds its config and classes.

    Returns:
        (function of a file's path -> dict ``boxes`` (N, 4), ``scores`` (N,), ``classes`` (N,) as
        numpy arrays, tuple of class names).
    """
    state, facts = read(weights)
    if not {"config", "classes"} <= facts.keys():
        raise ConfigError(
            f"{weights}: carries no config or classes; give a checkpoint of tools/train_net.py"
        )
    cfg = parse_config(facts["config"], weights, ["MODEL.WEIGHTS", str(weights), *overrides])
    _check(cfg)
    device = torch.device(cfg.MODEL.DEVICE)
    classes = tuple(facts["classes"])
    model, _ = _trained(cfg, device, (state, facts))
    model = _in_test(model, cfg, device, classes).eval()
    mapper = _test_mapper(cfg)

    @torch.no_grad()
    def predict(path):
        sample = mapper({"file_name": path, "image_id": path}, np.random.default_rng(0))
        return {k: v.cpu().numpy() for k, v in model([sample])[0].items()}

    return predict, classes
