"""The names that other projects give to the same tensors, and what those weights were trained on."""

import re

import torch

from ..nets.catalog import NETS, meta_net
from ..nets.vgg import CONVOLUTIONS
from .class_names import COCO, VOC
from .pickles import WeightsError

# Pixels in Detectron2's scale, 0-255. torchvision's and timm's ImageNet weights:
TORCHVISION_FACTS = {
    "format": "RGB",
    "pixel_mean": [123.675, 116.28, 103.53],
    "pixel_std": [58.395, 57.12, 57.375],
}
# Everything that was trained in Caffe: MSRA's ResNets, VGG-16.
CAFFE_FACTS = {
    "format": "BGR",
    "pixel_mean": [103.53, 116.28, 123.675],
    "pixel_std": [1.0, 1.0, 1.0],
}

# ---- torchvision and timm, which agree on ResNets

_TORCHVISION = (
    (r"^(stem\.)?fc\.", "linear."),  # "stem.": Detectron2's converter says so
    (r"^(conv1|bn1)\.", r"stem.\1."),
    (r"^layer(\d)\.", lambda m: f"res{int(m[1]) + 1}."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
)
_TO_TORCHVISION = (
    (r"^linear\.", "fc."),
    (r"^stem\.", ""),
    (r"^res(\d)\.", lambda m: f"layer{int(m[1]) - 1}."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
    (r"\bconv(\d)\.norm\.", r"bn\1."),
)
_TORCHVISION_VGG = {
    "classifier.0.": "fc6.",
    "classifier.3.": "fc7.",
    "classifier.6.": "linear.",
}
_TIMM_VGG = {
    "pre_logits.fc1.": "fc6.",
    "pre_logits.fc2.": "fc7.",
    "head.fc.": "linear.",
}


def _vgg_prefixes(convolutions):
    """The prefixes of torchvision's and timm's VGG -> ours, for the convolutions of each stage.

    Each convolution has a ReLU behind it, and each stage a pooling.
    """
    prefixes, index = {}, 0
    for stage, count in enumerate(convolutions, 1):
        for i in range(1, count + 1):
            prefixes[f"features.{index}."] = f"conv{stage}.{i}."
            index += 2
        index += 1
    return prefixes


def _vgg_prefixes_of(state, ours=False):
    """The prefixes of the VGG that holds all convolutions of ``state``; none if there is no such."""
    start = r"conv\d\.\d+\." if ours else r"features\.\d+\."
    held = {m[0] for m in (re.match(start, key) for key in state) if m}
    for convolutions in CONVOLUTIONS.values():
        prefixes = _vgg_prefixes(convolutions)
        if held <= set(prefixes.values() if ours else prefixes):
            return prefixes
    return {}


def _by_patterns(state, patterns):
    renamed = {}
    for key, value in state.items():
        for pattern, replacement in patterns:
            key = re.sub(pattern, replacement, key)
        if key in renamed:
            raise WeightsError(f"two of its tensors would be {key}")
        renamed[key] = value
    return renamed


def _by_prefixes(state, prefixes):
    renamed = {}
    for key, value in state.items():
        prefix = next((p for p in prefixes if key.startswith(p)), None)
        renamed[key if prefix is None else prefixes[prefix] + key[len(prefix) :]] = value
    return renamed


# ---- Caffe2's blobs: MSRA's R-50.pkl and R-101.pkl, Detectron's, and VGG-16

_CAFFE = (
    (r"^(pred|fc1000|fc8)_", "linear_"),
    (r"^conv1_([wb])$", r"stem.conv1_\1"),
    (r"^res_conv1_", "stem.conv1_"),
    (r"^res(\d)_(\d+)_branch1_", r"res\1.\2.shortcut_"),
    (r"^res(\d)_(\d+)_branch2([abc])_", lambda m: f"res{m[1]}.{m[2]}.conv{' abc'.index(m[3])}_"),
    (r"^conv(\d)_(\d)_", r"conv\1.\2_"),
    (r"_(bn|gn)_s$", ".norm.weight"),
    (r"_(bn|gn)_b$", ".norm.bias"),
    (r"_bn_rm$", ".norm.running_mean"),
    (r"_bn_riv$", ".norm.running_var"),
    (r"_w$", ".weight"),
    (r"_b$", ".bias"),
)
BN_EPS = 1e-5  # of our batch norms


def _from_caffe(state):
    """A batch norm there is an affine map, s * x + b; MSRA's R-50 has a bias before its first."""
    group_norm = any(key.endswith("_gn_s") for key in state)
    state = _by_patterns({k: v for k, v in state.items() if not k.endswith("_momentum")}, _CAFFE)
    for weight in [k for k in state if k.endswith(".norm.weight") and not group_norm]:
        norm = weight.removesuffix("weight")
        bias = state.pop(norm.removesuffix("norm.") + "bias", torch.zeros_like(state[weight]))
        state[norm + "running_mean"] = state.get(norm + "running_mean", 0) - bias
        if norm + "running_var" not in state:
            state[norm + "running_var"] = torch.full_like(bias, 1 - BN_EPS, dtype=torch.float64)
    conv2 = state.get("res2.0.conv2.weight")
    if conv2 is None:
        return state, dict(CAFFE_FACTS)
    if conv2.shape[:1] != conv2.shape[1:2]:  # ResNeXt: neither MSRA's stride nor its deviation
        return state, {"format": "BGR"}
    # MSRA's stride is on the 1x1; those with group normalisation were trained elsewhere, later.
    return state, CAFFE_FACTS | {"stride_in_1x1": not group_norm}


# ---- any of them


def to_our_names(state, author=""):
    """Names of a known format -> ours; unknown names stay.

    Args:
        state: dict name -> tensor.
        author: Detectron2's ``__author__``.

    Returns:
        (dict in our names, dict of the facts that the format suggests: a net that was trained in
        Caffe may have torchvision's names).
    """
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    torchvision = dict(TORCHVISION_FACTS)
    if "conv1_w" in state or "conv1_1_w" in state:
        return _from_caffe(state)
    if "pre_logits.fc1.weight" in state:
        state = _by_prefixes(state, _vgg_prefixes_of(state) | _TIMM_VGG)
        return {k: v.flatten(1) if k in _FC else v for k, v in state.items()}, torchvision
    if "features.0.weight" in state:
        return _by_prefixes(state, _vgg_prefixes_of(state) | _TORCHVISION_VGG), torchvision
    if author == "torchvision" or "layer1.0.conv1.weight" in state:
        state = _by_patterns(state, _TORCHVISION)
        # A bottleneck's stride is on its 3x3.
        stride = {"stride_in_1x1": False} if "res2.0.conv3.weight" in state else {}
        return state, torchvision | stride
    return state, _zoo_facts(state) if author == "Detectron2 Model Zoo" else {}


# Rows of the class layer of Detectron2's published detectors: with background, or RetinaNet's of
# its 9 anchors.
_ZOO_CLASSES = {len(COCO) + 1: COCO, 9 * len(COCO): COCO, len(VOC) + 1: VOC}


def _zoo_facts(state):
    rows = {len(v) for k, v in state.items() if k.endswith("cls_score.weight")}
    classes = _ZOO_CLASSES.get(rows.pop()) if len(rows) == 1 else None
    return {"classes": list(classes)} if classes else {}


def zeros_to_end(state):
    """A net whose option A pads zeros on both sides of the channels -> the same function with them
    behind the channels, as our nets have it.

    A stage of W channels after one of V starts with (W - V) / 2 zeros there. The channels of the
    residual stream are reordered, from that stage on: those of the stage before, then the others.

    Args:
        state: dict in our names, of a net of two 3x3 convolutions per block.
    """
    state = dict(state)
    order = list(range(len(state["stem.conv1.weight"])))  # of the stream: our channel -> theirs
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


_FC = {"fc6.weight": (4096, 512, 7, 7), "fc7.weight": (4096, 4096, 1, 1)}  # timm: convolutions
FORMATS = ("own", "torchvision", "timm")
# The nets that torchvision and timm have too.
SHARED_NETS = tuple(name for name, spec in NETS.items() if spec.torchvision)


def _net_of(state):
    """The name of the net of ``SHARED_NETS`` that these are all the tensors of, or None."""

    def shapes(tensors):
        return {
            k: v.shape[1:] if k.startswith("linear.") else v.shape
            for k, v in tensors.items()
            if not k.endswith("num_batches_tracked")
        }

    for name in SHARED_NETS:
        if shapes(meta_net(name).state_dict()) == shapes(state):
            return name
    return None


def to_their_names(state, facts, format, path):
    """Our names and pixels -> those of torchvision or timm, whose files carry no facts.

    BGR becomes RGB in the first convolution, and a deviation goes into it, so that the net takes
    what those projects feed. A mean cannot, and a stride cannot move.

    Args:
        state: dict in our names.
        facts: of :func:`resnet_det.weights.loading.read`; ``format``, ``pixel_mean`` and
            ``pixel_std`` are needed, and ``stride_in_1x1`` of a bottleneck.
        path: of the file, for the errors.

    Raises:
        WeightsError: they have no such net, or not with this mean or stride.
    """
    name = _net_of(state)
    if name is None:
        raise WeightsError(
            f"{path}: {format} has no such net: it has the classifiers {', '.join(SHARED_NETS)}"
        )
    if "res2.0.conv3.weight" in state and facts["stride_in_1x1"]:
        raise WeightsError(
            f"{path}: was trained with MODEL.RESNETS.STRIDE_IN_1X1 True, and {format}'s nets have "
            "the stride on the 3x3 (False): they would lose accuracy in silence"
        )
    vgg = "fc6.weight" in state
    first = "conv1.1.weight" if vgg else "stem.conv1.weight"
    weight, mean, std = state[first], facts["pixel_mean"], facts["pixel_std"]
    if facts["format"] != TORCHVISION_FACTS["format"]:
        weight, mean, std = weight.flip(1), mean[::-1], std[::-1]
    if "mean_image" in facts:
        raise WeightsError(
            f"{path}: was trained with RESNET_DET.PER_PIXEL_MEAN, and {format} subtracts a mean "
            "for each channel"
        )
    if not same_mean(mean, TORCHVISION_FACTS["pixel_mean"]):
        raise WeightsError(
            f"{path}: was trained with MODEL.PIXEL_MEAN {facts['pixel_mean']} ({facts['format']}), "
            f"and {format}'s is {TORCHVISION_FACTS['pixel_mean']} (RGB)"
        )
    if std != TORCHVISION_FACTS["pixel_std"]:
        scale = torch.tensor(TORCHVISION_FACTS["pixel_std"], dtype=torch.float64)
        scale /= torch.tensor(std, dtype=torch.float64)
        weight = (weight * scale[:, None, None]).to(weight.dtype)
    state = state | {first: weight}
    if not vgg:
        return _by_patterns(state, _TO_TORCHVISION)
    if format == "timm":
        state |= {k: state[k].reshape(shape) for k, shape in _FC.items()}
    prefixes = _vgg_prefixes_of(state, ours=True)
    prefixes |= _TIMM_VGG if format == "timm" else _TORCHVISION_VGG
    return _by_prefixes(state, {ours: theirs for theirs, ours in prefixes.items()})


def same_mean(a, b):
    """Whether two means are less than one of 255 grey levels apart.

    (MSRA's nets saw the mean of an image, and each project subtracts another average of it.)
    """
    return len(a) == len(b) and all(abs(x - y) < 1 for x, y in zip(a, b))
