"""Download files with resume and checksums, and unpack the datasets' archives safely and
atomically."""

import contextlib
import fcntl
import hashlib
import http.client
import os
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from tqdm import tqdm

from .files import whole_folder
from .records import DatasetError

BLOCK = 1 << 20


@dataclass(frozen=True)
class Archive:
    """A file to download.

    Attributes:
        gives: paths under the datasets' folder that the archive provides. If all exist, it is not
            downloaded.
        strip: leading folder to remove from the names of its members.
        into: subfolder of the datasets' folder to unpack to; "" means that folder itself.
        md5: checksum of the file, if its publisher or torchvision states one.
    """

    url: str
    gives: tuple[str, ...]
    md5: str = ""
    strip: str = ""
    into: str = ""

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


_VOC = "https://thor.robots.ox.ac.uk/pascal/VOC/"
_COCO = "http://images.cocodataset.org/"


def _voc(path: str, md5: str, year: int, splits: tuple[str, ...]) -> Archive:
    gives = tuple(f"VOC{year}/ImageSets/Main/{split}.txt" for split in splits)
    return Archive(_VOC + path, gives, md5, strip="VOCdevkit/")


# The checksums are torchvision.datasets'. COCO publishes none, so only the checksums of the members
# in its zip files are verified.
SETS = {
    "voc": (
        _voc("voc2007/VOCtrainval_06-Nov-2007.tar", "c52e279531787c972589f7e41ab4ae64", 2007,
             ("train", "val", "trainval")),
        _voc("voc2007/VOCtest_06-Nov-2007.tar", "b6e924de25625d8de591ea690078ad9f", 2007,
             ("test",)),
        _voc("voc2012/VOCtrainval_11-May-2012.tar", "6cd6e144f989b92b3379bac3b3de84fd", 2012,
             ("train", "val", "trainval")),
    ),
    "coco": (
        Archive(_COCO + "annotations/annotations_trainval2014.zip",
                ("coco/annotations/instances_train2014.json",
                 "coco/annotations/instances_val2014.json"), into="coco"),
        Archive(_COCO + "zips/train2014.zip", ("coco/train2014",), into="coco"),
        Archive(_COCO + "zips/val2014.zip", ("coco/val2014",), into="coco"),
    ),
    "cifar10": (
        Archive("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
                ("cifar-10-batches-py",), "c58f30108f718f92721af3b95e74349a"),
    ),
    "cifar100": (
        Archive("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
                ("cifar-100-python",), "eb9058c3a382ffc7106e4002c42a8d85"),
    ),
}  # fmt: skip


def how_to_get(path: str) -> str:
    """The end of an error message about an absent file or folder of a dataset."""
    for name, archives in SETS.items():
        for given in (given for archive in archives for given in archive.gives):
            if f"{path}/".endswith(f"/{given}/"):
                return f"python tools/get_data.py {name} downloads it"
    return "datasets/README.md shows the layout"


def get(archive: Archive, root: str) -> bool:
    """Download an archive and unpack it under ``root``, unless its content already exists.

    An interrupted download is resumed. The archive is removed after it is unpacked.

    Returns:
        True if the archive was unpacked, False if its content existed.

    Raises:
        DatasetError: there is no connection, the checksum differs, or the archive is damaged or
            unsafe. Nothing is installed. The message states what to download and where to put it.
    """
    if all(os.path.exists(os.path.join(root, path)) for path in archive.gives):
        return False
    file = os.path.join(root, archive.name)
    if not os.path.exists(file):
        fetch(archive.url, file)
    if archive.md5 and (found := checksum(file, "md5")) != archive.md5:
        raise DatasetError(
            file, f"has the MD5 checksum {found}, not {archive.md5}: remove it and try again"
        )
    unpack(archive, file, root)
    os.remove(file)
    return True


OFFLINE = "RESNET_DET_OFFLINE"  # the environment variable that forbids downloads


def fetch(url: str, file: str) -> None:
    """Download to ``file``, unless another process does so meanwhile.

    A partial download is kept as ``file``.part and resumed.

    Raises:
        DatasetError: the download failed or ended early, or ``$RESNET_DET_OFFLINE`` forbids it.
    """
    if os.environ.get(OFFLINE, "").lower() in ("1", "true", "yes", "on"):
        raise DatasetError(
            url,
            f"is not on this machine, and ${OFFLINE} forbids downloads: download the file by other "
            f"means and put it at {file}",
        )
    os.makedirs(os.path.dirname(file) or ".", exist_ok=True)
    with _alone(f"{file}.lock"):
        if not os.path.exists(file):
            _fetch(url, file)


@contextlib.contextmanager
def _alone(lock: str) -> Iterator[None]:
    """Wait until no other process is here. A file system without locks does not make it wait."""
    with open(lock, "a") as holder:
        with contextlib.suppress(OSError):
            fcntl.lockf(holder, fcntl.LOCK_EX)
        yield
    with contextlib.suppress(FileNotFoundError):
        os.remove(lock)  # only after success: whoever waits here finds the file


def _fetch(url: str, file: str) -> None:
    part = f"{file}.part"
    begin = os.path.getsize(part) if os.path.exists(part) else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={begin}-"} if begin else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            if begin and answer.status != 206:  # the server sends the whole file again
                begin = 0
            length = answer.headers.get("Content-Length")
            total = begin + int(length) if length else None
            with (
                open(part, "ab" if begin else "wb") as out,
                tqdm(
                    initial=begin,
                    total=total,
                    unit="B",
                    unit_scale=True,
                    desc=os.path.basename(file),
                ) as bar,
            ):
                while block := answer.read(BLOCK):
                    out.write(block)
                    bar.update(len(block))
            if total is not None and os.path.getsize(part) != total:
                raise OSError(f"cut after {os.path.getsize(part):,} of {total:,} bytes")
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: the partial file is complete already
            raise DatasetError(url, _advice(error, file)) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise DatasetError(url, _advice(error, file)) from error
    os.replace(part, file)


def _advice(error: Exception, file: str) -> str:
    return (
        f"cannot be downloaded ({error}). Run the same command again to resume, or download the "
        f"file by other means, put it at {file}, and run the command again"
    )


def checksum(file: str, algorithm: str) -> str:
    """A checksum of a file, in hexadecimal digits: "md5" or "sha256"."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(file, "rb") as source:
        while block := source.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


# Errors of tarfile and zipfile for a damaged file: a wrong method, password or compressed block.
_BROKEN = (
    OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error, ValueError, RuntimeError,
)  # fmt: skip


def unpack(archive: Archive, file: str, root: str) -> None:
    """Unpack into a temporary folder, check the content, and move every file to its place.

    The paths ``archive.gives`` are moved last: as long as they are missing, :func:`get` starts
    again.

    Raises:
        DatasetError: the archive is damaged, has a member outside its folder, or lacks a path in
            ``archive.gives``.
    """
    target = os.path.join(root, f".unpacked-{archive.name}")
    shutil.rmtree(target, ignore_errors=True)
    try:
        with whole_folder(target) as folder:
            _extract(file, folder)
    except _BROKEN as error:
        raise DatasetError(file, f"cannot be unpacked: {error}: remove it and try again") from error
    try:
        source = os.path.join(target, archive.strip)
        into = os.path.join(root, archive.into)
        given = [os.path.relpath(path, archive.into or ".") for path in archive.gives]
        missing = [path for path in given if not os.path.exists(os.path.join(source, path))]
        if missing:
            raise DatasetError(file, f"does not hold {', '.join(missing)}")
        last = {os.path.join(source, path) for path in given}
        rest = [path for path in _files(source) if not any(_within(path, end) for end in last)]
        for path in [*rest, *sorted(last)]:
            to = os.path.join(into, os.path.relpath(path, source))
            os.makedirs(os.path.dirname(to), exist_ok=True)
            os.replace(path, to)
    finally:
        shutil.rmtree(target, ignore_errors=True)


def _extract(file: str, folder: str) -> None:
    if file.endswith(".zip"):
        with zipfile.ZipFile(file) as archive:
            archive.extractall(folder)  # removes ".." from names and checks each member's CRC
    else:
        with tarfile.open(file) as archive:
            archive.extractall(folder, filter="data")


def _within(path: str, folder: str) -> bool:
    return f"{path}/".startswith(f"{folder}/")


def _files(folder: str) -> Iterator[str]:
    return (os.path.join(at, name) for at, _, names in os.walk(folder) for name in names)
