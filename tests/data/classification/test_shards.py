"""ImageNet from tar shards, which tarfile writes here, against the same images as files."""

import functools
import http.server
import io
import sys
import tarfile
import threading
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_det.data import pixels
from resnet_det.data.classification import shards
from resnet_det.data.classification.large_images import Crops, LargeImages, RandomCrop
from resnet_det.data.jitter import NO_JITTER
from resnet_det.records import DatasetError

pytest.importorskip("webdataset")


def add(tar, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def root(tmp_path):
    """4 shards of 6, 5, 4 and 3 images of one colour each, all different; 3 classes."""
    folder, grey = tmp_path / "imagenet_shards", 10
    folder.mkdir()
    (folder / "classes.txt").write_text("n0\nn1\nn2\n")
    for split in ("train", "val"):
        for number in range(4):
            with tarfile.open(folder / f"{split}-{number:06d}.tar", "w") as tar:
                for i in range(6 - number):
                    content = io.BytesIO()
                    Image.new("RGB", (50, 44), (grey % 250,) * 3).save(content, "jpeg", quality=95)
                    add(tar, f"{number}/{i:04d}.jpg", content.getvalue())
                    add(tar, f"{number}/{i:04d}.cls", b"%d" % (i % 3))
                    grey += 6 if split == "train" else 0
    return tmp_path


def read(root, name="imagenet_train_shards", **options):
    return LargeImages.read(
        name, "RGB", root, **({"short_sizes": (36, 40), "views": Crops(40)} | options)
    )


def stream(data, **options):
    defaults = {"total_batch": 2, "size": 32, "flip": True, "seed": 5, "rank": 0, "world": 1}
    return data.training_batches(**(defaults | {"start_iter": 0} | options))


def greys(images):
    return images.mean((1, 2, 3)).round().int().tolist()


def test_two_classes_of_one_name_are_refused(root):
    (root / "imagenet_shards/classes.txt").write_text("n0\nn1\nn0\n")
    with pytest.raises(DatasetError, match=r"classes\.txt: names two classes 'n0'"):
        read(root)


def test_the_list_of_classes_is_read_in_unicode(root):
    names = root / "imagenet_shards/classes.txt"
    for encoding in ("utf-8-sig", "utf-16"):
        names.write_text("n0\nn1\ngröße\n", encoding)
        assert read(root).classes == ("n0", "n1", "größe")
    names.write_text("n0\nn1\ngröße\n", "cp1252")
    with pytest.raises(DatasetError, match=r"classes\.txt: is not text in UTF-8 .*save it as"):
        read(root)


def test_same_pixels_as_the_files(root, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "x.jpg")
    held = pixels.ImageBytes((tmp_path / "x.jpg").read_bytes(), "x")
    crop = RandomCrop((64, 90), "range", 48, True, NO_JITTER, True, "BGR")
    for seed in range(4):
        ours, file = (
            crop((source, 1), np.random.default_rng(seed)) for source in (held, tmp_path / "x.jpg")
        )
        assert (ours[0] == file[0]).all() and (ours[2] == file[2]).all()


def test_a_pass_holds_every_image_once_over_processes_and_workers(root):
    """2 processes x 2 workers: one shard each, so a worker's passes are its shards in turn."""
    expected = set(range(10, 10 + 6 * 18, 6))
    first = Counter()
    for rank in range(2):
        batches = stream(read(root, num_workers=2), total_batch=2, rank=rank, world=2)
        seen = [[], []]  # of each worker: batches come from them in turn
        for i, (images, _) in zip(range(12), batches):
            seen[i % 2] += greys(images)
        for values in seen:  # ends where the worker's shard is through: its size is known
            for number in range(4):
                base = 10 + 6 * sum(6 - n for n in range(number))
                shard = set(range(base, base + 6 * (6 - number), 6))
                if values[0] in shard:
                    assert set(values[: len(shard)]) == shard
                    first.update(values[: len(shard)])
    assert first == Counter(expected)


def test_one_process_goes_through_all_before_it_repeats(root):
    batches = stream(read(root))
    seen = [value for _, (images, _) in zip(range(18), batches) for value in greys(images)]
    assert len(set(seen[:18])) == 18 and set(seen[18:]) == set(seen[:18])
    assert seen[:18] != sorted(seen[:18]) and seen[:18] != seen[18:]


def test_the_same_command_gives_the_same_batches(root):
    def some(num_workers=0, **options):
        batches = stream(read(root, num_workers=num_workers, color_pca=True), **options)
        return torch.cat([images for _, (images, _) in zip(range(4), batches)])

    assert torch.equal(some(num_workers=2), some(num_workers=2))
    whole, resumed = some(), some(start_iter=7)
    assert torch.equal(whole, some()) and not torch.equal(whole, some(seed=6))
    assert torch.equal(resumed, some(start_iter=7))  # a pass of its own
    assert not torch.equal(whole, resumed)


@pytest.mark.parametrize("world", [1, 5])
def test_evaluation_sees_every_image_once(root, world):
    data = read(root, "imagenet_val_shards", num_workers=1)
    labels = [x for r in range(world) for _, part in data.test_batches(size=32, rank=r, world=world) for x in part.tolist()]  # fmt: skip
    assert Counter(labels) == {0: 2 + 2 + 2 + 1, 1: 2 + 2 + 1 + 1, 2: 2 + 1 + 1 + 1}


@pytest.mark.parametrize("kept", [100, 512, 512 + 300, 3 * 1024])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_shard_cut_short_is_named(root, kept, num_workers):
    file = root / "imagenet_shards" / "train-000002.tar"
    file.write_bytes(file.read_bytes()[:kept])
    for skip_bad in (False, True):
        with pytest.raises(DatasetError, match="train-000002.tar"):
            list(zip(range(18), stream(read(root, num_workers=num_workers, skip_bad=skip_bad))))


def test_broken_images_are_named_or_left_out_and_counted(root, caplog):
    with tarfile.open(root / "imagenet_shards" / "train-000004.tar", "w") as tar:
        add(tar, "a.jpg", b"no image")
        add(tar, "a.cls", b"1")
    with pytest.raises(DatasetError, match="train-000004.tar: a: not an image"):
        list(zip(range(18), stream(read(root))))
    batches = stream(read(root, skip_bad=True))
    seen = [value for _, (images, _) in zip(range(9), batches) for value in greys(images)]
    next(batches)
    assert len(set(seen)) == 18 and "(1 unusable so far)" in caplog.text


@pytest.mark.parametrize(
    "name, content, message", [("a.jpg", b"x", "lacks"), ("a.cls", b"n01", "is not an integer")]
)
def test_samples_that_are_none(root, name, content, message):
    with tarfile.open(root / "imagenet_shards" / "val-000000.tar", "w") as tar:
        add(tar, "a.jpg", b"x")
        if name != "a.jpg":
            add(tar, name, content)
    with pytest.raises(DatasetError, match=f"val-000000.tar: a.*{message}"):
        list(read(root, "imagenet_val_shards").test_batches(size=32))


def test_shards_over_http_and_by_path(root):
    folder = root / "imagenet_shards"
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    (folder / "val.txt").write_text(f"{url}/val-000000.tar\nval-000003.tar\n")
    batches = list(read(root, "imagenet_val_shards").test_batches(size=32))
    assert sum(len(labels) for _, labels in batches) == 6 + 3
    (folder / "val.txt").write_text(f"{url}/absent.tar\n")
    with pytest.raises(DatasetError, match="absent.tar"):
        list(read(root, "imagenet_val_shards").test_batches(size=32))
    server.shutdown()


def test_what_cannot_be_is_refused_by_name(root, monkeypatch):
    folder = root / "imagenet_shards"
    with pytest.raises(DatasetError, match="4 shards are too few for 6 workers"):
        next(stream(read(root, num_workers=3), world=2))
    with pytest.raises(ValueError, match="PER_PIXEL_MEAN"):
        read(root).mean_image(32)
    for line in ("pipe:touch made", "file:/x.tar", "s3://x/y.tar"):
        (folder / "train.txt").write_text(line)
        with pytest.raises(DatasetError, match=f"train.txt: '{line}' is neither"):
            read(root)
    (folder / "train.txt").unlink()
    (folder / "classes.txt").write_text("n0\nn1\n")
    with pytest.raises(DatasetError, match="its .cls is 2, not 0 to 1"):
        list(zip(range(9), stream(read(root))))
    (folder / "classes.txt").unlink()
    with pytest.raises(DatasetError, match="classes.txt"):
        read(root)
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(DatasetError, match="pip install webdataset"):
        shards.find(folder, "train")
