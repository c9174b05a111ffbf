"""Read, resize and mirror images.

For opaque images with 8 bits per channel, all pixels equal Detectron2's. Detectron2 clips values
with more bits and drops the alpha channel. :func:`upright_rgb` instead scales or rejects such
values, and blends transparent pixels with white.
"""

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..records import DatasetError

EIGHT_BIT_MODES = ("RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV", "LAB", "RGBX")
ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
# Formats whose 16-bit grey levels range from 0 to 65535. A TIFF states its number of bits. In other
# formats (FITS, McIDAS), 16-bit values are measurements with any range.
_SIXTEEN_BIT_FORMATS = ("PNG", "PPM", "JPEG2000", "IM")
_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


class ImageError(DatasetError):
    """An image that cannot be used."""


class SizeError(ImageError):
    """An image whose size differs from its annotation's."""


@dataclass(frozen=True)
class ImageBytes:
    """The content of an image file, to be used instead of a path, and its name for errors."""

    content: bytes
    name: str


Source = str | os.PathLike | ImageBytes
FORMATS = ("BGR", "RGB", "L")  # of INPUT.FORMAT: the order of the channels; L is grey, one channel
GREY_WEIGHTS = (19595, 38470, 7471)  # of red, green and blue, of 65536: Pillow's
# The principal components of ImageNet's RGB values in [0, 1] (rows R, G, B; one column per
# component) as published by fb.resnet.torch (datasets/imagenet.lua), and AlexNet's standard
# deviation.
EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
EIGENVECTORS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)
_ALPHA = 0.1


def read_image(path: Source, format: str = "BGR") -> np.ndarray:
    """Decode an image and turn it upright by its EXIF orientation.

    Args:
        path: the file, or an :class:`ImageBytes`.
        format: one of ``FORMATS``.

    Returns:
        uint8 array (height, width, 3), or (height, width, 1) for "L", contiguous and writable.

    Raises:
        ImageError: the file is missing, empty, truncated, not an image, larger than Pillow's
            ``Image.MAX_IMAGE_PIXELS``, or has a mode or values that :func:`upright_rgb` rejects.
    """
    if format not in FORMATS:
        raise ValueError(f"INPUT.FORMAT: {format!r}: use one of {', '.join(FORMATS)}")
    with _opened(path) as image:
        return as_array(upright_rgb(image, path), format)


def check_size(image: np.ndarray, record: Mapping[str, Any]) -> None:
    """Raise SizeError if the size of a decoded, upright image differs from its record's."""
    height, width = image.shape[:2]
    expected = (record.get("height", height), record.get("width", width))
    if (height, width) == expected:
        return
    path = record["file_name"]
    what = f"is {width} x {height} pixels, but its annotation says {expected[1]} x {expected[0]}"
    if (width, height) == expected and image_header(path)[2] != 1:
        what += ", as stored before its EXIF orientation turns it: remove the orientation from it"
    raise SizeError(path, what)


def upright_rgb(image: Image.Image, path: Source, turn: bool = True) -> Image.Image:
    """Decode an opened PIL image to 8-bit RGB, turned upright by its EXIF orientation.

    | mode | becomes |
    |---|---|
    | RGB, L, 1, P, CMYK, YCbCr, HSV, LAB, RGBX | Pillow's conversion |
    | LA, La, PA, RGBA, RGBa; P, L, RGB, 1 with a transparent colour | blended with white |
    | I;16 in any byte order; I of a PGM file | divided by 257 (12-bit TIFF: by 4095 / 255) |
    | F with values in 0..1 | times 255 |

    Args:
        path: the file's name, for errors.
        turn: False keeps the orientation in which the pixels are stored.

    Raises:
        ImageError: the image has another mode, or values whose range the file does not declare.
    """
    if 0 in image.size:
        raise ImageError(path, f"has no pixels: is {image.width} x {image.height}")
    white, inverted = _declared_white(image), _white_is_zero(image)
    if turn and _orientation(image) != 1:
        image.info.pop("exif", None)  # Pillow would rewrite the tag, which fails if it is damaged
        image = ImageOps.exif_transpose(image)
    image.load()
    mode = image.mode
    if mode in EIGHT_BIT_MODES + ALPHA_MODES:
        if not image.has_transparency_data:
            return image if mode == "RGB" else image.convert("RGB")
        image = image.convert("LA") if mode == "La" else image
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if white is None or "transparency" in image.info:
        raise ImageError(
            path,
            f"pixel mode {mode} does not declare its range of values: save it as 8-bit grey or RGB",
        )
    levels = np.asarray(image).astype(np.float64)
    if not ((levels >= 0) & (levels <= white)).all():
        raise ImageError(
            path,
            f"pixel mode {mode} holds values from {levels.min():g} to {levels.max():g}, not from 0 "
            f"to {white:g}: scale them to that, or save it as 8-bit grey",
        )
    levels *= 255 / white
    grey = (255 - levels if inverted else levels) + 0.5
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def _declared_white(image: Image.Image) -> float | None:
    """The maximum value that an image with more than 8 bits per pixel declares, or None.

    Call this before turning the image, because the turned image has no file format.
    """
    if image.mode == "F":
        return 1.0
    if image.format == "TIFF" and image.mode.startswith("I;16"):
        return 2 ** image.tag_v2[_TIFF_BITS][0] - 1  # type: ignore[attr-defined]
    return 65535 if image.format in _SIXTEEN_BIT_FORMATS else None


def _white_is_zero(image: Image.Image) -> bool:
    """Whether grey level 0 of a TIFF is white. Pillow inverts such files only if they have 8
    bits."""
    if image.format != "TIFF":
        return False
    return image.tag_v2.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO  # type: ignore[attr-defined]


def read_crop(
    path: Source,
    place: Callable[[int, int], tuple[int, int, int, int]],
    size: int,
    format: str = "BGR",
    *,
    mirror: bool = False,
    scaled: bool = True,
) -> np.ndarray:
    """Read a square crop of a resized image. Only the crop is resized, and little more is decoded.

    Without ``scaled``, the pixels agree within one grey level with :func:`read_image`,
    :func:`resize` and slicing. ``scaled`` lets libjpeg decode a JPEG at 1/2, 1/4 or 1/8 of its size
    if that is at least the resized image's size. This is faster, but each halving averages 2 x 2
    pixels instead of applying the triangle filter.

    Args:
        place: ``place(height, width)`` returns (height, width, top, left): the size to resize to,
            and the corner of the crop in the resized image.
        size: height and width of the crop, in pixels.
        mirror: mirror the crop horizontally.

    Returns:
        uint8 array (size, size, 3), or (size, size, 1) for "L", contiguous and writable.

    Raises:
        ImageError: see :func:`read_image`.
    """
    with _opened(path) as image:
        width, height = _upright_size(image)
        new_height, new_width, top, left = place(height, width)
        if scaled and _orientation(image) == 1:
            image.draft("RGB", (new_width, new_height))  # affects only JPEG
        image = upright_rgb(image, path)
        x, y = image.width / new_width, image.height / new_height
        box = (left * x, top * y, (left + size) * x, (top + size) * y)
        crop = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
        if mirror:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return as_array(crop, format)


def as_array(image: Image.Image, format: str) -> np.ndarray:
    """An RGB image as an array (h, w, channels), in one of ``FORMATS``.

    Pillow reorders channels several times faster than numpy.
    """
    if format == "L":
        image = image.convert("L")
    content = bytearray(image.tobytes("raw", format))
    return np.frombuffer(content, np.uint8).reshape(image.height, image.width, -1)


def image_header(path: Source) -> tuple[int, int, int]:
    """Read ``(height, width, orientation)`` from the header of an image.

    The size is that of the upright image; an EXIF orientation of 1 means that it is stored upright.

    Raises:
        ImageError: the header cannot be read.
    """
    with _opened(path) as image:
        width, height = _upright_size(image)
        return height, width, _orientation(image)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation (1 is upright); 1 if the tag is absent or unreadable."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001  (damaged EXIF raises many types, but the pixels are good)
        return 1
    return value if value in range(1, 9) else 1


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of the upright image. For a TIFF, Pillow's size is already upright."""
    turned = _orientation(image) >= 5 and image.format != "TIFF"
    return image.size[::-1] if turned else image.size


@contextmanager
def _opened(path: Source) -> Iterator[Image.Image]:
    """Open an image and read its header, with :func:`pillow_errors` in the body."""
    file: Any = path
    if isinstance(path, ImageBytes):
        file, path = io.BytesIO(path.content), path.name
    with pillow_errors(path), Image.open(file) as image:
        # Pillow itself raises only above twice its limit.
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and image.width * image.height > limit:
            raise Image.DecompressionBombError(
                f"{image.width} x {image.height} pixels exceed Pillow's limit of {limit}"
            )
        yield image


@contextmanager
def pillow_errors(path: Source) -> Iterator[None]:
    """Turn any error from Pillow in the body into an ImageError that names the image ``path``."""
    try:
        yield
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(path, "missing image file") from None
    except IsADirectoryError:
        raise ImageError(path, "is a folder; give an image file") from None
    except UnidentifiedImageError:
        raise ImageError(path, "not an image, or in a format that Pillow does not know") from None
    except Image.DecompressionBombError as error:
        raise ImageError(path, f"refused: {error}") from None
    except Exception as error:  # a damaged file makes Pillow's decoders raise many types
        raise ImageError(path, f"cannot be decoded: {error}") from error


def resized_shape(height: int, width: int, short: int, longest: float) -> tuple[int, int]:
    """Height and width after scaling the shorter edge to ``short``.

    If the longer edge would exceed ``longest``, it is scaled to ``longest`` instead. A ``short`` of
    0 keeps the size. The operations have Detectron2's order, so that the rounding agrees. An edge
    keeps at least one pixel; Detectron2 fails on images that are so thin.
    """
    if short == 0:
        return height, width
    scale = short / min(height, width)
    new_h, new_w = (short, scale * width) if height < width else (scale * height, short)
    if max(new_h, new_w) > longest:
        scale = longest / max(new_h, new_w)
        new_h, new_w = new_h * scale, new_w * scale
    return max(int(new_h + 0.5), 1), max(int(new_w + 0.5), 1)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear (antialiased) resize of a uint8 array (h, w, 3 or 1) by Pillow, as Detectron2."""
    if image.shape[:2] == (height, width):
        return image
    grey = image.shape[2] == 1
    pillow = Image.fromarray(image[:, :, 0] if grey else image)
    resized = np.array(pillow.resize((width, height), Image.Resampling.BILINEAR))
    return resized[:, :, None] if grey else resized


def at_scales(
    image: np.ndarray, shorts: Sequence[int], short: int, longest: int
) -> list[np.ndarray]:
    """Resize an image (h, w, 3) to each length of its shorter edge in ``shorts``.

    ``longest`` limits the longer edge of an image whose shorter edge is ``short``. For the other
    lengths, the limit is scaled in proportion.
    """
    height, width = image.shape[:2]
    shapes = (resized_shape(height, width, s, longest * s / short) for s in shorts)
    return [resize(image, *shape) for shape in shapes]


def grey(images: np.ndarray) -> np.ndarray:
    """The grey levels of RGB images, uint8 (N, 3, H, W) -> (N, 1, H, W), by Pillow's rule."""
    weights = np.array(GREY_WEIGHTS, np.uint32)
    levels = np.tensordot(images.astype(np.uint32), weights, (1, 0)) + 2**15
    return (levels >> 16).astype(np.uint8)[:, None]


def flip_image(image: np.ndarray, axis: int = 1) -> np.ndarray:
    """Return a contiguous, mirrored copy of an array (h, w, channels): horizontally, or vertically
    with ``axis`` 0."""
    return np.ascontiguousarray(np.flip(image, axis))


def flip_boxes(boxes: np.ndarray, side: float, axis: int = 1) -> np.ndarray:
    """Mirror boxes (N, 4), XYXY in continuous coordinates, as :func:`flip_image` does.

    Args:
        side: the image's width, or its height with ``axis`` 0.
    """
    boxes = np.asarray(boxes)
    flipped = boxes.copy()
    first, second = (0, 2) if axis == 1 else (1, 3)
    flipped[:, first], flipped[:, second] = side - boxes[:, second], side - boxes[:, first]
    return flipped


def color_shift(rng: Any, format: str = "RGB") -> np.ndarray:
    """AlexNet's colour augmentation: the random offsets added to the channels of every pixel of an
    image, on the scale 0-255. Float32 (3,), with standard deviations 3.2, 3.2 and 3.3.

    Args:
        rng: a numpy Generator, or the module ``numpy.random``.
        format: order of the channels, "RGB" or "BGR".
    """
    shift = (255 * EIGENVECTORS @ (rng.normal(0, _ALPHA, 3) * EIGENVALUES)).astype(np.float32)
    return shift if format == "RGB" else shift[::-1].copy()


def shift_colors(image: np.ndarray, format: str, rng: Any) -> np.ndarray:
    """Add a :func:`color_shift` to a uint8 image (h, w, 3). The sums are rounded and clipped."""
    return (image + color_shift(rng, format)).round().clip(0, 255).astype(np.uint8)


def draw_size(sizes: Sequence[int], sampling: str, rng: np.random.Generator) -> int:
    """Draw the length of the shorter edge. "choice" picks one of ``sizes``; "range" draws an
    integer from ``sizes``, a pair (low, high), both included."""
    if sampling == "range":
        return int(rng.integers(sizes[0], sizes[1], endpoint=True))
    return sizes[int(rng.integers(len(sizes)))]
