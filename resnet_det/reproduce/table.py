"""What a table of the paper is: cells, which are chains of runs, and the numbers of the last run."""

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
        name: of the output folder, before the seed. A step that several cells share, such as a
            pretraining, has one name and runs once.
        overrides: KEY VALUE pairs. "{previous}" stands for the ``model_final.pth`` of the step
            before, "{NAME}" for that of the step NAME of the cell, and "{seed}" for the seed.
        test_only: test the net of the step before, and train nothing.
    """

    command: str
    config: str
    name: str
    overrides: tuple[object, ...] = ()
    test_only: bool = False


@dataclass(frozen=True)
class Number:
    """One number of a cell, to be compared with the paper's.

    Attributes:
        key: of the metric of the cell's last step. None if only an evaluation server can compute
            the number: the run then leaves the files to submit.
        label: what the table calls it.
        paper: the paper's value.
        remark: what follows the paper's value in the table.
    """

    key: str | None
    label: str
    paper: float | None
    remark: str = ""


@dataclass(frozen=True)
class Cell:
    """One row of a table.

    Attributes:
        name: for ``--cells``.
        label: what the table calls it.
        steps: the runs that make its net, in order.
        numbers: of the last step.
        by_default: False if the cell runs only where ``--cells`` names it.
    """

    name: str
    label: str
    steps: tuple[Step, ...]
    numbers: tuple[Number, ...]
    by_default: bool = True


# Cell name -> output folders of its finished runs, one per seed; and a folder to draw to. Returns
# caption -> path of a .png, which has a .svg beside it.
Draw = Callable[[Mapping[str, Sequence[Path]], Path], Mapping[str, Path]]


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
        name: for the command, and of the page that is written.
        title: of the page.
        cells: its rows.
        figures: draws what belongs to the table.
        seeds: that are run by default.
        runs: name of the output folder, which tables with common runs share; by default ``name``.
        per_class: whether the page has the AP50 of each class too.
    """

    name: str
    title: str
    cells: tuple[Cell, ...]
    figures: Draw | None = None
    seeds: tuple[int, ...] = (1,)
    runs: str = ""
    per_class: bool = False
