"""Our mappers give Detectron2's samples, bit for bit, of images that Detectron2 reads rightly."""

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("detectron2")

from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

from resnet_det.config import defaults
from resnet_det.config.defaults import add_resnet_det_config
from resnet_det.data import ImageError
from resnet_det.engines.embedded_data import training_mapper
from resnet_det.engines.on_detectron2.data import Mapper

pytestmark = pytest.mark.detectron2


def config(*overrides):
    cfg = get_cfg()
    add_resnet_det_config(cfg)
    cfg.merge_from_list(["INPUT.MIN_SIZE_TRAIN", (50, 60), "INPUT.MIN_SIZE_TEST", 40, *overrides])
    return cfg


@pytest.fixture
def record(tmp_path):
    """A picture of 70 x 50 pixels with everything that a record of Detectron2 may carry."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (50, 70, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.jpg")
    Image.fromarray(rng.integers(0, 5, (50, 70), np.uint8)).save(tmp_path / "labels.png")
    annotation = {
        "bbox": [10, 10, 20, 15],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 1,
        "segmentation": [[10, 10, 30, 10, 30, 25]],
    }
    return {
        "file_name": str(tmp_path / "a.jpg"),
        "sem_seg_file_name": str(tmp_path / "labels.png"),
        "annotations": [annotation, annotation | {"iscrowd": 1}],
        "proposal_boxes": np.array([[1.0, 2, 30, 40], [5, 6, 7, 9]]),
        "proposal_objectness_logits": np.array([2.0, 1.0]),
        "proposal_bbox_mode": BoxMode.XYXY_ABS,
    }


def flat(value):
    """Tensors and plain values of a sample, structures taken apart."""
    if isinstance(value, dict):
        return {key: flat(v) for key, v in value.items()}
    if hasattr(value, "get_fields"):
        return {"size": value.image_size, **flat(value.get_fields())}
    for part in ("tensor", "polygons"):
        if hasattr(value, part):
            value = getattr(value, part)
    return value.tolist() if isinstance(value, torch.Tensor | np.ndarray) else str(value)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("INPUT.FORMAT", "RGB"),
        ("INPUT.FORMAT", "L"),
        ("INPUT.FORMAT", "YUV-BT.601"),
        ("MODEL.MASK_ON", True),
        ("INPUT.CROP.ENABLED", True),
        ("MODEL.LOAD_PROPOSALS", True),
    ],
)
def test_samples_are_detectron2s(record, overrides, train):
    cfg = config(*overrides)
    samples = []
    for mapper in (DatasetMapper, Mapper):
        np.random.seed(3)
        samples.append(flat(mapper(cfg, train)(record)))
    assert samples[0] == samples[1]
    assert len(samples[0]["image"]) == (1 if "L" in overrides else 3)


class SameDraws:
    """The numbers that Detectron2's augmentations draw, as a numpy Generator."""

    integers, random = staticmethod(np.random.randint), staticmethod(np.random.random_sample)
    normal, uniform = staticmethod(np.random.normal), staticmethod(np.random.uniform)


@pytest.mark.parametrize("format", ["RGB", "BGR"])
def test_both_engines_shift_colours(record, format):
    """After the same augmentations, by the same draws: a constant per channel, here without the
    clipped pixels."""
    del record["sem_seg_file_name"]
    record |= {"width": 70, "height": 50, "image_id": 1}
    keys = ["INPUT.FORMAT", format]
    embedded = defaults.get_cfg()
    embedded.merge_from_list(
        ["INPUT.MIN_SIZE_TRAIN", (50, 60), *keys, "RESNET_DET.COLOR_PCA", True]
    )
    images = []
    for draw in (
        lambda: training_mapper(embedded)(record, SameDraws),
        lambda: Mapper(config(*keys, "RESNET_DET.COLOR_PCA", True), True)(record),
        lambda: Mapper(config(*keys), True)(record),
    ):
        np.random.seed(5)
        images.append(draw()["image"].int())
    assert torch.equal(images[0], images[1])
    shift = (images[0] - images[2]).flatten(1)
    assert all(
        len(c[(v > 20) & (v < 235)].unique()) == 1 and c.any()
        for c, v in zip(shift, images[2].flatten(1))
    )
    test = Mapper(config("RESNET_DET.COLOR_PCA", True), False)(record)["image"]
    assert torch.equal(test, Mapper(config(), False)(record)["image"])


@pytest.mark.parametrize("names", [
    ("Brightness",), ("Contrast",), ("Saturation",), ("Brightness", "Contrast", "Saturation"),
], ids="-".join)  # fmt: skip
def test_both_engines_jitter_colours_as_detectron2s_augmentations_do(record, names):
    """Appended to Detectron2's own, by the same draws. Its RandomSaturation takes RGB only."""
    del record["sem_seg_file_name"]
    record |= {"width": 70, "height": 50, "image_id": 1}
    keys = ["INPUT.FORMAT", "RGB"]
    theirs = DatasetMapper(config(*keys), True)
    theirs.augmentations.augs += [getattr(T, f"Random{name}")(0.3, 1.9) for name in names]
    for name in names:
        keys += [f"RESNET_DET.COLOR_JITTER.{name.upper()}", (0.3, 1.9)]
    embedded = defaults.get_cfg()
    embedded.merge_from_list(["INPUT.MIN_SIZE_TRAIN", (50, 60), *keys])
    seen = set()
    for seed in range(4):
        images = []
        for draw in (
            lambda: theirs(record),
            lambda: Mapper(config(*keys), True)(record),
            lambda: training_mapper(embedded)(record, SameDraws),
        ):
            np.random.seed(seed)
            images.append(draw()["image"])
        assert torch.equal(images[0], images[1]) and torch.equal(images[0], images[2])
        seen.add(images[0].float().mean().item())
    assert len(seen) == 4
    test = Mapper(config(*keys), False)(record)["image"]
    assert torch.equal(test, Mapper(config(*keys[:2]), False)(record)["image"])


CROPS = [
    ("relative_range", [0.3, 0.5]),
    ("relative", [0.7, 0.35]),
    ("absolute_range", [20, 65]),
    ("absolute", [24, 90]),
]


@pytest.mark.parametrize("flip", ["horizontal", "vertical", "none"])
@pytest.mark.parametrize("type, size", [(None, None), *CROPS])
def test_random_crops_and_flips_of_the_embedded_engine_are_detectron2s(tmp_path, flip, type, size):
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 256, (50, 70, 3), np.uint8)).save(tmp_path / "a.png")
    corners, sides = rng.uniform(-4, 60, (60, 2)), rng.uniform(0, 40, (60, 2))
    record = {
        "file_name": str(tmp_path / "a.png"), "image_id": 1, "height": 50, "width": 70,
        "annotations": [
            {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": i}
            for i, box in enumerate(np.hstack([corners, corners + sides]).round(2).tolist())
        ],
        "proposal_boxes": np.hstack([corners, corners + sides]).round(2),
        "proposal_objectness_logits": np.arange(60)[::-1],
        "proposal_bbox_mode": BoxMode.XYXY_ABS,
    }  # fmt: skip
    keys = [
        "INPUT.RANDOM_FLIP",
        flip,
        "INPUT.MIN_SIZE_TRAIN",
        (50, 64),
        "MODEL.LOAD_PROPOSALS",
        True,
    ]
    if type:
        keys += ["INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", type, "INPUT.CROP.SIZE", size]
    embedded = defaults.get_cfg()
    embedded.merge_from_list(keys)
    ours, theirs = training_mapper(embedded), DatasetMapper(config(*keys), True)
    shapes = set()
    for seed in range(12):
        np.random.seed(seed)
        sample = ours(record, SameDraws)
        np.random.seed(seed)
        wanted = theirs(record)
        assert torch.equal(sample["image"], wanted["image"])
        assert torch.equal(sample["boxes"], wanted["instances"].gt_boxes.tensor)
        assert torch.equal(sample["classes"], wanted["instances"].gt_classes)
        assert torch.equal(sample["proposals"], wanted["proposals"].proposal_boxes.tensor)
        assert 0 < len(sample["boxes"]) < 60
        shapes.add(sample["image"].shape)
    assert len(shapes) > 3 if "range" in (type or "") else len(shapes) == 2


@pytest.mark.parametrize("train", [True, False])
def test_photographs_that_exif_turns_are_detectron2s(record, train):
    exif = Image.Exif()
    exif[274] = 6
    with Image.open(record["file_name"]) as picture:
        picture.transpose(Image.Transpose.ROTATE_90).save(record["file_name"], exif=exif)
    del record["sem_seg_file_name"]
    test_samples_are_detectron2s(record | {"width": 70, "height": 50}, (), train)
    with pytest.raises(
        ImageError, match="is 70 x 50 pixels, .* 50 x 70, as stored before its EXIF"
    ):
        Mapper(config(), train)(record | {"width": 50, "height": 70})


def test_sixteen_bits_are_scaled_where_detectron2_clips_them(tmp_path):
    levels = np.array([[0, 257, 32896, 65535]] * 2, np.uint16).repeat(2, 1)
    Image.fromarray(levels).save(tmp_path / "a.png")
    cfg = config("INPUT.MIN_SIZE_TEST", 0)
    sample = Mapper(cfg, False)({"file_name": str(tmp_path / "a.png")})
    assert sample["image"][:, 0, ::2].tolist() == [[0, 1, 128, 255]] * 3
    clipped = DatasetMapper(cfg, False)({"file_name": str(tmp_path / "a.png")})
    assert not clipped["image"].equal(sample["image"])  # else ours could be Detectron2's again


def test_what_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "a.tiff"
    Image.fromarray(np.full((4, 4), 200, np.float32)).save(path)
    with pytest.raises(ImageError, match=r"a\.tiff: pixel mode F holds values from 200"):
        Mapper(config(), False)({"file_name": str(path)})
    Image.new("RGB", (4, 5)).save(tmp_path / "b.png")
    with pytest.raises(ImageError, match=r"b\.png: is 4 x 5 pixels, .* 9 x 9"):
        Mapper(config(), True)({"file_name": str(tmp_path / "b.png"), "width": 9, "height": 9})
