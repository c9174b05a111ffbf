#!/usr/bin/env python3
"""Train and evaluate a detector.

    python tools/train_net.py --config-file configs/quickstart.yaml
    torchrun --nproc-per-node 2 tools/train_net.py --config-file configs/quickstart.yaml
    python tools/train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_final.pth

Interface and exit codes are those of Detectron2's tool of the same name; trailing KEY VALUE pairs
override the config.
"""

import argparse
import os
import sys

# Before torch is loaded: its threads must not spin on the cores that the data workers need.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from resnet_det.engines import ENGINES, classifier, pick, pretrain
from resnet_det.engines.run import replayed


def parse(argv=None, description=__doc__):
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--engine", default="auto", choices=ENGINES)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS")
    parser.add_argument(
        "--replay", metavar="FILE", help="the iteration that not_finite_*.pth is of"
    )
    parser.add_argument("--num-gpus", type=int, default=1, help="processes on this machine")
    parser.add_argument("--num-machines", type=int, default=1)
    parser.add_argument("--machine-rank", type=int, default=0)
    parser.add_argument("--dist-url", default="auto", metavar="tcp://HOST:PORT")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    args = parser.parse_args(argv)
    if any(word.startswith("--") for word in args.overrides):
        parser.error("options such as --resume go before the KEY VALUE pairs")
    return args


def main(args, cfg):
    engine = pick(args.engine)
    if args.eval_only:
        return engine.evaluate(cfg)
    if args.replay:
        return engine.train(replayed(cfg, args.replay), resume=True)
    pretraining = pretrain.needed(cfg)
    if pretraining is not None:
        engine.check(cfg, args.resume)
        classifier.train(pretraining, resume=True)
    return engine.train(cfg, args.resume)


def run(main, args):
    """``main(args, cfg)`` in every process that the options ask for."""
    try:
        engine = pick(args.engine)
        engine.launch(
            main,
            args,
            engine.load_config(args.config_file, args.overrides),
            num_gpus=args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
        )
    except ValueError as error:  # what the user gave is wrong, and the message says what
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    run(main, parse())
