"""All valid annotations are read as written, and boxes move with their image."""

import contextlib
import json
from types import SimpleNamespace
from xml.sax.saxutils import escape

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet_det.data import BoxMode, DatasetError, pixels
from resnet_det.data.detection import coco, voc
from resnet_det.data.detection.mapper import DetectionMapper

SIDE = st.integers(1, 3000)
PARTS = 64  # of a pixel, in which the boxes are drawn: exact in binary


@st.composite
def intervals(draw, low, high):
    """(start, end) of some length between ``low`` and ``high``, in parts of a pixel."""
    start = draw(st.integers(low * PARTS, high * PARTS - 1))
    return start / PARTS, draw(st.integers(start + 1, high * PARTS)) / PARTS


@st.composite
def boxes_in_image(draw, slack=0):
    """Height, width, and boxes XYXY that leave the image by at most ``slack`` pixels."""
    height, width = draw(SIDE), draw(SIDE)
    across, down = intervals(-slack, width + slack), intervals(-slack, height + slack)
    pairs = draw(st.lists(st.tuples(across, down), max_size=5))
    return height, width, [[x0, y0, x1, y1] for (x0, x1), (y0, y1) in pairs]


FLAG = st.sampled_from([None, 0, 1])  # None: the tag is absent
NAMES = st.lists(
    st.text(st.characters(categories=("L", "Nd"), include_characters="_-."), min_size=1, max_size=9)
    .map(lambda name: f"n{name}")
    .filter(lambda name: ".." not in name),
    min_size=1, max_size=4, unique=True,
)  # fmt: skip
CLASS = st.sampled_from(voc.CLASSES)
SPACE = st.sampled_from(["", " ", "\n\t"])


@given(NAMES, st.data())
def test_voc_reads_what_was_written(tmp_path_factory, names, data):
    folder = tmp_path_factory.mktemp("voc")
    for part in ("Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    (folder / "ImageSets/Main/some.txt").write_text("".join(f"{n}\n" for n in names), "utf-8")
    want = []
    for name in names:
        height, width, boxes = data.draw(boxes_in_image())
        text = f"<size><depth>3</depth><width>{width}</width><height>{height}</height></size>"
        annotations = []
        for x0, y0, x1, y1 in boxes:
            label, difficult, truncated = data.draw(st.tuples(CLASS, FLAG, FLAG))
            space = data.draw(SPACE)
            # Counted from 1; the right and lower edges are those of the pixels they name.
            edges = {"ymax": y1, "xmin": x0 + 1, "xmax": x1, "ymin": y0 + 1}
            if edges["xmin"] > x1 or edges["ymin"] > y1:
                continue  # thinner than the one pixel that it would have to name
            text += f"<object><name>{space}{label}{space}</name><part><name>head</name></part>"
            for tag, flag in (("difficult", difficult), ("truncated", truncated)):
                text += f"<{tag}>{space}{flag}</{tag}>" if flag is not None else ""
            inside = "".join(f"<{edge}>{space}{at!r}</{edge}>" for edge, at in edges.items())
            text += f"<pose>{escape('<&>')}</pose><bndbox>{inside}</bndbox></object>"
            annotations.append(
                {
                    "bbox": [x0, y0, x1, y1],
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "category_id": voc.CLASSES.index(label),
                    "iscrowd": 0,
                    "difficult": difficult or 0,
                    "truncated": truncated or 0,
                }
            )
        file = folder / "Annotations" / f"{name}.xml"
        file.write_text(f"<annotation>{text}</annotation>", "utf-8")
        image = str(folder / "JPEGImages" / f"{name}.jpg")
        want.append({"file_name": image, "image_id": name, "height": height, "width": width,
                     "annotations": annotations})  # fmt: skip
    assert list(voc.scan(str(folder), "some")) == [(record, []) for record in want]


ID = st.integers(-(2**53), 2**53)


@given(st.data())
def test_coco_reads_what_was_written(tmp_path_factory, data):
    """Holds for any order of images, annotations, categories and keys."""
    folder = tmp_path_factory.mktemp("coco")
    pairs = st.tuples(ID, st.text(max_size=5))
    unique = {"unique_by": (lambda pair: pair[0], lambda pair: pair[1])}
    categories = dict(data.draw(st.lists(pairs, min_size=1, max_size=4, **unique)))
    ids = sorted(categories)
    want, images, annotations = [], [], []
    for image_id in data.draw(st.lists(ID, min_size=1, max_size=4, unique=True)):
        height, width, boxes = data.draw(boxes_in_image(slack=1))
        boxes = [box for box in boxes if max(box) > 1]  # the others are taken for fractions
        size = {"height": height, "width": width}
        images.append({"license": 3, "file_name": f"{image_id}.jpg", **size, "id": image_id})
        mine = []
        for x0, y0, x1, y1 in boxes:
            box, number = [x0, y0, x1 - x0, y1 - y0], len(annotations)
            category = data.draw(st.sampled_from(ids))
            optional = data.draw(
                st.fixed_dictionaries(
                    {},
                    optional={
                        "iscrowd": st.sampled_from([0, 1]),
                        "area": st.floats(0, 1e7) | st.integers(0, 10**7),
                        "segmentation": st.just([]),
                    },
                )
            )
            annotations.append(
                {
                    "category_id": category,
                    "bbox": box,
                    "image_id": image_id,
                    "id": number,
                    **optional,
                }
            )
            mine.append(
                {
                    "bbox": box,
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "category_id": ids.index(category),
                    "iscrowd": optional.get("iscrowd", 0),
                    "area": optional.get("area", box[2] * box[3]),
                    "id": number,
                }
            )
        file_name = str(folder / f"{image_id}.jpg")
        want.append({"file_name": file_name, "image_id": image_id, **size, "annotations": mine})
    content = {
        "annotations": data.draw(st.permutations(annotations)),
        "images": data.draw(st.permutations(images)),
        "categories": data.draw(
            st.permutations([{"name": n, "id": i} for i, n in categories.items()])
        ),
    }
    file = folder / "it.json"
    file.write_text(json.dumps(content, ensure_ascii=data.draw(st.booleans())), "utf-8")
    classes, category_ids, scan = coco.read(str(file), str(folder))
    assert (classes, category_ids) == (tuple(categories[i] for i in ids), tuple(ids))
    read = list(scan)
    assert [faults for _, faults in read] == [[]] * len(images)
    want.sort(key=lambda record: record["image_id"])
    for record, _ in read:
        record["annotations"].sort(key=lambda annotation: annotation["id"])
    assert [record for record, _ in read] == want


def check_scan(scan, name):
    """Whatever a file holds, a reader gives records with boxes in their image, and faults that name
    the file."""
    for record, faults in scan:
        for fault in faults:
            assert isinstance(fault, DatasetError) and name in str(fault)
        for each in (record or {}).get("annotations", ()):
            x0, y0, x1, y1 = each["bbox"]
            if each["bbox_mode"] == BoxMode.XYWH_ABS:
                x1, y1 = x0 + x1, y0 + y1
            assert -1 <= x0 < x1 <= record["width"] + 1
            assert -1 <= y0 < y1 <= record["height"] + 1
            assert each["iscrowd"] in (0, 1) and each["category_id"] in (0, 1)
            assert each.get("difficult", 0) in (0, 1)


WORDS = st.sampled_from(
    ["", " 1", "-1", "0", "1.0", "nan", "1e999", "true", "Unspecified", "null", "9" * 400, "\ufffd"]
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | WORDS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
FIELDS = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox", "segmentation", "area", "iscrowd",
                    "ignore", "difficult"),
    "categories": ("id", "name", "supercategory"),
}  # fmt: skip


@given(st.data())
def test_any_json_is_read_or_refused(tmp_path_factory, data):
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 60, "height": 40}],
        "annotations": [{"id": i, "image_id": 1, "category_id": 1, "bbox": [9, 9, 9, 9]}
                        for i in range(2)],
        "categories": [{"id": i, "name": f"{i}"} for i in range(2)],
    }  # fmt: skip
    for _ in range(data.draw(st.integers(1, 3))):
        part = data.draw(st.sampled_from(sorted(FIELDS)))
        value = data.draw(ANYTHING | st.lists(st.floats() | WORDS, min_size=4, max_size=6))
        content[part][-1][data.draw(st.sampled_from(FIELDS[part]))] = value
    file = tmp_path_factory.mktemp("any") / "any.json"
    file.write_text(json.dumps(content))
    with contextlib.suppress(DatasetError):
        check_scan(coco.read(str(file), str(file.parent))[2], "any.json")


@given(st.data())
def test_any_xml_is_read_or_refused(tmp_path_factory, data):
    def node(tag, inside):
        return f"<{tag}>{inside}</{tag}>" if data.draw(st.booleans() | st.just(True)) else ""

    def value(good):
        text = st.characters(exclude_characters="<&", exclude_categories=("C",))
        return data.draw(st.just(good) | WORDS | st.text(text, max_size=4))

    edges = zip(("xmin", "ymin", "xmax", "ymax"), ("3", "4", "20", "30"))
    box = node("bndbox", "".join(node(edge, value(good)) for edge, good in edges))
    corners = "".join(node(f"{axis}{i}", value("7")) for i in range(3) for axis in "xy")
    flags = "".join(node(flag, value("1")) for flag in ("difficult", "truncated"))
    one = node("object", node("name", value("cat")) + box + node("polygon", corners) + flags)
    size = node("size", node("width", value("60")) + node("height", value("40")))
    head = data.draw(st.sampled_from(["", "<!DOCTYPE annotation>", "\n", "<!DOCTYPE a [<!ENTITY b 'c'>]>",
                                      '<?xml version="1.0" encoding="gbk"?>']))  # fmt: skip
    folder = tmp_path_factory.mktemp("any")
    content = f"{head}<annotation>{size}{one}</annotation>"
    (folder / "any.xml").write_bytes(content.encode(data.draw(ENCODING), "replace"))
    files = [("any", str(folder / "any.jpg"), str(folder / "any.xml"))]
    check_scan(voc.read_images(files, ("cat", "dog"), data.draw(st.integers(0, 1))), "any.xml")


ENCODING = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "gbk", "cp1252", "utf-32"])


@given(boxes_in_image())
def test_a_flip_is_its_own_inverse_and_stays_inside(case):
    _, width, boxes = case
    boxes = np.array(boxes).reshape(-1, 4)
    flipped = pixels.flip_boxes(boxes, width)
    assert np.array_equal(pixels.flip_boxes(flipped, width), boxes)
    assert (flipped >= 0).all() and (flipped[:, 2] <= width).all()
    assert np.array_equal(flipped[:, 2:] - flipped[:, :2], boxes[:, 2:] - boxes[:, :2])
    assert np.array_equal(flipped[:, 1::2], boxes[:, 1::2])


@given(SIDE, SIDE, st.integers(1, 1500), st.integers(1, 2000))
def test_a_resized_image_keeps_its_limits_and_its_shape(height, width, short, longest):
    new = pixels.resized_shape(height, width, short, longest)
    assert pixels.resized_shape(width, height, short, longest) == new[::-1]
    assert max(new) <= longest and min(new) <= short
    scale = min(short / min(height, width), longest / max(height, width))
    exact = np.maximum([scale * height, scale * width], 0.5)  # no side becomes 0
    assert np.abs(np.array(new) - exact).max() <= 0.5 + 1e-9


@given(boxes_in_image(slack=3), st.integers(8, 40), st.booleans())
def test_boxes_move_with_the_image(case, short, mirrored):
    """Boxes move to the same fractions of the image's sides, mirrored or not, and are clipped to
    it."""
    height, width, boxes = case
    record = {
        "file_name": "it.jpg", "image_id": 1, "height": height, "width": width,
        "annotations": [
            {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": number}
            for number, box in enumerate(boxes)
        ],
    }  # fmt: skip
    draws = SimpleNamespace(random=lambda: 0.0 if mirrored else 0.9, integers=lambda count: 0)
    mapper = DetectionMapper(short, 4000, flip="horizontal", train=True)
    with pytest.MonkeyPatch.context() as patch:
        # Images of any size in no memory: only their shapes matter here.
        image = np.broadcast_to(np.uint8(0), (height, width, 3))
        patch.setattr(pixels, "read_image", lambda *_, **__: image)
        patch.setattr(
            pixels, "resize", lambda image, *size: np.broadcast_to(np.uint8(0), (*size, 3))
        )
        sample = mapper(record, draws)
    new_height, new_width = sample["image"].shape[1:]
    inside = (np.array(boxes).reshape(-1, 4) / ([width, height] * 2)).clip(0, 1)
    if mirrored:
        inside[:, [0, 2]] = 1 - inside[:, [2, 0]]
    want = inside * ([new_width, new_height] * 2)
    kept = ((want[:, 2:] - want[:, :2]) > 1e-3).all(1)
    got = dict(zip(sample["classes"].tolist(), sample["boxes"].numpy()))
    assert set(np.flatnonzero(kept)) <= got.keys() <= set(range(len(boxes)))
    for number, box in got.items():
        np.testing.assert_allclose(box, want[number], rtol=1e-6, atol=1e-3)
        assert (box >= 0).all() and (box <= [new_width, new_height] * 2).all()
