"""Weight files into a detector of either engine: what must fit, and what starts fresh."""

import logging

from ..config.defaults import ConfigError
from ..nets import without_statistics
from ..weights.loading import WeightsError, classifier_name, fit

logger = logging.getLogger(__name__)

_STAGES = ("stem.", "res2.", "res3.", "res4.", "res5.", "conv1.", "conv2.", "conv3.", "conv4.",
           "conv5.", "fc6.", "fc7.", "linear.")  # fmt: skip
_PARTS = ("proposal_generator.", "roi_heads.")  # a detector's, which another may lack


def fit_detector(model, state, facts, path, fresh=()):
    """Fill a detector with the weights of another detector's file, or of a classifier's.

    The classifier's trunk and head must all be there, but for ``fresh``, which are not read (of
    :func:`new_layers`). New are the detector's own layers that the file lacks, and class layers
    that it has in another shape; both are logged. Parts and stages that this detector does not have
    are left.

    Args:
        state, facts, path: as for :func:`resnet_det.weights.loading.fit`.

    Returns:
        Match

    Raises:
        WeightsError: a file that does not fit.
    """
    stages = {key: classifier_name(key) for key in model.state_dict()}
    new = [key for key, name in stages.items() if not name.startswith(_STAGES)]
    drop = [s for s in _STAGES if not any(name.startswith(s) for name in stages.values())]
    drop += [p for p in _PARTS if not any(key.startswith(p) for key in stages)]
    match = fit(model, state, facts, path, new=new, drop=drop, fresh=fresh)
    check_remade(match.mismatched, path)
    made = [key for key in match.missing if key in new and key not in fresh]
    if made:
        logger.info("%s: made afresh, the file lacks them: %s", path, ", ".join(made))
    return match


def new_layers(model, cfg):
    """Names of the parameters and buffers that ``RESNET_DET.NEW_LAYERS`` lets start fresh.

    An entry is the first part of a name, with or without "backbone." and "roi_heads.".

    Raises:
        ConfigError: an entry names nothing.
    """
    names = {key: (f"{key}.", f"{classifier_name(key)}.") for key in model.state_dict()}
    found = set()
    for layer in cfg.RESNET_DET.NEW_LAYERS:
        start = layer.rstrip(".") + "."
        fits = {key for key, forms in names.items() if any(n.startswith(start) for n in forms)}
        if not fits:
            raise ConfigError(f"RESNET_DET.NEW_LAYERS: {layer}: the net has no such layer")
        found |= fits
    return found


def check_remade(keys, path):
    """Log the layers that are made afresh because the file has them in another shape.

    Raises:
        WeightsError: one of them is not a layer of the classes.
    """
    wrong = [key for key in keys if "predictor." not in key]
    if wrong:
        raise WeightsError(f"{path}: has {', '.join(wrong)} in other shapes than the config asks")
    if keys:
        logger.info("%s: is of other classes; made afresh: %s", path, ", ".join(keys))


def check_statistics(model):
    """Refuse frozen batch norms that nobody filled: they would pass everything as it is.

    Raises:
        ConfigError
    """
    unset = without_statistics(model)
    if unset:
        raise ConfigError(
            f"MODEL.RESNETS.NORM: {len(unset)} frozen batch norms have no statistics "
            f"({unset[0]}...): give trained weights as MODEL.WEIGHTS, or train from scratch with "
            "NORM: BN and MODEL.BACKBONE.FREEZE_AT: 0"
        )
