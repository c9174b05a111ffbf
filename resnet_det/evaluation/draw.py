"""Pictures of boxes: for the report page and the demo."""

import colorsys
import zlib

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SMALLEST = (
    480  # a longest side under this is enlarged, by a whole factor, so that labels are legible
)


def draw_boxes(image, boxes, labels, scores=None, difficult=None, classes=None):
    """Draw labelled boxes on a copy of an image.

    Args:
        image: RGB, uint8 (h, w, 3).
        boxes: (N, 4), x1 y1 x2 y2 in pixels of the image.
        labels: N names.
        scores: N numbers from 0 to 1, shown in per cent; the best is drawn last, on top.
        difficult: N truth values; these boxes are dashed.
        classes: all names, to give each a colour of its own; without it a colour follows from the
            name alone, and two names may look alike.

    Returns:
        RGB uint8. The image's size, unless it is so small that labels would not be legible: then
        enlarged by a whole factor. ValueError if it is not uint8 (h, w, 3).
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be uint8 (h, w, 3), got {image.dtype} {image.shape}")
    boxes = np.asarray(boxes, dtype=float).reshape(-1, 4)
    height, width = image.shape[:2]
    factor = -(-SMALLEST // max(height, width)) if max(height, width) < SMALLEST else 1
    picture = Image.fromarray(np.ascontiguousarray(image))
    if factor > 1:
        picture = picture.resize((width * factor, height * factor), Image.Resampling.BICUBIC)
    canvas = ImageDraw.Draw(picture)
    scale = (picture.width * picture.height) ** 0.5
    line = max(2, round(scale / 260))
    font = ImageFont.load_default(max(13, round(scale / 42)))

    order = range(len(boxes)) if scores is None else np.argsort(np.asarray(scores), kind="stable")
    limit = np.array([picture.width, picture.height] * 2) - 1
    shapes = []
    for index in order:
        x1, y1, x2, y2 = np.rint((boxes[index] * factor).clip(0, limit)).astype(int).tolist()
        color = color_of(labels[index], classes)
        corners = min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
        _box(canvas, corners, line, color, bool(difficult is not None and difficult[index]))
        shapes.append((index, corners, color))
    placed = []
    for index, corners, color in reversed(shapes):  # the best choose their places first
        text = labels[index] if scores is None else f"{labels[index]} {100 * scores[index]:.0f}"
        place = _place(
            canvas.textbbox((0, 0), text, font=font), corners, line, picture.size, placed
        )
        placed.append(place)
        canvas.rounded_rectangle(place, radius=line, fill=color)
        middle = (place[0] + place[2]) / 2, (place[1] + place[3]) / 2
        canvas.text(middle, text, font=font, fill=_ink(color), anchor="mm")
    return np.asarray(picture)


def color_of(label, classes=None):
    """The class's colour as (red, green, blue), 0-255: neighbours in ``classes`` differ most."""
    index = list(classes).index(label) if classes and label in classes else None
    if index is None:
        index = zlib.crc32(label.encode())
    hue = (index * 0.6180339887) % 1  # the golden angle spreads any number of hues evenly
    lightness, saturation = ((0.55, 0.95), (0.68, 0.9), (0.42, 0.85))[index // 8 % 3]
    while True:  # blues are dark at a lightness at which yellows are not
        color = tuple(round(255 * v) for v in colorsys.hls_to_rgb(hue, lightness, saturation))
        if _brightness(color) >= 95:
            return color
        lightness += 0.02


def _brightness(color):
    return float(np.dot(color, (0.299, 0.587, 0.114)))


def _ink(color):
    """Black or white, whichever reads better on the colour."""
    return (0, 0, 0) if _brightness(color) > 120 else (255, 255, 255)


def _box(canvas, corners, line, color, dashed):
    x1, y1, x2, y2 = corners
    halo = x1 - 1, y1 - 1, x2 + 1, y2 + 1  # a dark rim keeps the line visible on its own colour
    if not dashed:
        canvas.rectangle(halo, outline=(0, 0, 0), width=line + 2)
        canvas.rectangle(corners, outline=color, width=line)
        return
    dash = 4 * line
    for start, end, vertical, across in (
        (x1, x2, False, y1),
        (x1, x2, False, max(y1, y2 - line + 1)),
        (y1, y2, True, x1),
        (y1, y2, True, max(x1, x2 - line + 1)),
    ):
        for begin in range(start, end + 1, 2 * dash):
            stop = min(begin + dash, end)
            strip = [begin, across, stop, across + line - 1]
            rim = [begin - 1, across - 1, stop + 1, across + line]
            if vertical:
                strip, rim = ([s[1], s[0], s[3], s[2]] for s in (strip, rim))
            canvas.rectangle(rim, fill=(0, 0, 0))
            canvas.rectangle(strip, fill=color)


def _place(text, corners, line, size, placed):
    """Where the label goes: above the box, else inside it, else below; least over other labels."""
    width, height = text[2] - text[0] + 4 * line, text[3] - text[1] + 4 * line
    x1, y1, x2, y2 = corners
    options = []
    for x, y in ((x1, y1 - height), (x1, y1), (x1, y2), (x2 - width, y2 - height), (x2, y1)):
        left = min(max(x, 0), max(size[0] - 1 - width, 0))
        top = min(max(y, 0), max(size[1] - 1 - height, 0))
        place = left, top, left + width, top + height
        moved = abs(left - x) + abs(top - y)
        options.append(
            (sum(_shared(place, other) for other in placed), moved > 0, len(options), place)
        )
    return min(options)[3]


def _shared(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)
