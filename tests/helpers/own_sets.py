"""Small datasets in the layouts that annotation tools export, from boxes that a test chooses."""

import json
from pathlib import Path

from PIL import Image

SIZE = (60, 40)  # of every image: width, height


def write_image(path: Path, size=SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 120, 150)).save(path)


def write_xml(path: Path, objects, size=SIZE) -> None:
    """VOC's XML of ``[(class, (xmin, ymin, xmax, ymax)), ...]``, 1-based inclusive pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nodes = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>"
        f"<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
        for name, box in objects
    )
    size = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    path.write_text(f"<annotation>{size}{nodes}</annotation>")


def write_coco(path: Path, files, categories=("helmet", "head")) -> None:
    """COCO's JSON of ``{file name: [(category id, (x, y, w, h)), ...]}``; ids count from 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    annotations = [
        {"image_id": number, "category_id": label, "bbox": list(box), "area": box[2] * box[3]}
        for number, objects in enumerate(files.values(), 1)
        for label, box in objects
    ]
    images = [
        {"id": number, "file_name": name, "width": SIZE[0], "height": SIZE[1]}
        for number, name in enumerate(files, 1)
    ]
    content = {
        "images": images,
        "annotations": [
            annotation | {"id": number, "iscrowd": 0}
            for number, annotation in enumerate(annotations, 1)
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(categories, 1)],
    }
    path.write_text(json.dumps(content))


def write_labels(path: Path, objects) -> None:
    """YOLO's labels of ``[(class index, (x0, y0, x1, y1)), ...]``, in pixels of ``SIZE``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = SIZE
    lines = [
        f"{label} {(x0 + x1) / 2 / width:.6f} {(y0 + y1) / 2 / height:.6f}"
        f" {(x1 - x0) / width:.6f} {(y1 - y0) / height:.6f}\n"
        for label, (x0, y0, x1, y1) in objects
    ]
    path.write_text("".join(lines))
