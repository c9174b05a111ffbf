"""Which net of the catalog a file's tensors are, by their names and shapes."""

from functools import cache

import torch

from ..nets.catalog import NETS, build_net
from .pickles import WeightsError

# A detector's parameter names, stripped of these, are the classifier's.
DETECTOR_PREFIXES = ("backbone.bottom_up.", "backbone.", "roi_heads.")
_PYRAMID = ("fpn_", "top_block.")  # of a detector's backbone, beside the net's stages


def classifier_name(key: str) -> str:
    """A detector's parameter name as the classifier has it."""
    return next((key[len(p) :] for p in DETECTOR_PREFIXES if key.startswith(p)), key)


def is_detector(state: dict) -> bool:
    """Whether tensors with these names, ours, are a detector's."""
    return any(key.startswith(DETECTOR_PREFIXES) for key in state)


def is_counter(key: str) -> bool:
    """Whether it counts a batch norm's batches; frozen norms have no such tensor."""
    return key.endswith("num_batches_tracked")


def some(names) -> str:
    """The first five of a list of names, for an error message."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _stage(name):
    return name.split(".")[0]


@cache
def _layout(name):
    """-> dict of a net's tensors, name -> shape; its head's stages; all its stages."""
    with torch.device("meta"):
        net = build_net(name)
    shapes = {k: tuple(v.shape) for k, v in net.state_dict().items() if not is_counter(k)}
    return shapes, net.head_names, (*net.stage_names, "linear")


def _compare(state, name):
    """-> names that the file lacks, names that the net lacks, and tensors of another shape."""
    detector = is_detector(state)
    own, head, stages = _layout(name)
    if not any("norm.running_" in key for key in state):  # group normalisation
        own = {k: v for k, v in own.items() if "norm.running_" not in k}

    def in_net(key):  # or a layer that only a detector has
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
        classes_free = n.startswith("linear.") and expected and len(shape) == len(expected)
        if expected and (shape[1:] != expected[1:] if classes_free else shape != expected):
            wrong.append(f"{key} {shape}, in the net {expected}")
    return missing, unknown, wrong


def misfits(state: dict, name: str) -> str:
    """Say in what a file's tensors differ from those of the net ``name``; "" if they are the net.

    A net may have any number of classes, or no ``linear`` at all. A detector's file may lack whole
    stages behind the trunk, and its own layers (proposals, pyramid, predictors) are left aside.

    Args:
        state: dict name -> tensor, in our names.

    Raises:
        ValueError: there is no such net.
    """
    missing, unknown, wrong = _compare(state, name)
    faults = [f"the file lacks {some(missing)}"] if missing else []
    faults += [f"the net has no {some(unknown)}"] if unknown else []
    faults += [f"other shapes: {some(wrong)}"] if wrong else []
    return "; ".join(faults)


def fitting_nets(state: dict, path) -> list[str]:
    """Names of the nets that a file's tensors are. A residual net with option A shares the names
    and shapes of its tensors with the plain net, so there may be two.

    Raises:
        WeightsError: they are none; says in what they differ from the nearest.
    """
    fits = [name for name in NETS if not misfits(state, name)]
    if fits:
        return fits
    faults = {name: _compare(state, name) for name in NETS}
    nearest = min(NETS, key=lambda name: sum(map(len, faults[name])))
    known = {key for name in NETS for key in _layout(name)[0]}
    if not known & {classifier_name(key) for key in state}:
        raise WeightsError(
            f"{path}: holds none of the nets {', '.join(NETS)}: no net has a tensor of one of its "
            f"names, {some(list(state))}"
        )
    raise WeightsError(
        f"{path}: holds none of our nets. The nearest is {nearest}, but {misfits(state, nearest)}"
    )
