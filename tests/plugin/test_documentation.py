"""Every Python and YAML snippet of docs/detectron2.md runs as it stands."""

import re
import runpy
from pathlib import Path

import pytest

pytest.importorskip("detectron2")

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

import resnet_det  # noqa: F401

pytestmark = pytest.mark.detectron2

PAGE = (Path(__file__).parents[2] / "docs/detectron2.md").read_text()
SNIPPETS = re.findall(r"^```(python|yaml)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(
    ("language", "snippet"), SNIPPETS, ids=[f"{i}-{s[0]}" for i, s in enumerate(SNIPPETS)]
)
def test_snippet_runs(language, snippet, tmp_path):
    if language == "python":
        script = tmp_path / "snippet.py"
        script.write_text(snippet)
        runpy.run_path(str(script))
    else:
        cfg = get_cfg()
        cfg.MODEL.DEVICE = "cpu"
        cfg.merge_from_other_cfg(CfgNode.load_cfg(snippet))
        build_model(cfg)


def test_page_has_snippets_of_both_kinds():
    assert {language for language, _ in SNIPPETS} == {"python", "yaml"}
