"""Identify the net that a file holds from the names and shapes of its tensors."""

import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..hints import some
from ..nets.catalog import NETS, meta_net
from .pickles import WeightsError

# Without these prefixes, a detector's parameter names are the classifier's.
DETECTOR_PREFIXES = ("backbone.bottom_up.", "backbone.", "roi_heads.")
FIRST_CONVOLUTIONS = ("stem.conv1.weight", "conv1.1.weight")  # of residual nets, of VGG
_PYRAMID = ("fpn_", "top_block.")  # parts of a detector's backbone that are no stages of the net


def classifier_name(key: str) -> str:
    """The classifier's name for a detector's parameter."""
    return next((key[len(p) :] for p in DETECTOR_PREFIXES if key.startswith(p)), key)


def is_detector(state: dict[str, Tensor]) -> bool:
    """Whether tensors with our names are a detector's."""
    return any(key.startswith(DETECTOR_PREFIXES) for key in state)


def is_counter(key: str) -> bool:
    """Whether a tensor counts the batches of a batch norm. Frozen norms have no such tensor."""
    return key.endswith("num_batches_tracked")


def image_channels(state: Mapping[str, Tensor]) -> int | None:
    """Channels of the images that a net takes, by its tensors; None if they lack the first layer."""
    first = [v for k, v in state.items() if classifier_name(k) in FIRST_CONVOLUTIONS]
    return first[0].shape[1] if first and first[0].dim() == 4 else None


def channels_fault(given: int, wanted: int, path: str | Path) -> str:
    """The message that a file's net takes images of ``given`` channels instead of ``wanted``."""
    fault = (
        f"{path}: takes images of {given} channels, but the net is to take {wanted} "
        "(MODEL.PIXEL_MEAN, INPUT.FORMAT)"
    )
    if given != 3:
        return fault
    how = "sum" if wanted == 1 else "repeat"
    return (
        f"{fault}. To {how} its first weights over the channels, convert it: "
        f"tools/convert_weights.py --channels {wanted} {shlex.quote(str(path))} OUT.pth"
    )


class Differences(NamedTuple):
    """The differences between the tensors of a file and those of a net.

    Attributes:
        missing: names that the file lacks.
        unknown: names that the net lacks.
        wrong: descriptions of the tensors whose shapes differ.
    """

    missing: list[str]
    unknown: list[str]
    wrong: list[str]

    def __str__(self) -> str:
        parts = (
            ("the file lacks", self.missing),
            ("the net has no", self.unknown),
            ("other shapes:", self.wrong),
        )
        return "; ".join(f"{words} {some(names)}" for words, names in parts if names)


def _stage(name: str) -> str:
    return name.split(".")[0]


@cache
def _layout(name: str) -> tuple[dict[str, tuple], tuple, tuple]:
    """(shapes of a net's tensors by name, the stages of its head, all its stages)."""
    net = meta_net(name)
    shapes = {k: tuple(v.shape) for k, v in net.state_dict().items() if not is_counter(k)}
    return shapes, net.head_names, (*net.stage_names, "linear")


def misfits(state: dict[str, Tensor], name: str) -> Differences:
    """Compare the tensors of a file with those of a net. All lists are empty if they match.

    The numbers of classes and of input channels may differ, and ``linear`` may be absent. A
    detector's file may lack whole stages after the trunk, and its own layers (RPN, pyramid,
    predictors) are ignored.

    Args:
        state: tensors by our names.
        name: name of a net in ``NETS``.

    Raises:
        ValueError: there is no such net.
    """
    detector = is_detector(state)
    own, head, stages = _layout(name)
    if not any("norm.running_" in key for key in state):  # group norm
        own = {k: v for k, v in own.items() if "norm.running_" not in k}

    def in_net(key: str) -> bool:  # and not in a layer that only a detector has
        rest = classifier_name(key)
        if key.startswith("backbone."):
            return not rest.startswith(_PYRAMID)
        return key.startswith("roi_heads.") and _stage(rest) in stages

    found = {
        key: classifier_name(key)
        for key in state
        if not is_counter(key) and (not detector or in_net(key))
    }
    names = set(found.values())
    present = {_stage(n) for n in names}
    optional = {"linear", *(head if detector else ())}  # stages, as a whole
    missing = [
        n for n in own if n not in names and (_stage(n) in present or _stage(n) not in optional)
    ]
    unknown = [key for key, n in found.items() if n not in own]
    wrong = []
    for key, n in found.items():
        shape, expected = tuple(state[key].shape), own.get(n)
        if not expected:
            continue
        if len(shape) == len(expected):
            if n.startswith("linear."):  # any number of classes
                expected = (shape[0], *expected[1:])
            elif n in FIRST_CONVOLUTIONS:  # any number of channels
                expected = (expected[0], shape[1], *expected[2:])
        if shape != expected:
            wrong.append(f"{key} {shape}, in the net {expected}")
    return Differences(missing, unknown, wrong)


def fitting_nets(state: dict[str, Tensor], path: str | Path) -> list[str]:
    """Names of the nets whose tensors match a file.

    There may be two: a net with option A and the plain net have the same names and shapes.

    Raises:
        WeightsError: no net matches. The message describes the differences from the nearest one.
    """
    faults = {name: misfits(state, name) for name in NETS}
    fits = [name for name in NETS if not any(faults[name])]
    if fits:
        return fits
    known = {key for name in NETS for key in _layout(name)[0]}
    if not known & {classifier_name(key) for key in state}:
        raise WeightsError(
            f"{path}: holds none of the nets {', '.join(NETS)}. No net has tensors with its names, "
            f"{some(list(state))}"
        )
    nearest = min(NETS, key=lambda name: sum(map(len, faults[name])))
    raise WeightsError(
        f"{path}: holds none of our nets. The nearest is {nearest}, but {faults[nearest]}"
    )
