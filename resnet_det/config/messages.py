"""Is a config's value built as the default of its key? If not: what to write instead."""

import ast
import contextlib
import difflib
import math
import re

# What may stand in the lists whose default does not say it.
_EXAMPLES = {
    "DATASETS.TRAIN": ("voc_2007_trainval",),
    "DATASETS.TEST": ("voc_2007_test",),
    "DATASETS.PROPOSAL_FILES_TRAIN": ("proposals.pkl",),
    "DATASETS.PROPOSAL_FILES_TEST": ("proposals.pkl",),
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32.0, 64.0, 128.0]],
    "MODEL.ANCHOR_GENERATOR.ANGLES": [[-90.0, 0.0, 90.0]],
    "MODEL.FPN.IN_FEATURES": ["res2"],
    "TEST.EXPECTED_RESULTS": [["bbox", "AP", 38.5, 0.2]],
    "TEST.KEYPOINT_OKS_SIGMAS": [0.026, 0.025],
    "RESNET_DET.ENSEMBLE": ("other.pth",),
    "RESNET_DET.MULTI_SCALE_TEST": (400, 600, 800),
    "RESNET_DET.NEW_LAYERS": ("fc6",),
}


def examples(known):
    """The defaults, with an example in the place of those that do not say what they take.

    Args:
        known: dict of all keys and their defaults.
    """
    return known | {key: value for key, value in _EXAMPLES.items() if key in known}


def near_it(word, known):
    """ "; near it: ..." of the nearest words, or nothing where none is near."""
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f"; near it: {', '.join(near)}" if near else ""


def fits(value, default):
    """Whether a value is built as the default: numbers (finite), texts, lists of them, None."""
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


def _is_row(default):
    """Does each place of a list take something else?"""
    return len({type(part) for part in default}) > 1


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
        if _is_row(default):
            return "rows"
        return ("lists" if several else "a list") + (
            f" of {_kind(default[0], True)}" if default else ""
        )
    return _KINDS[type(default)][several]


def _whole(value):
    return int(value) if type(value) is float and value.is_integer() else value


def _instead(value, default):
    """Quoted as a shell needs it; YAML reads it so too."""
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
