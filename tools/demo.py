#!/usr/bin/env python3
"""Draw what a detector finds in pictures.

    python tools/demo.py IMAGE... --weights output/quickstart/model_final.pth

Writes OUTPUT/<picture>.png with boxes, labels and scores, and prints a line a picture. The
checkpoint brings its own config; --overrides KEY VALUE... changes it.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from resnet_det.data import pixels
from resnet_det.engines.embedded import predictor
from resnet_det.evaluation.draw import draw_boxes


def parse(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--weights", required=True, metavar="FILE", help="a detector's checkpoint")
    parser.add_argument(
        "--output", default="output/demo", metavar="FOLDER", help="default: %(default)s"
    )
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="least score that is drawn: %(default)s"
    )
    parser.add_argument("--overrides", nargs="*", default=[], metavar="KEY VALUE")
    return parser.parse_args(argv)


def main(args):
    names = [Path(path).stem for path in args.images]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"several pictures are called {', '.join(sorted(twice))}")
    predict, classes = predictor(args.weights, args.overrides)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    for path, name in zip(args.images, names):
        found = predict(path)
        keep = np.flatnonzero(found["scores"] >= args.threshold)
        labels = [classes[c] for c in found["classes"][keep]]
        picture = draw_boxes(
            pixels.read_image(path, "RGB"),
            found["boxes"][keep],
            labels,
            scores=found["scores"][keep],
            classes=classes,
        )
        target = output / f"{name}.png"
        Image.fromarray(picture).save(target)
        print(f"{target}: {', '.join(labels) or 'nothing'}")


if __name__ == "__main__":
    try:
        main(parse())
    except ValueError as error:  # what the user gave is wrong, and the message says what
        sys.exit(f"error: {error}")
