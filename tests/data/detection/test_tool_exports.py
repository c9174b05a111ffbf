"""What annotation tools write is read with the values that they mean.

Each case is a file as the named tool writes it, for a photograph ``a.jpg`` of 60 x 40 pixels. The
expected boxes are written down by hand, as continuous coordinates.
"""

import json
import logging

import pytest
from PIL import Image

from resnet_det.data.detection import coco, voc
from resnet_det.records import BoxMode, DatasetError


@pytest.fixture
def folder(tmp_path):
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tmp_path / part).mkdir(parents=True)
    Image.new("RGB", (60, 40)).save(tmp_path / "JPEGImages/a.jpg")
    (tmp_path / "ImageSets/Main/all.txt").write_text("a\n")
    return tmp_path


def read_voc(folder, content, classes=("cat", "größe", "dog"), **options):
    content = content if isinstance(content, bytes) else content.encode()
    (folder / "Annotations/a.xml").write_bytes(content)
    return list(voc.scan(str(folder), "all", classes, **options))


def read_coco(folder, content):
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / "instances.json").write_bytes(content)
    classes, _, scan = coco.read(str(folder / "instances.json"), str(folder / "JPEGImages"))
    return classes, list(scan)


SIZE = "<size><width>60</width><height>40</height><depth>3</depth></size>"
BOX = "<bndbox><xmin>11</xmin><ymin>6</ymin><xmax>30</xmax><ymax>25</ymax></bndbox>"
FLAGS = "<truncated>0</truncated><difficult>0</difficult>"
XML = f"<annotation>{SIZE}<object><name>dog</name>{FLAGS}{BOX}</object></annotation>"
READ = [10, 5, 30, 25]  # BOX: pixels 11 to 30 and 6 to 25, counted from 1


def flags(difficult, truncated):
    new = f"<truncated>{truncated}</truncated><difficult>{difficult}</difficult>"
    return XML.replace(FLAGS, new)


# tool: (content, box, (difficult, truncated), what the log counts)
VOC_EXPORTS = {
    "LabelImg": (
        ("<annotation>\n\t<folder>images</folder>\n\t<filename>a.jpg</filename>\n"
         "\t<path>C:\\photos\\images\\a.jpg</path>\n"
         "\t<source>\n\t\t<database>Unknown</database>\n\t</source>\n"
         f"\t{SIZE}\n\t<segmented>0</segmented>\n\t<object>\n\t\t<name>dog</name>\n"
         "\t\t<pose>Unspecified</pose>\n\t\t<truncated>1</truncated>\n"
         f"\t\t<difficult>0</difficult>\n\t\t{BOX}\n\t</object>\n</annotation>\n"),
        READ, (0, 1), [],
    ),
    "CVAT": (
        ('<annotation><folder></folder><filename>a.jpg</filename><source><database>Unknown</database>'
         f"<annotation>Unknown</annotation><image>Unknown</image></source>{SIZE}"
         "<segmented>0</segmented><object><name>dog</name><truncated>0</truncated><occluded>1"
         "</occluded><difficult>1</difficult><bndbox><xmin>11.25</xmin><ymin>6.5</ymin><xmax>30.75"
         "</xmax><ymax>25.0</ymax></bndbox><attributes><attribute><name>rotation</name><value>0.0"
         "</value></attribute></attributes></object></annotation>"),
        [10.25, 5.5, 30.75, 25], (1, 0), [],
    ),
    "Roboflow": (
        ("<annotation><folder></folder><filename>a_jpg.rf.0123456789abcdef.jpg</filename>"
         f"<source><database>roboflow.com</database></source>{SIZE}<segmented>0</segmented><object>"
         "<name>dog</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>"
         "<occluded>0</occluded><bndbox><xmin>11</xmin><xmax>30</xmax><ymin>6</ymin><ymax>25</ymax>"
         "</bndbox></object></annotation>"),
        READ, (0, 0), [],
    ),
    "LabelMe": (
        ("<annotation><filename>\na.jpg\n</filename><folder>\nusers/me\n</folder><source>"
         "<submittedBy>me</submittedBy></source><imagesize><nrows>40</nrows><ncols>60</ncols>"
         "</imagesize><object><name>\ndog\n</name><deleted>0</deleted><verified>0</verified><parts>"
         "<hasparts></hasparts></parts><polygon><username>me</username><pt><x>11</x><y>20</y></pt>"
         "<pt><x>30</x><y>6</y></pt><pt><x>17</x><y>25</y></pt></polygon></object></annotation>"),
        READ, (0, 0), ["1 boxes computed from polygons", "1 image sizes", "2 flags"],
    ),
    "RectLabel's polygon": (
        (f"<annotation>{SIZE}<object><name>dog</name><polygon><x1>11</x1><y1>20</y1><x2>30</x2>"
         "<y2>6</y2><x3>17</x3><y3>25</y3></polygon></object></annotation>"),
        READ, (0, 0), ["1 boxes computed from polygons", "2 flags"],
    ),
    "VoTT": (
        ('<annotation verified="yes"><folder>Annotation</folder><filename>a.jpg</filename><path>'
         "x-PascalVOC-export/Annotations/a.jpg</path><source><database>Unknown</database></source>"
         f"{SIZE}<segmented>0</segmented><object><name>dog</name><pose>Unspecified</pose>"
         "<truncated>0</truncated><difficult>0</difficult><bndbox><xmin>10.5</xmin><ymin>1</ymin>"
         "<xmax>60.00000000001</xmax><ymax>40</ymax></bndbox></object></annotation>"),
        [9.5, 0, 60, 40], (0, 0), ["1 boxes clipped"],
    ),
    "size 0": (XML.replace(">60<", ">0<").replace(">40<", ">0<"), READ, (0, 0), ["1 image sizes"]),
    "size -1": (XML.replace(">40<", ">-1<"), READ, (0, 0), ["1 image sizes"]),
    "size in floats": (XML.replace(">60<", ">60.0<"), READ, (0, 0), ["1 image sizes"]),
    "size in words": (XML.replace(">60<", ">wide<"), READ, (0, 0), ["1 image sizes"]),
    "flags missing": (XML.replace(FLAGS, ""), READ, (0, 0), ["2 flags"]),
    "no size": (XML.replace(SIZE, ""), READ, (0, 0), ["1 image sizes"]),
    "flags in words": (flags("true", "Unspecified"), READ, (1, 0), ["2 flags"]),
    "flags of Python": (flags("None", "True"), READ, (0, 1), ["2 flags"]),
    "flags of JavaScript": (flags("null", "false"), READ, (0, 0), ["2 flags"]),
    "flags in floats": (flags("1.0", "0.0"), READ, (1, 0), ["2 flags"]),
    "flags empty": (flags("", " "), READ, (0, 0), ["2 flags"]),
    "DOCTYPE": ("<!DOCTYPE annotation>" + XML, READ, (0, 0), ["1 files with a DOCTYPE"]),
    "DOCTYPE with a DTD": (
        '<?xml version="1.0"?><!DOCTYPE annotation SYSTEM "annotation.dtd">' + XML,
        READ, (0, 0), ["1 files with a DOCTYPE"],
    ),
    "byte order mark": (XML.encode("utf-8-sig"), READ, (0, 0), []),
    "empty first line": (
        "\n<?xml version='1.0' encoding='utf-8'?>" + XML, READ, (0, 0), ["in another"],
    ),
    ".NET: UTF-8 declared as UTF-16": (
        '<?xml version="1.0" encoding="utf-16"?>' + XML, READ, (0, 0), ["in another"],
    ),
    "UTF-16": (('<?xml version="1.0" encoding="utf-16"?>' + XML).encode("utf-16"),
               READ, (0, 0), []),
    "a path of old Windows": (
        XML.replace("<size>", "<path>C:\\Größe\\a.jpg</path><size>").encode("cp1252"),
        READ, (0, 0), ["in another"],
    ),
    "a Chinese path": (
        ('<?xml version="1.0" encoding="gb2312"?>'
         + XML.replace("<size>", "<path>D:\\照片\\a.jpg</path><size>")).encode("gb2312"),
        READ, (0, 0), ["in another"],
    ),
    "a DOCTYPE in Latin-1": (
        ('<?xml version="1.0" encoding="iso-8859-1"?><!DOCTYPE annotation>'
         + XML.replace("<size>", "<path>Größe</path><size>")).encode("latin-1"),
        READ, (0, 0), ["1 files"],
    ),
}  # fmt: skip


def changes(caplog):
    """The counts of the one line that the log has on changes."""
    lines = [r.getMessage() for r in caplog.records if "changed in reading" in r.getMessage()]
    assert len(lines) <= 1
    return lines[0].partition("changed in reading: ")[2].split(", ") if lines else []


@pytest.mark.parametrize("tool", VOC_EXPORTS)
def test_voc(folder, caplog, tool):
    caplog.set_level(logging.INFO)
    content, box, (difficult, truncated), counted = VOC_EXPORTS[tool]
    ((record, faults),) = read_voc(folder, content)
    assert (record["height"], record["width"]) == (40, 60)
    assert record["annotations"] == [
        {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 2, "iscrowd": 0,
         "difficult": difficult, "truncated": truncated}
    ]  # fmt: skip
    assert all(fault.costs == "nothing" for fault in faults)
    found = changes(caplog)
    assert len(found) == len(counted)
    assert all(any(words in count for count in found) for words in counted)


def test_all_changes_of_a_dataset_are_one_line(folder, caplog):
    caplog.set_level(logging.INFO)
    (folder / "ImageSets/Main/all.txt").write_text("a.jpg\nb 1\n")
    Image.new("RGB", (60, 40)).save(folder / "JPEGImages/b.jpg")
    (folder / "Annotations/b.xml").write_text(flags("false", "true"))
    read_voc(folder, XML.replace(SIZE, ""))
    assert changes(caplog) == [
        "2 flags that are missing or not 0 or 1",
        "1 image sizes taken from the image files",
        "2 list lines reduced to the name of an image",
    ]
    caplog.clear()
    (folder / "ImageSets/Main/all.txt").write_text("a\nb\n")
    (folder / "Annotations/b.xml").write_text(XML)
    read_voc(folder, XML)
    assert changes(caplog) == []


def test_class_names_are_read_in_their_encoding(folder):
    for encoding in ("utf-8", "utf-16", "iso-8859-1", "windows-1252", "gbk"):
        name = "dog" if encoding == "gbk" else "größe"
        text = f'<?xml version="1.0" encoding="{encoding}"?>' + XML.replace("dog", name)
        ((record, faults),) = read_voc(folder, text.encode(encoding))
        assert ([a["category_id"] for a in record["annotations"]], faults) in (([1], []), ([2], []))
    ((record, (fault,)),) = read_voc(folder, XML.replace("dog", "größe").encode("cp1252"))
    assert "not in the file's encoding" in fault.what and fault.costs == "object"


@pytest.mark.parametrize(
    ("origin", "edges", "box"),
    [
        (1, (0, 5, 30, 25), [0, 4, 30, 25]),  # pixel 0 of those that start at 1 is outside
        (1, (11, 6, 75, 25), [10, 5, 60, 25]),
        (0, (0, 5, 30, 25), [0, 5, 30, 25]),
        (0, (0, 0, 60, 40), [0, 0, 60, 40]),
        (0, (-2.5, 5, 30, 25), [0, 5, 30, 25]),
    ],
)
def test_origin_and_borders(folder, origin, edges, box):
    inside = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), edges))
    ((record, faults),) = read_voc(
        folder, XML.replace(BOX, f"<bndbox>{inside}</bndbox>"), origin=origin
    )
    assert [a["bbox"] for a in record["annotations"]] == [box]
    clipped = [edges[0] - origin, edges[1] - origin, *edges[2:]] != box
    assert [fault.costs for fault in faults] == ["nothing"] * clipped


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"a.jpg\nb.PNG\nc.jfif\n", ["a", "b", "c"]),
        (b"a 1\nb -1\nc  0\n", ["a", "b", "c"]),  # VOC's lists of one class
        (b"\xef\xbb\xbfa\r\nb\r\n", ["a", "b"]),  # Windows' Notepad
        ("a\r\nb".encode("utf-16"), ["a", "b"]),  # PowerShell's >
        (b"  a\t\n\n b \n", ["a", "b"]),
        (b"sub\\a.jpg\nsub/../b\n", ["sub/a", "b"]),
        (b"a.v2\na.jpg.rf.01\n", ["a.v2", "a.jpg.rf.01"]),
        (b"my photo.jpg 1\nmy photo\nmy photo.jpg\n", ["my", "my photo", "my photo"]),
    ],
)
def test_lists(tmp_path, content, names):
    (tmp_path / "list.txt").write_bytes(content)
    assert voc.read_list(str(tmp_path / "list.txt"), lambda name: name == "my photo") == names


def test_lists_and_jsons_in_another_encoding_are_named(folder):
    (folder / "list.txt").write_bytes("größe\n".encode("cp1252"))
    with pytest.raises(DatasetError, match=r"list\.txt: is not text in UTF-8 .*save it as UTF-8"):
        voc.read_list(str(folder / "list.txt"))
    text = json.dumps(COCO | {"info": "größe"}, ensure_ascii=False)
    with pytest.raises(DatasetError, match=r"instances\.json: is not text in UTF-8 .*save it as"):
        read_coco(folder, text.encode("cp1252"))
    assert read_coco(folder, text.encode("utf-16"))[0] == ("cat", "dog")


@pytest.mark.parametrize("name", ["../a", "/a", "sub/../../a", "..\\a.jpg", "a\0b"])
def test_lists_and_jsons_stay_in_their_folder(folder, name):
    (folder / "list.txt").write_text(f"{name}\n")
    with pytest.raises(DatasetError, match=r"list\.txt: .*(leaves the folder|not a file name)"):
        voc.read_list(str(folder / "list.txt"))
    (_, faults), *_ = read_coco(folder, with_entry("images", {"file_name": name}))[1]
    assert "leaves the folder" in faults[0].what or "not a file name" in faults[0].what


IMAGE = {"id": 1, "file_name": "a.jpg", "width": 60, "height": 40}
OBJECT = {"id": 1, "image_id": 1, "category_id": 2, "bbox": [10, 5, 20, 20], "area": 300.5,
          "iscrowd": 0}  # fmt: skip
COCO = {
    "images": [IMAGE],
    "annotations": [OBJECT],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
}
TRIANGLE = [10, 20, 30, 5, 17, 25]


def with_entry(part, new, without=()):
    """COCO's file with other values, or without keys, in the first entry of a list."""
    entry = {k: v for k, v in (COCO[part][0] | new).items() if k not in without}
    return COCO | {part: [entry, *COCO[part][1:]]}


def roboflow(used=1):
    parent = {"id": 0, "name": "pets", "supercategory": "none"}
    classes = [{"id": i, "name": n, "supercategory": "pets"} for i, n in ((1, "cat"), (2, "dog"))]
    return COCO | {"categories": [parent, *classes]}


# tool: (content, what differs in the annotation, what the log counts)
COCO_EXPORTS = {
    "COCO": (COCO, {}, []),
    "CVAT": (with_entry("annotations", {"segmentation": [], "attributes": {"occluded": False}}),
             {}, []),
    "VIA": (
        COCO | {"images": [IMAGE | {"id": "1", "width": -1, "height": -1}],
                "annotations": [OBJECT | {"id": "1", "image_id": "1", "category_id": "2",
                                          "segmentation": TRIANGLE}]},
        {}, ["1 image sizes", "4 numbers of another type"],
    ),
    "Roboflow's root": (roboflow(), {}, ["1 unused root categories"]),
    "ids from 0 with gaps": (
        COCO | {"categories": [{"id": 0, "name": "cat"}, {"id": 9, "name": "dog"}],
                "annotations": [OBJECT | {"category_id": 9}]},
        {}, [],
    ),
    "Label Studio": (with_entry("images", {"file_name": "..\\JPEGImages\\a.jpg"}), {}, []),
    "labelme2coco": (
        with_entry("annotations", {"segmentation": [TRIANGLE]}, ("bbox", "area", "iscrowd")),
        {"area": 400.0}, ["1 boxes computed from polygons", "1 areas", "1 flags"],
    ),
    "polygons in two parts": (
        with_entry("annotations", {"segmentation": [TRIANGLE[:4], TRIANGLE[4:]], "bbox": []}),
        {}, ["1 boxes computed from polygons"],
    ),
    "a flat polygon": (
        with_entry("annotations", {"segmentation": TRIANGLE, "bbox": None}),
        {}, ["1 boxes computed from polygons"],
    ),
    "pandas": (
        COCO | {"images": [IMAGE | {"width": 60.0, "height": None}],
                "annotations": [OBJECT | {"id": 1.0, "category_id": 2.0, "area": None}]},
        {"area": 400.0}, ["1 areas", "1 image sizes", "2 numbers of another type"],
    ),
    "no sizes": (with_entry("images", {}, ("width", "height")), {}, ["1 image sizes"]),
    "sizes 0": (with_entry("images", {"width": 0, "height": 0}), {}, ["1 image sizes"]),
    "sizes as text": (with_entry("images", {"width": "60"}), {}, ["1 image sizes"]),
    "boxes as text": (
        with_entry("annotations", {"bbox": ["10", "5.0", "20", "20"], "area": "300.5"}),
        {}, ["5 numbers of another type"],
    ),
    "no ids": (with_entry("annotations", {}, ("id",)), {}, ["1 annotations without an id"]),
    "ids null": (with_entry("annotations", {"id": None}), {}, ["1 annotations without an id"]),
    "crowd false": (with_entry("annotations", {"iscrowd": False}), {}, ["1 flags"]),
    "crowd true": (with_entry("annotations", {"iscrowd": True}), {"iscrowd": 1}, ["1 flags"]),
    "crowd as text": (with_entry("annotations", {"iscrowd": "1"}), {"iscrowd": 1}, ["1 flags"]),
    "crowd null": (with_entry("annotations", {"iscrowd": None}), {}, ["1 flags"]),
    "crowd unspecified": (with_entry("annotations", {"iscrowd": "Unspecified"}), {}, ["1 flags"]),
    "byte order mark": (json.dumps(COCO).encode("utf-8-sig"), {}, []),
    "a detour": (with_entry("images", {"file_name": "sub/../a.jpg"}), {}, []),
    "sticking out": (
        with_entry("annotations", {"bbox": [10, 5, 70, 50]}),
        {"bbox": [10, 5, 50, 35]}, ["1 boxes clipped"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("tool", COCO_EXPORTS)
def test_coco(folder, caplog, tool):
    caplog.set_level(logging.INFO)
    content, changed, counted = COCO_EXPORTS[tool]
    classes, ((record, faults),) = read_coco(folder, content)
    assert classes == ("cat", "dog")
    with Image.open(record["file_name"]) as image:
        assert image.size == (60, 40)
    assert {key: record[key] for key in ("image_id", "height", "width")} == {
        "image_id": 1,
        "height": 40,
        "width": 60,
    }
    want = {"bbox": [10, 5, 20, 20], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, "iscrowd": 0,
            "area": 300.5, "id": 1}  # fmt: skip
    assert record["annotations"] == [want | changed]
    assert all(fault.costs == "nothing" for fault in faults)
    found = changes(caplog)
    assert len(found) == len(counted)
    assert all(any(words in count for count in found) for words in counted)


def test_other_unused_categories_stay(folder):
    used = roboflow()
    used["annotations"] = [OBJECT, OBJECT | {"id": 2, "category_id": 0}]
    assert read_coco(folder, used)[0] == ("pets", "cat", "dog")
    other = COCO | {"categories": [{"id": 0, "name": "eel"}, *COCO["categories"]]}
    assert read_coco(folder, other)[0] == ("eel", "cat", "dog")
    mixed = roboflow()
    mixed["categories"][2]["supercategory"] = "animals"
    assert read_coco(folder, mixed)[0] == ("pets", "cat", "dog")


def test_two_categories_of_one_name_are_refused(folder):
    twice = COCO | {"categories": [*COCO["categories"], {"id": 7, "name": "dog"}]}
    with pytest.raises(DatasetError, match=r"instances\.json: names two classes 'dog': give each"):
        read_coco(folder, twice)
    root = roboflow()  # the project has the name of a class
    root["categories"][0]["name"] = "cat"
    for entry in root["categories"][1:]:
        entry["supercategory"] = "cat"
    assert read_coco(folder, root)[0] == ("cat", "dog")


def test_new_ids_are_free(folder):
    ids = [None, 7, None, "9"]
    content = COCO | {"annotations": [OBJECT | {"id": id} for id in ids]}
    _, ((record, faults),) = read_coco(folder, content)
    found = [annotation["id"] for annotation in record["annotations"]]
    assert faults == [] and found[1::2] == [7, 9] and len(set(found)) == 4


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        ({"bbox": [10, 5, 0, 20]}, "is empty"),
        ({"bbox": [70, 5, 9, 20]}, "lies outside the image of 60 x 40 pixels"),
        ({"category_id": 8}, "unknown category_id 8"),
        ({"iscrowd": "some"}, "iscrowd is 'some'"),
        ({"bbox": None, "segmentation": [[1, 2, 3]]}, "2 x and 1 y coordinates"),
        ({"bbox": None, "segmentation": {"counts": "x", "size": [1, 2]}}, "bbox is None"),
    ],
)
def test_a_bad_object_costs_itself(folder, bad, what):
    content = COCO | {"annotations": [OBJECT, OBJECT | {"id": 2} | bad]}
    _, ((record, (fault,)),) = read_coco(folder, content)
    assert [annotation["id"] for annotation in record["annotations"]] == [1]
    assert fault.costs == "object" and "annotation 2 of image 1" in fault.what
    assert what in fault.what


def test_sizes_need_the_image(folder):
    (folder / "JPEGImages/a.jpg").unlink()
    ((record, (fault,)),) = read_voc(folder, XML.replace(SIZE, ""))
    assert "annotations" not in record and fault.costs == "image"
    assert fault.file.endswith("a.xml") and "a.jpg: missing image file" in fault.what
