"""A table's results as a Markdown page."""

import json
import statistics
from datetime import timedelta
from pathlib import Path

import yaml

from ..data import shortfall
from ..engines.provenance import machine
from ..evaluation.report import TableSection, write_tables
from ..evaluation.tables import format_cell, markdown_table, system_rows


def table_rows(table, plan, fraction):
    """``(header, rows)`` of the table: every cell, whether it was run or not."""
    header = ["", "number", "paper", "ours", "difference", "iterations", "commit", "command"]
    seeds = list(dict.fromkeys(seed for _, seed in plan))
    options = f" --fraction {fraction}" if fraction != 1 else ""
    options += f" --seeds {' '.join(map(str, seeds))}" if seeds != list(table.seeds) else ""
    rows = []
    for cell in table.cells:
        ends = [chain[-1] for (other, _), chain in plan.items() if other is cell]
        done = [(run, run.metrics()) for run in ends if run.metrics() is not None]
        command = f"tools/reproduce.py {table.name} --cells {cell.name}{options}"
        for number in cell.numbers:
            paper = "–" if number.paper is None else f"{number.paper:.2f}"
            ours, difference, length, commits = "not run", "–", "–", "–"
            if done and number.key is None:
                ours = f"{done[0][0].folder}/inference"
            elif done:
                values = [metrics[number.key] for _, metrics in done]
                ours = f"{statistics.fmean(values):.2f}"
                if len(values) > 1:
                    ours += f" ± {statistics.stdev(values):.2f}"
                ours += f" ({len(values)} seed{'s' * (len(values) > 1)})"
                if number.paper is not None:
                    difference = f"{statistics.fmean(values) - number.paper:+.2f}"
            if done:
                length = f"{done[0][0].iterations:,} of {done[0][0].of:,}"
                commits = " ".join(dict.fromkeys(run.commit() for run, _ in done))
            rows.append([
                cell.label, number.label, paper + number.remark, ours, difference, length, commits,
                command,
            ])  # fmt: skip
    return header, rows


def class_rows(finished):
    """``(header, rows)`` of AP50 by class: a row for each detector of the finished part of a plan."""
    systems = {}
    for (cell, seed), chain in finished.items():
        for path in sorted(chain[-1].folder.glob("inference/*/results.json")):
            classes = json.loads(path.read_text())["classes"]
            aps = {name: values["AP50"] for name, values in classes.items()}
            systems[f"{cell.label}, seed {seed}, {path.parent.name}"] = aps
    header, rows = system_rows(systems)
    return header, [[format_cell(value) for value in row] for row in rows]


def data_remarks(finished):
    """What the finished part of a plan was trained or tested on and is not the published set."""
    names = {}
    for path in (run.folder / "config.yaml" for chain in finished.values() for run in chain):
        if path.exists():
            datasets = yaml.safe_load(path.read_text()).get("DATASETS", {})
            names |= dict.fromkeys([*datasets.get("TRAIN", ()), *datasets.get("TEST", ())])
    return [remark for remark in map(shortfall, names) if remark]


def facts():
    """What the numbers were measured with."""
    return "; ".join(machine().values())


def publish(table, plan, fraction, output):
    """Write ``<table>.md`` and ``<table>.html`` with the figures; returns the Markdown's path."""
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    header, rows = table_rows(table, plan, fraction)
    title = table.title
    if fraction != 1:
        title += f" – schedule shortened to {fraction} of the paper's iterations"
    finished = {key: chain for key, chain in plan.items() if chain[-1].metrics() is not None}
    runs = {}
    for (cell, _), chain in finished.items():
        runs.setdefault(cell.name, []).append(chain[-1].folder)
    figures = table.figures(runs, output) if table.figures and runs else {}
    note = "; ".join([f"Machine: {facts()}", *data_remarks(finished)]) + "."
    tables = [TableSection(title, header, rows, note)]
    if table.per_class:
        tables.append(TableSection("AP50 of each class", *class_rows(finished)))
    markdown = []
    for level, each in zip(("#", "##"), tables):
        markdown += [f"{level} {each.title}", "", markdown_table(each.rows, each.header)]
        markdown += [each.note, ""] if each.note else []
    for caption, path in figures.items():
        markdown += [f"![{caption}]({Path(path).name})", "", caption, ""]
    path = output / f"{table.name}.md"
    path.write_text("\n".join(markdown))
    drawings = {caption: Path(png).with_suffix(".svg") for caption, png in figures.items()}
    write_tables(output / f"{table.name}.html", title, tables, drawings)
    return path


def as_time(seconds):
    return "–" if seconds is None else str(timedelta(seconds=round(seconds)))
