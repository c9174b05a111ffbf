#!/usr/bin/env python3
"""Train a detector by the 4 alternating steps of Faster R-CNN, and evaluate it.

    python tools/train_alternating.py --config-file configs/faster_rcnn_R101.yaml \
        OUTPUT_DIR output/alternating_R101

Takes the configs and the options of tools/train_net.py. RESNET_DET.ALTERNATING holds the
iterations of the steps; --resume goes on in the step, and at the iteration, where it stopped.
"""

import train_net

from resnet_det.engines import alternating, classifier, pick, pretrain


def main(args, cfg):
    engine = pick(args.engine)
    if args.eval_only:
        return engine.evaluate(cfg)
    pretraining = pretrain.needed(cfg)
    if pretraining is not None:
        alternating.check(engine, cfg, args.resume)
        classifier.train(pretraining, resume=True)
    return alternating.train(engine, cfg, args.resume)


if __name__ == "__main__":
    train_net.run(main, train_net.parse(description=__doc__))
