"""What error messages say of names: similar ones, and how two lists of them differ."""

import difflib
from collections.abc import Iterable, Sequence


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


def some(names: Sequence[str], limit: int = 5) -> str:
    """Format the first names of a list and the number of the others, for a message."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def difference(first: Sequence[str], owner: str, second: Sequence[str], other: str) -> str:
    """Describe how two lists of names differ: "only A has x, y; only B has z".

    Args:
        owner, other: what has the ``first`` and the ``second`` names.
    """
    parts = [
        f"only {who} has {some(only, 20)}"
        for who, only in (
            (owner, [name for name in first if name not in second]),
            (other, [name for name in second if name not in first]),
        )
        if only
    ]
    return "; ".join(parts) or "their order differs"


def _similarity(name: str, word: str) -> float:
    return difflib.SequenceMatcher(None, name, word).ratio()
