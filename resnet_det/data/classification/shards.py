"""ImageNet in tar shards, local or remote, read in order through the library webdataset.

A shard holds ``<key>.jpg`` and ``<key>.cls`` (an integer) for each image, side by side. Each pass
of training reads every image once: the shards, in an order drawn from the seed, are dealt over the
worker processes, and each worker shuffles a buffer. The batches are a function of the seed, of the
iteration that a run starts or resumes at, and of the number of processes and workers. A resumed
run begins a new pass: it does not know which images the interrupted one had seen.
"""

import glob
import os
import random
import re
from contextlib import closing

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from ...records import DatasetError
from .. import loader, pixels

SPLITS = {"imagenet_train_shards": "train", "imagenet_val_shards": "val"}
FOLDER = "imagenet_shards"
BUFFER = 1000  # encoded images, about 110 kB each, of which a worker draws the next


class Shards(tuple):
    """Paths and URLs of tar files."""


def find(name, root):
    """The shards of a dataset of ``SPLITS`` and its classes, of ``<root>/imagenet_shards``.

    The shards are the lines (path or http(s) URL) of ``<split>.txt``, else the files
    ``<split>-*.tar``; the classes are the lines of ``classes.txt``, in the order of the labels.

    Raises:
        DatasetError: one of these is missing, or a line is of another kind.
    """
    _webdataset()
    folder, split = os.path.abspath(os.path.join(root, FOLDER)), SPLITS[name]
    listing = os.path.join(folder, f"{split}.txt")
    if os.path.exists(listing):
        urls = _lines(listing)
        for url in urls:
            if not re.match(r"https?://|(?![\w+.-]*:)", url):  # no pipe: that runs a command
                raise DatasetError(listing, f"{url!r} is neither a path nor an http(s) URL")
        urls = [u if re.match("https?://", u) else os.path.join(folder, u) for u in urls]
    else:
        urls = sorted(glob.glob(os.path.join(glob.escape(folder), f"{split}-*.tar")))
    if not urls:
        raise DatasetError(folder, f"holds neither {split}-*.tar nor a list {split}.txt of shards")
    return Shards(urls), tuple(_lines(os.path.join(folder, "classes.txt")))


def _lines(path):
    try:
        with open(path, encoding="utf-8") as file:
            return [line.strip() for line in file if line.strip()]
    except OSError as error:
        raise DatasetError(path, f"cannot be read: {error.strerror}") from error


def _webdataset():
    try:
        import webdataset
    except ImportError as error:
        raise DatasetError(FOLDER, "needs webdataset: pip install webdataset") from error
    return webdataset


class _Tail:
    """A stream that remembers the end of what was read."""

    def __init__(self, stream):
        self.stream, self.last = stream, b""

    def read(self, size):
        content = self.stream.read(size)
        self.last = (self.last + content)[-512:]
        return content


def read_shard(url):
    """Iterator of a shard's images: ``(ImageBytes, label)``.

    Raises:
        DatasetError: the shard cannot be opened or is cut short, or an image lacks a part.
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
                    raise DatasetError(name, f"its .cls is no integer: {sample['cls'][:20]!r}")
                yield pixels.ImageBytes(sample["jpg"], name), int(sample["cls"])
            while tail.read(1 << 20):
                pass
            # tarfile takes a cut between two files for the end, which a block of zeros marks.
            if len(tail.last) < 512 or any(tail.last):
                raise DatasetError(url, "is cut short: no end of the archive")
    except DatasetError:
        raise
    except Exception as error:  # a damaged archive or connection raises many kinds
        raise DatasetError(url, f"cannot be read: {error}") from error


class _Samples(IterableDataset):
    """(sample, faults) as the loader's; a sample of None, whose fault is the last, ends it."""

    def __init__(self, shards, classes, mapper, rank, world, seed=None, skip_bad=False):
        self.shards, self.classes, self.mapper = shards, classes, mapper
        self.rank, self.world, self.seed, self.skip_bad = rank, world, seed, skip_bad

    def _passes(self, consumer, consumers):
        if self.seed is None:  # a test: one pass in order
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
                        raise DatasetError(
                            image.name, f"its .cls is {label}: {self.classes} classes"
                        )
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
        except DatasetError as error:  # which would lose its type on the way from a worker
            yield None, [*faults, (error.file, error.what)]


def _batches(samples, batch, num_workers, collate):
    stream = loader.make_loader(samples, batch_size=batch, num_workers=num_workers, collate=collate)
    for made, faults in stream:
        if made is None:
            raise DatasetError(*faults[-1])
        yield made, faults


def training_batches(
    shards, mapper, *, classes, total_batch, seed, rank, world, start_iter, num_workers, skip_bad,
    collate,
):  # fmt: skip
    """Endless batches as :func:`.loader.training_batches` gives, each made by one worker.

    Raises:
        ValueError: ``total_batch`` not divisible by ``world``.
        DatasetError: fewer shards than workers; while reading, as :func:`read_shard`.
    """
    loader.check_share(total_batch, world)
    consumers = world * max(num_workers, 1)
    if len(shards) < consumers:
        raise DatasetError(
            os.path.dirname(shards[0]),
            f"{len(shards)} shards cannot be dealt over {consumers} workers "
            "(processes x DATALOADER.NUM_WORKERS)",
        )
    samples = _Samples(shards, classes, mapper, rank, world, (seed, start_iter), skip_bad)
    stream = _batches(samples, total_batch // world, num_workers, collate)
    return loader.good_samples(stream, skip_bad)


def test_batches(shards, mapper, *, classes, rank, world, num_workers, batch, skip_bad, collate):
    """Batches of every image once over all processes, each of which takes whole shards."""
    samples = _Samples(shards, classes, mapper, rank, world, skip_bad=skip_bad)
    return loader.good_samples(_batches(samples, batch, num_workers, collate), skip_bad)


test_batches.__test__ = False  # not one of pytest's
