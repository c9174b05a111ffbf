"""The paper's tables as data: what to run for each cell, and the number that it is to reach."""

from ..evaluation import figures
from ..training import read_metrics
from . import classifier
from .reproduce import Cell, Number, Step, Table


def _cifar(kind, depth, paper, remark="", by_default=True):
    name = f"{kind}{depth}"
    return Cell(
        name,
        f"{'ResNet' if kind == 'resnet' else kind}-{depth}",
        (Step("tools/pretrain.py", f"configs/cifar/{name}.yaml", name),),
        (Number("classification/top1_error", "test error %", paper, remark),),
        by_default,
    )


def _figures_6_and_7(runs, folder):
    """Fig. 6 and 7 from the first seed of each net."""
    first = {name: folders[0] for name, folders in runs.items()}
    label = {cell.name: cell.label for cell in TABLE_6.cells}
    panels = {
        "plain": ("plain20", "plain32", "plain44", "plain56"),
        "ResNet": ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110"),
        "deeper": ("plain110", "resnet110", "resnet1202"),
    }
    curves = {
        title: {label[n]: read_metrics(first[n] / "metrics.json") for n in names if n in first}
        for title, names in panels.items()
    }
    drawn = {}
    curves = {title: lines for title, lines in curves.items() if lines}
    if curves:
        path = figures.error_curves(curves, folder / "fig6")
        drawn["Fig. 6: error on CIFAR-10, training dashed, test bold"] = path
    analysed = [
        n for n in ("plain20", "plain56", "resnet20", "resnet56", "resnet110") if n in first
    ]
    if analysed:
        responses = {label[n]: classifier.layer_responses(first[n]) for n in analysed}
        path = figures.responses(responses, folder / "fig7")
        drawn["Fig. 7: standard deviations of the layers' responses"] = path
    return drawn


TABLE_6 = Table(
    "table6",
    "Table 6: test error on CIFAR-10",
    (
        *(_cifar("plain", depth, None) for depth in (20, 32, 44, 56, 110)),
        _cifar("resnet", 20, 8.75),
        _cifar("resnet", 32, 7.51),
        _cifar("resnet", 44, 7.17),
        _cifar("resnet", 56, 6.97),
        _cifar("resnet", 110, 6.61, " ± 0.16, best 6.43"),
        _cifar("resnet", 1202, 7.93, by_default=False),
    ),
    _figures_6_and_7,
)

TABLES = {table.name: table for table in (TABLE_6,)}
