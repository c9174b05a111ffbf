"""The configs of the engine on Detectron2: from files and command lines, and from checkpoints."""

import re
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, get_cfg

from ...config.checks import (
    check_batch,
    check_lengths,
    check_pairs,
    check_ranges,
    check_users,
    resolve_device,
)
from ...config.defaults import DETECTOR, ConfigError, add_resnet_det_config, flatten
from ...config.loading import find_config, read_yaml
from ...config.messages import examples, explained, fits, wrong_value
from ...hints import did_you_mean
from ...weights.facts import Facts
from ..own_classes import fit_to_training_set
from .checkpointer import stored_keys


class _File(CfgNode):
    """A Detectron2 config whose files are read by the embedded engine's reader."""

    @classmethod
    def load_yaml_with_base(cls, filename, allow_unsafe=False):
        return read_yaml(filename)


def load_config(path: str | Path, overrides: Sequence[Any] = ()) -> CfgNode:
    """Read a YAML file with its ``_BASE_`` chain and trailing ``KEY VALUE`` overrides.

    The file may hold all of Detectron2's keys and the node ``RESNET_DET``. YAML that runs code is
    an error. The config has as many classes as the user's own training set, if it names one.

    Returns:
        Detectron2's CfgNode, frozen; ``MODEL.DEVICE`` is "cpu" if no CUDA device is available.

    Raises:
        ConfigError: a file, key or value is invalid. The message names it, and similar valid keys.
        DatasetError: the user's own training set is absent.
    """
    file = str(find_config(path))
    cfg = _load(path, lambda cfg: cfg.merge_from_file(file), overrides)
    return fit_to_training_set(cfg, overrides)


def parse_config(facts: Facts, path: str | Path, overrides: Sequence[Any] = ()) -> CfgNode:
    """Load the config that a checkpoint carries, with the checks of :func:`load_config`.

    Args:
        facts: those of the checkpoint ``path``.
    """
    pairs = list(chain.from_iterable(stored_keys(facts, path).items()))
    return _load(path, lambda cfg: cfg.merge_from_list(pairs), overrides)


def _load(
    where: str | Path, merge_content: Callable[[CfgNode], None], overrides: Sequence[Any]
) -> CfgNode:
    cfg = _File(get_cfg())
    add_resnet_det_config(cfg)
    overrides = list(overrides)
    check_pairs(overrides)
    known = examples(flatten(cfg))
    for source, merge in (
        (where, merge_content),
        ("command line", lambda cfg: cfg.merge_from_list(overrides)),
    ):
        images = cfg.SOLVER.IMS_PER_BATCH
        try:
            merge(cfg)
            _check_lists(cfg, known)
        except ConfigError:
            raise
        except (KeyError, ValueError, AssertionError, TypeError, AttributeError, OSError) as error:
            raise ConfigError(f"{source}: {_explained(str(error.args[0]), known)}") from error
    cfg = CfgNode(cfg)
    resolve_device(cfg)
    check_lengths(cfg)
    check_batch(cfg, images, overrides)
    if cfg.MODEL.META_ARCHITECTURE == "Classifier":
        raise ConfigError("MODEL.META_ARCHITECTURE: Classifier: Detectron2 trains only detectors")
    check_users(cfg, DETECTOR, "RESNET_DET.")
    check_ranges(cfg, "RESNET_DET.")
    cfg.freeze()
    return cfg


def _check_lists(cfg: CfgNode, known: dict[str, Any]) -> None:
    """Check the items of lists, which yacs does not check. The ValueError names the key."""
    anchors = cfg.MODEL.ANCHOR_GENERATOR
    for key in ("SIZES", "ASPECT_RATIOS", "ANGLES"):
        if anchors[key] and not isinstance(anchors[key][0], list | tuple):
            anchors[key] = [anchors[key]]  # Detectron2 also takes a flat list, for all levels
    for key, value in flatten(cfg).items():
        default = known.get(key)
        if isinstance(default, list | tuple) and not fits(value, default):
            raise ValueError(wrong_value(key, value, default))


def _explained(message: str, known: dict[str, Any]) -> str:
    """Rewrite an error message from yacs, and name similar keys."""
    unknown = re.search(r"Non-existent (?:config )?key: ([\w.]+)", message)
    if not unknown:
        return explained(message, known)
    return f"Detectron2 does not know the key {unknown[1]}{did_you_mean(unknown[1], known)}"
