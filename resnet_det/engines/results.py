"""Score a detector's predictions, publish the results, and compare them with expected results."""

import hashlib
import json
import logging
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from fvcore.common.config import CfgNode

from .. import training
from ..config.defaults import ConfigError
from ..data import Dataset, pixels
from ..evaluation import coco_ap, voc_ap
from ..evaluation.inputs import Evaluation, Predictions, Records
from ..evaluation.report import write_report
from ..evaluation.tables import as_json, class_table, summary_table
from ..files import write_whole
from ..hints import did_you_mean
from .class_matching import TestSet
from .provenance import commit, machine

logger = logging.getLogger(__name__)


BOX, BOX_TTA = "bbox", "bbox_TTA"  # Detectron2's tasks: without and with TEST.AUG
# The evaluation of a test set, the dataset, and the predictions that were scored.
Scores = tuple[Evaluation, Dataset, Sequence[Mapping[str, Any]]]
Scored = Mapping[str, Scores]  # by the name of the test set
DETECTIONS = "detections.json"  # COCO's submission file, for all datasets


def category_ids(dataset: Dataset) -> Sequence[int]:
    """The category id of every class in `DETECTIONS`: COCO's, or from 1."""
    return dataset.metadata.category_ids or range(1, len(dataset.metadata.classes) + 1)


def digest(dataset: Dataset) -> str:
    """A digest of a test set's images and objects, whatever the order of its classes."""
    names = dataset.metadata.classes
    content = [
        [
            record["image_id"],
            [
                [names[a["category_id"]], *map(float, a["bbox"])]
                + [int(a.get(flag, 0)) for flag in ("iscrowd", "difficult")]
                for a in record.get("annotations", ())
            ],
        ]
        for record in dataset.records
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def score_detector(test: TestSet, found: list[dict[str, Any]], folder: str | Path) -> Scores | None:
    """:func:`score` the detections of a detector, which may have other classes than the test set.

    Args:
        found: one prediction per image, with the detector's class indices.

    Returns:
        The scores; None for a test set without public annotations, which the log says.
    """
    predictions = test.select(found)
    evaluation = score(test.dataset, predictions, folder)
    if evaluation is None:
        name = test.dataset.name
        logger.info("%s has no annotations: wrote submission files to %s", name, folder)
        return None
    return evaluation, test.dataset, predictions


def score(
    dataset: Dataset, predictions: Sequence[Mapping[str, Any]], folder: str | Path
) -> Evaluation | None:
    """Evaluate predictions by the dataset's protocol. Write `DETECTIONS` and the submission files.

    VOC 2007 uses the 11-point AP, later years the area under the curve. AP50 by the other metric
    is reported as well. The user's own datasets use COCO's AP; in VOC's format, they also get VOC's
    AP50, by the area under the curve. What the ground truth lacks is reported, too: skipped images
    and objects, and clipped boxes, if there are any.

    Args:
        predictions: one per image; see :mod:`resnet_det.evaluation.inputs`.
        folder: folder for ``results.json`` and the submission files.

    Returns:
        The evaluation, or None for a test set without public annotations.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    meta, records = dataset.metadata, dataset.records
    coco_ap.write_submission(folder / DETECTIONS, records, predictions, category_ids(dataset))
    if meta.split is not None:
        voc_ap.write_submission(folder, records, predictions, meta.classes, meta.split)
    if not meta.annotated:
        return None
    result = EVALUATIONS[meta.evaluation](records, predictions, meta.classes)
    result.overall |= {what: count for what, count in dataset.counts.items() if count}
    content = {"dataset": dataset.name, "digest": digest(dataset), **as_json(result)}
    write_whole(folder / "results.json", json.dumps(content, indent=1) + "\n")
    return result


def _coco_and_voc(records, predictions, classes):
    result = coco_ap.evaluate(records, predictions, classes)
    area = voc_ap.evaluate(records, predictions, classes, "area")
    result.overall["AP50_area"] = area.metrics["AP50"]
    return result


# The protocols that a dataset's ``metadata.evaluation`` may name.
EVALUATIONS: dict[str, Callable[[Records, Predictions, Sequence[str]], Evaluation]] = {
    "voc_2007": partial(voc_ap.evaluate, metric="11-point"),
    "voc": partial(voc_ap.evaluate, metric="area"),
    "coco": coco_ap.evaluate,
    "coco_and_voc": _coco_and_voc,
}


def named_metrics(task: str, evaluations: Mapping[str, Evaluation]) -> dict[str, float]:
    """The metrics of test sets: ``bbox/AP``, ..., or ``<dataset>/bbox/AP``, ... if there are
    several."""
    several = len(evaluations) > 1
    return {
        f"{name}/{task}/{key}" if several else f"{task}/{key}": value
        for name, evaluation in evaluations.items()
        for key, value in evaluation.metrics.items()
    }


def check_best_metric(cfg: CfgNode, datasets: Mapping[str, Dataset]) -> None:
    """Raise ConfigError if evaluations on the test sets do not give RESNET_DET.BEST.METRIC."""
    metric = cfg.RESNET_DET.BEST.METRIC
    if not metric:
        return
    blank = {"image_id": 0, "annotations": []}
    nothing = {"image_id": 0, "boxes": np.zeros((0, 4)), "scores": (), "classes": ()}
    given = {
        name: EVALUATIONS[dataset.metadata.evaluation]([blank], [nothing], dataset.metadata.classes)
        for name, dataset in datasets.items()
        if dataset.metadata.annotated
    }
    known = named_metrics(BOX, given)
    if not known:
        raise ConfigError(
            f"RESNET_DET.BEST.METRIC: {metric}: no dataset of DATASETS.TEST has annotations"
        )
    if metric not in known:
        use = " or ".join(name for name in known if name.endswith("/AP"))
        raise ConfigError(
            f"RESNET_DET.BEST.METRIC: {metric}: the evaluation gives no such metric"
            f"{did_you_mean(metric, known) or f'; use {use}'}"
        )


def publish(
    cfg: CfgNode,
    scored: Mapping[str, Scored],
    details: Mapping[str, Any] | None = None,
    weights_facts: Mapping[str, Any] | None = None,
    iteration: int | None = None,
) -> dict[str, float]:
    """Log the tables of a run and write its ``report.html``.

    Args:
        scored: task -> dataset name -> (evaluation, dataset, predictions). Without any dataset,
            nothing is published.
        details: name -> value of what the head of the page also shows, such as the engine.
        weights_facts: the facts that the file ``MODEL.WEIGHTS`` carries, if the run only tests it;
            ``cfg`` then does not describe the training.
        iteration: index, from 0, of the last iteration of the training that this evaluation is part
            of; None if the run only tests. ``metrics.json`` does not have these results yet.

    Returns:
        dict of metrics: ``bbox/AP``, ..., or ``<dataset>/bbox/AP``, ... if there are several
        datasets.
    """
    flat: dict[str, float] = {}
    pages: dict[str, Any] = {}
    for task, of_task in scored.items():
        flat |= named_metrics(
            task, {name: evaluation for name, (evaluation, *_) in of_task.items()}
        )
        for name, (evaluation, dataset, predictions) in of_task.items():
            title = name if task == BOX else f"{name} ({task})"
            pages[title] = evaluation, dataset.records, predictions, dataset.metadata.classes
            logger.info("%s:\n%s", title, class_table(evaluation))
    if not pages:
        return {}
    logger.info("results:\n%s", summary_table({title: page[0] for title, page in pages.items()}))
    lines = training.read_metrics(Path(cfg.OUTPUT_DIR) / "metrics.json")
    if iteration is not None:
        lines.append({"iteration": iteration, **flat})
    write_report(
        cfg.OUTPUT_DIR,
        pages,
        lambda path: pixels.read_image(path, "RGB"),
        lines,
        {
            "net": cfg.MODEL.BACKBONE.NAME,
            **_origin(cfg, weights_facts or {}, iteration),
            "commit": commit() or "unknown",
            **machine(),
            "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            **(details or {}),
            "config": cfg.dump(),
        },
        title=cfg.MODEL.BACKBONE.NAME,
    )
    logger.info("wrote %s", Path(cfg.OUTPUT_DIR) / "report.html")
    return flat


def _origin(
    cfg: CfgNode, weights_facts: Mapping[str, Any], iteration: int | None
) -> dict[str, Any]:
    """Where the tested weights come from; for the arguments see :func:`publish`."""
    if iteration is not None:
        return {
            "trained on": " + ".join(cfg.DATASETS.TRAIN),
            "iterations": iteration + 1,
            "seed": cfg.SEED if cfg.SEED >= 0 else "random",
        }
    known = {f"weights: {key}": weights_facts.get(key) for key in ("net", "seed", "commit")}
    known = {key: value for key, value in known.items() if value not in (None, "")}
    return {"weights": cfg.MODEL.WEIGHTS, **known}


def check_expected(cfg: CfgNode, metrics: Mapping[str, float]) -> None:
    """Compare metrics with ``TEST.EXPECTED_RESULTS``: ``[[task, metric, value, tolerance], ...]``.

    Raises:
        RuntimeError: metrics are missing or outside their tolerance. The message names each.
    """
    wrong = []
    for task, metric, value, tolerance in cfg.TEST.EXPECTED_RESULTS:
        found = metrics.get(f"{task}/{metric}", math.nan)
        if not abs(found - value) <= tolerance:  # NaN too
            wrong.append(f"{task}/{metric} is {found:.2f}, expected {value} +- {tolerance}")
    if wrong:
        raise RuntimeError("TEST.EXPECTED_RESULTS: " + "; ".join(wrong))
