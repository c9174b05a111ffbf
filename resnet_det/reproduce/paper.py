"""The paper's tables as data: the runs of each cell, and the paper's numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..engines import classifier
from ..evaluation import figures
from ..training import read_metrics
from .table import PRETRAIN, TRAIN, Cell, Cited, Number, Step, Table

_TOP_1, _TOP_5 = "classification/top1_error", "classification/top5_error"
_LABEL_1, _LABEL_5 = "top-1 error %", "top-5 error %"
_FROM_PREVIOUS = ("MODEL.WEIGHTS", "{previous}")


def _pretraining(name: str, overrides: tuple[object, ...] = (), suffix: str = "") -> Step:
    return Step(PRETRAIN, f"configs/imagenet/{name}.yaml", name + suffix, overrides)


def _errors(top1: float, top5: float | None = None) -> tuple[Number, ...]:
    first = Number(_TOP_1, _LABEL_1, top1)
    return (first,) if top5 is None else (first, Number(_TOP_5, _LABEL_5, top5))


def _cited_errors(label: str, top1: float | None, top5: float) -> Cited:
    return Cited(label, {_LABEL_5: top5} if top1 is None else {_LABEL_1: top1, _LABEL_5: top5})


def _ten_crops(name: str, label: str, *errors: float) -> Cell:
    return Cell(name, label, (_pretraining(name),), _errors(*errors))


# Tables 2 to 5 share their training runs: Tables 4 and 5 only test the same nets differently.
TABLE_2 = Table(
    "table2",
    "Table 2: top-1 error on ImageNet's validation set, 10 crops",
    (
        _ten_crops("plain18", "plain-18", 27.94),
        _ten_crops("resnet18_a", "ResNet-18", 27.88),
        _ten_crops("plain34", "plain-34", 28.54),
        _ten_crops("resnet34_a", "ResNet-34", 25.03),
    ),
    runs="imagenet",
)

TABLE_3 = Table(
    "table3",
    "Table 3: error on ImageNet's validation set, 10 crops",
    (
        _ten_crops("vgg16", "VGG-16 (the paper's is the published net)", 28.07, 9.33),
        _ten_crops("plain34", "plain-34", 28.54, 10.02),
        _ten_crops("resnet34_a", "ResNet-34 A", 25.03, 7.76),
        _ten_crops("resnet34_b", "ResNet-34 B", 24.52, 7.46),
        _ten_crops("resnet34_c", "ResNet-34 C", 24.19, 7.40),
        _ten_crops("resnet50", "ResNet-50", 22.85, 6.71),
        _ten_crops("resnet101", "ResNet-101", 21.75, 6.05),
        _ten_crops("resnet152", "ResNet-152", 21.43, 5.71),
    ),
    runs="imagenet",
    cited=(_cited_errors("GoogLeNet", None, 9.15), _cited_errors("PReLU-net", 24.27, 7.38)),
)


def _test_dense(net: str, name: str, *overrides: object) -> Step:
    """Test the previous step's net fully convolutionally, at five scales."""
    dense = ("RESNET_DET.TEST_CROPS", 1, "TEST.AUG.ENABLED", True)
    overrides = (*_FROM_PREVIOUS, *dense, *overrides)
    return Step(PRETRAIN, f"configs/imagenet/{net}.yaml", name, overrides, test_only=True)


def _dense(name: str, label: str, top1: float, top5: float) -> Cell:
    test = _test_dense(name, f"{name}_dense")
    return Cell(name, label, (_pretraining(name), test), _errors(top1, top5))


TABLE_4 = Table(
    "table4",
    "Table 4: error on ImageNet's validation set, one net, fully convolutional at five scales",
    (
        _dense("resnet34_b", "ResNet-34 B", 21.84, 5.71),
        _dense("resnet34_c", "ResNet-34 C", 21.53, 5.60),
        _dense("resnet50", "ResNet-50", 20.74, 5.25),
        _dense("resnet101", "ResNet-101", 19.87, 4.60),
        _dense("resnet152", "ResNet-152", 19.38, 4.49),
    ),
    runs="imagenet",
    cited=(
        _cited_errors("VGG (ILSVRC'14), on test", None, 8.43),
        _cited_errors("GoogLeNet (ILSVRC'14), on test", None, 7.89),
        _cited_errors("VGG (v5)", 24.4, 7.1),
        _cited_errors("PReLU-net", 21.59, 5.71),
        _cited_errors("BN-inception", 21.99, 5.81),
    ),
)

# The paper: "six models of different depth", two of which have 152 layers. It does not name the
# other four; here they are those of Table 4.
_SIX = (
    _pretraining("resnet34_b"),
    _pretraining("resnet34_c"),
    _pretraining("resnet50"),
    _pretraining("resnet101"),
    _pretraining("resnet152", ("SEED", "100{seed}"), "_second"),
    _pretraining("resnet152"),
)
_FIVE_OTHERS = ", ".join(f"'{{{step.name}}}'" for step in _SIX[:-1])

TABLE_5 = Table(
    "table5",
    "Table 5: top-5 error on ImageNet of six nets, fully convolutional at five scales",
    (
        Cell(
            "ensemble",
            "ResNets, 6 nets",
            (
                *_SIX,
                _test_dense("resnet152", "ensemble", "RESNET_DET.ENSEMBLE", f"({_FIVE_OTHERS})"),
            ),
            (Number(_TOP_5, "top-5 error % on val", None, " (3.57 on test, by the server)"),),
        ),
    ),
    runs="imagenet",
    cited=tuple(
        Cited(f"{name}, ensemble", {"top-5 error % on test": error})
        for name, error in (
            ("VGG (ILSVRC'14)", 7.32),
            ("GoogLeNet (ILSVRC'14)", 6.66),
            ("VGG (v5)", 6.8),
            ("PReLU-net", 4.94),
            ("BN-inception", 4.82),
        )
    ),
)


def _cifar(
    kind: str, depth: int, paper: float | None, remark: str = "", by_default: bool = True
) -> Cell:
    name = f"{kind}{depth}"
    return Cell(
        name,
        f"{'ResNet' if kind == 'resnet' else kind}-{depth}",
        (Step(PRETRAIN, f"configs/cifar/{name}.yaml", name),),
        (Number(_TOP_1, "test error %", paper, remark),),
        by_default,
    )


def _figures_6_and_7(runs: Mapping[str, Sequence[Path]], folder: Path) -> dict[str, Path]:
    """Draw Fig. 6 and 7 from the first finished seed of each net."""
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
        ends = [line[_TOP_1] for lines in curves.values()
                for run in lines.values() for line in run[-1:]]  # fmt: skip
        # The paper's axis ends at 20 %, which hides plain-110. Use it if it would show anything.
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
    cited=tuple(
        Cited(name, {"test error %": error})
        for name, error in (
            ("Maxout", 9.38),
            ("NIN", 8.81),
            ("DSN", 8.22),
            ("FitNet, 19 layers", 8.39),
            ("Highway, 19 layers (mean 7.72 ± 0.16)", 7.54),
            ("Highway, 32 layers", 8.80),
        )
    ),
)


# With --weights trained, a detector's command first trains the classifier that it starts from.
def _scratch(net: str) -> str:
    return f"configs/from_scratch/faster_rcnn_{net}.yaml"


_MAP, _AP = "bbox/AP50", "bbox/AP"
_SERVER = ", by the evaluation server"


def _voc(net: str, label: str, paper07: float | None, paper12: float | None) -> tuple[Cell, ...]:
    return tuple(
        Cell(
            f"{net}{suffix}",
            f"{label}, {data}",
            (
                Step(
                    TRAIN,
                    f"configs/faster_rcnn_{net}{suffix}.yaml",
                    net + suffix,
                    from_scratch=_scratch(net),
                ),
            ),
            (Number(key, f"mAP % on {test}", paper, remark),),
            paper07 is not None,
        )
        for suffix, data, test, key, paper, remark in (
            ("", "07+12", "VOC 07 test", _MAP, paper07, ""),
            ("_07pp12", "07++12", "VOC 12 test", None, paper12, _SERVER),
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
    runs="detection",
)


def _coco(net: str, label: str, ap50: float | None = None, ap: float | None = None) -> Cell:
    config = f"configs/faster_rcnn_{net}_coco.yaml"
    step = Step(TRAIN, config, f"{net}_coco", from_scratch=_scratch(net))
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
    runs="detection",
)


def _named(table: Table, *names: str) -> tuple[Cell, ...]:
    cells = {cell.name: cell for cell in table.cells}
    return tuple(cells[name] for name in names)


_CONTEXT = "configs/faster_rcnn_R101_coco_context.yaml"
_MULTI_SCALE = "configs/faster_rcnn_R101_coco_multiscale.yaml"


def _test(config: str, name: str, *overrides: object) -> Step:
    """Test the previous step's detector."""
    overrides = (*_FROM_PREVIOUS, *overrides)
    return Step(TRAIN, config, name, overrides, test_only=True)


def _trainval(suffix: str = "", *overrides: object) -> Step:
    """Train on COCO's train and val sets (120k images), to test on test-dev or fine-tune on VOC."""
    data = ("DATASETS.TRAIN", "('coco_2014_train', 'coco_2014_val')", "DATASETS.TEST", "()")
    name = f"R101_coco_trainval{suffix}"
    return Step(TRAIN, _CONTEXT, name, (*data, *overrides), from_scratch=_scratch("R101"))


def _appendix_b(
    name: str, label: str, steps: tuple[Step, ...], ap50: float, ap: float, on_val: bool = True
) -> Cell:
    label50, label_ap = "mAP@.5 %", "mAP@[.5, .95] %"
    if on_val:
        return Cell(name, label, steps, (Number(_MAP, label50, ap50), Number(_AP, label_ap, ap)))
    numbers = (
        Number(None, f"{label50} on test-dev", ap50, _SERVER),
        Number(None, f"{label_ap} on test-dev", ap, _SERVER),
    )
    return Cell(name, label, steps, numbers)


_WITH_CONTEXT = Step(TRAIN, _CONTEXT, "R101_coco_context", from_scratch=_scratch("R101"))
# The year that COCO's server accepts; its test-dev images are those of 2015.
_TEST_DEV = ("DATASETS.TEST", "('coco_2017_test-dev',)")

TABLE_9 = Table(
    "table9",
    "Table 9: ResNet-101 on COCO, improved step by step; val, or trainval and test-dev",
    (
        *_named(TABLE_8, "VGG16", "R101"),
        _appendix_b(
            "refine",
            "+ box refinement",
            (
                *_named(TABLE_8, "R101")[0].steps,
                _test("configs/faster_rcnn_R101_coco_refine.yaml", "R101_coco_refine"),
            ),
            *(49.9, 29.9),
        ),
        _appendix_b("context", "+ context", (_WITH_CONTEXT,), 51.1, 30.0),
        _appendix_b(
            "multiscale",
            "+ multi-scale testing",
            (_WITH_CONTEXT, _test(_MULTI_SCALE, "R101_coco_multiscale")),
            *(53.8, 32.5),
        ),
        _appendix_b(
            "context_trainval",
            "+ context, trainval",
            (_trainval(), _test(_CONTEXT, "R101_coco_context_test-dev", *_TEST_DEV)),
            *(53.3, 32.2),
            on_val=False,
        ),
        _appendix_b(
            "multiscale_trainval",
            "+ multi-scale testing, trainval",
            (_trainval(), _test(_MULTI_SCALE, "R101_coco_multiscale_test-dev", *_TEST_DEV)),
            *(55.7, 34.9),
            on_val=False,
        ),
        _appendix_b(
            "ensemble",
            "ensemble of 3, trainval (here: of three seeds)",
            (
                _trainval("_second", "SEED", "100{seed}"),
                _trainval("_third", "SEED", "200{seed}"),
                _trainval(),
                _test(
                    _MULTI_SCALE,
                    "R101_coco_ensemble",
                    *_TEST_DEV,
                    "RESNET_DET.ENSEMBLE",
                    "('{R101_coco_trainval_second}', '{R101_coco_trainval_third}')",
                ),
            ),
            *(59.0, 37.4),
            on_val=False,
        ),
    ),
    runs="detection",
)


def _fine_tuned(suffix: str, data: str, number: Number) -> Cell:
    """Baseline+++ (Appendix B): the detector trained on COCO trainval, fine-tuned on VOC."""
    name = f"R101_coco_voc{suffix}"
    fine = Step(TRAIN, f"configs/faster_rcnn_{name}.yaml", name, _FROM_PREVIOUS)
    return Cell(name, f"ResNet-101, baseline+++, COCO+{data}", (_trainval(), fine), (number,))


TABLE_10 = Table(
    "table10",
    "Table 10: PASCAL VOC 2007 test",
    (
        *_named(TABLE_7, "VGG16", "R101"),
        _fine_tuned("", "07+12", Number(_MAP, "mAP % on VOC 07 test", 85.6)),
    ),
    runs="detection",
    per_class=True,
)

TABLE_11 = Table(
    "table11",
    "Table 11: PASCAL VOC 2012 test",
    (
        *_named(TABLE_7, "VGG16_07pp12", "R101_07pp12"),
        _fine_tuned("_07pp12", "07++12", Number(None, "mAP % on VOC 12 test", 83.8, _SERVER)),
    ),
    runs="detection",
)


def _miniature(name: str, label: str, by_default: bool = True) -> tuple[Cell, Cell]:
    pretrain = Step(PRETRAIN, f"configs/miniature/{name}_classifier.yaml", f"{name}_classifier")
    detect = Step(TRAIN, f"configs/miniature/{name}.yaml", name, _FROM_PREVIOUS)
    error = Number(_TOP_1, "test error % on CIFAR-10", None)
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

TABLES = {
    table.name: table
    for table in (
        *(TABLE_2, TABLE_3, TABLE_4, TABLE_5, TABLE_6, TABLE_7, TABLE_8, TABLE_9, TABLE_10),
        *(TABLE_11, MINIATURE),
    )
}
