#!/usr/bin/env python3
"""Read every image and annotation of a dataset and list what is wrong, by file.

    python tools/check_dataset.py voc_2007_trainval
    python tools/check_dataset.py coco_2017_val --root /data --workers 16

Exit status: 0 sound (prints counts), 1 something is wrong, 2 wrong usage.
"""

import argparse
import os
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from tqdm import tqdm

from resnet_det.data import DatasetError, ImageError, UnknownDataset, dataset_names, scan_dataset
from resnet_det.data.pixels import image_header, read_image


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
    """``(faults, known, counts)`` of a dataset: lists of lines, and a Counter of what was read.

    ``known`` are published faults of an official archive, which loading leaves out by itself.
    ``counts`` has "images", "objects", and every class by its name.
    """
    faults, known, counts = [], [], Counter()
    try:
        metadata, scan = scan_dataset(name, root)
        records = []
        for record, found in tqdm(scan, desc="annotations", unit=" images", disable=None):
            for fault in found:
                (known if fault.known else faults).append(str(fault))
            if record is not None:
                records.append(record)
    except DatasetError as error:
        return [*faults, str(error)], known, counts

    bar = {"total": len(records), "desc": "images", "unit": " images", "disable": None}
    if workers <= 1:
        results = [image_faults(record) for record in tqdm(records, **bar)]
    else:
        # Spawned: forking is unsafe in a process that may hold threads.
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            results = list(tqdm(pool.map(image_faults, records, chunksize=16), **bar))
    faults += [line for lines in results for line in lines]

    counts["images"] = len(records)
    for record in records:
        for annotation in record.get("annotations", ()):
            counts["objects"] += 1
            counts[metadata.classes[annotation["category_id"]]] += 1
            counts["difficult"] += annotation.get("difficult", 0)
            counts["crowd"] += annotation["iscrowd"]
    return faults, known, counts


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", metavar="NAME", help=f"one of: {', '.join(dataset_names())}")
    parser.add_argument("--root", help="folder of the datasets ($DETECTRON2_DATASETS, ./datasets)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    args = parser.parse_args(argv)
    try:
        faults, known, counts = check(args.name, args.root, args.workers)
    except UnknownDataset as error:
        parser.error(str(error))

    for line in faults:
        print(line)
    for line in known:
        print(f"{line} (known in the official file; left out when loaded)")
    images, objects = counts.pop("images", 0), counts.pop("objects", 0)
    print(f"{args.name}: {images} images, {objects} objects")
    if faults:
        print(f"{len(faults)} faults")
        return 1
    for name, count in sorted(counts.items()):
        if count:
            print(f"  {name:15} {count:7}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
