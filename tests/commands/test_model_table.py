"""The command `model-table` against exact arithmetic and the paper's figures; the lists of all
nets."""

import re
from pathlib import Path

import pytest

from resnet_det.commands import model_table as tool
from resnet_det.nets import NETS

ROOT = Path(__file__).parents[2]


def cells(name):
    return dict(zip(tool.HEADER, tool.row(name)))


@pytest.mark.parametrize("name, layers, in_1x1, in_3x3, paper, remark", [
    ("paper_plain34", 34, "3,644,493,824", "–", "3.6 G", "rounded"),
    ("paper_resnet18", 18, "1,814,073,344", "–", "1.8 G", "rounded"),
    ("paper_resnet50", 50, "3,857,973,248", "4,089,184,256", "3.8 G",
     "truncated; only with the stride in the 1x1"),
    ("paper_resnet101", 101, "7,570,194,432", "7,801,405,440", "7.6 G",
     "rounded; only with the stride in the 1x1"),
    ("paper_vgg16", 16, "15,470,264,320", "–", "15.3 G",
     "without linear layers 15,346,630,656, rounded"),
    ("paper_vgg19", 19, "19,632,062,464", "–", "19.6 G", "rounded"),
    ("paper_resnet34_c", 34, "3,830,747,136", "–", "", ""),
    ("cifar_resnet56", 56, "125,485,696", "–", "0.85 M parameters", "rounded"),
])  # fmt: skip
def test_rows(name, layers, in_1x1, in_3x3, paper, remark):
    row = cells(name)
    assert row["layers"] == str(layers)
    assert row["multiply-adds, stride in 1x1"] == in_1x1
    assert row["multiply-adds, stride in 3x3"] == in_3x3
    assert (row["paper"], row["our count against the paper's"]) == (paper, remark)


def test_output_sizes_are_table_1s():
    assert cells("paper_resnet34")["output sizes"] == "stem 56 res2 56 res3 28 res4 14 res5 7"
    assert cells("cifar_plain20")["output sizes"] == "stem 32 res2 32 res3 16 res4 8"


def test_the_papers_digits_are_compared_not_trusted():
    assert tool.compare("3.8", 3_857_973_248, 10**9) == "truncated"
    assert tool.compare("3.8", 4_089_184_256, 10**9) is None
    assert tool.compare("19.4", 19_421_274, 10**6) == "rounded"
    assert tool.compare("19.5", 19_421_274, 10**6) is None


def rows_of(markdown):
    """Parse a Markdown table: its header and rows, each a list of cells."""
    lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]


def test_command(capsys):
    tool.main(["cifar_resnet20", "cifar_plain20"])
    header, first, _ = rows_of(capsys.readouterr().out)
    assert tuple(header) == tool.HEADER
    assert first == list(tool.row("cifar_resnet20"))
    with pytest.raises(ValueError, match="cifar_resnet20"):
        tool.main(["cifar_resnet21"])


def test_published_table_is_what_the_tool_prints(capsys):
    """Compares all names, and all rows except those of the deepest nets, which take long to
    count."""
    rows = {row[0]: row for row in rows_of((ROOT / "results/model_table.md").read_text())}
    assert list(rows) == ["net", *NETS]
    shallow = [name for name in NETS if not name.endswith(("101", "110", "152", "1202"))]
    tool.main(shallow)
    assert rows_of(capsys.readouterr().out) == [rows[name] for name in ("net", *shallow)]


def expand(word):
    """ "paper_plain18|34" -> paper_plain18, paper_plain34: what follows "|" replaces the last
    part."""
    start, last, others = re.fullmatch(r"(.*?)(\d+|[a-z])((?:\|\w+)*)", word).groups()
    return [start + part for part in (last, *others.split("|")[1:])]


def test_readme_names_every_net():
    sentence = re.search(r"Their names: (.*?)\. As ", (ROOT / "README.md").read_text(), re.DOTALL)[
        1
    ]
    named = [name for word in re.findall(r"`(.*?)`", sentence) for name in expand(word)]
    assert sorted(named) == sorted(NETS)
