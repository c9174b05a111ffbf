"""A detection dataset composed from CIFAR-10's photographs, to test the claim of Tables 7 and 8 on
a small scale.

Each image is a textured background with photographs from the user's CIFAR-10 pasted on it, at one
to two times their size. Half of them have soft edges. Clutter is pasted in the same way: other
photographs, whose 16 tiles are shuffled. The edges and the grain of a photograph therefore carry no
information, and a detector has to recognise the content. Training images use photographs from
CIFAR-10's training set only, test images from its test set only. Each photograph is an object at
most once.

    <root>/miniature/voc/{Annotations,ImageSets/Main,JPEGImages}    trainval.txt, test.txt
    <root>/miniature/about.json                                     how it was made

An image depends only on the seed, its split and its number.
"""

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ...files import whole_folder
from ..classification import cifar10
from ..detection.voc import voc_xml
from .drawing import background
from .folder import DrawnFolder, log_start

CLASSES = cifar10.CLASSES
VERSION = 1  # of the drawing; results on different versions are not comparable
SPLITS = {"trainval": "cifar10_train", "test": "cifar10_test"}  # split -> source of its photographs
MAX_OBJECTS, MAX_CLUTTER = 4, 4  # per image
SIDE = 32  # pixels per side of a photograph
TRIES = 20  # to find a free place for an object


def shuffle_tiles(rng: np.random.Generator, photograph: np.ndarray) -> np.ndarray:
    """The photograph (32, 32, 3) with its 16 tiles in random order."""
    tile = SIDE // 4
    tiles = photograph.reshape(4, tile, 4, tile, 3).swapaxes(1, 2).reshape(16, tile, tile, 3)
    tiles = tiles[rng.permutation(16)].reshape(4, 4, tile, tile, 3)
    return tiles.swapaxes(1, 2).reshape(photograph.shape)


def _enlarged(rng: np.random.Generator, photograph: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Enlarge a photograph one to two times. Returns float (side, side, 3) and its opacity
    (side, side, 1)."""
    side = round(SIDE * rng.uniform(1, 2))
    image = Image.fromarray(photograph).resize((side, side), Image.Resampling.BICUBIC)
    edge = rng.uniform(2, side / 6) if rng.random() < 0.5 else 0.5  # width of the soft border
    inside = np.minimum(np.arange(side), np.arange(side)[::-1]) + 0.5
    opacity = np.clip(inside / edge, 0, 1)
    return np.asarray(image, np.float32), np.minimum.outer(opacity, opacity)[..., None]


def _paste(canvas: np.ndarray, image: np.ndarray, opacity: np.ndarray, x: int, y: int) -> None:
    side = len(image)
    behind = canvas[y : y + side, x : x + side]
    behind += (image - behind) * opacity


def _overlap(box: Sequence[int], other: Sequence[int]) -> float:
    """The fraction of the smaller of two boxes that the other one covers."""
    w, h = (min(box[i + 2], other[i + 2]) - max(box[i], other[i]) for i in (0, 1))
    smaller = min((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
    return max(w, 0) * max(h, 0) / smaller


def compose(
    rng: np.random.Generator,
    objects: Sequence[tuple[np.ndarray, int]],
    clutter: Sequence[np.ndarray],
    height: int,
    width: int,
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Compose one image.

    Args:
        objects: list of (photograph uint8 (32, 32, 3), class index).
        clutter: list of photographs.

    Returns:
        The image, uint8 (height, width, 3), and the objects in the form that ``voc.voc_xml`` takes.
        An object is skipped if it overlaps another by a tenth or more at every place tried.
    """
    canvas = np.moveaxis(background(rng, height, width), 0, -1) * 255
    for photograph in clutter:
        image, opacity = _enlarged(rng, shuffle_tiles(rng, photograph))
        x, y = (int(rng.integers(n - len(image) + 1)) for n in (width, height))
        _paste(canvas, image, opacity, x, y)
    placed: list[dict[str, Any]] = []
    for photograph, index in objects:
        image, opacity = _enlarged(rng, photograph)
        for _ in range(TRIES):
            x, y = (int(rng.integers(n - len(image) + 1)) for n in (width, height))
            box = x, y, x + len(image), y + len(image)
            if all(_overlap(box, other["box"]) < 0.1 for other in placed):
                _paste(canvas, image, opacity, x, y)
                placed.append({"class": index, "box": box, "difficult": 0, "truncated": 0})
                break
    return (canvas.clip(0, 255) + 0.5).astype(np.uint8), placed


def write(
    root: str,
    trainval: int = 1000,
    test: int = 500,
    size: tuple[int, int] = (96, 128),
    seed: int = 0,
) -> str:
    """Compose the dataset in ``root``/miniature. The folder appears only when it is complete.

    Args:
        root: the datasets' folder, which holds CIFAR-10.
        trainval, test: number of images.
        size: (height, width). Four images in ten are portraits: (width, height).

    Returns:
        The folder's path.

    Raises:
        DatasetError: CIFAR-10 is absent or damaged.
    """
    sources = [cifar10.read(name, root) for name in SPLITS.values()]
    log_start(trainval + test, os.path.join(root, "miniature"))
    with whole_folder(os.path.join(root, "miniature")) as folder:
        for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
            os.makedirs(os.path.join(folder, "voc", part))
        for number, (split, count) in enumerate(zip(SPLITS, (trainval, test))):
            images, labels = sources[number]
            order = np.random.default_rng([seed, VERSION, number]).permutation(len(labels))
            names = []
            for n in tqdm(range(count), f"Composing {split}", leave=False):
                rng = np.random.default_rng([seed, VERSION, number, n])
                shown = order[n * MAX_OBJECTS :][: rng.integers(1, MAX_OBJECTS + 1)]
                shuffled = rng.choice(
                    order[count * MAX_OBJECTS :], rng.integers(1, MAX_CLUTTER + 1)
                )
                height, width = size if rng.random() < 0.6 else size[::-1]
                image, objects = compose(
                    rng,
                    [(np.moveaxis(images[i], 0, -1), int(labels[i])) for i in shown],
                    np.moveaxis(images[shuffled], 1, -1),
                    height,
                    width,
                )
                names.append(f"{number}{n:05d}")
                path = os.path.join(folder, "voc", "JPEGImages", f"{names[-1]}.jpg")
                Image.fromarray(image).save(path, quality=92, subsampling=0)
                xml = voc_xml(names[-1], height, width, objects, CLASSES)
                with open(f"{folder}/voc/Annotations/{names[-1]}.xml", "w") as file:
                    file.write(xml)
            with open(f"{folder}/voc/ImageSets/Main/{split}.txt", "w") as file:
                file.writelines(f"{name}\n" for name in names)
        about = {"version": VERSION, "seed": seed, "size": size, "trainval": trainval, "test": test}
        with open(os.path.join(folder, "about.json"), "w") as file:
            json.dump(about, file)
    return os.path.join(root, "miniature")


DRAWN = DrawnFolder("miniature", VERSION, lambda root, workers: write(root), cifar10.missing)
