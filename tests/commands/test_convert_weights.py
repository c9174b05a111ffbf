"""The command `convert-weights`: it preserves tensors and facts; a silent change would be an
error."""

import shlex
from pathlib import Path

import foreign
import pytest
import timm
import torch
import torchvision
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from resnet_det.commands import convert_weights as tool
from resnet_det.config.defaults import ConfigError, get_cfg
from resnet_det.nets import NETS, build_net
from resnet_det.weights.conversion import convert
from resnet_det.weights.facts import check_facts
from resnet_det.weights.identify import fitting_nets
from resnet_det.weights.loading import WeightsError, load, read

TORCHVISIONS = {
    "format": "RGB",
    "pixel_mean": [123.675, 116.28, 103.53],
    "pixel_std": [58.395, 57.12, 57.375],
}


def save(path, name, meta, **options):
    net = build_net(name, 11, **options)
    for key, value in net.state_dict().items():
        if key.endswith(("running_mean", "norm.bias")):
            value.normal_()
    torch.save({"model": net.state_dict(), "meta": meta}, path)
    return net.state_dict()


def config(net, facts):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME, cfg.INPUT.FORMAT = net, facts["format"]
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = facts["pixel_mean"], facts["pixel_std"]
    return cfg


def same(a, b):
    return set(a) == set(b) and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


@pytest.mark.parametrize("name, more", [
    ("paper_resnet18", {}), ("paper_resnet50", {"stride_in_1x1": False}),
])  # fmt: skip
def test_round_trip_is_bit_identical(name, more, tmp_path, monkeypatch):
    """Own -> Detectron2 -> torchvision -> timm -> safetensors -> own: every tensor, every fact."""
    monkeypatch.chdir(tmp_path)
    facts = TORCHVISIONS | more
    state = save("own.pth", name, facts | {"classes": ["é", "b"], "seed": 3}, **more)
    tool.convert("own.pth", "detectron2.pkl")
    assert read("detectron2.pkl")[1] == read("own.pth")[1]
    tool.convert("detectron2.pkl", "torchvision.pth", "torchvision")
    assert "layer1.0.conv1.weight" in torch.load("torchvision.pth", weights_only=True)
    tool.convert("torchvision.pth", "timm.safetensors", "timm")
    tool.convert("timm.safetensors", "own.safetensors")
    tool.convert("own.safetensors", "again.pth")
    for path in ("detectron2.pkl", "torchvision.pth", "timm.safetensors", "again.pth"):
        assert same(read(path)[0], state), path
        assert facts.items() <= read(path)[1].items(), path
    net = build_net(name, 11, **more)
    assert not load(net, "own.safetensors").missing


def test_a_mean_image_goes_along(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = torch.rand(3, 32, 32)
    state = save("own.pth", "cifar_resnet20", TORCHVISIONS | {"mean_image": image, "seed": 3})
    for target in ("it.safetensors", "it.pkl", "it.pth"):
        tool.convert("own.pth", target)
        again, facts = read(target)
        assert same(again, state) and facts.pop("mean_image").equal(image)
        assert facts == TORCHVISIONS | {"seed": 3}
    save("own.pth", "paper_resnet18", TORCHVISIONS | {"mean_image": image})
    with pytest.raises(WeightsError, match="own.pth: was trained with RESNET_DET.PER_PIXEL_MEAN"):
        tool.convert("own.pth", "no.pth", "timm")


def test_a_detectors_file_goes_to_detectron2_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = build_net("cifar_resnet20")
    state = {f"backbone.{k}": v for k, v in net.state_dict().items()}
    torch.save({"model": state, "meta": TORCHVISIONS | {"stride_in_1x1": True}}, "detector.pth")
    tool.convert("detector.pth", "detector.pkl")
    assert same(read("detector.pkl")[0], state)
    with pytest.raises(WeightsError, match="detector.pth: torchvision has no such net"):
        tool.convert("detector.pth", "no.pth", "torchvision")
    assert not Path("no.pth").exists()


def test_what_a_file_does_not_say_is_asked_for(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    state = build_net("paper_resnet50", 11, stride_in_1x1=False).state_dict()
    torch.save(state, "bare.pth")
    with pytest.raises(WeightsError, match=r"bare.pth: does not state MODEL.RESNETS.STRIDE_IN_1X1"):
        tool.convert("bare.pth", "no.pth", "torchvision")
    tool.convert("bare.pth", "own.pth")
    assert "INPUT.FORMAT" in caplog.text
    said = ["MODEL.RESNETS.STRIDE_IN_1X1", "False", "INPUT.FORMAT", "RGB", "MODEL.PIXEL_MEAN",
            "[123.675, 116.28, 103.53]", "MODEL.PIXEL_STD", "[58.395, 57.12, 57.375]"]  # fmt: skip
    assert tool.convert(
        "bare.pth", "torchvision.pth", "torchvision", said
    ).facts == TORCHVISIONS | {"stride_in_1x1": False}
    assert same(read("torchvision.pth")[0], state)
    tool.convert("bare.pth", "own.pth", "own", said)
    with pytest.raises(ConfigError, match="own.pth: was trained with INPUT.FORMAT RGB.*BGR"):
        tool.convert("own.pth", "no.pth", "own", ["INPUT.FORMAT", "BGR"])
    with pytest.raises(ConfigError, match="SEED"):
        tool.convert("bare.pth", "no.pth", "own", ["SEED", "3"])


@pytest.mark.parametrize("key, value, words", [
    ("MODEL.PIXEL_MEAN", "[1.0, 2.0]", r"MEAN: \[1.0, 2.0\]: own.pth takes images of 3 channels"),
    ("MODEL.PIXEL_STD", "[1.0, 0.0, 1.0]", "STD: .* must be above 0"),
    ("INPUT.FORMAT", "RBG", "FORMAT: 'RBG' is not supported.*'BGR' or 'RGB'"),
])  # fmt: skip
def test_what_is_said_must_fit_the_net(key, value, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("own.pth", "cifar_resnet20", {})
    with pytest.raises(ConfigError, match=words):
        tool.main(["own.pth", "no.pth", key, value])
    assert not Path("no.pth").exists()


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "pkl"])
def test_a_guess_from_names_is_overruled_by_what_is_said(suffix, tmp_path, monkeypatch):
    """A net trained in Caffe with torchvision's names; its error says the command that helps."""
    monkeypatch.chdir(tmp_path)
    state = torchvision.models.resnet50(num_classes=11).state_dict()
    torch.save(state, "r50 caffe.pth")
    caffe = {"format": "BGR", "pixel_mean": [103.53, 116.28, 123.675], "pixel_std": [1.0] * 3}
    cfg = config("paper_resnet50", caffe)
    with pytest.raises(ConfigError) as error:
        check_facts(read("r50 caffe.pth")[1], cfg, "r50 caffe.pth")
    message, command = str(error.value).split("tools/convert_weights.py ")
    assert "r50 caffe.pth: the names of its tensors suggest" in message and "a guess" in message
    assert "MODEL.RESNETS.STRIDE_IN_1X1 False, but the config says True" in message
    tool.convert("r50 caffe.pth", "guess.pth")  # stays one
    with pytest.raises(
        ConfigError, match="guess.pth: the names of its tensors suggest .*INPUT.FORMAT RGB"
    ):
        check_facts(read("guess.pth")[1], cfg, "guess.pth")

    target = f"OUT.{suffix}"
    tool.main(shlex.split(command.replace("OUT.pth", target)))
    facts = read(target)[1]
    assert facts == caffe | {"stride_in_1x1": True}
    check_facts(facts, cfg, target)
    cfg.INPUT.FORMAT = "RGB"
    with pytest.raises(ConfigError, match=f"{target}: was trained with INPUT.FORMAT BGR"):
        check_facts(facts, cfg, target)


@pytest.mark.parametrize("net, facts, unsaid", [
    ("paper_resnet50", TORCHVISIONS, "MODEL.RESNETS.STRIDE_IN_1X1 True"),
    ("paper_resnet101_fpn", TORCHVISIONS, "MODEL.RESNETS.STRIDE_IN_1X1 True"),
    ("paper_resnet50", TORCHVISIONS | {"stride_in_1x1": True}, None),
    ("paper_resnet34_b", TORCHVISIONS, None),
    ("paper_vgg16", {"format": "RGB", "pixel_mean": TORCHVISIONS["pixel_mean"]},
     "MODEL.PIXEL_STD [58.395, 57.12, 57.375]"),
    ("paper_vgg16", {"pixel_std": TORCHVISIONS["pixel_std"]},
     "INPUT.FORMAT RGB, MODEL.PIXEL_MEAN [123.675, 116.28, 103.53]"),
])  # fmt: skip
def test_each_convention_that_a_file_does_not_say_is_a_warning(net, facts, unsaid, caplog):
    cfg = config(net, TORCHVISIONS)
    check_facts(facts, cfg, "it.pth")
    warned = [record.getMessage() for record in caplog.records]
    assert [text.split("values: ")[1] for text in warned] == ([unsaid] if unsaid else [])


def test_strides_and_suffixes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("paper.pth", "paper_resnet50", TORCHVISIONS | {"stride_in_1x1": True})
    with pytest.raises(WeightsError, match="paper.pth: was trained with .*STRIDE_IN_1X1 True"):
        tool.convert("paper.pth", "no.pth", "torchvision")
    for target, format in (("no.npz", "own"), ("no.pkl", "timm"), ("paper.pth/no.pth", "own")):
        with pytest.raises(ValueError, match=target):
            tool.convert("paper.pth", target, format)
    assert sorted(p.name for p in Path().iterdir()) == ["paper.pth"]


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save("own.pth", "cifar_resnet20", TORCHVISIONS)
    tool.main(["own.pth", "it.pkl"])
    assert "INPUT.FORMAT RGB" in capsys.readouterr().out
    with pytest.raises(WeightsError, match="^own.pth: timm has no such net"):
        tool.main(["--to", "timm", "own.pth", "it.pth"])


def test_what_it_prints_can_be_given_to_a_command(tmp_path, monkeypatch, capsys):
    """A detector's anchors and pooling too: Detectron2's checkpointer does not compare them."""
    monkeypatch.chdir(tmp_path)
    with torch.device("meta"):
        shapes = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    torch.save({k: torch.zeros(v.shape) for k, v in shapes.items()}, "it.pth")
    tool.main(["it.pth", "own.pth"])
    words = shlex.split(capsys.readouterr().out.split("use it with ")[1])
    cfg = get_cfg()
    cfg.merge_from_list(words)
    check_facts(read("own.pth")[1], cfg, "own.pth")
    assert cfg.MODEL.PIXEL_MEAN == TORCHVISIONS["pixel_mean"]
    assert cfg.MODEL.ANCHOR_GENERATOR.NAME == "TorchvisionAnchorGenerator"
    torch.save({k: v for k, v in read("own.pth")[0].items()}, "bare.pth")
    tool.main(["bare.pth", "again.pth"])
    assert "use it with" not in capsys.readouterr().out


def foreign_resnet20():
    """A net that pads zeros on both sides, with weights by chance."""
    with torch.device("meta"):
        return foreign.fill(foreign.BothSides((3, 3, 3), (16, 32, 64)))


def test_zeros_on_both_sides(tmp_path, monkeypatch, capsys):
    """Without --zeros it is an error; with it, our net computes the other net's logits."""
    monkeypatch.chdir(tmp_path)
    theirs = foreign_resnet20()
    torch.save({"state_dict": {f"module.{k}": v for k, v in theirs.state_dict().items()}}, "t.pth")
    words = "t.pth: .*each side.* --zeros both t.pth OUT.pth.*--zeros end.*--net cifar_plain20"
    with pytest.raises(WeightsError, match=words):
        tool.convert("t.pth", "no.pth")
    tool.main(["--zeros", "both", "t.pth", "ours.safetensors"])
    assert "ours.safetensors: a classifier, cifar_resnet20\n" in capsys.readouterr().out
    with pytest.raises(WeightsError, match="holds cifar_resnet20"):
        load(build_net("cifar_plain20"), "ours.safetensors")
    ours = build_net("cifar_resnet20").double().eval()
    load(ours, "ours.safetensors")
    x = foreign.picture(32)
    with torch.no_grad():
        expected = theirs.double()(x)
        assert (ours(x) - expected).abs().max() < 1e-12 * expected.abs().max()
    tool.convert("t.pth", "end.pth", zeros="end")
    assert same(read("end.pth")[0], read("t.pth")[0])
    load(ours, "end.pth")
    tool.convert("ours.safetensors", "again.pkl")  # it is known now
    assert same(read("again.pkl")[0], read("ours.safetensors")[0])

    assert tool.convert("t.pth", "plain.pth", net="cifar_plain20").facts["net"] == "cifar_plain20"
    load(build_net("cifar_plain20"), "plain.pth")
    for path in ("t.pth", "plain.pth"):
        with pytest.raises(WeightsError, match=path):
            load(ours, path)


def test_zeros_that_a_file_contradicts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("own.pth", "cifar_resnet20", TORCHVISIONS)
    save("b.pth", "paper_resnet34_b", TORCHVISIONS)
    with pytest.raises(WeightsError, match="--zeros both: own.pth is this project's file"):
        tool.convert("own.pth", "no.pth", zeros="both")
    with pytest.raises(WeightsError, match="--zeros: b.pth holds paper_resnet34, .*no option A"):
        tool.convert("b.pth", "no.pth", zeros="end")
    assert tool.convert("own.pth", "it.pth", zeros="end").facts["zeros"] == "end"


def detector(state):
    """A detector's file of Detectron2's names with a pyramid, of a classifier's tensors."""
    more = ("backbone.fpn_lateral2.weight", "proposal_generator.rpn_head.conv.weight",
            "roi_heads.box_head.fc1.weight", "roi_heads.box_predictor.cls_score.weight",
            "pixel_mean")  # fmt: skip
    trunk = {f"backbone.bottom_up.{k}": v for k, v in state.items() if "linear" not in k}
    return trunk | {k: torch.ones(2, 2) for k in more}


@pytest.mark.parametrize("name", [n for n in NETS if not n.endswith(("vgg16", "1202"))])
def test_every_net_is_known_by_its_tensors(name):
    with torch.device("meta"):
        state = build_net(name, 7).state_dict()
    same_tensors = [{"paper_resnet34", "paper_resnet34_b"}]
    same_tensors += [{f"paper_resnet{d}_a", f"paper_plain{d}"} for d in (18, 34)]
    same_tensors += [{f"cifar_resnet{d}", f"cifar_plain{d}"} for d in (20, 32, 44, 56, 110)]
    expected = next((names for names in same_tensors if name in names), {name})
    without = {k: v for k, v in state.items() if not k.startswith("linear.")}
    for tensors in (state, without, detector(state)):
        assert set(fitting_nets(tensors, "it.pth")) == expected


@pytest.mark.parametrize("norm", ["FrozenBN", "GN"])
def test_norms_do_not_hide_a_net(norm):
    with torch.device("meta"):
        state = build_net("paper_resnet50", norm=norm).state_dict()
    assert fitting_nets(state, "it.pth") == ["paper_resnet50"]


def test_what_stands_beside_the_net_is_named(tmp_path, monkeypatch, caplog):
    """A file of MMDetection holds a ResNet under backbone., and its pyramid beside it."""
    monkeypatch.chdir(tmp_path)
    theirs = torchvision.models.resnet18().state_dict()
    state = {f"backbone.{k}": v for k, v in theirs.items() if not k.startswith("fc.")}
    torch.save({"state_dict": state | {"neck.lateral.weight": torch.ones(2, 2)}}, "it.pth")
    tool.main(["it.pth", "out.pth"])
    assert "1 tensors beside the net are not used: neck.lateral.weight" in caplog.text
    written = torch.load("out.pth", weights_only=True)["model"]
    assert torch.equal(written["stem.conv1.weight"], theirs["conv1.weight"])


def without(state, *keys):
    return {k: v for k, v in state.items() if k not in keys}


@pytest.mark.parametrize("make, words", [
    (lambda: timm.create_model("resnet50d").state_dict(),
     "nearest is paper_resnet50, but the file lacks stem.conv1.weight.*has no .*stem.conv1.0.weight"),
    (lambda: without(torchvision.models.resnet18().state_dict(), "layer2.0.conv1.weight"),
     "nearest is paper_resnet18, but the file lacks res3.0.conv1.weight"),
    (lambda: without(torchvision.models.resnet18().state_dict(), "fc.bias"), "lacks linear.bias"),
    (lambda: torchvision.models.resnet18().state_dict() | {"head.weight": torch.ones(2)},
     "nearest is paper_resnet18, but the net has no head.weight"),
    (lambda: without(detector(build_net("paper_resnet18").state_dict()),
                     "backbone.bottom_up.res4.1.conv2.weight"), "lacks res4.1.conv2.weight"),
    (lambda: torchvision.models.resnet18().state_dict() | {"bn1.bias": torch.full((64,), torch.nan)},
     "stem.conv1.norm.bias holds values that are not finite"),
    (lambda: torchvision.models.resnext50_32x4d().state_dict(), "paper_resnet50, but other shapes"),
])  # fmt: skip
def test_what_holds_no_net_is_not_written(make, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": make()}, "it.pth")
    with pytest.raises(WeightsError, match=f"it.pth: .*{words}"):
        tool.convert("it.pth", "no.pkl")
    assert [p.name for p in Path().iterdir()] == ["it.pth"]


def test_a_stated_net_is_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(torchvision.models.resnet18().state_dict(), "it.pth")
    with pytest.raises(ConfigError, match="--net: .*'paper_resnet81'.*paper_resnet18"):
        tool.convert("it.pth", "no.pth", net="paper_resnet81")
    with pytest.raises(
        WeightsError, match="it.pth: is not a paper_resnet34: the file lacks res2.2.c"
    ):
        tool.convert("it.pth", "no.pth", net="paper_resnet34")
    assert tool.convert("it.pth", "own.pth", net="paper_resnet18").facts["net"] == "paper_resnet18"
    with pytest.raises(WeightsError, match="own.pth: states that it holds paper_resnet18, not"):
        tool.convert("own.pth", "no.pth", net="paper_resnet34")


def test_safetensors_say_that_detectron2_cannot_read_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save("own.pth", "cifar_resnet20", TORCHVISIONS)
    for suffix in ("pth", "pkl", "safetensors"):
        tool.main(["own.pth", f"it.{suffix}"])
        out = capsys.readouterr().out
        assert ("only resnet_det reads this file" in out) == (suffix == "safetensors")


def test_the_pixels_of_another_number_of_channels_are_not_guessed(tmp_path):
    torch.save(timm.create_model("resnet18", in_chans=1).state_dict(), tmp_path / "grey.pth")
    nets, facts = convert(tmp_path / "grey.pth", tmp_path / "it.pth")[1:]
    assert nets == ["paper_resnet18"] and not {"format", "pixel_mean", "pixel_std"} & facts.keys()


@pytest.mark.parametrize("name", ["cifar_resnet20", "paper_resnet18"])
def test_a_grey_net_sees_what_the_colour_net_saw(name, tmp_path, monkeypatch):
    """A grey image, as three equal channels or as one; the three means must be equal for that."""
    monkeypatch.chdir(tmp_path)
    mean, std = [110.0] * 3, [50.0, 60.0, 40.0]
    save("own.pth", name, {"format": "BGR", "pixel_mean": mean, "pixel_std": std, "net": name})
    tool.main(["--channels", "1", "own.pth", "grey.pth"])
    colour, grey = build_net(name, 11).eval(), build_net(name, 11, in_channels=1).eval()
    load(colour, "own.pth")
    facts = load(grey, "grey.pth").facts
    assert facts["format"] == "L"
    cfg = config(name, facts)
    assert cfg.MODEL.PIXEL_MEAN == [110.0] and cfg.MODEL.PIXEL_STD == [50.0]
    check_facts(facts, cfg, "grey.pth")
    image = torch.rand(1, 1, 64, 64) * 255
    theirs = (image.expand(-1, 3, -1, -1) - 110) / torch.tensor(std)[:, None, None]
    with torch.no_grad():
        torch.testing.assert_close(grey((image - 110) / 50), colour(theirs), rtol=1e-3, atol=1e-4)
    tool.main(["grey.pth", "again.pkl"])
    assert same(read("again.pkl")[0], read("grey.pth")[0])


def test_more_channels_repeat_the_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = save("own.pth", "paper_resnet18", TORCHVISIONS)["stem.conv1.weight"]
    tool.main(["--channels", "6", "own.pth", "six.pth"])
    state, facts = read("six.pth")
    assert facts["pixel_mean"] == 2 * TORCHVISIONS["pixel_mean"]
    pixels = torch.rand(1, 3, 32, 32)
    conv = torch.nn.functional.conv2d
    twice = conv(pixels.repeat(1, 2, 1, 1), state["stem.conv1.weight"])
    torch.testing.assert_close(twice, conv(pixels, first))


@pytest.mark.parametrize("facts", [TORCHVISIONS, {}])
@pytest.mark.parametrize("channels, word", [(1, "sum"), (4, "repeat")])
def test_colour_weights_do_not_fill_a_net_of_other_channels(channels, word, facts, tmp_path):
    path = tmp_path / "own.pth"
    save(path, "cifar_resnet20", facts)
    offer = f"To {word} .*tools/convert_weights.py --channels {channels} .*own.pth OUT.pth"
    net = build_net("cifar_resnet20", 11, in_channels=channels)
    for options in ({}, {"partial": True}):
        with pytest.raises(WeightsError, match=f"own.pth: takes images of 3 channels.*{offer}"):
            load(net, path, **options)
    if facts:
        cfg = config("cifar_resnet20", facts)
        cfg.MODEL.PIXEL_MEAN = [100.0] * channels
        with pytest.raises(ConfigError, match=offer):
            check_facts(read(path)[1], cfg, path)


@pytest.mark.parametrize("words", [["--channels", "0"], ["--channels", "1"]])
def test_channels_that_cannot_be_converted(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("grey.pth", "cifar_resnet20", {}, in_channels=1)
    with pytest.raises(WeightsError, match="^--channels"):
        tool.main([*words, "grey.pth", "no.pth"])
    assert not Path("no.pth").exists()
