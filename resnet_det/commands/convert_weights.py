"""Convert weights between the formats of this project, Detectron2, torchvision and timm.

    resnet-det convert-weights R-50.pkl r50.safetensors
    resnet-det convert-weights --to torchvision output/imagenet/model_final.pth r34.pth
    resnet-det convert-weights resnet50.pth r50.pkl

What the weights were trained on is written to OUT. If IN does not say it, or if it was only guessed
from the names of the tensors (a net trained in Caffe may have torchvision's), give KEY VALUE pairs:

    resnet-det convert-weights bare.pth r34.safetensors INPUT.FORMAT RGB \\
        MODEL.PIXEL_MEAN "[123.675, 116.28, 103.53]" MODEL.PIXEL_STD "[58.395, 57.12, 57.375]"

A CIFAR net of another project whose option A pads half of its zeros on each side of the channels:

    resnet-det convert-weights --zeros both theirs.pth resnet20.pth

A net of colour images becomes one of grey images, whose first weights are the sums over the channels:

    resnet-det convert-weights --channels 1 r50.pth r50_grey.pth
"""

import argparse

from ..weights.conversion import convert
from ..weights.facts import FACT_KEYS
from ..weights.formats import FORMATS
from . import cli


def parse(argv: cli.Words = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "source",
        metavar="IN",
        help="a .pth, .pkl or .safetensors file: a classifier of torchvision, timm, MSRA, Detectron "
        "or Caffe, or a classifier or detector of Detectron2 or of ours",
    )
    parser.add_argument(
        "target",
        metavar="OUT",
        help="the file to write; its suffix decides on the kind. Detectron2's own checkpointer loads our "
        ".pth and .pkl into any project, but cannot read .safetensors",
    )
    parser.add_argument(
        "stated",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help=f"what IN was trained on: any of {', '.join(FACT_KEYS.values())}",
    )
    parser.add_argument(
        "--to",
        choices=FORMATS,
        default="own",
        help="the names in OUT (default: %(default)s, which are Detectron2's); torchvision and timm "
        "take classifiers only",
    )
    parser.add_argument(
        "--net",
        help="the net in IN, such as paper_resnet34_a; by default its tensors tell",
    )
    parser.add_argument(
        "--zeros",
        choices=("both", "end"),
        help="where option A of IN pads zeros: half on each side of the channels, or all behind "
        "them, as here. Channels are reordered accordingly",
    )
    parser.add_argument(
        "--channels",
        type=int,
        default=3,
        metavar="N",
        help="channels of the images that OUT takes, if not 3: 1 sums the weights of the first "
        "convolution, for grey images (INPUT.FORMAT L); another number repeats them",
    )
    args = parser.parse_args(argv)
    if any(word.startswith("--") for word in args.stated):
        parser.error("options go first")
    return args


def main(argv: cli.Words = None) -> None:
    args = parse(argv)
    kind, nets, facts = convert(
        args.source, args.target, args.to, args.stated, args.net, args.zeros, args.channels
    )
    print(f"wrote {args.target}: {kind}, {' or '.join(nets)}")
    if args.to == "own" and args.target.endswith(".safetensors"):
        print("for our nets only: Detectron2's own checkpointer reads a .pth or .pkl")
    if args.to == "own":
        known = [f"{key} {facts[fact]!r}" for fact, key in FACT_KEYS.items() if fact in facts]
        print("to be used with", *known)


if __name__ == "__main__":
    cli.run(main)
