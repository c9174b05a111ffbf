"""Read every image and annotation of a dataset and list what is wrong, by file.

    resnet-det check-dataset voc_2007_trainval
    resnet-det check-dataset imagenet_train
    resnet-det check-dataset coco_2017_val --root /data --workers 16

Exit status: 0 sound (prints counts), 1 something is wrong, 2 wrong usage.
"""

import difflib
import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

from tqdm import tqdm

from .. import data
from ..data import DatasetError, ImageError, scan_dataset
from ..data.classification import cifar10, shards, small_images
from ..data.classification.image_folder import (
    FOLDERS,
    IMAGENET,
    IMAGENET_CLASSES,
    list_folder,
    no_images,
)
from ..data.pixels import image_header, read_image
from . import cli

NAMES = (*data.dataset_names(), *small_images.dataset_names())


def each(function, items, workers, desc):
    """The results of a function of each item, by several processes."""
    bar = {"total": len(items), "desc": desc, "disable": None}
    if workers <= 1:
        return list(tqdm(map(function, items), **bar))
    # Spawned: forking is unsafe in a process that may hold threads.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        chunk = max(1, min(16, len(items) // workers))
        return list(tqdm(pool.map(function, items, chunksize=chunk), **bar))


def image_faults(record):
    """What is wrong with the image of one record, as a list of lines."""
    path = record["file_name"]
    try:
        read_image(path)
        height, width, orientation = image_header(path)
    except ImageError as error:
        return [str(error)]
    lines = []
    if orientation != 1:
        lines.append(
            f"{path}: EXIF orientation {orientation}: it is read upright, and its boxes may not be; "
            "store it upright"
        )
    if "height" in record and (record["height"], record["width"]) != (height, width):
        said = f"{record['width']} x {record['height']}"
        lines.append(f"{path}: is {width} x {height} pixels, its annotation says {said}")
    return lines


def check(name, root=None, workers=1):
    """``(faults, known, counts)`` of a detection set: lists of lines, and a Counter of what was read.

    ``known`` are published faults of an official archive, which loading leaves out by itself.
    ``counts`` has "images", "objects", and every class by its name.
    """
    faults, known, counts = [], [], Counter()
    try:
        data.ensure_made([name], root, workers)
        metadata, scan = scan_dataset(name, root)
        records = []
        for record, found in tqdm(scan, desc="annotations", unit=" images", disable=None):
            for fault in found:
                (known if fault.known else faults).append(str(fault))
            if record is not None:
                records.append(record)
    except DatasetError as error:
        return [*faults, str(error)], known, counts

    results = each(image_faults, records, workers, "images")
    faults += [line for lines in results for line in lines]

    counts["images"] = len(records)
    for record in records:
        for annotation in record.get("annotations", ()):
            counts["objects"] += 1
            counts[metadata.classes[annotation["category_id"]]] += 1
            counts["difficult"] += annotation.get("difficult", 0)
            counts["crowd"] += annotation["iscrowd"]
    return faults, known, counts


def decoding_fault(image):
    """Why an image, a path or a shard's, does not decode, as a list of at most one line."""
    try:
        read_image(image)
    except ImageError as error:
        return [str(error)]
    return []


def check_shard(url, classes):
    """(lines of faults, Counter of the images of each label)."""
    faults, counts = [], Counter()
    try:
        for image, label in shards.read_shard(url):
            counts[label] += 1
            faults += decoding_fault(image)
            if label >= classes:
                faults.append(f"{image.name}: its .cls is {label}: {classes} classes")
    except DatasetError as error:  # the rest of this shard was not read
        faults.append(str(error))
    return faults, counts


def check_classification(name, root=None, workers=1):
    """``(faults, [], counts)`` as :func:`check`; ``counts`` has "images", "classes", and the "least"
    and the "most" images of a class."""
    root = data.datasets_root(root)
    try:
        if name in cifar10.SPLITS:
            where = root
            faults, counts = [], Counter(cifar10.read(name, root)[1].tolist())
            classes = cifar10.CLASSES
        elif name in shards.SPLITS:
            where = os.path.join(root, shards.FOLDER)
            urls, classes = shards.find(name, root)
            parts = each(partial(check_shard, classes=len(classes)), urls, workers, "shards")
            faults = [line for lines, _ in parts for line in lines]
            counts = sum((count for _, count in parts), Counter())
        else:
            data.ensure_made([name], root, workers)
            where = os.path.join(root, FOLDERS[name])
            listed = list_folder(where)
            classes = [os.path.basename(path) for path, _ in listed]
            faults = [str(no_images(path)) for path, files in listed if not files]
            files = [file for _, files in listed for file in files]
            faults += [x for lines in each(decoding_fault, files, workers, "images") for x in lines]
            counts = Counter({label: len(files) for label, (_, files) in enumerate(listed)})
    except DatasetError as error:
        return [str(error)], [], Counter()
    images = counts.total()
    published = IMAGENET.get(name.removesuffix("_shards"))
    if published and (images, len(classes)) != (published, IMAGENET_CLASSES):
        faults.append(
            f"{where}: holds {images:,} images of {len(classes):,} classes, ImageNet's "
            f"{published:,} of {IMAGENET_CLASSES:,}"
        )
    for label, kind in enumerate(classes):
        if name in ("cifar10_train", "cifar10_test") and counts[label] != images / len(classes):
            faults.append(f"{where}: CIFAR-10: {counts[label]} images of {images} are of {kind}")
        elif name in shards.SPLITS and not counts[label]:
            faults.append(f"{where}: {kind}: its label, {label}, is on no image")
    of_each = [counts[label] for label in range(len(classes))]
    return (
        faults,
        [],
        Counter(images=images, classes=len(classes), least=min(of_each), most=max(of_each)),
    )


def main(argv: cli.Words = None) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument("name", metavar="NAME", help=f"one of: {', '.join(NAMES)}")
    parser.add_argument(
        "--root",
        metavar="FOLDER",
        help="folder of the datasets (default: $DETECTRON2_DATASETS, or ./datasets)",
    )
    parser.add_argument(
        "--workers",
        type=cli.positive,
        default=os.cpu_count(),
        metavar="N",
        help="processes that read images (default: one per core)",
    )
    args = parser.parse_args(argv)
    if args.name not in NAMES:
        near = difflib.get_close_matches(args.name, NAMES, n=3, cutoff=0.5) or NAMES
        parser.error(f"unknown dataset {args.name!r}; did you mean {' or '.join(near)}?")
    whole = args.name in data.dataset_names()
    reader = check if whole else check_classification
    faults, known, counts = reader(args.name, args.root, args.workers)

    for line in faults:
        print(line)
    for line in known:
        print(f"{line} (known in the official file; left out when loaded)")
    what = "objects" if whole else "classes"
    images, others = counts.pop("images", 0), counts.pop(what, 0)
    published = data.PUBLISHED.get(args.name, images)
    note = f" (the published set: {published} images)" if images != published else ""
    print(f"{args.name}: {images} images, {others} {what}{note}")
    if faults:
        print(f"{len(faults)} fault{'s' * (len(faults) > 1)}")
        return 1
    if not whole:
        print(f"  {counts['least']} to {counts['most']} images a class")
        return 0
    for name, count in sorted(counts.items()):
        if count:
            print(f"  {name:15} {count:7}")
    return 0


if __name__ == "__main__":
    cli.run(main)
