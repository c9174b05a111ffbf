"""Suggestions in error messages for names that do not exist."""

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str], list_all: bool = False) -> str:
    """Return the end of an error message about ``word``: "; did you mean A or B?".

    Args:
        list_all: if no known name is similar, list all of them; otherwise the result is "".
    """
    known = list(known)
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    # Keys of one section resemble each other: keep those that are almost as similar as the best.
    near = [name for name in near if _similarity(name, word) > _similarity(near[0], word) - 0.1]
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; use one of {', '.join(known)}" if list_all else ""


def _similarity(name: str, word: str) -> float:
    return difflib.SequenceMatcher(None, name, word).ratio()
