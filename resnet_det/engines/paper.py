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
        ends = [line["classification/top1_error"] for lines in curves.values()
                for run in lines.values() for line in run[-1:]]  # fmt: skip
        # The paper's axis, which leaves out plain-110, once anything reaches into it.
        path = figures.error_curves(curves, folder / "fig6", 20 if min(ends) < 20 else None)
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

# A detector's command trains the classifier that it starts from where that is absent.
_MAP, _AP = "bbox/AP50", "bbox/AP"


def _voc(net, label, paper07, paper12):
    return tuple(
        Cell(
            f"{net}{suffix}",
            f"{label}, {data}",
            (Step("tools/train_net.py", f"configs/faster_rcnn_{net}{suffix}.yaml", net + suffix),),
            (Number(key, f"mAP % on {test}", paper, remark),),
            paper07 is not None,
        )
        for suffix, data, test, key, paper, remark in (
            ("", "07+12", "VOC 07 test", _MAP, paper07, ""),
            ("_07pp12", "07++12", "VOC 12 test", None, paper12, ", by the evaluation server"),
        )
    )


TABLE_7 = Table(
    "table7",
    "Table 7: Faster R-CNN on PASCAL VOC",
    (
        *_voc("VGG16", "VGG-16", 73.2, 70.4),
        *_voc("R101", "ResNet-101", 76.4, 73.8),
        *_voc("R50", "ResNet-50", None, None),
        *_voc("R34", "ResNet-34", None, None),
        *_voc("R18", "ResNet-18", None, None),
    ),
)


def _coco(net, label, ap50=None, ap=None):
    step = Step("tools/train_net.py", f"configs/faster_rcnn_{net}_coco.yaml", f"{net}_coco")
    numbers = Number(_MAP, "mAP@.5 %", ap50), Number(_AP, "mAP@[.5, .95] %", ap)
    return Cell(net, label, (step,), numbers, ap is not None)


TABLE_8 = Table(
    "table8",
    "Table 8: Faster R-CNN on COCO 2014 val",
    (
        _coco("VGG16", "VGG-16", 41.5, 21.2),
        _coco("R101", "ResNet-101", 48.4, 27.2),
        _coco("R50", "ResNet-50"),
        _coco("R34", "ResNet-34"),
        _coco("R18", "ResNet-18"),
    ),
)


def _miniature(name, label, by_default=True):
    pretrain = Step(
        "tools/pretrain.py", f"configs/miniature/{name}_classifier.yaml", f"{name}_classifier"
    )
    detect = Step(
        "tools/train_net.py",
        f"configs/miniature/{name}.yaml",
        name,
        ("MODEL.WEIGHTS", "{previous}"),
    )
    error = Number("classification/top1_error", "test error % on CIFAR-10", None)
    numbers = Number(_MAP, "mAP@.5 % (11-point)", None), Number(_AP, "AP %", None)
    return (
        Cell(f"{name}_classifier", f"{label}, classifier", (pretrain,), (error,), by_default),
        Cell(name, f"{label}, detector", (pretrain, detect), numbers, by_default),
    )


MINIATURE = Table(
    "miniature",
    "Do better classifiers make better detectors? Tables 7 and 8 in miniature, on CIFAR-10",
    (
        *_miniature("plain20", "plain-20"),
        *_miniature("resnet20", "ResNet-20"),
        *_miniature("resnet56", "ResNet-56"),
        *_miniature("resnet110", "ResNet-110", by_default=False),
    ),
    seeds=(1, 2, 3),
)

TABLES = {table.name: table for table in (TABLE_6, TABLE_7, TABLE_8, MINIATURE)}
