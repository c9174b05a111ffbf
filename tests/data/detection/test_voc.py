import xml.etree.ElementTree as ET

import pytest

from resnet_det.data import BoxMode, DatasetError, load_dataset
from resnet_det.data.detection import voc


def read(folder, split="trainval"):
    return list(voc.scan(str(folder.dirname), split))


def the_fault(folder):
    """The one fault of the first image, which must name its file."""
    (_, faults), (_, none) = read(folder)
    assert none == []
    (fault,) = faults
    return fault


def test_boxes_flags_and_ids(voc_folder):
    voc_folder.annotate(
        "000001",
        voc_folder.object(
            (1, 1, 60, 40),
            "aeroplane",
            "<pose>Left</pose><truncated>1</truncated><difficult>0</difficult>",
        )
        + voc_folder.object((5, 6, 5, 6), "tvmonitor", "<truncated/><difficult>1</difficult>"),
    )
    record, faults = read(voc_folder)[0]
    assert faults == []
    assert record == {
        "file_name": str(voc_folder.image("000001")),
        "image_id": "000001",
        "height": 40,
        "width": 60,
        "annotations": [
            # The whole image, and one pixel: (x - 1, y - 1) to (x, y).
            {
                "bbox": [0.0, 0.0, 60.0, 40.0],
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": 0,
                "iscrowd": 0,
                "difficult": 0,
                "truncated": 1,
            },
            {
                "bbox": [4.0, 5.0, 5.0, 6.0],
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": 19,
                "iscrowd": 0,
                "difficult": 1,
                "truncated": 0,
            },
        ],
    }


def test_parts_of_an_object_are_not_objects(voc_folder):
    part = (
        "<part><name>head</name><bndbox><xmin>9</xmin><ymin>9</ymin><xmax>12</xmax>"
        "<ymax>12</ymax></bndbox></part>"
    )
    # As in VOC2012: the part's box may stand before the person's own.
    voc_folder.annotate(
        "000001",
        voc_folder.object((2, 3, 30, 40), "person").replace("<bndbox>", part + "<bndbox>", 1),
    )
    record, faults = read(voc_folder)[0]
    assert faults == []
    assert [a["bbox"] for a in record["annotations"]] == [[1, 2, 30, 40]]


def test_fractions_are_read(voc_folder):
    voc_folder.annotate("000001", voc_folder.object(("45.7", "1.25", "59.5", "39.75")))
    record, _ = read(voc_folder)[0]
    assert record["annotations"][0]["bbox"] == pytest.approx([44.7, 0.25, 59.5, 39.75])


@pytest.mark.parametrize(
    ("box", "what"),
    [
        ((0, 3, 30, 40), "extends beyond the image of 60 x 40 pixels (VOC counts pixels from 1"),
        ((-3, 3, 30, 40), "extends beyond the image of 60 x 40"),
        ((2, 3, 61, 40), "extends beyond the image of 60 x 40"),
        ((2, 3, 30, 41), "extends beyond the image of 60 x 40"),
        ((30, 3, 2, 40), "inverted"),
        ((2, 20, 30, 19), "inverted"),
        ((61, 3, 70, 40), "lies outside the image of 60 x 40"),
        (("nan", 3, 30, 40), "not finite"),
        ((2, 3, "inf", 40), "not finite"),
        ((2, "3px", 30, 40), "ymin is '3px', not a number"),
        ((2, 3, "", 40), "xmax is '', not a number"),
    ],
)
def test_bad_box_is_named(voc_folder, box, what):
    voc_folder.annotate("000001", voc_folder.object(box))
    fault = the_fault(voc_folder)
    assert fault.file == str(voc_folder.xml("000001"))
    assert "object 1" in fault.what and what in fault.what


def test_unknown_class_and_bad_flag_are_named(voc_folder):
    voc_folder.annotate("000001", voc_folder.object() + voc_folder.object(name="dragon"))
    assert the_fault(voc_folder).what == "object 2: unknown class 'dragon'"
    voc_folder.annotate("000001", voc_folder.object(more="<difficult>very</difficult>"))
    assert "<difficult> is 'very'" in the_fault(voc_folder).what


def test_every_fault_of_a_file_is_listed(voc_folder):
    bad = voc_folder.object((30, 3, 2, 40)) + voc_folder.object(name="dragon")
    voc_folder.annotate("000001", bad + voc_folder.object())
    record, faults = read(voc_folder)[0]
    assert len(faults) == 2
    assert len(record["annotations"]) == 1


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("<annotation><size>", "malformed XML"),
        ("", "malformed XML"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "encoding"),
    ],
)
def test_bad_file_is_named(voc_folder, text, what):
    voc_folder.xml("000001").write_text(text)
    fault = the_fault(voc_folder)
    assert fault.file == str(voc_folder.xml("000001"))
    assert what in fault.what


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize(
    "doctype",
    [
        '<!DOCTYPE annotation [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>',
        '<!DOCTYPE annotation [<!ENTITY a SYSTEM "file:///etc/hostname">]>',
        '<!DOCTYPE annotation [<!ATTLIST object a CDATA "aaaa">]>',
    ],
)
def test_doctype_is_refused(voc_folder, doctype, encoding):
    sound = voc_folder.xml("000001").read_text()
    head = f'<?xml version="1.0" encoding="{encoding}"?>'
    voc_folder.xml("000001").write_text(head + sound, encoding=encoding)
    assert read(voc_folder)[0][1] == []  # the declaration alone is fine
    voc_folder.xml("000001").write_text(head + doctype + sound, encoding=encoding)
    assert "DOCTYPE" in the_fault(voc_folder).what


def test_missing_annotation_is_named(voc_folder):
    voc_folder.xml("000001").unlink()
    fault = the_fault(voc_folder)
    assert fault.file == str(voc_folder.xml("000001"))
    assert "missing annotation file" in fault.what


def test_list_of_images(voc_folder):
    voc_folder.list.write_text("000001\r\n\n000002")  # Windows' line ends, none at the end
    assert [record["image_id"] for record, _ in read(voc_folder)] == ["000001", "000002"]
    voc_folder.list.write_text("000002\n")  # one image only
    assert [record["image_id"] for record, _ in read(voc_folder)] == ["000002"]
    voc_folder.list.write_text("000001\n000001\n")
    assert "duplicate image id '000001'" in read(voc_folder)[1][1][0].what
    voc_folder.list.write_text("../000001\n")
    with pytest.raises(DatasetError, match=r"trainval\.txt: '\.\./000001' leaves the folder"):
        read(voc_folder)
    voc_folder.list.write_text("\n")
    with pytest.raises(DatasetError, match=r"trainval\.txt: the list of images is empty"):
        read(voc_folder)
    with pytest.raises(
        DatasetError, match=r"val\.txt: cannot be read.*get_data.py voc downloads it"
    ):
        read(voc_folder, "val")


def test_test_set_without_annotations(voc_folder):
    voc_folder.xml("000001").unlink()
    scan = voc.scan(str(voc_folder.dirname), "trainval", annotated=False)
    assert [(r["height"], r["width"], r["annotations"], f) for r, f in scan] == [
        (40, 60, [], []),
        (40, 60, [], []),
    ]


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("split", "images", "objects", "difficult"),
    [("trainval", 104, 594, 89), ("test", 105, 680, 125)],
)
def test_real_photographs(real_data, split, images, objects, difficult):
    records = load_dataset(f"voc_2007_{split}", real_data).records
    annotations = [a for record in records for a in record["annotations"]]
    assert (len(records), len(annotations)) == (images, objects)
    assert sum(a["difficult"] for a in annotations) == difficult
    for record in records:
        root = ET.parse(real_data / "VOC2007" / "Annotations" / f"{record['image_id']}.xml")
        want = [
            [int(node.find(f"bndbox/{edge}").text) for edge in ("xmin", "ymin", "xmax", "ymax")]
            for node in root.iter("object")
        ]
        got = [a["bbox"] for a in record["annotations"]]
        assert [[x0 + 1, y0 + 1, x1, y1] for x0, y0, x1, y1 in got] == want


@pytest.mark.detectron2
@pytest.mark.real_data
def test_equals_detectron2(real_data):
    from detectron2.data.datasets.pascal_voc import CLASS_NAMES, load_voc_instances

    assert voc.CLASSES == CLASS_NAMES
    theirs = load_voc_instances(str(real_data / "VOC2007"), "test", CLASS_NAMES)
    ours = load_dataset("voc_2007_test", real_data).records
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert {**a, "annotations": 0} == {**b, "annotations": 0}
        keys = ("bbox", "bbox_mode", "category_id")
        assert [[o[k] for k in keys] for o in a["annotations"]] == [
            [o[k] for k in keys] for o in b["annotations"]
        ]
