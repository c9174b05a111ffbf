#!/usr/bin/env python3
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

from resnet_det.engines import cost, reproduce
from resnet_det.engines.paper import TABLES
from resnet_det.evaluation.tables import markdown_table


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
    parser.add_argument("--dry-run", action="store_true", help="measure a few iterations only")
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


def main(args):
    table, fraction = TABLES[args.table], reproduce.parse_fraction(args.fraction)
    suffix = "" if fraction == 1 else f"_{fraction.numerator}-{fraction.denominator}"
    output = args.output or f"output/{table.runs or table.name}{suffix}"
    plan = reproduce.plan(table, args.seeds or table.seeds, fraction, output)
    chosen = reproduce.chosen(table, plan, args.cells)
    runner = reproduce.Runner(args.jobs)
    if args.dry_run:
        rows = cost.predict(chosen, runner)
        header = ["run", "iterations", "time", "measured", "data"]
        total = sum(t for _, _, t, *_ in rows if t is not None)
        rows = [[n, i, reproduce.as_time(t), *rest] for n, i, t, *rest in rows]
        print(markdown_table(rows, header))
        print(
            f"Training one after another, without evaluations: {reproduce.as_time(total)} = "
            f"{total / 3600:.1f} hours of this device ({reproduce.facts()}); on N of its kind the "
            "same device-hours in an Nth of the time, at best."
        )
        return 0
    failed = runner.all(chosen)
    path = reproduce.publish(table, plan, fraction, output)
    print(path.read_text())
    print(f"wrote {path} and {path.with_suffix('.html')}")
    for log in failed:
        print(f"failed: {log}: {reproduce.last_line(log)}", file=sys.stderr)
    return 1 if failed else 0


def _interrupted(*_):
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        sys.exit(main(parse()))
    except ValueError as error:  # what the user gave is wrong, and the message says what
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from the last checkpoints")
