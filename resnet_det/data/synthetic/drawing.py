"""The objects and backgrounds of the scenes, drawn with numpy."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

CLASSES = ("ball", "crate", "fish", "flower", "leaf", "mug", "star", "wheel")


def _colour(rng, low=0.08, vivid=0.85):
    """A random colour (3, 1, 1) in [0, 1] of any hue: saturation up to ``vivid``, brightness from
    ``low``."""
    hue, saturation, value = rng.uniform(), rng.uniform(0.05, vivid), rng.uniform(low, 0.95)
    wheel = np.clip(np.abs((hue * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)
    return (value * (1 - saturation + saturation * wheel)).astype(np.float32)[:, None, None]


def _grey(value):
    return np.full((3, 1, 1), value, np.float32)


def _two_colours(rng, contrast=0.35):
    """Two colours whose brightness differs by at least ``contrast``."""
    while True:
        a, b = _colour(rng), _colour(rng)
        if abs(a.mean() - b.mean()) > contrast:
            return a, b


def _noise(rng, height, width, cell, octaves=3, stretch=1.0):
    """Smooth noise in [0, 1]: the sum of bicubically enlarged random grids, each with half the cell
    size of the one before.

    ``cell`` is the coarsest cell size in pixels, ``stretch`` the ratio of its width to its height.
    """
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        size = cell / 2**octave
        rows = max(2, round(height / size) + 1)
        columns = max(2, round(width / (size * stretch)) + 1)
        grid = Image.fromarray(rng.random((rows, columns), np.float32))
        grid = grid.resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(grid) * 0.55**octave
    low, high = total.min(), total.max()
    return (total - low) / max(high - low, 1e-6)


def _mix(a, b, t):
    """Blend of ``a`` and ``b`` (colours or images) by the map ``t`` (height, width)."""
    if t.dtype == bool:
        return np.where(t, b, a)
    return a + (b - a) * t.astype(np.float32, copy=False)


def _pattern(rng, height, width):
    """A textured surface (3, height, width): noise, stripes, checks, bricks or planks."""
    a, b = _colour(rng, 0.25, vivid=0.6), _colour(rng, 0.25, vivid=0.6)
    grain = _noise(rng, height, width, rng.uniform(12, 60), 4, rng.uniform(0.6, 3))
    angle = rng.uniform(0, math.pi)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    u = x * math.cos(angle) + y * math.sin(angle)
    v = y * math.cos(angle) - x * math.sin(angle)
    period = rng.uniform(9, 34)
    kind = rng.choice(["noise", "noise", "stripes", "checks", "bricks", "planks", "waves"])
    if kind == "noise":
        t = grain
    elif kind == "stripes":
        t = np.clip(np.sin(u * 2 * math.pi / period) * rng.uniform(1, 4) + 0.5, 0, 1)
    elif kind == "checks":
        t = (np.floor(u / period) + np.floor(v / period)) % 2
    elif kind == "bricks":
        row = np.floor(v / period)
        t = np.minimum((u / (2 * period) + 0.5 * (row % 2)) % 1 * 2, v / period % 1) < 0.12
    elif kind == "planks":
        tones = rng.random(64, np.float32)[np.floor(v / period).astype(int) % 64]
        t = np.where(v / period % 1 < 0.06, np.float32(1), 0.5 * tones)
    else:
        t = np.sin((u + 9 * grain * rng.uniform(0.3, 1.5)) * 2 * math.pi / period) * 0.5 + 0.5
    surface = _mix(a, b, t)
    return surface * (1 + rng.uniform(0.1, 0.5) * (grain - 0.5))


def background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """One textured surface, or two that meet at an uneven horizon: float (3, height, width)."""
    surface = _pattern(rng, height, width)
    if rng.random() < 0.5:
        tilt = rng.uniform(-0.25, 0.25)
        y, x = np.mgrid[:height, :width].astype(np.float32)
        ragged = _noise(rng, 1, width, 30)[0] * rng.uniform(0, 18)
        edge = height * rng.uniform(0.3, 0.7) + tilt * (x - width / 2) + ragged
        surface = _mix(surface, _pattern(rng, height, width), np.clip((y - edge) / 1.5, 0, 1))
    # Less contrast than the objects, like a background out of focus.
    surface = surface.mean() + (surface - surface.mean()) * rng.uniform(0.5, 0.9)
    return _blurred(surface, rng.uniform(0.4, 1.1))


def _blurred(image, radius):
    """Blur an image with values in about [0, 1], at 8 bits."""
    return _from_pil(_to_pil(image).filter(ImageFilter.GaussianBlur(radius)))


def _to_pil(image):
    """Convert an array (3, h, w) or (h, w) in [0, 1] to an 8-bit image."""
    levels = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    return Image.fromarray(
        np.ascontiguousarray(np.moveaxis(levels, 0, -1)) if levels.ndim == 3 else levels
    )


def _from_pil(image):
    levels = np.asarray(image, np.float32) / 255
    return np.ascontiguousarray(np.moveaxis(levels, -1, 0)) if levels.ndim == 3 else levels


def finish(rng: np.random.Generator, canvas: np.ndarray) -> Image.Image:
    """Apply uneven light, contrast, sensor noise and blur to a canvas (3, height, width)."""
    height, width = canvas.shape[1:]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)
    angle, slope = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.3)
    light = 1.05 + slope * (x * math.cos(angle) + y * math.sin(angle))
    light -= rng.uniform(0, 0.15) * (x * x + y * y)
    tint = 1 + 0.16 * (rng.random((3, 1, 1), np.float32) - 0.5)
    canvas = np.clip(canvas * light * tint, 0, 1) ** rng.uniform(0.7, 1.1)
    grain = rng.standard_normal(canvas.shape, np.float32) * rng.uniform(0.005, 0.025)
    image = _to_pil(0.03 + 0.94 * canvas + grain)
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.6)))


# Each object is a function of (rng, u, v), where u and v are coordinates in which the object fills
# about [-1, 1] (v points down). It returns (f, paint): f is continuous and negative inside the
# object, paint is (3, h, w) in about [0, 1].


def _ball(rng, u, v):
    """A beach ball: meridian panels on a shaded sphere."""
    a, b = _two_colours(rng)
    r2 = u * u + v * v
    z = np.sqrt(np.clip(1 - r2, 0, 1))
    basis = np.linalg.qr(rng.normal(size=(3, 3)))[0].astype(np.float32)
    x3, y3, z3 = (row[0] * u + row[1] * v + row[2] * z for row in basis)
    panels = np.sin(3 * np.arctan2(y3, x3)) > 0
    paint = _mix(a, b, panels)
    paint = _mix(paint, _colour(rng, 0.6), np.abs(z3) > 0.94)
    glint = np.exp(-((u + 0.35) ** 2 + (v + 0.4) ** 2) / 0.05)
    return np.sqrt(r2) - 1, paint * (0.45 + 0.6 * z) + 0.45 * glint


def _crate(rng, u, v):
    """A wooden crate: planks in a frame with a brace across."""
    wood, dark = _two_colours(rng, 0.3)
    across, along = u / 0.75, v / rng.uniform(0.58, 0.75)
    f = np.maximum(np.abs(across), np.abs(along)) - 1
    count = int(rng.integers(4, 7))
    place = (across + 1) / 2 * count
    tones = (0.75 + 0.35 * rng.random(8, np.float32))[np.clip(np.floor(place), 0, 7).astype(int)]
    paint = wood * tones
    paint = _mix(paint, 0.5 * wood, place % 1 < 0.12)
    brace = np.abs(across - along) < 0.22
    frame = np.maximum(np.abs(across), np.abs(along)) > 0.76
    paint = _mix(paint, dark, brace | frame)
    edge = (np.abs(np.abs(across - along) - 0.22) < 0.05) & ~frame
    edge |= np.abs(np.maximum(np.abs(across), np.abs(along)) - 0.76) < 0.035
    return f, _mix(paint, 0.35 * dark, edge)


def _fish(rng, u, v):
    """A fish: scales, eye, gill, a light belly, a striped tail."""
    back, belly = _two_colours(rng, 0.3)
    height = rng.uniform(0.42, 0.55)
    body = np.hypot((u - 0.25) / 0.75, v / height) - 1
    tail = np.maximum(
        np.abs(v) - 0.12 - 0.75 * (-0.38 - u), np.maximum(u + 0.3, np.hypot(u, v) - 1.05)
    )
    fin = np.maximum(np.hypot((u - 0.15) / 0.42, (v + height * 0.75) / 0.4) - 1, v)
    paint = _mix(back, belly, np.clip(0.5 + 1.3 * v / height, 0, 1))
    rows = v / 0.15
    shift = (np.floor(rows) % 2) * 0.5
    scale = np.hypot((u / 0.2 + shift) % 1 - 0.5, 0.8 * (rows % 1))
    paint = _mix(paint, 0.45 * back, (np.abs(scale - 0.62) < 0.17) & (u < 0.5))
    rays = np.sin(np.arctan2(v, u + 0.1) * 22) > 0
    paint = _mix(paint, _mix(back, 0.4 * back, rays), body > 0)
    paint = _mix(paint, 0.3 * back, np.abs(np.hypot(u - 0.85, v) - 0.4) < 0.035)
    paint = _mix(paint, _grey(0.95), np.hypot(u - 0.68, v + 0.12) < 0.13)
    paint = _mix(paint, _grey(0.05), np.hypot(u - 0.7, v + 0.12) < 0.065)
    return np.minimum(np.minimum(body, tail), fin), paint


def _flower(rng, u, v):
    """A flower: five to eight veined petals around a dotted disc."""
    petal, middle = _two_colours(rng, 0.25)
    count = int(rng.integers(5, 9))
    r, angle = np.hypot(u, v), np.arctan2(v, u)
    lobe = np.abs(np.cos(angle * count / 2))
    f = r - (0.42 + 0.58 * lobe**0.7)
    paint = petal * (0.55 + 0.5 * np.clip(r, 0, 1) * (0.4 + 0.6 * lobe))
    veins = (np.abs(np.sin(angle * count * 1.5)) < 0.16) & (r > 0.3)
    paint = _mix(paint, 0.55 * petal, veins)
    dots = np.sin(u * 34) * np.sin(v * 34) > 0.1
    return f, _mix(paint, _mix(middle, 0.5 * middle, dots), r < 0.31)


def _leaf(rng, u, v):
    """A leaf: a lens with a toothed edge, a midrib, slanted veins and a stalk."""
    blade, vein = _two_colours(rng, 0.25)
    width = rng.uniform(0.42, 0.58)
    w = u - 0.12
    rim = width * np.clip(1 - (w / 0.88) ** 2, 0, 1) ** 0.85
    teeth = 1 - 0.1 * np.abs((w * 7) % 1 - 0.5)
    f = np.where(np.abs(w) < 0.88, np.abs(v) - rim * teeth, np.abs(w) - 0.88 + np.abs(v))
    f = np.minimum(f, np.maximum(np.abs(v) - 0.05, np.maximum(-1 - u, u + 0.6)))
    lines = (w * 4.2 - 3.2 * np.abs(v)) % 1
    paint = blade * (0.8 + 0.35 * (lines - 0.5))
    paint *= np.where(v > 0, 0.78, 1.0)
    return f, _mix(paint, vein, (lines < 0.17) | (np.abs(v) < 0.05))


def _mug(rng, u, v):
    """A mug: a dotted or banded cylinder, its dark mouth, an open handle."""
    glaze, print_ = _two_colours(rng, 0.3)
    x = u + 0.25
    side = np.maximum(np.abs(x) - 0.62, np.abs(v) - 0.68)
    base = np.hypot(x / 0.62, (v - 0.68) / 0.2) - 1
    mouth = np.hypot(x / 0.62, (v + 0.68) / 0.24) - 1
    handle = np.maximum(np.abs(np.hypot((u - 0.37) / 1.0, v / 1.1) - 0.43) - 0.12, 0.3 - u)
    f = np.minimum(np.minimum(side, np.minimum(base, mouth)), handle)
    bend = np.arcsin(np.clip(x / 0.62, -1, 1))
    if rng.random() < 0.5:
        marks = np.hypot((bend * 1.7) % 1 - 0.5, ((v + bend * 0 + 0.2) * 2.6) % 1 - 0.5) < 0.3
    else:
        marks = np.abs(v - 0.1 - 0.12 * np.cos(bend)) % 0.46 < 0.2
    paint = _mix(glaze, print_, marks & (handle > 0))
    paint = paint * (0.6 + 0.45 * np.cos(bend + 0.6))
    paint = _mix(paint, glaze, mouth < 0)
    return f, _mix(paint, 0.25 * glaze, np.hypot(x / 0.5, (v + 0.68) / 0.15) < 1)


def _star(rng, u, v):
    """A five-pointed star with facets: each arm has a light and a dark half."""
    light, dark = _two_colours(rng, 0.3)
    r, angle = np.hypot(u, v), np.arctan2(u, -v)
    turn = (angle / (2 * math.pi / 5) + 0.5) % 1 - 0.5
    phi = np.abs(turn) * 2 * math.pi / 5
    inner = rng.uniform(0.4, 0.5)
    # The edge runs from the tip (1, 0) to the notch at inner * (cos 36, sin 36).
    across, along = inner * math.sin(math.pi / 5), 1 - inner * math.cos(math.pi / 5)
    length = math.hypot(across, along)
    f = ((r * np.cos(phi) - 1) * across + r * np.sin(phi) * along) / length
    paint = _mix(light, dark, turn > 0) * (0.8 + 0.3 * np.clip(1 - r, 0, 1))
    return f, _mix(paint, 0.5 * dark, f > -0.06)


def _wheel(rng, u, v):
    """A spoked wheel: treaded tyre, bright rim, hub, and air between the spokes."""
    tyre, metal = _two_colours(rng, 0.35)
    if tyre.mean() > metal.mean():
        tyre, metal = metal, tyre
    count = int(rng.integers(5, 9))
    r, angle = np.hypot(u, v), np.arctan2(v, u)
    ring = np.abs(r - 0.8) - 0.2
    arc = (angle / (2 * math.pi / count)) % 1 - 0.5
    spokes = np.maximum(r * np.abs(np.sin(arc * 2 * math.pi / count)) - 0.065, r - 0.7)
    hub = r - 0.22
    tread = (np.sin(angle * 26) > 0.2) & (r > 0.88)
    paint = _mix(_mix(tyre, 0.4 * tyre, tread), metal, r < 0.72)
    paint = _mix(paint, 0.3 * tyre, (r < 0.1) | (np.abs(r - 0.75) < 0.03))
    return np.minimum(np.minimum(ring, spokes), hub), paint


def draw_clutter(
    rng: np.random.Generator, u: np.ndarray, v: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Draw clutter, called like an object's function: a disc, bar, box, triangle, blob or ring with
    a plain texture."""
    r, angle = np.hypot(u, v), np.arctan2(v, u)
    kind = int(rng.integers(6))
    if kind == 0:
        f = np.hypot(u, v / rng.uniform(0.5, 1)) - 1
    elif kind == 1:
        f = np.maximum(np.abs(u) - 1, np.abs(v) - rng.uniform(0.06, 0.22))
    elif kind == 2:
        f = np.maximum(np.abs(u) - 0.85, np.abs(v) - rng.uniform(0.4, 0.65))
    elif kind == 3:
        f = np.maximum(np.abs(u) * 0.87 - (v + 1) * 0.5, v - 0.6)
    elif kind == 4:
        wave = sum(rng.uniform(-0.16, 0.16) * np.cos(k * angle + rng.uniform(0, 6)) for k in (2, 3))
        f = r - 0.72 - wave
    else:
        f = np.abs(r - 0.75) - rng.uniform(0.05, 0.18)
    a, b = _colour(rng), _colour(rng)
    slope = rng.uniform(0, 2 * math.pi)
    t = np.clip(0.5 + 0.5 * (u * math.cos(slope) + v * math.sin(slope)), 0, 1)
    height, width = u.shape
    return f, _mix(a, 0.6 * a + 0.4 * b, t) * (0.75 + 0.5 * _noise(rng, height, width, 12, 2))


DRAW = dict(zip(CLASSES, (_ball, _crate, _fish, _flower, _leaf, _mug, _star, _wheel), strict=True))


@dataclass
class Sprite:
    """A drawn object: paint (3, h, w) and opacity (h, w) at the pixel (left, top)."""

    paint: np.ndarray
    alpha: np.ndarray
    left: int
    top: int


def draw_sprite(
    rng: np.random.Generator, draw: Callable, place: Sequence[float] | np.ndarray, size: float
) -> Sprite:
    """Draw one object, about ``size`` pixels wide, rotated and slanted at random.

    Args:
        draw: an object's function, one of ``DRAW``, or :func:`draw_clutter`.
        place: (x, y) of its centre.
    """
    x, y = place
    radius = size / 2
    reach = math.ceil(radius * 1.28) + 1
    left, top = math.floor(x) - reach, math.floor(y) - reach
    side = 2 * reach + 1
    # Two samples per pixel in each direction, averaged below.
    grid = (np.arange(2 * side, dtype=np.float32) + 0.5) / 2
    px, py = (left + grid - x)[None] / radius, (top + grid - y)[:, None] / radius
    turn = rng.normal(0, 0.5) if rng.random() < 0.7 else rng.uniform(-math.pi, math.pi)
    mirror = int(rng.choice([-1, 1]))
    squeeze, slant = rng.uniform(0.78, 1), rng.uniform(0, math.pi)
    # Seen from the side: shorter along the slant, with one end nearer than the other.
    c, s = math.cos(slant), math.sin(slant)
    along, across = (px * c + py * s) / squeeze, py * c - px * s
    depth = 1 + rng.uniform(-0.12, 0.12) * along
    px, py = (along * c - across * s) / depth, (along * s + across * c) / depth
    c, s = math.cos(turn), math.sin(turn)
    f, paint = draw(rng, mirror * (px * c + py * s), py * c - px * s)

    dy, dx = np.gradient(f)
    alpha = np.clip(0.5 - f / np.maximum(np.hypot(dx, dy), 1e-4), 0, 1)
    mean = _halve(alpha)
    paint = _halve(paint * alpha) / np.maximum(mean, 1e-3)
    paint *= 0.9 + 0.2 * _noise(rng, side, side, max(4, size / 4), 2)
    return Sprite(np.clip(paint, 0, 1), mean, left, top)


def _halve(image):
    """Average of each 2 x 2 block."""
    rows = image[..., ::2, :] + image[..., 1::2, :]
    return (rows[..., ::2] + rows[..., 1::2]) / 4


def part_in_view(
    sprite: Sprite, height: int, width: int, dx: int = 0, dy: int = 0
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The slices of the canvas and of the sprite that overlap when the sprite moves by (dx, dy)."""
    left, top = sprite.left + dx, sprite.top + dy
    rows, columns = sprite.alpha.shape
    y0, y1 = max(top, 0), max(min(top + rows, height), 0)
    x0, x1 = max(left, 0), max(min(left + columns, width), 0)
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))


def paste(rng: np.random.Generator, canvas: np.ndarray, sprite: Sprite) -> None:
    """Paste the sprite and its soft shadow into the canvas (3, height, width)."""
    height, width = canvas.shape[1:]
    reach = max(1, sprite.alpha.shape[0] // 14)
    dx, dy = (int(d) for d in rng.integers(-reach, reach + 1, 2))
    shadow = _from_pil(_to_pil(sprite.alpha).filter(ImageFilter.BoxBlur(reach)))
    (rows, columns), here = part_in_view(sprite, height, width, dx, abs(dy))
    canvas[:, rows, columns] *= 1 - rng.uniform(0.2, 0.6) * shadow[here]
    (rows, columns), here = part_in_view(sprite, height, width)
    behind = canvas[:, rows, columns]
    behind += (sprite.paint[(slice(None), *here)] - behind) * sprite.alpha[here]
