"""Form batches from records, and distribute the work over processes and workers.

All randomness depends only on the seed and on the position in one infinite stream of images. A
batch is therefore the same for any number of processes and workers, and after any interruption.
"""

import itertools
import logging
import pickle
import signal
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from . import pixels

logger = logging.getLogger(__name__)

Mapper = Callable[[Any, np.random.Generator], Any]  # (record, rng) -> sample
Fault = tuple[str, str]  # file, description


def training_batches(
    records: Sequence,
    mapper: Mapper,
    *,
    total_batch: int,
    seed: int,
    rank: int = 0,
    world: int = 1,
    start_iter: int = 0,
    num_workers: int = 0,
    aspect_ratio_grouping: bool = False,
    skip_bad: bool = False,
    collate: Callable[[list], Any] = list,
) -> Iterator[Any]:
    """Yield this process's share of each batch without end, as a list of mapped samples.

    Batch i of all processes together is the same for every ``world``. Each process takes
    ``total_batch / world`` contiguous records of it. The batches are cut from a stream of shuffled
    epochs, each of which holds every record once.

    Args:
        records: list of Detectron2's standard dicts.
        mapper: ``mapper(record, rng)`` returns a sample. It draws all its randomness from ``rng``,
            a numpy Generator that is seeded by ``seed`` and the sample's position in the stream.
        total_batch: images per batch, over all processes.
        start_iter: index of the first batch to yield. Earlier ones are counted, but not read.
        num_workers: number of processes that run the mapper; 0 runs it in this process.
        aspect_ratio_grouping: form each batch from either wide images (width > height) or other
            images only. Each record needs ``width`` and ``height``.
        skip_bad: replace a record whose image is unusable by the next usable one, with a warning;
            otherwise such an image raises :class:`~resnet_det.data.pixels.ImageError`.
        collate: turns a list of samples into a batch; called in the worker.

    Raises:
        ValueError: there are no records, or ``total_batch`` is not divisible by ``world``.
    """
    check_share(total_batch, world)
    if not len(records):
        raise ValueError("there are no records to train on")
    wide = _is_wide(records) if aspect_ratio_grouping else None
    stream = global_batches(
        len(records), total_batch=total_batch, seed=seed, start_iter=start_iter, groups=wide
    )
    share = total_batch // world
    loader = make_loader(
        _Mapped(records, mapper, seed, skip_bad),
        batch_sampler=_Share(stream, start_iter, total_batch, rank * share, share),
        num_workers=num_workers,
        collate=collate,
    )
    return good_samples(loader, skip_bad)


def check_share(total_batch: int, world: int) -> None:
    """Raise ValueError if ``world`` processes cannot share a batch equally."""
    if total_batch < 1 or total_batch % world:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH: {total_batch} images per batch cannot be shared equally by "
            f"{world} processes"
        )


def test_batches(
    records: Sequence,
    mapper: Mapper,
    *,
    rank: int = 0,
    world: int = 1,
    num_workers: int = 0,
    batch: int = 1,
    skip_bad: bool = False,
    collate: Callable[[list], Any] = list,
) -> "_Sized":
    """Iterate over this process's contiguous share of the records, in lists of ``batch`` samples.

    Each record occurs exactly once over all processes. The result has a length, in batches.
    ``skip_bad`` skips a record whose image is unusable, with a warning, instead of raising.
    """
    shard = range(len(records) * rank // world, len(records) * (rank + 1) // world)
    positions = [(i, i) for i in range(len(shard))]
    loader = make_loader(
        _Mapped([records[i] for i in shard], mapper, seed=0, skip_bad=False),
        batch_sampler=[positions[i : i + batch] for i in range(0, len(positions), batch)],
        num_workers=num_workers,
        collate=collate,
        partial=True,
    )
    return _Sized(loader, skip_bad)


test_batches.__test__ = False  # type: ignore[attr-defined]  # not a test of pytest's


def global_batches(
    count: int,
    *,
    total_batch: int,
    seed: int,
    start_iter: int = 0,
    groups: Sequence[Hashable] | None = None,
) -> Iterator[list[int]]:
    """Yield batches of indices below ``count`` without end, from batch ``start_iter`` on.

    The indices are cut from successive shuffles of ``range(count)``. With ``groups`` (one per
    index), all indices in a batch have the same group.
    """

    def epoch(number: int) -> np.ndarray:
        return np.random.default_rng([seed, number]).permutation(count)

    if groups is None:
        number, offset = divmod(start_iter * total_batch, count)
        rest = epoch(number)[offset:]
        while True:
            while len(rest) < total_batch:
                number += 1
                rest = np.concatenate([rest, epoch(number)])
            yield rest[:total_batch].tolist()
            rest = rest[total_batch:]

    waiting: dict[Hashable, list[int]] = {group: [] for group in set(groups)}
    full = 0
    for number in itertools.count():
        for index in epoch(number).tolist():
            batch = waiting[groups[index]]
            batch.append(index)
            if len(batch) == total_batch:
                if full >= start_iter:
                    yield batch[:]
                full += 1
                batch.clear()


def _is_wide(records: Sequence[Mapping[str, Any]]) -> list[bool]:
    try:
        return [record["width"] > record["height"] for record in records]
    except KeyError as error:
        raise ValueError(f"aspect ratio grouping needs {error} in every record") from error


class _Packed:
    """A list stored as one array of bytes, which worker processes share without copying it.

    Reading a Python object writes to its reference count, so a forked worker would soon have its
    own copy of every record.
    """

    def __init__(self, items: Sequence) -> None:
        pickled = [pickle.dumps(item, protocol=pickle.HIGHEST_PROTOCOL) for item in items]
        self.ends = np.cumsum([len(item) for item in pickled])
        self.bytes = np.frombuffer(b"".join(pickled), dtype=np.uint8)

    def __len__(self):
        return len(self.ends)

    def __getitem__(self, index):
        begin = self.ends[index - 1] if index else 0
        return pickle.loads(self.bytes[begin : self.ends[index]].data)


class _Mapped(Dataset):
    """Maps (index, position in the stream) to (sample, faults).

    A fault is the (file, description) of an ImageError that was caught. The sample is None if no
    image is usable. Faults are returned, not raised, because an exception that leaves a worker
    process loses its type.
    """

    def __init__(self, records: Sequence, mapper: Mapper, seed: int, skip_bad: bool) -> None:
        self.records = _Packed(records)
        self.mapper = mapper
        self.seed = seed
        self.tries = len(records) if skip_bad else 1

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, list[Fault]]:
        index, position = key
        faults: list[Fault] = []
        for offset in range(self.tries):
            record = self.records[(index + offset) % len(self.records)]
            try:
                return self.mapper(record, np.random.default_rng([self.seed, position])), faults
            except pixels.ImageError as error:
                faults.append((error.file, error.what))
        return None, faults


class _Share:
    """Batch sampler that yields this process's part of each batch, as (index, position) pairs."""

    def __init__(
        self, stream: Iterable[list[int]], start_iter: int, total_batch: int, begin: int, share: int
    ) -> None:
        self.stream = stream
        self.first = start_iter * total_batch + begin
        self.total_batch = total_batch
        self.slice = slice(begin, begin + share)

    def __iter__(self):
        for number, batch in enumerate(self.stream):
            first = self.first + number * self.total_batch
            yield [(index, first + i) for i, index in enumerate(batch[self.slice])]


class _Collate:
    """Collates [(sample, faults)] to (batch, all faults).

    The batch is None if any sample is None; with ``partial``, only if all are.
    """

    def __init__(self, collate: Callable[[list], Any], partial: bool) -> None:
        self.collate, self.partial = collate, partial

    def __call__(self, pairs: list[tuple[Any, list[Fault]]]) -> tuple[Any, list[Fault]]:
        samples = [sample for sample, _ in pairs if sample is not None]
        faults = [fault for _, faults in pairs for fault in faults]
        enough = samples and (self.partial or len(samples) == len(pairs))
        return self.collate(samples) if enough else None, faults


def make_loader(
    dataset: Dataset | IterableDataset,
    *,
    num_workers: int,
    collate: Callable[[list], Any],
    partial: bool = False,
    **batching: Any,
) -> DataLoader:
    """Make a DataLoader for a dataset of (sample, faults). It yields (batch or None, faults).

    Args:
        partial: allow batches that lack some samples; otherwise such a batch is None.
        batching: ``batch_sampler``, or ``batch_size`` for an iterable dataset.
    """
    return DataLoader(
        dataset,
        **batching,
        num_workers=num_workers,  # torch gives each worker one thread
        collate_fn=_Collate(collate, partial),
        worker_init_fn=_leave_interrupts,
        pin_memory=torch.cuda.is_initialized(),  # a run on the CPU of such a machine needs none
        # Without this generator, starting the workers would draw from torch's global one.
        generator=torch.Generator(),
    )


def _leave_interrupts(_: int) -> None:
    """Ignore Ctrl-C in a worker, because the main process needs its batches until it stops."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def good_samples(
    loader: Iterable[tuple[Any, list[Fault]]], skip_bad: bool, partial: bool = False
) -> Iterator[Any]:
    """Yield the batches of a :func:`make_loader`.

    Args:
        skip_bad: log a warning, with a count, for each unusable image instead of raising
            ImageError.
        partial: skip a batch without any usable image, instead of raising ValueError.
    """
    bad: set[str] = set()
    for batch, faults in loader:
        if faults and not skip_bad:
            raise pixels.ImageError(*faults[0])
        for file, what in faults:
            if file not in bad:
                bad.add(file)
                logger.warning("skipped %s: %s (%d unusable so far)", file, what, len(bad))
        if batch is not None:
            yield batch
        elif not partial:
            raise ValueError(f"none of the {len(bad)} images is usable, for example {file}: {what}")


class _Sized:
    """The batches of a finite loader."""

    def __init__(self, loader: DataLoader, skip_bad: bool) -> None:
        self.loader, self.skip_bad = loader, skip_bad

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        return good_samples(self.loader, self.skip_bad, partial=True)
