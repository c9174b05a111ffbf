"""Read every image and annotation of a dataset and list the faults by file.

    resnet-det check-dataset voc_2007_trainval
    resnet-det check-dataset imagenet_train
    resnet-det check-dataset coco_2017_val --root /data --workers 16

Exit status: 0 no faults (prints counts), 1 faults, 2 wrong usage.
"""

import os

from ..data import UnknownDataset, check_dataset, dataset_names
from . import cli


def main(argv: cli.Words = None) -> int:
    parser = cli.parser(__doc__)
    names = ", ".join(dataset_names(task=None))
    parser.add_argument("name", metavar="NAME", help=f"one of: {names}")
    parser.add_argument(
        "--root",
        metavar="FOLDER",
        help="the datasets' folder (default: $DETECTRON2_DATASETS, or ./datasets)",
    )
    parser.add_argument(
        "--workers",
        type=cli.positive,
        default=os.cpu_count(),
        metavar="N",
        help="number of processes that read images (default: one per core)",
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
    cli.run(main)
