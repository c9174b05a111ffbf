"""Profile some iterations of a training run (``--profile N``)."""

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..config.defaults import ConfigError
from ..files import whole_file, write_whole

logger = logging.getLogger(__name__)

# The first iterations start workers, choose algorithms and fill caches. The profiler itself runs,
# but discards what it sees, in the last ones of them.
SKIPPED, DISCARDED = 8, 2


def check_length(iterations: int, max_iter: int, resumed: Path | None) -> None:
    """Raise ConfigError if a run is too short for a profile of ``iterations``.

    Args:
        resumed: the checkpoint that the run resumes from, if any.
    """
    number = re.fullmatch(r"model_(\d+)", resumed.stem) if resumed else None
    done = int(number[1]) + 1 if number else 0
    needed = SKIPPED + DISCARDED + iterations
    if max_iter - done < needed:
        after = f" after {resumed.name}" if number and resumed else ""
        raise ConfigError(
            f"--profile {iterations}: needs {needed} iterations, but the run makes only "
            f"{max(0, max_iter - done)}{after}: raise SOLVER.MAX_ITER to at least {done + needed}, "
            "or profile fewer"
        )


@contextlib.contextmanager
def profiling(folder: str | Path, iterations: int) -> Iterator[None]:
    """Profile the training inside, in either engine: ``iterations`` of them, after ten others.

    An iteration ends with the step of the optimizer.

    Args:
        folder: receives ``trace.json``, which chrome://tracing and https://ui.perfetto.dev show, and
            ``operators.txt``, a table of the operators by their own time.
    """
    folder, done = Path(folder), 0

    def write(profiler: torch.profiler.profile) -> None:
        profiled = done - SKIPPED - DISCARDED  # fewer than asked for if the run ends early
        if profiled < 1:
            return
        with whole_file(folder / "trace.json") as file:
            profiler.export_chrome_trace(str(file))
        device = "device" if torch.cuda.is_initialized() else "cpu"
        operators = profiler.key_averages()
        table = operators.table(sort_by=f"self_{device}_time_total", row_limit=100)
        write_whole(folder / "operators.txt", table)
        logger.info("wrote the profile of %d iterations to %s", profiled, folder)

    schedule = torch.profiler.schedule(wait=SKIPPED, warmup=DISCARDED, active=iterations, repeat=1)
    with torch.profiler.profile(schedule=schedule, on_trace_ready=write) as profiler:

        def step(*_: object) -> None:
            nonlocal done
            done += 1
            profiler.step()

        hook = register_optimizer_step_post_hook(step)
        try:
            yield
        finally:
            hook.remove()
            needed = SKIPPED + DISCARDED + iterations
            if done < needed:
                logger.warning(
                    "--profile %d: needs %d iterations, but the run ended after %d",
                    iterations, needed, done,
                )  # fmt: skip
