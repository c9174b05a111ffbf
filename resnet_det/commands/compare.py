"""Compare two evaluated runs on the same test set, by COCO's AP.

    resnet-det compare output/a output/b

prints the difference of AP with a 95% interval (paired bootstrap over the images), the AP of every
class, and the images whose F1 score changed most. Each run's detections are read from
inference/<dataset>/detections.json, which every evaluation writes, and the ground truth from the
dataset.
"""

import json
from pathlib import Path

from ..data import load_dataset
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


def main(argv: cli.Words = None) -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("runs", nargs=2, metavar="FOLDER", help="output folders of runs, A and B")
    args = parser.parse_args(argv)
    a, b = map(results, args.runs)
    if a.keys() != b.keys():
        raise ValueError(
            f"the runs were tested on different datasets: {args.runs[0]} on {', '.join(a)};"
            f" {args.runs[1]} on {', '.join(b)}"
        )
    for name in a:
        tested = json.loads((a[name] / "results.json").read_text())
        skip_bad = any(tested.get(what) for what in ("skipped_images", "skipped_objects"))
        dataset = load_dataset(name, skip_bad=skip_bad)  # as the run read it
        found = [
            coco_ap.read_submission(each[name] / DETECTIONS, dataset.records, category_ids(dataset))
            for each in (a, b)
        ]
        print(f"{name}: A is {args.runs[0]}, B is {args.runs[1]}\n")
        print(comparison.compare(dataset.records, found, dataset.metadata.classes))


if __name__ == "__main__":
    cli.run(main)
