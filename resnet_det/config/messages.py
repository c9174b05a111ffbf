"""Error messages for values of the wrong type, with what the key takes and what to write
instead."""

import ast
import contextlib
import math
import re
from collections.abc import Mapping
from typing import Any

from .defaults import DETECTRON2_EXAMPLES, KEYS


def examples(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The default of each dotted key, or an example if the default does not show what it takes."""
    shown = DETECTRON2_EXAMPLES | {k: key.example for k, key in KEYS.items() if key.example}
    return {key: shown.get(key, default) for key, default in defaults.items()}


def fits(value: Any, default: Any) -> bool:
    """Whether a value has the default's type: finite number, string, list of these, or None."""
    if isinstance(default, list | tuple):
        if not isinstance(value, list | tuple):
            return False
        if _is_row(default):
            return len(value) == len(default) and all(map(fits, value, default))
        return all(fits(v, default[0]) for v in value) if default else True
    if isinstance(default, bool | str):
        return type(value) is type(default)
    if type(default) is int:
        return type(value) is int
    finite = type(value) in (int, float) and math.isfinite(value)
    return finite or (default is None and value is None)


def _is_row(default: Any) -> bool:
    """Whether the elements of a list differ in type, which also fixes its length."""
    return len({type(part) for part in default}) > 1


def wrong_value(key: str, value: Any, default: Any) -> str:
    """The error message for a value whose type is not its default's."""
    return f"{key}: {value!r}: takes {_kind(default)}{_instead(value, default)}"


def explained(message: str, known: Mapping[str, Any]) -> str:
    """Rewrite an error message from yacs with :func:`wrong_value` if it is about a value's type.

    Args:
        known: the default of each dotted key.
    """
    pattern = r"Type mismatch .*with values \(.* vs\. (.*)\) for config key: (\S+)"
    found = re.search(pattern, message, re.DOTALL)
    if not found:
        return message
    value, key = found.groups()
    if key not in known:
        under = next((other for other in known if other.startswith(f"{key}.")), "")
        return f"{key}: {value}: is a group of keys, such as {under}"
    with contextlib.suppress(ValueError, SyntaxError):  # else it is a string
        value = ast.literal_eval(value)
    return wrong_value(key, value, known[key])


_KINDS = {
    bool: ("True or False", "True or False"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a string", "strings"),
    type(None): ("a number or None", "numbers"),
}


def _kind(default: Any, several: bool = False) -> str:
    if isinstance(default, list | tuple):
        if _is_row(default):
            return "rows"
        return ("lists" if several else "a list") + (
            f" of {_kind(default[0], True)}" if default else ""
        )
    return _KINDS[type(default)][several]


def _whole(value: Any) -> Any:
    return int(value) if type(value) is float and value.is_integer() else value


def _instead(value: Any, default: Any) -> str:
    """What to write instead, quoted for a shell and also valid in YAML."""
    if isinstance(default, list | tuple):
        whole = [_whole(part) for part in value] if isinstance(value, list | tuple) else []
        if whole and fits(whole, default):
            return f': write "{type(value)(whole)!r}"'
        alone = len(default) < 2 and fits((value,), default) and not isinstance(value, list | tuple)
        return f': write "{(value,)!r}"' if alone else f', such as "{default!r}"'
    if type(default) is float and type(value) is int:
        return f": write {float(value)!r}"
    if type(default) is int and type(value) is float and value.is_integer():
        return f": write {int(value)}"
    if isinstance(default, str):
        return f': write "{str(value)!r}"'
    return f", such as {default!r}" if type(default) in (int, float) else ""
