"""Foreign weights in and out: files into nets, by name, with every miss reported."""

import io
import pickle
import re
from dataclasses import dataclass
from pathlib import Path

import torch

# A detector's parameter names, stripped of these, are the classifier's.
DETECTOR_PREFIXES = ("backbone.bottom_up.", "backbone.", "roi_heads.")

_TORCHVISION = (
    (r"^fc\.", "linear."),
    (r"^(conv1|bn1)\.", r"stem.\1."),
    (r"^layer(\d)\.", lambda m: f"res{int(m[1]) + 1}."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
)
_TORCHVISION_VGG_CONVS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_VGG_CONVS = [f"conv{i + 1}.{j + 1}." for i, n in enumerate((2, 2, 3, 3, 3)) for j in range(n)]
_TORCHVISION_VGG = (
    *((rf"^features\.{t}\.", ours) for t, ours in zip(_TORCHVISION_VGG_CONVS, _VGG_CONVS)),
    (r"^classifier\.0\.", "fc6."),
    (r"^classifier\.3\.", "fc7."),
    (r"^classifier\.6\.", "linear."),
)


class WeightsError(ValueError):
    """A weight file that cannot be read, or that does not fit the net."""


def from_torchvision(state):
    """torchvision's parameter names of a ResNet or VGG-16 -> ours."""
    patterns = _TORCHVISION_VGG if "features.0.weight" in state else _TORCHVISION
    renamed = {}
    for key, value in state.items():
        for pattern, replacement in patterns:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed


# What torchvision's and timm's ImageNet weights were trained on, in Detectron2's scale.
TORCHVISION_FACTS = {
    "format": "RGB",
    "pixel_mean": [123.675, 116.28, 103.53],
    "pixel_std": [58.395, 57.12, 57.375],
}


class _ArraysOnly(pickle.Unpickler):
    """Reads plain containers and numpy arrays, and refuses whatever else a pickle may call."""

    allowed = frozenset({
        ("collections", "OrderedDict"),
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        ("_codecs", "encode"),
        *((f"numpy.{core}.multiarray", name) for core in ("core", "_core")
          for name in ("_reconstruct", "scalar")),
        ("numpy._core.numeric", "_frombuffer"),
        ("numpy.core.numeric", "_frombuffer"),
    })  # fmt: skip

    def find_class(self, module, name):
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it would call {module}.{name}, which is refused")
        return super().find_class(module, name)


def read_pickle(path, content=None):
    """The content of a pickle of numpy arrays (Detectron's, Detectron2's), running no code.

    Args:
        path: the file.
        content: its bytes, where they were read from elsewhere (an archive).

    Raises:
        WeightsError: the file is broken, or holds anything but arrays in plain containers.
    """
    try:
        content = Path(path).read_bytes() if content is None else content
        return _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises anything
        raise WeightsError(f"{path}: not a readable pickle of arrays: {error}") from error


def _tensors(content):
    """Arrays of a ``.pkl`` as tensors; what is not an array stays."""
    if not isinstance(content, dict):
        return content
    return {
        k: torch.from_numpy(v) if type(v).__name__ == "ndarray" else v for k, v in content.items()
    }


def read(path):
    """Read a ``.pth``, or a ``.pkl`` in Detectron2's names, without running code from it.

    Returns:
        (dict name -> tensor in our names, dict of the facts stored beside them). torchvision's
        files carry none, but their names tell them.

    Raises:
        WeightsError: the file is missing, cut short, hostile, or holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; give a .pth or .pkl file of weights")
    if path.suffix == ".pkl":
        content = read_pickle(path)
    else:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises anything from EOFError to RuntimeError here
            raise WeightsError(f"{path}: not a readable weight file: {error}") from error
    facts = {}
    if isinstance(content, dict):
        facts = content.get("meta", {})
        content = content.get("model", content.get("state_dict", content))
    if path.suffix == ".pkl":
        content = _tensors(content)
    if not isinstance(content, dict) or not all(map(torch.is_tensor, content.values())):
        raise WeightsError(f"{path}: holds no dictionary of tensors, neither bare nor as 'model'")
    if not content:
        raise WeightsError(f"{path}: holds no tensor")
    if any(k.startswith(("layer1.", "features.0.")) for k in content):
        facts = dict(TORCHVISION_FACTS)
        if "layer1.0.conv3.weight" in content:  # a bottleneck's stride is on its 3x3
            facts["stride_in_1x1"] = False
        content = from_torchvision(content)
    return content, facts


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


def load(net, path, *, new=(), drop=(), fresh=(), partial=False):
    """Load a weight file into a classifier or a detector, and say what matched.

    A classifier's file fills a detector's trunk and head by their common names.

    Args:
        net: module with Detectron2's parameter names.
        path: torchvision's, Detectron2's or our own ``.pth``.
        new: prefixes of the net's parameters that a file may lack, or hold in another shape.
        drop: prefixes of the file's parameters that the net need not have.
        fresh: names of the net's parameters that stay as they are, whatever the file holds.
        partial: accept any other miss too, as long as something matches.

    Returns:
        Match

    Raises:
        WeightsError: unreadable file, or a miss that was not asked for.
    """
    state, facts = read(path)
    own = net.state_dict()
    detector_file = any(key.startswith(DETECTOR_PREFIXES) for key in state)
    target = {key if detector_file else classifier_name(key): key for key in own}

    for key in [k for k in target if target[k] in fresh]:
        state.pop(key, None)

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
