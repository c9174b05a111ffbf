"""Compare two evaluated runs on the same test set, by COCO's AP.

    resnet-det compare output/a output/b

prints the difference of AP with a 95% interval (paired bootstrap over the images), overall and of
every class, and the images whose F1 score changed most. Each run's detections are read from
inference/<dataset>/detections.json, which every evaluation writes, and the ground truth from the
dataset. The names of a dataset may differ, if its images and objects do not.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from ..data import load_dataset
from ..engines.results import DETECTIONS, category_ids, digest
from ..evaluation import coco_ap, comparison
from . import cli


@dataclass(frozen=True)
class Results:
    """What a run found in a test set.

    Attributes:
        folder: holds ``results.json`` and ``detections.json``.
        digest: of the test set at that time, see :func:`.results.digest`.
        skip_bad: whether the run skipped unusable images or objects.
    """

    folder: Path
    digest: str
    skip_bad: bool


def results(run: str) -> dict[str, Results]:
    """A run's results by the name of the test set.

    Raises:
        ValueError: the run has no results of a detector, or an older version wrote them.
    """
    found = {}
    for file in sorted(Path(run).glob("inference/*/results.json")):
        content = json.loads(file.read_text())
        if "dataset" not in content:  # a classifier's
            continue
        if "digest" not in content:
            raise ValueError(
                f"{file}: does not say which images and objects it was measured on: evaluate the "
                "run again (--eval-only)"
            )
        skip_bad = any(content.get(what) for what in ("skipped_images", "skipped_objects"))
        found[content["dataset"]] = Results(file.parent, content["digest"], skip_bad)
    if not found:
        raise ValueError(
            f"{run}: holds no inference/*/results.json of a detector: evaluate the run first"
        )
    return found


def pairs(a: dict[str, Results], b: dict[str, Results]) -> list[tuple[str, str]] | None:
    """The names of each test set in two runs; None if the runs have different ones."""
    found = [(name, name) for name in a if name in b]
    rest = {name: of.digest for name, of in b.items() if name not in a}
    for name in (name for name in a if name not in b):
        other = next((x for x in rest if rest[x] == a[name].digest), None)
        if other is None:
            return None
        found.append((name, other))
        del rest[other]
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
        dataset = load_dataset(name, skip_bad=a[name].skip_bad)
        for run, tested in zip(args.runs, (a[name], b[other])):
            if tested.digest != digest(dataset):
                raise ValueError(
                    f"{name} has changed since {run} was evaluated on it: evaluate it again "
                    "(--eval-only)"
                )
        found = [
            coco_ap.read_submission(
                tested.folder / DETECTIONS, dataset.records, category_ids(dataset)
            )
            for tested in (a[name], b[other])
        ]
        title = name if name == other else f"{name}, in B {other}"
        print(f"{title}: A is {args.runs[0]}, B is {args.runs[1]}\n")
        print(comparison.compare(dataset.records, found, dataset.metadata.classes))


if __name__ == "__main__":
    cli.run(main)
