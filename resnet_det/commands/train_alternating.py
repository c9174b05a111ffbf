"""Train a detector in the 4 alternating steps of Faster R-CNN, and evaluate it.

    resnet-det train-alternating --config-file faster_rcnn_R101.yaml \\
        OUTPUT_DIR output/alternating_R101

The configs are those of `resnet-det train`. RESNET_DET.ALTERNATING sets the iterations of each
step. --resume continues at the step and the iteration where training stopped.
"""

import argparse
from typing import Any

from fvcore.common.config import CfgNode

from ..engines import alternating, classifier, pick, pretrain
from ..engines.run import replayed
from . import cli


def parse(argv: cli.Words = None) -> argparse.Namespace:
    parser = cli.training_parser(__doc__)
    cli.add_engine(parser)
    cli.add_replay(parser)
    return cli.parse_training(parser, argv)


def run(args: argparse.Namespace, cfg: CfgNode) -> dict[str, Any]:
    """Run the command in one process. Returns the metrics in the main process."""
    engine = pick(args.engine)
    if args.eval_only:
        return engine.evaluate(cfg)
    if args.replay:
        return engine.train(
            replayed(alternating.step_of(cfg, args.replay), args.replay), resume=True
        )
    pretraining = pretrain.needed(cfg)
    if pretraining is not None:
        alternating.check(engine, cfg, args.resume)
        classifier.train(pretraining, resume=True)
    return alternating.train(engine, cfg, args.resume)


def main(argv: cli.Words = None) -> None:
    args = parse(argv)
    cli.start(run, args, pick(args.engine).load_config(args.config_file, args.overrides))


if __name__ == "__main__":
    cli.run(main)
