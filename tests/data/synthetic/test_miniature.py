"""The detection dataset made from CIFAR-10's photographs: its content and its sources."""

import numpy as np
import pytest

from resnet_det.data import DatasetError, ensure_made, load_dataset, pixels
from resnet_det.data.classification import cifar10
from resnet_det.data.synthetic import miniature

COUNT = 60  # photographs of each split, coloured so that each is known again
SIZE = 96, 128


def photographs(name):
    """Photographs of one colour: red encodes the index, green the label, blue the split."""
    index = np.arange(COUNT)
    rows = np.stack([4 * index + 4, 25 * (index % 10), np.full(COUNT, 250 * ("test" in name))])
    images = np.broadcast_to(rows.T[:, :, None, None], (COUNT, 3, 32, 32)).astype(np.uint8)
    return np.ascontiguousarray(images), index % 10


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cifar10, "read", lambda name, root: photographs(name))
        miniature.write(str(root), trainval=8, test=6)
    return root


def test_each_object_is_one_photograph_of_its_split_and_its_label(root):
    for split, count, blue in (("trainval", 8, 0), ("test", 6, 250)):
        dataset = load_dataset(f"miniature_voc_{split}", root)
        assert dataset.metadata.classes == cifar10.CLASSES
        assert len(dataset.records) == count and dataset.metadata.evaluation == "voc_2007"
        used = []
        for record in dataset.records:
            image = pixels.read_image(record["file_name"], "RGB")
            assert 1 <= len(record["annotations"]) <= miniature.MAX_OBJECTS
            for annotation in record["annotations"]:
                x0, y0, x1, y1 = map(round, annotation["bbox"])
                assert x1 - x0 == y1 - y0 and 32 <= x1 - x0 <= 64
                assert 0 <= x0 and 0 <= y0 and x1 <= record["width"] and y1 <= record["height"]
                # Over a tenth of another object at most: the median is this one's own colour.
                red, green, b = np.median(image[y0:y1, x0:x1].reshape(-1, 3), 0)
                assert abs(b - blue) < 8
                assert abs(green / 25 - annotation["category_id"]) < 0.4
                mine = np.arange(annotation["category_id"], COUNT, 10)
                used.append(int(mine[np.abs(4 * mine + 4 - red).argmin()]))
        assert len(used) > count and len(set(used)) == len(used)


def test_objects_stay_nine_tenths_visible(root):
    for record in load_dataset("miniature_voc_trainval", root).records:
        boxes = [annotation["bbox"] for annotation in record["annotations"]]
        for n, a in enumerate(boxes):
            for b in boxes[:n]:
                w = max(0, min(a[2], b[2]) - max(a[0], b[0]))
                h = max(0, min(a[3], b[3]) - max(a[1], b[1]))
                least = min((a[2] - a[0]) ** 2, (b[2] - b[0]) ** 2)
                assert w * h <= 0.1 * least


def test_clutter_is_the_photograph_in_sixteen_shuffled_tiles():
    photograph = np.arange(32 * 32 * 3, dtype=np.uint16).reshape(32, 32, 3)
    shuffled = miniature.shuffle_tiles(np.random.default_rng(0), photograph)
    assert (np.sort(shuffled, None) == np.sort(photograph, None)).all()

    def tiles(x):
        return {x[i : i + 8, j : j + 8].tobytes() for i in range(0, 32, 8) for j in range(0, 32, 8)}

    assert tiles(shuffled) == tiles(photograph) and (shuffled != photograph).any()


def test_an_image_depends_on_its_number_alone(root, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "read", lambda name, root: photographs(name))
    miniature.write(str(tmp_path), trainval=8, test=6)
    for path in sorted((root / "miniature/voc").rglob("*.*")):
        again = tmp_path / path.relative_to(root)
        assert again.read_bytes() == path.read_bytes()


def test_without_cifar_nothing_is_left_behind(tmp_path):
    with pytest.raises(DatasetError, match="CIFAR-10"):
        ensure_made(["miniature_voc_test"], str(tmp_path))
    assert not list(tmp_path.iterdir())
