#!/usr/bin/env python3
"""Read every image and annotation of a dataset and list what is wrong, by file.

    python tools/check_dataset.py voc_2007_trainval
    python tools/check_dataset.py imagenet_train
    python tools/check_dataset.py coco_2017_val --root /data --workers 16

Exit status: 0 sound (prints counts), 1 something is wrong, 2 wrong usage.
"""

import argparse
import os
import sys

from resnet_det.data import UnknownDataset, check_dataset, dataset_names


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(dataset_names(task=None))
    parser.add_argument("name", metavar="NAME", help=f"one of: {names}")
    parser.add_argument(
        "--root", help="the datasets' folder (default: $DETECTRON2_DATASETS, or ./datasets)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count(),
        help="number of processes (default: all cores)",
    )
    args = parser.parse_args(argv)
    try:
        report = check_dataset(args.name, args.root, args.workers)
    except UnknownDataset as error:
        parser.error(str(error))
    for line in report.lines():
        print(line)
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
