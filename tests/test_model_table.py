"""tools/model_table.py against exact arithmetic and the paper's figures."""

import importlib.util
from pathlib import Path

import pytest

_path = Path(__file__).parent.parent / "tools/model_table.py"
_spec = importlib.util.spec_from_file_location("model_table", _path)
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)


def cells(name):
    return dict(zip(tool.HEADER, tool.row(name)))


@pytest.mark.parametrize("name, layers, in_1x1, in_3x3, paper, remark", [
    ("paper_plain34", 34, "3,644,493,824", "–", "3.6 G", "rounded"),
    ("paper_resnet18", 18, "1,814,073,344", "–", "1.8 G", "rounded"),
    ("paper_resnet50", 50, "3,857,973,248", "4,089,184,256", "3.8 G",
     "cut off; only with the stride in the 1x1"),
    ("paper_resnet101", 101, "7,570,194,432", "7,801,405,440", "7.6 G",
     "rounded; only with the stride in the 1x1"),
    ("paper_vgg16", 16, "15,470,264,320", "–", "15.3 G",
     "without linear layers 15,346,630,656, rounded"),
    ("cifar_resnet56", 56, "125,485,696", "–", "0.85 M parameters", "rounded"),
])  # fmt: skip
def test_rows(name, layers, in_1x1, in_3x3, paper, remark):
    row = cells(name)
    assert row["layers"] == str(layers)
    assert row["multiply-adds, stride in 1x1"] == in_1x1
    assert row["multiply-adds, stride in 3x3"] == in_3x3
    assert (row["paper"], row["ours beside it"]) == (paper, remark)


def test_output_sizes_are_table_1s():
    assert cells("paper_resnet34")["output sizes"] == "stem 56 res2 56 res3 28 res4 14 res5 7"
    assert cells("cifar_plain20")["output sizes"] == "stem 32 res2 32 res3 16 res4 8"


def test_the_papers_digits_are_compared_not_trusted():
    assert tool.beside("3.8", 3_857_973_248, 10**9) == "cut off"
    assert tool.beside("3.8", 4_089_184_256, 10**9) is None
    assert tool.beside("19.4", 19_421_274, 10**6) == "rounded"
    assert tool.beside("19.5", 19_421_274, 10**6) is None


def test_command(capsys):
    tool.main(["cifar_resnet20", "cifar_plain20"])
    lines = capsys.readouterr().out.splitlines()
    header, _, first, _ = ([cell.strip() for cell in line[1:-1].split("|")] for line in lines)
    assert tuple(header) == tool.HEADER
    assert first == list(tool.row("cifar_resnet20"))
    with pytest.raises(ValueError, match="cifar_resnet20"):
        tool.main(["cifar_resnet21"])
