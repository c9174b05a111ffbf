"""Write detections to JSON and CSV files, in the form of COCO's results."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import whole_file, write_whole
from .inputs import as_xywh

Row = dict[str, Any]
# The columns of a CSV file. The box is in pixels, from the top left corner.
_BOX = ("x", "y", "width", "height")
_COLUMNS = ("image_id", "file_name", "frame", "category_id", "category", *_BOX, "score")


def coco_rows(
    image: Mapping[str, Any],
    boxes: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    categories: Sequence[tuple[int, str]],
) -> list[Row]:
    """The objects of an image as COCO's results, with their files and class names.

    Args:
        image: ``image_id``, ``file_name``, and ``frame`` if the image is one of a video.
        boxes: (N, 4), x1 y1 x2 y2.
        classes: (N,), index of each object's class.
        categories: id and name of each class.

    Returns:
        One dict per object: ``image``, ``category_id``, ``category``, ``bbox`` (x y w h) and
        ``score``.
    """
    return [
        {**image, "category_id": number, "category": name, "bbox": box, "score": score}
        for box, score, (number, name) in zip(
            as_xywh(boxes).tolist(), scores.tolist(), [categories[index] for index in classes]
        )
    ]


def write_json(path: str | Path, rows: Sequence[Row]) -> None:
    """Write rows of :func:`coco_rows` as a list, which pycocotools' ``loadRes`` reads."""
    write_whole(path, json.dumps(rows))


def write_csv(path: str | Path, rows: Sequence[Row]) -> None:
    """Write rows of :func:`coco_rows` as a table, with the box in four columns."""
    with whole_file(path) as file, open(file, "w", newline="", encoding="utf-8") as text:
        table = csv.DictWriter(text, _COLUMNS, extrasaction="ignore")
        table.writeheader()
        table.writerows(row | dict(zip(_BOX, row["bbox"])) for row in rows)
