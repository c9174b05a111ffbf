"""Facts about weights, such as their preprocessing: stored in files and compared with configs.

A checkpoint stores its facts under the key "meta"; :mod:`resnet_det.engines.provenance` makes them.

    net                    name of the net, such as paper_resnet50
    stride_in_1x1          whether a bottleneck has its stride on the first 1x1 convolution
    format                 order of the channels, BGR or RGB; L if they are grey
    pixel_mean, pixel_std  of the normalisation, per channel in that order, for pixels in 0-255
    mean_image             (C, H, W), subtracted instead of pixel_mean (RESNET_DET.PER_PIXEL_MEAN)
    global_context         whether a detector has the paper's global context
    anchor_generator, pooler_type, sampling_ratio
                           how another project's detector makes anchors and pools regions
    classes                class names, in the order of the rows of the class layer
    config, seed, commit   config (as YAML), seed and git commit of the training run
    detectron2_config      the keys of MODEL that only Detectron2 knows (as YAML), if it trained
    zeros                  "end": shortcuts of option A pad zeros after the channels
    guessed                names of the facts that the file does not state but its format implies
"""

import logging
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode
from torch import Tensor, nn

from ..config.defaults import ConfigError, flatten
from ..nets.catalog import NETS, meta_net
from ..nets.resnet import Block
from .identify import channels_fault
from .pickles import WeightsError

logger = logging.getLogger(__name__)

State = dict[str, Tensor]  # tensors by name
Facts = dict[str, Any]

# The facts that affect the weights of every net, and the corresponding config keys.
FACT_KEYS = {
    "stride_in_1x1": "MODEL.RESNETS.STRIDE_IN_1X1",
    "format": "INPUT.FORMAT",
    "pixel_mean": "MODEL.PIXEL_MEAN",
    "pixel_std": "MODEL.PIXEL_STD",
}

# Those that affect a detector's weights only, if they are known.
DETECTOR_FACT_KEYS = {
    "global_context": "RESNET_DET.GLOBAL_CONTEXT",
    "anchor_generator": "MODEL.ANCHOR_GENERATOR.NAME",
    "pooler_type": "MODEL.ROI_BOX_HEAD.POOLER_TYPE",
    "sampling_ratio": "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO",
}

PIXEL_FACTS = ("format", "pixel_mean", "pixel_std")


def config_facts(cfg: CfgNode) -> Facts:
    """The config's values for the facts in :data:`FACT_KEYS`."""
    return {
        "stride_in_1x1": cfg.MODEL.RESNETS.STRIDE_IN_1X1,
        "format": cfg.INPUT.FORMAT,
        "pixel_mean": [float(x) for x in cfg.MODEL.PIXEL_MEAN],
        "pixel_std": [float(x) for x in cfg.MODEL.PIXEL_STD],
    }


# ---- the facts that a file stores


Check = tuple[Callable[[Any], bool], str]  # the check, and a description of valid values
_TEXT: Check = (lambda v: type(v) is str, "a string")
_TEXTS: Check = (lambda v: type(v) is list and all(type(x) is str for x in v), "a list of strings")
_NUMBERS: Check = (
    # math.isfinite raises for a whole number that no float can hold.
    lambda v: (
        type(v) is list and all(type(x) in (int, float) and abs(x) <= sys.float_info.max for x in v)
    ),
    "a list of finite numbers",
)
# A file may store further facts, which are not used in computations.
_CHECKS: dict[str, Check] = {
    "net": _TEXT,
    "format": _TEXT,
    "config": _TEXT,
    "detectron2_config": _TEXT,
    "classes": _TEXTS,
    "guessed": _TEXTS,
    "pixel_mean": _NUMBERS,
    "pixel_std": _NUMBERS,
    "stride_in_1x1": (lambda v: type(v) is bool, "True or False"),
    "mean_image": (lambda v: type(v) is Tensor and v.dim() == 3, "a tensor (C, H, W)"),
    "zeros": (lambda v: v == "end", "'end'"),
}


def check_stored(facts: Any, path: str | Path) -> Facts:
    """Check and return the facts that a file stores.

    Raises:
        WeightsError: they are not a dictionary, or a fact has the wrong type.
    """
    if not isinstance(facts, dict):
        raise WeightsError(f"{path}: its 'meta' must be a dictionary of facts")
    for name, (valid, wanted) in _CHECKS.items():
        if name in facts and not valid(facts[name]):
            raise WeightsError(f"{path}: its fact {name!r} must be {wanted}")
    return facts


# ---- facts against a config


def same_mean(a: list[float], b: list[float]) -> bool:
    """Whether two per-channel means differ by less than one of 255 grey levels.

    MSRA's nets were trained with a mean image, which each project replaces by a slightly different
    per-channel mean.
    """
    return len(a) == len(b) and all(abs(x - y) < 1 for x, y in zip(a, b))


def check_facts(facts: Facts, cfg: CfgNode, path: str | Path, trained: str = "was trained") -> None:
    """Raise if the preprocessing, the stride placement or another convention of the weights differs
    from the config.

    Such weights may load without an error and silently lose accuracy. For unknown facts, a warning
    lists the config's values.

    Args:
        facts: the file's facts, from :func:`resnet_det.weights.loading.read`.
        path: path of the file, for the messages.
        trained: verb of the error message; "trains" if the training is yet to come.

    Raises:
        ConfigError: a fact differs. The message names the file, the key and both values. If the
            facts were guessed from the format, it says so and names the command that overrides
            them.
    """
    keys = FACT_KEYS | DETECTOR_FACT_KEYS
    wanted = config_facts(cfg)
    given, channels = (len(f.get("pixel_mean", ())) for f in (facts, wanted))
    if given and given != channels:
        raise ConfigError(channels_fault(given, channels, path))
    flat = flatten(cfg)
    wanted |= {fact: flat[key] for fact, key in DETECTOR_FACT_KEYS.items()}
    wrong = [fact for fact in keys if fact in facts and not _agree(fact, facts, wanted)]
    for fact in wrong:
        if fact not in facts.get("guessed", ()):
            raise ConfigError(
                f"{path}: {trained} with {keys[fact]} {facts[fact]}, but the config says "
                f"{wanted[fact]}"
            )
    if wrong:
        values = (f"{keys[f]} {facts[f]}, but the config says {wanted[f]}" for f in wrong)
        stated = {keys[fact]: wanted[fact] for fact in wrong}
        raise ConfigError(
            f"{path}: the names of its tensors suggest that it was trained with {'; '.join(values)}. "
            "That is a guess. If the config is right, convert the file and state so: "
            f"{_stating(path, stated)}"
        )
    unknown = [fact for fact in FACT_KEYS if fact not in facts]
    net = cfg.MODEL.BACKBONE.NAME.removesuffix("_fpn")
    if net in NETS and not meta_net(net).has_stride_choice:
        unknown = [fact for fact in unknown if fact != "stride_in_1x1"]
    if unknown:
        logger.warning(
            "%s does not state its preprocessing or stride. Assuming the config's values: %s",
            path,
            ", ".join(f"{keys[fact]} {wanted[fact]}" for fact in unknown),
        )


def check_stride(net: nn.Module, facts: Facts, path: str | Path) -> None:
    """Raise if the bottlenecks of a net have their stride on another convolution than the file's.

    Raises:
        WeightsError: they have. Both nets have the same tensors, but compute different outputs.
    """
    held = facts.get("stride_in_1x1")
    blocks = (m for m in net.modules() if isinstance(m, Block) and m.bottleneck)
    if held is None or all(block.stride_in_1x1 == held for block in blocks):
        return
    fault = (
        f"{path}: its bottlenecks have the stride on the {'1x1' if held else '3x3'} convolution, "
        f"but this net's do not: build it with stride_in_1x1={held} (MODEL.RESNETS.STRIDE_IN_1X1)"
    )
    if "stride_in_1x1" in facts.get("guessed", ()):
        fault += (
            ". The names of its tensors suggest so. If they mislead, convert the file: "
            f"{_stating(path, {FACT_KEYS['stride_in_1x1']: not held})}"
        )
    raise WeightsError(fault)


def _stating(path: str | Path, pairs: Mapping[str, Any]) -> str:
    """The command that converts a file and states facts by their keys."""
    words = [str(path), "OUT.pth", *(str(word) for pair in pairs.items() for word in pair)]
    return f"tools/convert_weights.py {shlex.join(words)}"


def _agree(fact: str, facts: Facts, wanted: Facts) -> bool:
    if fact == "pixel_mean":
        return same_mean(facts[fact], wanted[fact])
    return facts[fact] == wanted[fact]
