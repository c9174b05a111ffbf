"""Export a detector to one file that other programs run: ONNX, OpenVINO or torch.export.

    resnet-det export --weights output/quickstart/model_final.pth --output quickstart.onnx
    resnet-det export --weights model_final.pth --format openvino --output model.xml

The file takes an image, uint8 RGB (H, W, 3) of any size, and returns boxes in its pixels, scores
and classes. Before it gets its name, it is checked against the detector. See docs/export.md.
"""

import argparse

from ..engines.export import FORMATS, export
from . import cli


def parse(argv: cli.Words = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add(
        "--weights",
        required=True,
        metavar="FILE",
        help="checkpoint of a detector, from either engine, or its address, such as "
        "resnet_det://quickstart",
    )
    add(
        "--config-file",
        metavar="FILE",
        help="config of a checkpoint that carries none, such as Detectron2's own",
    )
    add(
        "--format",
        default="onnx",
        choices=FORMATS,
        help="onnx for ONNX Runtime, openvino, or pt2 for torch.export.load (default: %(default)s)",
    )
    add(
        "--output",
        required=True,
        metavar="FILE",
        help="the file to write, which ends with .onnx, .xml (its weights go to a second file, "
        ".bin) or .pt2",
    )
    add(
        "--images",
        nargs="+",
        default=[],
        metavar="IMAGE",
        help="images to check the file with (default: drawn scenes)",
    )
    add(
        "--overrides",
        nargs="*",
        default=[],
        metavar="KEY VALUE",
        help="keys to override in the checkpoint's config, such as TEST.DETECTIONS_PER_IMAGE 20",
    )
    return parser.parse_args(argv)


def main(argv: cli.Words = None) -> None:
    args = parse(argv)
    count = export(
        args.weights, args.output, args.format, args.overrides, args.images, args.config_file
    )
    print(f"{args.output}: finds the same {count} objects as {args.weights}")


if __name__ == "__main__":
    cli.run(main)
