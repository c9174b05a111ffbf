"""Draw the paper's figures from the output folders of runs, as .png and .svg.

    resnet-det plot errors output/cifar_plain20 output/cifar_plain56 --output fig1
    resnet-det plot errors output/cifar_plain20 --beside output/cifar_resnet20 --output fig6
    resnet-det plot responses output/cifar_plain20 output/cifar_resnet20 --output fig7

errors draws training error (thin, dashed) and test error (bold) over iterations, from runs of
`resnet-det pretrain`, which need not be finished. responses draws the standard deviations of the
layers' responses on the test set, from finished runs.
"""

import argparse
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..engines import classifier
from ..evaluation import figures
from ..training import read_metrics
from . import cli


def parse(argv: cli.Words = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("figure", choices=("errors", "responses"), help="the figure to draw")
    add("runs", nargs="+", metavar="FOLDER", help="output folders of runs")
    add(
        "--beside",
        nargs="+",
        action="append",
        default=[],
        metavar="FOLDER",
        help="for errors: runs of a further panel; may be given several times",
    )
    add("--top", type=float, metavar="PERCENT", help="for errors: upper end of the error axis")
    add("--output", required=True, metavar="PATH", help="path of the figure, without a suffix")
    args = parser.parse_args(argv)
    if args.figure == "responses" and (args.beside or args.top):
        parser.error("--beside and --top are for errors")
    return args


def labelled(runs: Sequence[str]) -> dict[str, Path]:
    """Label -> folder. The label is the folder's name, or its path if the name occurs twice."""
    names = [Path(os.path.abspath(run)).name for run in runs]  # "." has none itself
    return {run if names.count(name) > 1 else name: Path(run) for run, name in zip(runs, names)}


def curves(runs: Sequence[str]) -> dict[str, Iterable[dict[str, Any]]]:
    """Label -> the lines of the run's metrics.json.

    Raises:
        ValueError: a folder has no metrics.json.
    """
    for folder in map(Path, runs):
        if not (folder / "metrics.json").is_file():
            raise ValueError(f"{folder}: holds no metrics.json: give the output folder of a run")
    return {label: read_metrics(run / "metrics.json") for label, run in labelled(runs).items()}


def main(argv: cli.Words = None) -> None:
    args = parse(argv)
    if args.figure == "responses":
        nets = {k: classifier.layer_responses(folder) for k, folder in labelled(args.runs).items()}
        path = figures.responses(nets, args.output)
    else:
        panels = [curves(runs) for runs in (args.runs, *args.beside)]
        titles = map(str, range(1, len(panels) + 1)) if args.beside else [""]
        path = figures.error_curves(dict(zip(titles, panels)), args.output, args.top)
    print(f"wrote {path} and {path.with_suffix('.svg')}")


if __name__ == "__main__":
    cli.run(main)
