#!/usr/bin/env python3
"""Download PASCAL VOC, COCO 2014 or CIFAR-10, or draw the scenes or the miniature.

    python tools/get_data.py voc
    python tools/get_data.py scenes
    python tools/get_data.py coco cifar10 --root /data/detection

The layout is that of datasets/README.md. Resumes an interrupted download, verifies published
checksums, and keeps what exists. Without a network it says what to download and where to put it.
VOC 2012's test images come from the evaluation server, after registering.
"""

import argparse
import os
import sys

from resnet_det.data import DRAWN, datasets_root, ensure_made
from resnet_det.download import SETS, get


def parse(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", nargs="+", choices=(*SETS, *DRAWN))
    parser.add_argument(
        "--root", help="the datasets' folder (default: $DETECTRON2_DATASETS, or ./datasets)"
    )
    return parser.parse_args(argv)


def main(args):
    root = datasets_root(args.root)
    faults = []
    for name in (name for name in args.sets if name in DRAWN):
        try:
            ensure_made([name], root, workers=min(os.cpu_count() or 1, 4))
            print(f"{name}: drawn in {root}, or there already")
        except ValueError as error:
            faults.append(error)
            print(f"error: {error}", file=sys.stderr)
    for archive in (archive for name in args.sets for archive in SETS.get(name, ())):
        try:
            done = get(archive, root)
            print(f"{archive.name}: {'unpacked' if done else 'was there already'} in {root}")
        except ValueError as error:
            faults.append(error)
            print(f"error: {error}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(parse()))
