"""CIFAR-100, written here as its archive describes itself, against torchvision's reader."""

import io
import pickle
import tarfile

import numpy as np
import pytest

from resnet_det.data import DatasetError, check_dataset, dataset_names, missing
from resnet_det.data.classification import cifar100
from resnet_det.data.classification.small_images import SmallImages

NAMES = [f"class {number:02}" for number in range(100)]


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A folder of 200 images to train on and 100 to test on."""
    monkeypatch.setattr(
        cifar100, "SPLITS", {"cifar100_train": ("train", 200), "cifar100_test": ("test", 100)}
    )
    folder, rng = tmp_path / cifar100.FOLDER, np.random.default_rng(0)
    folder.mkdir()
    for name, count in (("train", 200), ("test", 100)):
        labels = rng.permutation(np.arange(count) % 100).tolist()
        batch = {"data": rng.integers(0, 256, (count, 3072), np.uint8), "fine_labels": labels}
        batch["coarse_labels"] = [label // 5 for label in labels]
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    meta = {"fine_label_names": NAMES, "coarse_label_names": [str(i) for i in range(20)]}
    (folder / "meta").write_bytes(pickle.dumps(meta, protocol=2))
    return folder


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("split", ["train", "test"])
def test_it_is_torchvisions(archive, monkeypatch, split, packed):
    from torchvision.datasets import CIFAR100

    monkeypatch.setattr(CIFAR100, "_check_integrity", lambda self: True)  # not the whole archive
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    theirs = CIFAR100(archive.parent, train=split == "train")
    if packed:
        with tarfile.open(archive.parent / cifar100.ARCHIVE, "w:gz") as tar:
            tar.add(archive, cifar100.FOLDER)
        archive.rename(archive.parent / "elsewhere")
    ours = SmallImages.read(f"cifar100_{split}", "RGB", archive.parent)
    assert np.array_equal(ours.images.permute(0, 2, 3, 1).numpy(), theirs.data)
    assert ours.labels.tolist() == theirs.targets
    assert ours.classes == tuple(theirs.classes)


def test_it_is_found_and_checked(archive, tmp_path):
    assert {"cifar100_train", "cifar100_test"} <= set(dataset_names("classification"))
    assert missing("cifar100_train", tmp_path) is None
    assert missing("cifar100_train", tmp_path / "else").endswith("else/cifar-100-python")
    report = check_dataset("cifar100_train", tmp_path)
    assert (report.images, report.units, report.faults) == (200, 100, [])
    assert report.details == ["2 to 2 images per class"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train", {"data": np.zeros((200, 3072), np.uint8)}, "holds no 'data' and 'fine_labels'"),
        ("train", {"data": np.zeros((9, 3072), np.uint8), "fine_labels": [0]}, "not a uint8 array"),
        ("train", {"data": np.zeros((200, 3072), np.uint8), "fine_labels": [100] * 200},
         "image 0 has the label 100, not 0 to 99"),
        ("meta", {"fine_label_names": NAMES[1:]}, "not a list of 100 names"),
        ("meta", {}, "holds no 'fine_label_names'"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named(archive, file, content, message):
    (archive / file).write_bytes(pickle.dumps(content))
    with pytest.raises(DatasetError, match=rf"cifar-100-python/{file}: .*{message}"):
        SmallImages.read("cifar100_train", "RGB", archive.parent)


def test_an_archive_that_is_cut_off_is_named(archive, tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(archive, cifar100.FOLDER)
    archive.rename(tmp_path / "elsewhere")
    words = "holds no CIFAR-100: .*get_data.py cifar100.* put cifar-100-python or"
    with pytest.raises(DatasetError, match=words):
        SmallImages.read("cifar100_test", "RGB", tmp_path)
    (tmp_path / cifar100.ARCHIVE).write_bytes(buffer.getvalue()[:-2000])  # of the last file, train
    with pytest.raises(DatasetError, match=r"cifar-100-python\.tar\.gz: is not a complete"):
        SmallImages.read("cifar100_train", "RGB", tmp_path)
