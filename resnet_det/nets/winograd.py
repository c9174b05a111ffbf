"""3x3 convolutions in a quarter of the multiplications (Winograd's minimal filtering; Lavin and
Gray, https://arxiv.org/abs/1509.09308)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# A tile of 4x4 outputs reads 6x6 inputs. Its polynomials are evaluated at these points and at
# infinity. The rounding error is about 5 times that of a plain convolution in float32; with the
# points 0, 1, -1, 2 and -2 it would be 10 times.
TILE, READ = 4, 6
POINTS = (0.0, 2**0.5, -(2**0.5), 0.5**0.5, -(0.5**0.5))
MIN_CHANNELS = 256  # with fewer, the transformations take as long as they save


def transformations() -> tuple[Tensor, Tensor, Tensor]:
    """The matrices of one dimension, float64: ``A`` (4, 6), ``G`` (6, 3) and ``B`` (6, 6), for which
    ``A @ ((G @ kernel) * (B @ inputs))`` is the correlation of 6 inputs with a kernel of 3."""
    points = torch.tensor(POINTS, dtype=torch.float64)
    others = [torch.cat((points[:k], points[k + 1 :])) for k in range(len(points))]
    scale = torch.stack([(p - rest).prod() for p, rest in zip(points, others)])
    powers = torch.vander(points, TILE, increasing=True)
    infinity = torch.eye(TILE, dtype=torch.float64)[-1:]
    a = torch.cat((powers, infinity)).T
    g = torch.cat((powers[:, :3] / scale[:, None], infinity[:, 1:]))
    b = torch.stack([*(F.pad(polynomial(rest), (0, 1)) for rest in others), polynomial(points)])
    return a, g, b


def polynomial(roots: Tensor) -> Tensor:
    """The coefficients of a polynomial with these roots, lowest power first."""
    found = torch.ones(1, dtype=torch.float64)
    for root in roots:
        found = F.pad(found, (1, 0)) - root * F.pad(found, (0, 1))
    return found


class WinogradConv(nn.Module):
    """Computes what a 3x3 convolution with stride 1 and padding 1 computes, without training it.

    Args:
        conv: the convolution; see :func:`fits`.
    """

    inputs: Tensor
    outputs: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        a, g, b = transformations()
        # Rows of a tile vary fastest, so the same product transforms both dimensions.
        weight = torch.einsum("ai,ocij,bj->baco", g, conv.weight.detach().double(), g).flatten(0, 1)
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        dtype = conv.weight.dtype
        self.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
        self.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
        self.register_buffer("inputs", torch.kron(b, b).to(dtype))
        self.register_buffer("outputs", torch.kron(a, a).to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H, W)."""
        count, channels, height, width = x.shape
        outputs = self.bias.shape[0]
        down, across = (height + TILE - 1) // TILE, (width + TILE - 1) // TILE  # tiles
        x = F.pad(x, (1, TILE * across + 1 - width, 1, TILE * down + 1 - height))
        x = x.permute(2, 3, 0, 1)
        last = TILE * (down - 1) + 1
        x = torch.stack([x[i : i + last : TILE] for i in range(READ)])
        last = TILE * (across - 1) + 1
        x = torch.stack([x[:, :, i : i + last : TILE] for i in range(READ)])
        x = (self.inputs @ x.reshape(READ**2, -1)).view(READ**2, -1, channels)
        x = torch.bmm(x, self.weight)
        x = self.outputs @ x.reshape(READ**2, -1)
        x = x.view(TILE, TILE, down, across, count, outputs).permute(4, 5, 2, 1, 3, 0)
        x = x.reshape(count, outputs, TILE * down, TILE * across)
        if isinstance(height, int):
            x = x[:, :, :height, :width]
        else:  # in an export, where slices would make the sizes of all maps long terms
            for axis, length in ((2, height), (3, width)):
                x = x.index_select(axis, torch.arange(length, device=x.device))
        return x + self.bias[:, None, None]


def fits(module: nn.Module) -> bool:
    """Whether a module is a convolution that :class:`WinogradConv` computes in less time."""
    return (
        isinstance(module, nn.Conv2d)
        and (module.kernel_size, module.stride, module.dilation) == ((3, 3), (1, 1), (1, 1))
        and (module.padding, module.groups) == ((1, 1), 1)
        and getattr(module, "norm", None) is None
        and min(module.in_channels, module.out_channels) >= MIN_CHANNELS
    )


def replace_convolutions(module: nn.Module) -> None:
    """Replace the convolutions in a module that :func:`fits` names, in place."""
    for name, child in module.named_children():
        if fits(child):
            assert isinstance(child, nn.Conv2d)
            setattr(module, name, WinogradConv(child))
        else:
            replace_convolutions(child)
