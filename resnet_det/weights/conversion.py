"""Convert a weight file between this project, Detectron2, torchvision and timm."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ..config.checks import check_ranges
from ..config.defaults import ConfigError, flatten, get_cfg
from ..nets.catalog import NETS, meta_net
from .facts import DETECTOR_FACT_KEYS, FACT_KEYS, Facts, State, check_facts, config_facts
from .files import write_file
from .formats import to_their_names
from .identify import (
    FIRST_CONVOLUTIONS,
    classifier_name,
    fitting_nets,
    image_channels,
    is_detector,
    misfits,
)
from .loading import check_finite, read
from .pickles import WeightsError
from .shortcuts import zeros_at_end, zeros_to_end, zeros_unknown

logger = logging.getLogger(__name__)


class Converted(NamedTuple):
    """The result of :func:`convert`.

    Attributes:
        kind: "a detector" or "a classifier".
        nets: names of the nets that the tensors fit.
        facts: the known facts about the weights.
    """

    kind: str
    nets: list[str]
    facts: Facts


def convert(
    source: str | Path,
    target: str | Path,
    format: str = "own",
    pairs: Sequence[str] = (),
    net: str | None = None,
    zeros: str | None = None,
    channels: int = 3,
) -> Converted:
    """Convert a weight file.

    Args:
        source, target: paths. The suffix of the target determines the kind of file.
        format: naming scheme of the target, one of :data:`resnet_det.weights.formats.FORMATS`.
        pairs: KEY, VALUE, ... that the source was trained with.
        net: the net that the source holds; by default its tensors tell.
        zeros: where option A of the source pads its zeros, "both" sides of the channels or "end".
        channels: number of input channels of the target; see :func:`change_channels`.

    Raises:
        WeightsError, ConfigError: the source is unreadable, does not hold a complete net or
            contradicts the arguments, or the target cannot hold it.
    """
    state, facts = read(source)
    check_finite(state, source)
    nets = _check_net(state, facts, source, net)
    state, facts = _move_zeros(state, facts, nets, source, zeros)
    if zeros:
        nets = [name for name in nets if meta_net(name).has_padded_shortcuts]
    if net or zeros:  # excludes the plain net with the same tensors
        facts.setdefault("net", nets[0])
    stated = _stated_facts(list(pairs), facts, source)
    _check_pixels(stated, image_channels(state), source)
    guessed = [fact for fact in facts.pop("guessed", ()) if fact not in stated]
    facts |= stated | ({"guessed": guessed} if guessed else {})  # a guess remains one
    if channels != 3:
        state, facts = change_channels(state, facts, channels, source)
    kind = "a detector" if is_detector(state) else "a classifier"
    foreign = format != "own"
    if foreign and Path(target).suffix == ".pkl":
        raise WeightsError(f"{target}: a .pkl is Detectron2's: name a .pth or .safetensors file")
    needed = set(FACT_KEYS)
    if "res2.0.conv3.weight" not in state:  # no bottlenecks
        needed.remove("stride_in_1x1")
    unknown = [key for fact, key in FACT_KEYS.items() if fact in needed - set(facts)]
    if unknown:
        message = f"{source}: does not state {', '.join(unknown)}: give it as KEY VALUE"
        if foreign:
            raise WeightsError(message)
        logger.warning("%s", message)
    if foreign:
        state = to_their_names(state, facts, format, source)
    write_file(target, state, facts, bare=foreign)
    return Converted(kind, nets, facts)


def change_channels(
    state: State, facts: Facts, channels: int, path: str | Path
) -> tuple[State, Facts]:
    """Convert a net for colour images to another number of input channels.

    For grey images (1 channel), the weights of the first convolution are divided by each channel's
    relative deviation and summed over the channels. If the three means are equal, a grey image then
    gives the same output as before as a colour image. For any other number of channels, the weights
    are repeated in turn and scaled, so that the responses keep their size.

    Args:
        state, facts: content of the file, from :func:`resnet_det.weights.loading.read`.
        channels: number of input channels, at least 1.
        path: path of the file, for the error messages.

    Returns:
        (state, facts) of the converted net.

    Raises:
        WeightsError: ``channels`` is below 1, or the net does not have 3 input channels, or it
            subtracts a mean image.
    """
    if channels < 1:
        raise WeightsError(f"--channels {channels}: give at least 1")
    given = image_channels(state)
    if given != 3:
        raise WeightsError(f"--channels: {path} takes images of {given} channels, not of 3")
    if "mean_image" in facts:
        raise WeightsError(f"--channels: {path} subtracts a mean image of 3 channels")
    first = next(key for key in state if classifier_name(key) in FIRST_CONVOLUTIONS)
    weight, facts = state[first], dict(facts)
    mean, std = facts.get("pixel_mean"), facts.get("pixel_std")
    if channels == 1:
        scale = torch.ones(3, dtype=torch.float64)
        if std:
            scale = sum(std) / 3 / torch.tensor(std, dtype=torch.float64)
            facts["pixel_std"] = [sum(std) / 3]
        if mean:
            facts["pixel_mean"] = [sum(mean) / 3]
        facts["format"] = "L"
        changed = (weight * scale[:, None, None]).sum(1, keepdim=True)
    else:
        order = [i % 3 for i in range(channels)]
        if std:
            facts["pixel_std"] = [std[i] for i in order]
        if mean:
            facts["pixel_mean"] = [mean[i] for i in order]
        changed = weight[:, order] * (3 / channels)
    return state | {first: changed.to(weight.dtype)}, facts


def _stated_facts(pairs: list[str], facts: Facts, path: str | Path) -> Facts:
    """Parse the facts that KEY, VALUE, ... state about a file.

    Raises:
        ConfigError: a key states no fact, or its value is invalid or contradicts the file.
    """
    keys, fact_keys = pairs[::2], FACT_KEYS | DETECTOR_FACT_KEYS
    for key in keys:
        if key not in fact_keys.values():
            raise ConfigError(f"{key}: give only the keys {', '.join(fact_keys.values())}")
    cfg = get_cfg()
    try:
        cfg.merge_from_list(pairs)
    except (ValueError, AssertionError) as error:
        raise ConfigError(f"KEY VALUE pairs {pairs}: {error}") from error
    check_ranges(cfg)
    stated = {fact: key for fact, key in fact_keys.items() if key in keys}
    stored = {f: facts[f] for f in stated if f in facts and f not in facts.get("guessed", ())}
    check_facts(config_facts(cfg) | stored, cfg, path)
    return {fact: flatten(cfg)[key] for fact, key in stated.items()}


def _check_pixels(stated: Facts, channels: int | None, path: str | Path) -> None:
    """Raise ConfigError unless the stated mean and standard deviation are those of an image with
    ``channels``."""
    for fact, key in (("pixel_mean", "MODEL.PIXEL_MEAN"), ("pixel_std", "MODEL.PIXEL_STD")):
        values = stated.get(fact, [1.0] * (channels or 0))
        if len(values) != channels or any(type(x) not in (int, float) for x in values):
            raise ConfigError(
                f"{key}: {values}: {path} takes images of {channels} channels: give a number each"
            )
        if fact == "pixel_std" and min(values) <= 0:
            raise ConfigError(f"{key}: {values}: must be above 0")


def _check_net(state: State, facts: Facts, path: str | Path, net: str | None) -> list[str]:
    """Names of the nets that a file may hold. There are two if only option A distinguishes them.

    Raises:
        WeightsError: it holds none, or not ``net``. The message names missing and unknown tensors.
        ConfigError: there is no such net.
    """
    stored = facts.get("net", "").removesuffix("_fpn")
    if net is None and stored not in NETS:
        return fitting_nets(state, path)
    if net is not None and stored in NETS and stored != net:
        raise WeightsError(f"{path}: states that it holds {stored}, not {net}")
    name = net or stored
    try:
        faults = misfits(state, name)
    except ValueError as error:
        raise ConfigError(f"--net: {error}") from error
    if any(faults):
        raise WeightsError(f"{path}: is not a {name}: {faults}")
    return [name]


def _move_zeros(
    state: State, facts: Facts, nets: list[str], path: str | Path, zeros: str | None
) -> tuple[State, Facts]:
    """Convert a net so that option A pads zeros after the channels, as in our nets.

    Args:
        nets: from :func:`_check_net`.
        zeros: where the file's net pads zeros: on "both" sides or at the "end"; None if not stated.

    Raises:
        WeightsError: it is not known where the net pads zeros, or the file contradicts ``zeros``.
    """
    plain = [n for n in nets if not meta_net(n).has_padded_shortcuts]
    if len(plain) == len(nets):
        if zeros:
            raise WeightsError(f"--zeros: {path} holds {nets[0]}, which has no option A")
        return state, facts
    ours = zeros_at_end(facts)
    if not (zeros or ours):
        others = "".join(f". If its net has no shortcuts: --net {n}" for n in plain)
        raise WeightsError(f"{zeros_unknown(path)}{others}")
    if zeros == "both" and ours and (facts or is_detector(state)):
        raise WeightsError(f"--zeros both: {path} is this project's file, which pads at the end")
    if zeros == "both":
        state = zeros_to_end(state)
    return state, facts | ({"zeros": "end"} if zeros else {})
