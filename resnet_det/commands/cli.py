"""Code that the commands share: parser, training options, start and exit."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from fvcore.common.config import CfgNode

from ..engines import ENGINES
from ..engines.scaling import max_iter
from ..training import Checkpointer
from ..training.distributed import launch, launch_info
from ..training.profiling import check_length, profiling

Words = Sequence[str] | None  # a command line; None means that of this process


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Make a parser whose help begins with a module's docstring, unchanged."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def positive(text: str) -> int:
    """Parse an option that is a positive integer.

    Raises:
        argparse.ArgumentTypeError: the text is not a whole number of at least 1.
    """
    return _at_least(1, text)


def natural(text: str) -> int:
    """Parse an option that is a whole number, 0 included, such as a seed.

    Raises:
        argparse.ArgumentTypeError: the text is not a whole number of at least 0.
    """
    return _at_least(0, text)


def _at_least(minimum: int, text: str) -> int:
    if not text.isdecimal() or int(text) < minimum:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number of at least {minimum}")
    return int(text)


def training_parser(doc: str | None) -> argparse.ArgumentParser:
    """Make a parser with the options of all training commands, for :func:`parse_training`."""
    result = parser(doc)
    add = result.add_argument
    add(
        "--config-file",
        required=True,
        metavar="FILE",
        help="a YAML config: a path, or one of resnet_det's own configs, such as quickstart.yaml",
    )
    add(
        "--resume",
        action="store_true",
        help="continue from the last checkpoint in OUTPUT_DIR, or start if there is none",
    )
    add("--eval-only", action="store_true", help="only evaluate MODEL.WEIGHTS")
    add(
        "--num-gpus",
        type=positive,
        default=1,
        metavar="N",
        help="number of processes on this machine, one per GPU (default: 1)",
    )
    add(
        "--num-machines",
        type=positive,
        default=1,
        metavar="N",
        help="number of machines (default: 1)",
    )
    add("--machine-rank", type=int, default=0, metavar="RANK", help="index of this machine, from 0")
    add(
        "--dist-url",
        default="auto",
        metavar="URL",
        help="tcp://HOST:PORT of machine 0; needed only with several machines",
    )
    add(
        "overrides",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="config keys and their values, after all options, such as SOLVER.BASE_LR 0.01",
    )
    return result


def add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--engine",
        default="auto",
        choices=ENGINES,
        help="engine of the detector; auto (the default) is Detectron2 if it is "
        "installed, otherwise the embedded engine, torchvision",
    )


def add_replay(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--replay",
        metavar="FILE",
        help="rerun only the iteration of a file not_finite_<iteration>.pth",
    )


def add_profile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--profile",
        type=positive,
        default=0,
        metavar="N",
        help="profile N iterations of the main process, after ten others, and write a Chrome trace "
        "and a table of the operators to OUTPUT_DIR/profile",
    )


def check_profile(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Raise ConfigError, in every process, if the run is too short for ``--profile``."""
    if args.profile:
        resumed = Checkpointer(cfg.OUTPUT_DIR).latest() if args.resume else None
        check_length(args.profile, max_iter(cfg, args.resume), resumed)


def profiled(args: argparse.Namespace, cfg: CfgNode) -> contextlib.AbstractContextManager[None]:
    """The context to train in, as ``--profile`` asks for."""
    if not args.profile or launch_info().rank:
        return contextlib.nullcontext()
    return profiling(Path(cfg.OUTPUT_DIR) / "profile", args.profile)


def parse_training(parser: argparse.ArgumentParser, argv: Words) -> argparse.Namespace:
    """Parse the command line of a training command. Exits with status 2 if it is wrong."""
    args = parser.parse_args(argv)
    if any(word.startswith("--") for word in args.overrides):
        parser.error("options such as --resume go before the KEY VALUE pairs")
    for other in ("resume", "replay"):
        if args.eval_only and getattr(args, other, None):
            parser.error(f"--eval-only only evaluates MODEL.WEIGHTS: remove --{other}")
    for other in ("eval_only", "replay"):
        if getattr(args, "profile", 0) and getattr(args, other):
            option = other.replace("_", "-")
            parser.error(f"--profile profiles whole training runs: remove --{option}")
    return args


def start(run: Callable[..., Any], args: argparse.Namespace, cfg: CfgNode) -> None:
    """Call ``run(args, cfg)`` in as many processes as the command's options specify."""
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
    """Run a command and exit with its status. For invalid input, and if the GPU's memory does not
    suffice, print one line and exit with 1. If the reader of a pipe, such as head, has ended, exit
    with 1."""
    try:
        status = main()
        sys.stdout.flush()
        sys.exit(status)
    except BrokenPipeError:
        # Python flushes stdout once more when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except ValueError as error:  # the message is for the user
        sys.exit(f"error: {error}")
    except torch.OutOfMemoryError as error:
        reason = str(error).partition(". ")[0]
        sys.exit(
            f"error: {reason}: lower SOLVER.IMS_PER_BATCH, INPUT.MAX_SIZE_TRAIN or INPUT.MAX_SIZE_TEST, "
            "raise RESNET_DET.ACCUMULATE, or set SOLVER.AMP.ENABLED True"
        )
