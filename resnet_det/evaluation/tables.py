"""Format results as Markdown tables that are also legible as plain text, and as JSON."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from .inputs import Evaluation


def markdown_table(rows: Sequence[Sequence[Any]], header: Sequence[str], digits: int = 1) -> str:
    """Format a Markdown table, padded so that it is legible in a terminal too.

    `format_cell` formats the cells. A column of numbers is right-aligned.

    Raises:
        ValueError: a row and the header differ in length.
    """
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"row {list(row)} has {len(row)} cells, but the header {len(header)}")
    cells = [[_escaped(format_cell(value, digits)) for value in row] for row in rows]
    numeric = [bool(column) and all(map(_NUMBER.fullmatch, column)) for column in zip(*cells)]
    return (
        tabulate(
            cells,
            [_escaped(name) for name in header],
            tablefmt="pipe",
            disable_numparse=True,
            colalign=["right" if right else "left" for right in numeric] or None,
        )
        + "\n"
    )


def format_cell(value: Any, digits: int = 1) -> str:
    """Format a value: floats with ``digits`` decimals, None and NaN as a dash."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def summary_table(evaluations: Mapping[str, Evaluation]) -> str:
    """One row per evaluation: its name and the metrics over all classes."""
    names = list(dict.fromkeys(name for e in evaluations.values() for name in e.overall))
    rows = [[name, *map(e.overall.get, names)] for name, e in evaluations.items()]
    return markdown_table(rows, ["", *names])


def class_table(evaluation: Evaluation) -> str:
    """One row per class: its name and its metrics."""
    rows = [[name, *values.values()] for name, values in evaluation.per_class.items()]
    return markdown_table(rows, ["class", *evaluation.class_metrics])


def system_rows(
    systems: Mapping[str, Mapping[str, float | None]],
) -> tuple[list[str], list[list[Any]]]:
    """The layout of the paper's Tables 10 and 11: one row per system, with its mAP and its AP of
    every class.

    Args:
        systems: system -> {class: AP}. The mean is over the classes whose AP is known.

    Returns:
        (header, rows).
    """
    classes = list(dict.fromkeys(name for aps in systems.values() for name in aps))
    rows: list[list[Any]] = []
    for system, aps in systems.items():
        known = [ap for ap in aps.values() if ap is not None and not math.isnan(ap)]
        mean = sum(known) / len(known) if known else None
        rows.append([system, mean, *map(aps.get, classes)])
    return ["system", "mAP", *classes], rows


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """The metrics as a dict for JSON, with NaN replaced by None because JSON has no NaN."""
    classes = {name: _without_nan(values) for name, values in evaluation.per_class.items()}
    return {**_without_nan(evaluation.overall), "classes": classes}


_NUMBER = re.compile(r"[-+]?[\d,]*\.?\d+|–")


def _without_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    return {key: None if math.isnan(value) else float(value) for key, value in values.items()}


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
