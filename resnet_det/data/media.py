"""Find images and videos by paths, folders and patterns, and read and write videos."""

import glob
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..files import whole_file
from ..records import DatasetError
from .image_files import EXTENSIONS as IMAGES
from .image_files import files_below
from .pixels import ImageError

logger = logging.getLogger(__name__)

VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")


def is_video(path: str | Path) -> bool:
    return Path(path).suffix.lower() in VIDEOS


def find_media(sources: Sequence[str | Path], leave_out: str | Path = "") -> list[Path]:
    """Find the images and videos that files, folders and patterns such as "photos/*.jpg" name.

    A path that does not exist is returned as it is: reading it raises the error. A folder, also one
    that a pattern matches, stands for the images and videos in it and in its subfolders, in
    alphabetical order; hidden files are ignored. A log line counts the files that are neither
    images nor videos. Each file is returned once.

    Args:
        leave_out: a folder whose files are left out unless they are named one by one.

    Raises:
        DatasetError: a folder or pattern holds neither images nor videos.
    """
    found: dict[str, Path] = {}
    for source in sources:
        path = Path(source)
        files = [path]
        if path.is_dir():
            files = _choose(source, files, leave_out)
        elif not path.exists() and glob.has_magic(str(source)):
            matches = sorted(map(Path, glob.glob(str(source), recursive=True)))
            files = _choose(source, matches, leave_out)
        found |= {os.path.abspath(file): file for file in files}
    return list(found.values())


def _choose(source: str | Path, paths: Sequence[Path], leave_out: str | Path) -> list[Path]:
    """The images and videos among the files and in the folders that a source stands for."""
    files = kept = list(dict.fromkeys(file for path in paths for file in _files(path)))
    if leave_out:
        inside = os.path.abspath(leave_out)
        kept = [file for file in files if not Path(os.path.abspath(file)).is_relative_to(inside)]
    known = [file for file in kept if file.suffix.lower() in IMAGES + VIDEOS]
    others = Counter(file.suffix for file in kept) - Counter(file.suffix for file in known)
    if others:
        kinds = ", ".join(f"{n} {suffix or 'without suffix'}" for suffix, n in others.most_common())
        logger.warning("%s: left out what is neither an image nor a video: %s", source, kinds)
    if not known:
        but = f", apart from files in {leave_out}" if len(kept) < len(files) else ""
        raise DatasetError(source, f"holds neither images nor videos{but}")
    return known


def _files(path: Path) -> list[Path]:
    """The files of a folder and of its subfolders, or a file itself, unless it is a dead link."""
    if path.is_dir():
        return sorted(map(Path, files_below(str(path), [""])))
    return [path] if path.is_file() else []


def read_frames(path: str | Path) -> Iterator[np.ndarray]:
    """Decode a video's frames one by one, turned upright: uint8 RGB (H, W, 3).

    Raises:
        ImageError: the file is missing or damaged, or holds no video.
    """
    frame = None
    with _opened(path) as container:
        for frame in container.decode(video=0):
            turns = round(frame.rotation / 90)
            yield np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))
    if frame is None:
        raise ImageError(path, "holds no frame that can be decoded")


def frame_rate(path: str | Path) -> Fraction:
    """Frames per second of a video; 25 if the file does not say.

    Raises:
        ImageError: see :func:`read_frames`.
    """
    with _opened(path) as container:
        return container.streams.video[0].average_rate or Fraction(25)


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    """Open a video. Any error from FFmpeg in the body becomes an ImageError."""
    av = _pyav(path)
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ImageError(path, "holds no video")
            yield container
    except av.error.FFmpegError as error:
        raise ImageError(path, f"cannot be decoded: {error.strerror}") from error


def write_video(path: str | Path, frames: Iterator[np.ndarray], rate: Fraction) -> None:
    """Write frames, uint8 RGB (H, W, 3), as an MP4 that browsers play (H.264, without sound).

    The last row or column is repeated if their number is odd, which H.264 does not allow. An error
    leaves no partial file.
    """
    av = _pyav(path)
    with whole_file(path) as file, av.open(str(file), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "20"})
        stream.pix_fmt = "yuv420p"
        for pixels in frames:
            height, width = pixels.shape[:2]
            pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
            if not stream.codec_context.is_open:
                stream.height, stream.width = pixels.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def _pyav(path: str | Path) -> ModuleType:
    """The package av (PyAV).

    It bundles FFmpeg, so that nothing else needs to be installed, and gives frames as arrays.
    """
    try:
        import av
    except ImportError:
        raise ImageError(path, "videos need PyAV: pip install av") from None
    return av
