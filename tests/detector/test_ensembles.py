"""Ensembles of detectors: members, their nets and classes, and what is refused."""

import numpy as np
import pytest
import torch
from appendix_models import filled, picture

from resnet_det.config.defaults import ConfigError
from resnet_det.config.loading import parse_config
from resnet_det.detector.build import build_model
from resnet_det.engines import embedded
from resnet_det.engines.predictor import Predictor
from resnet_det.engines.provenance import checkpoint_facts


@pytest.fixture
def checkpoint(config, tmp_path):
    """``checkpoint(name, KEY, VALUE, ...)``: the file of a detector as tools/train_net.py writes
    it."""

    def write(name, *overrides, classes=("a", "b", "c")):
        cfg = config("MODEL.ROI_HEADS.NAME", "PaperROIHeads", "INPUT.MIN_SIZE_TEST", 48,
                     "MODEL.RPN.POST_NMS_TOPK_TEST", 20, "MODEL.PIXEL_STD", [57.0] * 3,
                     *overrides)  # fmt: skip
        path = tmp_path / f"{name}.pth"
        model = filled(cfg)
        torch.save({"model": model.state_dict(), "meta": checkpoint_facts(cfg, classes)}, path)
        return str(path)

    return write


@pytest.fixture
def photograph(tmp_path):
    from PIL import Image

    path = tmp_path / "photograph.png"
    Image.fromarray(picture(96, 128).numpy().transpose(1, 2, 0)).save(path)
    return path


def detect(photograph, path, overrides=()):
    found = Predictor(path, "torchvision", "cpu", 0, overrides=overrides)(photograph)
    return {key: getattr(found, key) for key in ("boxes", "scores", "classes")}


def test_an_ensemble_of_a_model_with_itself_is_the_model(checkpoint, photograph):
    path = checkpoint("one")
    for overrides in ([], ["RESNET_DET.BOX_REFINEMENT", True]):
        expected = detect(photograph, path, overrides)
        found = detect(photograph, path, ["RESNET_DET.ENSEMBLE", (path,), *overrides])
        assert len(expected["scores"]) > 5
        for key, value in expected.items():
            np.testing.assert_allclose(found[key], value, atol=1e-3, rtol=1e-4)


def test_members_whose_classes_are_in_another_order_are_matched_by_name(
    checkpoint, photograph, tmp_path
):
    """A member whose class layers are permuted, and its names with them, changes nothing."""
    one, two = checkpoint("one"), checkpoint("two", "MODEL.BACKBONE.NAME", "cifar_plain20")
    file = torch.load(two, weights_only=True)
    order = [2, 0, 1]
    for key, value in file["model"].items():
        if "cls_score" in key:
            file["model"][key] = value[[*order, 3]]
        elif "bbox_pred" in key and "box_predictor" in key:
            file["model"][key] = value.view(3, 4, -1)[order].view(value.shape)
    file["meta"]["classes"] = [file["meta"]["classes"][i] for i in order]
    turned = str(tmp_path / "turned.pth")
    torch.save(file, turned)
    expected, found = (
        detect(photograph, one, ["RESNET_DET.ENSEMBLE", (path,)]) for path in (two, turned)
    )
    assert len(set(expected["classes"])) > 1
    assert found["classes"].tolist() == expected["classes"].tolist()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, atol=1e-4, rtol=1e-5)
    # By their order they are another three classes.
    keys = ["RESNET_DET.ENSEMBLE", (turned,), "RESNET_DET.CLASSES_BY_ORDER", True]
    by_order = detect(photograph, one, keys)
    assert by_order["scores"][:5].tolist() != pytest.approx(expected["scores"][:5].tolist())


def test_members_of_an_ensemble_bring_their_own_nets(checkpoint, photograph):
    one = checkpoint("one")
    two = checkpoint("two", "MODEL.BACKBONE.NAME", "cifar_plain20", "RESNET_DET.GLOBAL_CONTEXT",
                     True, "MODEL.PIXEL_STD", [50.0] * 3)  # fmt: skip
    results = [
        detect(photograph, a, ["RESNET_DET.ENSEMBLE", b]) for a, b in ((one, (two,)), (two, (one,)))
    ]
    for key, value in results[0].items():
        np.testing.assert_allclose(results[1][key], value, atol=1e-3, rtol=1e-4)
    alone = detect(photograph, one)
    assert alone["scores"][:5].tolist() != pytest.approx(
        results[0]["scores"][:5].tolist(), abs=1e-3
    )


@pytest.mark.parametrize("trained", [False, True])
def test_context_of_the_file_and_of_the_config_must_agree(checkpoint, trained):
    path = checkpoint("one", "RESNET_DET.GLOBAL_CONTEXT", trained)
    words = f"one.pth: was trained with RESNET_DET.GLOBAL_CONTEXT {trained}, but .* {not trained}"
    with pytest.raises(ConfigError, match=words):
        Predictor(path, "torchvision", overrides=["RESNET_DET.GLOBAL_CONTEXT", not trained])
    text = torch.load(path, weights_only=True)["meta"]["config"]
    keys = ["MODEL.WEIGHTS", path, "RESNET_DET.GLOBAL_CONTEXT", not trained]
    cfg = parse_config(text, path, keys)
    with pytest.raises(ConfigError, match=words):  # at the start of a training too
        embedded.load_to_train(build_model(cfg), cfg, ["star"])
    Predictor(path, "torchvision")


def test_members_that_do_not_fit_are_refused(checkpoint, config, tmp_path):
    one = checkpoint("one")

    def step(old, new):
        """A checkpoint with a step's config, as in alternating training."""
        content = torch.load(one, weights_only=True)
        content["meta"]["config"] = content["meta"]["config"].replace(old, new)
        torch.save(content, tmp_path / "step.pth")
        return str(tmp_path / "step.pth")

    for other, words in (
        (checkpoint("two", classes=("a", "b", "d")), "two.pth: has other classes than MODEL.WEIGHTS: only .*two.pth has d; only MODEL.WEIGHTS has c"),
        (step("META_ARCHITECTURE: GeneralizedRCNN", "META_ARCHITECTURE: ProposalNetwork"), "step.pth: has MODEL.META_ARCHITECTURE ProposalNetwork, but MODEL.WEIGHTS has GeneralizedRCNN"),
        (checkpoint("rgb", "INPUT.FORMAT", "RGB"), "rgb.pth: was trained with INPUT.FORMAT RGB"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=f"RESNET_DET.ENSEMBLE: .*{words}"):
            Predictor(one, "torchvision", overrides=["RESNET_DET.ENSEMBLE", (other,)])
    fast = step("LOAD_PROPOSALS: false", "LOAD_PROPOSALS: true")
    with pytest.raises(ConfigError, match="step.pth: has MODEL.LOAD_PROPOSALS True, but .* False"):
        Predictor(one, "torchvision", overrides=["RESNET_DET.ENSEMBLE", (fast,)])
    bare = tmp_path / "bare.pth"
    torch.save(torch.load(one, weights_only=True)["model"], bare)
    with pytest.raises(ConfigError, match="bare.pth: carries no config"):
        Predictor(one, "torchvision", overrides=["RESNET_DET.ENSEMBLE", (str(bare),)])
    with pytest.raises(ConfigError, match="RESNET_DET.ENSEMBLE: is only for testing"):
        embedded.train(config("RESNET_DET.ENSEMBLE", (one,)))
