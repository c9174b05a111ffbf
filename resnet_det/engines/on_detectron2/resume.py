"""What Detectron2's trainer lacks to resume exactly: batches by position, random states, metrics.

Detectron2 saves the model, the optimizer and the schedule. A run resumed by it starts the sampler
anew, draws other random numbers, and appends to ``metrics.json`` what is there already.
"""

import contextlib
import os
import random
import weakref
from pathlib import Path

import numpy as np
import torch
from detectron2.engine import AMPTrainer, HookBase, SimpleTrainer

from ...data.loader import training_batches
from ...training import distributed, read_metrics
from ...training.checkpoint import rng_state
from ...training.loop import exit_code, not_finite, restore_rng, stop_signals

# Scalars that the clock decides, which a resumed run measures anew.
_TIMES = ("time", "data_time", "rank_data_time", "eta_seconds")


class Batches:
    """Training batches, each a function of ``trainer.seed`` and of its number alone.

    Args:
        trainer: with ``seed`` and ``start_iter``, read when the first batch is asked for.
        records: Detectron2's standard dicts.
        mapper: Detectron2's, taking one of them.
        options: as of :func:`resnet_det.data.loader.training_batches`.

    Attributes:
        first: function without arguments -> number of the first batch.
        current: the batch given last.
    """

    def __init__(self, trainer, records, mapper, **options):
        self.trainer, self.records, self.mapper, self.options = trainer, records, mapper, options
        self.first = lambda: trainer.start_iter
        self.current = None

    def __iter__(self):
        batches = training_batches(
            self.records,
            Seeded(self.mapper),
            seed=self.trainer.seed,
            rank=distributed.get_rank(),
            world=distributed.get_world_size(),
            start_iter=self.first(),
            **self.options,
        )
        for self.current in batches:
            yield self.current


class Seeded:
    """Detectron2's mapper as :func:`training_batches` wants it: random by its argument alone."""

    def __init__(self, mapper):
        self.mapper = mapper

    def __call__(self, record, rng):
        states = random.getstate(), np.random.get_state()  # what Detectron2's transforms draw from
        random.seed(int(rng.integers(2**32)))
        np.random.seed(rng.integers(2**32))
        try:
            return self.mapper(record)
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


class _StopsTogether:
    """Ends all processes at a loss that is not finite, before a weight has changed.

    Detectron2's own check of the RPN's proposals comes first, and ends the process that it finds
    them in; where that is the only one, it leaves the same file.
    """

    def run_step(self):
        try:
            super().run_step()
        except FloatingPointError as error:
            if distributed.get_world_size() > 1 or "--replay" in str(error):
                raise
            self._stop({"loss_rpn (Detectron2: diverged)": torch.tensor(torch.nan)})

    def _stop(self, losses):
        name = f"not_finite_{self.iter:07d}"
        path = self.resumable.save(name, self.iter - 1, self.resumable.before)
        batch = getattr(self.data_loader, "current", None)
        raise FloatingPointError(not_finite(self.iter, losses, batch, path))

    def _write_metrics(self, loss_dict, *args, **kwargs):
        total = sum(loss_dict.values()).detach().double()
        if not distributed.mean_over_ranks(total).isfinite():
            self._stop(loss_dict)
        super()._write_metrics(loss_dict, *args, **kwargs)


class Simple(_StopsTogether, SimpleTrainer):
    """Detectron2's SimpleTrainer; ``resumable`` is the trainer's :class:`Resumable`."""


class AMP(_StopsTogether, AMPTrainer):
    """Detectron2's AMPTrainer; ``resumable`` is the trainer's :class:`Resumable`."""


class Resumable(HookBase):
    """In every process, in place of Detectron2's PeriodicCheckpointer: the same files, and exact.

    A checkpoint also gets every process's random state, the seed, and the scalars that
    ``metrics.json`` does not have yet. A resumed run puts them back, drops the lines of iterations
    that it will run again, and makes up for the evaluation that was due with the checkpoint.
    SIGTERM, SIGUSR1 and SIGINT (Ctrl-C) save and end the run with 128 + the signal's number.
    """

    def __init__(self, owner, cfg):
        self.owner = weakref.proxy(owner)
        self.checkpointer, self.period = owner.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD
        self.metrics = Path(cfg.OUTPUT_DIR) / "metrics.json"
        self.device = torch.device(cfg.MODEL.DEVICE)
        self.loaded = self.states = self.before = None
        self.signals = contextlib.ExitStack()

    def save(self, name, iteration, states=None):
        """Write a checkpoint after ``iteration``, from every process; returns its path.

        ``states``: those of before an iteration that failed; the last checkpoint stays another's.
        """
        self.trainer.iter = iteration  # which goes into the file
        distributed.share_buffers(self.checkpointer.model)
        self.states = distributed.all_gather_objects(states or rng_state(self.device))
        self.checkpointer.save(name, newest=states is None, iteration=iteration)
        distributed.barrier()  # from here on every process may read it
        return self.metrics.with_name(f"{name}.pth")

    def state_dict(self):
        storage = self.trainer.storage
        written = [line["iteration"] for line in read_metrics(self.metrics)]
        written = max(written, default=-1)
        scalars = {}
        for name, (_, latest) in storage.latest().items():
            if latest > written and name not in _TIMES:
                values = [(v, i) for v, i in storage.history(name).values() if i > latest - 20]
                scalars[name] = (storage.smoothing_hints()[name], values)
        return {
            "rng": self.states,
            "seed": self.owner.seed,
            "written": written,
            "scalars": scalars,
            "max_iter": self.trainer.max_iter,
        }

    def load_state_dict(self, state):
        self.loaded = state
        self.owner.seed = self.checkpointer.facts["seed"] = state["seed"]

    def before_train(self):
        self.received = self.signals.enter_context(stop_signals())
        if self.loaded is None:
            return
        restore_rng(self.loaded["rng"], self.device)
        start = self.trainer.start_iter
        if self.loaded["max_iter"] == start < self.trainer.max_iter:
            return  # a finished run is made longer: its metrics stay
        storage = self.trainer.storage
        if distributed.is_main():
            _cut(self.metrics, self.loaded["written"])
            for name, (smooth, values) in self.loaded["scalars"].items():
                for value, iteration in values:
                    storage.put_scalar(name, value, smoothing_hint=smooth, cur_iter=iteration)
        # The checkpoint was written in the middle of this iteration's hooks.
        self.trainer.iter = storage.iter = start - 1
        others = self.trainer._hooks
        for hook in others[others.index(self) + 1 :]:
            hook.after_step()

    def before_step(self):
        self.before = rng_state(self.device)

    def after_step(self):
        iteration = self.trainer.iter
        stopping = any(distributed.all_gather_objects(bool(self.received)))
        if stopping or (iteration + 1) % self.period == 0:
            self.save(f"model_{iteration:07d}", iteration)
        if iteration + 1 == self.trainer.max_iter:
            self.save("model_final", iteration)
        if stopping:
            raise SystemExit(exit_code(self.received))

    def after_train(self):
        self.signals.close()


def _cut(path, last):
    """Drop the lines of a ``metrics.json`` after iteration ``last``; Detectron2 has it open."""
    kept, size = len([o for o in read_metrics(path) if o["iteration"] <= last]), 0
    with open(path, "rb") as file:
        for _ in range(kept):
            size += len(file.readline())
    os.truncate(path, size)
