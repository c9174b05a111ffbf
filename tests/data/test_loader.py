import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_det.data import loader
from resnet_det.data.detection.mapper import Crop, DetectionMapper, with_usable_annotations
from resnet_det.data.loader import global_batches, training_batches
from resnet_det.data.pixels import ImageError
from resnet_det.records import BoxMode


def take(iterable, count):
    return list(itertools.islice(iterable, count))


def flat(lists):
    return list(itertools.chain.from_iterable(lists))


def some_records(count):
    """Records without files; the odd ones are wide."""
    return [{"image_id": i, "width": 10 + i % 2, "height": 10} for i in range(count)]


def draw(record, rng):
    """A mapper that shows which record it got and what randomness."""
    return {"id": record["image_id"], "draw": rng.random()}


@pytest.mark.parametrize("count,total_batch", [(7, 3), (8, 4), (3, 7)])
def test_each_epoch_holds_every_record_once(count, total_batch):
    stream = flat(take(global_batches(count, total_batch=total_batch, seed=5), 20))
    epochs = [stream[i : i + count] for i in range(0, len(stream) - count + 1, count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert len(epochs) >= 6 and len({tuple(epoch) for epoch in epochs}) > 1
    other = flat(take(global_batches(count, total_batch=total_batch, seed=6), 20))
    assert other != stream


def test_grouped_batches_are_of_one_shape_and_lose_nothing():
    groups = [i % 3 == 0 for i in range(10)]
    batches = take(global_batches(10, total_batch=4, seed=1, groups=groups), 50)
    assert {groups[batch[0]] for batch in batches} == {True, False}
    for batch in batches:
        assert len({groups[i] for i in batch}) == 1
    for group in (True, False):
        members = [i for i in range(10) if groups[i] == group]
        seen = [i for batch in batches for i in batch if groups[i] == group]
        rounds = [seen[i : i + len(members)] for i in range(0, len(seen), len(members))][:-1]
        assert rounds and all(sorted(one) == members for one in rounds)


@pytest.mark.parametrize("grouping", [False, True])
def test_processes_share_the_same_global_batches(grouping):
    options = {"total_batch": 4, "seed": 3, "aspect_ratio_grouping": grouping}
    whole = take(training_batches(some_records(11), draw, **options), 12)
    for world in (2, 4):
        parts = [
            take(training_batches(some_records(11), draw, rank=r, world=world, **options), 12)
            for r in range(world)
        ]
        assert [flat(batch) for batch in zip(*parts)] == whole


@pytest.mark.parametrize("grouping", [False, True])
@pytest.mark.parametrize("start", [1, 5, 13])
def test_resumed_stream_is_the_tail_of_the_whole(grouping, start):
    options = {"total_batch": 4, "seed": 3, "aspect_ratio_grouping": grouping}
    whole = take(training_batches(some_records(11), draw, **options), 20)
    tail = take(training_batches(some_records(11), draw, start_iter=start, **options), 20 - start)
    assert tail == whole[start:]
    draws = [sample["draw"] for batch in whole for sample in batch]
    assert len(set(draws)) == len(draws)


def test_workers_change_nothing_and_draw_nothing():
    options = {"total_batch": 4, "seed": 3, "world": 2, "rank": 1}
    here = take(training_batches(some_records(11), draw, **options), 9)
    state = torch.get_rng_state()
    workers = take(training_batches(some_records(11), draw, num_workers=2, **options), 9)
    assert workers == here
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("initialized", [False, True])
def test_memory_is_pinned_only_if_the_run_uses_a_gpu(initialized, monkeypatch):
    """A run on the CPU of a machine with a GPU would start CUDA otherwise."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: initialized)
    made = loader.make_loader([1], num_workers=0, collate=list, batch_size=1)
    assert made.pin_memory is initialized


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="6 images .* 4 processes"):
        training_batches(some_records(8), draw, total_batch=6, seed=0, world=4)
    with pytest.raises(ValueError, match="no records"):
        training_batches([], draw, total_batch=1, seed=0)
    with pytest.raises(ValueError, match="'width'"):
        training_batches([{}], draw, total_batch=1, seed=0, aspect_ratio_grouping=True)


@pytest.mark.parametrize("count,world", [(7, 1), (7, 3), (2, 4)])
def test_evaluation_sees_every_record_once_in_order(count, world):
    shards = [
        loader.test_batches(some_records(count), draw, rank=rank, world=world)
        for rank in range(world)
    ]
    ids = [[sample["id"] for batch in shard for sample in batch] for shard in shards]
    assert flat(ids) == list(range(count))
    assert [len(shard) for shard in shards] == [len(part) for part in ids]


# Images


def annotation(box, category=0, mode=BoxMode.XYXY_ABS, **flags):
    return {"bbox": box, "bbox_mode": mode, "category_id": category, "iscrowd": 0, **flags}


@pytest.fixture
def photo(tmp_path):
    """Record of an 80 x 60 image of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return {
        "file_name": str(tmp_path / "photo.png"),
        "image_id": "photo",
        "height": 60,
        "width": 80,
        "annotations": [annotation([8, 6, 40, 30], 3)],
    }


def generator_that_flips(flip):
    """A Generator whose next draws of a size and a flip result in ``flip``."""
    for seed in range(100):
        rng = np.random.default_rng(seed)
        rng.integers(1)
        if (rng.random() < 0.5) == flip:
            return np.random.default_rng(seed)
    raise AssertionError


def test_boxes_follow_the_pixels(photo):
    mapper = DetectionMapper(30, 100, flip="horizontal", format="RGB", train=True)
    sample = mapper(photo, generator_that_flips(False))
    assert sample["image"].shape == (3, 30, 40) and sample["image"].dtype == torch.uint8
    assert sample["boxes"].tolist() == [[4, 3, 20, 15]] and sample["boxes"].dtype == torch.float32
    assert sample["classes"].tolist() == [3]
    assert (sample["height"], sample["width"], sample["image_id"]) == (60, 80, "photo")
    flipped = mapper(photo, generator_that_flips(True))
    assert flipped["boxes"].tolist() == [[20, 3, 36, 15]]
    assert torch.equal(flipped["image"], sample["image"].flip(2))
    bgr = DetectionMapper(30, 100, format="BGR", train=False)(photo, generator_that_flips(False))
    assert torch.equal(bgr["image"], sample["image"].flip(0))
    assert "boxes" not in bgr and "classes" not in bgr


@pytest.mark.parametrize("flip", ["vertical", "none"])
def test_boxes_follow_the_pixels_of_a_crop(photo, flip):
    """An object of white pixels, of which a crop shows all, a part or nothing."""
    picture = np.zeros((60, 80, 3), np.uint8)
    picture[6:30, 8:40] = 255  # the annotation of the photo
    Image.fromarray(picture).save(photo["file_name"])
    mapper = DetectionMapper(0, 100, flip=flip, crop=Crop("absolute", (36, 90)), train=True)
    seen = set()
    for seed in range(30):
        sample = mapper(photo, np.random.default_rng(seed))
        assert sample["image"].shape == (3, 36, 80)
        rows = np.flatnonzero(sample["image"][0].numpy().any(1))
        boxes = [[8, rows[0], 40, rows[-1] + 1]] if len(rows) else []
        assert sample["boxes"].tolist() == boxes
        seen.add(len(rows))
    assert len(seen) > 5 and max(seen) == 24


@pytest.mark.parametrize("format", ["RGB", "BGR"])
def test_a_detectors_colours_are_shifted_along_imagenets_principal_components(photo, format):
    """By far most along (0.57, 0.58, 0.58), so grey stays grey; white and black are clipped."""
    picture = np.full((60, 80, 3), (100, 150, 200), np.uint8)
    picture[:, :20], picture[:, 60:] = 0, 255
    Image.fromarray(picture).save(photo["file_name"])
    mapper = DetectionMapper(0, 100, format=format, color_pca=True, train=True)
    shifts = []
    for seed in range(400):
        image = mapper(photo, np.random.default_rng(seed))["image"].numpy()
        image = image if format == "RGB" else image[::-1]
        black, middle, white = (image[:, :, x].astype(int) for x in (0, 40, 79))
        assert (middle == middle[:, :1]).all()
        shift = middle[:, 0] - (100, 150, 200)
        assert np.array_equal(black[:, 0], shift.clip(0)) and np.array_equal(
            white[:, 0], 255 + shift.clip(None, 0)
        )
        shifts.append(shift)
    values, vectors = np.linalg.eigh(np.cov(np.array(shifts).T))
    assert np.abs(vectors[:, 2] @ [0.5675, 0.5808, 0.5836]) > 0.99
    assert values[2] ** 0.5 == pytest.approx(255 * 0.1 * 0.2175, rel=0.1)


def test_which_annotations_are_learnt_from(photo):
    photo["annotations"] = [
        annotation([0, 0, 10, 10], 0, iscrowd=1),
        annotation([0, 0, 10, 10], 1, difficult=1),
        annotation([70, 50, 95, 70], 2),  # clipped
        annotation([80, 10, 90, 20], 3),  # outside
        annotation([5, 5, 5, 9], 4),  # empty
        annotation([10, 20, 30, 15], 5, BoxMode.XYWH_ABS),
    ]
    rng = np.random.default_rng(0)
    sample = DetectionMapper(60, 100, train=True)(photo, rng)
    assert sample["classes"].tolist() == [1, 2, 5]
    assert sample["boxes"].tolist() == [[0, 0, 10, 10], [70, 50, 80, 60], [10, 20, 40, 35]]
    sample = DetectionMapper(60, 100, train=True, use_difficult=False)(photo, rng)
    assert sample["classes"].tolist() == [2, 5]
    photo["annotations"] = []
    sample = DetectionMapper(60, 100, train=True)(photo, rng)
    assert sample["boxes"].shape == (0, 4) and sample["classes"].shape == (0,)


def test_sizes_are_drawn_from_the_list_or_the_range(photo):
    def shorter(mapper):
        rng = np.random.default_rng(0)
        return {min(mapper(photo, rng)["image"].shape[1:]) for _ in range(60)}

    assert shorter(DetectionMapper((20, 24), 100, train=True)) == {20, 24}
    range_of_sizes = DetectionMapper((20, 24), 100, sampling="range", train=True)
    assert shorter(range_of_sizes) == {20, 21, 22, 23, 24}
    for options in ({"sampling": "all"}, {"flip": "both"}, {"sampling": "range"}):
        with pytest.raises(ValueError):
            DetectionMapper((20, 24, 28), 100, train=True, **options)


def test_filter_leaves_what_has_something_to_learn():
    crowd, hard, good = (
        [annotation([0, 0, 1, 1], iscrowd=1)],
        [annotation([0, 0, 1, 1], difficult=1)],
        [annotation([0, 0, 1, 1])],
    )
    records = [{"annotations": a} for a in ([], crowd, hard, good, crowd + good)]
    assert with_usable_annotations(records) == records[2:]
    assert with_usable_annotations(records, use_difficult=False) == records[3:]
    with pytest.raises(ValueError, match="none of the 2 images"):
        with_usable_annotations(records[:2])


@pytest.fixture
def album(photo, tmp_path):
    """Six records: file 2 is truncated, 3 is missing, and 5 differs in size from its record."""
    records = []
    content = Path(photo["file_name"]).read_bytes()
    for i in range(6):
        path = tmp_path / f"{i}.png"
        if i != 3:
            path.write_bytes(content[:2000] if i == 2 else content)
        records.append({**photo, "file_name": str(path), "image_id": i})
    records[5] = {**records[5], "height": 61}
    return records


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unusable_image_ends_training_with_its_name(album, workers):
    mapper = DetectionMapper(0, 100, train=True)
    for wrong in (2, 3, 5):
        records = [album[0], album[wrong]]
        with pytest.raises(ImageError, match=rf"{wrong}\.png"):
            take(training_batches(records, mapper, total_batch=2, seed=0, num_workers=workers), 1)
        with pytest.raises(ImageError, match=rf"{wrong}\.png"):
            list(loader.test_batches(records, mapper, num_workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_unusable_images_are_replaced_and_counted_when_asked_for(album, workers, caplog):
    options = {"total_batch": 2, "seed": 0, "skip_bad": True, "num_workers": workers}
    mapper = DetectionMapper(0, 100, train=True)
    batches = take(training_batches(album, mapper, **options), 9)
    wanted = take(global_batches(6, total_batch=2, seed=0), 9)
    instead = {0: 0, 1: 1, 2: 4, 3: 4, 4: 4, 5: 0}
    got = [[sample["image_id"] for sample in batch] for batch in batches]
    assert got == [[instead[i] for i in batch] for batch in wanted]
    warnings = [r.getMessage() for r in caplog.records if "skipped" in r.getMessage()]
    assert len(warnings) == 3 and "(3 unusable so far)" in warnings[-1]
    for wrong in ("2.png", "3.png", "5.png"):
        assert sum(wrong in warning for warning in warnings) == 1
    with pytest.raises(ValueError, match="none of the 2 images"):
        take(training_batches(album[2:4], mapper, **options), 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_unusable_images_are_left_out_of_a_test_when_asked_for(album, workers, caplog):
    mapper = DetectionMapper(0, 100, train=True)
    for batch, expected in ((1, [[0], [1], [4]]), (4, [[0, 1], [4]])):
        options = {"batch": batch, "num_workers": workers, "skip_bad": True}
        found = loader.test_batches(album, mapper, **options)
        assert [[sample["image_id"] for sample in samples] for samples in found] == expected
    assert sum("3.png" in record.getMessage() for record in caplog.records) == 2


@pytest.mark.detectron2
@pytest.mark.parametrize("mode", list(BoxMode))
@pytest.mark.parametrize("flip", [False, True])
def test_sample_equals_detectron2(tmp_path, mode, flip):
    from detectron2.data import DatasetMapper
    from detectron2.data import transforms as T
    from detectron2.structures import BoxMode as TheirMode

    rng = np.random.default_rng(0)
    for width, height in [(101, 67), (64, 211), (333, 90)]:
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        path = str(tmp_path / "image.jpg")
        Image.fromarray(pixels).save(path)
        boxes = rng.uniform(-5, 1.05 * max(width, height), (200, 4)).round(2)
        boxes[:, 2:] = boxes[:, :2] + boxes[:, 2:].clip(0) * rng.integers(0, 9, (200, 2)) / 8
        if mode == BoxMode.XYWH_ABS:
            boxes[:, 2:] -= boxes[:, :2]
        record = {"file_name": path, "image_id": 0, "height": height, "width": width}
        record["annotations"] = [
            annotation(box, i, mode, iscrowd=int(i % 9 == 0))
            for i, box in enumerate(boxes.tolist())
        ]
        ours = DetectionMapper(70, 190, flip="horizontal" if flip else "none", train=True)(
            record, generator_that_flips(flip)
        )
        for a in record["annotations"]:
            a["bbox_mode"] = TheirMode(int(mode))
        steps = [T.ResizeShortestEdge(70, 190, "choice")]
        steps += [T.RandomFlip(prob=1.0)] if flip else []
        theirs = DatasetMapper(is_train=True, augmentations=steps, image_format="BGR")(record)
        assert torch.equal(ours["image"], theirs["image"])
        assert torch.equal(ours["boxes"], theirs["instances"].gt_boxes.tensor)
        assert torch.equal(ours["classes"], theirs["instances"].gt_classes)
        assert 20 < len(ours["boxes"]) < 178


# What Pillow does to an upright image to store it under each EXIF orientation (EXIF 2.3, 4.6.4 A).
STORED = {
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}


def save_turned(path, orientation, size=(60, 40)):
    """Save a picture, upright of this size, stored turned; returns it."""
    levels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    upright, exif = Image.fromarray(levels), Image.Exif()
    exif[274] = orientation
    upright.transpose(STORED[orientation]).save(path, exif=exif)
    return upright


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("train", [True, False])
def test_photographs_that_exif_turns_are_upright(tmp_path, orientation, train):
    save_turned(tmp_path / "turned.png", orientation).save(tmp_path / "upright.png")
    samples = [
        DetectionMapper(30, 60, train=train)(
            {"file_name": str(tmp_path / name), "image_id": 0, "width": 60, "height": 40}
            | {"annotations": [annotation([5, 6, 20, 30], 1)]},
            np.random.default_rng(0),
        )
        for name in ("turned.png", "upright.png")
    ]
    assert torch.equal(samples[0]["image"], samples[1]["image"])
    assert samples[0]["image"].shape == (3, 30, 45)
    if train:
        assert samples[0]["boxes"].tolist() == [[3.75, 4.5, 15.0, 22.5]]  # at 3/4 of the size


def test_boxes_of_the_stored_photograph_are_refused(tmp_path):
    save_turned(tmp_path / "turned.png", 6)
    record = {"file_name": str(tmp_path / "turned.png"), "image_id": 0, "width": 40, "height": 60}
    with pytest.raises(ImageError, match=r"turned\.png: is 60 x 40 .*40 x 60, as stored before"):
        DetectionMapper(0, 99, train=True)(record | {"annotations": []}, None)


@pytest.mark.detectron2
@pytest.mark.parametrize("orientation", STORED)
def test_turned_photographs_equal_detectron2(tmp_path, orientation):
    from detectron2.data import DatasetMapper

    save_turned(tmp_path / "turned.png", orientation)
    record = {"file_name": str(tmp_path / "turned.png"), "image_id": 0, "width": 60, "height": 40}
    ours = DetectionMapper(0, 99, train=False)(record, np.random.default_rng(0))
    theirs = DatasetMapper(is_train=False, augmentations=[], image_format="BGR")(record)
    assert torch.equal(ours["image"], theirs["image"])


def test_packed_records_come_back():
    items = [{"a": random.random(), "b": "x" * i} for i in range(5)]
    packed = loader._Packed(items)
    assert len(packed) == 5 and [packed[i] for i in range(5)] == items
