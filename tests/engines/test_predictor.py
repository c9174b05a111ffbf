"""The predictor: kinds of input, batches, checkpoints, and its agreement with Detectron2's own."""

import io
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from appendix_models import filled, picture
from golden import fill
from PIL import Image
from small_configs import DETECTOR

import resnet_det
from resnet_det.config.defaults import ConfigError
from resnet_det.config.loading import load_config
from resnet_det.data import ImageError
from resnet_det.detector.build import build_model
from resnet_det.engines.predictor import BATCH, Predictor
from resnet_det.engines.provenance import checkpoint_facts
from resnet_det.weights.pickles import WeightsError

CLASSES = [f"kind{i}" for i in range(8)]
ENGINES = ["torchvision", pytest.param("detectron2", marks=pytest.mark.detectron2)]

LEVELS = ["p2", "p3", "p4", "p5"]
STAGES = ["res2", "res3", "res4", "res5"]
R18_FPN = {
    "VERSION": 2,
    "MODEL": {
        "BACKBONE": {"NAME": "build_resnet_fpn_backbone"},
        "RESNETS": {"DEPTH": 18, "OUT_FEATURES": STAGES},
        "FPN": {"IN_FEATURES": STAGES, "OUT_CHANNELS": 32},
        "ANCHOR_GENERATOR": {"SIZES": [[32], [64], [128], [256], [512]]},
        "RPN": {"IN_FEATURES": [*LEVELS, "p6"], "POST_NMS_TOPK_TEST": 30},
        "ROI_HEADS": {
            "NAME": "StandardROIHeads",
            "IN_FEATURES": LEVELS,
            "NUM_CLASSES": 20,
            "SCORE_THRESH_TEST": 0.051,
        },
        "ROI_BOX_HEAD": {
            "NAME": "FastRCNNConvFCHead",
            "NUM_FC": 2,
            "FC_DIM": 64,
            "POOLER_RESOLUTION": 7,
        },
        "PIXEL_STD": [57.0] * 3,
    },
    "INPUT": {"MIN_SIZE_TEST": 96, "MAX_SIZE_TEST": 140},
    "DATASETS": {"TRAIN": ["voc_2007_trainval"], "TEST": ["voc_2007_test"]},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """``checkpoint(name, KEY, VALUE, ..., bare=False)``: the file of a small detector."""
    folder = tmp_path_factory.mktemp("predictor")
    config = folder / "detector.yaml"
    pixels = {"PIXEL_STD": [57.0] * 3}
    config.write_text(yaml.safe_dump(DETECTOR | {"MODEL": DETECTOR["MODEL"] | pixels}))

    def write(name, *overrides, bare=False, **facts):
        cfg = load_config(config, overrides)
        facts = {} if bare else checkpoint_facts(cfg, CLASSES) | facts
        model = (
            filled(cfg) if cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN" else build_model(cfg)
        )
        torch.save({"model": model.state_dict(), "meta": facts}, folder / name)
        return folder / name

    write.config = config
    return write


@pytest.fixture(scope="module", params=ENGINES)
def predictor(request, checkpoint):
    return Predictor(checkpoint("model.pth"), request.param, "cpu", 0.0)


def image(seed=0, height=96, width=128):
    """Pixels without symmetry, in which red and blue differ."""
    return picture(height, width, seed).numpy().transpose(1, 2, 0)


def assert_equal(found, expected):
    assert len(expected) > 5
    assert found.classes.tolist() == expected.classes.tolist()
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)


def test_every_kind_of_one_image_gives_the_same_result(predictor, tmp_path):
    pixels = image()
    Image.fromarray(pixels).save(tmp_path / "image.png")
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    expected = predictor(pixels)
    for given in (tmp_path / "image.png", str(tmp_path / "image.png"), Image.fromarray(pixels),
                  tensor, tensor.contiguous(), np.asfortranarray(pixels)):  # fmt: skip
        assert_equal(predictor(given), expected)
    blue_first = np.ascontiguousarray(pixels[:, :, ::-1])
    assert_equal(predictor(blue_first, format="BGR"), expected)
    assert_equal(predictor(torch.from_numpy(blue_first).permute(2, 0, 1), "BGR"), expected)
    assert_equal(predictor(tmp_path / "image.png", "BGR"), expected)  # files say it themselves
    assert predictor(blue_first).scores.tolist() != pytest.approx(expected.scores.tolist())


def test_a_list_gives_a_list_in_its_order_and_batches_by_size(predictor):
    sizes = [(96, 128), (80, 100), (96, 128), (128, 96)] + [(48, 64)] * (BATCH + 1)
    images = [image(seed, *size) for seed, size in enumerate(sizes)]
    batches, detector = [], predictor.detector
    predictor.detector = lambda images: (
        batches.append([x.shape for x in images]) or detector(images)
    )
    together = predictor(images)
    predictor.detector = detector
    assert sorted(map(len, batches)) == [1, 1, 1, 2, BATCH]
    assert all(len(set(shapes)) == 1 for shapes in batches)
    for found, pixels in zip(together, images, strict=True):
        assert_equal(found, predictor(pixels))
        assert found.image.shape == pixels.shape
    assert [len(x) for x in predictor((images[0],))] == [len(together[0])]


@pytest.mark.parametrize("overrides", [
    ["INPUT.FORMAT", "L", "MODEL.PIXEL_MEAN", [120.0], "MODEL.PIXEL_STD", [57.0]],
    ["INPUT.FORMAT", "RGB", "MODEL.ROI_HEADS.NAME", "Res5ROIHeads"],
    ["RESNET_DET.MULTI_SCALE_TEST", (40, 64), "RESNET_DET.BOX_REFINEMENT", True],
], ids=["grey", "rgb and stock heads", "appendix"])  # fmt: skip
@pytest.mark.detectron2
def test_both_engines_find_the_same_alone_and_in_batches(checkpoint, overrides):
    path = checkpoint("other.pth", *overrides)
    images = [image(seed) for seed in range(3)]
    ours, theirs = (Predictor(path, name, "cpu", 0) for name in ("torchvision", "detectron2"))
    for found, other, pixels in zip(ours(images), theirs(images), images, strict=True):
        assert_equal(found, ours(pixels))
        assert_equal(other, theirs(pixels))
        np.testing.assert_allclose(found.scores, other.scores, atol=1e-4)
        np.testing.assert_allclose(found.boxes[:5], other.boxes[:5], atol=1e-2)


@pytest.mark.detectron2
def test_detectron2_prints_no_warnings(checkpoint):
    code = """
import sys, numpy, resnet_det
resnet_det.Predictor(sys.argv[1], "detectron2", "cpu", 0)(numpy.zeros((48, 64, 3), "uint8"))
"""
    run = subprocess.run(
        [sys.executable, "-c", code, checkpoint("quiet.pth")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (0, "")


def test_results_are_in_pixels_of_the_given_image(predictor):
    """Of an image twice as large with the same pixels, the boxes are twice as large."""
    small = predictor(image(0, 48, 64))
    large = predictor(Image.fromarray(image(0, 48, 64)).resize((192, 144), 0))
    assert large.boxes[:, 2].max() > 100 and small.boxes[:, 2].max() <= 64
    assert (large.boxes[:, 2] <= 192).all() and (large.boxes[:, 3] <= 144).all()


def test_the_threshold_selects_by_score(predictor, checkpoint):
    everything = predictor(image())
    middle = float(everything.scores[len(everything) // 2])
    selected = Predictor(checkpoint("model.pth"), "torchvision", "cpu", middle)(image())
    assert (everything.scores >= middle).sum() in range(len(selected) - 1, len(selected) + 2)
    assert 0 < len(selected) < len(everything) and (selected.scores >= middle).all()


def test_box_voting_does_not_depend_on_the_threshold(checkpoint):
    path = checkpoint("voting.pth", "MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.3)
    keys = ["RESNET_DET.BOX_REFINEMENT", True]
    low, high = (Predictor(path, "torchvision", "cpu", t, overrides=keys) for t in (0.05, 0.2))
    expected, found = low(image()), high(image())
    assert 0 < len(found) < len(expected)
    np.testing.assert_allclose(found.boxes, expected.boxes[: len(found)])


def test_a_result_has_a_name_per_object_a_picture_and_a_dict(predictor):
    result = predictor(image())
    assert result.names == [CLASSES[index] for index in result.classes]
    assert result.boxes.shape == (len(result), 4) and result.boxes.dtype == np.float32
    assert (np.diff(result.scores) <= 0).all()
    written = json.loads(json.dumps(result.to_dict()))
    assert set(written) == {"boxes", "scores", "classes", "names"}
    assert written["names"] == result.names
    np.testing.assert_array_equal(np.float32(written["boxes"]), result.boxes)
    drawn = result.draw()
    assert isinstance(drawn, Image.Image) and drawn.size == (4 * 128, 4 * 96)
    assert np.abs(np.asarray(drawn.resize((128, 96))).astype(int) - result.image).max() > 50
    assert repr(result).startswith(f"Prediction({result.names[0]} {result.scores[0]:.2f}, ")


def test_an_image_without_objects(checkpoint):
    result = Predictor(checkpoint("model.pth"), "torchvision", "cpu", 1)(image())
    assert (
        len(result) == 0 and result.boxes.shape == (0, 4) and repr(result) == "Prediction(nothing)"
    )
    assert result.to_dict() == {"boxes": [], "scores": [], "classes": [], "names": []}
    assert result.draw().size == (512, 384)


def test_a_file_is_turned_upright_and_a_pil_image_is_not(predictor, tmp_path):
    stored = Image.fromarray(image())
    exif = Image.Exif()
    exif[274] = 6  # to be turned by a quarter, clockwise
    stored.save(tmp_path / "phone.png", exif=exif)
    upright = predictor(tmp_path / "phone.png")
    np.testing.assert_array_equal(upright.image, np.rot90(image(), -1))
    with Image.open(tmp_path / "phone.png") as opened:
        found = predictor(opened)
        assert opened.getexif()[274] == 6
    assert_equal(found, predictor(image()))


def test_other_modes_are_read_as_in_datasets(predictor, tmp_path):
    """Grey and alpha: a PIL image gives the pixels of the file that it is opened from."""
    grey = image()[:, :, 0]
    alpha = np.dstack([image(), grey])
    deep = grey.astype(np.uint16) * 257
    for pixels in (grey, alpha, deep):
        Image.fromarray(pixels).save(tmp_path / "image.png")
        with Image.open(tmp_path / "image.png") as opened:
            found = predictor(opened).image
        np.testing.assert_array_equal(found, predictor(tmp_path / "image.png").image)
    np.testing.assert_array_equal(found, np.dstack([grey] * 3))


@pytest.mark.parametrize("given, words", [
    (np.zeros((9, 9, 3)), r"image: is float64 \(9, 9, 3\): give RGB pixels, uint8 \(H, W, 3\)"),
    (np.zeros((9, 9), np.uint8), r"image: is uint8 \(9, 9\)"),
    (".", r"\.: is a folder; give an image file"),
    (np.zeros((9, 9, 4), np.uint8), r"is uint8 \(9, 9, 4\)"),
    (np.zeros((3, 9, 9), np.uint8), r"is uint8 \(3, 9, 9\)"),
    (np.zeros((2, 9, 9, 3), np.uint8), r"is uint8 \(2, 9, 9, 3\)"),
    (np.zeros((0, 9, 3), np.uint8), r"is uint8 \(0, 9, 3\)"),
    (torch.zeros(3, 9, 9), r"is float32 \(3, 9, 9\): give RGB pixels, uint8 \(3, H, W\)"),
    (torch.zeros(3, 9, 9, dtype=torch.bfloat16), r"is bfloat16 \(3, 9, 9\)"),
    (torch.zeros(9, 9, 3, dtype=torch.uint8), r"is uint8 \(9, 9, 3\)"),
    ([], "images: the list is empty"),
    ([np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9))], r"images\[1\]: is float64 \(9, 9\)"),
    ("absent.png", "absent.png: missing image file"),
    (Image.new("I", (9, 9)), "image: pixel mode I does not declare its range"),
    (None, "image: give a path, a PIL image, an array or a tensor, not NoneType"),
    ([b"x"], r"images\[0\]: give a path, .*not bytes"),
])  # fmt: skip
def test_wrong_input_gets_one_line(checkpoint, given, words):
    predictor = Predictor(checkpoint("model.pth"), "torchvision", "cpu")
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        predictor(given)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 190
    assert isinstance(caught.value, ImageError) == ("image file" in words or "mode" in words)


@pytest.mark.parametrize("kind", ["array", "tensor"])
@pytest.mark.parametrize("shape", [(9, 12), (9, 12, 3), (9, 12, 1)])
@pytest.mark.parametrize("floats", [False, True])
def test_what_the_error_says_of_floats_and_grey_images_works(predictor, kind, shape, floats):
    given = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    expected = np.broadcast_to(given.reshape(9, 12, -1), (9, 12, 3))
    if floats:
        given = given / np.float32(255)
    elif shape == (9, 12, 3):
        return  # it is no error
    if kind == "tensor":
        given = torch.tensor(given.transpose(2, 0, 1) if given.ndim == 3 else given)
    with pytest.raises(ValueError, match="image: is ") as caught:
        predictor(given)
    _, *cures = str(caught.value).split("; if ")
    assert len(cures) == floats + (shape != (9, 12, 3))
    for cure in cures:
        given = eval(cure.split(": ")[1], {"numpy": np, "torch": torch, "image": given})
    np.testing.assert_array_equal(predictor(given).image, expected)


def test_pil_images_that_cannot_be_decoded_are_named(predictor, tmp_path):
    Image.fromarray(image()).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    truncated, closed = (
        Image.open(io.BytesIO(content[:size])) for size in (len(content) // 2, None)
    )
    closed.close()
    for given, words in (
        (truncated, "image file is truncated"),
        (closed, "Operation on closed image"),
        (Image.new("RGB", (0, 9)), "has no pixels: is 0 x 9"),
    ):
        with pytest.raises(ImageError, match=rf"images\[1\]: .*{words}"):
            predictor([image(), given])


def test_wrong_arguments(checkpoint, predictor):
    path = checkpoint("model.pth")
    for score in (-0.1, 50, float("nan"), "0.5", None):
        with pytest.raises(ValueError, match=f"score_thresh: {score!r}: give a number from 0 to 1"):
            Predictor(path, score_thresh=score)
    with pytest.raises(ValueError, match="format: 'GBR': use RGB or BGR"):
        predictor(image(), format="GBR")
    for overrides in (["SEED"], {"SEED": 1, "VERSION": 2}, "SEED 1"):
        with pytest.raises(ConfigError) as caught:
            Predictor(path, overrides=overrides)
        assert str(caught.value) == f"overrides {overrides!r}: give a list of pairs KEY VALUE"
    with pytest.raises(ValueError, match="engine 'tensorflow'"):
        Predictor(path, engine="tensorflow")


@pytest.mark.parametrize("engine", ENGINES)
def test_checkpoints_that_do_not_fit(checkpoint, engine, tmp_path):
    bare = checkpoint("bare.pth", bare=True)
    for weights, options, error, words in (
        (bare, {}, ConfigError, "bare.pth: carries no config"),
        (tmp_path / "absent.pth", {}, WeightsError,
         "absent.pth: no such file; give a .pth, .pkl, .safetensors, .onnx, .xml or .pt2 file"),
        (tmp_path, {}, WeightsError, "is a folder; give a file in it"),
        ("foo://x", {}, WeightsError, "^foo://x: unknown scheme foo://; .* resnet_det://"),
        (bare, {"config": checkpoint.config, "classes": CLASSES[:7]}, ConfigError,
         "NUM_CLASSES: 8, but the argument classes has 7 classes"),
        (checkpoint("rpn.pth", "MODEL.META_ARCHITECTURE", "ProposalNetwork"), {}, ConfigError,
         "ProposalNetwork: finds no objects"),
        (checkpoint("files.pth", "MODEL.LOAD_PROPOSALS", True, "MODEL.PROPOSAL_GENERATOR.NAME",
                    "PrecomputedProposals"), {}, ConfigError, "MODEL.LOAD_PROPOSALS: True: "),
    ):  # fmt: skip
        with pytest.raises(error, match=words):
            Predictor(weights, engine, "cpu", **options)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_config_and_class_names_complete_bare_weights(checkpoint, predictor, engine):
    bare = checkpoint("bare.pth", bare=True)
    drawn = Predictor(bare, engine, "cpu", 0, config=checkpoint.config)
    assert drawn.classes[:3] == ("ball", "crate", "fish")  # those of DATASETS.TRAIN
    given = Predictor(bare, engine, "cpu", 0, config=checkpoint.config, classes=CLASSES)
    assert_equal(given(image()), predictor(image()))
    keys = ["DATASETS.TRAIN", ("scenes_coco_train",), "DATASETS.TEST", ()]
    with pytest.raises(ConfigError, match="bare.pth: does not name its classes"):
        Predictor(bare, engine, "cpu", config=checkpoint.config, overrides=keys)


RETINANET = {
    "VERSION": 2,
    "MODEL": {
        "META_ARCHITECTURE": "RetinaNet",
        "BACKBONE": {"NAME": "cifar_resnet20_retinanet_fpn"},
        "RESNETS": {"OUT_FEATURES": ["res2", "res3", "res4"]},
        "FPN": {"IN_FEATURES": ["res2", "res3", "res4"], "OUT_CHANNELS": 16},
        "ANCHOR_GENERATOR": {"SIZES": [[16], [32], [64], [128], [256]]},
        "RETINANET": {"IN_FEATURES": ["p0", "p1", "p2", "p3", "p4"], "NUM_CLASSES": 8},
    },
    "INPUT": {"MIN_SIZE_TEST": 48},
}


@pytest.mark.detectron2
def test_an_architecture_of_detectron2s_own_needs_its_whole_config(checkpoint, tmp_path):
    pytest.importorskip("detectron2")
    from detectron2.modeling import build_model

    from resnet_det.engines.on_detectron2.engine import load_config

    path, weights = tmp_path / "retinanet.yaml", tmp_path / "retinanet.pth"
    path.write_text(yaml.safe_dump(RETINANET))
    model = fill(build_model(load_config(path, ["MODEL.DEVICE", "cpu"])))
    torch.save({"model": model.state_dict(), "meta": {"config": path.read_text()}}, weights)
    with pytest.raises(ConfigError, match="retinanet.pth: carries only a part of its config"):
        Predictor(weights, "detectron2", "cpu")
    with pytest.raises(ConfigError, match="RETINANET.NUM_CLASSES: 8, .* has 7 classes"):
        Predictor(weights, "detectron2", "cpu", config=path, classes=CLASSES[:7])
    predictor = Predictor(weights, "detectron2", "cpu", 0.001, config=path, classes=CLASSES)
    assert set(predictor(image()).names) <= set(CLASSES)
    assert 0 < len(predictor(image())) <= 100


@pytest.mark.detectron2
@pytest.mark.parametrize("content", [RETINANET, R18_FPN], ids=["RetinaNet", "sigmoid"])
def test_a_checkpoint_of_detectron2_carries_the_keys_that_it_alone_knows(tmp_path, content):
    pytest.importorskip("detectron2")
    from detectron2.modeling import build_model

    from resnet_det.engines.on_detectron2.engine import load_config

    path, weights = tmp_path / "config.yaml", tmp_path / "weights.pth"
    path.write_text(yaml.safe_dump(content))
    sigmoid = "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE"
    keys = [sigmoid, True, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64] if content is R18_FPN else []
    cfg = load_config(path, [*keys, "MODEL.DEVICE", "cpu"])
    classes = [str(i) for i in range(20 if content is R18_FPN else 8)]
    model = fill(build_model(cfg))
    torch.save({"model": model.state_dict(), "meta": checkpoint_facts(cfg, classes)}, weights)
    found = Predictor(weights, "detectron2", "cpu", 0.001)(image())
    named = Predictor(weights, "detectron2", "cpu", 0.001, config=path, overrides=keys)(image())
    assert len(found) > 0
    for name in ("boxes", "scores", "classes"):
        np.testing.assert_array_equal(getattr(found, name), getattr(named, name))
    if content is R18_FPN:
        softmax = [*keys, sigmoid, False]
        other = Predictor(weights, "detectron2", "cpu", 0.001, config=path, overrides=softmax)
        assert found.scores.tolist() != other(image()).scores.tolist()
        with pytest.raises(ConfigError, match="weights.pth: .*USE_SIGMOID_CE.* engine detectron2"):
            Predictor(weights, "torchvision", "cpu")


def test_predictor_is_public():
    assert resnet_det.Predictor is Predictor


@pytest.mark.detectron2
def test_agrees_with_detectron2s_predictor(tmp_path):
    """Detectron2's own R18-FPN, in a file as those of its model zoo."""
    pytest.importorskip("detectron2")
    from detectron2.config import get_cfg
    from detectron2.engine import DefaultPredictor
    from detectron2.modeling import build_model

    width = ["MODEL.RESNETS.RES2_OUT_CHANNELS", 64]  # the embedded engine knows it by the depth
    path, weights = tmp_path / "config.yaml", tmp_path / "theirs.pkl"
    path.write_text(yaml.safe_dump(R18_FPN))
    cfg = get_cfg()
    cfg.merge_from_file(str(path))
    cfg.merge_from_list([*width, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", str(weights)])
    arrays = {key: value.numpy() for key, value in fill(build_model(cfg)).state_dict().items()}
    weights.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))
    theirs = DefaultPredictor(cfg)
    # Such weights amplify the rounding of the folded norms of the embedded engine.
    for engine, keys, atol in (("detectron2", width, 1e-6), ("torchvision", [], 2e-2)):
        ours = Predictor(weights, engine, "cpu", 0.051, config=path, overrides=keys)
        assert ours.classes[0] == "aeroplane" and len(ours.classes) == 20
        for pixels in (image(0, 100, 150), image(1, 150, 90)):
            expected, found = theirs(pixels[:, :, ::-1])["instances"], ours(pixels)
            assert len(expected) > 5
            assert found.classes.tolist() == expected.pred_classes.tolist()
            np.testing.assert_allclose(found.boxes, expected.pred_boxes.tensor, atol=atol)
            np.testing.assert_allclose(found.scores, expected.scores, atol=atol)


def test_an_absent_detectron2_is_explained_to_python(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match="Detectron2 is not installed; .*or use engine 'torchvision'$"
    ):
        Predictor("resnet_det://quickstart", engine="detectron2")
