"""The appendix's improvements, against a computation region by region written here."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from appendix_models import filled, iou, picture, voted
from golden import in_double
from torchvision.ops import roi_align

from resnet_det.config.defaults import ConfigError
from resnet_det.detector import appendix
from resnet_det.detector.build import build_improved, has_test_improvements
from resnet_det.engines import embedded, embedded_data
from resnet_det.nets import resnet

HEIGHT, WIDTH, STRIDE, RESOLUTION, CLASSES = 48, 64, 2, 8, 3


def sample(sides=(), seed=0):
    """A test sample of 48 x 64, of an image twice as large, with its scales."""
    found = {"image": picture(HEIGHT, WIDTH, seed), "height": 2 * HEIGHT, "width": 2 * WIDTH}
    if sides:
        found["scales"] = [picture(s, s * WIDTH // HEIGHT, seed) for s in sides]
    return found


@pytest.fixture
def detector(config):
    """``detector(KEY, VALUE, ...)`` -> (model, config): of few regions, all far from their
    boxes."""

    def build(*overrides):
        cfg = config(
            "MODEL.ROI_HEADS.NAME", "PaperROIHeads", "MODEL.RPN.POST_NMS_TOPK_TEST", 30,
            "MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.3, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.2,
            "TEST.DETECTIONS_PER_IMAGE", 20, "MODEL.PIXEL_STD", [57.0] * 3, *overrides,
        )  # fmt: skip
        return in_double(filled(cfg)).eval(), cfg

    return build


class Reference:
    """Detection with the improvements in plain loops over regions, classes and boxes."""

    def __init__(self, models, sides=(), refine=False, cfg=None):
        self.models, self.sides, self.refine, self.cfg = models, sides, refine, cfg
        self.pool_size = None

    def vector(self, model, maps, box):
        roi = torch.cat((box.new_zeros(1), box))[None]
        pooled = roi_align(maps, roi, RESOLUTION, 1 / STRIDE, 0, True)
        return model.roi_heads.box_head(pooled)["res4"].mean((2, 3))[0]

    def region(self, model, levels, box):
        """levels: [(maps, height, width)], the test scale alone or all of ``sides``."""
        if not self.sides:
            return self.vector(model, levels[0][0], box)
        there = [box * box.new_tensor([w / WIDTH, h / HEIGHT] * 2) for _, h, w in levels]
        pixels = [float((b[2] - b[0]) * (b[3] - b[1])) for b in there]
        distance = [abs(p - appendix.CANONICAL_PIXELS) for p in pixels]
        one, two = sorted(range(len(levels)), key=lambda i: (distance[i], i))[:2]
        assert abs(one - two) == 1
        vectors = [self.vector(model, levels[i][0], there[i]) for i in (one, two)]
        return torch.maximum(*vectors)

    def predict(self, box):
        """Probabilities (K,) and boxes (K, 4) of a region, the means over the models."""
        scores, boxes = 0, 0
        for model, levels in zip(self.models, self.levels):
            x = self.region(model, levels, box)
            if model.context:
                whole = torch.tensor([0.0, 0.0, WIDTH, HEIGHT])
                x = torch.cat((x, self.region(model, levels, whole)))
            layers = model.roi_heads.box_predictor
            logits = layers.cls_score.weight @ x.double() + layers.cls_score.bias
            deltas = layers.bbox_pred.weight @ x.double() + layers.bbox_pred.bias
            scores = scores + F.softmax(logits, 0)[:-1] / len(self.models)
            boxes = boxes + self.decode(box.double(), deltas) / len(self.models)
        return scores, boxes

    @staticmethod
    def decode(box, deltas):
        (x1, y1, x2, y2), found = box.tolist(), []
        w, h = x2 - x1, y2 - y1
        for dx, dy, dw, dh in deltas.view(-1, 4).tolist():
            x, y = x1 + w / 2 + dx / 10 * w, y1 + h / 2 + dy / 10 * h
            limit = math.log(1000 / 16)
            w2, h2 = w * math.exp(min(dw / 5, limit)), h * math.exp(min(dh / 5, limit))
            found.append([x - w2 / 2, y - h2 / 2, x + w2 / 2, y + h2 / 2])
        return torch.tensor(found, dtype=torch.float64)

    def __call__(self, sample):
        self.levels, proposals = [], []
        for model in self.models:
            images = model.preprocess([sample["image"]])
            features = model.backbone(images.tensors)
            proposals += model.proposal_generator(images, [features["res3"]])[0]
            pictures = [sample["image"], *sample.get("scales", [])][bool(self.sides) :]
            self.levels.append(
                [(model.backbone(model.preprocess([p]).tensors)["res3"], *p.shape[1:])
                 for p in pictures]
            )  # fmt: skip
        regions = list(torch.cat(proposals))
        pool = [self.predict(box) for box in regions]
        if self.refine:
            for scores, boxes in pool[: len(regions)]:
                best = inside(boxes[scores.argmax()])
                pool.append(self.predict(best.float()))
        self.pool_size = len(pool)
        return self.select(pool)

    def select(self, pool):
        least, threshold = (self.cfg.MODEL.ROI_HEADS[k] for k in ("SCORE_THRESH_TEST", "NMS_THRESH_TEST"))  # fmt: skip
        kept = []
        for k in range(CLASSES):
            candidates = [(float(s[k]), inside(b[k]).tolist()) for s, b in pool if s[k] > least]
            candidates.sort(key=lambda c: -c[0])
            survivors = []
            for score, box in candidates:
                if all(iou(box, other) <= threshold for _, other in survivors):
                    survivors.append((score, box))
            for score, box in survivors:
                if self.refine:
                    box = voted(box, candidates)
                kept.append((score, k, box))
        kept.sort(key=lambda d: -d[0])
        kept = kept[: self.cfg.TEST.DETECTIONS_PER_IMAGE]
        return [(s, k, b) for s, k, b in kept if b[2] > b[0] and b[3] > b[1]]


def inside(box):
    return torch.stack([x.clamp(0, side) for x, side in zip(box, (WIDTH, HEIGHT, WIDTH, HEIGHT))])


def assert_same(found, expected):
    assert len(expected) > 5
    assert found["scores"].tolist() == pytest.approx([s for s, _, _ in expected], abs=1e-5)
    assert found["classes"].tolist() == [k for _, k, _ in expected]
    boxes = 2 * torch.tensor([b for *_, b in expected])  # the original is twice as large
    torch.testing.assert_close(found["boxes"], boxes, atol=1e-3, rtol=0)


SIDES = (24, 36, 48, 96)


@pytest.mark.parametrize(
    "context, refine, sides",
    [(True, False, ()), (False, True, ()), (False, False, SIDES), (True, True, SIDES)],
    ids=["context", "refinement", "scales", "all"],
)
@torch.no_grad()
def test_detections_equal_the_direct_computation(detector, monkeypatch, context, refine, sides):
    monkeypatch.setattr(appendix, "CANONICAL_PIXELS", 30**2)  # so that all scales have regions
    model, cfg = detector(
        "RESNET_DET.GLOBAL_CONTEXT", context, "RESNET_DET.BOX_REFINEMENT", refine,
        "RESNET_DET.MULTI_SCALE_TEST", sides,
    )  # fmt: skip
    tested = embedded.as_tested(model, cfg, "cpu")
    assert (tested is model) == (not refine and not sides)
    assert_same(tested([sample(sides)])[0], Reference([model], sides, refine, cfg)(sample(sides)))


@torch.no_grad()
def test_refinement_scores_600_regions_of_300_proposals(detector, monkeypatch):
    model, cfg = detector(
        "RESNET_DET.BOX_REFINEMENT", True, "MODEL.RPN.POST_NMS_TOPK_TEST", 300,
        "MODEL.RPN.NMS_THRESH", 0.95, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.3,
    )  # fmt: skip
    sizes, select = [], appendix.select
    monkeypatch.setattr(
        appendix, "select", lambda s, *rest, **rules: sizes.append(s.shape) or select(s, *rest, **rules)
    )  # fmt: skip
    found = build_improved([model], cfg)([sample()])[0]
    reference = Reference([model], (), True, cfg)
    assert_same(found, reference(sample()))
    assert sizes == [(600, CLASSES)] and reference.pool_size == 600


@torch.no_grad()
def test_an_ensemble_equals_the_direct_computation(detector):
    """Two nets, one with context: the proposals are united, scores and boxes are averaged."""
    one, cfg = detector()
    two, _ = detector("MODEL.BACKBONE.NAME", "cifar_plain20", "RESNET_DET.GLOBAL_CONTEXT", True)
    found = build_improved([one, two], cfg)([sample()])[0]
    reference = Reference([one, two], cfg=cfg)
    assert_same(found, reference(sample()))
    assert reference.pool_size == 60
    alone = one([sample()])[0]
    assert alone["scores"].tolist() != pytest.approx(found["scores"].tolist(), abs=1e-3)


@torch.no_grad()
def test_several_images_at_once_are_as_each_alone(detector, monkeypatch):
    monkeypatch.setattr(appendix, "CANONICAL_PIXELS", 30**2)
    model, cfg = detector(
        "RESNET_DET.GLOBAL_CONTEXT", True, "RESNET_DET.BOX_REFINEMENT", True,
        "RESNET_DET.MULTI_SCALE_TEST", SIDES,
    )  # fmt: skip
    tested = build_improved([model], cfg)
    samples = [sample(SIDES), sample(SIDES, seed=1)]
    for together, x in zip(tested(samples), samples, strict=True):
        (alone,) = tested([x])
        assert len(alone["scores"]) > 5
        for key, value in alone.items():
            torch.testing.assert_close(together[key], value, atol=1e-3, rtol=1e-4)


def test_context_in_training(detector):
    """The vectors are those of two runs of the head, and the gradient reaches both halves."""
    _, cfg = detector("RESNET_DET.GLOBAL_CONTEXT", True, "MODEL.RESNETS.NORM", "FrozenBN")
    model = filled(cfg).train()
    heads, seen = model.roi_heads, []
    heads.box_predictor.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    images = [picture(48, 64), picture(40, 64, 1)]
    batch = [
        {"image": x, "boxes": torch.tensor([[4.0, 6.0, 30.0, 36.0]]), "classes": torch.tensor([1])}
        for x in images
    ]
    proposals = []
    pool = heads.box_roi_pool.forward
    heads.box_roi_pool.forward = lambda f, b, s: proposals.append((f, b)) or pool(f, b, s)
    losses = model(batch)
    (features, boxes), (x,) = proposals[0], seen
    channels = x.shape[1] // 2
    assert heads.box_predictor.cls_score.in_features == 2 * channels
    at = 0
    for i, (own, (h, w)) in enumerate(zip(boxes, [(48, 64), (40, 64)])):
        regions, whole = own[:-1], own[-1:]
        assert whole.tolist() == [[0, 0, w, h]] and len(regions) > 2
        maps = features[0][i : i + 1]
        expected = [
            torch.cat([heads.box_head(roi_align(maps, [b], RESOLUTION, 1 / STRIDE, 0, True))["res4"]
                       .mean((2, 3))[0] for b in (box[None], whole)])
            for box in regions
        ]  # fmt: skip
        rows = x[at : at + len(regions)]
        torch.testing.assert_close(rows, torch.stack(expected), rtol=1e-4, atol=1e-4)
        at += len(regions)
    assert at == len(x)
    x.retain_grad()
    sum(losses.values()).backward()
    for half in x.grad.split(channels, 1):
        assert (half != 0).any(1).sum() > 2
    weight = heads.box_predictor.cls_score.weight
    assert all(g.abs().sum() > 0 for g in weight.grad.split(channels, 1))


@pytest.mark.parametrize(
    "side, pair",
    [(30, {800, 1000}), (134, {800, 1000}), (160, {800, 1000}), (200, {600, 800}),
     (224, {400, 600}), (250, {400, 600}), (300, {400, 600}), (336, {200, 400}),
     (600, {200, 400})],
)  # fmt: skip
def test_the_two_scales_of_a_square_region(side, pair):
    """Regions of a test at 600: e.g. 224 is 149, 224 and 299 at 400, 600 and 800."""
    scales = (200, 400, 600, 800, 1000)
    pixels = torch.tensor([[(side * s / 600) ** 2] for s in scales])
    assert {scales[i] for i in appendix.two_scales(pixels)[:, 0].tolist()} == pair


def test_the_two_scales_are_adjacent():
    side = torch.rand(5000, generator=torch.Generator().manual_seed(0)) * 1000
    scales = torch.tensor([200.0, 400, 600, 800, 1000])[:, None]
    one, two = appendix.two_scales((side * scales / 600) ** 2)
    assert ((one - two).abs() == 1).all() and one.unique().numel() == 5


@torch.no_grad()
def test_the_trunk_runs_once_a_scale(detector):
    model, cfg = detector("RESNET_DET.MULTI_SCALE_TEST", SIDES)
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[-2]))
    build_improved([model], cfg)([sample(SIDES)])
    assert sorted(seen) == sorted(SIDES)  # the test's own scale, 48, among them


def test_the_mapper_gives_the_scales(detector, tmp_path):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (30, 90, 3), dtype=np.uint8)
    path = tmp_path / "x.png"
    Image.fromarray(pixels).save(path)
    _, cfg = detector(
        "RESNET_DET.MULTI_SCALE_TEST", (20, 60, 120), "INPUT.MIN_SIZE_TEST", 60,
        "INPUT.MAX_SIZE_TEST", 120, "INPUT.FORMAT", "RGB",
    )  # fmt: skip
    x = embedded_data.test_mapper(cfg)({"file_name": path, "image_id": 0}, np.random.default_rng(0))
    sizes = [
        (13, 40),
        (40, 120),
        (80, 240),
    ]  # 60 is limited to 40 by the longer side, and so are all
    assert [tuple(p.shape[1:]) for p in x["scales"]] == sizes and x["image"].shape[1:] == sizes[1]
    for got, (h, w) in zip(x["scales"], sizes):
        expected = Image.fromarray(pixels).resize((w, h), Image.Resampling.BILINEAR)
        assert np.array_equal(got.numpy().transpose(1, 2, 0), np.array(expected))


def test_scales_need_their_images(detector):
    model, cfg = detector("RESNET_DET.MULTI_SCALE_TEST", SIDES)
    with pytest.raises(ValueError, match="MULTI_SCALE_TEST.*mapper"):
        build_improved([model], cfg)([sample()])


@torch.no_grad()
def test_fast_gives_the_same(detector, monkeypatch):
    """RoIAlign of every second bin, folded norms: the same vectors at every scale."""
    monkeypatch.setitem(resnet.DEPTHS, 50, ((1, 1, 1, 1), True))
    monkeypatch.setattr(appendix, "CANONICAL_PIXELS", 30**2)
    found = []
    for fast in (True, False):
        model, cfg = detector(
            "MODEL.BACKBONE.NAME", "paper_resnet50", "MODEL.RESNETS.OUT_FEATURES", ["res4"],
            "MODEL.RPN.IN_FEATURES", ["res4"], "MODEL.ROI_HEADS.IN_FEATURES", ["res4"],
            "MODEL.RPN.POST_NMS_TOPK_TEST", 12, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.05,
            "MODEL.RESNETS.NORM", "FrozenBN", "MODEL.RPN.CONV_DIMS", [16],
            "RESNET_DET.BOX_REFINEMENT", True, "RESNET_DET.GLOBAL_CONTEXT", True,
            "RESNET_DET.MULTI_SCALE_TEST", (48, 96), "RESNET_DET.FAST", fast,
        )  # fmt: skip
        assert model.roi_heads.box_roi_pool.step == 1 + fast
        found.append(build_improved([model], cfg)([sample((48, 96))])[0])
    assert len(found[0]["scores"]) > 5
    for key, value in found[1].items():
        torch.testing.assert_close(found[0][key], value, atol=1e-3, rtol=0)


def test_what_is_for_the_test_changes_no_training(detector):
    keys = ("RESNET_DET.BOX_REFINEMENT", True, "RESNET_DET.MULTI_SCALE_TEST", SIDES)
    (off, cfg), (on, _) = detector(), detector(*keys)
    assert not has_test_improvements(cfg)
    assert embedded.as_tested(off, cfg, "cpu") is off
    names = off.state_dict().keys()
    assert on.state_dict().keys() == names
    assert all(torch.equal(v, on.state_dict()[k]) for k, v in off.state_dict().items())
    losses = []
    for model in (off, on):
        torch.manual_seed(0)
        boxes = torch.tensor([[4.0, 6.0, 30.0, 40.0]])
        losses.append(model.train()([sample() | {"boxes": boxes, "classes": torch.tensor([1])}]))
    assert all(torch.equal(v, losses[1][k]) for k, v in losses[0].items())
    context, _ = detector("RESNET_DET.GLOBAL_CONTEXT", True)
    assert context.state_dict().keys() == names
    changed = {k for k, v in context.state_dict().items() if v.shape != off.state_dict()[k].shape}
    assert changed == {f"roi_heads.box_predictor.{k}.weight" for k in ("cls_score", "bbox_pred")}


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["RESNET_DET.BOX_REFINEMENT", True, "MODEL.ROI_HEADS.NAME", "Res5ROIHeads"],
         "RESNET_DET.BOX_REFINEMENT: needs MODEL.ROI_HEADS.NAME PaperROIHeads"),
        (["RESNET_DET.MULTI_SCALE_TEST", (600, 400)], "MULTI_SCALE_TEST.*ascending"),
        (["RESNET_DET.MULTI_SCALE_TEST", (600,)], "MULTI_SCALE_TEST.*two or more"),
        (["RESNET_DET.MULTI_SCALE_TEST", (400, 600), "INPUT.MIN_SIZE_TEST", 0], "MIN_SIZE_TEST"),
    ],
)  # fmt: skip
def test_mistakes_name_the_key(detector, overrides, words):
    with pytest.raises(ConfigError, match=words):
        detector(*overrides)
