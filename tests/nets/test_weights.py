"""Weight import against torchvision's own networks, by output."""

import os
import pickle
from pathlib import Path

import pytest
import torch
import torchvision

from resnet_det.nets import build_net, load
from resnet_det.nets.weights import WeightsError, read


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_equals_torchvision(depth, tmp_path):
    """With torchvision's weights our net gives torchvision's output, bit for bit in float64."""
    torch.manual_seed(depth)
    theirs = getattr(torchvision.models, f"resnet{depth}")().double().eval()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    ours = build_net(f"paper_resnet{depth}", stride_in_1x1=False).double().eval()
    match = load(ours, tmp_path / "theirs.pth")
    assert len(match.loaded) == len(theirs.state_dict())
    assert not match.missing and not match.unused and not match.mismatched
    x = torch.randn(1, 3, 97, 66, dtype=torch.float64)
    with torch.no_grad():
        assert (ours(x) - theirs(x)).abs().max().item() == 0.0


def test_stride_placement_matters(tmp_path):
    theirs = torchvision.models.resnet50().eval()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    ours = build_net("paper_resnet50", stride_in_1x1=True).eval()
    load(ours, tmp_path / "theirs.pth")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.allclose(ours(x), theirs(x), rtol=1e-3)


def test_vgg16_equals_torchvision(tmp_path):
    theirs = torchvision.models.vgg16().eval()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    ours = build_net("paper_vgg16").eval()
    load(ours, tmp_path / "theirs.pth")
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x), atol=1e-6)


@pytest.fixture
def checkpoint(tmp_path):
    net = build_net("cifar_resnet20")
    path = tmp_path / "net.pth"
    torch.save({"model": net.state_dict(), "meta": {"net": "cifar_resnet20"}}, path)
    return net, path


def test_own_checkpoint_round_trip(checkpoint):
    net, path = checkpoint
    other = build_net("cifar_resnet20")
    match = load(other, path)
    assert match.facts == {"net": "cifar_resnet20"}
    for key, value in net.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


def test_a_classifier_fills_a_detectors_trunk_and_head(checkpoint):
    net, path = checkpoint
    other = build_net("cifar_resnet20", norm="FrozenBN")
    trunk, head = other.split()
    detector = torch.nn.ModuleDict({"backbone": trunk, "roi_heads": head})
    match = load(detector, path, drop=("linear.",))
    assert set(match.unused) == {"linear.weight", "linear.bias"} and not match.missing
    assert torch.equal(detector["roi_heads"].res4[0].conv1.weight, net.res4[0].conv1.weight)
    with pytest.raises(WeightsError, match="linear.weight"):
        load(detector, path)


@pytest.mark.parametrize(
    "build, words",
    [
        (lambda: build_net("cifar_resnet32"), "lacks"),
        (lambda: build_net("paper_resnet18"), "does not fit"),
        (lambda: build_net("cifar_resnet20", num_classes=7), "other shapes: linear.weight (7, 64)"),
        (lambda: torch.nn.Linear(2, 2), "0 tensors loaded"),
    ],
)
def test_misfits_are_errors(checkpoint, build, words):
    with pytest.raises(WeightsError) as error:
        load(build(), checkpoint[1])
    assert words in str(error.value) and str(checkpoint[1]) in str(error.value)


def test_partial_only_when_asked(checkpoint):
    match = load(build_net("cifar_resnet20", num_classes=7), checkpoint[1], partial=True)
    assert set(match.mismatched) == {"linear.weight", "linear.bias"}
    load(build_net("cifar_resnet20", num_classes=7), checkpoint[1], new=("linear.",))
    with pytest.raises(WeightsError, match="0 tensors"):
        load(torch.nn.Linear(2, 2), checkpoint[1], partial=True)


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hostile-code-ran",)


def test_hostile_and_broken_files_are_refused(tmp_path, monkeypatch, checkpoint):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Hostile()}, "torch.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"model": Hostile()}))
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "short.pth").write_bytes(checkpoint[1].read_bytes()[:5000])
    torch.save({"model": {}}, "nothing.pth")
    torch.save({"model": {"a": 1}}, "number.pth")
    files = ["torch.pth", "plain.pth", "empty.pth", "short.pth", "nothing.pth", "number.pth"]
    for name in [*files, "absent.pth"]:
        with pytest.raises(WeightsError, match=name):
            read(name)
    assert not (tmp_path / "hostile-code-ran").exists()


def test_pickles_of_arrays_are_read_and_others_refused(tmp_path, monkeypatch):
    """Detectron2's .pkl, without what a pickle may call."""
    monkeypatch.chdir(tmp_path)
    net = build_net("cifar_resnet20")
    arrays = {k: v.numpy() for k, v in net.state_dict().items()}
    Path("net.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody"}))
    other = build_net("cifar_resnet20")
    load(other, "net.pkl")
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in net.state_dict().items())
    Path("hostile.pkl").write_bytes(pickle.dumps({"model": Hostile()}))
    Path("short.pkl").write_bytes(Path("net.pkl").read_bytes()[:999])
    for name in ("hostile.pkl", "short.pkl"):
        with pytest.raises(WeightsError, match=name):
            read(name)
    assert not Path("hostile-code-ran").exists()


def test_torchvisions_files_tell_their_conventions(tmp_path):
    """RGB, ImageNet's mean and deviation; the stride of a bottleneck on its 3x3."""
    for depth, stride in ((18, {}), (50, {"stride_in_1x1": False})):
        theirs = getattr(torchvision.models, f"resnet{depth}")()
        torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
        facts = read(tmp_path / "theirs.pth")[1]
        transform = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.transforms()
        assert facts["format"] == "RGB"
        assert facts["pixel_mean"] == pytest.approx([255 * x for x in transform.mean])
        assert facts["pixel_std"] == pytest.approx([255 * x for x in transform.std])
        assert stride.items() <= facts.items() and len(facts) == 3 + len(stride)
