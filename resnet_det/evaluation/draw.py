"""Draw boxes on images, for the report page and the demo."""

import colorsys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

# It has the letters of most alphabets, but not those of Chinese, Japanese and Korean. Pillow's own
# font has only Latin's, without accents.
FONT = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
MIN_SIDE = 480  # an image whose longest side is shorter is enlarged, so that labels are legible

Color = tuple[int, int, int]  # red, green, blue, 0-255
Rectangle = tuple[int, int, int, int]  # x1 y1 x2 y2


def draw_boxes(
    image: np.ndarray,
    boxes: Any,
    labels: Sequence[str],
    scores: Any = None,
    dashed: Sequence[bool] | np.ndarray | None = None,
    classes: Sequence[str] | None = None,
) -> np.ndarray:
    """Draw labelled boxes on a copy of an image.

    Args:
        image: RGB, uint8 (h, w, 3).
        boxes: (N, 4), x1 y1 x2 y2 in pixels of the image.
        labels: N names.
        scores: N numbers from 0 to 1, shown in per cent; the highest is drawn last, on top.
        dashed: N booleans: which boxes are dashed.
        classes: all class names, to give each its own colour. Without them a colour depends on the
            name alone, and two names may get similar colours.

    Returns:
        RGB uint8, as large as the image. An image too small for legible labels is enlarged by an
        integer factor.

    Raises:
        ValueError: the image is not uint8 (h, w, 3).
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be uint8 (h, w, 3), got {image.dtype} {image.shape}")
    boxes = np.asarray(boxes, dtype=float).reshape(-1, 4)
    height, width = image.shape[:2]
    factor = max(1, -(-MIN_SIDE // max(height, width)))
    picture = Image.fromarray(np.ascontiguousarray(image))
    if factor > 1:
        picture = picture.resize((width * factor, height * factor), Image.Resampling.BICUBIC)
    canvas = ImageDraw.Draw(picture)
    scale = (picture.width * picture.height) ** 0.5
    line = max(2, round(scale / 260))
    font = ImageFont.truetype(FONT, max(13, round(scale / 42)))

    order = range(len(boxes)) if scores is None else np.argsort(np.asarray(scores), kind="stable")
    limit = np.array([picture.width, picture.height] * 2) - 1
    drawn: list[tuple[int, Rectangle, Color]] = []
    for index in order:
        x1, y1, x2, y2 = np.rint((boxes[index] * factor).clip(0, limit)).astype(int).tolist()
        corners = min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
        color = color_of(labels[index], classes)
        _draw_box(canvas, corners, line, color, dashed is not None and bool(dashed[index]))
        drawn.append((index, corners, color))
    placed: list[Rectangle] = []
    for index, corners, color in reversed(drawn):  # the highest score chooses its place first
        text = labels[index] if scores is None else f"{labels[index]} {100 * scores[index]:.0f}"
        left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
        size = round(right - left) + 4 * line, round(bottom - top) + 4 * line
        place = _label_place(size, corners, picture.size, placed)
        placed.append(place)
        canvas.rounded_rectangle(place, radius=line, fill=color)
        middle = (place[0] + place[2]) / 2, (place[1] + place[3]) / 2
        canvas.text(middle, text, font=font, fill=_ink(color), anchor="mm")
    return np.asarray(picture)


def color_of(label: str, classes: Sequence[str] | None = None) -> Color:
    """The colour of a class. Classes that are neighbours in ``classes`` differ most."""
    if classes and label in classes:
        index = list(classes).index(label)
    else:
        index = zlib.crc32(label.encode())
    hue = (index * 0.6180339887) % 1  # the golden angle spreads any number of hues evenly
    lightness, saturation = ((0.55, 0.95), (0.68, 0.9), (0.42, 0.85))[index // 8 % 3]
    while True:  # at equal lightness, blues look darker than yellows
        red, green, blue = colorsys.hls_to_rgb(hue, lightness, saturation)
        color = round(255 * red), round(255 * green), round(255 * blue)
        if _brightness(color) >= 95:
            return color
        lightness += 0.02


def _brightness(color: Color) -> float:
    return float(np.dot(color, (0.299, 0.587, 0.114)))


def _ink(color: Color) -> Color:
    """Black or white, whichever is more legible on the colour."""
    return (0, 0, 0) if _brightness(color) > 120 else (255, 255, 255)


def _draw_box(
    canvas: ImageDraw.ImageDraw, corners: Rectangle, line: int, color: Color, dashed: bool
) -> None:
    x1, y1, x2, y2 = corners
    if not dashed:
        # A dark rim keeps the line visible where the image has the same colour.
        rim = x1 - 1, y1 - 1, x2 + 1, y2 + 1
        canvas.rectangle(rim, outline=(0, 0, 0), width=line + 2)
        canvas.rectangle(corners, outline=color, width=line)
        return
    dash = 4 * line
    for y in (y1, max(y1, y2 - line + 1)):
        for x in range(x1, x2 + 1, 2 * dash):
            _draw_dash(canvas, (x, y, min(x + dash, x2), y + line - 1), color)
    for x in (x1, max(x1, x2 - line + 1)):
        for y in range(y1, y2 + 1, 2 * dash):
            _draw_dash(canvas, (x, y, x + line - 1, min(y + dash, y2)), color)


def _draw_dash(canvas: ImageDraw.ImageDraw, dash: Rectangle, color: Color) -> None:
    canvas.rectangle((dash[0] - 1, dash[1] - 1, dash[2] + 1, dash[3] + 1), fill=(0, 0, 0))
    canvas.rectangle(dash, fill=color)


def _label_place(
    size: tuple[int, int], corners: Rectangle, image: tuple[int, int], placed: list[Rectangle]
) -> Rectangle:
    """Choose where a label goes: above, inside, below, ..., wherever it covers other labels least.

    Args:
        size: width and height of the label.
        image: width and height of the image.
        placed: the rectangles of the other labels.
    """
    width, height = size
    x1, y1, x2, y2 = corners
    options: list[tuple[int, bool, int, Rectangle]] = []
    for x, y in ((x1, y1 - height), (x1, y1), (x1, y2), (x2 - width, y2 - height), (x2, y1)):
        left = min(max(x, 0), max(image[0] - 1 - width, 0))
        top = min(max(y, 0), max(image[1] - 1 - height, 0))
        place = left, top, left + width, top + height
        hidden = sum(_intersection(place, other) for other in placed)
        options.append((hidden, (left, top) != (x, y), len(options), place))
    return min(options)[3]


def _intersection(a: Rectangle, b: Rectangle) -> int:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)
