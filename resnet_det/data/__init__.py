"""Datasets by name or path, as Detectron2's standard dicts, and their images.

``load_dataset(name)`` reads annotations; ``pixels.read_image`` reads an image. A record is
``{"file_name", "image_id", "height", "width", "annotations": [{"bbox" (4 floats), "bbox_mode",
"category_id" (contiguous), "iscrowd", ...}]}``. VOC adds "difficult" and "truncated", COCO "area"
and "id". The image_id is the file's stem for VOC and an int for COCO.
"""

from ..records import BoxMode, DatasetError
from .catalog import (
    DATASETS,
    DRAWN,
    UnknownDataset,
    check_dataset,
    check_names,
    dataset_names,
    datasets_root,
    ensure_made,
    files_of,
    load_dataset,
    load_datasets,
    missing,
    own_spec,
    published_classes,
    register_coco,
    register_voc,
    scan_dataset,
    shortfall,
    union,
)
from .paths import is_path
from .pixels import ImageError
from .specs import Dataset, Metadata

__all__ = [
    "DATASETS",
    "DRAWN",
    "BoxMode",
    "Dataset",
    "DatasetError",
    "ImageError",
    "Metadata",
    "UnknownDataset",
    "check_dataset",
    "check_names",
    "dataset_names",
    "datasets_root",
    "ensure_made",
    "files_of",
    "is_path",
    "load_dataset",
    "load_datasets",
    "missing",
    "own_spec",
    "published_classes",
    "register_coco",
    "register_voc",
    "scan_dataset",
    "shortfall",
    "union",
]
