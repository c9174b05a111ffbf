"""The training loop of the embedded engine, for both detectors and classifiers."""

import contextlib
import logging
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import accumulate, distributed
from .best import no_improvement, since_best
from .checkpoint import Checkpointer, rng_state, set_rng_state, storable
from .graph import Graphed
from .metrics import Metrics
from .precision import amp_dtype
from .schedule import Schedule, initialise_momentum, keep_settings
from .signals import exit_code, stop_signals

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """The length of a run, its periods (in iterations), and the options of a step.

    Attributes:
        max_iter: number of iterations of the whole run.
        checkpoint_period: iterations between checkpoints.
        eval_period: iterations between evaluations; 0 evaluates only at the end.
        log_period: iterations per line of ``metrics.json``.
        amp: use mixed precision, in the type of :func:`.precision.amp_dtype`.
        clip: clips the gradients; called with the list of parameters after each backward pass.
        best_metric: the metric that chooses ``model_best.pth``, higher is better; "" keeps none.
        patience: number of evaluations in a row without a new best that ends the run; 0: none do.
        images: images per iteration, over all processes; 0 logs no images per second.
        accumulate: number of parts in which a process runs its batch; see :mod:`.accumulate`.
        cuda_graph: run forward and backward passes by :class:`.graph.Graphed`. This needs one
            process, batches of tensors of one shape, and a model that never waits for the GPU.
    """

    max_iter: int
    checkpoint_period: int
    eval_period: int = 0
    log_period: int = 20
    amp: bool = False
    clip: Callable[[list[nn.Parameter]], None] | None = None
    best_metric: str = ""
    patience: int = 0
    images: int = 0
    accumulate: int = 1
    cuda_graph: bool = False


class Trainer:
    """Trains a model, and keeps the checkpoints and the metrics of the run in one folder.

    ::

        trainer = Trainer(model, optimizer, schedule, folder, Plan(max_iter=..., ...))
        if state is not None:
            trainer.resume(state)
        trainer.run(batches(trainer.iteration), test)

    On CPUs, a run that is interrupted and resumed reproduces the weights and the metrics (except
    times) of an uninterrupted run bit for bit, provided that its batches are the same. On GPUs it
    resumes from the same state, but some kernels sum in an arbitrary order.

    ``metrics.json`` holds one JSON object per line, with Detectron2's keys. Every ``log_period``
    iterations, a line reports ``iteration`` (the last one run, from 0), ``total_loss``, each value
    that the model returned, ``lr``, ``time`` and ``data_time`` (seconds per iteration) and
    ``eta_seconds``. Values are averaged over the processes; the line has their median (for errors,
    their mean) over the iterations since the previous line. Evaluations have separate lines.
    TensorBoard's event files hold the same values.

    The host reads the losses of an iteration during the next one, so that a GPU always has work
    queued. A loss that is not finite still changes no weight: the GPU itself checks the loss before
    it updates them. Before a checkpoint or an evaluation, everything is read.

    Args:
        model: the model, on its device. In training mode, ``model(batch)`` returns a dict of scalar
            tensors, with the same keys in every process. Values whose names start with "loss" are
            summed and minimised; the others are only logged.
        optimizer: from :func:`.schedule.build_optimizer`.
        schedule: from :func:`.schedule.build_schedule`.
        folder: folder of the checkpoints, ``metrics.json`` and the event files.
        meta: plain facts that every checkpoint carries.

    Attributes:
        iteration: number of iterations done; also the index, from 0, of the next one. The losses of
            the last one may not have been read yet (:meth:`settle`).
        results: metrics of the last evaluation in this run; empty before the first.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.SGD,
        schedule: Schedule,
        folder: str | Path,
        plan: Plan,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = distributed.wrap(model)
        self.plain_model = model
        self.optimizer, self.schedule, self.plan = optimizer, schedule, plan
        self.checkpointer = Checkpointer(folder)
        self.meta = dict(meta or {})
        self.device = next(model.parameters()).device
        dtype = amp_dtype(self.device) if plan.amp else torch.float32
        mixed = dtype is not torch.float32
        self._autocast = torch.autocast(self.device.type, dtype=dtype, enabled=mixed)
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=dtype is torch.float16)
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._gradients: Callable[[Any], dict[str, torch.Tensor]] = self._forward_backward
        if plan.cuda_graph:
            self._gradients = Graphed(self._forward_backward, model)
        self._unread: Unread | None = None  # the last iteration, until its losses are read
        self._window: defaultdict[str, list[float]] = defaultdict(list)  # since the last line
        self._metrics: Metrics | None = None  # open while the main process runs
        self._resumed_rng: list[dict[str, Any]] | None = None
        self._signals: list[int] = []  # received by this process
        self._stopping = False  # any process has received one
        self._stale = 0  # evaluations since the best one
        self.iteration = 0
        self.results: dict[str, float] = {}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of a checkpoint that :meth:`save` wrote.

        Learning rates, weight decay and momentum stay those that the optimizer was built with.

        Raises:
            ValueError: another engine or program wrote it, it does not fit the model, or see
                :func:`.schedule.keep_settings`.
        """
        if not {"optimizer", "schedule", "rng"} <= state.keys():
            raise ValueError(
                f"{self.checkpointer.folder}: its last checkpoint holds no state to resume, because "
                "another engine or program wrote it: give it as MODEL.WEIGHTS, and another OUTPUT_DIR"
            )
        self.iteration = state["iteration"]
        try:
            self.plain_model.load_state_dict(state["model"])
        except RuntimeError as error:  # its message has one line per parameter
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"{self.checkpointer.folder}: its last checkpoint does not fit the config's net: "
                f"give the config of that run, or another OUTPUT_DIR ({reason})"
            ) from error
        with keep_settings(self.optimizer, self.schedule, state["optimizer"]):
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
        initialise_momentum(self.optimizer)  # the checkpoint has none if it was 0
        if state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])
        self._window.update({name: list(values) for name, values in state["window"].items()})
        self._resumed_rng = state["rng"]

    def run(
        self,
        batches: Iterator[Any],
        test: Callable[[nn.Module], dict[str, float]] | None = None,
        finish: Callable[[nn.Module], None] | None = None,
    ) -> None:
        """Train up to iteration ``max_iter`` and save ``model_final.pth``.

        The run ends earlier once ``plan.patience`` evaluations in a row brought no new best.
        After SIGTERM, SIGUSR1 (Slurm's warning) or SIGINT (Ctrl-C) the process finishes the
        iteration in progress, runs at most two more, saves a checkpoint and exits with 128 + the
        signal's number. A run that does not resume clears the metrics of an earlier one.

        Args:
            batches: the model's inputs, from iteration :attr:`iteration` on.
            test: evaluates the unwrapped model in every process, every ``eval_period`` iterations
                and at the end. The main process logs the dict of metrics that it returns.
            finish: changes the unwrapped model in every process after the last iteration, before it
                is saved (precise BN).

        Raises:
            FloatingPointError: see :meth:`settle`.
            ValueError: the batches end before ``max_iter``.
        """
        if distributed.is_main():
            self._metrics = Metrics(self.checkpointer.folder, self.iteration)
        if self.plan.best_metric:
            self._compare()
        self.model.train()
        try:
            if self._resumed_rng is not None:
                restore_rng(self._resumed_rng, self.device)
                self._catch_up(test)
            with stop_signals() as self._signals:
                while self.iteration < self.plan.max_iter and not self._exhausted():
                    self._iterate(batches, test, finish)
                if self.iteration < self.plan.max_iter:
                    logger.info(no_improvement(self.plan.best_metric, self._stale))
                    self.save("model_final")
                if self._signals:  # received during the last evaluation
                    raise SystemExit(exit_code(self._signals))
        finally:
            if self._metrics is not None:
                self._metrics.close()

    def step(self, batch: Any) -> None:
        """Run one iteration: forward pass, backward pass, update. Reads the previous one's losses.

        Raises:
            KeyError: no key that the model returned starts with "loss".
            FloatingPointError: a loss of the previous iteration is NaN or infinite; see
                :meth:`settle`.
        """
        rng = rng_state(self.device)
        outputs = self._gradients(batch)
        # One exchange between the processes per iteration. It also carries a stop or a NaN in any
        # process to all of them, so that they act together.
        stop = torch.full((), bool(self._signals), dtype=torch.float64, device=self.device)
        local = torch.stack([*(v.to(self.device, torch.float64) for v in outputs.values()), stop])
        means = distributed.mean_over_ranks(local)
        # The total is not finite if any loss is not.
        self.optimizer.found_inf = (~means[0].isfinite()).float()  # type: ignore[attr-defined]

        # Before the update: a failed iteration is the last, and these losses may set its rate.
        self.settle()
        images = file_names(batch)  # not the batch itself, whose memory can be used again
        self._unread = Unread(self.iteration, images, rng, dict(zip(outputs, local)), means)
        if self._scaler.is_enabled():  # in float16, its own found_inf replaces the optimizer's
            self._check(self._unread)
        self._update()
        self.iteration += 1

    def settle(self) -> None:
        """Wait for the last iteration, read its losses, and act on them: log, set the next learning
        rate.

        Raises:
            FloatingPointError: a loss is NaN or infinite. The message names the iteration, the
                losses, the images and the file ``not_finite_<iteration>.pth``. That file is a
                checkpoint from just before this iteration (except the running statistics of batch
                norms), which ``last_checkpoint`` does not name.
        """
        if self._unread is None:
            return
        values = self._check(self._unread)
        self._unread = None
        for name, value in values.items():
            self._window[name].append(value)
        self.schedule.observe(values)
        self.schedule.step()
        if self.iteration == self.plan.max_iter or self.iteration % self.plan.log_period == 0:
            self._log()

    def _forward_backward(self, batch):
        """Compute the gradients of a batch. Returns this process's total loss and values."""
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast:
            parts = self.plan.accumulate
            outputs = accumulate.forward(self.model, batch, parts, self._backward)
        total = self._backward(outputs)
        return {name: v.detach() for name, v in {"total_loss": total, **outputs}.items()}

    def _backward(self, outputs):
        losses = [value for name, value in outputs.items() if name.startswith("loss")]
        if not losses:
            raise KeyError(f"no key of {sorted(outputs)} starts with 'loss'")
        total = sum(losses)
        self._scaler.scale(total).backward()
        return total

    def _check(self, unread):
        """Wait for an iteration. Returns its values if its losses are finite."""
        values, self._stopping = unread.read()
        if not math.isfinite(values["total_loss"]):
            self.iteration, self._unread = unread.iteration, None
            path = self.save(f"not_finite_{self.iteration:07d}", unread.rng, newest=False)
            losses = {k: v for k, v in unread.local.items() if k.startswith("loss")}
            raise FloatingPointError(not_finite(self.iteration, losses, unread.images, path))
        return values

    def _update(self):
        if self.plan.clip is not None:
            self._scaler.unscale_(self.optimizer)
            self.plan.clip(self._parameters)
        self._unread.extra["lr"] = self.optimizer.param_groups[0]["lr"]
        self._scaler.step(self.optimizer)  # changes nothing if ``found_inf`` is set
        self._scaler.update()

    def save(
        self, name: str, failed_rng: dict[str, Any] | None = None, newest: bool = True
    ) -> Path:
        """Write the checkpoint ``<name>.pth``. Call this in every process, after :meth:`settle`.

        Args:
            failed_rng: random state from before an iteration that failed. The checkpoint then
                resumes with that iteration.
            newest: whether ``last_checkpoint`` names this checkpoint from now on.
        """
        distributed.share_buffers(self.plain_model)
        states = distributed.all_gather_objects(storable(failed_rng or rng_state(self.device)))
        if distributed.is_main():
            path = self.checkpointer.save(
                name,
                newest=newest,
                model=self.plain_model.state_dict(),
                optimizer=self.optimizer.state_dict(),
                schedule=self.schedule.state_dict(),
                scaler=self._scaler.state_dict(),
                iteration=self.iteration,
                rng=states,
                window=dict(self._window),
                meta=self.meta,
            )
            logger.info("saved %s", path)
        distributed.barrier()  # from here on every process may read it
        return self.checkpointer.folder / f"{name}.pth"

    def evaluate(self, test: Callable[[nn.Module], dict[str, float]]) -> dict[str, float]:
        """Evaluate the model as it would be saved, and log its metrics. Call :meth:`settle` before.

        Evaluation does not affect training: the random states and each module's mode are restored.

        Returns:
            the metrics, in the main process.
        """
        distributed.share_buffers(self.plain_model)
        with undisturbed(self.plain_model, self.device):
            self.results = dict(test(self.plain_model))
        # Before the metrics are written: a resumed run repeats an evaluation that has no line.
        if self.plan.best_metric and self._compare(self.results) == 0:
            self.save("model_best", newest=False)
        if self._metrics is not None:
            self._metrics.write(self.iteration - 1, self.results)
            logger.info(
                "evaluation after iteration %d: %s", self.iteration - 1, _brief(self.results)
            )
        distributed.barrier()  # the main process may take long to compute the results
        return self.results

    def _iterate(self, batches, test, finish):
        """Run one iteration and everything that is due after it."""
        begin = time.perf_counter()
        try:
            batch = next(batches)
        except StopIteration:
            raise ValueError(
                f"the batches end at iteration {self.iteration} of {self.plan.max_iter}"
            ) from None
        data_time = time.perf_counter() - begin
        self.step(batch)
        self._unread.extra |= {"time": time.perf_counter() - begin, "data_time": data_time}
        last = self.iteration == self.plan.max_iter
        saving = last or self.iteration % self.plan.checkpoint_period == 0
        evaluating = test is not None and self._evaluation_due()
        if saving or evaluating or self._stopping:
            self.settle()
        if last and finish is not None:
            finish(self.plain_model)
        if saving or self._stopping:
            self.save("model_final" if last else f"model_{self.iteration - 1:07d}")
        if self._stopping:
            logger.warning(
                "stopped by a signal after iteration %d; continue with --resume", self.iteration - 1
            )
            raise SystemExit(exit_code(self._signals))
        if evaluating:
            self.evaluate(test)

    def _compare(self, *results):
        """Count the evaluations since the best one: those in ``metrics.json``, then ``results``."""
        stale = 0
        if self._metrics is not None:
            stale = since_best(self.plan.best_metric, [*self._metrics.lines(), *results])
        self._stale = distributed.all_gather_objects(stale)[0]
        return self._stale

    def _exhausted(self):
        return 0 < self.plan.patience <= self._stale

    def _evaluation_due(self):
        period = self.plan.eval_period
        return self.iteration == self.plan.max_iter or (period > 0 and self.iteration % period == 0)

    def _catch_up(self, test):
        """Evaluate if the run ended between a checkpoint and the evaluation that follows it."""
        last = distributed.all_gather_objects(self._metrics and self._metrics.last_evaluation)[0]
        if test is not None and self._evaluation_due() and last != self.iteration - 1:
            self.evaluate(test)
        elif self.iteration >= self.plan.max_iter:
            logger.info("all %d iterations are already done", self.plan.max_iter)

    def _log(self):
        """Write the line of the current window, and begin the next window."""
        line = {name: _summary(name, values) for name, values in self._window.items()}
        line["lr"] = self._window["lr"][-1]
        line["eta_seconds"] = line["time"] * (self.plan.max_iter - self.iteration)
        self._window.clear()
        if self._metrics is not None:
            self._metrics.write(self.iteration - 1, line)
            logger.info(_progress(self.iteration, self.plan, line, self.device))


class Unread:
    """An iteration whose losses the host has not read yet.

    Args:
        images: file names of this process's images.
        rng: this process's random state before the iteration.
        local: this process's values by name, scalars on the device.
        means: float64 tensor of these values, averaged over the processes, and of the stop flag.

    Attributes:
        extra: values of this iteration that the host knows.
    """

    def __init__(
        self,
        iteration: int,
        images: Sequence[str],
        rng: dict[str, Any],
        local: dict[str, torch.Tensor],
        means: torch.Tensor,
    ) -> None:
        self.iteration, self.images, self.rng, self.local = iteration, images, rng, local
        self.extra: dict[str, float] = {}
        # From a GPU, this copies in the background, into pinned memory.
        self._means = means.to("cpu", non_blocking=True)
        self._copied = torch.cuda.Event() if means.is_cuda else None
        if self._copied is not None:
            self._copied.record()

    def read(self) -> tuple[dict[str, float], bool]:
        """Wait for the values. Returns them by name, and whether a process is to stop."""
        if self._copied is not None:
            self._copied.synchronize()
        *means, stopping = self._means.tolist()
        return dict(zip(self.local, means)) | self.extra, bool(stopping)


@contextlib.contextmanager
def undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Restore the random states and the training mode of every module on exit."""
    state, modes = rng_state(device), [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        set_rng_state(state, device)


def restore_rng(states: Sequence[dict[str, Any]], device: torch.device) -> None:
    """Restore this process's random state.

    Args:
        states: one state per process of the run that saved them. If this run has another number of
            processes, no state is restored and a warning is logged.
    """
    if len(states) == distributed.get_world_size():
        set_rng_state(states[distributed.get_rank()], device)
    else:
        logger.warning(
            "%d processes wrote the checkpoint, and this run has %d: random draws inside the model "
            "will differ from the uninterrupted run's",
            len(states),
            distributed.get_world_size(),
        )


def file_names(batch: Any) -> list[str]:
    """The images of a batch; [] if it is not a list of dicts with ``file_name``."""
    if isinstance(batch, list) and all(isinstance(s, dict) and "file_name" in s for s in batch):
        return [str(sample["file_name"]) for sample in batch]
    return []


def not_finite(
    iteration: int, losses: Mapping[str, torch.Tensor], images: Sequence[str], path: str | Path
) -> str:
    """The error message for losses that are not finite. Call this in every process.

    It names the losses and the images of the processes with such a loss.

    Args:
        losses: this process's losses, scalars.
        images: :func:`file_names` of this process's batch.
        path: the checkpoint from just before the iteration.
    """
    mine = ""
    if not all(math.isfinite(loss.item()) for loss in losses.values()):
        mine = ", ".join(f"{name} = {loss.item():g}" for name, loss in losses.items())
        if images:
            mine += "; images: " + ", ".join(images)
    reports = [report for report in distributed.all_gather_objects(mine) if report]
    return (
        f"a loss is not finite in iteration {iteration}: {' | '.join(reports)}. "
        "A lower learning rate, a longer warm-up or gradient clipping may help. "
        f"The same command with --replay {path} runs this iteration again"
    )


def _summary(name, values):
    """Summarise a window of values.

    Losses use the median, so one outlier batch does not show. Error rates use the mean: late in
    training most batches have no error, and the median would be 0.
    """
    return (statistics.fmean if name.endswith("error") else statistics.median)(values)


def _progress(done, plan, line, device):
    eta = timedelta(seconds=round(line["eta_seconds"]))
    shown = [f"{k}: {v:.4g}" for k, v in line.items() if k not in ("eta_seconds", "lr")]
    text = f"eta: {eta}  iter: {done}/{plan.max_iter}  {'  '.join(shown)}  lr: {line['lr']:.5g}"
    if plan.images:
        text += f"  images/s: {plan.images / line['time']:.4g}"
    if device.type == "cuda":
        text += f"  max_mem: {torch.cuda.max_memory_allocated(device) / 2**20:.0f}M"
    return text


def _brief(results):
    """Format the metrics, without those of single classes ("AP-cat")."""
    return ", ".join(f"{name} {value:.4g}" for name, value in results.items() if "-" not in name)
