"""The metrics of a run: ``metrics.json`` and TensorBoard's event files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import write_whole


class Metrics:
    """``metrics.json`` and TensorBoard's event files of an output folder.

    Opening them drops the lines from iteration ``start_iter`` on, which a run wrote after its last
    checkpoint, and a truncated line. A resumed run therefore leaves neither gaps nor duplicates.

    Attributes:
        last_evaluation: iteration of the last evaluation that was kept, or None.
    """

    def __init__(self, folder: str | Path, start_iter: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import: main process only

        path = Path(folder) / "metrics.json"
        kept = [line for line in read_metrics(path) if line["iteration"] < start_iter]
        write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))
        evaluations = [line["iteration"] for line in kept if "total_loss" not in line]
        self.last_evaluation = evaluations[-1] if evaluations else None
        self._path = path
        self._events = SummaryWriter(folder, purge_step=start_iter)

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        """Append one line, and write the same values as TensorBoard scalars."""
        values = {name: float(value) for name, value in values.items()}
        with open(self._path, "a") as file:
            file.write(json.dumps({"iteration": iteration, **values}) + "\n")
        for name, value in values.items():
            self._events.add_scalar(name, value, iteration)
        self._events.flush()

    def lines(self) -> list[dict[str, Any]]:
        """The lines that were kept or written, in order."""
        return read_metrics(self._path)

    def close(self) -> None:
        """Close the event file."""
        self._events.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Read the lines of a ``metrics.json``, in order; [] if there is no file.

    A truncated last line, which a killed process may leave, is skipped.

    Raises:
        ValueError: another line is damaged. The message names the file and the line.
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
