"""Apply a function to many items in several processes."""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")


def parallel_map(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, title: str
) -> list[Result]:
    """Return ``[function(item) for item in items]``, with a progress bar on a terminal.

    Args:
        function: function to apply; it must be picklable if ``workers`` is more than 1.
        workers: number of processes. With more than one, the main module needs an
            ``if __name__ == "__main__"`` guard, because the processes are spawned.
        title: title of the progress bar.
    """

    def progress(results):
        return tqdm(results, total=len(items), desc=title, leave=False, disable=None)

    if workers <= 1:
        return list(progress(map(function, items)))
    # Spawned, because forking a process that holds threads (torch's) is unsafe.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        chunk = max(1, min(16, len(items) // workers))
        return list(progress(pool.map(function, items, chunksize=chunk)))
