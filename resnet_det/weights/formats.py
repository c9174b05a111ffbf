"""Tensor names and preprocessing of other projects' weights.

Each kind of file is one :class:`Format`: a table of names that is used in both directions.
"""

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..hints import some
from ..nets.catalog import NETS, meta_net
from ..nets.vgg import CONVOLUTIONS
from .class_names import COCO, COCO_BY_ID, VOC
from .facts import Facts, State, same_mean
from .identify import FIRST_CONVOLUTIONS, classifier_name, is_counter
from .pickles import WeightsError

logger = logging.getLogger(__name__)

Names = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Format:
    """One kind of file.

    Attributes:
        marks: a file that has a tensor with one of these names has this format.
        names: pairs (part of their names, part of our names), replaced in this order, so that a
            longer part precedes one that it contains. "^" marks the start of a name, "$" the end.
        facts: facts about the weights, such as their preprocessing.
    """

    marks: tuple[str, ...]
    names: Names
    facts: Facts


# Preprocessing for pixels 0-255: ImageNet weights from torchvision and timm, and all weights that
# were trained in Caffe (MSRA's nets, VGG-16).
TORCHVISION_FACTS: Facts = {
    "format": "RGB",
    "pixel_mean": [123.675, 116.28, 103.53],
    "pixel_std": [58.395, 57.12, 57.375],
}
CAFFE_FACTS: Facts = {
    "format": "BGR",
    "pixel_mean": [103.53, 116.28, 123.675],
    "pixel_std": [1.0, 1.0, 1.0],
}

TORCHVISION_RESNET = Format(  # timm's names are the same
    marks=("layer1.0.conv1.weight",),
    names=(
        ("^fc.", "^linear."),
        ("^stem.fc.", "^linear."),  # written by Detectron2's converter from torchvision
        ("^bn1.", "^stem.conv1.norm."),
        ("^conv1.", "^stem.conv1."),
        *((f"^layer{n}.", f"^res{n + 1}.") for n in range(1, 5)),
        (".downsample.1.", ".shortcut.norm."),
        (".downsample.0.", ".shortcut."),
        *((f".bn{n}.", f".conv{n}.norm.") for n in range(1, 4)),
    ),
    facts=TORCHVISION_FACTS,
)
TIMM_VGG = Format(  # _vgg_convolutions adds the names of the convolutions
    marks=("pre_logits.fc1.weight",),
    names=(
        ("^pre_logits.fc1.", "^fc6."),
        ("^pre_logits.fc2.", "^fc7."),
        ("^head.fc.", "^linear."),
    ),
    facts=TORCHVISION_FACTS,
)
TORCHVISION_VGG = Format(  # likewise
    marks=("features.0.weight",),
    names=(
        ("^classifier.0.", "^fc6."),
        ("^classifier.3.", "^fc7."),
        ("^classifier.6.", "^linear."),
    ),
    facts=TORCHVISION_FACTS,
)
CAFFE = Format(  # Caffe2's blobs: MSRA's R-50.pkl and R-101.pkl, Detectron's nets, and VGG-16
    marks=("conv1_w", "conv1_1_w"),
    names=(
        *((f"^{name}_", "^linear_") for name in ("pred", "fc1000", "fc8")),
        ("^conv1_w$", "^stem.conv1.weight$"),
        ("^conv1_b$", "^stem.conv1.bias$"),
        ("^res_conv1_", "^stem.conv1_"),
        *((f"^res{n}_", f"^res{n}.") for n in range(2, 6)),
        ("_branch1_", ".shortcut_"),
        *((f"_branch2{letter}_", f".conv{n}_") for n, letter in enumerate("abc", 1)),
        *((f"^conv{n}_{i}_", f"^conv{n}.{i}_") for n in range(1, 6) for i in range(1, 5)),
        *((f"_{norm}_s$", ".norm.weight$") for norm in ("bn", "gn")),
        *((f"_{norm}_b$", ".norm.bias$") for norm in ("bn", "gn")),
        ("_bn_rm$", ".norm.running_mean$"),
        ("_bn_riv$", ".norm.running_var$"),
        ("_w$", ".weight$"),
        ("_b$", ".bias$"),
    ),
    facts=CAFFE_FACTS,
)


@dataclass(frozen=True)
class DetectorFormat:
    """Another project's Faster R-CNN with a pyramid on a ResNet of torchvision's names.

    Attributes:
        mark: a file with a tensor of this name has this format.
        body: prefix of the ResNet's names.
        names: see :class:`Format`; for the other parts.
        facts: conventions, besides torchvision's pixels.
        classes: names of its classes, if it has as many.
        background_first: whether the background is the first class, with boxes, and not the last.
    """

    mark: str
    body: str
    names: Names
    facts: Facts
    classes: tuple[str, ...]
    background_first: bool = False


TORCHVISION_DETECTOR = DetectorFormat(
    mark="rpn.head.cls_logits.weight",
    body="backbone.body.",
    names=(
        *((f"^backbone.fpn.inner_blocks.{i}.", f"^backbone.fpn_lateral{i + 2}.") for i in range(4)),
        *((f"^backbone.fpn.layer_blocks.{i}.", f"^backbone.fpn_output{i + 2}.") for i in range(4)),
        *((f"^backbone.fpn_{part}{n}.0.", f"^backbone.fpn_{part}{n}.")  # torchvision 0.13 and later
          for part in ("lateral", "output") for n in range(2, 6)),
        ("^rpn.head.conv.0.0.", "^proposal_generator.rpn_head.conv."),  # likewise
        ("^rpn.head.conv.", "^proposal_generator.rpn_head.conv."),
        ("^rpn.head.cls_logits.", "^proposal_generator.rpn_head.objectness_logits."),
        ("^rpn.head.bbox_pred.", "^proposal_generator.rpn_head.anchor_deltas."),
        ("^roi_heads.box_head.fc6.", "^roi_heads.box_head.fc1."),
        ("^roi_heads.box_head.fc7.", "^roi_heads.box_head.fc2."),
    ),
    facts={
        "stride_in_1x1": False,
        "anchor_generator": "TorchvisionAnchorGenerator",
        "pooler_type": "ROIAlign",
        "sampling_ratio": 2,
    },
    classes=COCO_BY_ID,
    background_first=True,
)  # fmt: skip
MMDETECTION = DetectorFormat(  # from version 2.0
    mark="rpn_head.rpn_cls.weight",
    body="backbone.",
    names=(
        *((f"^neck.lateral_convs.{i}.conv.", f"^backbone.fpn_lateral{i + 2}.") for i in range(4)),
        *((f"^neck.fpn_convs.{i}.conv.", f"^backbone.fpn_output{i + 2}.") for i in range(4)),
        ("^rpn_head.rpn_conv.", "^proposal_generator.rpn_head.conv."),
        ("^rpn_head.rpn_cls.", "^proposal_generator.rpn_head.objectness_logits."),
        ("^rpn_head.rpn_reg.", "^proposal_generator.rpn_head.anchor_deltas."),
        ("^roi_head.bbox_head.shared_fcs.0.", "^roi_heads.box_head.fc1."),
        ("^roi_head.bbox_head.shared_fcs.1.", "^roi_heads.box_head.fc2."),
        ("^roi_head.bbox_head.fc_cls.", "^roi_heads.box_predictor.cls_score."),
        ("^roi_head.bbox_head.fc_reg.", "^roi_heads.box_predictor.bbox_pred."),
    ),
    facts={
        "stride_in_1x1": False,
        "anchor_generator": "DefaultAnchorGenerator",
        "pooler_type": "ROIAlignV2",
        "sampling_ratio": 0,
    },
    classes=COCO,
)
DETECTORS = (TORCHVISION_DETECTOR, MMDETECTION)
# Older files of Detectron2 hold what now follows from the config.
_PIXELS = ("pixel_mean", "pixel_std")
_CELL_ANCHORS = "anchor_generator.cell_anchors."

# They are tried in this order, because timm's VGG has torchvision's mark too.
_FORMATS = (CAFFE, TIMM_VGG, TORCHVISION_VGG, TORCHVISION_RESNET)


def _rename(state: State, names: Names, to_ours: bool = True) -> State:
    """Replace parts of names: other projects' by ours, or the reverse."""
    patterns = [
        ("^" * old.startswith("^") + re.escape(old.strip("^$")) + "$" * old.endswith("$"), new)
        for old, new in (pair if to_ours else pair[::-1] for pair in names)
    ]
    renamed: State = {}
    for key, value in state.items():
        for pattern, new in patterns:
            key = re.sub(pattern, new.strip("^$"), key)
        if key in renamed:
            raise WeightsError(f"two of its tensors would be {key}")
        renamed[key] = value
    return renamed


def _vgg_convolutions(state: Iterable[str], side: int) -> Names:
    """Convolution names of the VGG net that ``state`` holds; empty if it holds none.

    In torchvision and timm, a ReLU follows each convolution, and a pooling layer each stage. Both
    count in the index.

    Args:
        side: 0 if ``state`` has the other projects' names, 1 if it has ours.
    """
    start = (r"features\.\d+\.", r"conv\d\.\d+\.")[side]
    held = {f"^{m[0]}" for m in (re.match(start, key) for key in state) if m}
    for convolutions in CONVOLUTIONS.values():
        names, index = [], 0
        for stage, count in enumerate(convolutions, 1):
            for i in range(1, count + 1):
                names.append((f"^features.{index}.", f"^conv{stage}.{i}."))
                index += 2
            index += 1
        if held <= {pair[side] for pair in names}:
            return tuple(names)
    return ()


# ---- to our names

BN_EPS = 1e-5  # eps of our batch norms


def to_our_names(state: State, author: str = "") -> tuple[State, Facts]:
    """Rename the tensors of a known format. Other names do not change.

    Args:
        state: tensors by the names in the file.
        author: Detectron2's ``__author__``.

    Returns:
        (tensors by our names, facts that the format suggests). The facts are a guess: a net that
        was trained in Caffe may have torchvision's names.
    """
    state = _without_prefixes(state)
    state = {k: v for k, v in state.items() if _CELL_ANCHORS not in k}
    if detector := next((f for f in DETECTORS if f.mark in state), None):
        return _from_detector(state, detector)
    format = next((f for f in _FORMATS if any(mark in state for mark in f.marks)), None)
    if format is None and author == "torchvision":
        format = TORCHVISION_RESNET
    if format is None:
        facts = {key: state.pop(key).flatten().tolist() for key in _PIXELS if key in state}
        return state, facts if author != "Detectron2 Model Zoo" else _zoo_facts(state) | facts
    if format is CAFFE:
        return _from_caffe(state)
    if format is TORCHVISION_RESNET:
        state = _rename(state, format.names)
        # In these bottlenecks, the 3x3 convolution has the stride.
        stride = {"stride_in_1x1": False} if "res2.0.conv3.weight" in state else {}
        return state, format.facts | stride
    state = _rename(state, (*_vgg_convolutions(state, 0), *format.names))
    return {k: v.flatten(1) if k in _TIMM_FC else v for k, v in state.items()}, dict(format.facts)


def _is_known(state: State) -> bool:
    """Whether the names are ours or those of a known format."""
    marks = {mark for format in _FORMATS for mark in format.marks} | {f.mark for f in DETECTORS}
    return any(key in marks or classifier_name(key) in FIRST_CONVOLUTIONS for key in state)


# What wrappers put before the names of a net: torch.compile, DataParallel, a trainer's module, a
# detector's or a segmenter's backbone, MoCo's query encoder. The other tensors beside it are another
# net's.
_PREFIXES = ("_orig_mod.", "module.", "model.", "backbone.body.", "backbone.", "encoder_q.")


def _without_prefixes(state: State) -> State:
    """Keep the tensors of the net that stands under one or more of ``_PREFIXES``, if one does."""
    inner = state
    while not _is_known(inner):
        prefix = next((p for p in _PREFIXES if any(key.startswith(p) for key in inner)), None)
        if prefix is None:
            return state
        inner = {k.removeprefix(prefix): v for k, v in inner.items() if k.startswith(prefix)}
        if prefix == "encoder_q.":  # its last layers are no classes
            inner = {key: value for key, value in inner.items() if not key.startswith("fc.")}
    if 0 < len(inner) < len(state):
        taken = {id(value) for value in inner.values()}
        others = [key for key, value in state.items() if id(value) not in taken]
        logger.warning("%d tensors beside the net are not used: %s", len(others), some(others))
    return inner


def _from_detector(state: State, format: DetectorFormat) -> tuple[State, Facts]:
    """Rename a Faster R-CNN with a pyramid on a ResNet.

    Raises:
        WeightsError: it has a mask or keypoint head, whose tensors would keep their names.
    """
    others = [key for key in state if re.match(r"roi_heads?\.(mask|keypoint)_", key)]
    if others:
        raise WeightsError(
            f"holds more than a Faster R-CNN, {some(others)}: mask and keypoint heads cannot be "
            "converted; remove their tensors to convert the rest"
        )
    body = {k.removeprefix(format.body): v for k, v in state.items() if k.startswith(format.body)}
    parts = {k: v for k, v in state.items() if not k.startswith(format.body)}
    stages = _rename(body, TORCHVISION_RESNET.names)
    state = _rename(parts, format.names) | {f"backbone.bottom_up.{k}": v for k, v in stages.items()}
    score, box = (f"roi_heads.box_predictor.{name}." for name in ("cls_score", "bbox_pred"))
    if format.background_first and f"{score}weight" in state:  # ours is last, and has no box
        for end in ("weight", "bias"):
            state[score + end] = state[score + end].roll(-1, 0)
            state[box + end] = state[box + end][4:]
    rows = len(state.get(f"{score}weight", ()))
    classes = {"classes": list(format.classes)} if rows == len(format.classes) + 1 else {}
    return state, TORCHVISION_FACTS | format.facts | classes


def _from_caffe(state: State) -> tuple[State, Facts]:
    """Convert Caffe's batch norms, which are affine maps s * x + b. MSRA's R-50 also has a bias
    before the first one."""
    group_norm = any(key.endswith("_gn_s") for key in state)
    state = {k: v for k, v in state.items() if not k.endswith("_momentum")}
    state = _rename(state, CAFFE.names)
    for weight in [k for k in state if k.endswith(".norm.weight") and not group_norm]:
        norm = weight.removesuffix("weight")
        bias = state.pop(norm.removesuffix("norm.") + "bias", torch.zeros_like(state[weight]))
        state[norm + "running_mean"] = state.get(norm + "running_mean", 0) - bias
        if norm + "running_var" not in state:
            state[norm + "running_var"] = torch.full_like(bias, 1 - BN_EPS, dtype=torch.float64)
    conv2 = state.get("res2.0.conv2.weight")
    if conv2 is None:
        return state, dict(CAFFE.facts)
    if conv2.shape[:1] != conv2.shape[1:2]:  # ResNeXt: neither MSRA's stride nor its deviation
        return state, {"format": "BGR"}
    # MSRA's nets have the stride on the 1x1. Nets with group norm were trained elsewhere, later.
    return state, CAFFE.facts | {"stride_in_1x1": not group_norm}


# Number of rows in the class layer of Detectron2's published detectors: with the background, or for
# RetinaNet's 9 anchors.
_ZOO_CLASSES = {len(COCO) + 1: COCO, 9 * len(COCO): COCO, len(VOC) + 1: VOC}


def _zoo_facts(state: State) -> Facts:
    rows = {len(v) for k, v in state.items() if k.endswith("cls_score.weight")}
    classes = _ZOO_CLASSES.get(rows.pop()) if len(rows) == 1 else None
    return {"classes": list(classes)} if classes else {}


def with_our_eps(state: State, eps: float) -> State:
    """Let our batch norms compute what those with another ``eps`` did."""
    variances = (key for key in state if key.endswith("norm.running_var"))
    return state | {key: (state[key].double() + eps - BN_EPS).to(state[key]) for key in variances}


def is_openmmlabs(meta: object) -> bool:
    """Whether the entry "meta" of a file was written by a project of OpenMMLab (MMDetection)."""
    return isinstance(meta, dict) and not {"mmcv_version", "mmengine_version"}.isdisjoint(meta)


def openmmlab_facts(meta: Facts) -> Facts:
    """The facts in OpenMMLab's "meta": the classes, and a net of Caffe's style."""
    facts: Facts = {}
    data = meta.get("dataset_meta")
    data = data if isinstance(data, dict) else {}
    classes = meta.get("CLASSES") or data.get("classes") or data.get("CLASSES")
    if isinstance(classes, list | tuple) and all(type(name) is str for name in classes):
        facts["classes"] = list(classes)
    config = meta.get("config") or meta.get("cfg")
    if isinstance(config, str) and re.search(r"""style\W+caffe""", config):
        facts |= CAFFE_FACTS | {"stride_in_1x1": True}
    return facts


# ---- to their names

FORMATS = ("own", "torchvision", "timm")
# The nets that torchvision and timm also have.
SHARED_NETS = tuple(name for name, spec in NETS.items() if spec.torchvision)
_TIMM_FC = {"fc6.weight": (4096, 512, 7, 7), "fc7.weight": (4096, 4096, 1, 1)}  # convolutions there


def to_their_names(state: State, facts: Facts, format: str, path: str | Path) -> State:
    """Convert to the names and the preprocessing of torchvision or timm.

    Their files carry no facts, so the net must work with the preprocessing of those projects. The
    first convolution is converted from BGR to RGB and scaled to their standard deviation. A
    different mean or stride placement cannot be converted.

    Args:
        state: tensors by our names.
        facts: ``format``, ``pixel_mean`` and ``pixel_std`` are needed, and ``stride_in_1x1`` for
            bottlenecks.
        format: "torchvision" or "timm".
        path: path of the file, for the error messages.

    Raises:
        WeightsError: that project has no such net, or its mean or stride placement differs.
    """
    if not any(_has_tensors_of(name, state) for name in SHARED_NETS):
        raise WeightsError(
            f"{path}: {format} has no such net. It shares the classifiers {', '.join(SHARED_NETS)}"
        )
    if "res2.0.conv3.weight" in state and facts["stride_in_1x1"]:
        raise WeightsError(
            f"{path}: was trained with MODEL.RESNETS.STRIDE_IN_1X1 True, but the nets of {format} "
            "have the stride on the 3x3 (False): they would lose accuracy silently"
        )
    vgg = "fc6.weight" in state
    first = "conv1.1.weight" if vgg else "stem.conv1.weight"
    state = state | {first: _for_their_pixels(state[first], facts, format, path)}
    if not vgg:
        return _rename(state, TORCHVISION_RESNET.names, to_ours=False)
    if format == "timm":
        state |= {k: state[k].reshape(shape) for k, shape in _TIMM_FC.items()}
    fc = TIMM_VGG if format == "timm" else TORCHVISION_VGG
    return _rename(state, (*_vgg_convolutions(state, 1), *fc.names), to_ours=False)


def _has_tensors_of(name: str, state: State) -> bool:
    """Whether ``state`` holds a net's tensors, with any number of classes."""

    def shapes(tensors: State) -> dict[str, torch.Size]:
        return {
            k: v.shape[1:] if k.startswith("linear.") else v.shape
            for k, v in tensors.items()
            if not is_counter(k)
        }

    return shapes(meta_net(name).state_dict()) == shapes(state)


def _for_their_pixels(weight: Tensor, facts: Facts, format: str, path: str | Path) -> Tensor:
    """Convert the first convolution (out, 3, kH, kW) to RGB and torchvision's standard
    deviation."""
    mean, std = facts["pixel_mean"], facts["pixel_std"]
    if facts["format"] != TORCHVISION_FACTS["format"]:
        weight, mean, std = weight.flip(1), mean[::-1], std[::-1]
    if "mean_image" in facts:
        raise WeightsError(
            f"{path}: was trained with RESNET_DET.PER_PIXEL_MEAN, but {format} subtracts a "
            "per-channel mean"
        )
    if not same_mean(mean, TORCHVISION_FACTS["pixel_mean"]):
        raise WeightsError(
            f"{path}: was trained with MODEL.PIXEL_MEAN {facts['pixel_mean']} ({facts['format']}), "
            f"but {format}'s is {TORCHVISION_FACTS['pixel_mean']} (RGB)"
        )
    if std == TORCHVISION_FACTS["pixel_std"]:
        return weight
    scale = torch.tensor(TORCHVISION_FACTS["pixel_std"], dtype=torch.float64)
    scale /= torch.tensor(std, dtype=torch.float64)
    return (weight * scale[:, None, None]).to(weight.dtype)
