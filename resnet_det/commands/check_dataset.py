"""Read every image and annotation of a dataset and list the faults by file.

    resnet-det check-dataset voc_2007_trainval
    resnet-det check-dataset imagenet_train
    resnet-det check-dataset coco_2017_val --root /data --workers 16
    resnet-det check-dataset "voc:photos?split=train"
    resnet-det check-dataset voc_2007_trainval --fix clean.json

Boxes that extend beyond their image are listed, but are no fault: loading clips them. --fix writes
what is sound as a COCO file, and the list of what is not beside it (clean.faults.txt).

Prints the number of objects of each class or, for a classification dataset, the smallest and the
largest number of images per class. Exit status: 0 no faults, 1 faults, 2 wrong usage.
"""

import logging
import os
import sys
from pathlib import Path
from urllib.parse import quote

from ..data import UnknownDataset, check_dataset, check_names, dataset_names, files_of
from ..data.check import Report
from ..data.detection import coco
from ..files import check_target, write_whole
from . import cli


def main(argv: cli.Words = None) -> int:
    parser = cli.parser(__doc__)
    names = ", ".join(dataset_names(task=None))
    parser.add_argument("name", metavar="NAME", help=f"a path, or one of: {names}")
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
    parser.add_argument(
        "--fix",
        metavar="OUT.json",
        help="COCO file to write what is sound to; OUT.faults.txt lists the rest",
    )
    args = parser.parse_args(argv)
    logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
    try:
        if args.fix:
            _check_fix(args.fix, args.name, args.root)
        report = check_dataset(args.name, args.root, args.workers)
    except UnknownDataset as error:
        parser.error(str(error))
    for line in report.lines():
        print(line)
    if args.fix:
        _fix(report, args.fix)
    return 1 if report.faults else 0


def _check_fix(path: str, name: str, root: str | None) -> None:
    """Check that --fix can write its two files. Reading the dataset may take hours, so this comes
    first.

    Raises:
        UnknownDataset: the dataset has no boxes, or is unknown.
        ValueError: the path is not that of a JSON file, or is a file of a known dataset.
    """
    check_names([name])
    if Path(path).suffix != ".json":
        raise ValueError(f"--fix: {path}: name a file that ends in .json")
    for target in (path, _faults_file(path)):
        check_target(target)
    for dataset in (name, *dataset_names(task=None)) if os.path.exists(path) else ():
        files = filter(os.path.exists, files_of(dataset, root))
        if any(os.path.samefile(path, file) for file in files):
            raise ValueError(f"--fix: {path}: is a file of {dataset}: name another file")


def _faults_file(path: str) -> Path:
    return Path(path).with_suffix(".faults.txt")


def _fix(report: Report, path: str) -> None:
    """Write the sound part of a checked dataset, and the list of the rest."""
    if report.sound is None or not report.sound.records:
        raise ValueError(f"--fix: {report.name} has no sound detection images to write")
    folder = coco.write(path, report.sound)
    address = f"coco:{quote(path)}?images={quote(str(folder))}"
    print(f"wrote {path}: {len(report.sound.records)} images; as a dataset, its name is {address}")
    rest, lines = _faults_file(path), [*report.faults, *report.known]
    write_whole(rest, "".join(f"{line}\n" for line in lines))
    print(f"wrote {rest}: {len(lines)} lines, what was left out")


if __name__ == "__main__":
    cli.run(main)
