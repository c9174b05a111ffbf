"""What the commands share: parser, the options of a training, start and exit."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from fvcore.common.config import CfgNode

from ..engines import ENGINES
from ..training.distributed import launch

Words = Sequence[str] | None  # a command line; None stands for the one of this process


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help begins with a module's docstring, as it is written."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def positive(text: str) -> int:
    """The type of an option that counts something.

    Raises:
        argparse.ArgumentTypeError: not a whole number of at least 1.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number from 1")
    return int(text)


def training_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the options that all trainings take, for :func:`parse_training`."""
    result = parser(doc)
    add = result.add_argument
    add(
        "--config-file",
        required=True,
        metavar="FILE",
        help="a YAML config; one of resnet_det's own, such as quickstart.yaml, is found from any "
        "folder",
    )
    add(
        "--resume",
        action="store_true",
        help="continue from the last checkpoint in OUTPUT_DIR, or begin if there is none",
    )
    add("--eval-only", action="store_true", help="only evaluate MODEL.WEIGHTS")
    add(
        "--num-gpus",
        type=positive,
        default=1,
        metavar="N",
        help="processes on this machine, one per GPU (default: 1)",
    )
    add("--num-machines", type=positive, default=1, metavar="N", help="machines (default: 1)")
    add(
        "--machine-rank", type=int, default=0, metavar="RANK", help="number of this machine, from 0"
    )
    add(
        "--dist-url",
        default="auto",
        metavar="URL",
        help="tcp://HOST:PORT of machine 0; only several machines need it",
    )
    add(
        "overrides",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="config keys and their values, after all options: SOLVER.BASE_LR 0.01",
    )
    return result


def add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--engine",
        default="auto",
        choices=ENGINES,
        help="what trains the detector; auto (the default) is Detectron2 where it is installed, "
        "and the embedded engine, torchvision, elsewhere",
    )


def add_replay(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--replay",
        metavar="FILE",
        help="run only the iteration of a not_finite_<iteration>.pth again",
    )


def parse_training(parser: argparse.ArgumentParser, argv: Words) -> argparse.Namespace:
    """Parse a training's command line; exits with status 2 where it is wrong."""
    args = parser.parse_args(argv)
    if any(word.startswith("--") for word in args.overrides):
        parser.error("options such as --resume go before the KEY VALUE pairs")
    return args


def start(run: Callable[..., Any], args: argparse.Namespace, cfg: CfgNode) -> None:
    """Call ``run(args, cfg)`` in each of the processes that a training's options ask for."""
    launch(
        run,
        args,
        cfg,
        num_gpus=args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
    )


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a command and exit with its status; bad input ends it with one line and status 1."""
    try:
        sys.exit(main())
    except ValueError as error:  # the message is for the user
        sys.exit(f"error: {error}")
