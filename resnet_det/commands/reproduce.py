"""Run a table of the paper, cell by cell, and write the results next to the paper's.

    resnet-det reproduce table7 --dry-run
    resnet-det reproduce table7 --weights trained --dry-run
    resnet-det reproduce table6 --seeds 1 2 3 4 5 --jobs 4
    resnet-det reproduce table6 --cells resnet20 plain20 --fraction 1/32

To continue after an interruption, run the same command again: finished runs are not repeated. The
table lists which cells were not run.
"""

import argparse
import signal
import sys
from typing import NoReturn

import torch

from ..config.defaults import ConfigError
from ..engines.provenance import machine
from ..reproduce import cost, planning, publish
from ..reproduce.paper import TABLES
from ..reproduce.runner import Runner, last_line
from . import cli


def parse(argv: cli.Words = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("table", choices=TABLES, help="a table of the paper; miniature is this project's own")
    add(
        "--weights",
        choices=planning.WEIGHTS,
        help="what detectors start from: published ImageNet weights, which are downloaded (the "
        "default), or classifiers that are trained first, in GPU-weeks",
    )
    add(
        "--cells",
        nargs="+",
        default=[],
        metavar="CELL",
        help="rows to run (default: all but resnet1202 in table6, resnet110 in miniature, and R50, "
        "R34 and R18, which the paper has no numbers of, in table7 and table8)",
    )
    add(
        "--seeds",
        nargs="+",
        type=cli.natural,
        metavar="SEED",
        help="one run per seed (default: 1; miniature: 1 2 3)",
    )
    add(
        "--fraction",
        default="1",
        metavar="F",
        help="shorten each schedule to this fraction, such as 1/32; the table states it",
    )
    add(
        "--jobs",
        type=cli.positive,
        default=1,
        metavar="N",
        help="number of cells to run in parallel",
    )
    add(
        "--num-gpus",
        type=cli.positive,
        default=1,
        metavar="N",
        help="number of processes per training, one per GPU (default: 1); with --jobs, each job has "
        "its own GPUs",
    )
    add(
        "--dry-run",
        action="store_true",
        help="do not run; predict the cost from a few measured steps",
    )
    add(
        "--output",
        metavar="FOLDER",
        help="default: output/<table>[_<fraction>][_trained]; tables that share runs share their folder: "
        "imagenet for 2 to 5, detection for 7 to 11",
    )
    return parser.parse_args(argv)


def dry_run(plan: planning.Plan) -> None:
    """Print a table of costs. Each row is printed as soon as it is measured."""
    width = max(len(run.folder.name) for chain in plan.values() for run in chain)

    def show(name: str, iterations: object, time: str, measured: str, data: str) -> None:
        row = f"{name:{width}}", f"{iterations:>10}", f"{time:>18}", measured, data
        print("|", " | ".join(cell.replace("|", "\\|") for cell in row), "|", flush=True)

    show("run", "iterations", "time", "measured", "data")
    print("|---|--:|--:|---|---|", flush=True)
    total = 0.0
    for name, iterations, seconds, remark, data in cost.predict(plan):
        show(name, iterations, publish.as_time(seconds), remark, data)
        total += seconds or 0.0
    how = (
        "."
        if torch.cuda.is_available()
        else ", by processor time: the least time possible, with all threads busy in every operation."
    )
    print(
        "\nTraining one run after another, without waiting for data and without evaluations: "
        f"{publish.as_time(total)} = {total / 3600:.1f} hours of this device "
        f"({'; '.join(machine().values())}). N such devices need the same "
        f"device-hours, in an Nth of the time at best. Scaled from steps on random images in float32{how}"
    )


def main(argv: cli.Words = None) -> int:
    args = parse(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return run(args)
    except KeyboardInterrupt:
        resumes = "" if args.dry_run else "; the same command continues from the last checkpoints"
        sys.exit(f"interrupted{resumes}")


def run(args: argparse.Namespace) -> int:
    table, fraction = TABLES[args.table], planning.parse_fraction(args.fraction)
    suffix = "" if fraction == 1 else f"_{fraction.numerator}-{fraction.denominator}"
    if args.weights and not planning.starts_published(table):
        raise ConfigError(f"--weights: no run of {table.name} starts from ImageNet weights")
    weights = args.weights or planning.PUBLISHED
    suffix += "_trained" if weights == planning.TRAINED else ""
    output = args.output or f"output/{table.runs or table.name}{suffix}"
    plan = planning.plan(table, args.seeds or table.seeds, fraction, output, weights)
    chosen = planning.chosen(table, plan, args.cells)
    if args.dry_run:
        dry_run(chosen)
        return 0
    # Days of training should not end in a page that cannot be written.
    runs = [run for chain in chosen.values() for run in chain]
    for each in dict.fromkeys([*runs, *(chain[-1] for chain in plan.values())]):
        each.metrics()  # raises if the folder holds a run with another schedule
    failed = Runner(args.jobs, args.num_gpus).run_all(chosen)
    path = publish.publish(table, plan, fraction, output)
    print(path.read_text())
    print(f"wrote {path} and {path.with_suffix('.html')}")
    for log in failed:
        print(f"failed: {log}: {last_line(log)}", file=sys.stderr)
    return 1 if failed else 0


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    cli.run(main)
