"""Train and test a classifier, whose weights initialise a detector.

    resnet-det pretrain --config-file quickstart_classifier.yaml
    resnet-det pretrain --config-file cifar/resnet20.yaml --num-gpus 2
    torchrun --nproc-per-node 8 tools/pretrain.py --config-file configs/imagenet/resnet50.yaml
    resnet-det pretrain --config-file cifar/resnet20.yaml --eval-only \\
        MODEL.WEIGHTS output/cifar_resnet20/model_final.pth
"""

import argparse
from typing import Any

from fvcore.common.config import CfgNode

from ..config.loading import load_config
from ..engines import classifier
from ..engines.run import replayed
from . import cli


def parse(argv: cli.Words = None) -> argparse.Namespace:
    parser = cli.training_parser(__doc__)
    cli.add_replay(parser)
    cli.add_profile(parser)
    return cli.parse_training(parser, argv)


def run(args: argparse.Namespace, cfg: CfgNode) -> dict[str, Any]:
    """Run the command in one process. Returns the metrics in the main process."""
    if args.eval_only:
        return classifier.evaluate(cfg)
    if args.replay:
        return classifier.train(replayed(cfg, args.replay), resume=True)
    cli.check_profile(args, cfg)
    with cli.profiled(args, cfg):
        return classifier.train(cfg, args.resume)


def main(argv: cli.Words = None) -> None:
    args = parse(argv)
    cli.start(run, args, load_config(args.config_file, args.overrides))


if __name__ == "__main__":
    cli.run(main)
