"""Checking images before use: each version of a file is decoded once, and every bad one is
named."""

import os

import numpy as np
import pytest
from PIL import Image

from resnet_det.data import ImageError, image_check, pixels
from resnet_det.data.image_check import cache_folder, unusable
from resnet_det.records import together


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RESNET_DET_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that are decoded in this process, in order."""
    names, read = [], pixels.read_image

    def noting(path, *args, **options):
        names.append(os.path.basename(path))
        return read(path, *args, **options)

    monkeypatch.setattr(pixels, "read_image", noting)
    return names


@pytest.fixture
def records(tmp_path):
    made = []
    for number in range(4):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (8, 6), (number, 0, 0)).save(path)
        made.append({"file_name": str(path), "height": 6, "width": 8})
    return made


def test_what_was_decoded_is_not_decoded_again(records, decoded):
    assert unusable(records) == []
    assert decoded == ["0.png", "1.png", "2.png", "3.png"]
    decoded.clear()
    assert unusable(records) == [] and decoded == []
    Image.new("RGB", (8, 6), (9, 9, 9)).save(records[1]["file_name"])  # another time
    os.utime(records[1]["file_name"], ns=(0, 12345))
    file = os.stat(records[2]["file_name"])
    with open(records[2]["file_name"], "ab") as end:  # another size
        end.write(b"\0")
    os.utime(records[2]["file_name"], ns=(file.st_atime_ns, file.st_mtime_ns))
    assert unusable(records) == [] and decoded == ["1.png", "2.png"]
    decoded.clear()
    os.rename(records[0]["file_name"], records[0]["file_name"] + "x")  # another path
    records[0]["file_name"] += "x"
    assert unusable(records) == [] and decoded == ["0.pngx"]


@pytest.mark.parametrize("workers", [0, 2])
def test_every_unusable_image_is_named_and_none_is_remembered(records, monkeypatch, workers):
    monkeypatch.setattr(image_check, "FEW", 1)
    files = [record["file_name"] for record in records]
    os.unlink(files[0])
    with open(files[1], "r+b") as file:
        file.truncate(40)
    Image.fromarray(np.full((6, 8), 200, np.float32)).save(files[2], "TIFF")
    records.append(records[3] | {"height": 7})
    for _ in range(2):
        faults = {fault.file: fault.what for fault in unusable(records, workers)}
        assert list(faults) == [*files[:3], files[3]]
        assert faults[files[0]] == "missing image file"
        assert "decoded" in faults[files[1]] or "not an image" in faults[files[1]]
        assert "pixel mode F" in faults[files[2]]
        assert faults[files[3]] == "is 8 x 6 pixels, but its annotation says 8 x 7"


def test_a_cache_that_cannot_be_written_is_no_error(
    records, decoded, tmp_path, monkeypatch, caplog
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RESNET_DET_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        assert unusable(records) == []
    assert len(decoded) == 8 and "cannot be written" in caplog.text


def test_a_spoilt_cache_is_no_error(records, decoded, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/decoded_images.txt").write_bytes(b"\xff\x00abc\n\n")
    assert unusable(records) == [] and len(decoded) == 4


def test_the_folder_of_the_cache(monkeypatch):
    assert cache_folder() == os.environ["RESNET_DET_CACHE"]
    monkeypatch.delenv("RESNET_DET_CACHE")
    monkeypatch.setenv("TORCH_HOME", "/x/torch")
    assert cache_folder() == "/x/torch/resnet_det"


def test_several_faults_in_one_error():
    faults = [ImageError(f"{number}.jpg", "broken") for number in range(12)]
    assert together("set", faults[:1]) is faults[0]
    text = str(together("set", faults))
    assert text.startswith("set: 12 images cannot be used:\n  0.jpg: broken\n")
    assert text.endswith("  9.jpg: broken\n  and 2 more")
