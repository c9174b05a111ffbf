"""Read single values of annotation files, in the forms that annotation tools write.

Each function returns a value in the form that the format defines. If the file holds another form of
the same value, the function counts that in ``changes`` (what was changed -> how often). It raises
ValueError if the value has no meaning.
"""

import logging
import math
import re
import reprlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ...records import LONGEST_SIDE
from ..check import image_of

logger = logging.getLogger(__name__)

FLAGS = "flags that are missing or not 0 or 1"
NUMBERS = "numbers of another type"
SIZES = "image sizes taken from the image files"
POLYGONS = "boxes computed from polygons"
KEYPOINTS = "objects read without their keypoints"
CLIPPED = "boxes clipped to their image (listed by tools/check_dataset.py)"

_FLAGS = {
    **dict.fromkeys(("0", "0.0", "", "false", "no", "none", "null", "unspecified"), 0),
    **dict.fromkeys(("1", "1.0", "true", "yes"), 1),
}


def read_flag(value: Any, name: str, changes: Counter[str]) -> int:
    """Read a flag, 0 or 1. None, an absent flag, is 0."""
    if type(value) is int and value in (0, 1):
        return value
    flag = None
    if value is None or type(value) in (str, bool, float):
        flag = _FLAGS.get(str(value).strip().lower())
    if flag is None:
        raise ValueError(f"{name} is {reprlib.repr(value)}, not 0 or 1")
    changes[FLAGS] += 1
    return flag


def read_whole(value: Any, name: str, changes: Counter[str]) -> int:
    """Read an integer, such as an id."""
    if type(value) is int:
        return value
    is_text = type(value) is str and re.fullmatch(r"\s*-?[0-9]{1,15}(\.0*)?\s*", value)
    if is_text or (type(value) is float and value.is_integer() and abs(value) < 10**15):
        changes[NUMBERS] += 1
        return int(float(value))
    raise ValueError(f"{name} is {reprlib.repr(value)}, not an integer")


def read_number(value: Any, name: str, changes: Counter[str]) -> float:
    """Read a number, which may be NaN or infinite."""
    # JSON integers have any length; the longest do not fit into a float.
    if type(value) is float or (type(value) is int and abs(value) < 2**63):
        return value
    if type(value) is str:
        try:
            number = float(value)
        except ValueError:
            pass
        else:
            changes[NUMBERS] += 1
            return number
    raise ValueError(f"{name} is {reprlib.repr(value)}, not a number")


def is_side(value: Any) -> bool:
    """Whether a value is the height or width of an image."""
    return type(value) is int and 0 < value <= LONGEST_SIDE


def around(xs: Sequence[float], ys: Sequence[float], changes: Counter[str]) -> list[float]:
    """The smallest box (x0, y0, x1, y1) around the corners of a polygon."""
    if not xs or len(xs) != len(ys):
        raise ValueError(f"a polygon has {len(xs)} x and {len(ys)} y coordinates")
    changes[POLYGONS] += 1
    return [min(xs), min(ys), max(xs), max(ys)]


def check_pixels(box: Sequence[float], width: int, height: int) -> None:
    """Raise ValueError if a box (x0, y0, x1, y1) is in fractions of its image, and not in pixels."""
    first_pixel = max(box) <= 1 < min(width, height)
    if first_pixel and not all(float(value).is_integer() for value in box):
        raise ValueError("lies in the first pixel: give pixels, not fractions of the image")


def inside(box: Sequence[float], width: int, height: int, slack: float = 0.0) -> Sequence[float]:
    """Clip a box (x0, y0, x1, y1), in continuous coordinates, to its image.

    Args:
        slack: number of pixels by which a box may extend beyond the image without being clipped.

    Returns:
        ``box`` itself unless it extends further.

    Raises:
        ValueError: the box is not finite, inverted, empty, or outside the image.
    """
    x0, y0, x1, y1 = box
    if not all(map(math.isfinite, box)):
        raise ValueError("is not finite")
    if x1 < x0 or y1 < y0:
        raise ValueError("is inverted (its right or bottom edge comes before its left or top edge)")
    if x1 == x0 or y1 == y0:
        raise ValueError("is empty (no width or no height)")
    if x0 >= -slack and y0 >= -slack and x1 <= width + slack and y1 <= height + slack:
        return box
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    if x1 <= x0 or y1 <= y0:
        raise ValueError(f"lies outside {image_of(width, height)}")
    return [x0, y0, x1, y1]


def log_changes(source: str, changes: Counter[str]) -> None:
    """Log in one line what was changed in reading the annotations of ``source``, if anything."""
    counts = ", ".join(f"{count} {what}" for what, count in sorted(changes.items()) if count)
    if counts:
        logger.info("%s: changed in reading: %s", source, counts)
