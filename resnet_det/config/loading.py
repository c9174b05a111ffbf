"""Read configs: files with their ``_BASE_``, command lines, and the configs in checkpoints.

The format is Detectron2's YAML, with the keys that the embedded engine supports
(:data:`.defaults.KEYS`).
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from ..hints import did_you_mean
from ..records import has_surrogates
from .checks import check_batch, check_keys, check_pairs, check_values, resolve_device
from .defaults import SWITCHED_OFF, ConfigError, flatten, get_cfg
from .messages import examples, explained, fits, wrong_value

# Limits per file. YAML's parser takes quadratic time on some files, and anchors let a few lines
# contain themselves or millions of values.
MAX_BYTES = 2**16
MAX_VALUES = 10_000


def packaged_configs() -> Path:
    """The folder of our configs: inside an installed package, beside the package in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def find_config(path: str | Path, named_by: str = "", beside: str | Path = "") -> Path:
    """Find the config file ``path``: at that path or, if absent, among the packaged configs.

    Both "configs/quickstart.yaml" and "quickstart.yaml" name the packaged quickstart.

    Args:
        named_by: the source of the path, such as a key, for the error message.
        beside: the folder that a relative path is relative to; by default the working folder.

    Raises:
        ConfigError: there is no such file. The message names the folders that were searched.
    """
    given, ours = Path(beside, os.path.expanduser(path)), packaged_configs()
    if os.path.isfile(given):
        return given
    name = Path(path)
    if name.parts[:1] == ("configs",):
        name = name.relative_to("configs")
    if os.path.isfile(ours / name):
        return ours / name
    known = [str(file.relative_to(ours)) for file in sorted(ours.rglob("*.yaml"))]
    raise ConfigError(
        f"{named_by}{': ' if named_by else ''}{path}: no such config file, neither in "
        f"{given.absolute().parent} nor in {ours}{did_you_mean(str(name), known)}"
    )


def read_yaml(path: str | Path, children: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a YAML config merged into its ``_BASE_``, which is one file or a list of files.

    A base is looked up beside the file that names it, then by :func:`find_config`. Nothing is
    downloaded, and YAML tags that run code are errors.

    Args:
        path: path of an existing file.
        children: the files that have this one as a base, the outermost first.

    Returns:
        Nested dict, as YAML builds it.

    Raises:
        ConfigError: a file is unreadable, is its own base, or names an absent base.
    """
    path = Path(path)
    if path.resolve() in children:
        raise ConfigError(f"{path}: is its own _BASE_")
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(f"{path}: has more than {MAX_BYTES} bytes")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except Exception as error:  # from decoding, from yaml, or from the values that yaml constructs
        code = " (write out values that are computed by code)" * ("python/" in str(error))
        raise ConfigError(f"{path}: not a readable YAML config{code}: {_short(error)}") from error
    _check_content(content, path)
    bases = content.pop("_BASE_", [])
    merged: dict[str, Any] = {}
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str):
            raise ConfigError(f"{path}: _BASE_: {base!r}: must be a file name")
        found = find_config(base, f"{path}: _BASE_", path.parent)
        _merge_nested(merged, read_yaml(found, (*children, path.resolve())), path)
    _merge_nested(merged, content, path)
    return merged


def _merge_nested(base: dict[str, Any], content: dict[str, Any], path: Path) -> None:
    """Merge in place. Every dict is copied, because keys that share a YAML anchor share their
    dict."""
    for key, value in content.items():
        if not isinstance(value, dict):
            base[key] = value
        elif isinstance(base.setdefault(key, {}), dict):
            _merge_nested(base[key], value, path)
        else:
            raise ConfigError(
                f"{path}: {key}: holds keys here, but is a single value in the _BASE_"
            )


def _check_content(content: Any, where: str | Path) -> None:
    """Raise ConfigError unless YAML built a dict whose values a config key can take."""
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: not a YAML config: give keys and values such as MODEL: ...")
    stack: list[Any] = [content]
    count = 0
    while stack:
        value, count = stack.pop(), count + 1
        if count > MAX_VALUES:
            raise ConfigError(f"{where}: contains itself, or more than {MAX_VALUES} values")
        if isinstance(value, dict):
            stack += [*value, *value.values()]
        elif isinstance(value, list | tuple):
            stack += value
        elif isinstance(value, str):
            if len(value) > MAX_VALUES or has_surrogates(value):
                raise ConfigError(f"{where}: contains a string that is too long or not Unicode")
        elif value is not None and type(value) not in (bool, int, float):
            raise ConfigError(f"{where}: contains a {type(value).__name__}, which no key takes")
        elif type(value) is int and abs(value) >= 2**63:
            raise ConfigError(f"{where}: contains a number of more than 63 bits")


def _short(error: Exception) -> str:
    text = str(error)
    return ascii(text)[1:-1][:500] if has_surrogates(text) else text[:500]


def _merge(cfg: CfgNode, content: Mapping[str, Any], where: str | Path) -> None:
    """Merge dotted keys and values into ``cfg``. Unknown keys and wrong types are errors."""
    defaults, built = flatten(cfg), examples(flatten(get_cfg()))
    check_keys(content, defaults, str(where))
    for key, value in content.items():
        if value in (None, "None") and defaults[key] is not None:
            raise ConfigError(f"{where}: {key}: has no value")
    try:
        cfg.merge_from_list([x for pair in content.items() for x in pair])
        for key, value in flatten(cfg).items():
            if not fits(value, built[key]):
                raise ConfigError(wrong_value(key, value, built[key]))
    except Exception as error:  # yacs asserts, and evaluates strings as Python literals
        raise ConfigError(f"{where}: {explained(_short(error), built)}") from error


def load_config(path: str | Path, overrides: Sequence[Any] = ()) -> CfgNode:
    """Read a YAML file (:func:`find_config`, :func:`read_yaml`) and overrides KEY, VALUE, ...

    Returns:
        CfgNode: checked and frozen. Without a GPU, ``MODEL.DEVICE`` is "cpu".

    Raises:
        ConfigError: a file, key or value is invalid. The message names it, and the nearest valid
            key or the valid values.
    """
    flat = flatten(read_yaml(find_config(path)))
    return _load({k: v for k, v in flat.items() if not k.startswith(SWITCHED_OFF)}, path, overrides)


def parse_config(text: str, where: str | Path, overrides: Sequence[Any] = ()) -> CfgNode:
    """Load a config that :func:`embedded_part` wrote, with the checks of :func:`load_config`.

    Args:
        where: source of the text, such as a checkpoint's path, for error messages.
    """
    return _load(parse_text(text, where), where, overrides)


def parse_text(text: str, where: str | Path) -> dict[str, Any]:
    """Parse text from :func:`embedded_part`, without checks, to a dict of dotted keys.

    MODEL.DEVICE is dropped, because it belongs to the machine that wrote the text.
    """
    try:
        content = yaml.safe_load(text[:MAX_BYTES])
    except Exception as error:  # from yaml, or from the values that it constructs
        raise ConfigError(f"{where}: its config is not YAML: {_short(error)}") from error
    _check_content(content, where)
    flat = flatten(content)
    flat.pop("MODEL.DEVICE", None)
    return flat


def embedded_part(cfg: CfgNode) -> str:
    """YAML text of the keys in a config, Detectron2's or ours, that the embedded engine knows."""
    known, theirs = get_cfg(), flatten(cfg)
    pairs = [(key, theirs[key]) for key in flatten(known) if key in theirs]
    known.merge_from_list([x for pair in pairs for x in pair])
    return known.dump()


def detectron2_part(cfg: CfgNode) -> str:
    """YAML text of the keys of ``MODEL`` that the embedded engine does not know; "" if there are
    none, as in its own configs."""
    known = flatten(get_cfg())
    rest = {k: v for k, v in flatten(cfg).items() if k.startswith("MODEL.") and k not in known}
    return yaml.safe_dump(rest) if rest else ""


def _load(content: Mapping[str, Any], where: str | Path, overrides: Sequence[Any]) -> CfgNode:
    cfg = get_cfg()
    _merge(cfg, content, where)
    overrides, images = list(overrides), cfg.SOLVER.IMS_PER_BATCH
    check_pairs(overrides)
    _merge(cfg, dict(zip(overrides[::2], overrides[1::2])), "command line")
    check_values(cfg)
    resolve_device(cfg)
    check_batch(cfg, images, overrides)
    cfg.freeze()
    return cfg
