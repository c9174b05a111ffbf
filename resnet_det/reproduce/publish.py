"""Write a table's results next to the paper's, as a Markdown page and an HTML page."""

import json
import statistics
from collections.abc import Mapping
from datetime import timedelta
from fractions import Fraction
from pathlib import Path

import yaml

from ..data import shortfall
from ..engines.provenance import machine
from ..evaluation.report import TableSection, write_tables
from ..evaluation.tables import format_cell, markdown_table, system_rows
from ..files import write_whole
from .planning import TRAINED, Plan, Run, starts_published, trains_classifiers
from .table import Number, Table

Rows = tuple[list[str], list[list[str]]]  # the header, and the rows below it
HEADER = ["", "number", "paper", "ours", "difference", "iterations", "commit", "command"]


def table_rows(table: Table, plan: Plan, fraction: Fraction) -> Rows:
    """The header and the rows of a table, including cells that were not run and cited systems."""
    seeds = list(dict.fromkeys(seed for _, seed in plan))
    options = f" --fraction {fraction}" if fraction != 1 else ""
    options += f" --seeds {' '.join(map(str, seeds))}" if seeds != list(table.seeds) else ""
    options += f" --weights {TRAINED}" if trains_classifiers(plan) else ""
    rows = []
    for cell in table.cells:
        finished = [plan[cell, seed][-1] for seed in seeds]
        finished = [run for run in finished if run.metrics() is not None]
        command = f"resnet-det reproduce {table.name} --cells {cell.name}{options}"
        for number in cell.numbers:
            rows.append([cell.label, number.label, *_measured(number, finished), command])
    for system in table.cited:
        for name, value in system.numbers.items():
            rows.append([system.label, name, f"{value:.2f}", "cited by the paper", *"––––"])
    return HEADER, rows


def _measured(number: Number, runs: list[Run]) -> list[str]:
    """The columns "paper" to "commit" of one number. ``runs`` are finished, one per seed."""
    paper = ("–" if number.paper is None else f"{number.paper:.2f}") + number.remark
    if not runs:
        return [paper, "not run", "–", "–", "–"]
    difference = "–"
    if number.key is None:
        ours = f"{runs[0].folder}/inference"
    else:
        values = [(run.metrics() or {})[number.key] for run in runs]
        ours = f"{statistics.fmean(values):.2f}"
        if len(values) > 1:
            ours += f" ± {statistics.stdev(values):.2f}"
        ours += f" ({len(values)} seed{'s' * (len(values) > 1)})"
        if number.paper is not None:
            difference = f"{statistics.fmean(values) - number.paper:+.2f}"
    length = f"{runs[0].iterations:,} of {runs[0].full_iterations:,}"
    return [paper, ours, difference, length, " ".join(dict.fromkeys(r.commit() for r in runs))]


def class_rows(finished: Plan) -> Rows:
    """The AP50 of each class, one row per detector in the finished part of a plan."""
    systems: dict[str, Mapping[str, float | None]] = {}
    for (cell, seed), chain in finished.items():
        for path in sorted(chain[-1].folder.glob("inference/*/results.json")):
            classes = json.loads(path.read_text())["classes"]
            aps = {name: values["AP50"] for name, values in classes.items()}
            systems[f"{cell.label}, seed {seed}, {path.parent.name}"] = aps
    header, rows = system_rows(systems)
    return header, [[format_cell(value) for value in row] for row in rows]


def data_remarks(finished: Plan) -> list[str]:
    """One line per dataset that the finished runs used and that differs from the published one."""
    names: dict[str, None] = {}
    for path in (run.folder / "config.yaml" for chain in finished.values() for run in chain):
        if path.exists():
            datasets = yaml.safe_load(path.read_text()).get("DATASETS", {})
            names |= dict.fromkeys([*datasets.get("TRAIN", ()), *datasets.get("TEST", ())])
    return [remark for remark in map(shortfall, names) if remark]


def config_remarks(finished: Plan) -> list[str]:
    """One line per finished run whose config differs from the one that the table states now."""
    runs = dict.fromkeys(run for chain in finished.values() for run in chain)
    return [
        f"{run.folder.name} was run with another config: {', '.join(changed)}"
        for run in runs
        if (changed := run.changes())
    ]


def publish(table: Table, plan: Plan, fraction: Fraction, output: str | Path) -> Path:
    """Write ``<table>.md`` and ``<table>.html`` with the figures. Returns the Markdown file's
    path."""
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    title = table.title
    if fraction != 1:
        title += f" – schedule shortened to {fraction} of the paper's iterations"
    finished = {key: chain for key, chain in plan.items() if chain[-1].metrics() is not None}
    folders: dict[str, list[Path]] = {}
    for (cell, _), chain in finished.items():
        folders.setdefault(cell.name, []).append(chain[-1].folder)
    figures = table.figures(folders, output) if table.figures and folders else {}
    remarks = data_remarks(finished) + config_remarks(finished)
    if starts_published(table):
        start = "classifiers trained here" if trains_classifiers(plan) else "published weights"
        remarks.append(f"detectors start from {start}")
    note = "; ".join([f"Machine: {'; '.join(machine().values())}", *remarks]) + "."
    tables = [TableSection(title, *table_rows(table, plan, fraction), note)]
    if table.per_class:
        tables.append(TableSection("AP50 of each class", *class_rows(finished)))
    markdown: list[str] = []
    for level, section in zip(("#", "##"), tables):
        markdown += [f"{level} {section.title}", "", markdown_table(section.rows, section.header)]
        markdown += [section.note, ""] if section.note else []
    for caption, path in figures.items():
        markdown += [f"![{caption}]({path.name})", "", caption, ""]
    page = output / f"{table.name}.md"
    write_whole(page, "\n".join(markdown))
    drawings = {caption: path.with_suffix(".svg") for caption, path in figures.items()}
    write_tables(page.with_suffix(".html"), title, tables, drawings)
    return page


def as_time(seconds: float | None) -> str:
    """Format a duration in days, hours, minutes and seconds; None as a dash."""
    return "–" if seconds is None else str(timedelta(seconds=round(seconds)))
