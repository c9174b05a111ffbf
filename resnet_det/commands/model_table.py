"""Print layers, parameters and multiply-adds of every net beside the paper's Tables 1 and 6.

    resnet-det model-table > table.md
    resnet-det model-table paper_resnet50 paper_vgg16

Each net runs on one image of its training size on the meta device, which only computes shapes. The
paper's numbers come from the catalog. Multiply-adds are those of convolutions and linear layers,
without biases; batch norms, ReLUs, pooling and additions do not count. Parameters are everything
that training updates, including the weight and bias of batch norms. Layers are those with weights
on the main path, without the projections in shortcuts.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..evaluation.tables import markdown_table
from ..nets import NETS, build_net
from . import cli

HEADER = (
    "net", "layers", "output sizes", "parameters", "multiply-adds, stride in 1x1",
    "multiply-adds, stride in 3x3", "paper", "our count against the paper's",
)  # fmt: skip


@dataclass
class Counts:
    """The counts of one net, from :func:`measure`.

    Attributes:
        layers: number of convolutions and linear layers on the main path.
        sizes: height and width of each stage's output in cells, by stage name.
        parameters: number of parameters.
        convolutions, linear: multiply-adds in the convolutions and in the linear layers.
        has_stride_choice: whether ``stride_in_1x1`` changes the net.
    """

    parameters: int
    has_stride_choice: bool
    layers: int = 0
    convolutions: int = 0
    linear: int = 0
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def multiply_adds(self) -> int:
        return self.convolutions + self.linear


@torch.no_grad()
def measure(name: str, **options: Any) -> Counts:
    """Count one net.

    Args:
        name: name of the net in ``NETS``.
        options: options of :func:`resnet_det.build_net`.

    Raises:
        ValueError: see ``build_net``.
    """
    with torch.device("meta"):
        net = build_net(name, **options).eval()
    counts = Counts(sum(p.numel() for p in net.parameters()), net.has_stride_choice)

    def count(module: nn.Module, _: Any, output: Tensor) -> None:
        assert isinstance(module.weight, Tensor)
        multiply_adds = output.numel() * module.weight[0].numel()
        if isinstance(module, nn.Conv2d):
            counts.convolutions += multiply_adds
        else:
            counts.linear += multiply_adds

    side = NETS[name].image_size
    image = torch.empty(1, 3, side, side, device="meta")
    counts.sizes = {stage: x.shape[-1] for stage, x in net.features(image).items()}
    for path, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
            counts.layers += not path.endswith("shortcut")
    net(image)
    return counts


def compare(paper: str, count: int, unit: int) -> str | None:
    """How the paper's number follows from our count: "rounded", "truncated", or None (not at all).

    Args:
        paper: the number as printed, such as "3.8".
        count: our count.
        unit: unit of the paper's number, such as 10^9.
    """
    digits = len(paper.partition(".")[2])
    if f"{count / unit:.{digits}f}" == paper:
        return "rounded"
    step = unit // 10**digits
    return "truncated" if round(float(paper) * 10**digits) == count // step else None


def compare_gflops(paper: str, in_1x1: Counts, in_3x3: Counts) -> str:
    """How the paper's multiply-adds follow from our counts with both stride placements."""
    remark = compare(paper, in_1x1.multiply_adds, 10**9)
    if remark is None and compare(paper, in_1x1.convolutions, 10**9):
        remark = f"without linear layers {in_1x1.convolutions:,}, rounded"
    remark = remark or "differs"
    if in_1x1.has_stride_choice:
        either = compare(paper, in_3x3.multiply_adds, 10**9)
        remark += "; either stride" if either else "; only with the stride in the 1x1"
    return remark


def row(name: str) -> tuple[str, ...]:
    """The table row of a net, in the order of ``HEADER``."""
    in_1x1 = in_3x3 = measure(name)
    if in_1x1.has_stride_choice:
        in_3x3 = measure(name, stride_in_1x1=False)
    spec = NETS[name]
    paper, remark = "", ""
    if spec.paper_gflops:
        paper = f"{spec.paper_gflops} G"
        remark = compare_gflops(spec.paper_gflops, in_1x1, in_3x3)
    elif spec.paper_mparams:
        paper = f"{spec.paper_mparams} M parameters"
        remark = compare(spec.paper_mparams, in_1x1.parameters, 10**6) or "differs"
    return (
        name,
        str(in_1x1.layers),
        " ".join(f"{stage} {side}" for stage, side in in_1x1.sizes.items()),
        f"{in_1x1.parameters:,}",
        f"{in_1x1.multiply_adds:,}",
        f"{in_3x3.multiply_adds:,}" if in_1x1.has_stride_choice else "–",
        paper,
        remark,
    )


def main(argv: cli.Words = None) -> None:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "nets", nargs="*", metavar="NET", help="names such as paper_resnet50 (default: all)"
    )
    names = parser.parse_args(argv).nets or NETS
    print(markdown_table([row(name) for name in names], HEADER), end="")


if __name__ == "__main__":
    cli.run(main)
