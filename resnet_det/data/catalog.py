"""The datasets by name: Detectron2's, with its folder layout, the paper's others, synthetic ones,
and the user's own, which are registered or named by their path (:mod:`.paths`)."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..hints import did_you_mean, difference
from ..records import DatasetError
from ..weights.class_names import COCO
from .check import Report
from .classification.cifar10 import SPLITS as CIFAR10_SPLITS
from .classification.cifar10 import Cifar10
from .classification.cifar100 import SPLITS as CIFAR100_SPLITS
from .classification.cifar100 import Cifar100
from .classification.image_folder import ImageFolder
from .classification.shards import ImageShards
from .detection import proposals
from .detection.coco import CocoJson
from .detection.voc import VocFolder
from .paths import KINDS, is_path, own_dataset, parse
from .specs import ClassificationSpec, Dataset, DatasetSpec, DetectionSpec, Metadata, Scan
from .synthetic import drawing, miniature, scenes
from .synthetic.folder import DrawnFolder

Root = str | os.PathLike | None  # the datasets' folder; see datasets_root
NO_IMAGE = "holds no image"

# Number of images of the published datasets. VOC's test set of 2012 has no public annotations.
_PUBLISHED = {
    "voc_2007_trainval": 5011,
    "voc_2007_test": 4952,
    "voc_2012_trainval": 11540,
    "voc_2012_test": 10991,
    "coco_2014_train": 82783,
    "coco_2014_val": 40504,
    "coco_2017_train": 118287,
    "coco_2017_val": 5000,
}


def _voc(year: int, split: str) -> VocFolder:
    name = f"voc_{year}_{split}"
    annotated = name != "voc_2012_test"
    published = _PUBLISHED.get(name)
    return VocFolder(name, f"VOC{year}", split, year, annotated=annotated, published=published)


def _coco(name: str, images: str, json: str, **options) -> CocoJson:
    published = _PUBLISHED.get(name)
    json = f"coco/annotations/{json}.json"
    return CocoJson(name, f"coco/{images}", json, published=published, **options)


def _drawn_voc(drawn: DrawnFolder, split: str, classes: tuple[str, ...]) -> VocFolder:
    name = f"{drawn.name}_voc_{split}"
    return VocFolder(name, f"{drawn.name}/voc", split, 2007, classes, drawn=drawn)


def _scenes_coco(split: str) -> CocoJson:
    images, json = "scenes/voc/JPEGImages", f"scenes/coco/instances_{split}.json"
    return CocoJson(f"scenes_coco_{split}", images, json, official=False, drawn=scenes.DRAWN)


def _scenes_classification(split: str) -> ImageFolder:
    folder = f"scenes/classification/{split}"
    return ImageFolder(f"scenes_classification_{split}", folder, drawn=scenes.DRAWN)


def _imagenet(split: str, images: int) -> tuple[ImageFolder, ImageShards]:
    counts: Any = {"large": True, "published": images, "published_classes": 1000}  # of ILSVRC 2012
    return (
        ImageFolder(f"imagenet_{split}", f"imagenet/{split}", **counts),
        ImageShards(f"imagenet_{split}_shards", "imagenet_shards", split, **counts),
    )


DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        *(_voc(year, x) for year in (2007, 2012) for x in ("trainval", "train", "val", "test")),
        *(_drawn_voc(scenes.DRAWN, x, drawing.CLASSES) for x in ("trainval", "test")),
        *(_drawn_voc(miniature.DRAWN, x, miniature.CLASSES) for x in ("trainval", "test")),
        _coco("coco_2014_train", "train2014", "instances_train2014"),
        _coco("coco_2014_val", "val2014", "instances_val2014"),
        _coco("coco_2014_minival", "val2014", "instances_minival2014", repeated_ids=True),
        _coco(
            "coco_2014_valminusminival",
            "val2014",
            "instances_valminusminival2014",
            repeated_ids=True,
        ),
        _coco("coco_2017_train", "train2017", "instances_train2017"),
        _coco("coco_2017_val", "val2017", "instances_val2017"),
        _coco("coco_2017_val_100", "val2017", "instances_val2017_100"),
        _coco("coco_2017_test", "test2017", "image_info_test2017", annotated=False),
        _coco("coco_2017_test-dev", "test2017", "image_info_test-dev2017", annotated=False),
        *map(_scenes_coco, ("train", "test")),
        *map(_scenes_classification, ("train", "val")),
        *_imagenet("train", 1_281_167),
        *_imagenet("val", 50_000),
        *map(Cifar10, CIFAR10_SPLITS),
        *map(Cifar100, CIFAR100_SPLITS),
    )
}
DRAWN = {drawn.name: drawn for drawn in (scenes.DRAWN, miniature.DRAWN)}


# Called with the name of each dataset that is registered: the plugin adds it to Detectron2's
# catalogs.
ON_REGISTER: list[Callable[[str], None]] = []


def register_coco(name: str, json: str, images: str | None = None) -> None:
    """Give a name to your own dataset in COCO's format, in Detectron2's catalogs as well.

    Args:
        json, images: the annotations and the folder of their images, relative to the working folder
            or else to the datasets' folder. By default, the images are looked for near ``json``.

    Raises:
        ValueError: another dataset has this name.
    """
    _register(own_dataset(name, "coco", json, images=images))


def register_voc(
    name: str, folder: str, split: str | None = None, classes: Sequence[str] | None = None
) -> None:
    """Give a name to your own dataset in VOC's format, in Detectron2's catalogs as well.

    Args:
        folder: relative to the working folder or else to the datasets' folder.
        split: a list in ``ImageSets/Main``, or a share of the images such as "[:80%]"; by default
            all annotated images.
        classes: the classes to keep, in this order; by default all that the annotations name.

    Raises:
        ValueError: another dataset has this name.
    """
    _register(own_dataset(name, "voc", folder, split=split, classes=classes or ()))


def _register(spec: DatasetSpec) -> None:
    if DATASETS.get(spec.name) == spec:
        return
    if spec.name in DATASETS or is_path(spec.name):
        raise ValueError(f"{spec.name!r} is the name of another dataset: choose another one")
    for call in ON_REGISTER:
        call(spec.name)
    DATASETS[spec.name] = spec


class UnknownDataset(ValueError):
    """A name that is not in the catalog, or is a dataset for another task."""


def dataset_names(task: str | None = "detection") -> list[str]:
    """Names of the datasets for a task, "detection" or "classification", or of all if None."""
    return [name for name, spec in DATASETS.items() if task in (None, spec.task)]


def detection_spec(name: str) -> DetectionSpec:
    """Look up a detection dataset. Raises UnknownDataset, with similar names."""
    return _find(name, "detection")  # type: ignore[return-value]


def classification_spec(name: str) -> ClassificationSpec:
    """Look up a classification dataset. Raises UnknownDataset, with similar names."""
    return _find(name, "classification")  # type: ignore[return-value]


def own_spec(name: str) -> DatasetSpec | None:
    """The spec of the user's own dataset, or None for any other name."""
    spec = _get(name)
    return spec if spec and spec.own else None


def _get(name: str) -> DatasetSpec | None:
    """A path's spec, or the one of this name in the catalog, if there is any."""
    return parse(name) if is_path(name) else DATASETS.get(name)


def _find(name: str, task: str | None = None) -> DatasetSpec:
    spec = _get(name)
    if spec and task in (None, spec.task):
        return spec
    there = any(os.path.exists(os.path.join(folder, name)) for folder in ("", datasets_root()))
    if spec is None and (":" in name or there):
        kinds = ", ".join(kind.example for kind in KINDS.values())
        raise UnknownDataset(f"unknown dataset {name!r}; a dataset's path is one of {kinds}")
    hint = did_you_mean(name, dataset_names(task), list_all=True)
    what = (
        f"{name!r} is a dataset for {spec.task}, not {task}"
        if spec
        else f"unknown dataset {name!r}"
    )
    raise UnknownDataset(f"{what}{hint}")


def published_classes(name: str) -> tuple[str, ...] | None:
    """The class names of a detection dataset, if they are known without reading its files."""
    spec = DATASETS.get(name)
    if isinstance(spec, VocFolder):
        return spec.classes
    return COCO if isinstance(spec, CocoJson) and spec.official else None


def check_names(names: Iterable[str]) -> None:
    """Raise UnknownDataset, with similar names, unless all are detection datasets."""
    for name in names:
        detection_spec(name)


def datasets_root(root: Root = None) -> str:
    """``root``, or $DETECTRON2_DATASETS, or "datasets", as in Detectron2."""
    return os.path.expanduser(root or os.environ.get("DETECTRON2_DATASETS") or "datasets")


def ensure_made(names: Iterable[str], root: Root = None, workers: int = 1) -> None:
    """Draw the synthetic datasets among ``names`` that are absent.

    Args:
        names: names of datasets or of folders in ``DRAWN``; others are ignored.
        workers: number of processes; more than one needs a guarded main module.

    Raises:
        DatasetError: a dataset has another version, or its source is absent.
    """
    folders = (DATASETS[name].drawn if name in DATASETS else DRAWN.get(name) for name in names)
    for folder in dict.fromkeys(folders):
        if folder is not None:
            folder.ensure(datasets_root(root), workers)


def files_of(name: str, root: Root = None) -> list[str]:
    """The paths of the files and folders of a dataset, or [] for an unknown name."""
    spec, root = _get(name), datasets_root(root)
    return [spec.locate(root, path) for path in spec.paths()] if spec else []


def missing(name: str, root: Root = None) -> str | None:
    """The first absent path of a dataset, or None. Reads no annotations.

    A synthetic dataset needs only its source. An unknown name needs nothing.
    """
    spec = _get(name)
    return spec.missing(datasets_root(root)) if spec else None


def shortfall(name: str, root: Root = None) -> str | None:
    """Describe how the number of images differs from the published number, or return None.

    Reads no annotations. Also returns None for a dataset that is absent or takes long to count.
    """
    spec = DATASETS.get(name)
    if spec is None or spec.published is None or missing(name, root):
        return None
    count = spec.count(datasets_root(root))
    if count in (None, spec.published):
        return None
    return f"{name} has {count:,} images, but the published set has {spec.published:,}"


def check_dataset(name: str, root: Root = None, workers: int = 1) -> Report:
    """Read every image and annotation of a dataset for any task.

    A synthetic dataset is drawn if it is absent.

    Args:
        workers: number of processes; more than one needs a guarded main module.

    Raises:
        UnknownDataset: no dataset has this name. The message names similar ones.
    """
    spec = _find(name)
    try:
        ensure_made([name], root, workers)
        report = spec.check(datasets_root(root), workers)
    except DatasetError as error:
        return Report(name, spec.unit, faults=[str(error)], published=spec.published)
    if not report.images and not report.faults:
        report.faults.append(f"{name}: {NO_IMAGE}")
    return report


def scan_dataset(name: str, root: Root = None) -> tuple[Metadata, Scan]:
    """The metadata and the records of a detection dataset; see ``DetectionSpec.scan_chosen``.

    Raises:
        UnknownDataset: no dataset has this name. The message names similar ones.
        DatasetError: the dataset as a whole cannot be read, or is not drawn yet.
    """
    spec, root = detection_spec(name), datasets_root(root)
    if spec.drawn:
        spec.drawn.check_drawn(root)
    return spec.scan_chosen(root)


def load_dataset(name: str, root: Root = None, skip_bad: bool = False) -> Dataset:
    """Read a detection dataset by its name.

    Args:
        name: one of ``dataset_names()``, or a path.
        root: the datasets' folder; None is $DETECTRON2_DATASETS, or ./datasets.
        skip_bad: skip an object with a faulty annotation, or an image whose annotations cannot be
            read, and list it in ``skipped`` instead of raising. Images are opened here only if
            their size is not annotated; ``tools/check_dataset.py`` reads them.

    Raises:
        UnknownDataset, DatasetError.
    """
    metadata, scan = scan_dataset(name, root)
    dataset = Dataset(name, [], metadata)
    for record, faults in scan:
        costly = [fault for fault in faults if fault.costs != "nothing" and not fault.known]
        if costly and not skip_bad:
            raise costly[0]
        dataset.add(record, faults)
    if not dataset.records:
        lost = len(dataset.skipped)
        raise DatasetError(name, f"no image is left after {lost} faults" if lost else NO_IMAGE)
    return dataset


def load_datasets(
    names: Sequence[str],
    root: Root = None,
    skip_bad: bool = False,
    proposal_files: Sequence[str] = (),
) -> Dataset:
    """Read the union of several datasets with the same classes. Its metadata are the first one's.

    The paper trains on such unions: 07+12 is ``("voc_2007_trainval", "voc_2012_trainval")``, and
    07++12 adds ``voc_2007_test``.

    Args:
        proposal_files: one file of precomputed proposals per dataset; the records then carry them.

    Raises:
        ValueError: the datasets differ in their classes.
        UnknownDataset, DatasetError.
    """
    return union([load_dataset(name, root, skip_bad) for name in names], proposal_files)


def union(parts: Sequence[Dataset], proposal_files: Sequence[str] = ()) -> Dataset:
    """The union of several datasets, as :func:`load_datasets` returns it."""
    first = parts[0]
    for part in parts[1:]:
        classes, others = first.metadata.classes, part.metadata.classes
        if classes != others:
            raise ValueError(
                f"{first.name} and {part.name} cannot be combined, because their classes differ "
                f"({difference(classes, first.name, others, part.name)}): give datasets of your own "
                "the same classes in one order with ?classes=A,B"
            )
    for part, file in zip(parts, proposal_files):
        part.records = proposals.attach(part.records, file)
    return Dataset(
        "+".join(part.name for part in parts),
        [record for part in parts for record in part.records],
        first.metadata,
        [line for part in parts for line in part.skipped],
        sum((part.counts for part in parts), Counter()),
    )
