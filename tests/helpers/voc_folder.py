"""A small folder in VOC's layout, whose files tests damage one at a time."""

import numpy as np
from PIL import Image


class VocFolder:
    """VOC2007 under ``root``: images of 60 x 40 pixels, one object in each."""

    OBJECT = (
        "<object><name>{name}</name><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>"
        "<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox>{more}</object>"
    )

    def __init__(self, root):
        self.root = root
        self.dirname = root / "VOC2007"
        self.list = self.dirname / "ImageSets" / "Main" / "trainval.txt"
        self.list.parent.mkdir(parents=True)
        (self.dirname / "JPEGImages").mkdir()
        (self.dirname / "Annotations").mkdir()
        for image_id in ("000001", "000002"):
            self.add(image_id)

    def image(self, image_id):
        return self.dirname / "JPEGImages" / f"{image_id}.jpg"

    def xml(self, image_id):
        return self.dirname / "Annotations" / f"{image_id}.xml"

    def object(self, box=(2, 3, 30, 40), name="dog", more=""):
        return self.OBJECT.format(box=box, name=name, more=more)

    def annotate(self, image_id, objects, size=(60, 40)):
        self.xml(image_id).write_text(
            f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>"
            f"{objects}</annotation>"
        )

    def add(self, image_id, objects=None):
        pixels = np.random.default_rng(int(image_id)).integers(0, 256, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(self.image(image_id))
        self.annotate(image_id, objects or self.object())
        with open(self.list, "a") as file:
            file.write(f"{image_id}\n")
