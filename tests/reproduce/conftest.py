"""A small table for the tests of the reproduction."""

import pytest
from planned_runs import CLASSIFIER, ERROR

from resnet_det.reproduce.table import PRETRAIN, Cell, Step, Table


@pytest.fixture
def table(monkeypatch):
    cells = [
        Cell(name, name.upper(), (Step(PRETRAIN, CLASSIFIER, name),), (ERROR,)) for name in "abc"
    ]
    return Table("tiny", "Tiny | <b>", tuple(cells))
