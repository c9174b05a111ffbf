"""Profile some iterations of a training run (``--profile N``)."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..files import whole_file

logger = logging.getLogger(__name__)

# The first iterations start workers, choose algorithms and fill caches. The profiler itself runs,
# but discards what it sees, in the last ones of them.
SKIPPED, DISCARDED = 8, 2


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
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / "trace.json") as file:
            profiler.export_chrome_trace(str(file))
        device = "device" if torch.cuda.is_initialized() else "cpu"
        operators = profiler.key_averages()
        table = operators.table(sort_by=f"self_{device}_time_total", row_limit=100)
        with whole_file(folder / "operators.txt") as file:
            file.write_text(table)
        logger.info("wrote the profile of %d iterations to %s", iterations, folder)

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
                    "--profile %d: needs %d iterations, but the run made %d: raise SOLVER.MAX_ITER",
                    iterations, needed, done,
                )  # fmt: skip
