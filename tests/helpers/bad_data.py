"""A corpus of spoilt images, VOC folders, COCO jsons and class folders, made by a program.

Each of ``images``, ``xmls``, ``jsons`` and ``folders`` yields cases ``(name, content, outcome)``.
The outcome is a pattern that the error must match (it also must name the file), or ``OK``: the
documented handling is to read it. ``EITHER``: turned bits may still decode, to other pixels.
"""

import copy
import io
import json
import struct
import zlib

import numpy as np
from PIL import Image

OK, EITHER = "read", "either"
SIZE = (24, 16)  # width, height


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(mode="RGB", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_size(width, height):
    """A PNG whose header announces any size, and whose data hold one row."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * (3 * min(width, 1000) + 1))
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", rows)
        + _chunk(b"IEND", b"")
    )


def images():
    """``content``: bytes of a file called ``.jpg``."""
    rgb = picture()
    good = encoded(rgb, "JPEG", quality=90)
    for tenth in range(10):
        yield f"jpeg cut at {tenth} tenths", good[: len(good) * tenth // 10], "decoded|not an image"
    for tenth in range(1, 10):
        png = encoded(rgb, "PNG")
        yield f"png cut at {tenth} tenths", png[: len(png) * tenth // 10], "decoded|not an image"
    for kind in ("PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        yield f"{kind} called jpg", encoded(rgb, kind), OK
    for mode, kind in (
        ("CMYK", "JPEG"), ("L", "JPEG"), ("L", "PNG"), ("1", "PNG"), ("P", "PNG"), ("LA", "PNG"),
        ("RGBA", "PNG"), ("YCbCr", "JPEG"), ("I;16", "PNG"),
    ):  # fmt: skip
        image = picture("L").convert("I").convert(mode) if mode == "I;16" else picture(mode)
        yield f"{mode} {kind}", encoded(image, kind), OK
    for mode, what in (("I", "does not declare its range"), ("F", "values from")):
        yield f"{mode} TIFF of levels to 255", encoded(picture(mode), "TIFF"), what
    frames = [picture(seed=seed) for seed in range(3)]
    for kind in ("GIF", "PNG", "WEBP"):
        animated = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        yield f"animated {kind}", animated, OK
    for orientation in range(2, 9):
        exif = Image.Exif()
        exif[274] = orientation
        yield f"turned by EXIF {orientation}", encoded(rgb, "JPEG", exif=exif), OK
    for orientation in (0, 1, 9, 65535):
        exif = Image.Exif()
        exif[274] = orientation
        yield f"EXIF {orientation}, which means nothing", encoded(rgb, "JPEG", exif=exif), OK
    yield "empty", b"", "not an image"
    yield "text", b"hello\n" * 100, "not an image"
    yield "zeros", b"\0" * 5000, "not an image"
    yield "html", b"<html><body>404 Not Found</body></html>", "not an image"
    for width, height in ((50000, 50000), (2**31 - 1, 2**31 - 1), (1, 2**30), (89478486, 3)):
        yield f"{width} x {height}", png_of_size(width, height), "refused|decoded|not an image"
    yield "no rows", png_of_size(0, 0), "decoded|not an image"
    bomb = encoded(Image.new("1", (16000, 16000)), "PNG")
    yield "a bomb of a few kilobytes", bomb, "refused"
    for seed in range(12):
        spoilt = bytearray(encoded(rgb, "PNG"))
        for at in np.random.default_rng(seed).integers(8, len(spoilt), 8):
            spoilt[at] ^= 255
        yield f"png with 8 bytes turned, {seed}", bytes(spoilt), EITHER


BOX = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>10</xmax><ymax>12</ymax></bndbox>"
OBJECT = f"<object><name>dog</name>{BOX}</object>"
XML = (
    "<annotation><size><width>24</width><height>16</height><depth>3</depth></size>"
    f"{OBJECT}</annotation>"
)


def xmls():
    """``content``: bytes of an annotation of a 24 x 16 image."""
    yield "good", XML, OK
    for part, what in (
        ("<width>24</width>", OK), ("<height>16</height>", OK),  # taken from the image
        ("<name>dog</name>", "unknown class ''"), (BOX, "no <xmin>"), ("<xmin>2</xmin>", "no <xmin>"),
        ("<ymin>3</ymin>", "no <ymin>"), ("<xmax>10</xmax>", "no <xmax>"),
        ("<ymax>12</ymax>", "no <ymax>"),
    ):  # fmt: skip
        yield f"without {part}", XML.replace(part, ""), what
    yield "without size", XML.replace("size>", "sise>"), OK
    yield "without objects", XML.replace(OBJECT, ""), OK
    for edge in ("xmin", "ymin", "xmax", "ymax"):
        old = {"xmin": 2, "ymin": 3, "xmax": 10, "ymax": 12}[edge]
        for value, what in (
            ("nan", "not finite"), ("inf", "not finite"), ("-inf", "not finite"), ("", "not a number"),
            ("two", "not a number"), ("1e999", "not finite"), ("0x10", "not a number"),
            ("2,5", "not a number"), ("-7", OK if "min" in edge else "inverted"), ("9" * 400, "not finite"),
        ):  # fmt: skip
            yield f"{edge} {value[:9]}", XML.replace(f">{old}</{edge}", f">{value}</{edge}"), what
    yield "inverted in x", XML.replace(">2<", ">11<"), "inverted"
    yield "inverted in y", XML.replace(">3<", ">13<"), "inverted"
    yield "of one pixel", XML.replace(">10<", ">2<").replace(">12<", ">3<"), OK
    yield "0-based x", XML.replace(">2<", ">0<"), OK
    yield "0-based y", XML.replace(">3<", ">0<"), OK
    yield "fractions", XML.replace(">2<", ">2.5<").replace(">10<", ">10.25<"), OK
    yield "over the right border", XML.replace(">10<", ">25<"), OK
    yield "over the lower border", XML.replace(">12<", ">17<"), OK
    for value in ("0", "-5", "NaN", "24.5", "", "twenty", "\u0662\u0664x"):
        yield f"width {value!r}", XML.replace(">24<", f">{value}<"), OK
    yield "another width", XML.replace(">24<", ">25<"), "is 24 x 16 pixels"
    yield (
        "width and height swapped",
        XML.replace(">24<", ">16<").replace(">16</h", ">24</h"),
        "24 x 16",
    )
    for name in ("Dog", "unicorn", "dog;", "<![CDATA[<b>]]>"):
        yield f"class {name}", XML.replace(">dog<", f">{name}<"), "unknown class"
    for flag in ("difficult", "truncated"):
        yield f"{flag} 2", XML.replace("</object>", f"<{flag}>2</{flag}></object>"), f"<{flag}> is"
        yield f"{flag} empty", XML.replace("</object>", f"<{flag}/></object>"), OK
    entity = '<!DOCTYPE a [<!ENTITY x "{}">]>'
    yield "an entity", entity.format("dog") + XML.replace(">dog<", ">&x;<"), "DOCTYPE"
    external = '<!DOCTYPE a [<!ENTITY x SYSTEM "{}">]>'
    for target in ("file:///etc/passwd", "http://127.0.0.1:9/x"):
        yield (
            f"external {target}",
            external.format(target) + XML.replace(">dog<", ">&x;<"),
            "DOCTYPE",
        )
        yield f"external DTD {target}", f'<!DOCTYPE annotation SYSTEM "{target}">' + XML, OK
        parameter = f'<!DOCTYPE a [<!ENTITY % x SYSTEM "{target}"> %x;]>'
        yield f"parameter entity {target}", parameter + XML, "DOCTYPE"
    laughs = "".join(f'<!ENTITY l{i + 1} "{f"&l{i};" * 10}">' for i in range(9))
    bomb = f'<!DOCTYPE a [<!ENTITY l0 "ha">{laughs}]>' + XML.replace(">dog<", ">&l9;<")
    yield "a billion laughs", bomb, "DOCTYPE"
    yield "an undeclared entity", XML.replace(">dog<", ">&nosuch;<"), "malformed XML"
    yield "empty", "", "malformed XML"
    yield "json", '{"annotation": 1}', "malformed XML"
    yield "two roots", XML + XML, "malformed XML"
    yield (
        "not UTF-8",
        XML.encode("latin-1").replace(b"dog", b"d\xf6g"),
        "not in the file's encoding",
    )
    yield "unknown encoding", '<?xml version="1.0" encoding="klingon"?>' + XML, "encoding|malformed"
    yield "UTF-16", XML.encode("utf-16"), OK
    yield "deep", "<annotation>" + "<a>" * 5000 + "</a>" * 5000 + "</annotation>", OK
    for tenth in range(1, 10):
        yield f"cut at {tenth} tenths", XML[: len(XML) * tenth // 10], "malformed XML"


JSON = {
    "images": [
        {"id": 1, "file_name": "a.jpg", "width": 24, "height": 16},
        {"id": 2, "file_name": "b.jpg", "width": 24, "height": 16},
    ],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 5, "bbox": [2, 3, 8, 9], "area": 72, "iscrowd": 0}
    ],
    "categories": [{"id": 5, "name": "dog"}, {"id": 7, "name": "cat"}],
}


def jsons():
    """``content``: bytes of an instances json of two images."""

    def changed(*path, to="delete"):
        data = copy.deepcopy(JSON)
        node = data
        for key in path[:-1]:
            node = node[key]
        if to == "delete":
            del node[path[-1]]
        else:
            node[path[-1]] = to
        return json.dumps(data)

    first = ("annotations", 0)
    yield "good", json.dumps(JSON), OK
    for key in ("images", "categories"):
        yield f"without {key}", changed(key), f"no list '{key}'"
        yield f"{key} empty", changed(key, to=[]), "empty"
        for value in ({}, "x", 3, None):
            yield f"{key} {value!r}", changed(key, to=value), f"no list '{key}'"
    yield "without annotations", changed("annotations"), OK
    yield "annotations null", changed("annotations", to=None), "no list 'annotations'"
    for key in ("id", "file_name"):
        yield f"image without {key}", changed("images", 0, key), f"missing key '{key}'"
        for value in (None, [], 1.5, True):
            yield f"image's {key} {value!r}", changed("images", 0, key, to=value), f"{key} is"
    for key in ("width", "height"):  # taken from the image
        yield f"image without {key}", changed("images", 0, key), OK
        for value in (None, [], 1.5, True, "24", 0, -3):
            yield f"image's {key} {value!r}", changed("images", 0, key, to=value), OK
    for key, value, what in (("id", "1", OK), ("file_name", 7, "file_name is")):
        yield f"image's {key} {value!r}", changed("images", 0, key, to=value), what
    yield "another size", changed("images", 0, "width", to=25), "24 x 16"
    yield "duplicate image", changed("images", 1, "id", to=1), "duplicate image id 1"
    yield "missing image", changed("images", 0, "file_name", to="none.jpg"), "missing image file"
    yield "annotation without id", changed(*first, "id"), OK
    yield "annotation's id None", changed(*first, "id", to=None), OK
    for key in ("image_id", "category_id", "bbox"):
        yield f"annotation without {key}", changed(*first, key), f"missing key '{key}'"
        yield f"annotation's {key} None", changed(*first, key, to=None), f"{key} is"
    for key in ("id", "image_id", "category_id", "bbox"):
        yield f"annotation's {key} 1.5", changed(*first, key, to=1.5), f"{key} is"
    for key, value, what in (
        ("id", "1", OK), ("image_id", "1", OK), ("category_id", "5", OK), ("bbox", "1", "bbox is"),
    ):  # fmt: skip
        yield f"annotation's {key} {value!r}", changed(*first, key, to=value), what
    for value in ("text", 3, None, []):
        yield f"annotation {value!r}", changed("annotations", 0, to=value), "is not an object"
        yield f"image {value!r}", changed("images", 0, to=value), "is not an object"
        yield f"category {value!r}", changed("categories", 0, to=value), "is not an object"
    twice = JSON["annotations"] * 2
    yield "duplicate annotation", changed("annotations", to=twice), "duplicate annotation id"
    yield "unknown image", changed(*first, "image_id", to=9), "unknown image_id 9"
    yield "unknown category", changed(*first, "category_id", to=6), "unknown category_id 6"
    yield "duplicate category", changed("categories", 1, "id", to=5), "duplicate category id 5"
    yield "category's id a string", changed("categories", 0, "id", to="5"), OK
    yield "category without name", changed("categories", 0, "name"), "missing key 'name'"
    nan, inf = float("nan"), float("inf")
    for box, what in (
        ([2, 3, 8], "four numbers"), ([2, 3, 8, 9, 1], "four numbers"), ([], "four numbers"),
        (["2", "3", "8", "9"], OK), ([2, 3, 8, None], "not a number"),
        ([2, 3, 8, True], "not a number"), ([2, 3, nan, 9], "not finite"), ([2, 3, inf, 9], "not finite"),
        ([nan, 3, 8, 9], "not finite"), ([2, 3, -8, 9], "inverted"), ([2, 3, 8, -9], "inverted"),
        ([2, 3, 0, 9], "empty"), ([2, 3, 8, 0], "empty"), ([2, 3, 30, 9], OK),
        ([-9, 3, 8, 9], "outside"), ([1e30, 3, 8, 9], "outside|empty"), ([2, 3, 8.5, 9.25], OK),
        ([2, 3, 10**400, 9], "not a number"),
    ):  # fmt: skip
        yield f"bbox {str(box)[:30]}", changed(*first, "bbox", to=box), what
    for value, what in ((2, "iscrowd is"), (0.5, "iscrowd is"), ("0", OK), (None, OK), (False, OK)):
        yield f"iscrowd {value!r}", changed(*first, "iscrowd", to=value), what
    for value, what in (
        ("72", OK),
        (None, OK),
        (nan, "area is"),
        (-1, "area is"),
        (inf, "area is"),
    ):
        yield f"area {value!r}", changed(*first, "area", to=value), what
    data = copy.deepcopy(JSON)
    data["annotations"][0] |= {"iscrowd": 1, "segmentation": {"size": [16, 24], "counts": [3, 5]}}
    yield "crowd with RLE", json.dumps(data), OK
    data["annotations"][0]["segmentation"] = "rubbish"
    yield "a segmentation that is none", json.dumps(data), OK  # boxes only: not read
    yield "ignore", changed(*first, "ignore", to=1), "'ignore' is not supported"
    yield "list", "[]", "not an object"
    yield "number", "17", "not an object"
    yield "empty", "", "malformed json"
    yield "deep", "[" * 100000, "malformed json"
    yield "not UTF-8", b'{"images": "\xff\xfe"}', "is not text in UTF-8"
    text = json.dumps(JSON)
    for tenth in range(1, 10):
        yield f"cut at {tenth} tenths", text[: len(text) * tenth // 10], "malformed json"


def folders():
    """``content``: dict of relative path -> bytes of a set of classes (None: an empty folder)."""
    good = encoded(picture(), "PNG")
    both = {"cat/1.png": good, "dog/1.png": good}
    yield "good", both, OK
    yield "no class", {"readme.txt": b"x"}, "no class folders"
    yield "a class without images", both | {"eel": None}, "holds no image"
    yield "a class with other files", both | {"eel/1.txt": b"x"}, "holds no image"
    yield "a cut image", both | {"dog/2.png": good[:100]}, "2.png.*(decoded|not an image)"
    yield "an empty image", both | {"dog/2.jpg": b""}, "2.jpg.*not an image"
    yield "text called png", both | {"dog/2.png": b"text"}, "2.png.*not an image"
    yield "another size", both | {"dog/2.png": encoded(Image.new("RGB", (9, 9)), "PNG")}, "2.png"
    yield "a bomb", both | {"dog/2.png": png_of_size(50000, 50000)}, "2.png.*refused"
    yield "capital extension", both | {"dog/2.PNG": good}, OK
    yield "grey", both | {"dog/2.png": encoded(picture("L"), "PNG")}, OK


EVERYTHING = [
    (kind, *case)
    for kind, cases in (("image", images), ("xml", xmls), ("json", jsons), ("folder", folders))
    for case in cases()
]
