#!/usr/bin/env python3
"""Train and test a classifier: the weights that a detector starts from.

    python tools/pretrain.py --config-file configs/quickstart_classifier.yaml
    torchrun --nproc-per-node 2 tools/pretrain.py --config-file ...
    python tools/pretrain.py --config-file ... --eval-only MODEL.WEIGHTS output/model_final.pth

Trailing KEY VALUE pairs override the config.
"""

import argparse
import os
import sys

# Before torch is loaded: its threads must not spin on the cores that the data workers need.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from resnet_det.engines import classifier
from resnet_det.engines.run import replayed


def parse(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS")
    parser.add_argument(
        "--replay", metavar="FILE", help="the iteration that not_finite_*.pth is of"
    )
    parser.add_argument("overrides", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    args = parser.parse_args(argv)
    if any(word.startswith("--") for word in args.overrides):
        parser.error("options such as --resume go before the KEY VALUE pairs")
    return args


def main(args, cfg):
    if args.eval_only:
        return classifier.evaluate(cfg)
    if args.replay:
        return classifier.train(replayed(cfg, args.replay), resume=True)
    return classifier.train(cfg, args.resume)


if __name__ == "__main__":
    try:
        args = parse()
        cfg = classifier.load_config(args.config_file, args.overrides)
        classifier.launch(main, args, cfg)
    except ValueError as error:  # what the user gave is wrong, and the message says what
        sys.exit(f"error: {error}")
