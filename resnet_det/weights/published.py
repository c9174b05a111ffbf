"""Weights by address: the published files that are known, and the cache they are downloaded to."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlsplit

import torch

from ..config.defaults import ConfigError
from ..download import checksum, fetch
from ..hints import did_you_mean
from ..records import DatasetError
from . import shipped
from .facts import Facts
from .formats import CAFFE_FACTS, TORCHVISION_DETECTOR, TORCHVISION_FACTS
from .pickles import WeightsError

# What the addresses of these schemes stand for.
SCHEMES = {
    "detectron2://": "https://dl.fbaipublicfiles.com/detectron2/",
    "torchvision://": "https://download.pytorch.org/models/",
}


class Checksum(NamedTuple):
    """The first hexadecimal digits of a file's checksum, as its publisher states them."""

    algorithm: str
    digits: str

    def __str__(self) -> str:
        return f"{self.algorithm.upper()} {self.digits}…"


@dataclass(frozen=True)
class Published:
    """One published file.

    Attributes:
        name: its address, as in ``MODEL.WEIGHTS``.
        file: its path on the server.
        net: the net that it holds, as in ``MODEL.BACKBONE.NAME``.
        facts: what it was trained with; see :mod:`.facts`.
        accuracy: the accuracy that its publisher states.
        publisher: who trained it and states the accuracy.
        checksum: None if the publisher states none.
        config: a detector's config, with its conventions.
        norm_eps: eps of its batch norms, if it is not that of ours.
    """

    name: str
    file: str
    net: str
    facts: Facts = field(hash=False)
    accuracy: str
    publisher: str
    checksum: Checksum | None = None
    config: str = ""
    norm_eps: float | None = None

    @property
    def url(self) -> str:
        scheme = next(scheme for scheme in SCHEMES if self.name.startswith(scheme))
        return SCHEMES[scheme] + self.file


def _msra(depth: int, top1: float) -> Published:
    path = f"ImageNetPretrained/MSRA/R-{depth}.pkl"
    facts = CAFFE_FACTS | {"stride_in_1x1": True}
    accuracy = f"top-1 error {top1} %, 1 crop"
    return Published(f"detectron2://{path}", path, f"paper_resnet{depth}", facts, accuracy, "MSRA")


def _torchvision(name: str, digits: str, top1: float, version: int = 1) -> Published:
    deep = name in ("resnet50", "resnet101", "resnet152")
    return Published(
        f"torchvision://{name}.IMAGENET1K_V{version}",
        f"{name}-{digits}.pth",
        f"paper_{name}",
        TORCHVISION_FACTS | ({"stride_in_1x1": False} if deep else {}),
        f"top-1 error {100 - top1:.2f} %, 1 crop",
        "torchvision",
        Checksum("sha256", digits),
    )


def _zoo(name: str, model: str, digits: str, ap: float) -> Published:
    _, _, _, depth, kind, _ = name.split("_")
    path = f"COCO-Detection/{name}/{model}/model_final_{digits}.pkl"
    return Published(
        f"detectron2://{path}",
        path,
        f"paper_resnet{depth}" + "_fpn" * (kind == "FPN"),
        CAFFE_FACTS | {"stride_in_1x1": True},
        f"COCO 2017 val AP {ap}",
        "Detectron2",
        Checksum("md5", digits),  # MODEL_ZOO.md: "its md5 prefix in its file name"
        f"configs/modern_faster_rcnn_R{depth}_{kind}.yaml",
    )


# The checksums of torchvision's files are those that torch.hub verifies. MSRA's error is that of the
# authors' own page; Detectron2 publishes converted copies of their nets.
PUBLISHED = (
    _msra(50, 24.7),
    _msra(101, 23.6),
    _torchvision("resnet18", "f37072fd", 69.758),
    _torchvision("resnet34", "b627a593", 73.314),
    _torchvision("resnet50", "0676ba61", 76.130),
    _torchvision("resnet50", "11ad3fa6", 80.858, version=2),
    _torchvision("resnet101", "63fe2227", 77.374),
    _torchvision("resnet101", "cd907fc2", 81.886, version=2),
    _torchvision("resnet152", "394f9c45", 78.312),
    _torchvision("resnet152", "f82ba261", 82.284, version=2),
    _torchvision("vgg16", "397923af", 71.592),
    _torchvision("vgg19", "dcbb9e9d", 72.376),
    _zoo("faster_rcnn_R_50_C4_1x", "137257644", "721ade", 35.7),
    _zoo("faster_rcnn_R_50_FPN_1x", "137257794", "b275ba", 37.9),
    _zoo("faster_rcnn_R_50_C4_3x", "137849393", "f97cb7", 38.4),
    _zoo("faster_rcnn_R_50_FPN_3x", "137849458", "280758", 40.2),
    _zoo("faster_rcnn_R_101_C4_3x", "138204752", "298dad", 41.1),
    _zoo("faster_rcnn_R_101_FPN_3x", "137851257", "f6e8b1", 42.0),
    Published(
        "torchvision://fasterrcnn_resnet50_fpn.COCO_V1",
        "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
        "paper_resnet50_fpn",
        TORCHVISION_FACTS | TORCHVISION_DETECTOR.facts,
        "COCO 2017 val AP 37.0",
        "torchvision",
        Checksum("sha256", "258fb6c6"),
        "configs/torchvision_faster_rcnn_R50_FPN.yaml",
        norm_eps=0.0,
    ),
)


def is_address(path: str | Path) -> bool:
    """Whether a path is an address that :func:`local_file` resolves."""
    return str(path).startswith(known_schemes())


def known_schemes() -> tuple[str, ...]:
    """The beginnings of the addresses that :func:`local_file` resolves."""
    return ("https://", "http://", shipped.SCHEME, *SCHEMES)


def url_of(address: str) -> str:
    """The URL that an address stands for.

    Raises:
        ConfigError: torchvision has no such weights. The message names similar ones.
    """
    if address.startswith("torchvision://"):
        names = [entry.name for entry in PUBLISHED if entry.name.startswith("torchvision://")]
        short = [name.rsplit(".", 1)[0] for name in names]  # the first version of each
        known = dict(zip(reversed(short), reversed(names))) | dict(zip(names, names))
        if address not in known:
            raise ConfigError(f"{address}: no such weights{did_you_mean(address, known, True)}")
        return next(entry.url for entry in PUBLISHED if entry.name == known[address])
    for scheme, start in SCHEMES.items():
        if address.startswith(scheme):
            return start + address.removeprefix(scheme)
    return address


def find(path: str | Path) -> Published | None:
    """The entry of the table for an address, by any of its names, or None."""
    if not is_address(path):
        return None
    url = url_of(str(path))
    return next((entry for entry in PUBLISHED if entry.url == url), None)


def config_of(path: str | Path) -> str | None:
    """The config of the detector at an address, or None if the table names none."""
    entry = find(path)
    return (entry.config or None) if entry else None


def cached_path(url: str) -> Path:
    """The file that a URL is downloaded to.

    The cache is ``$RESNET_DET_CACHE``, or else torch hub's folder. torchvision's files lie directly
    in it, where torchvision puts them; others under the server's name and the path on the server.
    """
    cache = os.environ.get("RESNET_DET_CACHE")
    root = Path(cache).expanduser() if cache else Path(torch.hub.get_dir(), "checkpoints")
    parts = urlsplit(url)
    *folders, name = (quote(p, "%") for p in parts.path.split("/") if p not in ("", ".", ".."))
    if url.startswith(SCHEMES["torchvision://"]):
        return root / name
    query = [quote(parts.query, "")] if parts.query else []
    return Path(root, quote(parts.netloc, ""), *folders, *query, name)


def place_of(address: str) -> Path:
    """The path that the file at an address has, or will have once it is downloaded.

    Raises:
        WeightsError: the package has no such file.
        ConfigError: see :func:`url_of`; or the address names no file.
    """
    if address.startswith(shipped.SCHEME):
        return shipped.local_file(address)
    url = url_of(address)
    if not urlsplit(url).path.strip("/"):
        raise ConfigError(f"{address}: names no file")
    return cached_path(url)


def local_file(address: str) -> Path:
    """The path of the file at an address. It is downloaded, unless it is in the cache or in this
    package (:mod:`.shipped`).

    Raises:
        WeightsError: the package has no such file, or it cannot be downloaded, or its checksum is
            not the published one. The message says where to put it, or which file to remove.
        ConfigError: see :func:`url_of`.
    """
    file = place_of(address)
    if not file.exists():
        url = url_of(address)
        try:
            fetch(url, str(file))
        except DatasetError as error:
            stands_for = "" if url == address else f"{address}: "
            raise WeightsError(f"{stands_for}{error}") from error
    entry = find(address)
    if entry and entry.checksum:
        wanted = entry.checksum
        found = checksum(str(file), wanted.algorithm)
        if not found.startswith(wanted.digits):
            raise WeightsError(
                f"{file}: its {wanted.algorithm.upper()} checksum is {found}, but {address} was "
                f"published with {wanted}: remove the file and try again"
            )
    return file
