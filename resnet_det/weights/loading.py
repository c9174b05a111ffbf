"""Read a weight file of any format and load it into a net by name. Every mismatch is reported."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from . import published
from .facts import PIXEL_FACTS, Facts, State, check_stored, check_stride
from .files import read_file
from .formats import is_openmmlabs, openmmlab_facts, to_our_names, with_our_eps
from .identify import (
    Differences,
    channels_fault,
    classifier_name,
    image_channels,
    is_counter,
    is_detector,
)
from .pickles import WeightsError
from .shortcuts import check_shortcuts


def read(path: str | Path) -> tuple[State, Facts]:
    """Read a weight file of any known format, without running code from it.

    The file is a ``.pth``, ``.safetensors`` or ``.pkl``, or an address (:mod:`.published`). Its
    tensors have the names of torchvision, timm, MMDetection, Detectron2, Detectron and MSRA
    (Caffe2's blobs), Caffe's VGG-16, or our own.

    Returns:
        (tensors by our names, facts that the file stores or that its format suggests). For the
        facts see :mod:`resnet_det.weights.facts`.

    Raises:
        WeightsError: the file is missing, truncated or malicious, or holds no tensors.
    """
    tensors, stored = read_file(path)
    return interpret(tensors, stored, path)


def interpret(tensors: State, stored: dict[str, Any], path: str | Path) -> tuple[State, Facts]:
    """Convert the result of :func:`resnet_det.weights.files.read_file` to that of :func:`read`."""
    try:
        state, guesses = to_our_names(tensors, stored.get("__author__", ""))
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    meta = stored.get("meta", {})
    if is_openmmlabs(meta):
        guesses, meta = guesses | openmmlab_facts(meta), {}
    facts = check_stored(meta, path)
    if image_channels(state) not in (None, 3):  # its format implies the pixels of 3 channels
        guesses = {k: v for k, v in guesses.items() if k not in PIXEL_FACTS}
    known: Facts = {}
    if entry := published.find(path):
        known = entry.facts | {"net": entry.net}
        if entry.norm_eps is not None:
            state = with_our_eps(state, entry.norm_eps)
    guessed = [fact for fact in guesses if fact not in known | facts] + facts.get("guessed", [])
    return state, guesses | known | facts | ({"guessed": guessed} if guessed else {})


@dataclass(frozen=True)
class Match:
    """The outcome of :func:`fit`, as names of tensors in the net (``unused``: in the file).

    Attributes:
        facts: the file's facts.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    mismatched: tuple[str, ...]
    facts: Facts

    def __str__(self) -> str:
        return (
            f"{len(self.loaded)} tensors loaded, {len(self.missing)} missing, "
            f"{len(self.unused)} unused, {len(self.mismatched)} with another shape"
        )


def load(net: nn.Module, path: str | Path, **options) -> Match:
    """:func:`read` a weight file and :func:`fit` it to a net, with its ``options`` and errors."""
    return fit(net, *read(path), path, **options)


def fit(
    net: nn.Module,
    state: State,
    facts: Facts,
    path: str | Path,
    *,
    new: Sequence[str] = (),
    drop: Sequence[str] = (),
    fresh: Collection[str] = (),
    partial: bool = False,
) -> Match:
    """Load the tensors of a file into a classifier or a detector.

    A classifier's file is loaded into a detector's trunk and head by their common names.

    Args:
        net: module with Detectron2's parameter names.
        state, facts: content of the file, from :func:`read`.
        path: path of the file, for the error messages.
        new: prefixes of the net's parameters that the file may lack or hold in another shape.
        drop: prefixes of the file's parameters that the net may lack.
        fresh: names of the net's parameters that are never loaded.
        partial: accept any other mismatch too, as long as one tensor fits.

    Returns:
        Which tensors were loaded, and which were not.

    Raises:
        WeightsError: a tensor is missing, unknown, not finite or has another shape, the file's net
            has another number of input channels, or the shortcuts
            (:func:`resnet_det.weights.shortcuts.check_shortcuts`) or the stride placement differ.
    """
    own, detector = net.state_dict(), is_detector(state)
    names = {key: key if detector else classifier_name(key) for key in own}  # in the file
    kept, known = {names[key] for key in fresh}, set(names.values())
    state = {name: value for name, value in state.items() if name not in kept}
    given = {key: state[name] for key, name in names.items() if name in state}

    loaded = [key for key in given if given[key].shape == own[key].shape]
    mismatched = [key for key in given if given[key].shape != own[key].shape]
    missing = [key for key in own if key not in given and not is_counter(key)]
    unused = [name for name in state if name not in known and not is_counter(name)]
    given_channels, channels = image_channels(state), image_channels(own)
    if given_channels and channels and given_channels != channels:
        raise WeightsError(channels_fault(given_channels, channels, path))
    match = Match(tuple(loaded), tuple(missing), tuple(unused), tuple(mismatched), facts)

    may_lack = tuple(new)
    faults = Differences(
        [key for key in missing if not key.startswith(may_lack) and key not in fresh],
        [name for name in unused if not name.startswith(tuple(drop))],
        [
            f"{key} {tuple(own[key].shape)}, in the file {tuple(given[key].shape)}"
            for key in mismatched
            if not key.startswith(may_lack)
        ],
    )
    if not loaded or (any(faults) and not partial):
        raise WeightsError(f"{path}: does not fit the net ({match}): {faults}")
    check_shortcuts(net, facts, path)
    check_stride(net, facts, path)
    check_finite({names[key]: given[key] for key in loaded}, path)
    net.load_state_dict({key: given[key] for key in loaded}, strict=False)
    return match


def check_finite(state: State, path: str | Path) -> None:
    """Raise WeightsError if a tensor of a file holds values that are not finite."""
    for name, value in state.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise WeightsError(f"{path}: {name} holds values that are not finite")
