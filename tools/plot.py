#!/usr/bin/env python3
"""Draw the paper's figures from the output folders of runs, as .png and .svg.

    python tools/plot.py errors output/cifar_plain20 output/cifar_plain56 --output fig1
    python tools/plot.py errors output/cifar_plain20 --beside output/cifar_resnet20 --output fig6
    python tools/plot.py responses output/cifar_plain20 output/cifar_resnet20 --output fig7

errors: training (thin, dashed) and test error (bold) over iterations, of any runs of
tools/pretrain.py, finished or not. responses: standard deviations of the layers' responses on the
test set, of finished runs.
"""

import argparse
import sys
from pathlib import Path

from resnet_det.engines import classifier
from resnet_det.evaluation import figures
from resnet_det.training import read_metrics


def parse(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figure", choices=("errors", "responses"))
    parser.add_argument("runs", nargs="+", metavar="FOLDER")
    parser.add_argument(
        "--beside", nargs="+", action="append", default=[], metavar="FOLDER",
        help="errors: runs of one more panel",
    )  # fmt: skip
    parser.add_argument("--top", type=float, help="errors: end of the error axis in per cent")
    parser.add_argument("--output", required=True, metavar="PATH", help="without its ending")
    args = parser.parse_args(argv)
    if args.figure == "responses" and (args.beside or args.top):
        parser.error("--beside and --top are for errors")
    return args


def labelled(runs):
    """Label -> folder: its name, or its path where another has the same name."""
    names = [Path(run).name for run in runs]
    return {run if names.count(name) > 1 else name: Path(run) for run, name in zip(runs, names)}


def lines(folder):
    """Raises ValueError where the folder is none of a run."""
    if not (folder / "metrics.json").is_file():
        raise ValueError(f"{folder}: holds no metrics.json: give the output folder of a run")
    return read_metrics(folder / "metrics.json")


def main(args):
    if args.figure == "responses":
        nets = {k: classifier.layer_responses(folder) for k, folder in labelled(args.runs).items()}
        return figures.responses(nets, args.output)
    panels = {}
    for runs in (args.runs, *args.beside):
        curves = {label: lines(folder) for label, folder in labelled(runs).items()}
        panels[f"{len(panels) + 1}" if args.beside else ""] = curves
    return figures.error_curves(panels, args.output, args.top)


if __name__ == "__main__":
    try:
        path = main(parse())
    except ValueError as error:  # what the user gave is wrong, and the message says what
        sys.exit(f"error: {error}")
    print(f"wrote {path} and {path.with_suffix('.svg')}")
