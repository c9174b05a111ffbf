"""How configs are found and inherited, and the device they choose."""

from pathlib import Path

import pytest

from resnet_det.config.defaults import ConfigError
from resnet_det.config.loading import find_config, load_config
from resnet_det.engines import pick, pretrain

ENGINES = ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]
CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["configs/cifar/resnet20.yaml", "cifar/resnet20.yaml"])
def test_a_packaged_config_is_found_from_any_folder(elsewhere, name):
    assert find_config(name).samefile(CONFIGS / "cifar/resnet20.yaml")
    own = elsewhere / name
    own.parent.mkdir(parents=True)
    own.write_text("SEED: 5")
    assert find_config(name).samefile(own)  # a file of the user's goes first


def test_an_absent_config_is_named_with_the_folders_and_the_nearest(elsewhere):
    with pytest.raises(ConfigError) as error:
        find_config("configs/quickstrat.yaml", "RESNET_DET.PRETRAIN")
    text = str(error.value)
    assert text.startswith("RESNET_DET.PRETRAIN: configs/quickstrat.yaml: no such config file")
    assert all(word in text for word in (str(elsewhere), str(CONFIGS), "mean quickstart.yaml"))
    with pytest.raises(ConfigError, match="no such config file"):
        find_config("/cifar/resnet20.yaml")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_base_is_found_beside_the_file_or_among_the_packaged(elsewhere, engine):
    load = pick(engine).load_config
    (elsewhere / "sub").mkdir()
    child = elsewhere / "sub/child.yaml"
    child.write_text("_BASE_: faster_rcnn_R101.yaml\nSEED: 5")
    cfg = load(child)
    assert (cfg.MODEL.BACKBONE.NAME, cfg.SEED) == ("paper_resnet101", 5)
    (elsewhere / "sub/faster_rcnn_R101.yaml").write_text("VERSION: 2\nMODEL: {WEIGHTS: own.pth}")
    assert load(child).MODEL.WEIGHTS == "own.pth"
    child.write_text("_BASE_: [faster_rcnn_R101.yaml, no.yaml]")
    with pytest.raises(ConfigError, match=r"child.yaml: _BASE_: no.yaml: no such config file"):
        load(child)


def test_a_later_base_and_the_file_itself_win(elsewhere):
    Path("a.yaml").write_text("SOLVER: {MAX_ITER: 1, BASE_LR: 0.1}\nSEED: 1")
    Path("b.yaml").write_text("SOLVER: {MAX_ITER: 2}\nSEED: 2")
    Path("c.yaml").write_text("_BASE_: [a.yaml, b.yaml]\nSEED: 3")
    cfg = load_config("c.yaml")
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SEED) == (0.1, 2, 3)
    Path("d.yaml").write_text("_BASE_: c.yaml\nSEED: {X: 1}")
    with pytest.raises(ConfigError, match="d.yaml: SEED: holds keys here, but is a single value"):
        load_config("d.yaml")


def test_yaml_anchors_do_not_tie_keys_together(elsewhere):
    """If two nodes share a YAML anchor, overriding one in a child config does not change the
    other."""
    Path("a.yaml").write_text(
        "MODEL: {RPN: &same {SMOOTH_L1_BETA: 0.5, BBOX_REG_LOSS_WEIGHT: 2.0}, ROI_BOX_HEAD: *same}"
    )
    Path("b.yaml").write_text("_BASE_: a.yaml\nMODEL: {RPN: {SMOOTH_L1_BETA: 0.25}}")
    model = load_config("b.yaml").MODEL
    assert (model.RPN.SMOOTH_L1_BETA, model.ROI_BOX_HEAD.SMOOTH_L1_BETA) == (0.25, 0.5)
    assert model.RPN.BBOX_REG_LOSS_WEIGHT == model.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT == 2.0


@pytest.mark.parametrize("engine", ENGINES)
def test_files_that_include_each_other(elsewhere, engine):
    Path("a.yaml").write_text("_BASE_: b.yaml")
    Path("b.yaml").write_text("_BASE_: a.yaml")
    with pytest.raises(ConfigError, match="a.yaml: is its own _BASE_"):
        pick(engine).load_config("a.yaml")


@pytest.mark.parametrize("engine", ENGINES)
def test_the_pretraining_config_is_found_before_anything_is_drawn(elsewhere, engine):
    load = pick(engine).load_config
    words = "RESNET_DET.PRETRAIN: absent.yaml: no such config file"
    with pytest.raises(ConfigError, match=words):
        pretrain.needed(load("quickstart.yaml", ["RESNET_DET.PRETRAIN", "absent.yaml"]))
    cfg = pretrain.needed(load("quickstart.yaml", ["MODEL.DEVICE", "cpu"]))
    assert cfg.MODEL.META_ARCHITECTURE == "Classifier" and cfg.MODEL.DEVICE == "cpu"
    assert not list(Path().iterdir())
