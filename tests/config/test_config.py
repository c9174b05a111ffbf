"""The config format: what is accepted, and the errors that name the key and value."""

import pytest

from resnet_det.config.defaults import ConfigError, flatten, get_cfg, with_values
from resnet_det.config.loading import embedded_part, load_config, parse_config
from resnet_det.engines import pick


@pytest.fixture
def write(tmp_path):
    def write(text, name="config.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_base_overrides_and_freeze(write):
    write("SOLVER: {BASE_LR: 0.5, MAX_ITER: 10}\nDATASETS: {TRAIN: [voc_2007_trainval]}", "b.yaml")
    path = write("_BASE_: b.yaml\nSOLVER: {MAX_ITER: 20}")
    cfg = load_config(path, ["SOLVER.STEPS", "(5, 7)", "MODEL.WEIGHTS", "a.pth"])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (0.5, 20, (5, 7))
    assert tuple(cfg.DATASETS.TRAIN) == ("voc_2007_trainval",)
    with pytest.raises(AttributeError, match="immutable"):
        cfg.SEED = 3


def test_dump_reads_back(write):
    cfg = load_config(write("SOLVER: {STEPS: [5, 7], WEIGHT_DECAY_BIAS: 0.0}\nSEED: 7"))
    assert flatten(parse_config(embedded_part(cfg), "dump")) == flatten(cfg)


def test_new_values_leave_the_config_that_is_copied():
    cfg = get_cfg()
    changed = with_values(cfg, {"OUTPUT_DIR": "123", "SOLVER.STEPS": (5,)})
    assert (changed.OUTPUT_DIR, changed.SOLVER.STEPS) == ("123", (5,))
    assert changed.is_frozen() and not cfg.is_frozen()
    assert flatten(cfg) == flatten(get_cfg())
    with pytest.raises(KeyError, match="SOLVER.STEP"):
        with_values(cfg, {"SOLVER.STEP": (5,)})


def test_keys_of_heads_that_are_switched_off_are_accepted(write):
    load_config(write("MODEL: {MASK_ON: False, ROI_MASK_HEAD: {NUM_CONV: 4}}"))


@pytest.mark.parametrize(
    "text, words",
    [
        ("MODEL: {RPN: {NMS_TRESH: 0.5}}", ["MODEL.RPN.NMS_TRESH", "MODEL.RPN.NMS_THRESH"]),
        ("MODEL: {BACKBONES: {NAME: x}}", ["MODEL.BACKBONES.NAME", "MODEL.BACKBONE.NAME"]),
        ("MODEL: {RESNETS: {DEFORM_MODULATED: True}}", ["DEFORM_MODULATED", "detectron2"]),
        ("MODEL: {MASK_ON: True}", ["MODEL.MASK_ON", "True", "False"]),
        ("MODEL: {ROI_BOX_HEAD: {POOLER_TYPE: ROIPoll}}", ["POOLER_TYPE", "'ROIPool'"]),
        ("SOLVER: {LR_SCHEDULER_NAME: WarmupStepLR}", ["LR_SCHEDULER_NAME", "WarmupMultiStepLR"]),
        ("SOLVER: {BASE_LR: fast}", ["SOLVER.BASE_LR: 'fast': takes a number, such as 0.001"]),
        ("SOLVER: {IMS_PER_BATCH: 0}", ["SOLVER.IMS_PER_BATCH", "at least 1"]),
        ("MODEL: {RPN: {CONV_DIMS: [64, 64]}}", ["MODEL.RPN.CONV_DIMS"]),
        ("MODEL: {ROI_HEADS: {IOU_LABELS: [-1, 0, 1]}}", ["ROI_HEADS.IOU_LABELS", "THRESHOLDS"]),
        ("INPUT: {MIN_SIZE_TRAIN_SAMPLING: range}", ["INPUT.MIN_SIZE_TRAIN", "range"]),
        (
            "INPUT: {MIN_SIZE_TRAIN_SAMPLING: range, MIN_SIZE_TRAIN: [480, 256]}",
            ["INPUT.MIN_SIZE_TRAIN", "the smallest and the largest"],
        ),
        ("SOLVER: {MAX_ITER: }", ["SOLVER.MAX_ITER", "no value"]),
        ("SOLVER: {BASE_LR: -0.1}", ["SOLVER.BASE_LR", "at least 0"]),
        ("TEST: {PRECISE_BN: {NUM_ITER: 0}}", ["TEST.PRECISE_BN.NUM_ITER", "at least 1"]),
        ("RESNET_DET: {WARMUP_UNTIL_ERROR: -1.0}", ["WARMUP_UNTIL_ERROR", "at least 0"]),
        ("RESNET_DET: {CROP_PADDING: -4}", ["CROP_PADDING", "at least 0"]),
        ("MODEL: {PIXEL_STD: [1.0, 0.0, 1.0]}", ["MODEL.PIXEL_STD", "above 0"]),
        ("MODEL: {PIXEL_MEAN: [1.0]}", ["MODEL.PIXEL_MEAN", "three"]),
        ("MODEL: {RPN: {BBOX_REG_WEIGHTS: [1.0]}}", ["RPN.BBOX_REG_WEIGHTS", "4 numbers above 0"]),
        ("INPUT: {MIN_SIZE_TRAIN: []}", ["INPUT.MIN_SIZE_TRAIN", "at least one size"]),
        ("MODEL: {BACKBONE: {FREEZE_AT: -1}}", ["FREEZE_AT", "at least 0"]),
        ("MODEL: 3", ["MODEL"]),
        ("a: [", ["not a readable YAML"]),
        ("[1, 2]", ["not a YAML config"]),
        ("", ["config.yaml"]),
        ("_BASE_: absent.yaml", ["absent.yaml"]),
        (
            "MODEL: !!python/object/apply:os.system ['true']",
            ["not a readable YAML", "write out values"],
        ),
    ],
)
def test_refused_by_name(write, text, words):
    path = write(text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    "engine", ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]
)
@pytest.mark.parametrize("key, value, words", [
    ("SOLVER.STEPS", "100", "100: takes a list of whole numbers: write \"(100,)\""),
    ("SOLVER.BASE_LR", "1", "1: takes a number: write 1.0"),
    ("SOLVER.BASE_LR", "abc", "'abc': takes a number, such as 0.001"),
    ("SOLVER.MAX_ITER", "1e5", "100000.0: takes a whole number: write 100000"),
    ("MODEL.PIXEL_MEAN", "(1,2)", "[1, 2]: give three numbers"),
    ("MODEL.ANCHOR_GENERATOR.SIZES", "5", "5: takes a list of lists of numbers, such as \"[[32.0,"),
    ("MODEL.PIXEL_MEAN", "5", "5: takes a list of numbers, such as \"[103.53, 116.28, 123.675]\""),
    ("DATASETS.TRAIN", "voc_2007_trainval",
     "'voc_2007_trainval': takes a list of strings: write \"('voc_2007_trainval',)\""),
    ("INPUT.MIN_SIZE_TRAIN", "600", "600: takes a list of whole numbers: write \"(600,)\""),
    ("SOLVER.STEPS", "['a']", "('a',): takes a list of whole numbers, such as \"(30000,)\""),
    ("INPUT.MIN_SIZE_TRAIN", "[640.0]", "(640.0,): takes a list of whole numbers: write \"(640,)\""),
    ("SOLVER.STEPS", "[1.5]", "(1.5,): takes a list of whole numbers"),
    ("DATASETS.TEST", "[5]", "(5,): takes a list of strings"),
    ("MODEL.RPN.IOU_THRESHOLDS", "[0.3,'a']", "[0.3, 'a']: takes a list of numbers"),
    ("TEST.EXPECTED_RESULTS", "[['bbox','AP']]",
     "[['bbox', 'AP']]: takes a list of rows, such as \"[['bbox', 'AP', 38.5, 0.2]]\""),
    ("MODEL.MASK_ON", "maybe", "'maybe': takes True or False"),
    ("MODEL.WEIGHTS", "3", "3: takes a string: write \"'3'\""),
])  # fmt: skip
def test_a_value_of_another_type_is_told_what_to_write(write, engine, key, value, words):
    load = pick(engine).load_config
    if key != "MODEL.PIXEL_MEAN":  # the file says it otherwise
        text = value
        for name in reversed(key.split(".")):
            text = f"{{{name}: {text}}}"
        with pytest.raises(ConfigError) as error:
            load(write(text))
        assert f"config.yaml: {key}: {words}" in str(error.value)
    with pytest.raises(ConfigError) as error:
        load(write("VERSION: 2"), [key, value])
    assert f"{key}: {words}" in str(error.value)
    if "write" in words:
        load(write("VERSION: 2"), [key, words.split("write ")[1].strip('"')])


@pytest.mark.parametrize(
    "engine", ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]
)
@pytest.mark.parametrize("device, words", [
    ("mps", "'mps' does not support float64.*; use cuda, cuda:0 .* or cpu"),
    ("cuda0", "'cuda0' is not supported; use cuda, cuda:0"),
])  # fmt: skip
def test_a_device_that_no_engine_runs_on(write, engine, device, words):
    with pytest.raises(ConfigError, match=f"MODEL.DEVICE: {words}"):
        pick(engine).load_config(write("VERSION: 2"), ["MODEL.DEVICE", device])


def test_command_line_is_checked_too(write):
    path = write("SEED: 1")
    with pytest.raises(ConfigError, match="SOLVER.BASE_LE.*SOLVER.BASE_LR"):
        load_config(path, ["SOLVER.BASE_LE", "0.1"])
    with pytest.raises(ConfigError, match="pairs KEY VALUE"):
        load_config(path, ["SOLVER.BASE_LR"])
    with pytest.raises(ConfigError, match="no such config file"):
        load_config("absent.yaml")
