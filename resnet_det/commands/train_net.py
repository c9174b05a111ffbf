"""Train and evaluate a detector.

    resnet-det train --config-file quickstart.yaml
    resnet-det train --config-file quickstart.yaml --num-gpus 2 SOLVER.BASE_LR 0.01
    torchrun --nproc-per-node 2 tools/train_net.py --config-file configs/quickstart.yaml
    resnet-det train --config-file quickstart.yaml --eval-only \\
        MODEL.WEIGHTS output/quickstart/model_final.pth

Options and exit codes are those of Detectron2's tools/train_net.py, except that --eval-only refuses
--resume: name the checkpoint as MODEL.WEIGHTS.
"""

import argparse
from typing import Any

from fvcore.common.config import CfgNode

from ..engines import classifier, fit_to_data, pick, pretrain
from ..engines.run import replayed
from . import cli


def parse(argv: cli.Words = None) -> argparse.Namespace:
    parser = cli.training_parser(__doc__)
    cli.add_engine(parser)
    cli.add_replay(parser)
    cli.add_profile(parser)
    return cli.parse_training(parser, argv)


def run(args: argparse.Namespace, cfg: CfgNode) -> dict[str, Any]:
    """Run the command in one process. Returns the metrics in the main process."""
    engine = pick(args.engine)
    cfg = fit_to_data.fitted(
        cfg,
        engine,
        args.config_file,
        args.overrides,
        checkpoint=cfg.MODEL.WEIGHTS if args.eval_only else args.replay,
        resume=args.resume,
    )
    if args.eval_only:
        return engine.evaluate(cfg)
    if args.replay:
        return engine.train(replayed(cfg, args.replay), resume=True)
    cli.check_profile(args, cfg)
    pretraining = pretrain.needed(cfg)
    if pretraining is not None:
        engine.check(cfg, args.resume)
        classifier.train(pretraining, resume=True)
    with cli.profiled(args, cfg):
        return engine.train(cfg, args.resume)


def main(argv: cli.Words = None) -> None:
    args = parse(argv)
    cli.start(run, args, pick(args.engine).load_config(args.config_file, args.overrides))


if __name__ == "__main__":
    cli.run(main)
