"""Match the classes of a checkpoint, a training set and a test set by name.

A checkpoint names its classes in the order of the rows of its class layers.
``RESNET_DET.CLASSES_BY_ORDER`` (``by_order``) matches classes by position instead, for datasets
that name the same classes differently. Both engines share this module.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from fvcore.common.config import CfgNode

from ..config.defaults import ConfigError
from ..data import Dataset
from ..hints import difference, some
from ..weights.facts import Facts, State
from ..weights.pickles import WeightsError

logger = logging.getLogger(__name__)

# ---- lists of names


def places(
    classes: Sequence[str], trained: Sequence[str], by_order: bool = False
) -> list[int | None]:
    """The index in ``trained`` of each of ``classes``; None for a class that is not in it.

    Raises:
        ConfigError: a name occurs twice, or, if ``by_order``, the numbers of classes differ.
    """
    classes, trained = list(classes), list(trained)
    if by_order and len(classes) != len(trained):
        raise ConfigError(
            f"RESNET_DET.CLASSES_BY_ORDER: True: {len(trained)} and {len(classes)} classes cannot "
            "be matched by their order"
        )
    if by_order or classes == trained:
        return list(range(len(trained)))
    for names in (classes, trained):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"the class {twice[0]!r} occurs twice among {len(names)} classes")
    index = {name: i for i, name in enumerate(trained)}
    return [index.get(name) for name in classes]


def tested_places(
    tested: Sequence[str], owner: str, trained: Sequence[str], source: str, by_order: bool = False
) -> list[int]:
    """The index among the ``trained`` classes of each class of a test set.

    Args:
        owner: name of the test set, for the messages.
        source: name of the checkpoint or training set, for the messages.

    Raises:
        ConfigError: the test set has classes that were not trained.
    """
    found = [place for place in places(tested, trained, by_order) if place is not None]
    if len(found) < len(tested):
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
            "%s has %d of the %d classes of %s: only these are scored",
            owner,
            len(found),
            len(trained),
            source,
        )
    elif found != sorted(found):
        logger.info("%s has its classes in another order than %s", owner, source)
    return found


# ---- test sets of detectors


@dataclass
class TestSet:
    """A dataset whose classes are a subset of a detector's, in the detector's order.

    Attributes:
        places: the detector's index of each class of the dataset, ascending.
    """

    __test__ = False  # pytest must not collect it

    dataset: Dataset
    places: list[int]

    def select(self, predictions: list[dict]) -> list[dict]:
        """Keep the detections of the dataset's classes, and renumber them to its indices.

        Args:
            predictions: as in :mod:`resnet_det.evaluation`, with the detector's class indices.
        """
        selected = []
        for prediction in predictions:
            keep = np.isin(prediction["classes"], self.places)
            kept = {key: prediction[key][keep] for key in ("boxes", "scores", "classes")}
            kept["classes"] = np.searchsorted(self.places, kept["classes"])
            selected.append(prediction | kept)
        return selected


def match_test_set(
    dataset: Dataset, trained: Sequence[str], source: str, by_order: bool = False
) -> TestSet:
    """Renumber the classes of a dataset in the order of the ``trained`` ones.

    The dataset is renumbered instead of the detections, so that the metrics do not depend on the
    dataset's class order, to the last bit.

    Raises:
        ConfigError: see :func:`tested_places`.
    """
    meta = dataset.metadata
    found = tested_places(meta.classes, dataset.name, trained, source, by_order)
    order = sorted(range(len(found)), key=found.__getitem__)
    if order != list(range(len(order))):
        number = {old: new for new, old in enumerate(order)}
        records = [_renumbered(record, number) for record in dataset.records]
        ids = meta.category_ids or range(1, len(order) + 1)  # in the dataset's own order
        meta = replace(
            meta,
            classes=tuple(meta.classes[i] for i in order),
            category_ids=tuple(ids[i] for i in order),
        )
        dataset = replace(dataset, records=records, metadata=meta)
    return TestSet(dataset, sorted(found))


def _renumbered(record: dict[str, Any], number: Mapping[int, int]) -> dict[str, Any]:
    """A record whose objects have the class ``number[category_id]``."""
    if not record.get("annotations"):
        return record
    annotations = [a | {"category_id": number[a["category_id"]]} for a in record["annotations"]]
    return record | {"annotations": annotations}


def match_test_sets(
    datasets: dict[str, Dataset], trained: Sequence[str] | None, source: str, cfg: CfgNode
) -> dict[str, TestSet]:
    """:func:`match_test_set` for each of DATASETS.TEST.

    Args:
        trained: the detector's class names. None if its file does not name them: the classes of the
            first test set are assumed.
        source: name of the checkpoint or training set, for the messages.

    Raises:
        ConfigError: see :func:`tested_places` and :func:`check_number`.
    """
    if not datasets:
        return {}
    if trained is None:
        name, first = next(iter(datasets.items()))
        trained = first.metadata.classes
        logger.warning("%s does not name its classes. Assuming those of %s", source, name)
        source = name
    check_number(cfg, trained, source)
    by_order = cfg.RESNET_DET.CLASSES_BY_ORDER
    return {
        name: match_test_set(dataset, trained, source, by_order)
        for name, dataset in datasets.items()
    }


def class_names(
    cfg: CfgNode,
    facts: Facts,
    given: Sequence[str] | None,
    of_dataset: Callable[[str], Sequence[str] | None],
) -> tuple[str, ...]:
    """The class names of a trained detector: those given, its checkpoint's, or its datasets'.

    Args:
        facts: the facts of its checkpoint, ``MODEL.WEIGHTS``.
        given: names that replace the checkpoint's.
        of_dataset: returns the class names of a dataset, or None if they are not known.

    Raises:
        ConfigError: nothing names the classes, or the config has another number of classes.
    """
    weights = cfg.MODEL.WEIGHTS
    sources = [("the argument classes", given), (weights, facts.get("classes"))]
    sources += [(name, of_dataset(name)) for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)]
    for source, names in sources:
        if names is not None:
            check_number(cfg, names, source)
            return tuple(names)
    raise ConfigError(f"{weights}: does not name its classes: give their names, in order")


def class_count(cfg: CfgNode) -> tuple[str, int]:
    """The key that holds the number of classes of a config's detector, and that number."""
    head = "RETINANET" if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else "ROI_HEADS"
    return f"MODEL.{head}.NUM_CLASSES", cfg.MODEL[head].NUM_CLASSES


def check_number(cfg: CfgNode, classes: Sequence[str], source: str) -> None:
    """Raise ConfigError unless the detector's NUM_CLASSES is the number of ``classes``.

    A ``ProposalNetwork`` and other architectures without a class layer of boxes are not checked.
    """
    key, count = class_count(cfg)
    has_classes = cfg.MODEL.META_ARCHITECTURE in ("GeneralizedRCNN", "RetinaNet")
    if has_classes and count != len(classes):
        raise ConfigError(f"{key}: {count}, but {source} has {len(classes)} classes")


# ---- class layers


def class_rows(key: str, rows: int, classes: int) -> torch.Tensor | None:
    """The rows of a parameter that belong to each class.

    Args:
        key: name of the parameter: Detectron2's ``cls_score``, ``bbox_pred`` or
            ``mask_head.predictor``, or a classifier's ``linear``.
        rows: length of its first dimension.
        classes: number of classes, without background.

    Returns:
        int64 (classes, rows per class). None if no row belongs to a single class, as in other
        layers and in a class-agnostic box layer. The rows after these belong to the background.
    """
    index = torch.arange(rows)
    if "predictor.cls_score." in key:
        return index[:classes, None] if rows == classes + 1 else None
    if "cls_score." in key:  # RetinaNet's convolution: all classes, for each anchor
        return index.view(-1, classes).T if rows % classes == 0 else None
    if "predictor.bbox_pred." in key:
        return index.view(classes, 4) if rows == 4 * classes else None
    if key.startswith("linear.") or "mask_head.predictor." in key:
        return index[:, None] if rows == classes else None
    return None


class _ClassLayer(NamedTuple):
    """A parameter of a class layer, in the model and in a file, and its rows of each class."""

    model: torch.Tensor
    file: torch.Tensor
    model_rows: torch.Tensor
    file_rows: torch.Tensor


def _class_layers(
    own: State,
    state: State,
    classes: Sequence[str],
    file_classes: Sequence[str] | None,
    path: str,
) -> dict[str, _ClassLayer]:
    """The class layers of a model that a file also has, with as many rows per class. Those of the
    model are copied. For the arguments see :func:`keep_shared_classes`."""
    layers: dict[str, _ClassLayer] = {}
    for key, model in own.items():
        file = state.get(key)
        if file is None or not model.dim():
            continue
        model_rows = class_rows(key, len(model), len(classes))
        file_rows = None
        if file.dim():
            file_rows = class_rows(key, len(file), len(file_classes or classes))
        if (
            file_classes
            and file_rows is None
            and ("cls_score." in key or key.startswith("linear."))
        ):
            raise WeightsError(
                f"{path}: names {len(file_classes)} classes, but its {key} has {len(file)} rows"
            )
        if model_rows is None or file_rows is None:
            continue
        if model_rows.shape[1] == file_rows.shape[1] and model.shape[1:] == file.shape[1:]:
            layers[key] = _ClassLayer(model.clone(), file, model_rows, file_rows)
    return layers


def keep_shared_classes(
    own: State,
    state: State,
    facts: Facts,
    classes: Sequence[str],
    path: str,
    by_order: bool = False,
) -> State:
    """Adapt the class layers of a file to the classes to train on: shared classes keep their rows.

    The rows of other classes stay as in ``own``, freshly initialised. The background keeps its row
    if any class does. The log lists the classes that keep their rows and those that start fresh.

    Args:
        own: state dict of the model.
        state, facts: the file's content, from :func:`resnet_det.weights.loading.read`. Without the
            fact ``classes``, the file's rows are assumed to be in the order of ``classes``.
        classes: class names, in the order of the model's rows.
        path: path of the file, for the messages.

    Returns:
        ``state`` with its class layers replaced.

    Raises:
        ConfigError: see :func:`places`.
        WeightsError: the file names more or fewer classes than its layers have.
    """
    file_classes = facts.get("classes")
    layers = _class_layers(own, state, classes, file_classes, path)
    if not layers:  # a classifier's file for a detector, or layers of another kind
        return state
    if file_classes is None:
        logger.warning(
            "%s does not name its classes. Assuming those of the training set, in order", path
        )
        return state
    found = places(classes, file_classes, by_order)
    if found == list(range(len(file_classes))):
        return state
    kept = [i for i, place in enumerate(found) if place is not None]
    sources = [found[i] for i in kept]
    for model, file, model_rows, file_rows in layers.values():
        if kept:
            model[model_rows[kept].flatten()] = file[file_rows[sources].flatten()].to(model)
            model[model_rows.numel() :] = file[file_rows.numel() :].to(model)  # of the background
    fresh = [name for name, place in zip(classes, found) if place is None]
    logger.info(
        "%s: has other classes, or another class order. In %s, %d classes keep their rows (%s), %d "
        "start fresh (%s)",
        path,
        ", ".join(layers),
        len(kept),
        some([classes[i] for i in kept], 20),
        len(fresh),
        some(fresh, 20),
    )
    return state | {key: layer.model for key, layer in layers.items()}
