"""Datasets and images as Detectron2's loaders take them, and faults in them named."""

import logging
from itertools import chain

import torch
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    get_detection_dataset_dicts,
)
from detectron2.data.detection_utils import SizeMismatchError

from ..config import ConfigError
from ..data import (
    Dataset,
    ImageError,
    Metadata,
    dataset_names,
    load_dataset,
    load_datasets,
    proposals,
)
from ..data.mapper import with_usable_annotations
from ..data.pixels import at_scales, read_image
from .checks import proposal_files, test_files
from .class_matching import check_number

logger = logging.getLogger(__name__)


def load_any(names, skip_bad=False, files=()):
    """Our reading of our datasets (faults named, "difficult" known); Detectron2's of all others.

    With ``files`` of precomputed proposals, one a dataset, their records carry these.
    """
    unknown = [n for n in names if n not in DatasetCatalog]
    if unknown:
        load_dataset(unknown[0])  # which names the nearest ones
    if set(names) <= set(dataset_names()):
        dataset = load_datasets(names, skip_bad=skip_bad, proposal_files=files)
        for line in dataset.skipped:
            logger.warning("left out: %s", line)
    else:
        dataset = _foreign(names)
        if files:
            parts = (get_detection_dataset_dicts([name], filter_empty=False) for name in names)
            parts = (proposals.attach(*pair) for pair in zip(parts, files))
            dataset.records = list(chain.from_iterable(parts))
    return dataset


def load_test_sets(cfg):
    """Read DATASETS.TEST: dict of name -> Dataset."""
    return {name: load_any([name], files=files) for name, files in test_files(cfg)}


def training_records(cfg):
    """The records that a config trains on, and their classes.

    Returns:
        (list of Detectron2's standard dicts, tuple of names).

    Raises:
        ConfigError, DatasetError: as the dataset's reader; a key that fits only boxes.
        ValueError: no record has a usable annotation.
    """
    files = proposal_files(cfg, "TRAIN")
    dataset = load_any(cfg.DATASETS.TRAIN, cfg.RESNET_DET.SKIP_BAD_DATA, files)
    check_number(cfg, dataset.metadata.classes, dataset.name)
    records, difficult = dataset.records, cfg.RESNET_DET.USE_DIFFICULT
    filter_empty = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    if cfg.MODEL.MASK_ON or cfg.MODEL.KEYPOINT_ON:
        for key, default in (("USE_DIFFICULT", True), ("SKIP_BAD_DATA", False)):
            if cfg.RESNET_DET[key] != default:
                raise ConfigError(f"RESNET_DET.{key}: is for detectors of boxes alone")
        least = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
        records = get_detection_dataset_dicts(  # ours reads boxes only
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


def _foreign(names):
    """Datasets that somebody else has registered in Detectron2's catalog."""
    records = get_detection_dataset_dicts(list(names), filter_empty=False)
    known = MetadataCatalog.get(names[0])
    classes = tuple(known.get("thing_classes", ()))
    ids = known.get("thing_dataset_id_to_contiguous_id") or {i: i for i in range(len(classes))}
    metadata = Metadata(
        names[0],
        "voc" if known.get("evaluator_type") == "pascal_voc" else "coco",
        classes,
        split=known.get("split"),
        year=known.get("year"),
        category_ids=tuple(sorted(ids, key=ids.get)),
    )
    return Dataset("+".join(names), records, metadata)


class Mapper(DatasetMapper):
    """Detectron2's, except that a broken image is named.

    In a test with RESNET_DET.MULTI_SCALE_TEST the sample also holds ``scales``, a list of images.
    """

    def __init__(self, cfg, is_train):
        super().__init__(cfg, is_train)
        self.scales = () if is_train else cfg.RESNET_DET.MULTI_SCALE_TEST
        self.size = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST

    def __call__(self, dataset_dict):
        try:
            sample = super().__call__(dataset_dict)
            if self.scales:
                image = read_image(sample["file_name"], self.image_format)
                others = at_scales(image, self.scales, *self.size)
                sample["scales"] = [torch.from_numpy(x.transpose(2, 0, 1).copy()) for x in others]
            return sample
        except SizeMismatchError as error:
            raise ImageError(dataset_dict["file_name"], str(error)) from error
        except Exception:
            read_image(dataset_dict["file_name"])  # which says what is wrong with it
            raise
