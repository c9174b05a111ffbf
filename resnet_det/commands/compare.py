"""Compare two evaluated runs on the same test set, by COCO's AP.

    resnet-det compare output/a output/b

prints the difference of AP with a 95% interval (paired bootstrap over the images), overall and of
every class, and the images whose F1 score changed most. Each run's detections are read from
inference/<dataset>/detections.json, which every evaluation writes, and the ground truth from the
dataset. The names of a dataset may differ, if its images and objects do not.
"""

import json
from pathlib import Path

from ..data import Dataset, load_dataset
from ..engines.results import DETECTIONS, category_ids
from ..evaluation import coco_ap, comparison
from . import cli


def results(run: str) -> dict[str, Path]:
    """Name of a test set -> folder of the run's results on it.

    Raises:
        ValueError: the run has no results of a detector.
    """
    files = sorted(Path(run).glob("inference/*/results.json"))
    found = {json.loads(file.read_text()).get("dataset"): file.parent for file in files}
    if not found:
        raise ValueError(f"{run}: holds no inference/*/results.json: evaluate the run first")
    return found


def read(name: str, folder: Path) -> Dataset:
    """Read a test set as the run with these results read it."""
    tested = json.loads((folder / "results.json").read_text())
    skip_bad = any(tested.get(what) for what in ("skipped_images", "skipped_objects"))
    return load_dataset(name, skip_bad=skip_bad)


def same(a: Dataset, b: Dataset) -> bool:
    """Whether two datasets have the same classes, images and objects."""
    truths = ({r["image_id"]: r.get("annotations") for r in x.records} for x in (a, b))
    return a.metadata.classes == b.metadata.classes and next(truths) == next(truths)


def pairs(a: dict[str, Path], b: dict[str, Path]) -> list[tuple[str, str]] | None:
    """The names of each test set in two runs; None if the runs have different ones."""
    found = [(name, name) for name in a if name in b]
    rest = {name: read(name, folder) for name, folder in b.items() if name not in a}
    for name in (name for name in a if name not in b):
        dataset = read(name, a[name])
        equal = [other for other in rest if same(dataset, rest[other])]
        if not equal:
            return None
        found.append((name, equal[0]))
        del rest[equal[0]]
    return None if rest else found


def main(argv: cli.Words = None) -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("runs", nargs=2, metavar="FOLDER", help="output folders of runs, A and B")
    args = parser.parse_args(argv)
    a, b = map(results, args.runs)
    names = pairs(a, b)
    if names is None:
        raise ValueError(
            f"the runs were tested on different datasets: {args.runs[0]} on {', '.join(a)};"
            f" {args.runs[1]} on {', '.join(b)}"
        )
    for name, other in names:
        dataset = read(name, a[name])
        found = [
            coco_ap.read_submission(folder / DETECTIONS, dataset.records, category_ids(dataset))
            for folder in (a[name], b[other])
        ]
        title = name if name == other else f"{name}, in B {other}"
        print(f"{title}: A is {args.runs[0]}, B is {args.runs[1]}\n")
        print(comparison.compare(dataset.records, found, dataset.metadata.classes))


if __name__ == "__main__":
    cli.run(main)
