"""Every Python and YAML snippet of docs/detectron2.md runs as it stands, and its tables are true."""

import re
import runpy
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.modeling import build_backbone, build_model

import resnet_det
from resnet_det.data.synthetic.scenes import write_scenes
from resnet_det.nets import NETS, meta_net

pytestmark = pytest.mark.detectron2

PAGE = (Path(__file__).parents[2] / "docs/detectron2.md").read_text()
SNIPPETS = re.findall(r"^```(python|yaml)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
# The nets of each row of the tables, as the page names them and as a pattern.
GROUPS = {
    "`paper_resnet18*`, `paper_resnet34*`, `paper_plain*`": r"paper_(resnet|plain)(18|34)(_.)?",
    "`paper_resnet50`, `paper_resnet101`, `paper_resnet152`": r"paper_resnet(50|101|152)",
    "`paper_vgg16`, `paper_vgg19`": r"paper_vgg\d+",
    "`cifar_*`": r"cifar_\w+",
}


@pytest.mark.parametrize(
    ("language", "snippet"), SNIPPETS, ids=[f"{i}-{s[0]}" for i, s in enumerate(SNIPPETS)]
)
def test_snippet_runs(language, snippet, tmp_path, monkeypatch):
    if language == "yaml":
        cfg = get_cfg()
        cfg.MODEL.DEVICE = "cpu"
        cfg.merge_from_other_cfg(CfgNode.load_cfg(snippet))
        build_model(cfg)
        return
    name = re.match(r"# (\w+\.py)", snippet)
    script = tmp_path / (name[1] if name else "snippet.py")
    script.write_text(snippet)
    if script.name.startswith("lazy_"):  # a file for tools/lazyconfig_train_net.py
        config = LazyConfig.load(str(script))
        assert {"dataloader", "lr_multiplier", "model", "optimizer", "train"} == set(config)
        model = instantiate(config.model)
        trunk = getattr(model.backbone, "bottom_up", model.backbone)
        assert type(trunk) is resnet_det.PaperBackbone
        return
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    if "scenes_" in snippet:
        write_scenes(str(tmp_path), trainval=4, test=2, train_crops=8, val_crops=8, size=(48, 64))
    runpy.run_path(str(script), run_name="__main__")
    if script.name == "train_c4.py":
        assert (tmp_path / "output/train_c4/model_final.pth").exists()
        assert '"bbox/AP50"' in (tmp_path / "output/train_c4/metrics.json").read_text()


def test_page_has_snippets_of_each_kind():
    assert {language for language, _ in SNIPPETS} == {"python", "yaml"}
    assert re.findall(r"^# (\w+\.py)$", PAGE, re.MULTILINE) == [
        "train_c4.py", "lazy_retinanet.py", "lazy_c4.py",
    ]  # fmt: skip


def configured(name, head):
    cfg = get_cfg()
    resnet_det.configure(cfg, name, head)
    return cfg.MODEL


def c4_row(group, name):
    model, net = configured(name, "c4"), meta_net(name)
    (feature,) = model.RESNETS.OUT_FEATURES
    assert [feature] == model.RPN.IN_FEATURES == model.ROI_HEADS.IN_FEATURES
    stages = [f for f in net.strides if f not in net.head_names]
    trunk = f"`{stages[0]}` ... `{feature}`"
    head = ", ".join(f"`{stage}`" for stage in net.head_names)
    cells = (
        *(group, trunk, f"`{feature}`", f"{net.channels[feature]}, stride {net.strides[feature]}"),
        *(head, net.channels[net.stage_names[-1]], model.ROI_BOX_HEAD.POOLER_RESOLUTION),
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def pyramid_row(group, name):
    fpn, retinanet, net = configured(name, "fpn"), configured(name, "retinanet"), meta_net(name)
    assert fpn.ROI_HEADS.IN_FEATURES == fpn.RPN.IN_FEATURES[:-1]
    cells = [group]
    for model, levels in ((fpn, fpn.RPN.IN_FEATURES), (retinanet, retinanet.RETINANET.IN_FEATURES)):
        features = model.FPN.IN_FEATURES
        assert features == model.RESNETS.OUT_FEATURES
        cells += [", ".join(f"`{f}`" for f in features), f"`{levels[0]}` ... `{levels[-1]}`"]
        if model is fpn:
            cells.insert(2, ", ".join(str(net.channels[f]) for f in features))
    return "| " + " | ".join(cells) + " |"


@pytest.mark.parametrize("name", ["paper_resnet18", "paper_vgg16", "cifar_resnet20"])
def test_levels_are_those_that_detectron2_builds(name):
    fpn, retinanet = configured(name, "fpn"), configured(name, "retinanet")
    for model, levels in ((fpn, fpn.RPN.IN_FEATURES), (retinanet, retinanet.RETINANET.IN_FEATURES)):
        with torch.device("meta"):
            backbone = build_backbone(CfgNode({"MODEL": model}))
        assert list(backbone.output_shape()) == levels


@pytest.mark.parametrize("row", [c4_row, pyramid_row])
def test_tables_have_every_net(row):
    seen = set()
    for group, pattern in GROUPS.items():
        names = [name for name in NETS if re.fullmatch(pattern, name)]
        with torch.device("meta"):
            rows = {row(group, name) for name in names if NETS[name].depth <= 56}
        assert len(rows) == 1 and rows.pop() in PAGE
        seen |= set(names)
    assert seen == set(NETS)
