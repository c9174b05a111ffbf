"""Option A shortcuts in weight files: whether a net has them, and where they pad zeros.

Names and shapes of tensors determine neither, so a file's facts must state both.
"""

import logging
import shlex
from pathlib import Path

from torch import nn

from ..nets.catalog import NETS, meta_net
from ..nets.resnet import PadShortcut
from .facts import Facts, State
from .pickles import WeightsError

logger = logging.getLogger(__name__)


def zeros_at_end(facts: Facts) -> bool:
    """Whether option A in a file is known to pad zeros after the channels, as in our nets.

    This is known for files with our names, and for converted files that state it. Files with the
    names of another project, whose facts are guessed, may pad on both sides.
    """
    return "zeros" in facts or "guessed" not in facts


def zeros_unknown(path: str | Path) -> WeightsError:
    """The error for a file with option A for which :func:`zeros_at_end` is False."""
    command = shlex.join(["tools/convert_weights.py", "--zeros", "both", str(path), "OUT.pth"])
    return WeightsError(
        f"{path}: does not state where option A pads zeros. Convert it first. If it pads half of "
        "them on each side of the channels, as in common PyTorch versions of the CIFAR nets: "
        f"python {command}. If it pads all of them after the channels, as here: with --zeros end"
    )


def check_shortcuts(net: nn.Module, facts: Facts, path: str | Path) -> None:
    """Raise if the shortcuts of a file differ from those of ``net``.

    Raises:
        WeightsError: one of the two is a plain net and the other has option A, or the file does
            not state where option A pads zeros.
    """
    padded = any(isinstance(m, PadShortcut) and m.new_channels for m in net.modules())
    held = facts.get("net", "").removesuffix("_fpn")
    if held in NETS and meta_net(held).has_padded_shortcuts != padded:
        raise WeightsError(
            f"{path}: holds {held}, but this net has {'' if padded else 'no '}shortcuts that pad "
            "zeros: the tensors may fit, but the net would compute different outputs"
        )
    if padded and not zeros_at_end(facts):
        raise zeros_unknown(path)
    if padded and not facts:
        logger.warning(
            "%s: carries no facts. Assuming that its option A pads zeros after the channels", path
        )


def zeros_to_end(state: State) -> State:
    """Convert a net whose option A pads zeros on both sides of the channels to our convention.

    In such a net, a stage with W channels after a stage with V channels starts with (W - V) / 2
    channels of zeros. In ours, the V channels come first. Reordering the channels of the residual
    stream from that stage on preserves the function.

    Args:
        state: tensors with our names, from a net with two 3x3 convolutions per block.
    """
    state = dict(state)
    # Of the residual stream: our channel -> theirs.
    order = list(range(len(state["stem.conv1.weight"])))
    blocks = {tuple(k.split(".")[:2]) for k in state if k.startswith("res")}
    for stage, block in sorted(blocks, key=lambda b: (b[0], int(b[1]))):
        conv1, conv2 = f"{stage}.{block}.conv1.weight", f"{stage}.{block}.conv2."
        state[conv1] = state[conv1][:, order]
        width = len(state[f"{conv2}weight"])
        before = (width - len(order)) // 2
        order = [
            *(before + channel for channel in order),
            *range(before),
            *range(before + len(order), width),
        ]
        norm = (f"norm.{name}" for name in ("weight", "bias", "running_mean", "running_var"))
        for key in (conv2 + name for name in ("weight", *norm)):
            if key in state:
                state[key] = state[key][order]
    if "linear.weight" in state:
        state["linear.weight"] = state["linear.weight"][:, order]
    return state
