"""Weight files into nets, by name, with every miss reported."""

import math
from dataclasses import dataclass

import torch

from .weight_files import SUFFIXES, WeightsError, read_file
from .weight_formats import to_our_names

__all__ = [
    "DETECTOR_PREFIXES",
    "SUFFIXES",
    "Match",
    "WeightsError",
    "classifier_name",
    "fit",
    "load",
    "read",
    "rename_parameters",
]

# A detector's parameter names, stripped of these, are the classifier's.
DETECTOR_PREFIXES = ("backbone.bottom_up.", "backbone.", "roi_heads.")

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


def _some(names):
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def classifier_name(key):
    """A detector's parameter name as the classifier has it."""
    return next((key[len(p) :] for p in DETECTOR_PREFIXES if key.startswith(p)), key)


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
        WeightsError: a miss that was not asked for.
    """
    own = net.state_dict()
    detector_file = any(key.startswith(DETECTOR_PREFIXES) for key in state)
    target = {key if detector_file else classifier_name(key): key for key in own}

    unread = {key for key in target if target[key] in fresh}
    state = {key: value for key, value in state.items() if key not in unread}

    def counter(key):  # of batches, absent in frozen norms
        return key.endswith("num_batches_tracked")

    fits = {k for k in target if k in state and state[k].shape == own[target[k]].shape}
    wrong = [target[k] for k in target if k in state and k not in fits]
    missing = [target[k] for k in target if k not in state and not counter(k)]
    unused = [k for k in state if k not in target and not counter(k)]
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
        faults.append(f"the file lacks {_some(missing)}")
    if unused:
        faults.append(f"the net has no {_some(unused)}")
    if wrong:
        faults.append(f"other shapes: {_some(wrong)}")
    if not fits or (faults and not partial):
        raise WeightsError(f"{path}: does not fit the net ({match}): {'; '.join(faults)}")
    for key in fits:
        if state[key].is_floating_point() and not bool(state[key].isfinite().all()):
            raise WeightsError(f"{path}: {key} holds values that are not finite")
    net.load_state_dict({target[k]: state[k] for k in fits}, strict=False)
    return match


def rename_parameters(module, names):
    """Let a module's state dict carry other names: ``names`` maps its prefixes to them."""

    def rename(state, prefix, pairs):
        for old, new in pairs:
            for key in [k for k in state if k.startswith(prefix + old)]:
                state[prefix + new + key[len(prefix + old) :]] = state.pop(key)

    module.register_state_dict_post_hook(
        lambda _, state, prefix, *__: rename(state, prefix, names.items())
    )
    module.register_load_state_dict_pre_hook(
        lambda _, state, prefix, *__: rename(state, prefix, [(b, a) for a, b in names.items()])
    )
