"""Draw the paper's figures from runs: errors over iterations (Fig. 1, 4, 6), responses (Fig. 7)."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from . import charts

MAX_POINTS = 150  # per training curve; a longer one is averaged

Lines = Iterable[Mapping[str, Any]]  # the lines of a metrics.json


@charts.style()
def error_curves(
    panels: Mapping[str, Mapping[str, Lines]], path: str | Path, top: float | None = None
) -> Path:
    """Draw training error (thin, dashed) and test error (bold) over iterations, panel by panel.

    Args:
        panels: title -> {label: lines of a metrics.json}.
        path: path without an extension; a .png and a .svg are written.
        top: upper end of the error axis in per cent; None shows everything after the start.

    Returns:
        Path of the .png.

    Raises:
        ValueError: a run has no training error.
    """
    figure = Figure(figsize=(4.6 * len(panels), 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, runs) in zip(axes, panels.items()):
        seen: list[float] = []
        colors = charts.color_cycle(runs)
        for label, lines in runs.items():
            lines = list(lines)
            train = _points(lines, "top1_error")  # of a batch
            test = _points(lines, ".*classification/top1_error")  # of the first test set
            if not len(train):
                raise ValueError(f"{label}: its metrics.json has no training error (top1_error)")
            train = _averaged(train)
            line = {"color": colors[label], "linewidth": 2}
            axis.plot(*train.T, **line | {"linewidth": 0.8, "linestyle": "--"}, **_marker(train))
            axis.plot(*test.T, **line, **_marker(test))
            axis.plot([], label=label, **line)
            seen += [*train[len(train) // 20 :, 1], *test[:, 1]]
        axis.set(title=title, xlabel="iteration", ylim=(0, top or 1.05 * max(seen)))
        axis.legend()
    axes[0].set_ylabel("error (%)")
    return charts.save(figure, path)


@charts.style()
def responses(nets: Mapping[str, Mapping[str, float]], path: str | Path) -> Path:
    """Draw Fig. 7: standard deviations of the layers, in their order (top) and sorted (bottom).

    Args:
        nets: label -> {layer: standard deviation} in the order of the layers.
        path: see :func:`error_curves`.

    Returns:
        Path of the .png.
    """
    figure = Figure(figsize=(7, 5.2), layout="constrained")
    axes = figure.subplots(2, 1)
    for (label, layers), color in zip(nets.items(), charts.color_cycle(nets).values()):
        values = list(layers.values())
        index = np.arange(1, len(values) + 1)
        for axis, shown in zip(axes, (values, sorted(values, reverse=True))):
            dashes = "--" if "plain" in label else "-"
            axis.plot(index, shown, label=label, color=color, linewidth=1.2, linestyle=dashes)
    axes[0].set(xlabel="layer index (original)", ylabel="std")
    axes[1].set(xlabel="layer index (sorted by magnitude)", ylabel="std")
    for axis in axes:
        axis.set_ylim(bottom=0)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend()
    return charts.save(figure, path)


def _marker(points: np.ndarray) -> dict[str, str]:
    return {"marker": "o"} if len(points) == 1 else {}  # a line with one point is invisible


def _points(lines: Lines, key: str) -> np.ndarray:
    """(N, 2): per line, the iterations done and the first value whose key matches the pattern."""
    found = []
    for line in lines:
        values = [value for name, value in line.items() if re.fullmatch(key, name)]
        found += [(line["iteration"] + 1, value) for value in values[:1]]
    return np.array(found, dtype=float).reshape(-1, 2)


def _averaged(points: np.ndarray) -> np.ndarray:
    """Reduce a curve to at most MAX_POINTS points, each the mean of neighbouring points."""
    if len(points) <= MAX_POINTS:
        return points
    return np.array([part.mean(0) for part in np.array_split(points, MAX_POINTS)])
