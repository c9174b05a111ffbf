import io
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from resnet_det.data import ImageError, pixels


def photograph(height=37, width=53, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_read_image_and_channel_order(tmp_path):
    want = photograph()
    Image.fromarray(want).save(tmp_path / "a.png")
    rgb = pixels.read_image(tmp_path / "a.png", "RGB")
    bgr = pixels.read_image(tmp_path / "a.png")
    assert rgb.dtype == np.uint8
    np.testing.assert_array_equal(rgb, want)
    np.testing.assert_array_equal(bgr, want[:, :, ::-1])
    assert bgr.flags.c_contiguous and bgr.flags.writeable and rgb.flags.writeable
    with pytest.raises(ValueError, match="'HSV'"):
        pixels.read_image(tmp_path / "a.png", "HSV")


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_other_modes_become_rgb(tmp_path, mode):
    path = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
    image = Image.fromarray(photograph()).convert(mode)
    image.save(path)
    got = pixels.read_image(path, "RGB")
    assert got.shape == (37, 53, 3)
    if mode in ("L", "1", "LA"):
        np.testing.assert_array_equal(got[:, :, 0], np.asarray(image.convert("L")))
        np.testing.assert_array_equal(got[:, :, 0], got[:, :, 2])


# Upright pixels as stored under each EXIF orientation (EXIF 2.3, 4.6.4 A, says on which side of the
# scene the stored row 0 and column 0 lie: 6 is right and top, 8 left and bottom...).
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[::-1].swapaxes(0, 1),
}


@pytest.mark.parametrize("orientation", sorted(STORED))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = photograph()
    exif = Image.Exif()
    exif[274] = orientation
    stored = np.ascontiguousarray(STORED[orientation](upright))
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(pixels.read_image(tmp_path / "a.png", "RGB"), upright)
    assert pixels.image_header(tmp_path / "a.png") == (37, 53, orientation)


def test_strange_exif_orientation_is_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 9
    Image.fromarray(photograph()).save(tmp_path / "a.png", exif=exif)
    assert pixels.image_header(tmp_path / "a.png") == (37, 53, 1)


def jpeg_bytes():
    stream = io.BytesIO()
    Image.fromarray(photograph(200, 200)).save(stream, "JPEG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "not an image"),
        (b"<html>404 Not Found</html>", "not an image"),
        (jpeg_bytes()[: len(jpeg_bytes()) // 2], "truncated"),
    ],
)
def test_unreadable_file_is_named(tmp_path, content, what):
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=rf"broken\.jpg: .*{what}") as caught:
        pixels.read_image(path)
    assert caught.value.file == str(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ImageError, match=r"none\.jpg: missing image file"):
        pixels.read_image(tmp_path / "none.jpg")
    with pytest.raises(ImageError, match="cannot be decoded"):
        pixels.read_image(tmp_path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [1900, 100])  # over Pillow's limit, and over twice that
def test_decompression_bomb_is_refused(tmp_path, monkeypatch, limit):
    Image.fromarray(photograph()).save(tmp_path / "bomb.png")  # 37 * 53 = 1961 pixels
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1961)
    pixels.read_image(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ImageError, match=r"bomb\.png: refused"):
        pixels.read_image(tmp_path / "bomb.png")


def test_resized_shape_against_fractions():
    """Short edge to 600, or long edge to 1000, whichever is the smaller scale; halves go up."""
    rng = np.random.default_rng(0)
    for height, width in rng.integers(30, 2000, (300, 2)).tolist():
        scale = min(Fraction(600, min(height, width)), Fraction(1000, max(height, width)))
        want = [float(side * scale) for side in (height, width)]
        got = pixels.resized_shape(height, width, 600, 1000)
        assert all(isinstance(side, int) for side in got)
        assert got == pytest.approx(want, abs=0.5 + 1e-9)
    assert pixels.resized_shape(480, 640, 600, 1000) == (600, 800)
    assert pixels.resized_shape(375, 500, 600, 1000) == (600, 800)
    assert pixels.resized_shape(200, 1000, 600, 1000) == (200, 1000)
    assert pixels.resized_shape(333, 111, 0, 1000) == (333, 111)


def test_resize_of_a_ramp_and_of_a_constant():
    """Bilinear interpolation of a ramp is the ramp at the new pixel centres (away from the ends)."""
    ramp = np.repeat(np.arange(0, 240, 4, dtype=np.uint8)[None, :, None], 8, 0).repeat(3, 2)
    got = pixels.resize(ramp, 16, 120)
    assert got.shape == (16, 120, 3) and got.dtype == np.uint8
    centres = (np.arange(120) + 0.5) / 2 - 0.5
    np.testing.assert_allclose(got[5, 2:-2, 1], 4 * centres[2:-2], atol=0.5)
    np.testing.assert_array_equal(pixels.resize(np.full((9, 7, 3), 77, np.uint8), 31, 5), 77)
    # One bright column spreads over its neighbours with the weights of a triangle.
    column = np.zeros((4, 5, 3), np.uint8)
    column[:, 2] = 200
    want = [0, 0, 0, 50, 150, 150, 50, 0, 0, 0]
    np.testing.assert_array_equal(pixels.resize(column, 4, 10)[1, :, 0], want)
    # Shrinking averages (a box of neighbours counts), where plain sampling would give 0 or 255.
    checks = ((np.indices((64, 64)).sum(0) % 2) * 255).astype(np.uint8)[..., None].repeat(3, 2)
    assert abs(pixels.resize(checks, 16, 16).astype(int) - 127.5).max() < 3
    same = photograph()
    np.testing.assert_array_equal(pixels.resize(same, 37, 53), same)


def test_flip():
    image = photograph()
    image[10:20, 5:9] = 255  # a box [5, 10, 9, 20]
    flipped = pixels.flip_image(image)
    assert flipped.flags.c_contiguous
    ((x0, y0, x1, y1),) = pixels.flip_boxes([[5.0, 10.0, 9.0, 20.0]], 53)
    assert (x0, y0, x1, y1) == (44, 10, 48, 20)
    assert (flipped[10:20, 44:48] == 255).all()
    boxes = np.random.default_rng(0).uniform(0, 50, (6, 4)).astype(np.float32)
    before = boxes.copy()
    np.testing.assert_allclose(pixels.flip_boxes(pixels.flip_boxes(boxes, 53), 53), before, 1e-5)
    np.testing.assert_array_equal(boxes, before)
    assert pixels.flip_boxes(np.zeros((0, 4)), 53).shape == (0, 4)


@pytest.mark.detectron2
@pytest.mark.parametrize("orientation", sorted(STORED))
def test_equals_detectron2(tmp_path, orientation):
    from detectron2.data.detection_utils import read_image
    from detectron2.data.transforms import ResizeShortestEdge

    exif = Image.Exif()
    exif[274] = orientation
    rng = np.random.default_rng(orientation)
    for number in range(6):
        height, width = rng.integers(20, 400, 2)
        path = str(tmp_path / f"{number}.jpg")
        Image.fromarray(photograph(height, width, number)).save(path, exif=exif)
        image = pixels.read_image(path)
        np.testing.assert_array_equal(image, read_image(path, "BGR"))
        short, longest = int(rng.integers(30, 300)), int(rng.integers(200, 500))
        theirs = ResizeShortestEdge(short, longest).get_transform(image).apply_image(image)
        shape = pixels.resized_shape(*image.shape[:2], short, longest)
        np.testing.assert_array_equal(pixels.resize(image, *shape), theirs)
