"""Write ``report.html``: one self-contained page that shows a run, without network or scripts.

Also the pages of tables and of galleries.
"""

import base64
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from PIL import Image

from ..files import write_whole
from . import charts
from .draw import draw_boxes
from .errors import SIZES, TIDE, Errors, analyse
from .inputs import (
    SCORE_THRESH,
    Detections,
    Evaluation,
    Predictions,
    Records,
    Truth,
    read_predictions,
    read_truth,
)
from .tables import format_cell

MAX_PICTURE_SIDE = 640  # longest side of an embedded picture
MAX_CONFUSED = 20  # classes in a table of confusions

_LOSSES = {
    "total_loss": "total",
    "loss_cls": "classes",
    "loss_box_reg": "boxes",
    "loss_rpn_cls": "RPN objectness",
    "loss_rpn_loc": "RPN boxes",
}

ReadImage = Callable[[str], np.ndarray]
Result = tuple[Evaluation, Records, Predictions, Sequence[str]]


def write_report(
    output_dir: str | Path,
    results: Mapping[str, Result],
    read_image: ReadImage,
    metrics: Iterable[Mapping[str, Any]] = (),
    facts: Mapping[str, Any] | None = None,
    title: str = "Run",
    examples: int = 4,
) -> Path:
    """Write ``report.html`` into a run's output folder.

    Args:
        output_dir: the folder, created if absent.
        results: dataset name -> (Evaluation, records, predictions, classes).
        read_image: maps a record's ``file_name`` to RGB uint8 (h, w, 3). Its exceptions are not
            caught.
        metrics: the lines of ``metrics.json``, in order. If an iteration occurs twice, as after a
            resumed run, the later line counts.
        facts: name -> value for the head of the page (config, commit, machine, seed, ...). A
            multi-line value is collapsed under its name.
        title: the page's title.
        examples: number of best images, and of worst images, to show per dataset.

    Returns:
        The page's path. All text is escaped, and a content security policy forbids the page to
        fetch anything.
    """
    return _write_page(
        Path(output_dir) / "report.html",
        "report.html.j2",
        title=title,
        facts={name: str(value).strip() for name, value in (facts or {}).items()},
        charts=_training_charts(metrics),
        datasets=[_dataset(name, *r, read_image, examples) for name, r in results.items()],
        score_thresh=SCORE_THRESH,
    )


class TableSection(NamedTuple):
    """A table on a page, with a title above and a note below. Cells are shown unchanged."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""


def write_tables(
    path: str | Path, title: str, tables: Sequence[TableSection], figures: Mapping[str, str | Path]
) -> Path:
    """Write a page of tables and figures in the report's style.

    Args:
        path: path of the page; its folder is created if absent.
        title: title of the browser window.
        figures: caption -> path of a .svg file.

    Returns:
        The path.
    """
    return _write_page(
        Path(path),
        "tables.html.j2",
        title=title,
        tables=tables,
        figures={caption: _base64(Path(svg).read_bytes()) for caption, svg in figures.items()},
    )


class GalleryPicture(NamedTuple):
    """A drawn image or video of a gallery.

    Attributes:
        file: its path, relative to the page.
        source: the file that was given.
        objects: a line about the objects that were found.
        video: whether it is a video.
    """

    file: str
    source: str
    objects: str
    video: bool = False


def write_gallery(
    path: str | Path, title: str, pictures: Sequence[GalleryPicture], facts: Mapping[str, Any]
) -> Path:
    """Write a page that shows pictures and videos, which lie in its folder.

    Args:
        path: path of the page; its folder is created if absent.
        facts: name -> value for the head of the page.

    Returns:
        The path.
    """
    return _write_page(Path(path), "gallery.html.j2", title=title, pictures=pictures, facts=facts)


_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters["cell"] = format_cell


def _write_page(path: Path, template: str, **content: Any) -> Path:
    """Render and write a page, completely or not at all."""
    write_whole(path, _TEMPLATES.get_template(template).render(content))
    return path


def _training_charts(metrics: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Draw the curves that the lines of a metrics.json hold. Returns {caption: SVG}."""
    by_iteration: dict[int, dict[str, Any]] = {}
    for line in metrics:
        if "iteration" in line:
            by_iteration.setdefault(line["iteration"], {}).update(line)
    lines = [by_iteration[iteration] for iteration in sorted(by_iteration)]
    keys = list(dict.fromkeys(key for line in lines for key in line))

    def series(names: Mapping[str, str]) -> dict[str, list[tuple[float, float]]]:
        """The points of each key that has finite values, by name."""
        points = {
            name: [(line["iteration"], line[key]) for line in lines if _is_finite(line.get(key))]
            for key, name in names.items()
        }
        return {name: found for name, found in points.items() if found}

    other_losses = {key: key for key in keys if key.startswith("loss") and key not in _LOSSES}
    losses, rate = series(_LOSSES | other_losses), series({"lr": "lr"})
    validation = series(
        {key: key.replace("val_", "") for key in keys if key.rpartition("/")[2].startswith("val_")}
    )
    ap_keys = [key for key in keys if key.endswith(("bbox/AP", "bbox/AP50"))]
    aps = series({key: key.replace("/bbox/", " ").replace("bbox/", "") for key in ap_keys})
    figures = {}
    if losses:
        figures["Loss"] = charts.line_chart(losses, smooth=True)
    if any(len(points) > 1 for points in validation.values()):
        figures["Loss on the test sets"] = charts.line_chart(validation)
    if rate:
        figures["Learning rate"] = charts.line_chart(rate)
    if any(len(points) > 1 for points in aps.values()):
        figures["Average precision during training"] = charts.line_chart(aps, top=100)
    return {caption: charts.svg(figure) for caption, figure in figures.items()}


def _dataset(
    name: str,
    evaluation: Evaluation,
    records: Records,
    predictions: Predictions,
    classes: Sequence[str],
    read_image: ReadImage,
    examples: int,
) -> dict[str, Any]:
    """The template's variables for one dataset."""
    truth = read_truth(records, classes)
    detections = read_predictions(records, predictions, classes)

    def count(labels: Iterable[np.ndarray]) -> np.ndarray:
        return np.bincount(np.concatenate([[], *labels]).astype(int), minlength=len(classes))

    objects = count(t.classes[~t.ignored] for t in truth.values())
    ignored = count(t.classes[t.ignored] for t in truth.values())
    found = count(d.classes for d in detections.values())
    rows = [
        {
            "name": label,
            "metrics": values,
            "share": {key: f"{max(np.nan_to_num(v), 0) / 100:.3f}" for key, v in values.items()},
            "objects": objects[index],
            "ignored": ignored[index],
            "detections": found[index],
            "curve": label in evaluation.curves
            and charts.svg(charts.precision_recall_chart(*evaluation.curves[label])),
        }
        for index, (label, values) in enumerate(evaluation.per_class.items())
    ]
    # Among equal scores, the image with the most objects comes first.
    f1 = {image: f1 for image, f1 in evaluation.images.items() if not math.isnan(f1)}
    best = sorted(f1, key=lambda image: (-f1[image], -len(truth[image].classes)))[:examples]
    worst = sorted(f1, key=lambda image: (f1[image], -len(truth[image].classes)))
    worst = [image for image in worst if image not in best][:examples]
    by_id = {record["image_id"]: record for record in records}
    return {
        "name": name,
        "overall": evaluation.overall,
        "class_metrics": evaluation.class_metrics,
        "classes": rows,
        "errors": _errors(analyse(truth, detections, classes), classes),
        "examples": {
            heading: [
                _example(by_id[i]["file_name"], truth[i], detections[i], classes, read_image)
                | {"f1": f1[i]}
                for i in images
            ]
            for heading, images in (("Best images", best), ("Worst images", worst))
        },
    }


def _errors(errors: Errors, classes: Sequence[str]) -> dict[str, Any]:
    """The template's variables for the errors on a dataset."""
    calibration = errors.calibration
    return {
        "sizes": [(size, limits, errors.sizes[size]) for size, limits in SIZES.items()],
        "kinds": [(*TIDE[key], kind) for key, kind in errors.kinds.items()],
        "confusion": _confusion(errors.confusion, classes),
        "calibration": calibration
        and {
            "error": 100 * calibration.error,
            "chart": charts.svg(
                charts.calibration_chart(
                    calibration.scores, calibration.precision, calibration.counts
                )
            ),
        },
    }


def _confusion(matrix: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """The rows of a confusion matrix, of the classes that are confused with others most often."""
    between = matrix[:-1, :-1] - np.diag(np.diag(matrix)[:-1])
    often = np.argsort(-between.sum(0) - between.sum(1), kind="stable")
    shown = [*sorted(often[:MAX_CONFUSED]), len(classes)]
    total = matrix.sum(axis=1, keepdims=True)
    share = matrix / np.maximum(total, 1)
    names = [*classes, ""]
    return {
        "columns": [names[column] for column in shown[:-1]],
        "rows": [
            (names[row], [(matrix[row, column], f"{share[row, column]:.3f}") for column in shown])
            for row in shown
        ],
        "selected": len(shown) <= len(classes),
    }


def _example(
    file: str, truth: Truth, detections: Detections, classes: Sequence[str], read_image: ReadImage
) -> dict[str, Any]:
    """Draw an image with its ground truth, and again with its confident detections."""
    image, found = read_image(file), detections.confident()
    names = [classes[label] for label in truth.classes]
    drawn = draw_boxes(image, truth.boxes, names, dashed=truth.ignored, classes=classes)
    names = [classes[label] for label in found.classes]
    detected = draw_boxes(image, found.boxes, names, found.scores, classes=classes)
    return {
        "file": Path(file).name,
        "truth": _jpeg(drawn),
        "detected": _jpeg(detected),
        "objects": len(truth.classes),
        "detections": len(found.classes),
    }


def _is_finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _jpeg(image: np.ndarray) -> str:
    picture = Image.fromarray(image)
    picture.thumbnail((MAX_PICTURE_SIDE, MAX_PICTURE_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return _base64(buffer.getvalue())


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
