"""Images from disk, resized and mirrored: pixel for pixel what Detectron2 gives its detectors."""

import io
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from .records import DatasetError

_EXIF_ORIENTATION = 274
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(DatasetError):
    """An image that cannot be used."""


@dataclass(frozen=True)
class ImageBytes:
    """What an image file would hold, in place of its path, and its name in errors."""

    content: bytes
    name: str


def read_image(path, format="BGR", stored_upright=False):
    """Decode an image, upright by its EXIF orientation.

    Args:
        path: the file, or an :class:`ImageBytes`.
        format: "BGR" or "RGB", the order of the channels.
        stored_upright: refuse an image that its EXIF orientation turns: whether its boxes are of
            the stored or of the upright image cannot be known.

    Returns:
        uint8 array (height, width, 3), contiguous and writable.

    Raises:
        ImageError: missing, empty, truncated, not an image, or so large (over Pillow's
            ``Image.MAX_IMAGE_PIXELS``) that decoding it could exhaust the memory.
    """
    if format not in ("BGR", "RGB"):
        raise ValueError(f"INPUT.FORMAT must be 'BGR' or 'RGB', not {format!r}")
    with _opened(path) as image:
        orientation = _orientation(image)
        if stored_upright and orientation != 1:
            raise ImageError(path, f"is turned by EXIF orientation {orientation}: save it upright")
        method = _UPRIGHT.get(orientation)
        if method is not None:
            image = image.transpose(method)
        return _as_array(image.convert("RGB"), format)


def read_crop(path, place, size, format="BGR", *, mirror=False, scaled=True):
    """A square crop of a resized image: no more is resized, and little more decoded, than it needs.

    Without ``scaled``, to a grey level the pixels of :func:`read_image`, :func:`resize` and a
    slice. ``scaled`` lets libjpeg decode a JPEG at 1/2, 1/4 or 1/8 where that is no smaller than
    the resized image: sooner, and each such halving averages 2 x 2 pixels in place of the triangle
    filter.

    Args:
        place: function of (height, width) -> (height, width, top, left): the size to resize to,
            and the crop's corner in that.
        size: side of the crop.
        mirror: left and right, after cropping.

    Returns:
        uint8 array (size, size, 3), contiguous and writable.

    Raises:
        ImageError: as :func:`read_image`.
    """
    with _opened(path) as image:
        orientation = _orientation(image)
        width, height = image.size[::-1] if orientation >= 5 else image.size
        new_height, new_width, top, left = place(height, width)
        if scaled and orientation == 1:
            image.draft("RGB", (new_width, new_height))  # nothing where it is no JPEG
        if orientation != 1:
            image = image.transpose(_UPRIGHT[orientation])
        if image.mode != "RGB":
            image = image.convert("RGB")
        x, y = image.width / new_width, image.height / new_height
        box = (left * x, top * y, (left + size) * x, (top + size) * y)
        crop = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
        if mirror:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return _as_array(crop, format)


def _as_array(image, format):
    """Pillow reorders the channels and mirrors several times faster than numpy's strides."""
    content = bytearray(image.tobytes("raw", format))
    return np.frombuffer(content, np.uint8).reshape(image.height, image.width, 3)


def image_header(path):
    """``(height, width, orientation)`` from the header alone: the size of the upright image, and
    its EXIF orientation (1: stored upright). Raises ImageError."""
    with _opened(path) as image:
        turned = _orientation(image)
        width, height = image.size[::-1] if turned >= 5 else image.size
        return height, width, turned


def _orientation(image):
    """EXIF orientation (1 is upright) of a PIL image; 1 where the tag is absent or unreadable."""
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # noqa: BLE001  (damaged EXIF raises many kinds; the pixels are good)
        return 1
    return value if value in _UPRIGHT else 1


@contextmanager
def _opened(path):
    """The image, header read; whatever Pillow raises in the body becomes an ImageError."""
    file = path
    if isinstance(path, ImageBytes):
        file, path = io.BytesIO(path.content), path.name
    try:
        with Image.open(file) as image:
            # Pillow itself refuses only twice its limit.
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise Image.DecompressionBombError(
                    f"{image.width} x {image.height} pixels exceed Pillow's limit of {limit}"
                )
            yield image
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(path, "missing image file") from None
    except UnidentifiedImageError:
        raise ImageError(path, "not an image, or of a kind that Pillow does not know") from None
    except Image.DecompressionBombError as error:
        raise ImageError(path, f"refused: {error}") from None
    except Exception as error:  # a damaged file makes Pillow's decoders raise many kinds
        raise ImageError(path, f"cannot be decoded: {error}") from error


def resized_shape(height, width, short, longest):
    """Height and width after scaling the shorter edge to ``short``.

    Where that takes the longer edge over ``longest``, the longer edge is scaled to it instead.
    ``short`` 0 leaves the size alone. Detectron2's arithmetic in its order, so that the rounding
    agrees.
    """
    if short == 0:
        return height, width
    scale = short / min(height, width)
    new_h, new_w = (short, scale * width) if height < width else (scale * height, short)
    if max(new_h, new_w) > longest:
        scale = longest / max(new_h, new_w)
        new_h, new_w = new_h * scale, new_w * scale
    return int(new_h + 0.5), int(new_w + 0.5)


def resize(image, height, width):
    """Bilinear (antialiased) resize of a uint8 array (h, w, 3) by Pillow, as Detectron2."""
    if image.shape[:2] == (height, width):
        return image
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def at_scales(image, shorts, short, longest):
    """The image (h, w, 3) at further shorter edges: a list of arrays.

    Their longer edges are at most ``longest`` in proportion, which goes with the edge ``short``.
    """
    return [resize(image, *resized_shape(*image.shape[:2], s, longest * s / short)) for s in shorts]


def flip_image(image):
    """Mirror left and right: array (h, w, 3) to a contiguous copy."""
    return np.ascontiguousarray(image[:, ::-1])


def flip_boxes(boxes, width):
    """Boxes (N, 4) XYXY, continuous, in the mirror image of an image ``width`` pixels wide."""
    boxes = np.asarray(boxes)
    flipped = boxes.copy()
    flipped[:, 0], flipped[:, 2] = width - boxes[:, 2], width - boxes[:, 0]
    return flipped
