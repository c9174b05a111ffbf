"""Folders of classes, and batches of small images, against direct indexing."""

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_det.data.classification.image_folder import read_folder
from resnet_det.data.classification.small_images import SmallImages
from resnet_det.records import DatasetError


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("cat", 2), ("ant", 3)):
        (tmp_path / name).mkdir()
        for i in range(count):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    return tmp_path


def test_read_folder_is_torchvisions(folder):
    from torchvision.datasets import ImageFolder

    files, labels, classes = read_folder(folder)
    theirs = ImageFolder(folder)
    assert list(zip(files, labels)) == theirs.samples and list(classes) == theirs.classes


def test_faults_are_named(folder, tmp_path):
    (folder / "empty").mkdir()
    with pytest.raises(DatasetError, match="empty.*no image"):
        read_folder(folder)
    with pytest.raises(DatasetError, match="absent.*does not exist"):
        read_folder(tmp_path / "absent")
    with pytest.raises(DatasetError, match="cat.*no class folders"):
        read_folder(folder / "cat")
    with pytest.raises(ValueError, match="cifar10_trian.*cifar10_train"):
        SmallImages.read("cifar10_trian", "RGB")


@pytest.fixture
def data():
    rng = np.random.default_rng(1)
    images = torch.from_numpy(rng.integers(0, 256, (6, 3, 8, 8), dtype=np.uint8))
    mean, std = torch.tensor([100.0, 110, 120]).view(3, 1, 1), torch.full((3, 1, 1), 50.0)
    return SmallImages(images, torch.arange(6), tuple("abcdef"), mean, std)


def batches(data, count, **options):
    defaults = {"total_batch": 4, "size": 6, "padding": 2, "flip": True, "seed": 5}
    options = defaults | {"rank": 0, "world": 1, "start_iter": 0} | options
    stream = data.training_batches(**options)
    return [next(stream) for _ in range(count)]


def test_every_training_image_is_a_crop_of_the_padded_normalised_image(data):
    seen, mirrored = [], set()
    for images, labels in batches(data, 30):
        assert images.shape == (4, 3, 6, 6)
        for image, label in zip(images, labels):
            whole = torch.zeros(3, 12, 12)
            whole[:, 2:10, 2:10] = (data.images[label].float() - data.mean) / data.std
            crops = {
                (y, x, flip): (whole.flip(2) if flip else whole)[:, y : y + 6, x : x + 6]
                for y in range(7) for x in range(7) for flip in (False, True)
            }  # fmt: skip
            matches = [k for k, crop in crops.items() if torch.equal(crop, image)]
            assert len(matches) == 1
            mirrored.add(matches[0][2])
            seen.append(int(label))
    assert mirrored == {False, True}
    for epoch in range(20):
        assert sorted(seen[6 * epoch : 6 * epoch + 6]) == list(range(6))


def test_batches_do_not_depend_on_processes_or_interruptions(data):
    whole = batches(data, 7)
    halves = [batches(data, 7, rank=r, world=2) for r in range(2)]
    for (images, labels), (a, la), (b, lb) in zip(whole, *halves):
        assert torch.equal(images, torch.cat((a, b))) and torch.equal(labels, torch.cat((la, lb)))
    for (a, _), (b, _) in zip(whole[3:], batches(data, 4, start_iter=3)):
        assert torch.equal(a, b)


def test_test_batches_take_the_centre_of_every_image_once(data):
    parts = [list(data.test_batches(size=6, batch=2, rank=r, world=4)) for r in range(4)]
    images = torch.cat([image for part in parts for (image,), _ in part])
    labels = torch.cat([label for part in parts for _, label in part])
    assert labels.tolist() == list(range(6))
    centre = (data.images[:, :, 1:7, 1:7].float() - data.mean) / data.std
    assert torch.equal(images, centre)


def test_mean_image_is_subtracted_where_the_pixels_were(data):
    image = data.mean_image()
    assert torch.allclose(image.double(), data.images.double().mean(0), atol=1e-5)
    data.normalise_by(image, [1.0, 1.0, 1.0])
    centred = torch.cat([x for (x,), _ in data.test_batches(size=8)])
    assert torch.equal(centred, data.images.float() - image)
    assert centred.double().mean(0).abs().max() < 1e-5
    # A crop in training has the pixel's own mean subtracted, not that of the cell it ends up in.
    images, labels = batches(data, 1, size=12, flip=False)[0]
    assert torch.equal(images[0, :, 2:10, 2:10], centred[labels[0]])
    with pytest.raises(ValueError, match=r"\(9, 8\) pixels, but the images have \(8, 8\)"):
        data.normalise_by(torch.zeros(3, 9, 8), 1.0)


def test_sizes_that_cannot_be(data):
    with pytest.raises(ValueError, match="IMS_PER_BATCH"):
        batches(data, 1, world=3)
    with pytest.raises(ValueError, match="crop of 20 pixels"):
        batches(data, 1, size=20)
