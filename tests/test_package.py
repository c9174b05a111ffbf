"""The names that ``import resnet_det`` provides, and that it loads little."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import resnet_det
from resnet_det.config.defaults import ConfigError
from resnet_det.config.loading import find_config

ROOT = Path(__file__).parent.parent


def python(code):
    """What a fresh process prints."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.split()


def test_without_detectron2_the_import_loads_nothing_heavy():
    hide = "import sys; sys.modules['detectron2'] = None; before = set(sys.modules)\n"
    loaded = python(hide + "import resnet_det; print(*sys.modules.keys() - before)")
    assert not {name.split(".")[0] for name in loaded} & {"torch", "torchvision", "numpy", "yaml"}
    assert {name for name in loaded if name.startswith("resnet_det")} == {"resnet_det"}


@pytest.mark.detectron2
def test_with_detectron2_the_import_registers_nets_heads_and_datasets():
    registered = python(
        "import resnet_det, sys\n"
        "print(*(name in sys.modules for name in ('matplotlib', 'resnet_det.engines')))\n"
        "from detectron2.data import DatasetCatalog\n"
        "from detectron2.modeling import BACKBONE_REGISTRY, ROI_HEADS_REGISTRY\n"
        "print('paper_resnet50' in BACKBONE_REGISTRY, 'PaperROIHeads' in ROI_HEADS_REGISTRY,\n"
        "      'scenes_voc_test' in DatasetCatalog)"
    )
    assert registered == ["False", "False", "True", "True", "True"]


def test_public_names():
    assert resnet_det.build_net("cifar_resnet20").linear.out_features == 10
    assert "paper_resnet50" in resnet_det.NETS and callable(resnet_det.add_resnet_det_config)
    assert callable(resnet_det.configure)
    assert {*resnet_det.__all__, "weights"} <= set(dir(resnet_det))
    assert resnet_det.evaluation.__name__ == "resnet_det.evaluation"
    with pytest.raises(AttributeError, match="'resnet_det' has no attribute 'build_nets'"):
        resnet_det.build_nets  # noqa: B018


@pytest.mark.detectron2
def test_public_names_that_need_detectron2():
    pytest.importorskip("detectron2")
    from detectron2.modeling import ROI_HEADS_REGISTRY, Backbone

    assert issubclass(resnet_det.PaperBackbone, Backbone)
    assert resnet_det.PaperROIHeads is ROI_HEADS_REGISTRY.get("PaperROIHeads")
    assert resnet_det.build_head("paper_resnet18").names == ("res5",)


@pytest.mark.parametrize("name", ["PaperBackbone", "PaperROIHeads", "build_head"])
def test_without_detectron2_its_names_say_that_they_need_it(name):
    code = "import sys; sys.modules['detectron2'] = None\nfrom resnet_det import *\n"
    code += f"try: from resnet_det import {name}\nexcept ImportError as error: print(error)"
    assert " ".join(python(code)).startswith(f"resnet_det.{name} needs Detectron2, which cannot")


def test_the_version_is_the_one_to_cite():
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1]
    assert resnet_det.__version__ == cited


def test_own_configs_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = (ROOT / "configs/cifar/resnet20.yaml").resolve()
    for name in ("cifar/resnet20.yaml", "configs/cifar/resnet20.yaml"):
        assert find_config(name).resolve() == own
    cfg = resnet_det.get_config("faster_rcnn_R101.yaml", engine="torchvision")
    assert cfg.MODEL.BACKBONE.NAME == "paper_resnet101" and cfg.SOLVER.IMS_PER_BATCH == 2
    (tmp_path / "cifar").mkdir()
    (tmp_path / "cifar/resnet20.yaml").write_text("SEED: 5")
    assert find_config("cifar/resnet20.yaml") == Path("cifar/resnet20.yaml")  # the user's first
    for name in ("resnet21.yaml", "configs", tmp_path / "resnet20.yaml"):
        with pytest.raises(ConfigError, match=f"{Path(name).name}: no such config file"):
            find_config(name)
