"""Results as Markdown tables that read well as plain text, and as json."""

import math

PER_CLASS = ("AP-", "AP50-")  # prefixes of an Evaluation's metrics of one class


def markdown_table(rows, header, digits=1):
    """A Markdown table, padded so that it reads in a terminal as well.

    Floats get ``digits`` decimals, None and NaN a dash; a column that holds nothing but numbers is
    aligned right. ValueError if a row is not as long as the header.
    """
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"row {list(row)} has {len(row)} cells, the header {len(header)}")
    columns = []
    for index, name in enumerate(header):
        values = [row[index] for row in rows]
        cells = [_cell(name, digits), *(_cell(value, digits) for value in values)]
        width = max(3, *map(len, cells))
        right = bool(values) and all(v is None or isinstance(v, (int, float)) for v in values)
        rule = "-" * (width - 1) + ":" if right else "-" * width
        cells = [cell.rjust(width) if right else cell.ljust(width) for cell in cells]
        columns.append([cells[0], rule, *cells[1:]])
    return "\n".join("| " + " | ".join(line) + " |" for line in zip(*columns)) + "\n"


def summary_table(evaluations, digits=1):
    """One row for each ``{name: Evaluation}``: the metrics over all classes."""
    names = list(dict.fromkeys(name for e in evaluations.values() for name in summary(e)))
    rows = [[name, *(e.metrics.get(key) for key in names)] for name, e in evaluations.items()]
    return markdown_table(rows, ["", *names], digits)


def class_table(evaluation, digits=1):
    """One row for each class of an Evaluation: class, AP, AP50."""
    rows = [[name, *values.values()] for name, values in per_class(evaluation).items()]
    return markdown_table(rows, ["class", *(prefix[:-1] for prefix in PER_CLASS)], digits)


def system_rows(systems):
    """The paper's Tables 10 and 11: ``(header, rows)``, a row for each ``{system: {class: AP}}``, with
    mean and classes.

    The mean is taken here, over the classes that have a number.
    """
    classes = list(dict.fromkeys(name for aps in systems.values() for name in aps))
    rows = []
    for system, aps in systems.items():
        known = [ap for ap in aps.values() if ap is not None and not math.isnan(ap)]
        mean = sum(known) / len(known) if known else None
        rows.append([system, mean, *(aps.get(name) for name in classes)])
    return ["system", "mAP", *classes], rows


def summary(evaluation):
    """The metrics over all classes: ``{"AP": ..., "AP50": ..., ...}``."""
    return {k: v for k, v in evaluation.metrics.items() if not k.startswith(PER_CLASS)}


def per_class(evaluation):
    """``{class: {"AP": ..., "AP50": ...}}`` in the evaluation's order."""
    names = [k[len("AP-") :] for k in evaluation.metrics if k.startswith("AP-")]
    return {n: {p[:-1]: evaluation.metrics.get(p + n) for p in PER_CLASS} for n in names}


def as_json(evaluation):
    """The metrics as a dict that every json parser reads: None for NaN."""
    tidy = {k: _number(v) for k, v in summary(evaluation).items()}
    classes = {
        name: {k: _number(v) for k, v in values.items()}
        for name, values in per_class(evaluation).items()
    }
    return {**tidy, "classes": classes}


def _number(value):
    return None if value is None or math.isnan(value) else float(value)


def _cell(value, digits):
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:.{digits}f}"
    return " ".join(str(value).split()).replace("|", "\\|")
