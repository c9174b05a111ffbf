"""Run a table of the paper, cell by cell, and write it beside the paper's numbers.

    python tools/reproduce.py table6 --dry-run
    python tools/reproduce.py table6 --seeds 1 2 3 4 5 --jobs 4
    python tools/reproduce.py table6 --cells resnet20 plain20 --fraction 1/32

The same command again goes on where it stopped, and leaves alone what is finished. Cells that were
not run say so in the table.
"""

import argparse
import signal
import sys

import torch

from resnet_det.reproduce import cost, planning, publish
from resnet_det.reproduce.paper import TABLES
from resnet_det.reproduce.runner import Runner


def parse(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--cells", nargs="+", metavar="CELL", help="default: the whole table")
    parser.add_argument(
        "--seeds", nargs="+", type=int, metavar="SEED", help="default: 1 (miniature: 1 2 3)"
    )
    parser.add_argument(
        "--fraction", default="1", help="of each schedule, such as 1/32; the table says so"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="cells at a time")
    parser.add_argument(
        "--dry-run", action="store_true", help="predict the cost from a few measured steps"
    )
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        help="default: output/<table>[_<fraction>]; tables that share runs share it: imagenet for "
        "2 to 5, detection for 7 to 11",
    )
    args = parser.parse_args(argv)
    if args.jobs < 1:
        parser.error("--jobs: at least 1")
    return args


def dry_run(plan):
    """Print each row of the table of costs as soon as it is measured."""
    names = [run.folder.name for chain in plan.values() for run in chain]

    def show(name, iterations, time, measured, data):
        row = f"{name:{max(map(len, names))}}", f"{iterations:>10}", f"{time:>18}", measured, data
        print("|", " | ".join(cell.replace("|", "\\|") for cell in row), "|", flush=True)

    show("run", "iterations", "time", "measured", "data")
    print("|---|--:|--:|---|---|", flush=True)
    total = 0.0
    for name, iterations, seconds, remark, data in cost.predict(plan):
        show(name, iterations, publish.as_time(seconds), remark, data)
        total += seconds or 0.0
    print(
        "\nTraining one after another, without waiting for data and without evaluations: "
        f"{publish.as_time(total)} = {total / 3600:.1f} hours of this device "
        f"({publish.facts()}, threads: {torch.get_num_threads()}); on N of its kind the same "
        "device-hours in an Nth of the time, at best. Scaled from steps on random images in float32"
        + (
            "."
            if torch.cuda.is_available()
            else ", by processor time: the least time, with all threads busy in every operation."
        )
    )
    return 0


def main(args):
    table, fraction = TABLES[args.table], planning.parse_fraction(args.fraction)
    suffix = "" if fraction == 1 else f"_{fraction.numerator}-{fraction.denominator}"
    output = args.output or f"output/{table.runs or table.name}{suffix}"
    plan = planning.plan(table, args.seeds or table.seeds, fraction, output)
    chosen = planning.chosen(table, plan, args.cells)
    if args.dry_run:
        return dry_run(chosen)
    runner = Runner(args.jobs)
    failed = runner.all(chosen)
    path = publish.publish(table, plan, fraction, output)
    print(path.read_text())
    print(f"wrote {path} and {path.with_suffix('.html')}")
    for log in failed:
        print(f"failed: {log}: {runner.last_line(log)}", file=sys.stderr)
    return 1 if failed else 0


def _interrupted(*_):
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupted)
    args = parse()
    try:
        sys.exit(main(args))
    except ValueError as error:  # what the user gave is wrong, and the message says what
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        resumes = "" if args.dry_run else "; the same command goes on from the last checkpoints"
        sys.exit(f"interrupted{resumes}")
