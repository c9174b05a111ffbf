"""From records to batches: which images make a batch, and which process and worker maps each.

Everything random is a function of the seed and of a position in one infinite stream of images,
so a batch is the same for any number of processes and workers, and after any interruption.
"""

import itertools
import logging
import pickle
import signal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from . import pixels

logger = logging.getLogger(__name__)


def training_batches(
    records,
    mapper,
    *,
    total_batch,
    seed,
    rank=0,
    world=1,
    start_iter=0,
    num_workers=0,
    aspect_ratio_grouping=False,
    skip_bad=False,
    collate=list,
):
    """Endless iterator of this process's share of each batch: a list of mapped samples.

    Batch i of all processes together is the same for every ``world``; each takes a contiguous
    ``total_batch / world`` of it. In the stream of shuffled epochs that the batches are cut from,
    each epoch holds every record once.

    Args:
        records: list of Detectron2's standard dicts.
        mapper: ``mapper(record, rng)`` -> sample, all its randomness drawn from ``rng``, a numpy
            Generator seeded by ``seed`` and the sample's position in the stream.
        total_batch: images in a batch, over all processes.
        start_iter: first batch to give; the earlier ones are counted, not read.
        num_workers: processes that run the mapper; 0 runs it in this one.
        aspect_ratio_grouping: only wide (width > height) or only other images in a batch, by
            filling two batches in turn; needs ``width`` and ``height`` in each record.
        skip_bad: use the next good record in place of one with an unusable image, and warn;
            otherwise such an image raises :class:`~resnet_det.data.pixels.ImageError`.
        collate: makes a batch of the list of samples, in the worker.

    Raises:
        ValueError: no records, or ``total_batch`` not divisible by ``world``.
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


def check_share(total_batch, world):
    """Raises ValueError where a batch cannot be shared equally by ``world`` processes."""
    if total_batch < 1 or total_batch % world:
        raise ValueError(
            f"the total batch of {total_batch} images (SOLVER.IMS_PER_BATCH) cannot be shared "
            f"equally by {world} processes"
        )


def test_batches(
    records, mapper, *, rank=0, world=1, num_workers=0, batch=1, skip_bad=False, collate=list
):
    """This process's contiguous share of the records in order, as lists of ``batch`` samples.

    Over all processes every record comes exactly once. The result has a length, in batches.
    ``skip_bad`` leaves out a record with an unusable image, and warns, instead of raising.
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


test_batches.__test__ = False  # not one of pytest's


def global_batches(count, *, total_batch, seed, start_iter=0, groups=None):
    """Endless iterator of batches of indices below ``count``, from batch ``start_iter`` on.

    The indices are cut from one shuffle of ``range(count)`` after another. With ``groups`` (a
    group for each index) a batch holds indices of one group: each group collects its own.
    """

    def epoch(number):
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

    waiting = {group: [] for group in set(groups)}
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


def _is_wide(records):
    try:
        return [record["width"] > record["height"] for record in records]
    except KeyError as error:
        raise ValueError(f"aspect ratio grouping needs {error} in every record") from error


class _Packed:
    """A list as one array of bytes, which worker processes share without copying it.

    Merely looking at Python objects writes to their reference counts, so a forked worker would
    end up with its own copy of every record.
    """

    def __init__(self, items):
        pickled = [pickle.dumps(item, protocol=pickle.HIGHEST_PROTOCOL) for item in items]
        self.ends = np.cumsum([len(item) for item in pickled])
        self.bytes = np.frombuffer(b"".join(pickled), dtype=np.uint8)

    def __len__(self):
        return len(self.ends)

    def __getitem__(self, index):
        begin = self.ends[index - 1] if index else 0
        return pickle.loads(self.bytes[begin : self.ends[index]].data)


class _Mapped(Dataset):
    """(index, position in the stream) -> (sample, faults).

    A fault is the (file, what) of an ImageError met on the way; the sample is None if there was
    no other image to use. Faults are returned, not raised, because an exception that crosses from
    a worker process loses its type.
    """

    def __init__(self, records, mapper, seed, skip_bad):
        self.records = _Packed(records)
        self.mapper = mapper
        self.seed = seed
        self.tries = len(records) if skip_bad else 1

    def __getitem__(self, key):
        index, position = key
        faults = []
        for offset in range(self.tries):
            record = self.records[(index + offset) % len(self.records)]
            try:
                return self.mapper(record, np.random.default_rng([self.seed, position])), faults
            except pixels.ImageError as error:
                faults.append((error.file, error.what))
        return None, faults


class _Share:
    """Batch sampler: this process's part of each global batch as (index, position) pairs."""

    def __init__(self, stream, start_iter, total_batch, begin, share):
        self.stream = stream
        self.first = start_iter * total_batch + begin
        self.total_batch = total_batch
        self.slice = slice(begin, begin + share)

    def __iter__(self):
        for number, batch in enumerate(self.stream):
            first = self.first + number * self.total_batch
            yield [(index, first + i) for i, index in enumerate(batch[self.slice])]


class _Collate:
    """[(sample, faults)] -> (collated samples, or None; all faults).

    None if a sample is missing, or with ``partial`` if all are.
    """

    def __init__(self, collate, partial):
        self.collate, self.partial = collate, partial

    def __call__(self, pairs):
        samples = [sample for sample, _ in pairs if sample is not None]
        faults = [fault for _, faults in pairs for fault in faults]
        enough = samples and (self.partial or len(samples) == len(pairs))
        return self.collate(samples) if enough else None, faults


def make_loader(dataset, *, num_workers, collate, partial=False, **batching):
    """DataLoader of a dataset of (sample, faults), which gives (batch or None, faults).

    Args:
        partial: a batch may lack samples; else one that does is None.
        batching: ``batch_sampler``, or ``batch_size`` of a dataset that only iterates.
    """
    return DataLoader(
        dataset,
        **batching,
        num_workers=num_workers,  # torch gives each worker one thread
        collate_fn=_Collate(collate, partial),
        worker_init_fn=_leave_interrupts,
        pin_memory=torch.cuda.is_available(),
        # Otherwise starting the workers would draw from torch's global generator.
        generator=torch.Generator(),
    )


def _leave_interrupts(_):
    """A terminal's Ctrl-C reaches workers too, whose batch the main process still needs to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def good_samples(loader, skip_bad, partial=False):
    """The batches of a :func:`make_loader`; faults raise, or are warned of with a count.

    ``partial``: a batch without a usable image is left out, else it raises ValueError.
    """
    bad = set()
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
            raise ValueError(f"none of the {len(bad)} images is usable; one is {file}: {what}")


class _Sized:
    """The batches of a finite loader."""

    def __init__(self, loader, skip_bad):
        self.loader, self.skip_bad = loader, skip_bad

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        return good_samples(self.loader, self.skip_bad, partial=True)
