"""CIFAR-10's two archive layouts, written here from their description, and errors for bad
archives."""

import io
import pickle
import tarfile

import numpy as np
import pytest
import torch

from resnet_det.data import DatasetError
from resnet_det.data.classification import cifar10
from resnet_det.data.classification.small_images import SmallImages

COUNT = 20  # images in each file of the small archives below
FILES = [*cifar10.TRAIN, "test_batch"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(cifar10, "PER_FILE", COUNT)


@pytest.fixture(scope="module")
def truth():
    """file -> (images (COUNT, 32, 32, 3) as one looks at them, labels)."""
    rng = np.random.default_rng(0)
    return {
        f: (rng.integers(0, 256, (COUNT, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, COUNT))
        for f in FILES
    }


def binary(images, labels):
    """A label byte, then the red, green and blue maps, row by row."""
    planes = [np.concatenate([i[..., c].ravel() for c in range(3)]) for i in images]
    return b"".join(bytes([label]) + plane.tobytes() for label, plane in zip(labels, planes))


def python2(images, labels):
    """Pickle the data as numpy under Python 2 did: byte strings instead of text."""
    data = images.transpose(0, 3, 1, 2).reshape(COUNT, 3072)
    return _Python2.dumps({"batch_label": "batch", "labels": labels.tolist(), "data": data})


class _Python2(pickle._Pickler):
    """Python 2's protocol 2: text goes out as its 8-bit strings (opcode SHORT_BINSTRING)."""

    @classmethod
    def dumps(cls, value):
        buffer = io.BytesIO()
        cls(buffer, protocol=2).dump(value)
        return buffer.getvalue()

    def save_text(self, text):
        self.write(pickle.SHORT_BINSTRING + bytes([len(text)]) + text.encode("latin1"))

    def save_bytes(self, content):  # an array's pixels
        self.write(pickle.BINSTRING + len(content).to_bytes(4, "little") + content)

    dispatch = pickle._Pickler.dispatch | {str: save_text, bytes: save_bytes}


LAYOUTS = {
    "cifar-10-batches-bin": (binary, ".bin", "cifar-10-binary.tar.gz"),
    "cifar-10-batches-py": (python2, "", "cifar-10-python.tar.gz"),
}


def write(root, truth, folder, packed):
    make, suffix, archive = LAYOUTS[folder]
    content = {name + suffix: make(*truth[name]) for name in FILES}
    if not packed:
        (root / folder).mkdir()
        for name, data in content.items():
            (root / folder / name).write_bytes(data)
        return root / folder
    with tarfile.open(root / archive, "w:gz") as tar:
        for name, data in {"readme.html": b"about", **content}.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return root / archive


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("folder", LAYOUTS)
def test_every_layout_reads_the_same_images(tmp_path, truth, folder, packed):
    write(tmp_path, truth, folder, packed)
    images = np.concatenate([truth[f][0] for f in cifar10.TRAIN])
    labels = np.concatenate([truth[f][1] for f in cifar10.TRAIN])
    for name, part in (
        ("cifar10_train", slice(0, 5 * COUNT)),
        ("cifar10_train45k", slice(0, 9 * COUNT // 2)),
        ("cifar10_val5k", slice(9 * COUNT // 2, 5 * COUNT)),
    ):
        rgb, bgr = (SmallImages.read(name, order, tmp_path) for order in ("RGB", "BGR"))
        assert np.array_equal(rgb.images.permute(0, 2, 3, 1).numpy(), images[part])
        assert torch.equal(bgr.images, rgb.images.flip(1))
        assert rgb.labels.tolist() == labels[part].tolist()
        assert rgb.classes[3] == "cat" and len(rgb.classes) == 10
    test = SmallImages.read("cifar10_test", "RGB", tmp_path)
    assert np.array_equal(test.images.permute(0, 2, 3, 1).numpy(), truth["test_batch"][0])


def refused(root, words, name="cifar10_train"):
    with pytest.raises(DatasetError, match=words):
        cifar10.read(name, root)


def test_faults_of_files_are_named(tmp_path, truth):
    refused(tmp_path, "holds no CIFAR-10: .* put one of cifar-10-batches-py")
    folder = write(tmp_path, truth, "cifar-10-batches-bin", packed=False)
    third = folder / "data_batch_3.bin"
    whole = third.read_bytes()
    third.write_bytes(whole[:-1])
    refused(tmp_path, r"data_batch_3.bin: has 61,459 bytes instead of 61,460")
    third.write_bytes(whole[: 3073 * 7] + b"\x0a" + whole[3073 * 7 + 1 :])
    refused(tmp_path, "data_batch_3.bin: image 7 has the label 10")
    third.unlink()
    refused(tmp_path, "data_batch_3.bin: cannot be read: No such file")
    cifar10.read("cifar10_test", tmp_path)  # needs its own file only


def test_faults_of_archives_are_named(tmp_path, truth):
    archive = write(tmp_path, truth, "cifar-10-batches-py", packed=True)
    whole = archive.read_bytes()
    for cut in (0, 10, len(whole) // 2):
        archive.write_bytes(whole[:cut])
        refused(tmp_path, "cifar-10-python.tar.gz: is not a complete .tar.gz")
    with tarfile.open(archive, "w:gz"):
        pass
    refused(tmp_path, "lacks cifar-10-batches-py/data_batch_1")


class Hostile:
    def __reduce__(self):
        import os

        return os.system, ("touch hostile_was_here",)


@pytest.mark.parametrize(
    "content, words",
    [
        (pickle.dumps({"data": Hostile(), "labels": []}), "would call .*system.* not allowed"),
        (pickle.dumps([1, 2]), "holds no 'data' and 'labels'"),
        (pickle.dumps({"data": np.zeros((3, 3072), np.uint8), "labels": [0]}), "not a uint8 array"),
        (pickle.dumps({"data": np.zeros((COUNT, 3072)), "labels": [0]}), "not a uint8 array"),
        (
            pickle.dumps({"data": np.zeros((COUNT, 3072), np.uint8), "labels": ["a"] * COUNT}),
            "not a list of integers",
        ),
        (
            pickle.dumps({"data": np.zeros((COUNT, 3072), np.uint8), "labels": [0]}),
            "1 labels for 20 images",
        ),
        (b"", "holds no readable arrays"),
    ],
)
def test_a_pickle_runs_no_code_and_must_be_a_batch(tmp_path, monkeypatch, content, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py/test_batch").write_bytes(content)
    refused(tmp_path, f"test_batch: .*{words}", "cifar10_test")
    assert not (tmp_path / "hostile_was_here").exists()
