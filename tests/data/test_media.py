"""Finding images and videos, and reading and writing videos."""

import sys
from fractions import Fraction

import numpy as np
import pytest

from resnet_det.data import ImageError, media
from resnet_det.records import DatasetError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.jpg", "a.PNG", "deep/er/c.webp", "clip.MP4", "notes.txt", "out/b.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "photos/folder.jpg").mkdir()
    return tmp_path


def found(*sources, **options):
    return [file.as_posix() for file in media.find_media(sources, **options)]


def test_files_folders_and_patterns(folder):
    everything = ["a.PNG", "b.jpg", "clip.MP4", "deep/er/c.webp", "out/b.png"]
    assert found("photos") == [f"photos/{name}" for name in everything]
    assert found("photos", leave_out="photos/out") == [f"photos/{x}" for x in everything[:-1]]
    assert found("photos", leave_out="photos/../photos/out") == found(
        "photos/*", leave_out="photos/out"
    )
    assert found("photos/out/b.png", leave_out="photos/out") == ["photos/out/b.png"]
    assert found("photos/*.jpg") == ["photos/b.jpg"]
    assert found("photos/**/*.webp") == ["photos/deep/er/c.webp"]
    assert found("photos/*") == found("photos/**") == [f"photos/{name}" for name in everything]
    assert found("photos/[do]*") == ["photos/deep/er/c.webp", "photos/out/b.png"]
    # Reading these will say what they are.
    assert found("photos/notes.txt", "absent.jpg") == ["photos/notes.txt", "absent.jpg"]
    (folder / "[1].jpg").touch()
    assert found("[1].jpg") == ["[1].jpg"]


def test_what_a_folder_holds_beside_them_is_counted(folder, caplog):
    for name in (".hidden.jpg", ".cache/c.jpg", "._a.PNG", "1.heic", "2.heic", "3.jfif"):
        path = folder / "photos" / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    names = ["3.jfif", "a.PNG", "b.jpg", "clip.MP4", "deep/er/c.webp", "out/b.png"]
    assert found("photos") == [f"photos/{name}" for name in names]
    (line,) = caplog.messages
    assert line.startswith("photos: left out") and line.endswith(": 2 .heic, 1 .txt")
    assert found("photos/*.jfif") == ["photos/3.jfif"]


def test_a_file_that_is_named_twice_is_found_once(folder):
    assert (
        found("photos/b.jpg", "photos", "photos/../photos/b.jpg", "photos/*")[0] == "photos/b.jpg"
    )
    assert len(found("photos/b.jpg", "photos", "photos/../photos/b.jpg", "photos/*")) == 5


@pytest.mark.parametrize("source, words", [
    ("photos/*.gif", "holds neither images nor videos"),
    ("photos/folder.jpg", "folder.jpg: holds neither images nor videos"),
])  # fmt: skip
def test_a_source_without_files_is_an_error(folder, source, words):
    with pytest.raises(DatasetError, match=words):
        found("photos/b.jpg", source)


def frames(count=6, height=48, width=64):
    """Frames in which a bright square moves to the right."""
    for number in range(count):
        frame = np.full((height, width, 3), 40, np.uint8)
        frame[8:24, 8 * number : 8 * number + 16] = (220, 120, 60)
        yield frame


def write(path, pictures, rate=10):
    pytest.importorskip("av")
    media.write_video(path, iter(pictures), Fraction(rate))
    return path


@pytest.mark.parametrize("height, width", [(48, 64), (47, 63)])
def test_a_video_holds_the_frames_that_were_written(tmp_path, height, width):
    written = list(frames(height=height, width=width))
    path = write(tmp_path / "clip.mp4", written)
    read = list(media.read_frames(path))
    assert media.frame_rate(path) == 10 and len(read) == len(written)
    for frame, expected in zip(read, written):
        assert frame.shape == (48, 64, 3) and frame.dtype == np.uint8
        assert np.abs(frame[:height, :width].astype(int) - expected).mean() < 6  # H.264 is lossy


def test_a_phones_video_is_turned_upright(tmp_path):
    av = pytest.importorskip("av")
    path = write(tmp_path / "clip.mp4", frames(1))
    # A display matrix in the track's header turns the picture by a quarter, clockwise.
    data = path.read_bytes()
    at = data.index(b"tkhd") + 4 + 4 + 36
    one = 1 << 16
    matrix = np.array([0, one, 0, -one, 0, 0, 48 << 16, 0, 1 << 30], ">i4").tobytes()
    path.write_bytes(data[:at] + matrix + data[at + len(matrix) :])
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).rotation in (90, -90)
    (frame,) = media.read_frames(path)
    expected = np.rot90(next(frames(1)), -1)
    assert np.abs(frame.astype(int) - expected).mean() < 6


def test_videos_that_cannot_be_read(tmp_path):
    path = write(tmp_path / "clip.mp4", frames())
    content = path.read_bytes()
    for name, data in (("cut.mp4", content[: len(content) // 2]), ("text.mp4", b"no video")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError, match=f"{name}: cannot be decoded"):
            list(media.read_frames(tmp_path / name))
        with pytest.raises(ImageError, match=f"{name}: cannot be decoded"):
            media.frame_rate(tmp_path / name)
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "whole.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for picture in frames():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    header, cluster, _ = (tmp_path / "whole.mkv").read_bytes().partition(b"\x1f\x43\xb6\x75")
    (tmp_path / "header.mkv").write_bytes(header + cluster)
    with pytest.raises(ImageError, match="header.mkv: holds no"):
        list(media.read_frames(tmp_path / "header.mkv"))
    with pytest.raises(ImageError, match="absent.mp4: cannot be decoded: No such file"):
        list(media.read_frames(tmp_path / "absent.mp4"))


def test_an_interrupted_video_leaves_no_file(tmp_path):
    def broken():
        yield from frames(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "clip.mp4", broken())
    assert list(tmp_path.iterdir()) == []


def test_without_pyav_a_video_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImageError, match="clip.mp4: videos need PyAV: pip install av"):
        list(media.read_frames("clip.mp4"))
