"""``report.html``: one page that shows a run, with nothing outside it (no network, no scripts)."""

import base64
import html
import io
import math
import os
from pathlib import Path

import numpy as np
from PIL import Image

from . import CONFIDENT
from .draw import draw_boxes
from .tables import per_class, summary

PICTURE_SIDE = 640  # longest side of an embedded picture

_LOSSES = {
    "total_loss": "total",
    "loss_cls": "classes",
    "loss_box_reg": "boxes",
    "loss_rpn_cls": "RPN objectness",
    "loss_rpn_loc": "RPN boxes",
}


def write_report(output_dir, results, read_image, metrics=(), facts=None, title="Run", examples=4):
    """Write ``report.html`` into a run's output folder and return its path.

    Args:
        output_dir: the folder, made if absent.
        results: {data set name: (Evaluation, records, predictions, classes)}, as evaluated.
        read_image: called with a record's ``file_name``, returns RGB uint8 (h, w, 3). What it
            raises is not caught.
        metrics: the lines of ``metrics.json`` as dicts, in order. Of an iteration that is there
            twice, as after a resumption, the later line counts.
        facts: {name: value} for the head of the page (config, commit, machine, seed, ...). A value
            of several lines is folded away under its name.
        title: the page's title.
        examples: how many best, and how many worst, images are shown for each data set.

    Everything shown is escaped; a content security policy forbids the page to fetch anything.
    """
    body = [f"<header><h1>{_text(title)}</h1>{_facts(facts or {})}</header>"]
    body.append(_training(metrics))
    for name, (evaluation, records, predictions, classes) in results.items():
        body.append(f"<section><h2>{_text(name)}</h2>")
        body.append(_tiles(summary(evaluation)))
        body.append(_classes(evaluation, records, predictions, classes))
        body.append(_examples(evaluation, records, predictions, classes, read_image, examples))
        body.append("</section>")
    return write_page(Path(output_dir) / "report.html", title, "\n".join(body))


def write_page(path, title, body):
    """Write a page in the report's style, whole or not at all; returns its path.

    ``body`` is HTML, of the functions here; the folder is made if absent.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".html.part")
    page = _PAGE.format(title=_text(title), style=_STYLE, body=body)
    part.write_text(page, encoding="utf-8")
    os.replace(part, path)
    return path


def table_section(title, rows, header, note=""):
    """A heading and a table of plain cells."""
    head = "".join(f"<th>{_text(name)}</th>" for name in header)
    body = "".join(
        f"<tr><th>{_text(first)}</th>{''.join(f'<td>{_text(cell)}</td>' for cell in rest)}</tr>"
        for first, *rest in rows
    )
    return (
        f"<header><h1>{_text(title)}</h1></header><div class='wide'><table><thead><tr>{head}</tr>"
        f"</thead><tbody>{body}</tbody></table></div><p class='note'>{_text(note)}</p>"
    )


def figure_section(caption, svg):
    """A drawing, from the .svg file that it is in."""
    data = base64.b64encode(Path(svg).read_bytes()).decode()
    return (
        f'<section><h2>{_text(caption)}</h2><img alt="{_text(caption)}" style="max-width:100%;'
        f'background:#fff" src="data:image/svg+xml;base64,{data}"></section>'
    )


# ---- parts of the page


def _facts(facts):
    short = {k: v for k, v in facts.items() if "\n" not in str(v).strip()}
    items = "".join(f"<div><dt>{_text(k)}</dt><dd>{_text(v)}</dd></div>" for k, v in short.items())
    folded = "".join(
        f"<details><summary>{_text(k)}</summary><pre>{_text(str(v).strip())}</pre></details>"
        for k, v in facts.items()
        if k not in short
    )
    return (f'<dl class="facts">{items}</dl>' if items else "") + folded


def _tiles(values):
    tiles = "".join(
        f'<div class="tile{" first" if not index else ""}"><b>{_number(value)}</b>{_text(key)}</div>'
        for index, (key, value) in enumerate(values.items())
    )
    return f'<div class="tiles">{tiles}</div>'


def _training(metrics):
    lines = {}
    for line in metrics:
        if "iteration" in line:
            lines[line["iteration"]] = lines.get(line["iteration"], {}) | line
    lines = [lines[iteration] for iteration in sorted(lines)]

    def series(key):
        points = [(line["iteration"], line[key]) for line in lines if key in line]
        return [(x, y) for x, y in points if y is not None and math.isfinite(y)]

    def figure(caption, named, **options):
        chart = _chart({n: p for n, p in named.items() if p}, **options)
        return f"<figure><figcaption>{caption}</figcaption>{chart}</figure>" if chart else ""

    keys = list(dict.fromkeys(key for line in lines for key in line))
    losses = [k for k in [*_LOSSES, *keys] if k == "total_loss" or k.startswith("loss")]
    losses = {_LOSSES.get(key, key): series(key) for key in dict.fromkeys(losses)}
    aps = [key for key in keys if key.endswith(("bbox/AP", "bbox/AP50"))]
    aps = {key.replace("/bbox/", " ").replace("bbox/", ""): series(key) for key in aps}
    several = any(len(points) > 1 for points in aps.values())
    figures = (
        figure("Loss", losses, smooth=True)
        + figure("Learning rate", {"lr": series("lr")})
        + (figure("Average precision during training", aps, top=100) if several else "")
    )
    return (
        f'<section><h2>Training</h2><div class="charts">{figures}</div></section>'
        if figures
        else ""
    )


def _classes(evaluation, records, predictions, classes):
    objects, spared, found = (np.zeros(len(classes), dtype=int) for _ in range(3))
    for record in records:
        for each in record["annotations"]:
            ignored = each.get("difficult", 0) or each.get("iscrowd", 0)
            (spared if ignored else objects)[each["category_id"]] += 1
    for prediction in predictions:
        labels = np.asarray(prediction["classes"], dtype=int)
        found += np.bincount(labels, minlength=len(classes))
    rows, plots = [], []
    for label, (name, values) in enumerate(per_class(evaluation).items()):
        rows.append(
            f"<tr><th>{_text(name)}</th>{_bar(values['AP'])}{_bar(values['AP50'])}"
            f"<td>{objects[label]}</td><td>{spared[label]}</td><td>{found[label]}</td></tr>"
        )
        if name in evaluation.curves:
            curve = _precision_recall(*evaluation.curves[name])
            plots.append(
                f"<figure><figcaption>{_text(name)} <b>{_number(values['AP50'])}</b></figcaption>"
                f"{curve}</figure>"
            )
    head = (
        "<th>class</th><th>AP</th><th>AP50</th><th>objects</th><th>ignored</th><th>detections</th>"
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    note = (
        "Ignored: difficult objects and crowds, neither to be found nor held against a detection."
    )
    return (
        f'<h3>Classes</h3><div class="wide">{table}</div><p class="note">{note}</p>'
        '<h3>Precision over recall at IoU 0.5</h3><p class="note">Beside each class: its AP50.</p>'
        f'<div class="plots">{"".join(plots)}</div>'
    )


def _examples(evaluation, records, predictions, classes, read_image, count):
    sizes = {record["image_id"]: len(record["annotations"]) for record in records}
    scored = [image for image, f1 in evaluation.images.items() if not math.isnan(f1)]
    best = sorted(scored, key=lambda i: (-evaluation.images[i], -sizes[i]))[:count]
    worst = sorted(scored, key=lambda i: (evaluation.images[i], -sizes[i]))
    worst = [image for image in worst if image not in best][:count]
    by_id = {record["image_id"]: record for record in records}
    found = {prediction["image_id"]: prediction for prediction in predictions}
    note = (
        '<p class="note">Left the truth (dashed: difficult or crowd), right the detections that score at least'
        f" {CONFIDENT:g}, with their score in per cent. F1 is at IoU 0.5 with these detections.</p>"
    )
    parts = []
    for heading, images in (("Best images", best), ("Worst images", worst)):
        shown = "".join(
            _example(by_id[i], found[i], classes, evaluation.images[i], read_image) for i in images
        )
        if shown:
            parts.append(f'<h3>{heading}</h3>{note}<div class="examples">{shown}</div>')
            note = ""  # once is enough
    return "".join(parts)


def _example(record, prediction, classes, f1, read_image):
    image = read_image(record["file_name"])
    boxes, names, dashed = [], [], []
    for each in record["annotations"]:
        a, b, c, d = each["bbox"]
        boxes.append((a, b, a + c, b + d) if int(each["bbox_mode"]) == 1 else (a, b, c, d))
        names.append(classes[each["category_id"]])
        dashed.append(each.get("difficult", 0) or each.get("iscrowd", 0))
    truth = draw_boxes(image, boxes, names, difficult=dashed, classes=classes)
    scores = np.asarray(prediction["scores"], dtype=float)
    keep = np.flatnonzero(scores >= CONFIDENT)
    detected = draw_boxes(
        image,
        np.asarray(prediction["boxes"], dtype=float).reshape(-1, 4)[keep],
        [classes[label] for label in np.asarray(prediction["classes"], dtype=int)[keep]],
        scores[keep],
        classes=classes,
    )
    name = Path(record["file_name"]).name
    return (
        f'<figure class="pair"><div>{_jpeg(truth, f"truth of {name}")}'
        f"{_jpeg(detected, f'detections in {name}')}</div>"
        f"<figcaption>{_text(name)} <b>F1 {f1:.2f}</b> ·"
        f" {_count(len(boxes), 'object')}, {_count(len(keep), 'detection')}</figcaption></figure>"
    )


# ---- plotting


def _chart(series, smooth=False, top=None, width=520, height=260):
    """Line chart of {name: [(x, y), ...]} as a legend and inline SVG; empty without points."""
    if not series:
        return ""
    left, right, upper, lower = 60, 20, 8, 34
    xs = [x for points in series.values() for x, _ in points]
    x_ticks = _ticks(min(xs), max(xs), 6)
    x0, x1 = min(xs), max(max(xs), min(xs) + 1)
    y_top = max(y for points in series.values() for _, y in points)
    if smooth:  # the first iterations of a run may lie far above all others
        usual = max(np.quantile([y for _, y in points], 0.98) for points in series.values())
        y_top = min(y_top, 1.3 * usual)
    y_ticks = _ticks(0, top or y_top or 1, 5)
    y1 = top or max(y_ticks[-1], y_top) or 1

    def place(x, y):
        across = left + (x - x0) / (x1 - x0) * (width - left - right)
        down = upper + (1 - min(y, y1) / y1) * (height - upper - lower)
        return f"{across:.1f},{max(down, 0):.1f}"

    parts = []
    for tick in y_ticks:
        y = place(x0, tick).split(",")[1]
        parts.append(f'<path class="grid" d="M{left},{y}H{width - right}"/>')
        parts.append(f'<text x="{left - 8}" y="{y}" class="y">{tick:g}</text>')
    for tick in x_ticks:
        x = place(tick, 0).split(",")[0]
        parts.append(f'<text x="{x}" y="{height - lower + 18}" class="x">{tick:g}</text>')
    parts.append(f'<text x="{width - right}" y="{height - 2}" class="unit">iteration</text>')
    for index, (name, points) in enumerate(series.items()):
        tone = f"s{index % 8}"
        points = _thin(points)
        if smooth and len(points) > 20:
            parts.append(_line(points, place, f"{tone} faint", name))
            points = _running_mean(points)
        parts.append(_line(points, place, tone, name))
        if len(points) < 25:
            spots = (place(x, y).split(",") for x, y in points)
            parts.extend(f'<circle class="{tone}" cx="{x}" cy="{y}" r="2.5"/>' for x, y in spots)
    names = "".join(
        f'<span><i class="s{index % 8}"></i>{_text(name)} {_short(points[-1][1])}</span>'
        for index, (name, points) in enumerate(series.items())
    )
    drawing = "".join(parts)
    return f'<div class="legend">{names}</div><svg viewBox="0 0 {width} {height}">{drawing}</svg>'


def _precision_recall(recall, precision):
    """A small square plot; the part after the last recall that was reached is left out."""
    side, low = 120, 16

    def place(x, y):
        return f"{low + x * (side - low - 4):.1f},{4 + (1 - y) * (side - low - 4):.1f}"

    reached = np.flatnonzero(np.asarray(precision) > 0)
    points = list(zip(recall, precision))[: reached[-1] + 1] if reached.size else []
    if points:
        points = [(0.0, points[0][1]), *_thin(points), (points[-1][0], 0.0)]
    grid = "".join(
        f'<path class="grid" d="M{place(t, 0)}L{place(t, 1)}M{place(0, t)}L{place(1, t)}"/>'
        for t in (0, 0.5, 1)
    )
    ticks = "".join(
        f'<text class="x" x="{place(t, 0).split(",")[0]}" y="{side - 4}">{t:g}</text>'
        f'<text class="y" x="{low - 3}" y="{place(0, t).split(",")[1]}">{t:g}</text>'
        for t in (0, 1)
    )
    area = "L".join(place(x, y) for x, y in [(0, 0), *points]) if points else ""
    fill = f'<path class="s0 area" d="M{area}Z"/>' if points else ""
    line = _line(points[:-1], place, "s0", "") if points else ""
    return f'<svg viewBox="0 0 {side} {side}">{grid}{ticks}{fill}{line}</svg>'


def _line(points, place, style, name):
    path = "L".join(place(x, y) for x, y in points)
    return f'<path class="line {style}" d="M{path}"><title>{_text(name)}</title></path>'


def _thin(points, most=400):
    """At most that many points, evenly picked, with the first and the last."""
    if len(points) <= most:
        return points
    return [points[i] for i in np.linspace(0, len(points) - 1, most).round().astype(int)]


def _running_mean(points):
    """Mean over a window of a twentieth of the points, narrower at both ends."""
    values = np.array([y for _, y in points])
    half = max(2, len(points) // 40)
    means = [values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))]
    return [(x, y) for (x, _), y in zip(points, means)]


def _ticks(low, high, about):
    """Round numbers (1, 2 or 5 times a power of ten apart) from low to high."""
    rough = (high - low) / about or 1
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


# ---- small pieces


def _text(value):
    return html.escape(str(value), quote=True)


def _number(value):
    return "–" if value is None or math.isnan(value) else f"{value:.1f}"


def _count(number, noun):
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _short(value):
    return f"{value:.3g}"


def _bar(value):
    share = 0 if value is None or math.isnan(value) else value / 100
    return f'<td class="bar"><i style="--share:{share:.3f}"></i><span>{_number(value)}</span></td>'


def _jpeg(image, description):
    picture = Image.fromarray(image)
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{_text(description)}" src="data:image/jpeg;base64,{data}">'


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""

_STYLE = """
:root { --paper: #fff; --panel: #f5f6f8; --ink: #1a1d23; --soft: #626b79; --rule: #dfe3e8;
  --c0: #2563eb; --c1: #d9480f; --c2: #0b8457; --c3: #9333b8; --c4: #b7860b; --c5: #0891b2;
  --c6: #c2255c; --c7: #5c677d; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171c; --panel: #1d2128; --ink: #e7eaf0;
  --soft: #98a2b3; --rule: #2e343e; --c0: #6ea8ff; --c1: #ff9057; --c2: #4fd1a1; --c3: #cf8bf0;
  --c4: #e8bf4d; --c5: #4fc9e6; --c6: #ff7ba5; --c7: #aab4c5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 40px 24px 80px; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue",
  Arial, sans-serif; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 20px; overflow-wrap: anywhere; }
h2 { font-size: 20px; margin: 48px 0 16px; padding-top: 20px; border-top: 1px solid var(--rule);
  overflow-wrap: anywhere; }
h3 { font-size: 15px; margin: 32px 0 10px; }
figure { margin: 0; }
figcaption, .note { color: var(--soft); font-size: 13px; margin: 0 0 8px; overflow-wrap: anywhere; }
figcaption b { color: var(--ink); font-weight: 600; margin-left: 4px; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 14px 24px;
  margin: 0; }
.facts dt { color: var(--soft); font-size: 12px; }
.facts dd { margin: 0; overflow-wrap: anywhere; }
details { margin-top: 16px; }
summary { cursor: pointer; color: var(--soft); font-size: 13px; }
pre { background: var(--panel); border-radius: 8px; padding: 14px 16px; overflow: auto;
  max-height: 420px; font: 12px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(96px, 1fr)); gap: 10px; }
.tile { background: var(--panel); border-radius: 10px; padding: 12px 14px; color: var(--soft);
  font-size: 12px; }
.tile b { display: block; color: var(--ink); font-size: 22px; line-height: 1.25; font-weight: 600;
  font-variant-numeric: tabular-nums; }
.tile.first b { color: var(--c0); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr));
  gap: 20px; }
.charts figure { background: var(--panel); border-radius: 10px; padding: 14px 16px 10px; }
.charts figcaption { color: var(--ink); font-weight: 600; font-size: 14px; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; font-size: 12px; color: var(--soft);
  margin-bottom: 6px; min-height: 20px; font-variant-numeric: tabular-nums; }
.legend i { display: inline-block; width: 14px; height: 3px; border-radius: 2px; margin-right: 6px;
  vertical-align: middle; background: var(--c); }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
svg .x { text-anchor: middle; } svg .y { text-anchor: end; dominant-baseline: middle; }
svg .unit { text-anchor: end; }
svg .grid { stroke: var(--rule); fill: none; stroke-width: 1; }
svg .line { stroke: var(--c); fill: none; stroke-width: 1.8; stroke-linejoin: round; }
svg .faint { opacity: .28; stroke-width: 1; }
svg .area { fill: var(--c); opacity: .13; }
svg circle { fill: var(--c); }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 18px 16px; }
.plots figcaption { margin: 0 0 2px; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.plots svg text { font-size: 9px; } .plots .line { stroke-width: 1.4; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { text-align: right; padding: 5px 12px; border-bottom: 1px solid var(--rule); }
thead th { color: var(--soft); font-weight: 500; font-size: 12px; }
tbody th { font-weight: 500; } th:first-child { text-align: left; padding-left: 0; }
td.bar { position: relative; width: 24%; min-width: 96px; padding: 0; height: 32px; }
td.bar i { position: absolute; left: 12px; bottom: 7px; top: 7px; border-radius: 3px;
  width: calc((100% - 68px) * var(--share)); background: var(--c0); opacity: .28; }
td.bar span { position: absolute; right: 12px; top: 5px; }
.examples { display: grid; gap: 24px; }
.pair div { display: grid; grid-template-columns: 1fr 1fr; gap: 6px; align-items: start; }
.pair img { display: block; max-width: 100%; max-height: 480px; border-radius: 6px; }
.pair figcaption { margin: 6px 0 0; }
""" + "\n".join(f".s{k} {{ --c: var(--c{k}); }}" for k in range(8))
