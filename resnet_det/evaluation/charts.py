"""Matplotlib charts in one style, for the report page and the paper's figures.

The SVG of a chart depends only on its data: it has no date and no random ids.
"""

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ..files import check_target

COLORS = (
    "#2563eb", "#d9480f", "#0b8457", "#9333b8", "#b7860b", "#0891b2", "#c2255c", "#5c677d",
)  # fmt: skip
_TEXT, _GRID = "#626b79", "#dfe3e8"
# A page's dark mode may set these CSS variables to other colours.
_VARIABLES = {_TEXT: "--soft", _GRID: "--rule"} | {c: f"--c{k}" for k, c in enumerate(COLORS)}
_MAX_POINTS = 400  # drawn per line: about one per pixel

Points = Sequence[tuple[float, float]] | np.ndarray  # (N, 2)


@contextmanager
def style() -> Iterator[None]:
    """Apply the style of all charts, as a context manager or a decorator."""
    options: dict[Any, Any] = {
        "axes.axisbelow": True,
        "axes.edgecolor": _GRID,
        "axes.grid": True,
        "axes.labelcolor": _TEXT,
        "font.size": 9,
        "grid.color": _GRID,
        "grid.linewidth": 0.6,
        "legend.fontsize": "small",
        "legend.frameon": False,
        "svg.fonttype": "none",  # text stays text, in the reader's own font
        "svg.hashsalt": "resnet_det",
        "text.color": _TEXT,
        "text.parse_math": False,  # a "$" in a name is shown as it is
        "xtick.color": _TEXT,
        "ytick.color": _TEXT,
    }
    with matplotlib.rc_context(options):
        yield


def color_cycle(names: Iterable[str]) -> dict[str, str]:
    """Assign each name a colour. The colours repeat after ``len(COLORS)`` names."""
    return {name: COLORS[k % len(COLORS)] for k, name in enumerate(names)}


@style()
def line_chart(
    series: Mapping[str, Points], smooth: bool = False, top: float | None = None
) -> Figure:
    """Draw lines over iterations.

    Args:
        series: name -> finite (iteration, value) points, at least one each. The legend shows the
            last value of each line.
        smooth: draw the running mean of lines with more than 20 points, and their values behind it.
            Initial values far above all others are cut off.
        top: upper end of the value axis; None shows every value.
    """
    figure = Figure(figsize=(5.2, 2.8), layout="constrained")
    axis = figure.subplots()
    largest, usual = 0.0, 0.0
    for (name, points), color in zip(series.items(), color_cycle(series).values()):
        points = np.asarray(points, dtype=float)
        label = f"{name} {points[-1, 1]:.3g}"
        largest = max(largest, points[:, 1].max())
        usual = max(usual, float(np.quantile(points[:, 1], 0.98)))
        if smooth and len(points) > 20:
            axis.plot(*_thinned(points).T, color=color, linewidth=0.8, alpha=0.3)
            points = _running_mean(points)
        marker = "o" if len(points) < 25 else ""
        axis.plot(
            *_thinned(points).T,
            color=color, linewidth=1.6, marker=marker, markersize=3.5, label=label,
        )  # fmt: skip
    upper = min(largest, 1.3 * usual) if smooth else largest
    axis.set_ylim(0, top or 1.05 * upper or 1)
    axis.set_xlabel("iteration")
    axis.ticklabel_format(axis="x", style="plain", useOffset=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *axis.get_legend_handles_labels(), loc="outside upper left", ncols=min(len(series), 3)
    )
    return figure


@style()
def precision_recall_chart(recall: np.ndarray, precision: np.ndarray) -> Figure:
    """Draw a precision-recall curve, up to the highest recall reached, as a small square chart."""
    figure = Figure(figsize=(1.7, 1.7))
    axis = figure.subplots()
    figure.subplots_adjust(left=0.12, right=0.97, bottom=0.12, top=0.97)
    axis.set(xlim=(0, 1), ylim=(0, 1.02), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    axis.set_xticklabels(("0", "", "1"))
    axis.set_yticklabels(("0", "", "1"))
    axis.tick_params(length=0, labelsize=7)
    axis.spines[:].set_visible(False)
    reached = np.flatnonzero(np.asarray(precision) > 0)
    if reached.size:
        points = np.stack([recall, precision], 1)[: reached[-1] + 1]
        points = _thinned(np.concatenate([[(0, points[0, 1])], points]))
        axis.plot(*points.T, color=COLORS[0], linewidth=1.3, clip_on=False)
        axis.fill_between(*points.T, color=COLORS[0], alpha=0.13, linewidth=0)
    return figure


@style()
def calibration_chart(scores: np.ndarray, precision: np.ndarray, counts: np.ndarray) -> Figure:
    """Draw the precision of detections by their score, beside the diagonal of exact scores.

    The area of a point follows the number of its detections.
    """
    figure = Figure(figsize=(3.4, 3), layout="constrained")
    axis = figure.subplots()
    axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="score", ylabel="share that is right")
    axis.spines[["top", "right"]].set_visible(False)
    axis.plot([0, 1], [0, 1], color=_TEXT, linewidth=0.8, linestyle="--")
    axis.plot(scores, precision, color=COLORS[0], linewidth=1.3)
    areas = 12 + 160 * np.asarray(counts) / max(counts)
    axis.scatter(scores, precision, areas, color=COLORS[0], alpha=0.6, linewidth=0, clip_on=False)
    return figure


def svg(figure: Figure) -> str:
    """Convert a chart to inline SVG, with all text escaped.

    The CSS variables --soft, --rule and --c0 to --c7 may override its colours.
    """
    buffer = io.StringIO()
    with style():
        figure.savefig(buffer, format="svg", transparent=True, metadata=_NO_METADATA)
    text = re.sub(
        r'<g id="[^"]*">', "<g>", buffer.getvalue()
    )  # the ids repeat in every chart of a page
    for color, name in _VARIABLES.items():
        text = text.replace(f": {color}", f": var({name}, {color})")
    return text[text.index("<svg") :]


def save(figure: Figure, path: str | Path) -> Path:
    """Write a chart as .png and .svg. Returns the path of the .png.

    Args:
        path: path of both files, without or with one of their endings. Its folder is created if
            absent.

    Raises:
        ValueError: see :func:`.files.check_target`.
    """
    stem = str(path).removesuffix(".png").removesuffix(".svg")  # a name such as lr0.1 has a point
    png, svg = Path(f"{stem}.png"), Path(f"{stem}.svg")
    for target in (png, svg):
        check_target(target)
    png.parent.mkdir(parents=True, exist_ok=True)
    with style():
        figure.savefig(svg, metadata=_NO_METADATA)
        figure.savefig(png, dpi=160)
    return png


_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def _thinned(points: np.ndarray) -> np.ndarray:
    """At most _MAX_POINTS of the points, evenly spaced, including the first and the last."""
    count = min(len(points), _MAX_POINTS)
    return points[np.linspace(0, len(points) - 1, count).round().astype(int)]


def _running_mean(points: np.ndarray) -> np.ndarray:
    """Means over a window of a twentieth of the points, narrower at both ends."""
    window = np.ones(2 * max(2, len(points) // 40) + 1)
    sums = np.convolve(points[:, 1], window, "same")
    counts = np.convolve(np.ones(len(points)), window, "same")
    return np.stack([points[:, 0], sums / counts], 1)
