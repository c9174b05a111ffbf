"""Datasets and images for Detectron2's loaders, with errors that name the file."""

import copy
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    get_detection_dataset_dicts,
)
from detectron2.data.detection_utils import convert_PIL_to_numpy, transform_proposals
from detectron2.data.detection_utils import read_image as detectron2_read
from detectron2.data.transforms import AugInput
from detectron2.utils.file_io import PathManager
from PIL import Image

from ... import data
from ...config.defaults import ConfigError
from ...data import (
    Dataset,
    Metadata,
    dataset_names,
    is_path,
    load_dataset,
    own_spec,
    union,
)
from ...data.detection import voc
from ...data.detection.mapper import with_usable_annotations
from ...data.jitter import NO_JITTER
from ...data.pixels import (
    FORMATS,
    ImageError,
    as_array,
    at_scales,
    check_size,
    read_image,
    shift_colors,
)
from ..checks import color_jitter, proposal_files, test_files
from ..class_matching import check_number

logger = logging.getLogger(__name__)

# The values of evaluator_type in Detectron2's catalog that our evaluators serve.
EVALUATED = (None, "coco", "pascal_voc")


def check_names(names: Sequence[str]) -> None:
    """Raise UnknownDataset, with similar names, unless all are in Detectron2's catalog."""
    data.check_names(name for name in names if name not in DatasetCatalog)


def check_test_sets(cfg: Any) -> None:
    """Raise ConfigError if other code registered one of DATASETS.TEST for an evaluation that is
    none of ours, such as LVIS's."""
    for name in filter(_is_foreign, cfg.DATASETS.TEST):
        kind = MetadataCatalog.get(name).get("evaluator_type")
        if kind not in EVALUATED:
            raise ConfigError(
                f"DATASETS.TEST: {name}: its evaluator_type is {kind!r}, but only boxes are "
                "evaluated here, by COCO's or VOC's AP (evaluator_type 'coco' or 'pascal_voc'): "
                "leave it out, and evaluate the checkpoint with Detectron2's own evaluator"
            )


def known_classes(name: str) -> Sequence[str] | None:
    """The class names of a dataset, if they are known without reading its files."""
    return MetadataCatalog.get(name).get("thing_classes") or data.published_classes(name)


def load_any(names: Sequence[str], skip_bad: bool = False, files: Sequence[str] = ()) -> Dataset:
    """Read a union of datasets.

    Our readers load the datasets in our catalog and those named by a path; they keep "difficult"
    and name the file in errors. Detectron2's catalog loads all others.

    Args:
        files: one file of precomputed proposals per dataset; the records then carry the proposals.
    """
    check_names(names)
    parts = [
        _foreign(name) if _is_foreign(name) else load_dataset(name, skip_bad=skip_bad)
        for name in names
    ]
    dataset = union(parts, files)
    for line in dataset.skipped:
        logger.warning("skipped %s", line)
    return dataset


def load_test_sets(cfg: Any) -> dict[str, Dataset]:
    """Read DATASETS.TEST. Returns name -> dataset."""
    for key in ("MASK_ON", "KEYPOINT_ON"):
        if cfg.MODEL[key] and cfg.DATASETS.TEST:
            logger.warning("MODEL.%s: True: only the AP of the boxes is computed", key)
    skip_bad = cfg.RESNET_DET.SKIP_BAD_DATA
    return {name: load_any([name], skip_bad, files) for name, files in test_files(cfg)}


def load_training_set(cfg: Any) -> tuple[list[dict], tuple[str, ...]]:
    """Read the training records, as Detectron2's standard dicts, and the class names.

    Raises:
        ConfigError: a key is set that is only for box detectors.
        DatasetError: a dataset cannot be read.
        ValueError: no record has a usable annotation.
    """
    files = proposal_files(cfg, "TRAIN")
    dataset = load_any(cfg.DATASETS.TRAIN, cfg.RESNET_DET.SKIP_BAD_DATA, files)
    check_number(cfg, dataset.metadata.classes, dataset.name)
    records, difficult = dataset.records, cfg.RESNET_DET.USE_DIFFICULT
    filter_empty = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    if cfg.MODEL.MASK_ON or cfg.MODEL.KEYPOINT_ON:
        _check_for_masks(cfg)
        least = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
        records = get_detection_dataset_dicts(  # our readers read boxes only
            cfg.DATASETS.TRAIN,
            filter_empty=filter_empty,
            min_keypoints=least if cfg.MODEL.KEYPOINT_ON else 0,
            proposal_files=files or None,
        )
    elif filter_empty:
        records = with_usable_annotations(records, use_difficult=difficult)
    if not difficult:
        records = [
            r | {"annotations": [a for a in r["annotations"] if not a.get("difficult")]}
            for r in records
        ]
    return records, dataset.metadata.classes


def _check_for_masks(cfg: Any) -> None:
    """Raise ConfigError for a key or a training set that masks and keypoints do not support."""
    for key, default in (("USE_DIFFICULT", True), ("SKIP_BAD_DATA", False), ("VAL_LOSS", False)):
        if cfg.RESNET_DET[key] != default:
            raise ConfigError(f"RESNET_DET.{key}: is only for box detectors")
    for name in filter(own_spec, cfg.DATASETS.TRAIN):
        raise ConfigError(
            f"DATASETS.TRAIN: {name}: only its boxes are read: for masks or keypoints, register "
            "the dataset with Detectron2's register_coco_instances"
        )


def _is_foreign(name: str) -> bool:
    """Whether other code registered a dataset in Detectron2's catalog."""
    return not is_path(name) and name not in dataset_names()


def _foreign(name: str) -> Dataset:
    """Read a dataset that other code registered in Detectron2's catalog."""
    records = get_detection_dataset_dicts([name], filter_empty=False)
    known = MetadataCatalog.get(name)
    classes = tuple(known.get("thing_classes", ()))
    is_voc = known.get("evaluator_type") == "pascal_voc"
    ids = known.get("thing_dataset_id_to_contiguous_id") or {i: i for i in range(len(classes))}
    metadata = Metadata(
        name,
        classes,
        voc.evaluation(known.get("year")) if is_voc else "coco",
        split=known.get("split") if is_voc else None,
        category_ids=tuple(sorted(ids, key=lambda id: ids[id])),
    )
    return Dataset(name, records, metadata)


class Mapper(DatasetMapper):
    """Detectron2's mapper, but :func:`resnet_det.data.pixels.read_image` reads the images.

    Errors therefore name a broken image, and images with more than 8 bits are scaled, not clipped.
    When testing with RESNET_DET.MULTI_SCALE_TEST, a sample also has ``scales``, a list of images.
    RESNET_DET.COLOR_JITTER and COLOR_PCA change the colours of training images after Detectron2's
    augmentations.
    """

    def __init__(self, cfg: Any, is_train: bool) -> None:
        super().__init__(cfg, is_train)
        self.jitter = color_jitter(cfg) if is_train else NO_JITTER
        self.color_pca = is_train and cfg.RESNET_DET.COLOR_PCA
        self.scales = () if is_train else cfg.RESNET_DET.MULTI_SCALE_TEST
        self.size = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Do as Detectron2's method does, but read the image and add what the class names."""
        sample = copy.deepcopy(dataset_dict)
        image = read(sample["file_name"], self.image_format)
        check_size(image, sample | {"file_name": PathManager.get_local_path(sample["file_name"])})
        sample.setdefault("height", image.shape[0])
        sample.setdefault("width", image.shape[1])
        return self.sample(image, sample)

    def sample(self, image: np.ndarray, sample: dict[str, Any]) -> dict[str, Any]:
        """Make a sample of a record and its image, (h, w, channels) in INPUT.FORMAT.

        Args:
            sample: the record; it becomes the sample.

        Raises:
            ImageError: Detectron2's augmentations fail on the image, such as on a very thin one.
        """
        if self.scales:
            others = at_scales(image, self.scales, *self.size)
            sample["scales"] = [torch.from_numpy(x.transpose(2, 0, 1).copy()) for x in others]
        labels = sample.pop("sem_seg_file_name", None)
        if labels is not None:
            labels = detectron2_read(labels, "L").squeeze(2)
        augmented = AugInput(image, sem_seg=labels)
        try:
            transforms = self.augmentations(augmented)
        except (ValueError, AssertionError) as error:  # such as one side that is resized to 0
            raise ImageError(
                sample.get("file_name", "image"),
                f"Detectron2 cannot resize or crop {image.shape[1]} x {image.shape[0]} pixels "
                f"as the config says: {error}",
            ) from error
        augmented.image = self.jitter(augmented.image, np.random)
        if self.color_pca:
            augmented.image = shift_colors(augmented.image, self.image_format, np.random)
        sample["image"] = torch.from_numpy(augmented.image.transpose(2, 0, 1).copy())
        if labels is not None:
            sample["sem_seg"] = torch.from_numpy(augmented.sem_seg.astype("long"))
        shape = augmented.image.shape[:2]
        if self.proposal_topk is not None:
            transform_proposals(sample, shape, transforms, proposal_topk=self.proposal_topk)
        if not self.is_train:
            sample.pop("annotations", None)
        elif "annotations" in sample:
            self._transform_annotations(sample, transforms, shape)
        return sample


def read(file_name: str, format: str) -> np.ndarray:
    """Read an image of a Detectron2 dataset. Its path may be any that Detectron2's PathManager
    reads.

    Args:
        format: any value of INPUT.FORMAT that Detectron2 accepts.

    Raises:
        ImageError: see :func:`resnet_det.data.pixels.read_image`.
    """
    path = PathManager.get_local_path(file_name)
    if format in FORMATS:
        return read_image(path, format)
    return in_format(read_image(path, "RGB"), format)


def in_format(image: np.ndarray, format: str) -> np.ndarray:
    """Convert RGB pixels, uint8 (h, w, 3), to any value of INPUT.FORMAT that Detectron2 accepts."""
    picture = Image.fromarray(image)
    return as_array(picture, format) if format in FORMATS else convert_PIL_to_numpy(picture, format)


def local_records(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records whose images are files on this machine, with their local paths."""
    here = (record for record in records if "://" not in record["file_name"])
    return [r | {"file_name": PathManager.get_local_path(r["file_name"])} for r in here]
