"""Download PASCAL VOC, COCO 2014 or CIFAR, or draw the synthetic datasets scenes and miniature.

    resnet-det get-data voc
    resnet-det get-data scenes
    resnet-det get-data coco cifar10 --root /data/detection

The layout of each dataset is described in datasets/README.md. Interrupted downloads are resumed and
published checksums are verified. A dataset that is there already is left as it is. An archive is
removed once it is unpacked, even if you have put it there yourself. Without a network connection,
the error message states what to download and where to put it. VOC 2012's test images are available
only from the evaluation server, after registration.
"""

import os
import sys

from ..data import DRAWN, datasets_root, ensure_made
from ..download import SETS, get
from . import cli


def main(argv: cli.Words = None) -> int:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "sets",
        nargs="+",
        choices=(*SETS, *DRAWN),
        metavar="SET",
        help=f"any of {', '.join((*SETS, *DRAWN))}",
    )
    parser.add_argument(
        "--root",
        metavar="FOLDER",
        help="folder of the datasets (default: $DETECTRON2_DATASETS, or ./datasets)",
    )
    args = parser.parse_args(argv)
    root = datasets_root(args.root)
    faults = []
    for archive in (archive for name in args.sets for archive in SETS.get(name, ())):
        try:
            done = get(archive, root)
            print(f"{archive.name}: {'unpacked' if done else 'was there already'} in {root}")
        except ValueError as error:
            faults.append(error)
            print(f"error: {error}", file=sys.stderr)
    # After the downloads, because miniature is made of CIFAR-10.
    for name in (name for name in args.sets if name in DRAWN):
        try:
            ensure_made([name], root, workers=min(os.cpu_count() or 1, 4))
            print(f"{name}: drawn in {root}, or there already")
        except ValueError as error:
            faults.append(error)
            print(f"error: {error}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    cli.run(main)
