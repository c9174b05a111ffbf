"""ImageNet in tar shards, local or remote, read sequentially with the webdataset library.

A shard holds ``<key>.jpg`` and ``<key>.cls`` (an integer) side by side for each image. Each epoch
reads every image once: the shards, in an order drawn from the seed, are dealt to the worker
processes, and each worker shuffles a buffer. The batches depend on the seed, the iteration at which
a run starts or resumes, and the number of processes and workers. A resumed run begins a new epoch,
because it does not know which images the interrupted one had seen.
"""

import glob
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from ...records import DatasetError
from .. import loader, pixels
from ..check import Report, decoding_faults
from ..parallel import parallel_map
from ..specs import ClassificationSpec, check_unique
from ..text_files import read_text

BUFFER = 1000  # encoded images, about 110 kB each, among which a worker draws the next one


class Shards(tuple):
    """Paths and URLs of tar files."""


@dataclass(frozen=True)
class ImageShards(ClassificationSpec):
    """A dataset that consists of one split's shards in ``folder``; see :func:`find`."""

    folder: str
    split: str

    def paths(self) -> list[str]:
        return [self.folder]

    def list_images(self, root: str) -> tuple[Shards, tuple[str, ...]]:
        return find(os.path.join(root, self.folder), self.split)

    def check(self, root: str, workers: int) -> Report:
        where = os.path.join(root, self.folder)
        urls, classes = find(where, self.split)
        parts = parallel_map(partial(_check_shard, classes=len(classes)), urls, workers, "shards")
        faults = [line for lines, _ in parts for line in lines]
        counts = sum((count for _, count in parts), Counter())
        report = self.report(where, classes, counts, faults)
        report.faults += [
            f"{where}: {name}: no image has this class (label {label})"
            for label, name in enumerate(classes)
            if not counts[label]
        ]
        return report


def _check_shard(url: str, classes: int) -> tuple[list[str], Counter[int]]:
    """The faults of a shard, one line each, and the number of images per label."""
    faults: list[str] = []
    counts: Counter[int] = Counter()
    try:
        for image, label in read_shard(url):
            counts[label] += 1
            faults += decoding_faults(image)
            if label >= classes:
                faults.append(str(_label_fault(image, label, classes)))
    except DatasetError as error:  # the rest of the shard is not read
        faults.append(str(error))
    return faults, counts


def _label_fault(image: pixels.ImageBytes, label: int, classes: int) -> DatasetError:
    return DatasetError(image.name, f"its .cls is {label}, not 0 to {classes - 1}")


def find(folder: str, split: str) -> tuple[Shards, tuple[str, ...]]:
    """The shards of a split in ``folder``, and its classes.

    ``<split>.txt`` lists the shards, one path or http(s) URL per line. Without that file, the
    shards are ``<split>-*.tar``. ``classes.txt`` lists the classes, one per line, in the order of
    the labels.

    Raises:
        DatasetError: one of these is missing, a line is neither a path nor an http(s) URL, or two
            classes have one name.
    """
    _webdataset()
    folder = os.path.abspath(folder)
    listing = os.path.join(folder, f"{split}.txt")
    if os.path.exists(listing):
        urls = _lines(listing)
        for url in urls:
            if not re.match(r"https?://|(?![\w+.-]*:)", url):  # a pipe would run a command
                raise DatasetError(listing, f"{url!r} is neither a path nor an http(s) URL")
        urls = [u if re.match("https?://", u) else os.path.join(folder, u) for u in urls]
    else:
        urls = sorted(glob.glob(os.path.join(glob.escape(folder), f"{split}-*.tar")))
    if not urls:
        raise DatasetError(folder, f"holds neither {split}-*.tar nor a list {split}.txt of shards")
    names = os.path.join(folder, "classes.txt")
    classes = tuple(_lines(names))
    check_unique(names, classes)
    return Shards(urls), classes


def _lines(path: str) -> list[str]:
    return [line.strip() for line in read_text(path).split("\n") if line.strip()]


def _webdataset():
    try:
        import webdataset
    except ImportError as error:
        raise DatasetError("tar shards", "need webdataset: pip install webdataset") from error
    return webdataset


class _Tail:
    """A stream that remembers the last 512 bytes that were read."""

    def __init__(self, stream):
        self.stream, self.last = stream, b""

    def read(self, size):
        content = self.stream.read(size)
        self.last = (self.last + content)[-512:]
        return content


def read_shard(url: str) -> Iterator[tuple[pixels.ImageBytes, int]]:
    """Iterate over a shard's images: ``(ImageBytes, label)``.

    Raises:
        DatasetError: the shard cannot be opened or is truncated, or an image lacks a part.
    """
    wds = _webdataset()
    try:
        with closing(wds.gopen(url)) as stream:
            tail = _Tail(stream)
            files = ({**f, "__url__": url} for f in wds.tariterators.tar_file_iterator(tail))
            for sample in wds.tariterators.group_by_keys(files):
                name = f"{url}: {sample['__key__']}"
                if not {"jpg", "cls"} <= set(sample):
                    raise DatasetError(name, "lacks its .jpg or its .cls")
                if not sample["cls"].strip().isdigit():
                    raise DatasetError(name, f"its .cls is not an integer: {sample['cls'][:20]!r}")
                yield pixels.ImageBytes(sample["jpg"], name), int(sample["cls"])
            while tail.read(1 << 20):
                pass
            # An archive ends with a block of zeros, but tarfile also accepts a cut between two
            # files.
            if len(tail.last) < 512 or any(tail.last):
                raise DatasetError(url, "is cut short: no end of the archive")
    except DatasetError:
        raise
    except Exception as error:  # a damaged archive or connection raises many types
        raise DatasetError(url, f"cannot be read: {error}") from error


class _Samples(IterableDataset):
    """Yields (sample, faults) like the loader's datasets. A sample of None ends the iteration; the
    last of its faults is the reason."""

    def __init__(self, shards, classes, mapper, rank, world, seed=None, skip_bad=False):
        self.shards, self.classes, self.mapper = shards, classes, mapper
        self.rank, self.world, self.seed, self.skip_bad = rank, world, seed, skip_bad

    def _passes(self, consumer, consumers):
        if self.seed is None:  # testing: one pass in order
            yield (r for url in self.shards[consumer::consumers] for r in read_shard(url))
            return
        number = 0
        while True:
            order = np.random.default_rng([*self.seed, number]).permutation(len(self.shards))
            urls = [self.shards[i] for i in order[consumer::consumers]]
            rng = random.Random(f"{self.seed} {number} {consumer}")
            shuffle = _webdataset().shuffle(BUFFER, initial=BUFFER, rng=rng)
            yield shuffle(r for url in urls for r in read_shard(url))
            number += 1

    def __iter__(self):
        worker = get_worker_info()
        workers, index = (worker.num_workers, worker.id) if worker else (1, 0)
        consumer = self.rank * workers + index
        faults, position = [], 0
        try:
            for records in self._passes(consumer, self.world * workers):
                good = False
                for image, label in records:
                    if label >= self.classes:
                        raise _label_fault(image, label, self.classes)
                    rng = np.random.default_rng([*(self.seed or ()), consumer, position])
                    position += 1
                    try:
                        sample = self.mapper((image, label), rng)
                    except pixels.ImageError as error:
                        if not self.skip_bad:
                            raise
                        faults.append((error.file, error.what))
                        continue
                    good = True
                    yield sample, faults
                    faults = []
                if self.seed and not good:
                    raise DatasetError(self.shards[0], "no image of a worker's shards is usable")
        except DatasetError as error:  # an exception raised in a worker would lose its type
            yield None, [*faults, (error.file, error.what)]


def _batches(
    samples: _Samples, batch: int, num_workers: int, collate: Callable
) -> Iterator[tuple[Any, list]]:
    stream = loader.make_loader(samples, batch_size=batch, num_workers=num_workers, collate=collate)
    for made, faults in stream:
        if made is None:
            raise DatasetError(*faults[-1])
        yield made, faults


def training_batches(
    shards: Shards,
    mapper: Callable,
    *,
    classes: int,
    total_batch: int,
    seed: int,
    rank: int,
    world: int,
    start_iter: int,
    num_workers: int,
    skip_bad: bool,
    collate: Callable,
) -> Iterator[Any]:
    """Yield batches without end, like :func:`.loader.training_batches`. One worker makes each
    batch.

    Raises:
        ValueError: ``total_batch`` is not divisible by ``world``.
        DatasetError: there are fewer shards than workers, or a shard is unusable; see
            :func:`read_shard`.
    """
    loader.check_share(total_batch, world)
    consumers = world * max(num_workers, 1)
    if len(shards) < consumers:
        raise DatasetError(
            os.path.dirname(shards[0]),
            f"{len(shards)} shards are too few for {consumers} workers "
            "(processes x DATALOADER.NUM_WORKERS), each of which needs one",
        )
    samples = _Samples(shards, classes, mapper, rank, world, (seed, start_iter), skip_bad)
    stream = _batches(samples, total_batch // world, num_workers, collate)
    return loader.good_samples(stream, skip_bad)


def test_batches(
    shards: Shards,
    mapper: Callable,
    *,
    classes: int,
    rank: int,
    world: int,
    num_workers: int,
    batch: int,
    skip_bad: bool,
    collate: Callable,
) -> Iterator[Any]:
    """Yield batches in which each image occurs once, in one of the processes. Each process reads
    whole shards."""
    samples = _Samples(shards, classes, mapper, rank, world, skip_bad=skip_bad)
    return loader.good_samples(_batches(samples, batch, num_workers, collate), skip_bad)


test_batches.__test__ = False  # type: ignore[attr-defined]  # not a test of pytest's
