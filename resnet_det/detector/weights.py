"""Load a weight file into a detector of either engine. Decides which tensors must match and which
layers stay freshly initialised."""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path

from fvcore.common.config import CfgNode
from torch import nn

from ..config.defaults import ConfigError
from ..nets import without_statistics
from ..weights.facts import Facts, State, check_facts
from ..weights.identify import classifier_name
from ..weights.loading import Match, fit
from ..weights.pickles import WeightsError

logger = logging.getLogger(__name__)

_STAGES = ("stem.", "res2.", "res3.", "res4.", "res5.", "conv1.", "conv2.", "conv3.", "conv4.",
           "conv5.", "fc6.", "fc7.", "linear.")  # fmt: skip
_PARTS = ("proposal_generator.", "roi_heads.")  # of a detector; another detector may lack them


def fit_trained(model: nn.Module, state: State, facts: Facts, cfg: CfgNode) -> Match:
    """Load a detector's own checkpoint, MODEL.WEIGHTS, which must hold every tensor.

    Args:
        state, facts: the file's content, from :func:`resnet_det.weights.loading.read`.

    Raises:
        ConfigError: the file's facts differ from the config.
        WeightsError: the file does not fit the model.
    """
    check_facts(facts, cfg, cfg.MODEL.WEIGHTS)
    match = fit(model, state, facts, cfg.MODEL.WEIGHTS)
    logger.info("%s: %s", cfg.MODEL.WEIGHTS, match)
    check_statistics(model)
    return match


def fit_detector(
    model: nn.Module, state: State, facts: Facts, path: str | Path, fresh: Collection[str] = ()
) -> Match:
    """Load the weights of another detector, or of a classifier, into a detector to be trained.

    A classifier's trunk and head must be complete, except for ``fresh``. The detector's own layers
    start fresh if the file lacks them, and so do its class layers if their shapes differ; both
    cases are logged. Stages and parts that this detector does not have are ignored.

    Args:
        state, facts, path: as for :func:`resnet_det.weights.loading.fit`.
        fresh: names of parameters that are not loaded, from :func:`new_layers`.

    Raises:
        WeightsError: the file does not fit.
    """
    stages = {key: classifier_name(key) for key in model.state_dict()}
    new = [key for key, name in stages.items() if not name.startswith(_STAGES)]
    drop = [s for s in _STAGES if not any(name.startswith(s) for name in stages.values())]
    drop += [p for p in _PARTS if not any(key.startswith(p) for key in stages)]
    match = fit(model, state, facts, path, new=new, drop=drop, fresh=fresh)
    check_remade(match.mismatched, path)
    lacking = [key for key in match.missing if key in new and key not in fresh]
    if lacking:
        logger.info("%s: lacks these layers, which start fresh: %s", path, ", ".join(lacking))
    return match


def new_layers(model: nn.Module, cfg: CfgNode) -> set[str]:
    """Names of the parameters and buffers that ``RESNET_DET.NEW_LAYERS`` leaves freshly
    initialised.

    An entry is a prefix of names, with or without "backbone." and "roi_heads.".

    Raises:
        ConfigError: an entry matches no name.
    """
    names = {key: (f"{key}.", f"{classifier_name(key)}.") for key in model.state_dict()}
    found: set[str] = set()
    for layer in cfg.RESNET_DET.NEW_LAYERS:
        start = layer.rstrip(".") + "."
        fits = {key for key, forms in names.items() if any(n.startswith(start) for n in forms)}
        if not fits:
            raise ConfigError(f"RESNET_DET.NEW_LAYERS: {layer}: the net has no such layer")
        found |= fits
    return found


def check_remade(keys: Sequence[str], path: str | Path) -> None:
    """Log the layers that start fresh because their shapes differ in the file.

    Raises:
        WeightsError: one of them does not depend on the number of classes.
    """
    wrong = [key for key in keys if "predictor." not in key]
    if wrong:
        raise WeightsError(f"{path}: the shapes of {', '.join(wrong)} differ from the config's net")
    if keys:
        logger.info("%s: has other classes, so these layers start fresh: %s", path, ", ".join(keys))


def check_statistics(model: nn.Module) -> None:
    """Raise if frozen batch norms have no statistics: they would not normalise anything.

    Raises:
        ConfigError: some have no statistics. The message names the first one.
    """
    unset = without_statistics(model)
    if unset:
        raise ConfigError(
            f"MODEL.RESNETS.NORM: {len(unset)} frozen batch norms have no statistics "
            f"({unset[0]}...): give trained weights as MODEL.WEIGHTS, or train from scratch with "
            "NORM: BN and MODEL.BACKBONE.FREEZE_AT: 0"
        )
