"""Large images: crops against reading, resizing and slicing by hand; views against
torchvision's."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import CenterCrop, FiveCrop, Resize, TenCrop

from resnet_det.data import pixels
from resnet_det.data.classification import large_images
from resnet_det.data.classification.large_images import (
    Crops,
    LargeImages,
    RandomCrop,
    Scales,
)
from resnet_det.data.jitter import NO_JITTER, ColorJitter
from resnet_det.data.pixels import draw_size

MEAN, STD = [100.0, 110.0, 120.0], [50.0, 60.0, 70.0]


def picture(height, width, seed=0):
    """A smooth image with some noise, so that its JPEG is close to it."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=float)
    return Image.fromarray((smooth + rng.normal(0, 4, smooth.shape)).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """imagenet/train and imagenet/val: 3 classes, 4 and 3 images each, of differing sizes."""
    root = tmp_path_factory.mktemp("datasets")
    sizes = [(70, 50), (48, 90), (120, 150), (41, 41)]
    for split, count in (("train", 4), ("val", 3)):
        for label in range(3):
            folder = root / "imagenet" / split / f"n{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                file = folder / f"{i}.JPEG"
                picture(*sizes[(i + label) % 4], seed=10 * label + i).save(file, quality=95)
    return root


def read(root, name="imagenet_train", **options):
    options = {"short_sizes": (36, 60), "views": Crops(40)} | options
    data = LargeImages.read(name, "BGR", root, **options)
    data.normalise_by(MEAN, STD)
    return data


def batches(data, count, **options):
    defaults = {"total_batch": 4, "size": 32, "flip": True, "seed": 5, "rank": 0, "world": 1}
    stream = data.training_batches(**(defaults | {"start_iter": 0} | options))
    return [next(stream) for _ in range(count)]


@pytest.mark.parametrize("format", ["RGB", "BGR"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_crop_is_a_slice_of_the_resized_image(tmp_path, mode, format):
    file = tmp_path / "x.jpg"
    picture(150, 201).convert(mode).save(file)
    whole = pixels.resize(pixels.read_image(file, format), 97, 130).astype(int)
    for top, left in ((0, 0), (97 - 64, 130 - 64), (11, 30)):
        crop = pixels.read_crop(file, lambda h, w: (97, 130, top, left), 64, format, scaled=False)  # noqa: B023
        assert crop.shape == (64, 64, 3) and crop.flags["C_CONTIGUOUS"] and crop.flags["WRITEABLE"]
        assert abs(crop - whole[top : top + 64, left : left + 64]).max() <= 1
    mirrored = pixels.read_crop(
        file, lambda h, w: (97, 130, 11, 30), 64, format, scaled=False, mirror=True
    )
    assert (mirrored == crop[:, ::-1]).all()


def test_a_turned_image_is_cropped_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    picture(150, 201).save(tmp_path / "x.jpg", exif=exif)
    whole = pixels.resize(pixels.read_image(tmp_path / "x.jpg"), 134, 100).astype(int)
    seen = []
    crop = pixels.read_crop(
        tmp_path / "x.jpg", lambda h, w: seen.append((h, w)) or (134, 100, 5, 7), 64
    )
    assert seen == [(201, 150)]
    assert abs(crop - whole[5:69, 7:71]).max() <= 1


def test_scaled_decoding_changes_little(tmp_path):
    file = tmp_path / "x.jpg"
    picture(640, 800).save(file, quality=90)
    for height in (80, 130, 200, 320):  # at 1/8, 1/4, 1/2 and 1/2
        place = (height, height * 5 // 4, 3, 5)
        scaled, full = (
            pixels.read_crop(file, lambda h, w: place, 64, scaled=s).astype(int)  # noqa: B023
            for s in (True, False)
        )
        assert (scaled != full).any()
        assert abs(scaled - full).mean() < 1.5 and abs(scaled - full).max() < 16
    place = (321, 401, 3, 5)  # more than half: decoded in full
    scaled, full = (pixels.read_crop(file, lambda h, w: place, 64, scaled=s) for s in (True, False))
    assert (scaled == full).all()


@pytest.mark.real_data
def test_scaled_decoding_changes_little_on_photographs(real_data):
    differences = []
    for file in sorted((real_data / "imagenet_samples").glob("*/*.JPEG")):
        height, width, _ = pixels.image_header(file)
        short = 256
        if min(height, width) < 2 * short:
            continue
        shape = pixels.resized_shape(height, width, short, np.inf)
        scaled, full = (
            pixels.read_crop(file, lambda h, w: (*shape, 16, 16), 224, scaled=s).astype(float)  # noqa: B023
            for s in (True, False)
        )
        differences.append(abs(scaled - full).mean())
    assert len(differences) > 10
    assert np.mean(differences) < 2 and max(differences) < 6


def test_training_images_are_normalised_crops_of_the_resized_files(root):
    """Finds each crop, its position and mirroring in its file resized to the drawn length."""
    data = read(root)
    data.short_sizes = (40, 40)  # a single length: each crop can be looked for
    windows = []
    for file, _ in data.records:
        whole = pixels.read_image(file)
        whole = pixels.resize(whole, *pixels.resized_shape(*whole.shape[:2], 40, np.inf))
        view = np.lib.stride_tricks.sliding_window_view(whole.astype(float), (32, 32, 3))
        windows.append(view[:, :, 0])
    mirrored, seen = set(), []
    for images, labels in batches(data, 6):
        pixel = images * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
        for image, label in zip(pixel.permute(0, 2, 3, 1).numpy(), labels.tolist()):
            found = [
                (index, mirror)
                for index, (_, other) in enumerate(data.records)
                if other == label
                for mirror in (False, True)
                # Below a difference of 3: the largest files were decoded at 1/2.
                if abs(windows[index] - image[:, :: -1 if mirror else 1]).mean((2, 3, 4)).min() < 3
            ]
            assert len(found) == 1
            seen.append(found[0][0])
            mirrored.add(found[0][1])
    assert mirrored == {False, True}
    for epoch in range(2):
        assert sorted(seen[12 * epoch : 12 * epoch + 12]) == list(range(12))


def test_batches_do_not_depend_on_processes_workers_or_interruptions(root):
    colors = {"color_pca": True, "jitter": ColorJitter(saturation=(0.5, 1.5))}
    data = read(root, **colors)
    whole = batches(data, 6)
    assert not torch.equal(whole[0][0], batches(read(root, color_pca=True), 1)[0][0])
    halves = [batches(read(root, **colors, num_workers=r + 1), 6, rank=r, world=2)
              for r in range(2)]  # fmt: skip
    for (images, labels), (a, la), (b, lb) in zip(whole, *halves):
        assert torch.equal(images, torch.cat((a, b))) and torch.equal(labels, torch.cat((la, lb)))
    for (a, _), (b, _) in zip(whole[4:], batches(data, 2, start_iter=4)):
        assert torch.equal(a, b)
    assert not torch.equal(whole[0][0], batches(data, 1, seed=6)[0][0])


def test_lengths_are_uniform_over_the_range():
    rng = np.random.default_rng(0)
    drawn = [draw_size((256, 480), "range", rng) for _ in range(22500)]
    counts = np.bincount(drawn)[256:]
    assert min(drawn) == 256 and max(drawn) == 480 and len(counts) == 225
    assert ((counts - 100) ** 2 / 100).sum() < 304  # chi-squared of 224, at 1 in 3,000


def test_colour_shift_is_along_the_principal_components():
    """Covariance 255^2 V diag((0.1 lambda)^2) V^T, and one shift for a whole image, BGR swapped."""
    rng = np.random.default_rng(0)
    shifts = np.stack([pixels.color_shift(rng) for _ in range(20000)]) / 255
    vectors, values = pixels.EIGENVECTORS, pixels.EIGENVALUES
    assert np.allclose(vectors.T @ vectors, np.eye(3), atol=1e-3)
    along = shifts @ vectors
    assert np.allclose(along.std(0), 0.1 * values, rtol=0.03)
    assert np.allclose(np.corrcoef(along.T), np.eye(3), atol=0.03)


def test_colour_shift_is_added_to_the_pixels(root):
    """The shift is the same for every pixel of an image and follows the channel order."""

    def shift(format):
        plain, shifted = (
            LargeImages.read("imagenet_train", format, root, color_pca=color)
            for color in (False, True)
        )
        shifted.normalise_by([0.0] * 3, [2.0] * 3)
        plain.normalise_by([0.0] * 3, [2.0] * 3)
        (plain, _), (shifted, _) = (batches(data, 1)[0] for data in (plain, shifted))
        difference = 2 * (shifted - plain)
        assert (difference - difference[:, :, :1, :1]).abs().max() < 1e-3
        return difference[:, :, 0, 0]

    rgb, bgr = shift("RGB"), shift("BGR")
    assert torch.allclose(rgb, bgr.flip(1), atol=1e-3) and rgb.std(0).min() > 0.5
    file, label = read(root).records[np.random.default_rng([5, 0]).permutation(12)[0]]
    crop = RandomCrop((256, 480), "range", 32, True, NO_JITTER, True, "RGB")
    assert np.allclose(rgb[0], crop((file, label), np.random.default_rng([5, 0]))[2], atol=1e-3)


def test_crops_against_torchvision():
    image = picture(72, 48).resize((40, 60), Image.Resampling.BILINEAR)  # margins 8 and 28
    ours = Crops(40, 10)(np.array(image), 32)
    assert [crop.tobytes() for crop in ours] == [np.array(c).tobytes() for c in FiveCrop(32)(image)]
    ten = {view.tobytes() for crop in ours for view in (crop, crop[:, ::-1])}
    assert len(ten) == 10 and ten == {np.array(c).tobytes() for c in TenCrop(32)(image)}
    (centre,) = Crops(40)(np.array(image), 32)
    assert (centre == np.array(CenterCrop(32)(image))).all()
    resized = Crops(40)(np.array(picture(80, 60)), 40)[0]  # 53 x 40
    assert (resized == np.array(Resize(40)(picture(80, 60)))[6:46]).all()


def test_ten_views_in_batches(root):
    data = read(root, "imagenet_val", views=Crops(40, 10))
    ((views, labels),) = data.test_batches(size=32)
    assert len(views) == 10 and labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for i in range(5):
        assert torch.equal(views[i + 5], views[i].flip(3))
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (MEAN, STD))
    for n, (file, _) in enumerate(data.records):
        for view, crop in zip(views, Crops(40, 10)(pixels.read_image(file), 32)):
            expected = (torch.from_numpy(crop.copy()).permute(2, 0, 1).float() - mean) / std
            assert torch.equal(view[n], expected)


def test_views_at_several_scales(root):
    data = read(root, "imagenet_val", views=Scales((32, 48), flip=True))
    seen = list(data.test_batches(size=32))
    assert len(seen) == 9
    for views, labels in seen:
        assert len(labels) == 1 and [min(view.shape[2:]) for view in views] == [32, 48, 32, 48]
        assert torch.equal(views[3], views[1].flip(3))
    assert len(next(read(root, views=Scales((32,), flip=False)).test_batches(size=32))[0]) == 1


def test_views_are_mirrored_on_the_device(root):
    """So each image is transferred once. "meta" stands for a GPU."""
    mirrored = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.flip.default:
                mirrored.append(args[0].device.type)
            return func(*args, **kwargs or {})

    data = read(root, views=Scales((40, 56), flip=True)).to("meta")
    with Watch():
        views, labels = next(data.test_batches(size=32))
    assert mirrored == ["meta"] * 2
    assert [x.device.type for x in (*views, labels)] == ["meta"] * 5


@pytest.mark.parametrize("world", [2, 4])
def test_uneven_shares_hold_every_image_once(root, world):
    data = read(root, "imagenet_val", num_workers=1)
    whole = torch.cat([views[0] for views, _ in data.test_batches(size=32)])
    parts = [views[0] for r in range(world) for views, _ in data.test_batches(size=32, rank=r, world=world)]  # fmt: skip
    assert torch.equal(torch.cat(parts), whole) and len(whole) == 9


def test_broken_images_are_named_or_left_out_and_counted(root, tmp_path, caplog):
    import shutil

    shutil.copytree(root / "imagenet", tmp_path / "imagenet")
    broken = tmp_path / "imagenet" / "train" / "n1" / "2.JPEG"
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(pixels.ImageError, match="n1/2.JPEG"):
        batches(read(tmp_path), 3)
    seen = batches(read(tmp_path, skip_bad=True, num_workers=2), 6)
    assert all(len(labels) == 4 for _, labels in seen)
    assert "n1/2.JPEG" in caplog.text and "(1 unusable so far)" in caplog.text
    good = read(tmp_path)
    good.records = [record for record in good.records if record[0] != str(broken)]
    assert len(good) == len(read(tmp_path)) - 1
    assert torch.equal(read(tmp_path, skip_bad=True).mean_image(32), good.mean_image(32))
    with pytest.raises(pixels.ImageError, match="n1/2.JPEG"):
        read(tmp_path).mean_image(32)
    with pytest.raises(pixels.ImageError, match="n1/2.JPEG"):  # a test set must be sound
        list(read(tmp_path, skip_bad=True).test_batches(size=32))


def test_mean_image(root, monkeypatch):
    """The mean over the centres of every second image at the middle length (48); then it is
    subtracted."""
    monkeypatch.setattr(large_images, "MEAN_IMAGES", 6)
    data = LargeImages.read("imagenet_train", "RGB", root, short_sizes=(36, 60), views=Crops(40))
    image = data.mean_image(32)
    crops = [Crops(48)(pixels.read_image(file, "RGB"), 32)[0] for file, _ in data.records[::2]]
    expected = torch.from_numpy(np.stack(crops)).double().mean(0).permute(2, 0, 1)
    assert torch.equal(image, expected.float())
    before = next(data.test_batches(size=32))[0][0]
    data.normalise_by(image, [2.0] * 3)
    assert torch.equal(next(data.test_batches(size=32))[0][0], (before - image) / 2)


def test_sizes_that_cannot_be(root):
    with pytest.raises(ValueError, match="IMS_PER_BATCH"):
        batches(read(root), 1, world=3)
    with pytest.raises(ValueError, match="crop of 40.*MIN_SIZE_TRAIN"):
        batches(read(root), 1, size=40)
    with pytest.raises(ValueError, match="crop of 48.*TEST.AUG.MIN_SIZES"):
        next(read(root).test_batches(size=48))
