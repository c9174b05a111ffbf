import io
import struct
from fractions import Fraction

import numpy as np
import PIL
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


def test_grey_images_have_one_channel_as_in_detectron2(tmp_path):
    """Its ``convert_PIL_to_numpy`` and ``ResizeTransform`` let Pillow convert and resize."""
    image = Image.fromarray(photograph())
    image.save(tmp_path / "a.png")
    grey = pixels.read_image(tmp_path / "a.png", "L")
    np.testing.assert_array_equal(grey, np.array(image.convert("L"))[:, :, None])
    resized = image.convert("L").resize((80, 60), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(pixels.resize(grey, 60, 80), np.array(resized)[:, :, None])
    crop = pixels.read_crop(tmp_path / "a.png", lambda h, w: (h, w, 3, 4), 16, "L")
    np.testing.assert_array_equal(crop, grey[3:19, 4:20])
    batch = photograph().transpose(2, 0, 1)[None]
    np.testing.assert_array_equal(pixels.grey(batch), grey.transpose(2, 0, 1)[None])


def saved(tmp_path, image, kind, **options):
    path = tmp_path / f"a.{kind}"
    image.save(path, **options)
    return path


def first_row(path):
    return pixels.read_image(path, "RGB")[0].tolist()


RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.mark.parametrize(
    ("mode", "kind", "values", "want"),
    [
        ("RGB", "png", [(1, 2, 3), RED], [(1, 2, 3), RED]),
        ("L", "png", [0, 7, 255], [(0,) * 3, (7,) * 3, (255,) * 3]),
        ("1", "png", [0, 255], [(0,) * 3, (255,) * 3]),
        # Over white, alpha a leaves 255 - a of it; 128 / 255 of black and the rest white is 127.
        ("LA", "png", [(9, 255), (9, 0), (0, 128)], [(9,) * 3, (255,) * 3, (127,) * 3]),
        ("RGBA", "png", [(*RED, 255), (*RED, 0), (*RED, 51)], [RED, (255,) * 3, (255, 204, 204)]),
        ("RGBA", "webp", [(*RED, 0)] * 4, [(255,) * 3] * 4),
        # Paper minus ink: cyan takes all red, black everything.
        ("CMYK", "tiff", [(255, 0, 0, 0), (0,) * 4, (0, 0, 0, 255), (0, 0, 0, 55)],
         [(0, 255, 255), (255,) * 3, (0,) * 3, (200,) * 3]),
        # BT.601, full range: red is Y 76, Cb 85, Cr 255.
        pytest.param(
            "YCbCr", "tiff", [(76, 85, 255), (255, 128, 128), (90, 128, 128)],
            [(254, 0, 0), (255,) * 3, (90,) * 3],
            marks=pytest.mark.skipif(
                int(PIL.__version__.split(".")[0]) < 13, reason="Pillow below 13 cannot write it"
            ),
        ),
        # L* 100 is white; L* 50 is the grey 119 of sRGB.
        ("LAB", "tiff", [(255, 128, 128), (128, 128, 128), (0, 128, 128)],
         [(255,) * 3, (119,) * 3, (0,) * 3]),
    ],
)  # fmt: skip
def test_eight_bit_modes(tmp_path, mode, kind, values, want):
    image = Image.new(mode, (len(values), 1))
    for x, value in enumerate(values):
        image.putpixel((x, 0), value)
    options = {"lossless": True} if kind == "webp" else {}
    path = saved(tmp_path, image, kind, **options)
    with Image.open(path) as stored:
        assert stored.mode == mode
    np.testing.assert_allclose(first_row(path), want, atol=1 if mode in ("YCbCr", "LAB") else 0)


def palette_image(colours):
    image = Image.new("P", (len(colours), 1))
    image.putpalette([level for colour in colours for level in colour])
    for index in range(len(colours)):
        image.putpixel((index, 0), index)
    return image


@pytest.mark.parametrize("kind", ["png", "gif"])
def test_palette_without_and_with_transparency(tmp_path, kind):
    image = palette_image([RED, GREEN, BLUE])
    assert first_row(saved(tmp_path, image, kind)) == [[*RED], [*GREEN], [*BLUE]]
    path = saved(tmp_path, image, kind, transparency=1)
    assert first_row(path) == [[*RED], [255, 255, 255], [*BLUE]]


def test_palette_with_alpha(tmp_path):
    path = saved(tmp_path, palette_image([RED, GREEN]), "png", transparency=bytes([255, 51]))
    assert first_row(path) == [[*RED], [204, 255, 204]]


@pytest.mark.parametrize(("mode", "colour"), [("L", 7), ("RGB", (1, 2, 3))])
def test_one_transparent_colour(tmp_path, mode, colour):
    image = Image.new(mode, (2, 1), colour)
    image.putpixel((1, 0), 0 if mode == "L" else BLUE)
    path = saved(tmp_path, image, "png", transparency=colour)
    assert first_row(path) == [[255] * 3, [0, 0, 0] if mode == "L" else [*BLUE]]


SIXTEEN = [0, 128, 129, 257, 1000, 32896, 65406, 65535]
EIGHT = [0, 0, 1, 1, 4, 128, 254, 255]  # the nearest to a 257th


@pytest.mark.parametrize(
    ("mode", "kind", "read_as"),
    [
        ("I;16", "png", "I;16"), ("I;16", "tiff", "I;16"), ("I;16B", "tiff", "I;16B"),
        ("I;16L", "im", "I;16L"), ("I;16B", "im", "I;16B"), ("I;16", "pgm", "I"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:IM image format:DeprecationWarning")
def test_sixteen_bits_are_divided_by_257(tmp_path, mode, kind, read_as):
    image = Image.new(mode, (len(SIXTEEN), 1))
    for x, value in enumerate(SIXTEEN):
        image.putpixel((x, 0), value)
    path = saved(tmp_path, image, kind)
    with Image.open(path) as stored:
        assert stored.mode == read_as
    assert first_row(path) == [[level] * 3 for level in EIGHT]
    crop = pixels.read_crop(path, lambda h, w: (h, w, 0, 5), 1, "RGB")
    assert crop.tolist() == [[[128] * 3]]


def test_pgm_of_ten_bits_declares_its_range(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 3 1 1023\n" + np.array([0, 512, 1023], ">u2").tobytes())
    assert first_row(tmp_path / "a.pgm") == [[0] * 3, [128] * 3, [255] * 3]


def tiff(bits, photometric, sample_format, strip, width):
    """A TIFF of one strip and one row, written by hand: Pillow writes neither kind."""
    tags = [(256, width), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1),
            (278, 1), (279, len(strip)), (339, sample_format)]  # fmt: skip
    strip += b"\0" * (len(strip) % 2)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    ifd = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + ifd


def test_tiff_of_twelve_bits(tmp_path):
    # Two levels of 12 bits lie in 3 bytes: 0x000, 0xFFF; 0x808, 0x010.
    content = tiff(12, 1, 1, bytes([0x00, 0x0F, 0xFF, 0x80, 0x80, 0x10]), 4)
    (tmp_path / "a.tiff").write_bytes(content)
    assert first_row(tmp_path / "a.tiff") == [[0] * 3, [255] * 3, [128] * 3, [1] * 3]


def test_tiff_whose_white_is_zero(tmp_path):
    content = tiff(16, 0, 1, np.array([0, 257, 65535], "<u2").tobytes(), 3)
    (tmp_path / "a.tiff").write_bytes(content)
    assert first_row(tmp_path / "a.tiff") == [[255] * 3, [254] * 3, [0] * 3]


def float_tiff(tmp_path, *levels):
    return saved(tmp_path, Image.fromarray(np.array([levels], np.float32)), "tiff")


def test_floats_from_0_to_1(tmp_path):
    assert first_row(float_tiff(tmp_path, 0, 0.25, 0.5, 1)) == [[x] * 3 for x in (0, 64, 128, 255)]


@pytest.mark.parametrize("levels", [(0, 1.01), (-0.1, 1), (0, 200), (0, np.nan), (0, np.inf)])
def test_floats_of_another_range_are_refused(tmp_path, levels):
    with pytest.raises(ImageError, match=r"a\.tiff: pixel mode F holds values from .* scale them"):
        pixels.read_image(float_tiff(tmp_path, *levels))


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int16])
def test_integers_without_a_declared_range_are_refused(tmp_path, dtype):
    levels = np.array([[0, 5, 300]], dtype)
    strip, kind = levels.tobytes(), 2 if np.issubdtype(dtype, np.signedinteger) else 1
    path = tmp_path / "a.tiff"
    path.write_bytes(tiff(8 * levels.itemsize, 1, kind, strip, 3))
    with Image.open(path) as stored:
        assert stored.mode == "I"
    with pytest.raises(ImageError, match=r"a\.tiff: pixel mode I .*save it as 8-bit grey or RGB"):
        pixels.read_image(path)
    with pytest.raises(ImageError, match="pixel mode I "):
        pixels.read_crop(path, lambda h, w: (h, w, 0, 0), 1)


def test_every_mode_of_pillow_is_known():
    """A mode that a later Pillow adds fails here; until it is handled, reading it is an error."""
    deep = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
    assert {*pixels.EIGHT_BIT_MODES, *pixels.ALPHA_MODES, *deep} == set(Image.MODES)


@pytest.mark.parametrize("mode", pixels.ALPHA_MODES)
def test_alpha_modes_are_shown_over_white(mode):
    """Includes modes that no common file has: a transparent pixel becomes white, an opaque one is
    kept."""
    opaque = {"LA": (90, 255), "La": (90, 255), "PA": (0, 255)}.get(mode, (90, 90, 90, 255))
    image = Image.new(mode, (2, 1), (0,) * len(opaque))
    if mode == "PA":
        image.putpalette([90] * 3)
    image.putpixel((1, 0), opaque)
    got = np.asarray(pixels.upright_rgb(image, "x"))
    assert got[0].tolist() == [[255] * 3, [90] * 3]


def test_hsv():
    image = Image.new("HSV", (1, 1), (0, 255, 255))
    assert np.asarray(pixels.upright_rgb(image, "x")).tolist() == [[[255, 0, 0]]]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_ordinary_jpegs_are_pillows_bit_for_bit(tmp_path, mode):
    path = saved(tmp_path, Image.fromarray(photograph()).convert(mode), "jpg")
    with Image.open(path) as image:
        np.testing.assert_array_equal(pixels.read_image(path, "RGB"), image.convert("RGB"))


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


@pytest.mark.parametrize("kind", ["png", "tiff", "16-bit png"])
@pytest.mark.parametrize("orientation", sorted(STORED))
def test_exif_orientation_is_applied(tmp_path, orientation, kind):
    upright = photograph() if kind != "16-bit png" else photograph()[..., :1].repeat(3, 2)
    exif = Image.Exif()
    exif[274] = orientation
    stored = np.ascontiguousarray(STORED[orientation](upright))
    if kind == "16-bit png":
        stored = stored[..., 0].astype(np.uint16) * 257
    path = saved(tmp_path, Image.fromarray(stored), kind[-4:].strip(), exif=exif)
    np.testing.assert_array_equal(pixels.read_image(path, "RGB"), upright)
    assert pixels.image_header(path) == (37, 53, orientation)
    crop = pixels.read_crop(path, lambda h, w: (h, w, 3, 5), 30, "RGB")
    np.testing.assert_array_equal(crop, upright[3:33, 5:35])


def test_exif_that_cannot_be_written_anew_is_no_obstacle(tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[274] = 3
    Image.fromarray(photograph()).save(tmp_path / "a.png", exif=exif)

    def fail(*_):
        raise ValueError("no tag can be written")

    monkeypatch.setattr(Image.Exif, "tobytes", fail)
    got = pixels.read_image(tmp_path / "a.png", "RGB")
    np.testing.assert_array_equal(got, photograph()[::-1, ::-1])


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
    with pytest.raises(ImageError, match="is a folder; give an image file"):
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
    assert pixels.resized_shape(1, 4000, 600, 1000) == (1, 1000)
    assert pixels.resized_shape(9000, 2, 600, 1000) == (1000, 1)


def test_resize_of_a_ramp_and_of_a_constant():
    """Bilinear interpolation of a ramp is the ramp at the new pixel centres (away from the
    ends)."""
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
