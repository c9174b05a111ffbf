"""The further nets of an ensemble (``RESNET_DET.ENSEMBLE``), and how their classes match."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fvcore.common.config import CfgNode

from ..config.defaults import ConfigError, flatten, get_cfg
from ..config.loading import parse_text
from ..hints import difference
from ..weights.facts import Facts, State
from ..weights.loading import read
from .class_matching import places


def member_order(
    classes: Sequence[str], trained: Sequence[str], path: str, by_order: bool
) -> list[int]:
    """The index of each of the first net's ``classes`` among those of another ensemble member.

    Args:
        trained: classes of the member.
        path: file of the member, for the error message.

    Raises:
        ConfigError: the member has other classes.
    """
    order = [place for place in places(classes, trained, by_order) if place is not None]
    if not len(order) == len(trained) == len(classes):
        raise ConfigError(
            f"RESNET_DET.ENSEMBLE: {path}: has other classes than MODEL.WEIGHTS: "
            f"{difference(trained, path, classes, 'MODEL.WEIGHTS')}"
        )
    return order


@dataclass(frozen=True)
class Member:
    """A further detector of an ensemble.

    Attributes:
        state, facts: content of its checkpoint; ``facts["config"]`` is its config as YAML.
        overrides: KEY, VALUE, ... that this test overrides in that config.
        order: its index of each class of the first detector; None if those classes are unknown.
    """

    path: str
    state: State
    facts: Facts
    overrides: list[Any]
    order: list[int] | None


def read_members(cfg: CfgNode, classes: Sequence[str] | None) -> Iterator[Member]:
    """Read the further detectors of an ensemble (``RESNET_DET.ENSEMBLE``), one at a time.

    Args:
        classes: class names of the first detector, if known.

    Raises:
        ConfigError: a file carries no config, or its kind of model, its channel order or its
            classes differ from those of ``MODEL.WEIGHTS``.
    """
    wanted, defaults = flatten(cfg), flatten(get_cfg())
    for path in cfg.RESNET_DET.ENSEMBLE:
        state, facts = read(path)
        if "config" not in facts:
            raise ConfigError(
                f"RESNET_DET.ENSEMBLE: {path}: carries no config; give checkpoints of "
                "tools/train_net.py"
            )
        own = parse_text(facts["config"], path)
        for key in ("MODEL.META_ARCHITECTURE", "MODEL.LOAD_PROPOSALS"):
            if (given := own.get(key, defaults[key])) != wanted[key]:
                raise ConfigError(
                    f"RESNET_DET.ENSEMBLE: {path}: has {key} {given}, but MODEL.WEIGHTS has "
                    f"{wanted[key]}"
                )
        if facts.get("format") != cfg.INPUT.FORMAT:
            raise ConfigError(
                f"RESNET_DET.ENSEMBLE: {path}: was trained with INPUT.FORMAT {facts.get('format')}, "
                f"but MODEL.WEIGHTS with {cfg.INPUT.FORMAT}"
            )
        order = None
        if classes is not None:
            by_order = cfg.RESNET_DET.CLASSES_BY_ORDER
            order = member_order(classes, facts.get("classes", ()), path, by_order)
        overrides = ["MODEL.WEIGHTS", str(path), "MODEL.DEVICE", cfg.MODEL.DEVICE,
                     "RESNET_DET.ENSEMBLE", ()]  # fmt: skip
        yield Member(str(path), state, facts, overrides, order)
