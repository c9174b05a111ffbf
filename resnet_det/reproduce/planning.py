"""The paper's tables by one resumable command (tools/reproduce.py).

A table is a list of cells. A cell is the runs that make its network, each a command of tools/ with
an output folder of its own, and the numbers that are read from the last run's ``metrics.json``.
The tables themselves are data: :mod:`.paper`.
"""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import yaml

from ..config.defaults import ConfigError
from ..config.loading import load_config
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


def parse_fraction(text):
    """ "1/32" or "0.05" -> Fraction in (0, 1]."""
    try:
        fraction = Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"--fraction {text}: give a number such as 1/32 or 0.05") from error
    if not 0 < fraction <= 1:
        raise ConfigError(f"--fraction {text}: give a number above 0 and up to 1")
    return fraction
