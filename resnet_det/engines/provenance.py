"""Provenance: a checkpoint's facts, and the code and machine that produced it."""

import functools
import logging
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from fvcore.common.config import CfgNode

from ..config.defaults import ConfigError
from ..config.loading import detectron2_part, embedded_part, parse_text
from ..hints import difference
from ..training import distributed
from ..weights.facts import Facts, check_facts, config_facts
from .class_matching import places

logger = logging.getLogger(__name__)

PACKAGE = Path(__file__).resolve().parents[1]


def checkpoint_facts(cfg: CfgNode, classes: Sequence[str], seed: int | None = None) -> Facts:
    """The facts that a checkpoint carries, listed in :mod:`resnet_det.weights.facts`."""
    facts = {"net": cfg.MODEL.BACKBONE.NAME, **config_facts(cfg)}
    if cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN":
        facts["global_context"] = cfg.RESNET_DET.GLOBAL_CONTEXT
    if rest := detectron2_part(cfg):
        facts["detectron2_config"] = rest
    config = embedded_part(cfg)
    return facts | {"classes": list(classes), "config": config, "seed": seed, "commit": commit()}


@functools.cache  # a checkout that moves during a run does not change the code that runs
def commit() -> str:
    """The git commit of this package at the first call, with "+" if tracked files differ from it.

    Returns:
        The commit, or "" if the package is not in a checkout of this project, for example if it is
        installed inside another project's repository.
    """
    if not (PACKAGE.parent / ".git").exists():
        return ""

    def git(*args: str) -> str:
        run = subprocess.run(
            ["git", "-C", str(PACKAGE.parent), *args], capture_output=True, text=True, check=False
        )
        return run.stdout.strip() if run.returncode == 0 else ""

    try:
        if not git("ls-files", f"{PACKAGE.name}/__init__.py"):
            return ""
        head = git("rev-parse", "--short=10", "HEAD")
        return head + ("+" if head and git("status", "--porcelain", "-uno") else "")
    except FileNotFoundError:  # git is not installed
        return ""


def machine() -> dict[str, str]:
    """Descriptions of the "machine" and the "software" that results were measured with."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return {
        "machine": f"{platform.machine()}, {cores}, {gpu}",
        "software": f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}",
    }


def check_resumed(facts: Facts, cfg: CfgNode, classes: Sequence[str]) -> None:
    """Check that a resumed run keeps its net, its preprocessing, and its classes in their order.

    Args:
        facts: facts of the checkpoint.
        classes: classes of ``DATASETS.TRAIN``.

    Raises:
        ConfigError: one of these differs.
    """
    folder, net = cfg.OUTPUT_DIR, cfg.MODEL.BACKBONE.NAME
    if facts.get("net", net) != net:
        raise ConfigError(
            f"MODEL.BACKBONE.NAME: {net}, but the run to resume in {folder} trains "
            f"{facts['net']}: give that net, or another OUTPUT_DIR"
        )
    if facts:
        check_facts(facts, cfg, folder)
    trained = facts.get("classes", classes)
    found = places(classes, trained, cfg.RESNET_DET.CLASSES_BY_ORDER)
    if found != list(range(len(trained))):
        raise ConfigError(
            f"OUTPUT_DIR: {folder}: the run to resume has other classes than DATASETS.TRAIN: "
            f"{difference(classes, 'DATASETS.TRAIN', trained, 'the run')}. To train on new "
            "classes, set MODEL.WEIGHTS to its checkpoint and choose another OUTPUT_DIR"
        )


def say_changes(facts: Facts, cfg: CfgNode, path: str | Path, keys: str = "") -> None:
    """Log the keys in which a checkpoint's config, if it carries one, differs from this one.

    Args:
        keys: prefix of the keys to compare.
    """
    if "config" not in facts or not distributed.is_main() or cfg.OUTPUT_DIR.endswith(".replay"):
        return
    try:
        before, now = (parse_text(text, path) for text in (facts["config"], embedded_part(cfg)))
    except ConfigError:  # the code that needs that config raises this error
        return
    changed = changes(before, now, keys)
    if changed:
        logger.warning("%s: was trained with another config: %s", path, "; ".join(changed))


def changes(before: Mapping[str, Any], now: Mapping[str, Any], keys: str = "") -> list[str]:
    """One text per key in which two configs differ, from :func:`.parse_text`.

    Args:
        keys: prefix of the keys to compare.
    """
    return [
        f"{key} {str(before[key])[:80]}, now {str(now[key])[:80]}"
        for key in now
        if key.startswith(keys) and key != "OUTPUT_DIR" and before.get(key, now[key]) != now[key]
    ]


def stored_config(facts: Facts, weights: str | Path) -> str:
    """The config that a checkpoint carries, as text.

    Raises:
        ConfigError: it carries none.
    """
    if "config" not in facts:
        raise ConfigError(f"{weights}: carries no config: name the config file that it belongs to")
    return facts["config"]
