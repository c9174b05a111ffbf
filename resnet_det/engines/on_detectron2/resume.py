"""Exact resuming for Detectron2's trainer: batches by index, random states, metrics.

Detectron2 saves only the model, the optimizer and the schedule. A run that it resumes restarts the
sampler, draws different random numbers, and writes some lines of ``metrics.json`` twice.
"""

import contextlib
import math
import os
import random
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, HookBase, SimpleTrainer, TrainerBase
from torch import nn

from ...data.loader import training_batches
from ...training import distributed, read_metrics
from ...training.checkpoint import rng_state, storable
from ...training.loop import file_names, not_finite, restore_rng
from ...training.signals import exit_code, stop_signals

# Scalars that depend on the clock: a resumed run measures them itself.
TIMES = ("time", "data_time", "rank_data_time", "eta_seconds")

# The moving average of the number of positive anchors, by which RetinaNet and FCOS divide their
# losses. Each forward pass in training mode changes it, and it is in no state dict.
NORMALIZER = "loss_normalizer"


class Batches:
    """Training batches, each of which depends only on ``trainer.seed`` and its index.

    Args:
        trainer: its ``seed`` and ``start_iter`` are read when the first batch is requested.
        records: Detectron2's standard dicts.
        mapper: Detectron2's mapper, which takes one of them.
        options: see :func:`resnet_det.data.loader.training_batches`.

    Attributes:
        first: function that returns the index of the first batch.
        current: the batch that was yielded last.
    """

    def __init__(
        self,
        trainer: TrainerBase,
        records: list[dict],
        mapper: Callable[[dict], dict],
        **options: Any,
    ) -> None:
        self.trainer, self.records, self.mapper, self.options = trainer, records, mapper, options
        self.first: Callable[[], int] = lambda: trainer.start_iter
        self.current: list[dict] | None = None

    def __iter__(self) -> Iterator[list[dict]]:
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
    """Adapts Detectron2's mapper to take a random generator, which :func:`training_batches`
    passes."""

    def __init__(self, mapper: Callable[[dict], dict]) -> None:
        self.mapper = mapper

    def __call__(self, record: dict, rng: np.random.Generator) -> dict:
        states = random.getstate(), np.random.get_state()  # Detectron2's transforms draw from both
        random.seed(int(rng.integers(2**32)))
        np.random.seed(rng.integers(2**32))
        try:
            return self.mapper(record)
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


class Simple(SimpleTrainer):
    """Detectron2's SimpleTrainer, but a loss that is not finite stops all processes together.

    They stop before any weight changes. Detectron2's own check of the RPN's proposals runs earlier
    and raises in one process alone. If that is the only process, it saves the same file.
    """

    resumable: "Resumable"  # the trainer's

    def run_step(self) -> None:
        try:
            super().run_step()
        except FloatingPointError as error:
            if distributed.get_world_size() > 1 or "--replay" in str(error):
                raise
            self.stop({"loss_rpn (Detectron2: diverged)": torch.tensor(torch.nan)})

    def stop(self, losses: dict[str, torch.Tensor]) -> None:
        """Save the state before this iteration, and raise FloatingPointError in every process."""
        name = f"not_finite_{self.iter:07d}"
        path = self.resumable.save(name, self.iter - 1, self.resumable.before, newest=False)
        images = file_names(getattr(self.data_loader, "current", None))
        raise FloatingPointError(not_finite(self.iter, losses, images, path))

    def _write_metrics(self, loss_dict, *args, **kwargs):
        # One exchange tells all processes of a loss that is not finite, and of a signal.
        total = sum(loss_dict.values()).detach().double()
        signal = torch.full_like(total, bool(self.resumable.received))
        means = distributed.mean_over_ranks(torch.stack([total, signal])).tolist()
        if not math.isfinite(means[0]):
            self.stop(loss_dict)
        self.resumable.stopping = means[1] > 0
        super()._write_metrics(loss_dict, *args, **kwargs)


class AMP(Simple, AMPTrainer):
    """:class:`Simple` with Detectron2's AMPTrainer in place of SimpleTrainer."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Also restore a run that did not use float16 before; its loss scale is then new."""
        super().load_state_dict({"grad_scaler": self.grad_scaler.state_dict(), **state_dict})


class Resumable(HookBase):
    """Replaces Detectron2's PeriodicCheckpointer in every process. The files are the same, but runs
    resume exactly.

    A checkpoint also holds the :func:`own_state` of every process, the seed, and the scalars that
    ``metrics.json`` does not have yet. A resumed run restores them, drops the lines of iterations
    that it will run again, and makes up for the evaluation that was due with the checkpoint.
    SIGTERM, SIGUSR1 and SIGINT (Ctrl-C) save a checkpoint and end the run with exit code 128 + the
    signal's number.

    Args:
        owner: the :class:`.trainer.Trainer`, with ``checkpointer`` and ``seed``.

    Attributes:
        received: the signals that this process received since training began.
        stopping: whether a process had received one when this iteration's losses were exchanged.
        before: this process's :func:`own_state` before the current iteration.
    """

    def __init__(self, owner: TrainerBase, cfg: CfgNode) -> None:
        self.owner: Any = weakref.proxy(owner)
        self.checkpointer, self.period = owner.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD
        self.metrics = Path(cfg.OUTPUT_DIR) / "metrics.json"
        self.device = torch.device(cfg.MODEL.DEVICE)
        self.loaded: dict[str, Any] | None = None  # state of the checkpoint to resume from
        self.states: list | None = None  # the states to save, one per process
        self.before: Any = None
        self.received: list[int] = []
        self.stopping = False
        self.signals = contextlib.ExitStack()

    def save(self, name: str, iteration: int, state: Any = None, newest: bool = True) -> Path:
        """Write the checkpoint after ``iteration``; call it in every process.

        Args:
            name: name of the file, without ".pth".
            state: this process's :func:`own_state` before an iteration that failed. By default the
                current state is saved.
            newest: whether runs resume from this checkpoint.

        Returns:
            The path of the checkpoint.
        """
        self.trainer.iter = iteration  # the file stores it
        distributed.share_buffers(self.checkpointer.model)
        state = state or own_state(self.checkpointer.model, self.device)
        self.states = distributed.all_gather_objects(storable(state))
        self.checkpointer.save(name, newest=newest, iteration=iteration)
        distributed.barrier()  # now every process may read it
        return self.metrics.with_name(f"{name}.pth")

    def state_dict(self) -> dict[str, Any]:
        storage = self.trainer.storage
        written = max((line["iteration"] for line in read_metrics(self.metrics)), default=-1)
        scalars = {}
        for name, (_, latest) in storage.latest().items():
            if latest > written and name not in TIMES:
                values = [(v, i) for v, i in storage.history(name).values() if i > latest - 20]
                scalars[name] = (storage.smoothing_hints()[name], values)
        return {
            "rng": self.states,
            "seed": self.owner.seed,
            "written": written,
            "scalars": scalars,
            "max_iter": self.trainer.max_iter,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loaded = state
        self.owner.seed = self.checkpointer.facts["seed"] = state["seed"]

    def before_train(self) -> None:
        self.received = self.signals.enter_context(stop_signals())
        if self.loaded is None:
            return
        states = self.loaded["rng"]
        restore_rng(states, self.device)
        own = states[distributed.get_rank() % len(states)]
        if NORMALIZER in own:
            setattr(self.checkpointer.model, NORMALIZER, own[NORMALIZER])
        start = self.trainer.start_iter
        if self.loaded["max_iter"] == start < self.trainer.max_iter:
            return  # a finished run is extended, so its metrics stay
        storage = self.trainer.storage
        if distributed.is_main():
            cut(self.metrics, self.loaded["written"])
            for name, (smooth, values) in self.loaded["scalars"].items():
                for value, iteration in values:
                    storage.put_scalar(name, value, smoothing_hint=smooth, cur_iter=iteration)
        # One of that iteration's hooks wrote the checkpoint: run the hooks after it.
        self.trainer.iter = storage.iter = start - 1
        all_hooks = self.trainer._hooks
        for hook in all_hooks[all_hooks.index(self) + 1 :]:
            hook.after_step()

    def before_step(self) -> None:
        self.before = own_state(self.checkpointer.model, self.device)

    def after_step(self) -> None:
        iteration = self.trainer.iter
        if self.stopping or (iteration + 1) % self.period == 0:
            self.save(f"model_{iteration:07d}", iteration)
        if iteration + 1 == self.trainer.max_iter:
            self.save("model_final", iteration)
        if self.stopping:
            raise SystemExit(exit_code(self.received))

    def after_train(self) -> None:
        self.signals.close()


def own_state(model: nn.Module, device: torch.device) -> dict[str, Any]:
    """What a resumed run needs of this process: its random state, and the model's normalizer."""
    state, normalizer = rng_state(device), getattr(model, NORMALIZER, None)
    return state if normalizer is None else state | {NORMALIZER: normalizer}


@contextlib.contextmanager
def keep_normalizer(model: nn.Module) -> Iterator[None]:
    """Restore a model's normalizer on exit, or that it has none yet."""
    before = getattr(model, NORMALIZER, None)
    yield
    if before is not None:
        setattr(model, NORMALIZER, before)
    elif hasattr(model, NORMALIZER):
        delattr(model, NORMALIZER)


def cut(path: Path, last: int) -> None:
    """Truncate a ``metrics.json`` after iteration ``last``, in place, because Detectron2 has it
    open."""
    kept, size = len([o for o in read_metrics(path) if o["iteration"] <= last]), 0
    with open(path, "rb") as file:
        for _ in range(kept):
            size += len(file.readline())
    os.truncate(path, size)
