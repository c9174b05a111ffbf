"""The datasets by name: Detectron2's names and folder layout, and the embedded scenes."""

import os
from dataclasses import dataclass, field

from ..hints import did_you_mean
from ..records import DatasetError
from .detection import coco, proposals, voc
from .synthetic import folder, miniature, scenes

# name -> (folder, split, year); voc_2012_test has no public annotations.
_VOC = {
    f"voc_{year}_{split}": (f"VOC{year}", split, year)
    for year in (2007, 2012)
    for split in ("trainval", "train", "val", "test")
}
_VOC["scenes_voc_trainval"] = ("scenes/voc", "trainval", 2007)
_VOC["scenes_voc_test"] = ("scenes/voc", "test", 2007)
_VOC["miniature_voc_trainval"] = ("miniature/voc", "trainval", 2007)
_VOC["miniature_voc_test"] = ("miniature/voc", "test", 2007)

# name -> (folder of the images, json)
_COCO = {
    "coco_2014_train": ("coco/train2014", "coco/annotations/instances_train2014.json"),
    "coco_2014_val": ("coco/val2014", "coco/annotations/instances_val2014.json"),
    "coco_2014_minival": ("coco/val2014", "coco/annotations/instances_minival2014.json"),
    "coco_2014_valminusminival": (
        "coco/val2014",
        "coco/annotations/instances_valminusminival2014.json",
    ),
    "coco_2017_train": ("coco/train2017", "coco/annotations/instances_train2017.json"),
    "coco_2017_val": ("coco/val2017", "coco/annotations/instances_val2017.json"),
    "coco_2017_val_100": ("coco/val2017", "coco/annotations/instances_val2017_100.json"),
    "coco_2017_test": ("coco/test2017", "coco/annotations/image_info_test2017.json"),
    "coco_2017_test-dev": ("coco/test2017", "coco/annotations/image_info_test-dev2017.json"),
    "scenes_coco_train": ("scenes/voc/JPEGImages", "scenes/coco/instances_train.json"),
    "scenes_coco_test": ("scenes/voc/JPEGImages", "scenes/coco/instances_test.json"),
}
# Images of the published sets; VOC's test of 2012 without annotations.
PUBLISHED = {
    "voc_2007_trainval": 5011,
    "voc_2007_test": 4952,
    "voc_2012_trainval": 11540,
    "voc_2012_test": 10991,
    "coco_2014_train": 82783,
    "coco_2014_val": 40504,
    "coco_2017_train": 118287,
    "coco_2017_val": 5000,
}
DRAWN = ("scenes", "miniature")  # the folders of the sets that programs draw
_CIFAR10 = ("batches-py", "batches-bin", "python.tar.gz", "binary.tar.gz")  # any one will do


@dataclass(frozen=True)
class Metadata:
    """What a dataset is. ``kind`` is "voc" or "coco"; the fields of the other kind stay None.

    annotated: False for a test set whose annotations are not public.
    category_ids: original COCO id of each contiguous class index.
    """

    name: str
    kind: str
    classes: tuple
    annotated: bool = True
    dirname: str | None = None
    split: str | None = None
    year: int | None = None
    json_file: str | None = None
    image_root: str | None = None
    category_ids: tuple | None = None


@dataclass
class Dataset:
    """Records in Detectron2's standard form, and a line for everything that was left out."""

    name: str
    records: list
    metadata: Metadata
    skipped: list = field(default_factory=list)


def dataset_names():
    """Every name that ``load_dataset`` knows."""
    return [*_VOC, *_COCO]


def datasets_root(root=None):
    """``root``, else $DETECTRON2_DATASETS, else "datasets", as Detectron2."""
    return os.path.expanduser(root or os.environ.get("DETECTRON2_DATASETS") or "datasets")


def check_names(names):
    """Raises UnknownDataset, with the nearest names, where :func:`dataset_names` lacks one."""
    for name in names:
        if name not in _VOC and name not in _COCO:
            hint = did_you_mean(name, dataset_names(), list_all=True)
            raise UnknownDataset(f"unknown dataset {name!r}{hint}")


def _drawn_by(name):
    """The module that draws a dataset, or None for one that is fetched."""
    return {"scenes": scenes, "miniature": miniature}.get(name.partition("_")[0])


def ensure_made(names, root=None, workers=1):
    """Draw the sets among ``names`` that programs draw, where they are absent.

    Args:
        workers: processes to draw with; more than one needs a guarded main module.

    Raises:
        DatasetError: a set of another version of its drawing, or what it is made of is absent.
    """
    for module in filter(None, dict.fromkeys(map(_drawn_by, names))):
        module.ensure(datasets_root(root), workers)


def check_made(name, root=None):
    """Raise unless a set that a program draws is there, in this version of its drawing.

    Reading a set never draws it: a foreign project may have asked for its name alone.

    Raises:
        DatasetError: names the command that draws it.
    """
    module, kind = _drawn_by(name), name.partition("_")[0]
    if module is None:
        return
    target = os.path.join(datasets_root(root), kind)
    if not os.path.isdir(target):
        what = f"is absent; {name} needs it: draw it by python tools/get_data.py {kind}"
        raise DatasetError(target, what)
    folder.check_version(target, module.VERSION)


def missing(name, root=None):
    """The first path of a dataset that is absent, or None; a cheap look that reads no annotation.

    Sets that programs make need nothing, or CIFAR-10.
    """
    root = datasets_root(root)
    if name.startswith("scenes_"):
        return None
    if name.startswith(("miniature_", "cifar10_")):
        sources = [f"cifar-10-{x}" for x in _CIFAR10]
        made = ["miniature"] if name.startswith("miniature_") else []
        there = any(os.path.exists(os.path.join(root, path)) for path in made + sources)
        return None if there else os.path.join(root, sources[0])
    paths = ()
    if name.startswith("imagenet_"):
        split, _, shards = name.removeprefix("imagenet_").partition("_")
        paths = ("imagenet_shards",) if shards else (f"imagenet/{split}",)
    if name in _VOC:
        folder, split, _ = _VOC[name]
        paths = f"{folder}/ImageSets/Main/{split}.txt", f"{folder}/JPEGImages"
        paths += () if name == "voc_2012_test" else (f"{folder}/Annotations",)
    elif name in _COCO:
        paths = _COCO[name]
    paths = [os.path.join(root, path) for path in paths]
    return next((path for path in paths if not os.path.exists(path)), None)


def shortfall(name, root=None):
    """What a set that is there lacks of the published one, as a text, or None; a cheap look, which
    counts the lines of VOC's split file or the files of COCO's folder."""
    if name not in PUBLISHED or missing(name, root):
        return None
    if name in _VOC:
        folder, split, _ = _VOC[name]
        with open(os.path.join(datasets_root(root), folder, f"ImageSets/Main/{split}.txt")) as file:
            count = sum(bool(line.strip()) for line in file)
    else:
        files = os.listdir(os.path.join(datasets_root(root), _COCO[name][0]))
        count = sum(file.endswith(".jpg") for file in files)
    if count == PUBLISHED[name]:
        return None
    return f"{name} has {count:,} images, the published set {PUBLISHED[name]:,}"


def scan_dataset(name, root=None):
    """``(metadata, scan)``: ``scan`` yields every ``(record, faults)`` of the dataset.

    For loading and checking alike; see ``voc.scan`` and ``coco.read``.

    Raises:
        UnknownDataset: names the nearest ones.
        DatasetError: the dataset as a whole cannot be read, or is drawn and not there yet.
    """
    root = datasets_root(root)
    check_names([name])
    check_made(name, root)

    if name in _VOC:
        folder, split, year = _VOC[name]
        classes = (_drawn_by(name) or voc).CLASSES
        dirname = os.path.join(root, folder)
        annotated = name != "voc_2012_test"
        metadata = Metadata(
            name, "voc", classes, annotated, dirname=dirname, split=split, year=year
        )
        return metadata, voc.scan(dirname, split, classes, annotated=annotated)

    image_root, json_file = (os.path.join(root, path) for path in _COCO[name])
    classes, category_ids, scan = coco.read(
        json_file,
        image_root,
        official=not name.startswith("scenes_"),
        repeated_ids="minival" in name,
    )
    metadata = Metadata(
        name,
        "coco",
        classes,
        "image_info" not in json_file,
        json_file=json_file,
        image_root=image_root,
        category_ids=category_ids,
    )
    return metadata, scan


class UnknownDataset(ValueError):
    """A name that is not in the catalog."""


def load_dataset(name, root=None, skip_bad=False):
    """Read a dataset by its name.

    Args:
        name: one of ``dataset_names()``.
        root: the folder of the datasets; None is $DETECTRON2_DATASETS, or ./datasets.
        skip_bad: leave out an image with a fault in its annotation, and list it in ``skipped``,
            instead of raising. (Images are not opened here: see ``tools/check_dataset.py``.)

    Raises:
        UnknownDataset, DatasetError.
    """
    metadata, scan = scan_dataset(name, root)
    dataset = Dataset(name, [], metadata)
    for record, faults in scan:
        unknown = [fault for fault in faults if not fault.known]
        if unknown and not skip_bad:
            raise unknown[0]
        dataset.skipped += map(str, faults)
        if not unknown:
            dataset.records.append(record)
    if not dataset.records:
        raise DatasetError(name, f"no image is left after {len(dataset.skipped)} faults")
    return dataset


def load_datasets(names, root=None, skip_bad=False, proposal_files=()):
    """The union of several datasets of the same classes, in order, under the first's metadata.

    With ``proposal_files``, one for each name, the records carry their precomputed proposals.

    The paper trains on such unions: 07+12 is ``("voc_2007_trainval", "voc_2012_trainval")``,
    07++12 also has ``voc_2007_test``.
    """
    parts = [load_dataset(name, root, skip_bad) for name in names]
    first = parts[0]
    for part in parts[1:]:
        if part.metadata.classes != first.metadata.classes:
            raise ValueError(f"{first.name} and {part.name} differ in classes: no union of them")
    for part, file in zip(parts, proposal_files):
        part.records = proposals.attach(part.records, file)
    return Dataset(
        "+".join(names),
        [record for part in parts for record in part.records],
        first.metadata,
        [line for part in parts for line in part.skipped],
    )
