"""The parts of a paper's table: a cell is a chain of steps, and its numbers come from the last."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# The commands that steps run.
PRETRAIN = "resnet_det.commands.pretrain"
TRAIN = "resnet_det.commands.train_net"


@dataclass(frozen=True)
class Step:
    """One run of a command.

    Attributes:
        command: the module to run, such as ``PRETRAIN``.
        config: its ``--config-file``.
        name: name of the output folder, without the seed. A step that several cells share, such as
            a pretraining, has one name and runs once.
        overrides: KEY VALUE pairs. "{previous}" stands for the previous step's ``model_final.pth``,
            "{NAME}" for that of the cell's step NAME, and "{seed}" for the seed.
        test_only: test the previous step's net without training.
        from_scratch: a config whose own keys replace published ImageNet weights by a pretraining,
            with ``--weights trained``; "" if the step starts from none.
    """

    command: str
    config: str
    name: str
    overrides: tuple[object, ...] = ()
    test_only: bool = False
    from_scratch: str = ""


@dataclass(frozen=True)
class Number:
    """One number of a cell, to be compared with the paper's.

    Attributes:
        key: metric key of the cell's last step. None if only an evaluation server can compute the
            number: the run then writes the files to submit.
        label: name of the number in the table.
        paper: the paper's value.
        remark: text after the paper's value in the table.
    """

    key: str | None
    label: str
    paper: float | None
    remark: str = ""


@dataclass(frozen=True)
class Cell:
    """One row of a table.

    Attributes:
        name: name for ``--cells``.
        label: name of the row in the table.
        steps: the steps that produce its net, in order.
        numbers: the numbers of the last step.
        by_default: False if the cell runs only if ``--cells`` names it.
    """

    name: str
    label: str
    steps: tuple[Step, ...]
    numbers: tuple[Number, ...]
    by_default: bool = True


@dataclass(frozen=True)
class Cited:
    """A row of another system in a table of the paper. It has the paper's figures only.

    Attributes:
        label: name of the system, and of the test set if it differs from the table's.
        numbers: {name of the number: the paper's value}.
    """

    label: str
    numbers: Mapping[str, float]


# Takes {cell name: output folders of its finished runs, one per seed} and a folder to draw to.
# Returns {caption: path of a .png, which has a .svg beside it}.
Draw = Callable[[Mapping[str, Sequence[Path]], Path], Mapping[str, Path]]


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
        name: name for the command and of the page.
        title: title of the page.
        cells: the rows of nets that are trained.
        figures: draws the figures that belong to the table.
        seeds: the default seeds.
        runs: name of the output folder, which tables with common runs share; by default ``name``.
        per_class: whether the page also shows the AP50 of each class.
        cited: the rows of other systems that the paper compares with.
    """

    name: str
    title: str
    cells: tuple[Cell, ...]
    figures: Draw | None = None
    seeds: tuple[int, ...] = (1,)
    runs: str = ""
    per_class: bool = False
    cited: tuple[Cited, ...] = ()
