"""A detection set composed of CIFAR-10's photographs: the claim of Tables 7 and 8 in miniature.

Each image is textured ground with some photographs of the user's CIFAR-10 on it, one to two
times their size; half of them have soft edges. Among them lies clutter: other photographs whose 16
tiles are shuffled, pasted alike, so that an edge or the grain of a photograph says nothing and a
detector has to recognise what is in it. Training images hold photographs of CIFAR-10's training
set only, test images of its test set only, and each photograph is an object once at most.

    <root>/miniature/voc/{Annotations,ImageSets/Main,JPEGImages}    trainval.txt, test.txt
    <root>/miniature/about.json                                     how it was made

Every image depends on (seed, its split, its number) alone.
"""

import json
import os

import numpy as np
from PIL import Image
from tqdm import tqdm

from ...files import whole_folder
from ..classification import cifar10
from ..detection.voc import voc_xml
from .drawing import background
from .folder import DrawnFolder

CLASSES = cifar10.CLASSES
VERSION = 1  # of the drawing: results on sets of different versions do not compare
SPLITS = {"trainval": "cifar10_train", "test": "cifar10_test"}  # what each is made of
OBJECTS, CLUTTER = 4, 4  # at most, in an image
SIDE = 32  # of a photograph
TRIES = 20  # to find a free place for an object


def _shuffled(rng, photograph):
    """The photograph (32, 32, 3) with its 16 tiles in random order."""
    tile = SIDE // 4
    tiles = photograph.reshape(4, tile, 4, tile, 3).swapaxes(1, 2).reshape(16, tile, tile, 3)
    tiles = tiles[rng.permutation(16)].reshape(4, 4, tile, tile, 3)
    return tiles.swapaxes(1, 2).reshape(photograph.shape)


def _enlarged(rng, photograph):
    """-> (the photograph at one to two times its size, float; its opacity (side, side, 1))."""
    side = round(SIDE * rng.uniform(1, 2))
    image = Image.fromarray(photograph).resize((side, side), Image.Resampling.BICUBIC)
    edge = rng.uniform(2, side / 6) if rng.random() < 0.5 else 0.5  # width of the soft border
    inside = np.minimum(np.arange(side), np.arange(side)[::-1]) + 0.5
    opacity = np.clip(inside / edge, 0, 1)
    return np.asarray(image, np.float32), np.minimum.outer(opacity, opacity)[..., None]


def _paste(canvas, image, opacity, x, y):
    side = len(image)
    behind = canvas[y : y + side, x : x + side]
    behind += (image - behind) * opacity


def _covers(box, other):
    """Share of the smaller of two boxes that the other one covers."""
    w, h = (min(box[i + 2], other[i + 2]) - max(box[i], other[i]) for i in (0, 1))
    least = min((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
    return max(w, 0) * max(h, 0) / least


def compose(rng, objects, clutter, height, width):
    """Compose one image.

    Args:
        objects: list of (photograph uint8 (32, 32, 3), class index).
        clutter: list of photographs.

    Returns:
        (uint8 (height, width, 3), list of dicts as ``scenes.voc_xml`` takes them; an object that
        found no place that leaves nine tenths of every object free is left out.)
    """
    canvas = np.moveaxis(background(rng, height, width), 0, -1) * 255
    for photograph in clutter:
        image, opacity = _enlarged(rng, _shuffled(rng, photograph))
        _paste(canvas, image, opacity, *(rng.integers(n - len(image) + 1) for n in (width, height)))
    placed = []
    for photograph, index in objects:
        image, opacity = _enlarged(rng, photograph)
        for _ in range(TRIES):
            x, y = (int(rng.integers(n - len(image) + 1)) for n in (width, height))
            box = x, y, x + len(image), y + len(image)
            if all(_covers(box, other["box"]) < 0.1 for other in placed):
                _paste(canvas, image, opacity, x, y)
                placed.append({"class": index, "box": box, "difficult": 0, "truncated": 0})
                break
    return (canvas.clip(0, 255) + 0.5).astype(np.uint8), placed


def write(root, trainval=1000, test=500, size=(96, 128), seed=0):
    """Compose the set into ``root``/miniature: complete, or not there at all.

    Args:
        root: folder of the datasets, which holds CIFAR-10.
        trainval, test: number of images.
        size: (height, width); four in ten are portraits, (width, height).

    Raises:
        DatasetError: CIFAR-10 is absent or damaged.
    """
    sources = [cifar10.read(name, root) for name in SPLITS.values()]
    with whole_folder(os.path.join(root, "miniature")) as folder:
        for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
            os.makedirs(os.path.join(folder, "voc", part))
        for number, (split, count) in enumerate(zip(SPLITS, (trainval, test))):
            images, labels = sources[number]
            order = np.random.default_rng([seed, VERSION, number]).permutation(len(labels))
            names = []
            for n in tqdm(range(count), f"Composing {split}", leave=False):
                rng = np.random.default_rng([seed, VERSION, number, n])
                mine = order[n * OBJECTS : (n + 1) * OBJECTS][: rng.integers(1, OBJECTS + 1)]
                others = rng.choice(order[count * OBJECTS :], rng.integers(1, CLUTTER + 1))
                height, width = size if rng.random() < 0.6 else size[::-1]
                image, objects = compose(
                    rng,
                    [(np.moveaxis(images[i], 0, -1), int(labels[i])) for i in mine],
                    np.moveaxis(images[others], 1, -1),
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
