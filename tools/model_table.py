#!/usr/bin/env python3
"""Print Table 1, and the nets of Table 6, for every net that this package builds.

    python tools/model_table.py [NET ...] > table.md

Everything is counted by running the nets on one image (224 pixels, CIFAR's 32) without memory or
numbers; only the paper's figures are typed in. Counted are the convolutions and linear layers:
their multiply-adds without biases; no batch norm, ReLU, pooling or addition. Parameters are all
that is learned, batch norm's weight and bias too. Layers are those with weights on the main path,
without projections.
"""

import argparse
import sys

import torch
from torch import nn

from resnet_det.evaluation.tables import markdown_table
from resnet_det.nets import NETS, build_net

# Multiply-adds in 10^9: Table 1, and section 3.3's and 4.1's words on VGG-16 and the plain net.
PAPER_GIGA = {
    "18": "1.8", "34": "3.6", "50": "3.8", "101": "7.6", "152": "11.3", "vgg16": "15.3",
}  # fmt: skip
# Parameters in 10^6: Table 6.
PAPER_MEGA = {
    "20": "0.27", "32": "0.46", "44": "0.66", "56": "0.85", "110": "1.7", "1202": "19.4",
}  # fmt: skip
HEADER = (
    "net", "layers", "output sizes", "parameters", "multiply-adds, stride in 1x1",
    "multiply-adds, stride in 3x3", "paper", "ours beside it",
)  # fmt: skip


@torch.no_grad()
def measure(name, **options):
    """What one net counts.

    Returns:
        dict: ``layers``, ``sizes`` (dict stage -> side), ``parameters``, ``convolutions`` and
        ``linear`` (their multiply-adds), ``bottleneck``.
    """
    with torch.device("meta"):
        net = build_net(name, **options).eval()
        image = torch.empty(1, 3, *[32 if name.startswith("cifar") else 224] * 2)
    found = {"layers": 0, "sizes": {}, "convolutions": 0, "linear": 0, "bottleneck": False}

    def count(module, output):
        kind = "convolutions" if isinstance(module, nn.Conv2d) else "linear"
        found[kind] += output.numel() * module.weight[0].numel()

    for path, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda m, _, output: count(m, output))
            found["layers"] += not path.endswith("shortcut")
        if path in net.strides:
            module.register_forward_hook(
                lambda _, __, output, path=path: found["sizes"].update({path: output.shape[-1]})
            )
        found["bottleneck"] |= getattr(module, "bottleneck", False)
    net(image)
    found["parameters"] = sum(p.numel() for p in net.parameters())
    return found


def beside(paper, count, unit):
    """How the paper's figure comes from the count: ``"rounded"``, ``"cut off"``, or neither."""
    digits = len(paper.partition(".")[2])
    if f"{count / unit:.{digits}f}" == paper:
        return "rounded"
    step = unit // 10**digits
    return "cut off" if round(float(paper) * 10**digits) == count // step else None


def row(name):
    """The cells of a net, in the order of ``HEADER``."""
    first, other = measure(name), measure(name, stride_in_1x1=False)
    total = first["convolutions"] + first["linear"]
    # Of option C's thirteen further projections Table 1 says nothing.
    depth = (
        ""
        if name.endswith("_c")
        else name.split("_")[1].removeprefix("plain").removeprefix("resnet")
    )
    paper, remark = "", ""
    if name.startswith("cifar"):
        figure, count, unit, what = (
            PAPER_MEGA.get(depth),
            first["parameters"],
            10**6,
            "M parameters",
        )
    else:
        figure, count, unit, what = PAPER_GIGA.get(depth), total, 10**9, "G"
    if figure:
        paper, remark = f"{figure} {what}", beside(figure, count, unit)
        if remark is None and beside(figure, first["convolutions"], unit):
            remark = f"without linear layers {first['convolutions']:,}, rounded"
        remark = remark or "differs"
        if first["bottleneck"] and beside(figure, other["convolutions"] + other["linear"], unit):
            remark += "; either stride"
        elif first["bottleneck"]:
            remark += "; only with the stride in the 1x1"
    return (
        name,
        str(first["layers"]),
        " ".join(f"{stage} {side}" for stage, side in first["sizes"].items()),
        f"{first['parameters']:,}",
        f"{total:,}",
        f"{other['convolutions'] + other['linear']:,}" if first["bottleneck"] else "–",
        paper,
        remark,
    )


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("nets", nargs="*", metavar="NET", help="default: all")
    names = parser.parse_args(argv).nets or NETS
    print(markdown_table([row(name) for name in names], HEADER), end="")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:  # an unknown net, and the message says which are near
        sys.exit(f"error: {error}")
