import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_det.data import DatasetError, ensure_made, load_dataset, pixels
from resnet_det.data.classification.small_images import SmallImages
from resnet_det.data.synthetic import drawing, scenes

SMALL = {"trainval": 24, "test": 6, "train_crops": 16, "val_crops": 8}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    scenes.write_scenes(str(root), **SMALL)
    return root


def load(name, root):
    return load_dataset(name, root).records


def digests(root):
    folder = Path(root) / "scenes"
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_two_workers_write_the_same_files(root, tmp_path):
    scenes.write_scenes(str(tmp_path), **SMALL, workers=2)
    assert len(digests(root)) == 30 * 2 + 2 + 2 + 24 + 1
    assert digests(tmp_path) == digests(root)


def test_an_image_does_not_depend_on_the_number_of_others(root, tmp_path):
    few = {"trainval": 2, "test": 1, "train_crops": 3, "val_crops": 1}
    scenes.write_scenes(str(tmp_path), **few)
    images = {path: digest for path, digest in digests(tmp_path).items() if path.endswith(".jpg")}
    assert len(images) == 7
    assert images.items() <= digests(root).items()


def test_seeds_differ(root, tmp_path):
    scenes.write_scenes(str(tmp_path), trainval=1, test=1, train_crops=1, val_crops=1, seed=1)
    images = {digest for path, digest in digests(tmp_path).items() if path.endswith(".jpg")}
    assert images.isdisjoint(digests(root).values())


def test_images_and_splits_are_all_different(root):
    images = [digest for path, digest in digests(root).items() if path.endswith(".jpg")]
    assert len(set(images)) == len(images)


@pytest.mark.parametrize(("voc", "coco"), [("trainval", "train"), ("test", "test")])
def test_voc_and_coco_agree(root, voc, coco):
    voc_set = load_dataset(f"scenes_voc_{voc}", root)
    coco_set = load_dataset(f"scenes_coco_{coco}", root)
    assert voc_set.metadata.classes == coco_set.metadata.classes == drawing.CLASSES
    assert len(voc_set.records) == len(coco_set.records) == SMALL[voc]
    for a, b in zip(voc_set.records, coco_set.records, strict=True):
        assert a["file_name"] == b["file_name"]
        assert (a["height"], a["width"]) == (b["height"], b["width"])
        for x, y in zip(a["annotations"], b["annotations"], strict=True):
            left, top, width, height = y["bbox"]
            assert x["bbox"] == [left, top, left + width, top + height]
            assert x["category_id"] == y["category_id"]
            assert x["difficult"] == y["iscrowd"]
            assert 0 < y["area"] <= width * height


def test_images_are_as_annotated(root):
    shapes = set()
    for record in load("scenes_voc_trainval", root):
        image = pixels.read_image(record["file_name"])
        assert image.shape == (record["height"], record["width"], 3)
        assert image.std() > 8  # not blank
        assert 1 <= len(record["annotations"]) <= 6
        shapes.add(image.shape[:2])
    assert shapes == {(144, 192), (192, 144)}


def test_boxes_are_what_shows(monkeypatch):
    """Painting the objects white on black: the boxes' union bounds what is bright, tightly."""

    def disc(rng, u, v):
        f = np.hypot(u, v) - 1
        return f, np.ones((3, *f.shape), np.float32)

    monkeypatch.setattr(scenes, "DRAW", dict.fromkeys(drawing.CLASSES, disc))
    monkeypatch.setattr(scenes, "background", lambda rng, h, w: np.zeros((3, h, w), np.float32))
    truncated = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        canvas, (item,) = scenes.compose_scene(
            rng, 96, 128, (20, 60), counts=(1, 1), clutter=(0, 1)
        )
        bright = canvas.mean(0) > 0.42  # paint is 0.9 to 1 of white, covered by a half or more
        rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
        want = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        np.testing.assert_allclose(item["box"], want, atol=1)
        assert item["area"] == pytest.approx(bright.sum(), rel=0.12)
        x0, y0, x1, y1 = item["box"]
        touches = x0 == 0 or y0 == 0 or x1 == 128 or y1 == 96
        assert touches or not item["truncated"]
        truncated += item["truncated"]
    assert 0 < truncated < 40


def test_occlusion_makes_difficult():
    """In many scenes, at least a quarter of each object is visible; small or occluded ones are
    difficult."""
    difficult = easy = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        _, objects = scenes.compose_scene(rng, 144, 192, (14, 86), counts=(6, 6))
        for item in objects:
            x0, y0, x1, y1 = item["box"]
            assert min(x1 - x0, y1 - y0) >= 6
            if max(x1 - x0, y1 - y0) < 16:
                assert item["difficult"]
            difficult += item["difficult"]
            easy += not item["difficult"]
    assert 0 < difficult < easy


@pytest.mark.parametrize("name", drawing.CLASSES)
def test_sprites_are_whole_and_of_the_size_asked_for(name):
    for seed in range(25):
        rng = np.random.default_rng(seed)
        sprite = drawing.draw_sprite(rng, drawing.DRAW[name], (50.3, 49.8), 40.0)
        assert sprite.paint.shape == (3, *sprite.alpha.shape)
        assert sprite.paint.dtype == sprite.alpha.dtype == np.float32
        assert 0 <= sprite.paint.min() and sprite.paint.max() <= 1
        border = sprite.alpha.copy()
        border[1:-1, 1:-1] = 0
        assert border.max() == 0
        rows, columns = np.nonzero(sprite.alpha > 0.5)
        assert 22 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 44
        assert np.ptp(sprite.paint[:, sprite.alpha > 0.9], axis=1).max() > 0.1  # textured


def test_colour_does_not_tell_the_class():
    """The mean colours of two classes differ less than those of two objects of one class."""
    means = np.empty((len(drawing.CLASSES), 40, 3))
    for i, name in enumerate(drawing.CLASSES):
        for seed in range(40):
            rng = np.random.default_rng([i, seed])
            sprite = drawing.draw_sprite(rng, drawing.DRAW[name], (30.0, 30.0), 24.0)
            means[i, seed] = sprite.paint[:, sprite.alpha > 0.5].mean(1)
    between = means.mean(1).std(0)
    within = means.std(1).mean(0)
    assert (between < 0.7 * within).all()


def test_classification_folders(root):
    for split, count in (("train", 16), ("val", 8)):
        folder = root / "scenes" / "classification" / split
        assert sorted(path.name for path in folder.iterdir()) == list(drawing.CLASSES)
        for name in drawing.CLASSES:
            crops = list((folder / name).glob("*.jpg"))
            assert len(crops) == count // len(drawing.CLASSES)
            assert Image.open(crops[0]).size == (36, 36)


def test_drawn_once_and_on_request_only(tmp_path, monkeypatch, caplog):
    few = {"trainval": 2, "test": 1, "train_crops": 1, "val_crops": 1}
    calls = []
    whole = scenes.write_scenes

    def write(root, **options):
        calls.append(root)
        return whole(root, **few, **options)

    monkeypatch.setattr(scenes, "write_scenes", write)
    for name in ("scenes_voc_trainval", "scenes_coco_test", "miniature_voc_test"):
        kind = name.split("_")[0]
        with pytest.raises(DatasetError, match=rf"{kind}: is absent; .*get_data\.py {kind}$"):
            load(name, tmp_path)
    with pytest.raises(DatasetError, match=r"get_data\.py scenes$"):
        SmallImages.read("scenes_classification_val", "BGR", tmp_path)
    assert not calls and list(tmp_path.iterdir()) == []
    for _ in range(2):
        ensure_made(["voc_2007_test", "scenes_voc_test", "scenes_coco_train"], tmp_path)
    assert len(load("scenes_voc_trainval", tmp_path)) == 2
    assert len(load("scenes_coco_test", tmp_path)) == 1
    assert calls == [str(tmp_path)]
    assert f"drawing 5 images in {tmp_path}/scenes" in caplog.text
    assert caplog.text.count("drawing") == 1
    # Neither a temporary folder nor anything else is left beside it.
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]


def test_the_first_of_two_writers_wins(root, tmp_path):
    few = {"trainval": 2, "test": 1, "train_crops": 1, "val_crops": 1}
    scenes.write_scenes(str(tmp_path), **few)
    before = digests(tmp_path)
    scenes.write_scenes(str(tmp_path), **few, seed=5)
    assert digests(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]


def test_a_failed_drawing_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(scenes, "write_crop", fail)
    with pytest.raises(KeyboardInterrupt):
        scenes.write_scenes(str(tmp_path), trainval=1, test=1, train_crops=1, val_crops=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("about", [json.dumps({"version": -1}), "not json", None])
def test_another_version_is_refused(tmp_path, about):
    (tmp_path / "scenes").mkdir()
    if about is not None:
        (tmp_path / "scenes" / "about.json").write_text(about)
    with pytest.raises(DatasetError, match=r"about\.json: .*delete .*scenes"):
        load_dataset("scenes_voc_test", tmp_path)
