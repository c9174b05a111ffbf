"""The training loop, for detectors and classifiers alike."""

import collections
import contextlib
import json
import logging
import math
import signal
import statistics
import threading
import time
from datetime import timedelta
from pathlib import Path

import torch

from ..files import whole_file
from . import distributed
from .checkpoint import rng_state, set_rng_state
from .precision import amp_dtype

logger = logging.getLogger(__name__)


def train(
    model,
    batches,
    optimizer,
    schedule,
    *,
    max_iter,
    checkpointer,
    checkpoint_period,
    output_dir,
    device,
    resume_from=None,
    evaluate=None,
    eval_period=0,
    log_period=20,
    finish=None,
    clip=None,
    amp=False,
    meta=None,
):
    """Train up to iteration ``max_iter`` and leave ``model_final.pth``.

    On CPUs, a run that was interrupted and resumed gives bit for bit the weights and the metrics (but
    for times) of one that was not, provided that ``batches`` does too; on GPUs it resumes from the
    same state, but some kernels add in any order. After SIGTERM, SIGUSR1 (Slurm's
    warning) or SIGINT (Ctrl-C) the iteration in progress is finished, a checkpoint is saved and the
    process exits with 128 + the signal's number.

    ``metrics.json`` (appended to, one object a line, Detectron2's keys) gets every ``log_period``
    iterations ``iteration`` (the last one run, from 0), ``total_loss``, each loss, ``lr``,
    ``time``, ``data_time`` (seconds an iteration) and ``eta_seconds``: medians (of an error the
    mean) over the iterations since the previous line, of means over the processes. Evaluations get
    lines of their own.
    TensorBoard's event files hold the same.

    Args:
        model: training mode: ``model(batch)`` -> dict of scalar tensors, the same keys in every
            process. Those whose name starts with "loss" are summed and minimised, the others
            only logged. Already on ``device`` and through :func:`distributed.wrap`.
        batches: iterator of what ``model`` takes, positioned at the first iteration to run.
        schedule: from :func:`.schedule.build_schedule`; ``observe(values)``, with what ``model``
            returned, and ``step()`` are called after every iteration.
        checkpointer: a :class:`~resnet_det.training.checkpoint.Checkpointer`.
        checkpoint_period: iterations from checkpoint to checkpoint.
        resume_from: a state from ``checkpointer.load_latest()``; training goes on at its
            ``iteration``. None starts at 0, and clears the metrics of an earlier run.
        evaluate: called in every process with the unwrapped model; the main process's flat dict
            of floats is logged. It leaves training as it was: random states and the mode of each
            module are put back. Runs every ``eval_period`` iterations (0: never) and at the end.
        finish: called in every process with the unwrapped model after the last iteration, before
            ``model_final.pth`` is saved (precise BN).
        clip: called with the list of parameters after the backward pass.
        amp: mixed precision, in the type of :func:`.precision.amp_dtype`.
        meta: dict of plain facts, kept in each checkpoint.

    Raises:
        FloatingPointError: a loss is NaN or infinite; names the iteration, the losses, the images
            and the file ``not_finite_<iteration>.pth``: a checkpoint from just before that
            iteration, which ``last_checkpoint`` does not name.
    """
    device = torch.device(device)
    dtype = amp_dtype(device) if amp else torch.float32
    mixed = torch.autocast(device.type, dtype=dtype, enabled=dtype is not torch.float32)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    plain_model = distributed.unwrap(model)
    start_iter, window = 0, collections.defaultdict(list)
    if resume_from is not None:
        if not {"optimizer", "schedule", "rng"} <= resume_from.keys():
            raise ValueError(
                f"{checkpointer.folder}: its last checkpoint was not written by this engine, so it "
                "cannot be resumed here: give it as MODEL.WEIGHTS and another OUTPUT_DIR"
            )
        start_iter = resume_from["iteration"]
        plain_model.load_state_dict(resume_from["model"])
        optimizer.load_state_dict(resume_from["optimizer"])
        schedule.load_state_dict(resume_from["schedule"])
        if resume_from["scaler"]:
            scaler.load_state_dict(resume_from["scaler"])
        window.update({name: list(values) for name, values in resume_from["window"].items()})
    metrics = Metrics(output_dir, start_iter) if distributed.is_main() else None

    def save(name, iteration, rng=None):
        """``rng``: save the state before the iteration after ``iteration``, which failed."""
        distributed.share_buffers(plain_model)
        states = distributed.all_gather_objects(rng or rng_state(device))
        if distributed.is_main():
            path = checkpointer.save(
                name,
                newest=rng is None,
                model=plain_model.state_dict(),
                optimizer=optimizer.state_dict(),
                schedule=schedule.state_dict(),
                scaler=scaler.state_dict(),
                iteration=iteration + 1,
                rng=states,
                window=dict(window),
                meta=dict(meta or {}),
            )
            logger.info("saved %s", path)
        distributed.barrier()  # from here on every process may read it

    def run_evaluation(iteration):
        distributed.share_buffers(plain_model)
        with undisturbed(plain_model, device):
            results = evaluate(plain_model)
        if metrics is not None:
            metrics.write(iteration, results)
            logger.info("evaluation after iteration %d: %s", iteration, _brief(results))
        distributed.barrier()  # the main process may take long to compute the results

    def evaluation_due(iteration):
        last = iteration + 1 == max_iter
        return evaluate is not None and (
            last or (eval_period > 0 and (iteration + 1) % eval_period == 0)
        )

    model.train()
    try:
        if resume_from is not None:
            restore_rng(resume_from["rng"], device)
            # The run may have ended between its checkpoint and the evaluation that follows it.
            done = distributed.all_gather_objects(metrics and metrics.last_evaluation)[0]
            if evaluation_due(start_iter - 1) and done != start_iter - 1:
                run_evaluation(start_iter - 1)
            elif start_iter >= max_iter:
                logger.info("all %d iterations are done already", max_iter)
        with stop_signals() as stop:
            for iteration in range(start_iter, max_iter):
                begin = time.perf_counter()
                try:
                    batch = next(batches)
                except StopIteration:
                    raise ValueError(
                        f"the batches ended at iteration {iteration} of {max_iter}"
                    ) from None
                data_time = time.perf_counter() - begin
                before = rng_state(device)

                with mixed:
                    outputs = model(batch)
                losses = {name: v for name, v in outputs.items() if name.startswith("loss")}
                if not losses:
                    raise KeyError(f"no key of {sorted(outputs)} starts with 'loss'")
                total = sum(losses.values())
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(total).backward()

                # One transfer from the device and one exchange between processes an iteration;
                # a stop or a NaN anywhere reaches every process in it, so that all act alike.
                packed = [total, *outputs.values(), torch.tensor(float(bool(stop)))]
                packed = torch.stack([v.detach().to(device, torch.float64) for v in packed])
                *values, stopping = distributed.mean_over_ranks(packed).tolist()
                values = dict(zip(["total_loss", *outputs], values))
                if not all(math.isfinite(values[name]) for name in ["total_loss", *losses]):
                    name = f"not_finite_{iteration:07d}"
                    save(name, iteration - 1, before)
                    raise FloatingPointError(
                        not_finite(iteration, losses, batch, checkpointer.folder / f"{name}.pth")
                    )

                if clip is not None:
                    scaler.unscale_(optimizer)
                    clip(parameters)
                values["lr"] = optimizer.param_groups[0]["lr"]
                scaler.step(optimizer)
                scaler.update()
                schedule.observe(values)
                schedule.step()

                values["time"] = time.perf_counter() - begin
                values["data_time"] = data_time
                for name, value in values.items():
                    window[name].append(value)
                last = iteration + 1 == max_iter
                if (iteration + 1) % log_period == 0 or last:
                    line = {name: _summary(name, v) for name, v in window.items()}
                    line["lr"] = values["lr"]
                    line["eta_seconds"] = line["time"] * (max_iter - iteration - 1)
                    window.clear()
                    if metrics is not None:
                        metrics.write(iteration, line)
                        logger.info(_progress(iteration, max_iter, line, device))
                if last and finish is not None:
                    finish(plain_model)
                if last or stopping or (iteration + 1) % checkpoint_period == 0:
                    save("model_final" if last else f"model_{iteration:07d}", iteration)
                if stopping:
                    logger.warning("stopped by a signal after iteration %d; can resume", iteration)
                    raise SystemExit(exit_code(stop))
                if evaluation_due(iteration):
                    run_evaluation(iteration)
            if stop:  # it came during the last evaluation
                raise SystemExit(exit_code(stop))
    finally:
        if metrics is not None:
            metrics.close()


class Metrics:
    """``metrics.json`` and TensorBoard's event files of an output folder.

    Lines at or after ``start_iter``, from a run that went further than its checkpoint, are
    dropped, and so is a line cut short; so a resumed run leaves neither gaps nor doubles.
    """

    def __init__(self, folder, start_iter):
        from torch.utils.tensorboard import SummaryWriter  # slow to import: main process only

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.json"
        kept = [line for line in read_metrics(path) if line["iteration"] < start_iter]
        with whole_file(path) as file:
            file.write_text("".join(json.dumps(line) + "\n" for line in kept))
        evaluations = [line["iteration"] for line in kept if "total_loss" not in line]
        self.last_evaluation = evaluations[-1] if evaluations else None
        self._path = path
        self._events = SummaryWriter(folder, purge_step=start_iter)

    def write(self, iteration, values):
        values = {name: float(value) for name, value in values.items()}
        with open(self._path, "a") as file:
            file.write(json.dumps({"iteration": iteration, **values}) + "\n")
        for name, value in values.items():
            self._events.add_scalar(name, value, iteration)
        self._events.flush()

    def close(self):
        self._events.close()


def read_metrics(path):
    """The objects of a ``metrics.json``, in order; [] where there is no file.

    A last line that a kill cut short is left out; a damaged line elsewhere is a ValueError.
    """
    try:
        lines = Path(path).read_text().splitlines()
    except FileNotFoundError:
        return []
    objects = []
    for number, line in enumerate(lines, 1):
        try:
            objects.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
    return objects


@contextlib.contextmanager
def undisturbed(model, device):
    """Put the random states and every module's training mode back afterwards."""
    state, modes = rng_state(device), [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        set_rng_state(state, device)


@contextlib.contextmanager
def stop_signals():
    """A list to which SIGTERM, SIGUSR1 and SIGINT (Ctrl-C) add their numbers, in place of ending the
    process. The third SIGINT ends it at once: torchrun passes a terminal's on a second time."""
    received = []

    def receive(number, _):
        received.append(int(number))
        if received.count(signal.SIGINT) > 2:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield received  # Python delivers signals to the main thread only
        return
    previous = {
        number: signal.signal(number, receive)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    }
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def exit_code(received):
    """Of a process that stops for :func:`stop_signals`; another process may have got the signal."""
    return 128 + (received[0] if received else signal.SIGTERM)


def restore_rng(states, device):
    """Put this process's of the saved random states back; warns where the number of processes
    is another."""
    if len(states) == distributed.get_world_size():
        set_rng_state(states[distributed.get_rank()], device)
    else:
        logger.warning(
            "the checkpoint is of %d processes and this run has %d: random draws inside the model "
            "will differ from the uninterrupted run's",
            len(states),
            distributed.get_world_size(),
        )


def not_finite(iteration, losses, batch, path):
    """Message of the error that ends all processes together: each tells its losses and images.

    ``path``: the file that :func:`train` saved for it.
    """
    mine = ""
    if not all(math.isfinite(loss.item()) for loss in losses.values()):
        mine = ", ".join(f"{name} = {loss.item():g}" for name, loss in losses.items())
        if isinstance(batch, list) and all(isinstance(s, dict) and "file_name" in s for s in batch):
            mine += "; images: " + ", ".join(str(sample["file_name"]) for sample in batch)
    reports = [report for report in distributed.all_gather_objects(mine) if report]
    return (
        f"a loss is not finite in iteration {iteration}: {' | '.join(reports)}. "
        "A lower learning rate, a longer warm-up or gradient clipping may help. "
        f"The same command with --replay {path} runs this iteration again"
    )


def _summary(name, values):
    """The median of a window, deaf to single batches. An error counts images, few at the end: the
    median of its batches would be 0 where a third of them have a wrong one."""
    return (statistics.fmean if name.endswith("error") else statistics.median)(values)


def _progress(iteration, max_iter, line, device):
    eta = timedelta(seconds=round(line["eta_seconds"]))
    shown = [f"{k}: {v:.4g}" for k, v in line.items() if k not in ("eta_seconds", "lr")]
    text = f"eta: {eta}  iter: {iteration + 1}/{max_iter}  {'  '.join(shown)}  lr: {line['lr']:.5g}"
    if device.type == "cuda":
        text += f"  max_mem: {torch.cuda.max_memory_allocated(device) / 2**20:.0f}M"
    return text


def _brief(results):
    """Without the metrics of single classes ("AP-cat")."""
    return ", ".join(f"{name} {value:.4g}" for name, value in results.items() if "-" not in name)
