"""Run a detector on images and draw its detections.

    resnet-det demo
    resnet-det demo street.jpg dogs.png --weights output/quickstart/model_final.pth
    resnet-det demo street.jpg --weights torchvision://fasterrcnn_resnet50_fpn

The second line downloads a published detector (docs/weights.md).

Without arguments, it runs the detector that this package contains on the package's sample pictures.

Writes one PNG per image, with boxes, labels and scores, and prints one line per image.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from ..data import pixels
from ..engines.embedded import predictor
from ..evaluation.draw import draw_boxes
from ..weights import shipped
from . import cli


def main(argv: cli.Words = None) -> None:
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add(
        "images",
        nargs="*",
        default=shipped.pictures(),
        metavar="IMAGE",
        help="images, in any format that Pillow reads (default: two scenes of the quickstart)",
    )
    add(
        "--weights",
        default="resnet_det://quickstart",
        metavar="FILE",
        help="checkpoint of a detector, from either engine, which contains its config; or the "
        "address of a published one (default: %(default)s, in this package)",
    )
    add(
        "--output",
        default="output/demo",
        metavar="FOLDER",
        help="folder of the PNGs (default: %(default)s)",
    )
    add(
        "--threshold",
        type=float,
        default=0.5,
        metavar="SCORE",
        help="draw detections that score at least this, from 0 to 1 (default: %(default)s)",
    )
    add(
        "--overrides",
        nargs="*",
        default=[],
        metavar="KEY VALUE",
        help="keys to override in the checkpoint's config, such as MODEL.DEVICE cpu",
    )
    args = parser.parse_args(argv)
    names = [Path(path).stem for path in args.images]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"IMAGE: several images have the same name: {', '.join(sorted(twice))}")
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
    cli.run(main)
