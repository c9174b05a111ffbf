"""Models on our backbones leave Python: traced, scripted and exported, as Detectron2's tools do it."""

import importlib.metadata
import importlib.util
import json
import logging
from types import SimpleNamespace
from urllib.parse import urlparse

import pytest
import torch

detectron2 = pytest.importorskip("detectron2")

from detectron2.export import TracingAdapter
from detectron2.modeling import build_backbone, build_model
from detectron2_models import picture, small_cfg
from plugin_models import fpn_cfg

from resnet_det.plugin.backbones import PaperBackbone

pytestmark = pytest.mark.detectron2

BACKBONES = ["cifar_resnet20", "paper_resnet18_a", "paper_resnet50", "paper_vgg16"]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def images(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = value.abs().max().item()
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5 * scale)


def backbone(name, norm="BN"):
    net = PaperBackbone(name, norm=norm)
    for m in net.modules():  # so that folding a norm changes the numbers
        if hasattr(m, "running_var"):
            m.running_mean.uniform_(-0.1, 0.1)
            m.running_var.uniform_(0.5, 1.5)
    return net.eval()


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_a_trace_passes_its_check_and_takes_other_sizes(norm, grad, warm):
    net, other = backbone("cifar_resnet20", norm), images(2, 3, 40, 24)
    if warm:
        with torch.no_grad():
            net(images(1, 3, 16, 16))
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(net, images(1, 3, 32, 48), strict=False)
    with torch.no_grad():
        assert_same(traced(other), net(other))


def test_a_trace_follows_the_weights():
    net = backbone("cifar_resnet20")
    traced = torch.jit.trace(net, images(1, 3, 16, 16), strict=False)
    with torch.no_grad():
        net.stem.conv1.weight.mul_(2)
        assert_same(traced(images(1, 3, 16, 16)), net(images(1, 3, 16, 16)))


@pytest.mark.parametrize("name", BACKBONES)
def test_script(name):
    net, x = backbone(name), images(1, 3, 64, 48)
    with torch.no_grad():
        expected = net(x)  # and its folded weights are cached
        assert_same(torch.jit.script(net)(x), expected)


def test_script_without_fast():
    x = images(1, 3, 32, 32)
    net = PaperBackbone("cifar_resnet20", fast=False).eval()
    assert_same(torch.jit.script(net)(x), net(x))


@pytest.mark.parametrize("name", ["cifar_resnet20", "paper_resnet18_a"])
def test_export_at_dynamic_sizes(name):
    net, x = backbone(name), images(2, 3, 64, 96)
    sizes = {i: torch.export.Dim.DYNAMIC for i in (0, 2, 3)}
    exported = torch.export.export(net, (x,), dynamic_shapes=(sizes,)).module()
    with torch.no_grad():
        for shape in ((2, 3, 64, 96), (3, 3, 128, 32)):
            assert_same(exported(images(*shape)), net(images(*shape)))


def test_export_of_a_pyramid():
    cfg = fpn_cfg("paper_resnet18")
    cfg.MODEL.RESNETS.NORM = "BN"
    net = build_backbone(cfg).eval()
    height, width = (torch.export.Dim(side, min=4, max=40) for side in ("height", "width"))
    sizes = ({2: 32 * height, 3: 32 * width},)
    exported = torch.export.export(net, (images(1, 3, 160, 192),), dynamic_shapes=sizes).module()
    with torch.no_grad():
        assert_same(exported(images(1, 3, 128, 256)), net(images(1, 3, 128, 256)))


def detector(cfg, norm="BN"):
    cfg.MODEL.RESNETS.NORM = norm
    return build_model(cfg).eval()


DETECTORS = {
    "C4": lambda: detector(small_cfg("cifar_resnet20")),
    # With constant norms, the numbers of a fresh net of 50 layers explode.
    "bottlenecks": lambda: detector(small_cfg("paper_resnet50"), "GN"),
    "masks": lambda: detector(small_cfg("paper_resnet18_a", MODEL__MASK_ON=True)),
    "FPN": lambda: detector(fpn_cfg("paper_resnet18")),
}


@pytest.fixture
def export_model(tmp_path):
    """Detectron2's ``tools/deploy/export_model.py``, which only its source holds."""
    pytest.importorskip("cv2")  # it imports PointRend, which needs OpenCV
    origin = importlib.metadata.distribution("detectron2").read_text("direct_url.json") or "{}"
    source = urlparse(json.loads(origin).get("url", "")).path
    spec = importlib.util.spec_from_file_location(
        "export_model", f"{source}/tools/deploy/export_model.py"
    )
    tool = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(tool)
    except FileNotFoundError:
        pytest.skip("Detectron2 was not installed from a folder with its source")
    tool.args = SimpleNamespace(format="torchscript", output=str(tmp_path))
    tool.logger = logging.getLogger("export_model")
    return tool


def other_picture():
    image = images(3, 96, 64) * 255
    return {"image": image, "height": 96, "width": 64}


def assert_same_detections(found, expected):
    assert len(found) == len(expected) > 0
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    torch.testing.assert_close(found.scores, expected.scores)
    assert found.pred_classes.tolist() == expected.pred_classes.tolist()
    assert found.has("pred_masks") == expected.has("pred_masks")


@pytest.mark.parametrize(
    "kind", ["C4", "masks", "FPN", pytest.param("bottlenecks", marks=pytest.mark.slow)]
)
def test_the_export_tool_traces(export_model, kind):
    model = DETECTORS[kind]()
    run = export_model.export_tracing(model, [picture()])
    with torch.no_grad():
        for sample in (picture(), other_picture()):
            assert_same_detections(run([sample])[0]["instances"], model([sample])[0]["instances"])


def test_the_export_tool_scripts_a_pyramid(export_model, tmp_path):
    export_model.export_scripting(DETECTORS["FPN"]())
    assert (tmp_path / "model.ts").stat().st_size > 1e6


@pytest.mark.parametrize("kind", ["C4", "FPN"])
def test_a_detector_is_traced_as_the_export_tool_does(kind):
    """The same with the parts that are installed with Detectron2."""
    model = DETECTORS[kind]()

    def infer(model, inputs):
        return [{"instances": model.inference(inputs, do_postprocess=False)[0]}]

    adapter = TracingAdapter(model, [{"image": picture()["image"]}], infer)
    traced = torch.jit.trace(adapter, adapter.flattened_inputs)
    sample = other_picture()
    with torch.no_grad():
        found = adapter.outputs_schema(traced(sample["image"]))[0]["instances"]
        expected = model.inference([sample], do_postprocess=False)[0]
    assert_same_detections(found, expected)
