"""The losses of a detector on its test sets (``RESNET_DET.VAL_LOSS``), in both engines."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn

from ..config.defaults import with_values
from ..data.detection.mapper import usable, with_usable_annotations
from ..data.jitter import UNCHANGED
from ..data.loader import Mapper, test_batches
from ..training import distributed
from .class_matching import TestSet

logger = logging.getLogger(__name__)

Validation = dict[str, list[dict[str, Any]]]  # name of a test set -> records to take losses on


def validation_records(tests: Mapping[str, TestSet], cfg: CfgNode) -> Validation:
    """The annotated records of the test sets, selected as those of the training set are.

    Returns:
        name -> records with the detector's class indices; {} without ``RESNET_DET.VAL_LOSS``.

    Raises:
        ValueError: no image of a set has a usable annotation.
    """
    sets: Validation = {}
    for name, test in tests.items() if cfg.RESNET_DET.VAL_LOSS else ():
        if not test.dataset.metadata.annotated:
            logger.warning("RESNET_DET.VAL_LOSS: %s has no annotations, so it gives no loss", name)
            continue
        records = [
            record | {"annotations": _annotations(record, test.places, cfg)}
            for record in test.dataset.records
        ]
        filtered = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        sets[name] = with_usable_annotations(records) if filtered else records
    return sets


def _annotations(record: Mapping[str, Any], places: Sequence[int], cfg: CfgNode) -> list[dict]:
    return [
        annotation | {"category_id": places[annotation["category_id"]]}
        for annotation in record["annotations"]
        if usable(annotation, cfg.RESNET_DET.USE_DIFFICULT)
    ]


def validation_config(cfg: CfgNode) -> CfgNode:
    """A config whose training images are made as test images are: resized, and no more."""
    topk = cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST
    jitter = {f"RESNET_DET.COLOR_JITTER.{name}": UNCHANGED for name in cfg.RESNET_DET.COLOR_JITTER}
    return with_values(
        cfg,
        {
            "INPUT.MIN_SIZE_TRAIN": (cfg.INPUT.MIN_SIZE_TEST,),
            "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
            "INPUT.MAX_SIZE_TRAIN": cfg.INPUT.MAX_SIZE_TEST,
            "INPUT.RANDOM_FLIP": "none",
            "INPUT.CROP.ENABLED": False,
            "RESNET_DET.COLOR_PCA": False,
            **jitter,
            "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN": topk,
        },
    )


def validation_losses(
    model: nn.Module, sets: Validation, mapper: Mapper, num_workers: int
) -> dict[str, float]:
    """The mean losses of a model on each set.

    Args:
        mapper: makes training samples by :func:`validation_config`.
        num_workers: number of processes that load images.

    Returns:
        ``val_total_loss``, ``val_loss_cls``, ..., or ``<set>/val_total_loss``, ... if there are
        several sets, in the main process; {} in the others.
    """
    flat: dict[str, float] = {}
    for name, records in sets.items():
        batches = test_batches(
            records,
            mapper,
            rank=distributed.get_rank(),
            world=distributed.get_world_size(),
            num_workers=num_workers,
        )
        prefix = f"{name}/" if len(sets) > 1 else ""
        flat |= {f"{prefix}val_{key}": v for key, v in mean_losses(model, batches).items()}
    return flat


@torch.no_grad()
def mean_losses(model: nn.Module, batches: Iterable[Any]) -> dict[str, float]:
    """The mean of each loss over batches of one image, which the processes share.

    Layers run in evaluation mode: batch norms use and keep their running statistics, and nothing is
    dropped out. Anchors and regions are sampled by the same seed in each image, so evaluations
    compare. The caller restores random states and modes.

    Args:
        model: in training mode it returns a dict; its values named ``loss...`` are the losses.

    Returns:
        ``total_loss`` and each loss in the main process, {} in the others.
    """
    model.train()
    for module in model.modules():
        if not any(True for _ in module.children()):
            module.eval()
    sums: Counter[str] = Counter()
    for batch in batches:
        torch.manual_seed(0)
        losses = {k: float(v) for k, v in model(batch).items() if k.startswith("loss")}
        sums.update({"images": 1, "total_loss": sum(losses.values()), **losses})
    total: Counter[str] = Counter()
    for part in distributed.gather_objects(sums):
        total.update(part)
    images = total.pop("images", 0)
    return {name: value / images for name, value in total.items()}
