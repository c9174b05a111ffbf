"""The engine on Detectron2: configs, and mistakes in them that are named in time."""

import dataclasses

import pytest
import yaml
from small_configs import CLASSIFIER

from resnet_det import data
from resnet_det.config.defaults import KEYS, ConfigError, flatten
from resnet_det.training import Checkpointer, distributed

detectron2 = pytest.importorskip("detectron2")

from resnet_det.engines import classifier, pick, pretrain
from resnet_det.engines.on_detectron2 import engine
from resnet_det.engines.on_detectron2.data import load_test_sets
from resnet_det.engines.provenance import checkpoint_facts
from resnet_det.engines.scaling import for_processes

pytestmark = pytest.mark.detectron2


def test_base_overrides_and_pretrain(config, tmp_path):
    child = tmp_path / "child.yaml"
    child.write_text("_BASE_: tiny.yaml\nRESNET_DET: {PRETRAIN: cifar.yaml}\nSEED: 5\n")
    cfg = engine.load_config(child, ["SOLVER.MAX_ITER", "7"])
    assert (cfg.SEED, cfg.SOLVER.MAX_ITER, cfg.MODEL.ROI_HEADS.NUM_CLASSES) == (5, 7, 8)
    assert cfg.RESNET_DET.PRETRAIN == "cifar.yaml"
    assert cfg.is_frozen()
    again = tmp_path / "config.yaml"
    again.write_text(cfg.dump())
    assert engine.load_config(again).SOLVER == cfg.SOLVER


@pytest.mark.parametrize(
    "text, overrides, named",
    [
        ("MODEL: {RPM: {LOSS_WEIGHT: 1.0}}", [], r"bad\.yaml.*MODEL\.RPM.*did you mean .*MODEL\."),
        (
            "SOLVER: {BASE_LRR: 1.0}",
            [],
            r"bad\.yaml.*SOLVER\.BASE_LRR.*did you mean SOLVER\.BASE_LR",
        ),
        ("SOLVER: {BASE_LR: [1]}", [], r"bad\.yaml.*SOLVER\.BASE_LR"),
        ("MODEL: [", [], r"bad\.yaml.*not a readable YAML"),
        ("SEED: !!python/object/apply:eval ['1 + 1']", [], r"bad\.yaml.*write out values"),
        ("- 1", [], r"bad\.yaml"),
        ("_BASE_: nowhere.yaml", [], r"bad\.yaml"),
        ("SEED: 1", ["SOLVER.BASE_LRR", "1"], r"command line.*SOLVER\.BASE_LRR.*SOLVER\.BASE_LR"),
        ("SEED: 1", ["SEED"], "pairs"),
        ("SEED: 1", ["SEED", "x"], "command line"),
        ("MODEL: {META_ARCHITECTURE: Classifier}", [], "META_ARCHITECTURE"),
    ],
)
def test_bad_config_is_refused_by_name(tmp_path, text, overrides, named):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=named):
        engine.load_config(path, overrides)


def test_missing_config_file(tmp_path):
    with pytest.raises(ValueError, match="none.yaml: no such config file"):
        engine.load_config(tmp_path / "none.yaml")


@pytest.mark.parametrize("overrides, words", [
    (["RESNET_DET.BOX_REFINEMENT", "True"], "and RESNET_DET.BOX_REFINEMENT cannot be combined"),
    (["MODEL.KEYPOINT_ON", "True"], "and MODEL.KEYPOINT_ON cannot be combined"),
    (["TEST.AUG.MIN_SIZES", "()"], r"MIN_SIZES: \[\]: give one or more"),
    (["MODEL.META_ARCHITECTURE", "RetinaNet"], "needs MODEL.META_ARCHITECTURE GeneralizedRCNN, not"),
])  # fmt: skip
def test_what_cannot_be_augmented_is_named(config, overrides, words):
    for run in (engine.train, engine.evaluate):
        with pytest.raises(ValueError, match=f"TEST.AUG.*{words}"):
            run(config("TEST.AUG.ENABLED", "True", *overrides))


def test_wrong_class_count_and_names_are_refused(config):
    with pytest.raises(ValueError, match="NUM_CLASSES: 20, but scenes_voc_trainval has 8"):
        engine.train(config("MODEL.ROI_HEADS.NUM_CLASSES", "20"))
    with pytest.raises(data.UnknownDataset, match="scenes_voc_trainval"):
        engine.train(config("DATASETS.TRAIN", "('scenes_voc_trainvall',)"))
    with pytest.raises(ValueError, match="DATASETS.TRAIN"):
        engine.train(config("DATASETS.TRAIN", "()"))
    for key in (
        "MODEL.META_ARCHITECTURE", "MODEL.BACKBONE.NAME", "MODEL.ROI_HEADS.NAME",
        "MODEL.PROPOSAL_GENERATOR.NAME", "MODEL.RPN.HEAD_NAME", "MODEL.ANCHOR_GENERATOR.NAME",
        "MODEL.ROI_BOX_HEAD.NAME",
    ):  # fmt: skip
        name = flatten(config())[key] or "FastRCNNConvFCHead"
        with pytest.raises(ValueError, match=f"{key}: .*no '{name}x'; did you mean {name}"):
            engine.train(config(key, f"{name}x"))


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["DATASETS.TEST", "('scenes_voc_tset',)"], "did you mean scenes_voc_test"),
        (["DATASETS.TRAIN", "('scenes_voc_trainvaal',)"], "did you mean scenes_voc_trainval"),
        (["DATASETS.TRAIN", "()"], "DATASETS.TRAIN: name at least one"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", "20"], "NUM_CLASSES: 20, but scenes_voc_trainval"),
        (["MODEL.BACKBONE.NAME", "cifar_resnet32"], "cifar_resnet32, but .* trains cifar_resnet20"),
        (["RESNET_DET.NEW_LAYERS", "('fc6',)"], "NEW_LAYERS: fc6"),
        (["SOLVER.STEPS", "(3, 2)"], r"schedule from .*STEPS \(3, 2\)"),
        (["SOLVER.LR_SCHEDULER_NAME", "Foo"], "Unknown LR scheduler: Foo"),
        (
            ["SOLVER.REFERENCE_WORLD_SIZE", "3", "SOLVER.IMS_PER_BATCH", "16"],
            "REFERENCE_WORLD_SIZE",
        ),
        (["SOLVER.STEPS", "(1, 4)"], r"schedule from .*STEPS \(1, 4\), MAX_ITER 4"),
        (["MODEL.MASK_ON", "True", "RESNET_DET.SKIP_BAD_DATA", "True"], "SKIP_BAD_DATA: .*box"),
    ],
)
def test_mistakes_are_known_before_pretraining(config, tmp_path, monkeypatch, overrides, words):
    monkeypatch.setattr(classifier, "train", lambda *_, **__: pytest.fail("it was pretrained"))
    first = CLASSIFIER | {"OUTPUT_DIR": str(tmp_path / "first")}
    (tmp_path / "classifier.yaml").write_text(yaml.safe_dump(first))
    start = ["MODEL.WEIGHTS", str(tmp_path / "first/model_final.pth")]
    cfg = config(*start, "RESNET_DET.PRETRAIN", str(tmp_path / "classifier.yaml"), *overrides)
    with pytest.raises(ValueError, match=words):
        assert pretrain.needed(cfg) is not None
        engine.check(cfg)


@pytest.mark.parametrize("name", ["torchvision", "detectron2"])
@pytest.mark.parametrize("limit, words", [({"least": 1}, "must be at least 1"),
                                          ({"choices": (1,), "default": 1}, "use 1")])  # fmt: skip
def test_our_own_keys_have_their_range_in_both_engines(tmp_path, monkeypatch, name, limit, words):
    key = "RESNET_DET.USE_DIFFICULT"
    monkeypatch.setitem(KEYS, key, dataclasses.replace(KEYS[key], **{"default": 1, **limit}))
    (tmp_path / "empty.yaml").write_text("MODEL: {DEVICE: cpu}\n")
    with pytest.raises(ConfigError, match=f"^{key}: 0.*{words}"):
        pick(name).load_config(tmp_path / "empty.yaml", [key, "0"])


@pytest.mark.parametrize("name", ["torchvision", "detectron2"])
def test_a_batch_that_cannot_be_shared_is_known_before(config, tmp_path, monkeypatch, name):
    monkeypatch.setattr(distributed, "launch_info", lambda: distributed.Launch(0, 3, 0))
    keys = ["SOLVER.IMS_PER_BATCH", "16", "SOLVER.STEPS", "()"]
    with pytest.raises(ValueError, match="16 images .*cannot be shared equally by 3"):
        pick(name).check_schedule(config(*keys))
    pick(name).check_schedule(config(*keys, "SOLVER.IMS_PER_BATCH", "6"))
    # 16 images on 8 processes are 6 on 3.
    written_for_eight = config(*keys, "SOLVER.REFERENCE_WORLD_SIZE", "8")
    pick(name).check_schedule(for_processes(written_for_eight, resume=False))


def test_an_evaluation_in_the_folder_of_a_run_keeps_its_schedule(config, tmp_path, monkeypatch):
    """Also one that fails. Detectron2 has written its config over ``config.yaml`` by then."""
    for_one = config("SOLVER.REFERENCE_WORLD_SIZE", "1", "SOLVER.MAX_ITER", "80")
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "launch_info", lambda: distributed.Launch(0, 4, 0))
        begun = for_processes(for_one, resume=False)
    assert (begun.SOLVER.IMS_PER_BATCH, begun.SOLVER.MAX_ITER) == (8, 20)
    facts = checkpoint_facts(begun, [])
    Checkpointer(tmp_path / "out").save("model_0000009", meta=facts)
    with pytest.raises(ValueError, match="none.pth: no such file"):
        engine.evaluate(config("MODEL.WEIGHTS", str(tmp_path / "none.pth")))
    assert "REFERENCE_WORLD_SIZE: 0" in (tmp_path / "out/config.yaml").read_text()
    resumed = for_processes(for_one, resume=True).SOLVER
    assert (resumed.IMS_PER_BATCH, resumed.MAX_ITER) == (8, 20)


def test_a_semantic_segmentor_has_no_detections_to_test(config):
    keys = ["MODEL.META_ARCHITECTURE", "SemanticSegmentor"]
    with pytest.raises(ConfigError, match="DATASETS.TEST: .* a SemanticSegmentor makes no detec"):
        engine.check(config(*keys))
    engine.check_config(config(*keys, "DATASETS.TEST", "()"), resume=False)


@pytest.mark.parametrize("sizes", ["(32, 40, 48)", "(48, 32)", "(48,)"])
def test_a_range_of_sizes_has_two_ends(config, sizes):
    """Detectron2 asserts it once it builds a mapper, without the key."""
    keys = ["INPUT.MIN_SIZE_TRAIN_SAMPLING", "range", "INPUT.MIN_SIZE_TRAIN"]
    with pytest.raises(ConfigError, match="INPUT.MIN_SIZE_TRAIN: .*'range' needs two sizes"):
        config(*keys, sizes)
    assert config(*keys, "(32, 48)").INPUT.MIN_SIZE_TRAIN == (32, 48)


def test_schedules_that_do_not_read_the_steps(config):
    steps = ["SOLVER.STEPS", "(3, 2)"]
    engine.check_schedule(config(*steps, "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"))
    with pytest.raises(ValueError, match=r"schedule from .*STEPS \(3, 2\)"):
        engine.check_schedule(config(*steps))


@pytest.mark.parametrize(
    "key, value",
    [
        ("TEST.EXPECTED_RESULTS", "['bbox', 'AP', 38, 1]"),
        ("MODEL.FPN.IN_FEATURES", "[2]"),
        ("TEST.KEYPOINT_OKS_SIGMAS", "['a']"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "['a']"),
        ("SOLVER.STEPS", "(1e3,)"),
    ],
)
def test_what_a_list_holds_is_checked(config, key, value):
    with pytest.raises(ValueError, match=key):
        config(key, value)


def test_one_list_of_anchors_is_for_all_levels(config):
    assert config("MODEL.ANCHOR_GENERATOR.SIZES", "[16, 32.5]").MODEL.ANCHOR_GENERATOR.SIZES == [
        [16, 32.5]
    ]


@pytest.mark.parametrize("files", [(), ("a.pkl", "b.pkl")])
def test_proposals_need_a_file_for_each_dataset(config, files):
    keys = ["MODEL.LOAD_PROPOSALS", "True", "MODEL.PROPOSAL_GENERATOR.NAME",
            "PrecomputedProposals", "DATASETS.PROPOSAL_FILES_TEST", str(files)]  # fmt: skip
    with pytest.raises(ValueError, match=f"PROPOSAL_FILES_TEST: {len(files)} files for 1"):
        load_test_sets(config(*keys))
