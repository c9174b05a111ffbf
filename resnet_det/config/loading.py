"""The configuration: Detectron2's YAML language, in the part that the embedded engine honours.

Names, defaults and meaning are Detectron2's. What Detectron2 cannot say lives in ``RESNET_DET``.
"""

import logging
from pathlib import Path

import yaml
from fvcore.common.config import CfgNode

from .checks import check_batch, check_keys, check_values
from .defaults import SWITCHED_OFF, ConfigError, flatten, get_cfg
from .messages import examples, explained, fits, wrong_value

logger = logging.getLogger(__name__)


MOST_BYTES = 2**16  # of a config: YAML's parser takes the square of some files' lengths


class _Small(CfgNode):
    """Opens files, not devices or addresses, of a config's size; those of ``_BASE_`` too."""

    @classmethod
    def _open_cfg(cls, filename):
        path = Path(filename)
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            raise OSError(f"{filename} is no file of at most {MOST_BYTES} bytes")
        return open(path, encoding="utf-8")


def find_config(path: str | Path) -> Path:
    """The config file ``path``, or else the package's own of that name, with or without ``configs/``.

    Raises:
        ConfigError: neither exists.
    """
    path, package = Path(path), Path(__file__).parents[1]
    own = next(f for f in (package / "configs", package.parent / "configs") if f.is_dir())
    inner = path.relative_to("configs") if path.parts[:1] == ("configs",) else path
    for candidate in (path, own / inner):
        if candidate.is_file():
            return candidate
    raise ConfigError(f"{path}: no such config file, neither here nor in {own}")


def _read(path):
    """The YAML file with its ``_BASE_`` chain merged, as a dict of dotted key -> value."""
    path = find_config(path)
    try:
        content = _Small.load_yaml_with_base(str(path))
    except Exception as error:  # of yaml, of what it constructs, of the merge with the base
        raise ConfigError(f"{path}: {unreadable(error)}") from error
    return {k: v for k, v in _flat(content, path).items() if not k.startswith(SWITCHED_OFF)}


MOST_VALUES = 10_000  # in one config


def _flat(content, where):
    """What YAML gave, as :func:`flatten`; anchors can make a few lines hold themselves or millions."""
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: not a YAML config: give keys and values such as MODEL: ...")
    stack, count = [content], 0
    while stack:
        value, count = stack.pop(), count + 1
        if count > MOST_VALUES:
            raise ConfigError(f"{where}: holds itself, or more than {MOST_VALUES} values")
        if isinstance(value, dict):
            stack += [*value, *value.values()]
        elif isinstance(value, list | tuple):
            stack += value
        elif isinstance(value, str):
            if len(value) > MOST_VALUES or (not value.isascii() and _unprintable(value)):
                raise ConfigError(f"{where}: holds a text that is too long or no Unicode")
        elif value is not None and type(value) not in (bool, int, float):
            raise ConfigError(f"{where}: holds a {type(value).__name__}, which no key takes")
        elif type(value) is int and abs(value) >= 2**63:
            raise ConfigError(f"{where}: holds a number of more than 63 bits")
    return flatten(content)


def _unprintable(text):
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def unreadable(error):
    """What to say of a file that yaml refuses, by its error."""
    code = "python/object" in str(error)
    hint = " (one that runs code is refused: write the values out)" if code else ""
    return f"not a readable YAML config{hint}: {_short(error)}"


def _short(error):
    return ascii(str(error))[1:-1][:500] if _unprintable(str(error)) else str(error)[:500]


def _merge(cfg, content, where):
    """Merge dotted keys and values into ``cfg``, refusing what it does not know."""
    defaults, built = flatten(cfg), examples(flatten(get_cfg()))
    check_keys(content, defaults, where)
    for key, value in content.items():
        if value in (None, "None") and defaults[key] is not None:
            raise ConfigError(f"{where}: {key}: has no value")
    try:
        cfg.merge_from_list([x for pair in content.items() for x in pair])
        for key, value in flatten(cfg).items():
            if not fits(value, built[key]):
                raise ConfigError(wrong_value(key, value, built[key]))
    except Exception as error:  # yacs asserts, and evaluates texts as Python's literals
        raise ConfigError(f"{where}: {explained(_short(error), built)}") from error


def load_config(path, overrides=()):
    """Read a YAML file with its ``_BASE_`` chain and trailing ``KEY VALUE`` overrides.

    Returns:
        CfgNode: frozen and checked.

    Raises:
        ConfigError: names the file or the key, and the nearest valid key or values.
    """
    cfg = get_cfg()
    _merge(cfg, _read(path), path)
    return _finish(cfg, overrides)


def embedded_part(cfg):
    """The keys of ``cfg``, Detectron2's or ours, that the embedded engine knows, as YAML."""
    known, theirs = get_cfg(), flatten(cfg)
    pairs = [(key, theirs[key]) for key in flatten(known) if key in theirs]
    known.merge_from_list([x for pair in pairs for x in pair])
    return known.dump()


def parse_text(text, where):
    """What :func:`embedded_part` wrote, unchecked, as :func:`flatten`; ``where`` names its source."""
    try:
        content = yaml.safe_load(text[:MOST_BYTES])
    except Exception as error:  # of yaml, of what it constructs
        raise ConfigError(f"{where}: its config is no YAML: {_short(error)}") from error
    return _flat(content, where)


def parse_config(text, where, overrides=()):
    """The config that :func:`embedded_part` wrote, as :func:`load_config`; ``where`` names its source."""
    cfg = get_cfg()
    _merge(cfg, parse_text(text, where), where)
    return _finish(cfg, overrides)


def _finish(cfg, overrides):
    overrides, images = list(overrides), cfg.SOLVER.IMS_PER_BATCH
    if len(overrides) % 2:
        raise ConfigError(f"overrides {overrides}: give pairs KEY VALUE")
    _merge(cfg, dict(zip(overrides[::2], overrides[1::2])), "command line")
    check_values(cfg)
    check_batch(cfg, images, overrides)
    cfg.freeze()
    return cfg
