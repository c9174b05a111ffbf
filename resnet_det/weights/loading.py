"""Weight files into nets, by name, with every miss reported."""

import logging
import math
import shlex
from dataclasses import dataclass

import torch

from ..nets.catalog import NETS, meta_net
from ..nets.resnet import PadShortcut
from .files import SUFFIXES, read_file
from .formats import to_our_names
from .identify import DETECTOR_PREFIXES, classifier_name, is_counter, is_detector, some
from .pickles import WeightsError

logger = logging.getLogger(__name__)

__all__ = [
    "DETECTOR_PREFIXES",
    "SUFFIXES",
    "Match",
    "WeightsError",
    "check_shortcuts",
    "classifier_name",
    "fit",
    "load",
    "read",
    "zeros_at_end",
    "zeros_unknown",
]

# Facts that a file of ours may carry, and the types that are believed.
_FACTS = {
    "net": str,
    "stride_in_1x1": bool,
    "format": str,
    "pixel_mean": list,
    "pixel_std": list,
    "classes": list,
    "guessed": list,
    "config": str,
    "mean_image": torch.Tensor,
    "zeros": str,
}


def _checked(facts, path):
    if not isinstance(facts, dict):
        raise WeightsError(f"{path}: 'meta' is no dictionary of facts")
    for name, kind in _FACTS.items():
        value = facts.get(name, kind())
        fits = type(value) is kind
        if fits and name.startswith("pixel_"):
            fits = all(type(x) in (int, float) and math.isfinite(x) for x in value)
        if fits and name in ("classes", "guessed"):
            fits = all(type(x) is str for x in value)
        if fits and name == "mean_image" and name in facts:
            fits = value.dim() == 3 and len(value) == 3
        if fits and name == "zeros" and name in facts:
            fits = value == "end"  # a file is converted to it
        if not fits:
            raise WeightsError(f"{path}: its fact {name!r} is not what it should be, {kind}")
    return facts


def read(path):
    """Read a weight file of any known format, without running code from it.

    ``.pth``, ``.safetensors`` and ``.pkl``, with the names of torchvision, timm, Detectron2,
    Detectron and MSRA (Caffe2's blobs), VGG-16 in Caffe, or our own.

    Returns:
        (dict name -> tensor in our names, dict of the facts about them: those stored in the file,
        and those that its names suggest: ``format``, ``pixel_mean``, ``pixel_std``,
        ``stride_in_1x1``. ``guessed`` lists the latter).

    Raises:
        WeightsError: the file is missing, cut short, hostile, or holds no tensors.
    """
    content, beside = read_file(path)
    try:
        state, known = to_our_names(content, beside.get("__author__", ""))
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    stored = _checked(beside.get("meta", {}), path)
    guessed = [fact for fact in known if fact not in stored] + stored.get("guessed", [])
    return state, known | stored | ({"guessed": guessed} if guessed else {})


@dataclass(frozen=True)
class Match:
    """What became of a file's tensors; the names are the net's (``unused``: the file's)."""

    loaded: tuple
    missing: tuple
    unused: tuple
    mismatched: tuple
    facts: dict

    def __str__(self):
        return (
            f"{len(self.loaded)} tensors loaded, {len(self.missing)} missing, "
            f"{len(self.unused)} unused, {len(self.mismatched)} of another shape"
        )


def zeros_at_end(facts):
    """Whether a file's option A pads its zeros behind the channels, as our nets do.

    That is not known of a file with the names of another project, from which facts were guessed,
    unless its conversion said it (the fact ``zeros``). Our names are only given to our nets.

    Args:
        facts: as :func:`read` gives them.
    """
    return "zeros" in facts or "guessed" not in facts


def zeros_unknown(path):
    """The WeightsError for a file of option A of which :func:`zeros_at_end` is not known."""
    command = shlex.join(["tools/convert_weights.py", "--zeros", "both", str(path), "OUT.pth"])
    return WeightsError(
        f"{path}: does not say where option A pads its zeros, and weights for either place fit: "
        "half of them on each side of the channels, as common PyTorch versions of the CIFAR nets "
        f"do (python {command}), or all behind the channels, as the nets here do (the same with "
        "--zeros end)"
    )


def check_shortcuts(net, facts, path):
    """Raise if a file's shortcuts are not the net's, which no name and no shape of a tensor tells.

    Args:
        net: module that the file is loaded into.
        facts: as :func:`read` gives them.

    Raises:
        WeightsError: the file holds a plain net and this one has option A, or the reverse; or it
            does not say where option A's zeros stand.
    """
    padded = any(isinstance(m, PadShortcut) and m.new_channels for m in net.modules())
    held = facts.get("net", "").removesuffix("_fpn")
    if held in NETS and meta_net(held).has_padded_shortcuts != padded:
        raise WeightsError(
            f"{path}: holds {held}, and this net has {'' if padded else 'no '}shortcuts that pad "
            "zeros: even if every tensor fits, it would compute something else"
        )
    if padded and not zeros_at_end(facts):
        raise zeros_unknown(path)
    if padded and not facts:
        logger.warning(
            "%s: carries no facts; its option A is taken to pad zeros behind the channels", path
        )


def load(net, path, **options):
    """:func:`read` a weight file and :func:`fit` it; the options are the latter's."""
    return fit(net, *read(path), path, **options)


def fit(net, state, facts, path, *, new=(), drop=(), fresh=(), partial=False):
    """Fill a classifier or a detector with a file's tensors, and say what matched.

    A classifier's file fills a detector's trunk and head by their common names.

    Args:
        net: module with Detectron2's parameter names.
        state, facts: of the file, as :func:`read` gives them; ``path`` names it in errors.
        new: prefixes of the net's parameters that a file may lack, or hold in another shape.
        drop: prefixes of the file's parameters that the net need not have.
        fresh: names of the net's parameters that stay as they are, whatever the file holds.
        partial: accept any other miss too, as long as something matches.

    Returns:
        Match

    Raises:
        WeightsError: a miss that was not asked for, or a file of another project for a net with
            option A that does not say where the zeros stand.
    """
    own = net.state_dict()
    detector_file = is_detector(state)
    target = {key if detector_file else classifier_name(key): key for key in own}

    unread = {key for key in target if target[key] in fresh}
    state = {key: value for key, value in state.items() if key not in unread}

    fits = {k for k in target if k in state and state[k].shape == own[target[k]].shape}
    wrong = [target[k] for k in target if k in state and k not in fits]
    missing = [target[k] for k in target if k not in state and not is_counter(k)]
    unused = [k for k in state if k not in target and not is_counter(k)]
    match = Match(
        tuple(target[k] for k in fits), tuple(missing), tuple(unused), tuple(wrong), facts
    )

    faults = []
    missing = [k for k in missing if not k.startswith(tuple(new)) and k not in fresh]
    unused = [k for k in unused if not k.startswith(tuple(drop))]
    wrong = [
        f"{k} {tuple(own[k].shape)}, in the file "
        f"{tuple(state[k if detector_file else classifier_name(k)].shape)}"
        for k in wrong
        if not k.startswith(tuple(new))
    ]
    if missing:
        faults.append(f"the file lacks {some(missing)}")
    if unused:
        faults.append(f"the net has no {some(unused)}")
    if wrong:
        faults.append(f"other shapes: {some(wrong)}")
    if not fits or (faults and not partial):
        raise WeightsError(f"{path}: does not fit the net ({match}): {'; '.join(faults)}")
    check_shortcuts(net, facts, path)
    for key in fits:
        if state[key].is_floating_point() and not bool(state[key].isfinite().all()):
            raise WeightsError(f"{path}: {key} holds values that are not finite")
    net.load_state_dict({target[k]: state[k] for k in fits}, strict=False)
    return match
