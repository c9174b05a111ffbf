"""Classes matched by name: those of a checkpoint, of a training set and of a test set.

The classes of a detector or classifier are known by their names, and their order is that of the
rows of its class layers. Everything here works on lists of names, so both engines share it.
``RESNET_DET.CLASSES_BY_ORDER`` (``by_order``) replaces names by positions: the classes of the two
sides are the same ones under other names.
"""

import logging
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..config.defaults import ConfigError
from ..data import Dataset
from ..weights.loading import WeightsError

logger = logging.getLogger(__name__)

# ---- lists of names


def places(classes, known, by_order=False):
    """Find each of ``classes`` in ``known``.

    Returns:
        list of the index in ``known`` of each name, None where ``known`` lacks it.

    Raises:
        ConfigError: a name occurs twice; or, ``by_order``, the numbers of classes differ.
    """
    classes, known = list(classes), list(known)
    if by_order and len(classes) != len(known):
        raise ConfigError(
            f"RESNET_DET.CLASSES_BY_ORDER: True: {len(known)} and {len(classes)} classes cannot be "
            "matched by their order"
        )
    if by_order or classes == known:
        return list(range(len(known)))
    for names in (classes, known):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"the class {twice[0]!r} occurs twice among {len(names)} classes")
    index = {name: i for i, name in enumerate(known)}
    return [index.get(name) for name in classes]


def difference(classes, owner, known, source):
    """What two lists of names do not share, in words: "only A has x, y; only B has z"."""
    parts = [
        f"only {who} has {shorten(only)}"
        for who, only in (
            (owner, [name for name in classes if name not in known]),
            (source, [name for name in known if name not in classes]),
        )
        if only
    ]
    return "; ".join(parts) or "their order differs"


def shorten(names, most=20):
    """The names, joined; of more than ``most``, the first ones and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def tested_places(tested, owner, trained, source, by_order=False):
    """The place among the ``trained`` classes of each class of a test set.

    Args:
        owner: name of the test set; ``source``: of what was trained, both for the error.

    Raises:
        ConfigError: the test set has classes that were not trained.
    """
    found = places(tested, trained, by_order)
    if None in found:
        hint = ""
        if len(tested) == len(trained):
            hint = (
                ". If these are the same classes under other names, in the same order, set "
                "RESNET_DET.CLASSES_BY_ORDER True"
            )
        raise ConfigError(
            f"DATASETS.TEST: {owner} has classes that {source} was not trained on: "
            f"{difference(tested, owner, trained, source)}{hint}"
        )
    if len(found) < len(trained):
        logger.info(
            "%s: has %d of the %d classes of %s: only these are scored",
            owner,
            len(found),
            len(trained),
            source,
        )
    elif found != sorted(found):
        logger.info("%s: its classes are in another order than those of %s", owner, source)
    return found


def check_resumed(facts, classes, folder, by_order=False):
    """Refuse to resume a run on other classes, or on the same ones in another order.

    Args:
        facts: that the checkpoint carries. ``classes``: of ``DATASETS.TRAIN``.

    Raises:
        ConfigError
    """
    trained = facts.get("classes", classes)
    if places(classes, trained, by_order) != list(range(len(trained))):
        raise ConfigError(
            f"OUTPUT_DIR: {folder}: the run to resume has other classes than DATASETS.TRAIN: "
            f"{difference(classes, 'DATASETS.TRAIN', trained, 'the run')}. To train on, give its "
            "checkpoint as MODEL.WEIGHTS, and another OUTPUT_DIR"
        )


def member_order(classes, trained, path, by_order=False):
    """The place in an ensemble's member of each of the first net's ``classes``.

    Raises:
        ConfigError: the member has other classes.
    """
    order = places(classes, trained, by_order)
    if None in order or len(trained) != len(classes):
        raise ConfigError(
            f"RESNET_DET.ENSEMBLE: {path}: has other classes than MODEL.WEIGHTS: "
            f"{difference(trained, path, classes, 'MODEL.WEIGHTS')}"
        )
    return order


# ---- test sets of detectors


@dataclass
class TestSet:
    """A dataset with its classes in the order of a detector's, of which it may have a subset.

    places: the detector's index of each class of the dataset, ascending.
    """

    __test__ = False  # no test of pytest's

    dataset: Dataset
    places: list

    def select(self, predictions):
        """The detections of the dataset's classes, as indices of these.

        Args:
            predictions: dicts as in :mod:`resnet_det.evaluation`, with the detector's indices.
        """
        selected = []
        for prediction in predictions:
            keep = np.isin(prediction["classes"], self.places)
            kept = {key: prediction[key][keep] for key in ("boxes", "scores", "classes")}
            kept["classes"] = np.searchsorted(self.places, kept["classes"])
            selected.append(prediction | kept)
        return selected


def match_test_set(dataset, trained, source, by_order=False):
    """Renumber the classes of a dataset in the order of the ``trained`` ones.

    The detections stay as they are, so that whatever the order of the dataset's classes was, every
    score of them is the same to the last bit.

    Raises:
        ConfigError: as :func:`tested_places`.
    """
    meta = dataset.metadata
    found = tested_places(meta.classes, dataset.name, trained, source, by_order)
    order = sorted(range(len(found)), key=found.__getitem__)
    if order != list(range(len(order))):
        number = {old: new for new, old in enumerate(order)}
        records = [
            record
            | {
                "annotations": [
                    a | {"category_id": number[a["category_id"]]} for a in record["annotations"]
                ]
            }
            if record.get("annotations")
            else record
            for record in dataset.records
        ]
        ids = meta.category_ids
        meta = replace(
            meta,
            classes=tuple(meta.classes[i] for i in order),
            category_ids=None if ids is None else tuple(ids[i] for i in order),
        )
        dataset = replace(dataset, records=records, metadata=meta)
    return TestSet(dataset, sorted(found))


def match_test_sets(datasets, trained, source, cfg):
    """:func:`match_test_set` for each of DATASETS.TEST.

    Args:
        datasets: dict of name -> Dataset.
        trained: the detector's class names, or None where its file does not say them: they are then
            believed to be the first test set's.
        source: name of what was trained.

    Raises:
        ConfigError: as :func:`tested_places` and :func:`check_number`.
    """
    if datasets and trained is None:
        name, first = next(iter(datasets.items()))
        trained = first.metadata.classes
        logger.warning("%s does not name its classes: those of %s are believed", source, name)
        source = name
    if datasets:
        check_number(cfg, trained, source)
    by_order = cfg.RESNET_DET.CLASSES_BY_ORDER
    return {
        name: match_test_set(dataset, trained, source, by_order)
        for name, dataset in datasets.items()
    }


def check_number(cfg, classes, source):
    """
    Raises:
        ConfigError: MODEL.ROI_HEADS.NUM_CLASSES is not the number of ``classes``.
    """
    count = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN" and count != len(classes):
        raise ConfigError(
            f"MODEL.ROI_HEADS.NUM_CLASSES: {count}, but {source} has {len(classes)} classes"
        )


# ---- class layers


def class_rows(key, rows, classes):
    """Which rows of a parameter belong to which class.

    Args:
        key: name of the parameter, with Detectron2's layers: ``cls_score``, ``bbox_pred``,
            ``mask_head.predictor``, or a classifier's ``linear``.
        rows: length of its first dimension; ``classes``: number of classes, without background.

    Returns:
        int64 (classes, rows per class), or None where no row belongs to one class: another layer,
        or boxes that all classes share. Rows behind these are the background's.
    """
    index = torch.arange(rows)
    if "predictor.cls_score." in key:
        return index[:classes, None] if rows == classes + 1 else None
    if "cls_score." in key:  # RetinaNet's convolution: the classes of each anchor
        return index.view(-1, classes).T if rows % classes == 0 else None
    if "predictor.bbox_pred." in key:
        return index.view(classes, 4) if rows == 4 * classes else None
    if key.startswith("linear.") or "mask_head.predictor." in key:
        return index[:, None] if rows == classes else None
    return None


def keep_shared_classes(own, state, facts, classes, path, by_order=False):
    """Fit a file's class layers to the classes to train on: shared names keep their rows.

    The rows of other classes stay as ``own`` has them, freshly drawn; the background's row is kept
    where any class is. What is kept and what starts fresh is logged.

    Args:
        own: the model's state dict.
        state, facts: the file's, as :func:`resnet_det.weights.loading.read` gives them. Without
            ``classes`` among the facts the order of the rows is believed.
        classes: names, in the order of the model's rows.
        path: of the file, for the log.

    Returns:
        dict: ``state``, its class layers replaced.

    Raises:
        ConfigError: as :func:`places`.
        WeightsError: the file names more or fewer classes than its layers have.
    """
    known = facts.get("classes")
    fitted = {}
    for key, mine in own.items():
        if key not in state or not mine.dim():
            continue
        theirs = torch.as_tensor(state[key])
        here = class_rows(key, len(mine), len(classes))
        there = class_rows(key, len(theirs), len(known or classes)) if theirs.dim() else None
        if known and there is None and ("cls_score." in key or key.startswith("linear.")):
            raise WeightsError(
                f"{path}: names {len(known)} classes, but its {key} has {len(theirs)} rows"
            )
        same = here is not None and there is not None and here.shape[1] == there.shape[1]
        if same and mine.shape[1:] == theirs.shape[1:]:
            fitted[key] = mine.clone(), theirs, here, there
    if not fitted:  # a classifier's file for a detector, or layers of another kind
        return state
    if known is None:
        logger.warning("%s does not name its classes: it keeps their rows in order", path)
        return state
    found = places(classes, known, by_order)
    if found == list(range(len(known))):
        return state
    kept = [i for i, place in enumerate(found) if place is not None]
    taken = [found[i] for i in kept]
    for mine, theirs, here, there in fitted.values():
        if kept:
            mine[here[kept].flatten()] = theirs[there[taken].flatten()].to(mine)
            mine[here.numel() :] = theirs[there.numel() :].to(mine)
    fresh = [name for name, place in zip(classes, found) if place is None]
    logger.info(
        "%s: is of other classes, or in another order. In %s %d classes keep their rows (%s), %d "
        "start fresh (%s)",
        path,
        ", ".join(fitted),
        len(kept),
        shorten([classes[i] for i in kept]),
        len(fresh),
        shorten(fresh),
    )
    return state | {key: mine for key, (mine, *_) in fitted.items()}
