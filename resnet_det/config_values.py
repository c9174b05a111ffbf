"""Is a config's value built as the default of its key? If not: what to write instead."""

import ast
import contextlib
import math
import re


def fits(value, default):
    """Whether a value is built as the default: numbers (finite), texts, lists of them, None."""
    if isinstance(default, list | tuple):
        if not isinstance(value, list | tuple):
            return False
        return all(fits(v, default[0]) for v in value) if default else True
    if isinstance(default, bool | str):
        return type(value) is type(default)
    finite = type(value) in (int, float) and math.isfinite(value)
    return finite or (default is None and value is None)


def wrong_value(key, value, default):
    """Says that the value of a key is not built as its default, and what to write."""
    return f"{key}: {value!r}: takes {_kind(default)}{_instead(value, default)}"


def explained(message, known):
    """A message of yacs; one about a value's type is put as by :func:`wrong_value`.

    Args:
        known: dict of all keys and their defaults.
    """
    pattern = r"Type mismatch .*with values \(.* vs\. (.*)\) for config key: (\S+)"
    found = re.search(pattern, message, re.DOTALL)
    if not found:
        return message
    value, key = found.groups()
    if key not in known:
        under = next((other for other in known if other.startswith(f"{key}.")), "")
        return f"{key}: {value}: is a group of keys, such as {under}"
    with contextlib.suppress(ValueError, SyntaxError):  # else it is a text
        value = ast.literal_eval(value)
    return wrong_value(key, value, known[key])


_KINDS = {
    bool: ("True or False", "True or False"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a text", "texts"),
    type(None): ("a number or None", "numbers"),
}


def _kind(default, several=False):
    if isinstance(default, list | tuple):
        return ("lists" if several else "a list") + (
            f" of {_kind(default[0], True)}" if default else ""
        )
    return _KINDS[type(default)][several]


def _instead(value, default):
    """Quoted as a shell needs it; YAML reads it so too."""
    if isinstance(default, list | tuple):
        alone = len(default) < 2 and fits((value,), default) and not isinstance(value, list | tuple)
        return f': write "{(value,)!r}"' if alone else f', such as "{default!r}"'
    if type(default) is float and type(value) is int:
        return f": write {float(value)!r}"
    if type(default) is int and type(value) is float and value.is_integer():
        return f": write {int(value)}"
    if isinstance(default, str):
        return f': write "{str(value)!r}"'
    return f", such as {default!r}" if type(default) in (int, float) else ""
