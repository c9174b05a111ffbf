"""Convert weights between the formats of this project, Detectron2, torchvision and timm.

    resnet-det convert-weights R-50.pkl r50.safetensors
    resnet-det convert-weights --to torchvision output/imagenet/model_final.pth r34.pth
    resnet-det convert-weights resnet50.pth r50.pkl

OUT also stores the preprocessing that the weights were trained with. If IN does not state it, or if
it was only guessed from the names of the tensors (a net that was trained in Caffe may have
torchvision's names), give KEY VALUE pairs:

    resnet-det convert-weights bare.pth r34.safetensors INPUT.FORMAT RGB \\
        MODEL.PIXEL_MEAN "[123.675, 116.28, 103.53]" MODEL.PIXEL_STD "[58.395, 57.12, 57.375]"

To convert another project's CIFAR net whose option A pads half of the zeros on each side of the
channels:

    resnet-det convert-weights --zeros both theirs.pth resnet20.pth

Turn a net for colour images into one for grey images, by summing its first weights over channels:

    resnet-det convert-weights --channels 1 r50.pth r50_grey.pth
"""

import argparse
import shlex

from ..weights.conversion import convert
from ..weights.facts import DETECTOR_FACT_KEYS, FACT_KEYS
from ..weights.formats import FORMATS
from . import cli


def parse(argv: cli.Words = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "source",
        metavar="IN",
        help="a .pth, .pkl or .safetensors file, or its address: a classifier from torchvision, timm, MSRA, "
        "Detectron or Caffe, or a classifier or detector from Detectron2 or resnet_det",
    )
    parser.add_argument(
        "target",
        metavar="OUT",
        help="the file to write; its suffix determines the format. Detectron2's own checkpointer "
        "loads the .pth and .pkl files in any project, but cannot read .safetensors",
    )
    parser.add_argument(
        "stated",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help=f"what IN was trained with: any of {', '.join(FACT_KEYS.values())}",
    )
    parser.add_argument(
        "--to",
        choices=FORMATS,
        default="own",
        help="whose tensor names OUT gets (default: %(default)s, which are Detectron2's); "
        "torchvision and timm take only classifiers",
    )
    parser.add_argument(
        "--net",
        help="the net in IN, such as paper_resnet34_a; by default identified from its tensors",
    )
    parser.add_argument(
        "--zeros",
        choices=("both", "end"),
        help="where option A of IN pads zeros: half on each side of the channels (both), or all "
        "after them, as in resnet_det (end). Channels are reordered accordingly",
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
        parser.error("options must come before IN, OUT and the KEY VALUE pairs")
    return args


def main(argv: cli.Words = None) -> None:
    args = parse(argv)
    kind, nets, facts = convert(
        args.source, args.target, args.to, args.stated, args.net, args.zeros, args.channels
    )
    print(f"wrote {args.target}: {kind}, {' or '.join(nets)}")
    if args.to == "own" and args.target.endswith(".safetensors"):
        print(
            "only resnet_det reads this file: for Detectron2's checkpointer, write a .pth or .pkl"
        )
    keys = FACT_KEYS | DETECTOR_FACT_KEYS
    known = {keys[fact]: facts[fact] for fact in keys if fact in facts}
    if not known.get("RESNET_DET.GLOBAL_CONTEXT"):  # a key that only our configs have
        known.pop("RESNET_DET.GLOBAL_CONTEXT", None)
    if args.to == "own" and known:
        print("use it with", shlex.join(str(word) for pair in known.items() for word in pair))


if __name__ == "__main__":
    cli.run(main)
