"""The embedded dataset: annotated scenes of eight kinds of objects, drawn with numpy.

A scene is a textured background under uneven light with one to five objects, each with its own
scale, rotation, slant, colours and shadow. Objects may occlude each other and extend beyond the
frame. They lie among clutter that imitates their outlines but not their texture. Colours do not
depend on the class.
The same JPEGs are annotated as PASCAL VOC and as COCO:

    <root>/scenes/voc/{Annotations,ImageSets/Main,JPEGImages}     trainval.txt, test.txt
    <root>/scenes/coco/instances_{train,test}.json                images: ../voc/JPEGImages
    <root>/scenes/classification/{train,val}/<class>/*.jpg        single objects, 36 x 36
    <root>/scenes/about.json                                      how they were made

A box tightly encloses the visible pixels of its object, as in VOC and COCO. An object is
"difficult" if the longer side of its box is under 16 pixels or less than half of it is visible. The
COCO annotations mark it as ``iscrowd``, so that both protocols ignore it. At least a quarter of
each object is visible, and each is at least 6 pixels wide and high.

An image depends only on the seed, its split and its number, not on the number of workers or images.
Another build of numpy or Pillow may change some pixels by one grey level.
"""

import json
import math
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from ...files import whole_folder
from ..detection.voc import voc_xml
from ..parallel import parallel_map
from .drawing import (
    CLASSES,
    DRAW,
    background,
    draw_clutter,
    draw_sprite,
    finish,
    part_in_view,
    paste,
)
from .folder import DrawnFolder, log_start

VERSION = 2  # of the drawing; results on different versions are not comparable
CROP = 36  # pixels per side of a classification image
_STREAMS = {"trainval": 0, "test": 1, "train": 2, "val": 3}  # independent random streams


def compose_scene(
    rng: np.random.Generator,
    height: int,
    width: int,
    sizes: tuple[float, float],
    counts: tuple[int, int] = (1, 5),
    clutter: tuple[int, int] = (1, 5),
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Compose one scene. Returns ``(canvas, objects)``.

    An object is a dict with "class" (an index), "box" (x0, y0, x1, y1) and "area" of the visible
    pixels, "difficult" and "truncated" (0 or 1).
    """
    canvas = background(rng, height, width)
    for _ in range(rng.integers(clutter[0], clutter[1])):
        place = rng.uniform(0, width), rng.uniform(0, height)
        size = rng.uniform(8, 0.6 * min(height, width))
        paste(rng, canvas, draw_sprite(rng, draw_clutter, place, size))

    owner = np.full((height, width), -1)  # which object shows at each pixel
    classes: list[int] = []
    totals: list[int] = []
    inside: list[int] = []
    wanted = rng.integers(counts[0], counts[1] + 1)
    for _ in range(wanted):
        index = int(rng.integers(len(CLASSES)))
        size = math.exp(rng.uniform(*np.log(sizes)))
        place = rng.uniform(0.02, 0.98) * width, rng.uniform(0.02, 0.98) * height
        sprite = draw_sprite(rng, DRAW[CLASSES[index]], place, size)
        there, here = part_in_view(sprite, height, width)
        covered = owner.copy()
        covered[there][sprite.alpha[here] > 0.5] = len(classes)
        if all(
            _acceptable(covered == i, total)
            for i, total in enumerate([*totals, (sprite.alpha > 0.5).sum()])
        ):
            owner = covered
            classes.append(index)
            totals.append((sprite.alpha > 0.5).sum())
            inside.append((sprite.alpha[here] > 0.5).sum())
            paste(rng, canvas, sprite)

    objects = []
    for i, index in enumerate(classes):
        mask = owner == i
        x0, y0, x1, y1 = box = _bounds(mask)
        visible = mask.sum()
        objects.append(
            {
                "class": index,
                "box": box,
                "area": int(visible),
                "difficult": int(max(x1 - x0, y1 - y0) < 16 or visible < 0.5 * totals[i]),
                "truncated": int(inside[i] < totals[i]),
            }
        )
    return canvas, objects


def draw_scene(seed: int, height: int, width: int) -> np.ndarray:
    """Draw one scene without its annotations. Returns uint8 RGB (height, width, 3)."""
    rng = np.random.default_rng(seed)
    short = min(height, width)
    canvas, _ = compose_scene(rng, height, width, sizes=(0.17 * short, 0.5 * short))
    return np.asarray(finish(rng, canvas))


def _acceptable(mask: np.ndarray, total: int) -> bool:
    """Whether the visible part of an object with ``total`` pixels is large enough."""
    if mask.sum() < 0.25 * total:
        return False
    x0, y0, x1, y1 = _bounds(mask)
    return min(x1 - x0, y1 - y0) >= 6


def _bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The tight box (x0, y0, x1, y1) of a non-empty mask, in continuous coordinates."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _save(rng: np.random.Generator, canvas: np.ndarray, path: str) -> None:
    finish(rng, canvas).save(path, quality=int(rng.integers(80, 95)), subsampling=0)


def _write_scene(
    folder: str, seed: int, size: tuple[int, int], job: tuple[str, int]
) -> dict[str, Any]:
    """Draw the scene ``job`` (split, number). Writes its JPEG and XML; returns the objects."""
    split, number = job
    rng = np.random.default_rng([seed, VERSION, _STREAMS[split], number])
    height, width = size if rng.random() < 0.6 else size[::-1]
    short = min(size)
    canvas, objects = compose_scene(rng, height, width, sizes=(0.17 * short, 0.5 * short))
    name = f"{_STREAMS[split]}{number:05d}"
    _save(rng, canvas, os.path.join(folder, "voc", "JPEGImages", f"{name}.jpg"))
    xml = voc_xml(name, height, width, objects, CLASSES)
    with open(os.path.join(folder, "voc", "Annotations", f"{name}.xml"), "w") as file:
        file.write(xml)
    return {"name": name, "height": height, "width": width, "objects": objects}


def write_crop(folder: str, seed: int, job: tuple[str, int]) -> None:
    """Draw one object in the middle of a small image."""
    split, number = job
    rng = np.random.default_rng([seed, VERSION, _STREAMS[split], number])
    index = number % len(CLASSES)
    canvas = background(rng, CROP, CROP)
    for _ in range(int(rng.integers(0, 3))):
        place = rng.uniform(0, CROP, 2)
        paste(rng, canvas, draw_sprite(rng, draw_clutter, place, rng.uniform(8, 30)))
    place = CROP / 2 + rng.uniform(-3, 3, 2)
    paste(rng, canvas, draw_sprite(rng, DRAW[CLASSES[index]], place, rng.uniform(16, 38)))
    if rng.random() < 0.3:  # something in front of a corner
        corner = rng.choice([0, CROP], 2) + rng.uniform(-2, 2, 2)
        paste(rng, canvas, draw_sprite(rng, draw_clutter, corner, rng.uniform(10, 20)))
    name = f"{_STREAMS[split]}{number:05d}.jpg"
    _save(rng, canvas, os.path.join(folder, "classification", split, CLASSES[index], name))


def _write_image(
    folder: str, seed: int, size: tuple[int, int], job: tuple[str, int]
) -> dict[str, Any] | None:
    """Draw the image ``job`` (split, number): a scene, whose objects are returned, or a crop.

    One function draws both, so that the worker processes start only once.
    """
    if job[0] in ("trainval", "test"):
        return _write_scene(folder, seed, size, job)
    write_crop(folder, seed, job)
    return None


def _coco_json(scenes: Sequence[dict[str, Any]]) -> dict[str, list]:
    images: list[dict] = []
    annotations: list[dict] = []
    for scene in scenes:
        image_id = int(scene["name"])
        size = {"height": scene["height"], "width": scene["width"]}
        images.append({"id": image_id, "file_name": f"{scene['name']}.jpg", **size})
        for item in scene["objects"]:
            x0, y0, x1, y1 = item["box"]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": item["class"] + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": item["area"],
                    "iscrowd": item["difficult"],
                }
            )
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_scenes(
    root: str,
    trainval: int = 600,
    test: int = 150,
    train_crops: int = 3000,
    val_crops: int = 600,
    size: tuple[int, int] = (144, 192),
    seed: int = 0,
    workers: int = 1,
) -> str:
    """Draw the dataset in ``root``/scenes. The folder appears only when it is complete.

    Args:
        root: the datasets' folder.
        trainval, test: number of scenes.
        train_crops, val_crops: total number of classification images, equally many per class.
        size: (height, width) of a scene. Four scenes in ten are portraits: (width, height).
        seed: random seed of the whole dataset.
        workers: number of processes. The files do not depend on it.

    Returns:
        The folder's path. If another process finished the folder first, its folder is kept.
    """
    with whole_folder(os.path.join(root, "scenes")) as folder:
        for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
            os.makedirs(os.path.join(folder, "voc", part))
        os.makedirs(os.path.join(folder, "coco"))
        for split in ("train", "val"):
            for name in CLASSES:
                os.makedirs(os.path.join(folder, "classification", split, name))

        counts = {"trainval": trainval, "test": test, "train": train_crops, "val": val_crops}
        jobs = [(split, n) for split, count in counts.items() for n in range(count)]
        log_start(len(jobs), os.path.join(root, "scenes"))
        draw = partial(_write_image, folder, seed, size)
        drawn = parallel_map(draw, jobs, workers, "Drawing scenes and crops")
        scenes = [scene for scene in drawn if scene is not None]
        for voc, coco, chosen in (
            ("trainval", "train", scenes[:trainval]),
            ("test", "test", scenes[trainval:]),
        ):
            with open(os.path.join(folder, "voc/ImageSets/Main", f"{voc}.txt"), "w") as file:
                file.writelines(f"{scene['name']}\n" for scene in chosen)
            with open(os.path.join(folder, "coco", f"instances_{coco}.json"), "w") as file:
                json.dump(_coco_json(chosen), file)

        about = {"version": VERSION, "seed": seed, "size": size, "trainval": trainval}
        about |= {"test": test, "train_crops": train_crops, "val_crops": val_crops}
        with open(os.path.join(folder, "about.json"), "w") as file:
            json.dump(about, file)
    return os.path.join(root, "scenes")


DRAWN = DrawnFolder("scenes", VERSION, lambda root, workers: write_scenes(root, workers=workers))
