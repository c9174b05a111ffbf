"""The paper's tables by one resumable command (tools/reproduce.py).

A table is a list of cells. A cell is the runs that make its network, each a command of tools/ with
an output folder of its own, and the numbers that are read from the last run's ``metrics.json``.
The tables themselves are data: :mod:`.paper`.
"""

import contextlib
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from fractions import Fraction
from pathlib import Path

import torch
import yaml

from ..config import ConfigError, load_config
from ..data import shortfall
from ..evaluation.report import TableSection, write_tables
from ..evaluation.tables import format_cell, markdown_table, system_rows
from ..training import read_metrics
from ..training.checkpoint import load

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Step:
    """One run: ``tools/<tool> --config-file <config>``.

    name: of its output folder. Cells that share a step (a pretraining) name it alike, and it runs
        once; a seed is added to the name.
    overrides: KEY VALUE pairs. "{previous}" stands for the step before's ``model_final.pth``,
        "{NAME}" for that of the cell's step of that name, "{seed}" for the seed.
    test_only: the step before's net is tested as the config says, and nothing is trained.
    """

    tool: str
    config: str
    name: str
    overrides: tuple = ()
    test_only: bool = False


@dataclass(frozen=True)
class Number:
    """``key`` of the last step's metrics, what to call it, the paper's value of it and a remark.

    Without a key nothing here measures it: the run leaves files for an evaluation server.
    """

    key: str | None
    label: str
    paper: float | None
    remark: str = ""


@dataclass(frozen=True)
class Cell:
    """A row of the table: ``name`` for --cells, ``label`` to read, its steps and its numbers.

    by_default: False for a cell that runs only where --cells names it.
    """

    name: str
    label: str
    steps: tuple[Step, ...]
    numbers: tuple[Number, ...]
    by_default: bool = True


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    runs: name of the output folder, which tables that share runs have in common; else the table's.
    figures: function of {cell name: folders of its finished runs, one a seed} and an output folder
        that draws what belongs to the table: {caption: path of a .png that has a .svg beside it}.
    per_class: the AP50 of each class is given too.
    """

    name: str
    title: str
    cells: tuple[Cell, ...]
    figures: Callable[[dict, Path], dict] | None = None
    seeds: tuple[int, ...] = (1,)
    runs: str = ""
    per_class: bool = False


@dataclass(eq=False)
class Run:
    """A step with a seed, where it writes, and how long it is."""

    step: Step
    folder: Path
    command: list
    iterations: int
    of: int  # iterations of the whole schedule
    keys: tuple  # that its last evaluation must have
    tested: "Run | None" = None  # the run whose net this one only tests
    reads: tuple = ()  # runs whose weights this one starts from or tests
    pretrained: Path | None = None  # weights that it makes first where they are absent
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def weights(self):
        return self.tested.weights if self.tested else self.folder / "model_final.pth"

    def metrics(self):
        """The final evaluation, or None where the run is not finished.

        That of a test is none any more where a net that it tested was trained anew.

        Raises:
            ConfigError: the folder holds a run of another length.
        """
        if self.tested:
            files = self._results()
            results = [path for path in files if path.name == "results.json"]
            task = "classification" if self.step.tool == "tools/pretrain.py" else "bbox"
            found = {f"{task}/{k}": v for path in results for k, v in _read(path).items()}
            return found if files and all(key in found for key in self.keys) else None
        try:
            length = yaml.safe_load((self.folder / "config.yaml").read_text())["SOLVER"]["MAX_ITER"]
        except FileNotFoundError:
            return None
        if length != self.iterations:
            raise ConfigError(
                f"{self.folder}: holds a run of {length} iterations, not of {self.iterations}: "
                "give another --output, or remove it"
            )
        if not self.weights.exists():
            return None
        if not self.keys:
            return {}
        for line in reversed(read_metrics(self.folder / "metrics.json")):
            if line["iteration"] >= self.iterations - 1 and all(key in line for key in self.keys):
                return line
        return None

    def _results(self):
        """Files of a test that are younger than the weights of each net that it tests."""
        weights = [run.weights for run in self.reads]
        if not all(path.exists() for path in weights):
            return []
        trained = max(path.stat().st_mtime for path in weights)
        files = self.folder.glob("inference/*/*")
        return [path for path in files if path.stat().st_mtime >= trained]

    def commit(self):
        return load(self.weights).get("meta", {}).get("commit") or "unknown"


def _read(results):
    """The metrics of a ``results.json``, without those of single classes."""
    return {k: v for k, v in json.loads(results.read_text()).items() if k != "classes"}


def shortened(cfg, fraction):
    """KEY VALUE pairs that cut a config's schedule to ``fraction`` of its iterations.

    Steps and warm-up are cut alike; checkpoints come four times at least and evaluations, where
    there are any on the way, five times.
    """
    solver = cfg.SOLVER
    last = max(1, round(fraction * solver.MAX_ITER))
    steps = sorted({max(1, round(fraction * step)) for step in solver.STEPS})
    return [
        "SOLVER.MAX_ITER", last,
        "SOLVER.STEPS", tuple(step for step in steps if step < last),
        "SOLVER.WARMUP_ITERS", round(fraction * solver.WARMUP_ITERS),
        "SOLVER.CHECKPOINT_PERIOD", min(solver.CHECKPOINT_PERIOD, -(-last // 4)),
        "TEST.EVAL_PERIOD", cfg.TEST.EVAL_PERIOD and min(cfg.TEST.EVAL_PERIOD, -(-last // 5)),
    ]  # fmt: skip


def plan(table, seeds, fraction, output):
    """The runs of a table.

    Returns:
        dict (cell, seed) -> list of Run, in order. A step that cells share is one Run.
    """
    runs, plan = {}, {}
    for cell in table.cells:
        for seed in seeds:
            chain, weights = [], {"seed": seed}
            for step in cell.steps:
                folder = Path(output) / f"{step.name}-seed{seed}"
                last = step is cell.steps[-1]
                overrides = [str(x).format(**weights) for x in step.overrides]
                cfg = load_config(ROOT / step.config, overrides)
                shorter = shortened(cfg, fraction) if fraction != 1 else []
                options = ["SEED", seed, *overrides, *shorter, "OUTPUT_DIR", folder]
                how = "--eval-only" if step.test_only else "--resume"
                command = [step.tool, "--config-file", step.config, how, *map(str, options)]
                whole = cfg.SOLVER.MAX_ITER
                length = shorter[1] if shorter else whole
                tested = chain[-1] if step.test_only else None
                reads = tuple(r for r in chain if any(str(r.weights) in x for x in overrides))
                pretrained = Path(cfg.MODEL.WEIGHTS) if cfg.RESNET_DET.PRETRAIN else None
                if folder not in runs:
                    runs[folder] = Run(
                        step, folder, command, length, whole, (), tested, reads, pretrained
                    )
                if last:
                    runs[folder].keys = tuple(n.key for n in cell.numbers if n.key)
                chain.append(runs[folder])
                weights[step.name] = weights["previous"] = runs[folder].weights
            plan[cell, seed] = chain
    return plan


def chosen(table, plan, names):
    """The part of a plan that is to be run: the named cells, or without names the default ones.

    Raises:
        ConfigError: the table has no such cell.
    """
    known = [cell.name for cell in table.cells]
    for name in names or ():
        if name not in known:
            raise ConfigError(f"--cells {name}: {table.name} has {', '.join(known)}")
    return {
        (cell, seed): chain
        for (cell, seed), chain in plan.items()
        if (cell.name in names if names else cell.by_default)
    }


class Runner:
    """Runs commands of tools/, some at once; ends them gently when it is told to stop."""

    def __init__(self, jobs, say=print):
        self.jobs, self.say = jobs, say
        self.running, self.stopped = set(), False
        self.pretrainings = defaultdict(threading.Lock)

    def execute(self, command, log):
        """Run ``tools/...`` with its output in the file ``log``; True if it succeeded."""
        threads = str(max(1, (os.cpu_count() or 1) // self.jobs))
        environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
        tool, *options = command
        with open(log, "a") as file:
            file.write(f"$ {shlex.join(['python', *command])}\n")
            file.flush()
            process = subprocess.Popen(
                [sys.executable, ROOT / tool, "--config-file", ROOT / options[1], *options[2:]],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
            )
            self.running.add(process)
            try:
                return process.wait() == 0
            finally:
                self.running.discard(process)

    @contextlib.contextmanager
    def pretraining(self, weights):
        """Enter where the weights exist or no other cell is making them: two would share a folder."""
        held = None
        while weights and not held and not weights.exists() and not self.stopped:
            if self.pretrainings[weights].acquire(timeout=1):
                held = self.pretrainings[weights]
        try:
            yield
        finally:
            if held:
                held.release()

    def chain(self, runs):
        """Run what is not finished of a cell's runs; returns the log of one that failed, or None."""
        for run in runs:
            with run.lock:  # another cell may share it
                if self.stopped:
                    return None
                if run.metrics() is not None:
                    continue
                log = run.folder.with_name(run.folder.name + ".log")
                log.parent.mkdir(parents=True, exist_ok=True)
                self.say(f"{run.folder}: {run.iterations} iterations, log in {log}")
                with self.pretraining(run.pretrained):
                    done = not self.stopped and self.execute(run.command, log)
                if not done or run.metrics() is None:
                    return log
                self.say(f"{run.folder}: finished")
        return None

    def all(self, plan):
        """Run a plan, ``jobs`` cells at a time; returns the logs of those that failed."""
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                return [log for log in pool.map(self.chain, plan.values()) if log]
            except BaseException:
                self.stopped = True
                for process in list(self.running):
                    process.terminate()  # it saves a checkpoint
                raise


def last_line(log):
    lines = [line for line in Path(log).read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it wrote nothing"


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
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, {gpu}; Python "
        f"{platform.python_version()}, torch {torch.__version__}"
    )


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


def parse_fraction(text):
    """ "1/32" or "0.05" -> Fraction in (0, 1]."""
    try:
        fraction = Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"--fraction {text}: give a number such as 1/32 or 0.05") from error
    if not 0 < fraction <= 1:
        raise ConfigError(f"--fraction {text}: give a number above 0 and up to 1")
    return fraction
