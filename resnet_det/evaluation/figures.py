"""The paper's figures from runs: errors over iterations (Fig. 1, 4, 6), layer responses (Fig. 7)."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

COLOURS = ("#b7860b", "#0891b2", "#0b8457", "#c2255c", "#1a1d23", "#9333b8", "#2563eb")
POINTS = 150  # of a training curve: it is averaged to so many


def error_curves(panels, path, top=None):
    """Training (thin, dashed) and test error (bold) over iterations, one panel beside another.

    Args:
        panels: title -> {label: lines of a metrics.json}.
        path: without its ending; a .png and a .svg are written.
        top: upper end of the error axis in per cent; None shows everything after the start.

    Returns:
        Path of the .png.

    Raises:
        ValueError: a run has no training error.
    """
    figure = Figure(figsize=(4.6 * len(panels), 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, runs) in zip(axes, panels.items()):
        seen = []
        for (label, lines), colour in zip(runs.items(), _colours(runs)):
            train, test = _errors(lines, "top1_error"), _errors(lines, "top1_error", test=True)
            if not len(train):
                raise ValueError(f"{label}: its metrics.json holds no top1_error of training")
            train = _averaged(train)
            axis.plot(*train.T, "--", color=colour, linewidth=0.8, marker=_marker(train))
            if len(test):
                axis.plot(*test.T, color=colour, linewidth=2, marker=_marker(test))
            axis.plot([], color=colour, linewidth=2, label=label)
            seen += [*train[len(train) // 20 :, 1], *(test[:, 1] if len(test) else ())]
        axis.set(title=title, xlabel="iteration", ylim=(0, top or 1.05 * max(seen)))
        axis.grid(color="#dfe3e8", linewidth=0.6)
        axis.legend(frameon=False, fontsize="small")
    axes[0].set_ylabel("error (%)")
    return _save(figure, path)


def responses(nets, path):
    """Fig. 7: standard deviations of the layers, in their order (top) and sorted (bottom).

    Args:
        nets: label -> {layer: standard deviation} in the order of the layers.
        path: as in :func:`error_curves`.

    Returns:
        Path of the .png.
    """
    figure = Figure(figsize=(7, 5.2), layout="constrained")
    axes = figure.subplots(2, 1)
    for (label, layers), colour in zip(nets.items(), _colours(nets)):
        values = list(layers.values())
        style = {"color": colour, "linewidth": 1.2, "linestyle": "--" if "plain" in label else "-"}
        index = np.arange(1, len(values) + 1)
        axes[0].plot(index, values, label=label, **style)
        axes[1].plot(index, sorted(values, reverse=True), label=label, **style)
    axes[0].set(xlabel="layer index (original)", ylabel="std")
    axes[1].set(xlabel="layer index (sorted by magnitude)", ylabel="std")
    for axis in axes:
        axis.set_ylim(bottom=0)
        axis.grid(color="#dfe3e8", linewidth=0.6)
        axis.legend(frameon=False, fontsize="small")
    return _save(figure, path)


def _marker(points):
    return "o" if len(points) == 1 else None  # a line of one point shows nothing


def _colours(named):
    return [COLOURS[i % len(COLOURS)] for i in range(len(named))]


def _errors(lines, key, test=False):
    """(N, 2) iterations done and errors of the lines that have the key (test: ending in it)."""
    found = []
    for line in lines:
        names = [k for k in line if k.endswith(f"classification/{key}")] if test else [key]
        if names and names[0] in line:
            found.append((line["iteration"] + 1, line[names[0]]))
    return np.array(found, dtype=float).reshape(-1, 2)


def _averaged(points):
    """At most POINTS means of neighbours."""
    if len(points) <= POINTS:
        return points
    return np.array([part.mean(0) for part in np.array_split(points, POINTS)])


def _save(figure, path):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path.with_suffix(".svg"))
    figure.savefig(path.with_suffix(".png"), dpi=160)
    return path.with_suffix(".png")
