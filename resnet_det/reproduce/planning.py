"""Plan a table: the commands that produce each cell, and what their output folders hold so far."""

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from ..config.defaults import ConfigError, flatten
from ..config.loading import embedded_part, find_config, load_config, parse_text
from ..engines.provenance import changes
from ..engines.scaling import scaled
from ..training import read_metrics
from ..training.checkpoint import load
from ..weights.facts import Facts
from .table import PRETRAIN, Cell, Step, Table


@dataclass(eq=False)
class Run:
    """A step with a seed.

    Attributes:
        step: the step to run.
        folder: the output folder.
        overrides: KEY VALUE pairs, including seed, schedule and ``OUTPUT_DIR``.
        iterations: number of training iterations, before scaling to the number of processes.
        full_iterations: the same of the unshortened training.
        reads: the runs whose weights this one starts from or tests.
        tested: the run whose net this one tests without training, or None.
        pretrained: weights that the run first trains if they are absent, or None.
        keys: keys of the metrics that its last evaluation must have.
        lock: held while the run is in progress, because several cells may share it.
    """

    step: Step
    folder: Path
    overrides: list[str]
    iterations: int
    full_iterations: int
    reads: tuple["Run", ...] = ()
    tested: "Run | None" = None
    pretrained: Path | None = None
    keys: tuple[str, ...] = ()
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def weights(self) -> Path:
        return self.tested.weights if self.tested else self.folder / "model_final.pth"

    @property
    def command(self) -> list[str]:
        """The module to run with ``python -m``, and its arguments."""
        how = "--eval-only" if self.step.test_only else "--resume"
        return [self.step.command, "--config-file", self.step.config, how, *self.overrides]

    def load_config(self) -> CfgNode:
        return load_config(self.step.config, self.overrides)

    def metrics(self) -> dict[str, Any] | None:
        """The final evaluation, or None if the run is not finished.

        Raises:
            ConfigError: the folder holds a run with another number of iterations.
        """
        return self._test_metrics() if self.tested else self._training_metrics()

    def _test_metrics(self) -> dict[str, Any] | None:
        """Read the test's result files, if they are newer than the weights of each tested net."""
        weights = [run.weights for run in self.reads]
        if not all(path.exists() for path in weights):
            return None
        trained = max(path.stat().st_mtime for path in weights)
        files = [f for f in self.folder.glob("inference/*/*") if f.stat().st_mtime >= trained]
        task = "classification" if self.step.command == PRETRAIN else "bbox"
        results = [json.loads(path.read_text()) for path in files if path.name == "results.json"]
        found = {f"{task}/{k}": v for r in results for k, v in r.items() if k != "classes"}
        return found if files and all(key in found for key in self.keys) else None

    def _training_metrics(self) -> dict[str, Any] | None:
        """Read the metrics from the last lines of metrics.json."""
        try:
            solver = yaml.safe_load((self.folder / "config.yaml").read_text())["SOLVER"]
        except FileNotFoundError:
            return None
        length, planned = solver["MAX_ITER"], self.iterations
        if solver.get("REFERENCE_WORLD_SIZE"):
            planned = scaled(self.load_config(), solver["REFERENCE_WORLD_SIZE"]).SOLVER.MAX_ITER
        if length != planned:
            raise ConfigError(
                f"{self.folder}: holds a run of {length} iterations, not {planned}: "
                "give another --output, or remove the folder"
            )
        if not self.weights.exists():
            return None
        if not self.keys:
            return {}
        for line in reversed(read_metrics(self.folder / "metrics.json")):
            if line["iteration"] >= length - 1 and all(key in line for key in self.keys):
                return line
        return None

    def changes(self) -> list[str]:
        """The keys whose values differ between the training in the folder and this plan, as text.

        A test states nothing: only trainings carry their config.
        """
        text = None if self.tested else self._facts.get("config")
        if text is None:
            return []
        before, cfg = parse_text(text, self.weights), self.load_config()
        if processes := before.get("SOLVER.REFERENCE_WORLD_SIZE"):
            cfg = scaled(cfg, processes)
        now = parse_text(embedded_part(cfg), self.step.config)
        if self.reads:  # the weights of other runs, which may have moved
            now.pop("MODEL.WEIGHTS", None)
        return changes(before, now)

    def commit(self) -> str:
        """The git commit at which the weights were trained."""
        return self._facts.get("commit") or "unknown"

    @cached_property
    def _facts(self) -> Facts:
        """The facts that the checkpoint of a finished run carries."""
        return load(self.weights).get("meta", {})


PUBLISHED, TRAINED = WEIGHTS = ("published", "trained")  # the choices of --weights

Plan = dict[tuple[Cell, int], list[Run]]  # (cell, seed) -> its runs, in order


def starts_published(table: Table) -> bool:
    """Whether a table has detectors that start from ImageNet weights."""
    return any(step.from_scratch for cell in table.cells for step in cell.steps)


def trains_classifiers(plan: Plan) -> bool:
    """Whether detectors of a plan start from classifiers that are trained first."""
    return any(run.pretrained for chain in plan.values() for run in chain)


def own_keys(config: str) -> list[str]:
    """KEY VALUE pairs that a config states itself, not those of its base, without its folder."""
    own = yaml.safe_load(find_config(config).read_text())
    keys = {k: v for k, v in flatten(own).items() if k not in ("_BASE_", "OUTPUT_DIR")}
    return [str(word) for pair in keys.items() for word in pair]


def shortened(cfg: CfgNode, fraction: Fraction) -> list[Any]:
    """KEY VALUE pairs that shorten a config's schedule to ``fraction`` of its iterations.

    Steps and warm-up are shortened by the same factor. A run saves at least 4 checkpoints, and
    makes at least 5 evaluations if the config evaluates during training.
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


def plan(
    table: Table,
    seeds: Iterable[int],
    fraction: Fraction,
    output: str | Path,
    weights: str = PUBLISHED,
) -> Plan:
    """Plan a table's runs under the folder ``output``. A step that several cells share is one Run.

    Args:
        weights: whether detectors start from published ImageNet weights, or from nets that are
            trained here.
    """
    runs: dict[Path, Run] = {}
    plan: Plan = {}
    for cell in table.cells:
        for seed in seeds:
            chain: list[Run] = []
            for step in cell.steps:
                folder = Path(output) / f"{step.name}-seed{seed}"
                if folder not in runs:
                    runs[folder] = _plan_run(step, folder, seed, fraction, chain, weights)
                chain.append(runs[folder])
            chain[-1].keys = tuple(number.key for number in cell.numbers if number.key)
            plan[cell, seed] = chain
    return plan


def _plan_run(
    step: Step,
    folder: Path,
    seed: int,
    fraction: Fraction,
    before: Sequence[Run],
    weights: str,
) -> Run:
    """Plan one run. ``before`` holds the earlier runs of its cell."""
    names: dict[str, object] = {run.step.name: run.weights for run in before} | {"seed": seed}
    if before:
        names["previous"] = before[-1].weights
    overrides = [str(word).format(**names) for word in step.overrides]
    if weights == TRAINED and step.from_scratch:
        overrides = [*own_keys(step.from_scratch), *overrides]
    cfg = load_config(step.config, overrides)
    schedule = [] if fraction == 1 else shortened(cfg, fraction)
    words = ["SEED", seed, *overrides, *schedule, "OUTPUT_DIR", folder]
    return Run(
        step,
        folder,
        [str(word) for word in words],
        iterations=schedule[1] if schedule else cfg.SOLVER.MAX_ITER,
        full_iterations=cfg.SOLVER.MAX_ITER,
        reads=tuple(run for run in before if any(str(run.weights) in x for x in overrides)),
        tested=before[-1] if step.test_only else None,
        pretrained=Path(cfg.MODEL.WEIGHTS) if cfg.RESNET_DET.PRETRAIN else None,
    )


def chosen(table: Table, plan: Mapping[tuple[Cell, int], list[Run]], names: Sequence[str]) -> Plan:
    """Select the part of a plan to run: the cells ``names`` or, if empty, the default cells.

    Raises:
        ConfigError: the table has no such cell.
    """
    known = [cell.name for cell in table.cells]
    for name in names:
        if name not in known:
            raise ConfigError(f"--cells {name}: {table.name} has {', '.join(known)}")
    return {
        (cell, seed): chain
        for (cell, seed), chain in plan.items()
        if (cell.name in names if names else cell.by_default)
    }


def parse_fraction(text: str) -> Fraction:
    """Read "1/32" or "0.05".

    Raises:
        ConfigError: the text is not a number above 0 and up to 1.
    """
    try:
        fraction = Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"--fraction {text}: give a number such as 1/32 or 0.05") from error
    if not 0 < fraction <= 1:
        raise ConfigError(f"--fraction {text}: give a number above 0 and up to 1")
    return fraction
