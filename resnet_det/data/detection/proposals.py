"""Read and write precomputed proposals in Detectron2's format.

A file is a pickle of ``{"ids": [image_id], "boxes": [float32 (N, 4)], "objectness_logits": [float32
(N,)], "bbox_mode": 0}``, with one entry per image. Boxes are in pixels of the original image.
"""

import os
import pickle
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from ...files import whole_file
from ...records import BoxMode, DatasetError
from ...weights.pickles import WeightsError, read_pickle


def write(path: str, proposals: Iterable[tuple[Any, Any, Any]]) -> None:
    """Write proposals, one tuple (image_id, boxes, logits) per image. Leaves no partial file."""
    ids, boxes, logits = zip(*proposals)
    content = {
        "ids": list(ids),
        "boxes": [np.asarray(b, np.float32) for b in boxes],
        "objectness_logits": [np.asarray(x, np.float32) for x in logits],
        "bbox_mode": int(BoxMode.XYXY_ABS),
    }
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        pickle.dump(content, file, protocol=4)


def read(path: str) -> dict[str, tuple[np.ndarray, np.ndarray, BoxMode]]:
    """Read a proposal file: str(image_id) -> (boxes (N, 4), logits (N,), mode), by descending
    logit.

    Detectron's older field names are accepted too. No code from the file is run.

    Raises:
        DatasetError: the file is missing or invalid. The message names the file and the fault.
    """
    if not os.path.isfile(path):
        raise DatasetError(path, "no such proposal file (DATASETS.PROPOSAL_FILES_*)")
    try:
        content = read_pickle(path)
    except WeightsError as error:
        raise DatasetError(path, f"not a proposal file: {error}") from error
    if not isinstance(content, dict):
        raise DatasetError(path, "does not hold a dictionary")
    content = {{"indexes": "ids", "scores": "objectness_logits"}.get(k, k): v
               for k, v in content.items()}  # fmt: skip
    missing = {"ids", "boxes", "objectness_logits"} - content.keys()
    if missing:
        raise DatasetError(path, f"lacks {', '.join(sorted(missing))}")
    ids, boxes, logits = (content[k] for k in ("ids", "boxes", "objectness_logits"))
    if not all(isinstance(x, list | tuple) or np.ndim(x) for x in (ids, boxes, logits)):
        raise DatasetError(path, "ids, boxes and objectness_logits must be lists")
    ids = [i.item() if isinstance(i, torch.Tensor) and not i.ndim else i for i in ids]
    if not len(ids) == len(boxes) == len(logits):
        raise DatasetError(
            path, f"has {len(ids)} ids, {len(boxes)} box arrays and {len(logits)} logit arrays"
        )
    mode = content.get("bbox_mode", BoxMode.XYXY_ABS)
    if np.ndim(mode) or mode not in list(BoxMode):
        raise DatasetError(path, f"bbox_mode {mode!r} is not one of {[int(m) for m in BoxMode]}")
    found = {}
    for image_id, box, logit in zip(ids, boxes, logits):
        box, logit = _numbers(path, image_id, box), _numbers(path, image_id, logit)
        if box.ndim != 2 or box.shape[1] != 4 or logit.shape != box.shape[:1]:
            raise DatasetError(
                path,
                f"image {image_id!r}: boxes have shape {box.shape} and logits {logit.shape}, "
                "expected (N, 4) and (N,)",
            )
        if not (np.isfinite(box).all() and np.isfinite(logit).all()):
            raise DatasetError(path, f"image {image_id!r}: a number is not finite")
        order = np.argsort(-logit, kind="stable")
        found[str(image_id)] = box[order], logit[order], BoxMode(int(mode))
    return found


def _numbers(path: str, image_id: Any, values: Any) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError:  # lists of different lengths
        array = np.array(None)
    if array.dtype.kind not in "iuf":
        raise DatasetError(path, f"image {image_id!r}: boxes and logits must be arrays of numbers")
    return array


def attach(records: Sequence[dict[str, Any]], path: str) -> list[dict[str, Any]]:
    """Copy the records and add the file's proposals, in the fields that Detectron2's mapper reads.

    Raises:
        DatasetError: see :func:`read`; or the file has no entry for an image.
    """
    found = read(path)
    missing = [r["image_id"] for r in records if str(r["image_id"]) not in found]
    if missing:
        raise DatasetError(
            path, f"has no proposals for {len(missing)} images, for example {missing[0]}"
        )
    names = "proposal_boxes", "proposal_objectness_logits", "proposal_bbox_mode"
    return [r | dict(zip(names, found[str(r["image_id"])])) for r in records]
