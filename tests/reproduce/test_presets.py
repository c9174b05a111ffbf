"""Every config in configs/ loads and builds in both engines; the paper's recipe is the paper's."""

from pathlib import Path

import pytest
import torch

from resnet_det.config.defaults import flatten
from resnet_det.config.loading import load_config
from resnet_det.data import dataset_names
from resnet_det.detector import build
from resnet_det.detector import rpn as rpn_module
from resnet_det.engines import classifier_nets
from resnet_det.engines.checks import check_classifier
from resnet_det.nets import build_net
from resnet_det.weights.facts import config_facts

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
DETECTORS = [c for c in CONFIGS if load_config(c).MODEL.META_ARCHITECTURE != "Classifier"]
PAPER = sorted((ROOT / "configs").glob("faster_rcnn_*.yaml"))
PAPER += sorted((ROOT / "configs/from_scratch").glob("*.yaml"))


def name(path):
    return str(path.relative_to(ROOT / "configs"))


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_loads_and_builds(path):
    cfg = load_config(path)
    if path.stem.startswith("Base-"):  # it may name no net
        return
    with torch.device("meta"):
        if cfg.MODEL.META_ARCHITECTURE == "Classifier":
            check_classifier(cfg)
            assert classifier_nets.build(cfg, 10).linear.out_features == 10
        else:
            model = build.build_model(cfg)
            scores = model.roi_heads.box_predictor.cls_score
            assert scores.out_features == cfg.MODEL.ROI_HEADS.NUM_CLASSES + 1


@pytest.mark.parametrize("path", PAPER, ids=name)
def test_the_papers_recipe(path):
    """Appendix A, and the released code of Faster R-CNN; the numbers are typed from there."""
    cfg, coco = load_config(path), "_coco" in path.stem
    m, s, vgg = cfg.MODEL, cfg.SOLVER, "VGG16" in path.stem
    assert (tuple(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MAX_SIZE_TRAIN) == ((600,), 1000)
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (600, 1000)
    assert cfg.INPUT.RANDOM_FLIP == "horizontal"
    torchvisions = m.WEIGHTS.startswith("torchvision://")
    assert cfg.INPUT.FORMAT == ("RGB" if torchvisions else "BGR")
    assert list(m.PIXEL_STD) == ([58.395, 57.12, 57.375] if torchvisions else [1, 1, 1])
    assert list(m.PIXEL_MEAN) == sorted(m.PIXEL_MEAN, reverse=torchvisions)
    anchors = rpn_module.Anchors(
        m.ANCHOR_GENERATOR.SIZES, m.ANCHOR_GENERATOR.ASPECT_RATIOS, [16], m.ANCHOR_GENERATOR.OFFSET
    ).cell_anchors[0]
    assert len(anchors) == (12 if coco else 9)
    w, h = (anchors[:, 2:] - anchors[:, :2]).T
    assert sorted({round(x) for x in (w * h).sqrt().tolist()}) == [64] * coco + [128, 256, 512]
    assert sorted({round(x, 3) for x in (h / w).tolist()}) == [0.5, 1.0, 2.0]
    rpn = m.RPN
    assert rpn.BOUNDARY_THRESH == 0 and list(rpn.IOU_THRESHOLDS) == [0.3, 0.7]
    assert (rpn.BATCH_SIZE_PER_IMAGE, rpn.POSITIVE_FRACTION, rpn.NMS_THRESH) == (256, 0.5, 0.7)
    assert (rpn.PRE_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TRAIN) == (12000, 2000)
    assert (rpn.PRE_NMS_TOPK_TEST, rpn.POST_NMS_TOPK_TEST) == (6000, 300)
    assert (rpn.CONV_DIMS[0], rpn.SMOOTH_L1_BETA, m.PROPOSAL_GENERATOR.MIN_SIZE) == (512, 1.0, 16)
    heads, box = m.ROI_HEADS, m.ROI_BOX_HEAD
    assert (heads.BATCH_SIZE_PER_IMAGE, heads.POSITIVE_FRACTION) == (64, 0.25)
    assert list(heads.IOU_THRESHOLDS) == [0.5] and list(heads.IOU_LABELS) == [0, 1]
    assert (heads.NMS_THRESH_TEST, heads.SCORE_THRESH_TEST) == (0.3, 0.05)
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 100
    assert (box.POOLER_TYPE, box.POOLER_RESOLUTION) == ("ROIPool", 7 if vgg else 14)
    assert box.SMOOTH_L1_BETA == 1.0 and not box.CLS_AGNOSTIC_BBOX_REG
    assert [1 / x for x in box.BBOX_REG_WEIGHTS] == [0.1, 0.1, 0.2, 0.2]
    assert m.RESNETS.NORM == "FrozenBN" and m.RESNETS.STRIDE_IN_1X1 and m.BACKBONE.FREEZE_AT == 2
    assert (s.BASE_LR, s.GAMMA, s.MOMENTUM, s.WEIGHT_DECAY) == (0.001, 0.1, 0.9, 0.0005)
    assert (s.BIAS_LR_FACTOR, s.WEIGHT_DECAY_BIAS, s.WARMUP_ITERS) == (2.0, 0.0, 0)
    assert cfg.RESNET_DET.USE_DIFFICULT is False
    if coco and "_voc" not in path.stem:  # Tables 10 and 11 go on from COCO's anchors
        assert (s.IMS_PER_BATCH, tuple(s.STEPS), s.MAX_ITER) == (16, (240000,), 320000)
        assert (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST) == ("coco_2014_train", "coco_2014_val")
        assert heads.NUM_CLASSES == 80
        assert set(cfg.RESNET_DET.ALTERNATING) == {320000}
    else:
        assert heads.NUM_CLASSES == 20 and s.IMS_PER_BATCH == 2
        twelve = path.stem.endswith("07pp12")
        sets = {"voc_2007_trainval", "voc_2012_trainval"} | ({"voc_2007_test"} if twelve else set())
        assert set(cfg.DATASETS.TRAIN) == sets
        assert tuple(cfg.DATASETS.TEST) == ("voc_2012_test" if twelve else "voc_2007_test",)
        # About 13 epochs of 16,551 or 21,503 images, eight elevenths of them at the first rate.
        assert s.MAX_ITER * 2 / (21503 if twelve else 16551) == pytest.approx(13.2, abs=0.2)
        assert s.STEPS[0] / s.MAX_ITER == pytest.approx(8 / 11, abs=0.02)
        # The released 80k and 40k of VOC 07, lengthened as the 70k of its joint training are.
        longer = [step / s.MAX_ITER * 70 for step in cfg.RESNET_DET.ALTERNATING]
        assert longer == pytest.approx([80, 40, 80, 40], abs=0.5)


def test_every_cell_of_tables_7_and_8_has_its_config():
    """The paper's own nets are those of its authors; the others are torchvision's, with B."""
    weights = {
        "R101": "detectron2://ImageNetPretrained/MSRA/R-101.pkl",
        "R50": "detectron2://ImageNetPretrained/MSRA/R-50.pkl",
        "R34": "torchvision://resnet34",
        "R18": "torchvision://resnet18",
        "VGG16": "torchvision://vgg16",
    }
    for net, address in weights.items():
        for suffix in ("", "_07pp12", "_coco"):
            cfg = load_config(ROOT / f"configs/faster_rcnn_{net}{suffix}.yaml")
            assert cfg.MODEL.BACKBONE.NAME == f"paper_{net.replace('R', 'resnet').lower()}"
            assert cfg.MODEL.WEIGHTS == address and not cfg.RESNET_DET.PRETRAIN
            assert cfg.OUTPUT_DIR == f"output/faster_rcnn_{net}{suffix}"


def test_each_net_can_be_pretrained_instead():
    """With the shortcuts and the pixels of the paper."""
    nets = {"R101": "resnet101", "R50": "resnet50", "R34": "resnet34_b", "R18": "resnet18_a",
            "VGG16": "vgg16"}  # fmt: skip
    for net, trained in nets.items():
        cfg = load_config(ROOT / f"configs/from_scratch/faster_rcnn_{net}.yaml")
        classifier_cfg = load_config(ROOT / cfg.RESNET_DET.PRETRAIN)
        assert cfg.RESNET_DET.PRETRAIN == f"configs/imagenet/{trained}.yaml"
        assert cfg.MODEL.WEIGHTS == f"{classifier_cfg.OUTPUT_DIR}/model_final.pth"
        assert cfg.MODEL.BACKBONE.NAME == f"paper_{trained}".removesuffix("_b")
        assert config_facts(cfg) == config_facts(classifier_cfg)


def test_the_rows_of_table_9():
    """Each row adds one improvement; test-time improvements use the detector of the previous
    row."""
    rows = ["", "_refine", "_context", "_multiscale"]
    paths = [ROOT / f"configs/faster_rcnn_R101_coco{row}.yaml" for row in rows]
    baseline, refine, context, multiscale = map(load_config, paths)
    keys = ("BOX_REFINEMENT", "GLOBAL_CONTEXT", "MULTI_SCALE_TEST")
    sides = (200, 400, 600, 800, 1000)
    assert [tuple(cfg.RESNET_DET[k] for k in keys) for cfg in (baseline, refine, context, multiscale)] == [
        (False, False, ()), (True, False, ()), (True, True, ()), (True, True, sides)
    ]  # fmt: skip
    assert refine.MODEL.WEIGHTS == f"{baseline.OUTPUT_DIR}/model_final.pth"
    assert context.MODEL.WEIGHTS == baseline.MODEL.WEIGHTS
    assert multiscale.MODEL.WEIGHTS == f"{context.OUTPUT_DIR}/model_final.pth"
    numbers = [("AP 29.9", "AP50 49.9"), ("AP 30.0", "AP50 51.1"), ("AP 32.5", "AP50 53.8")]
    for path, (ap, ap50) in zip(paths[1:], numbers):
        assert f"Expected: {ap}, {ap50}" in path.read_text()


def test_no_two_configs_write_to_one_folder_and_their_datasets_exist():
    folders = [load_config(c).OUTPUT_DIR for c in CONFIGS if not c.stem.startswith("Base-")]
    assert len(set(folders)) == len(folders)
    for path in CONFIGS:
        cfg = load_config(path)
        known = dataset_names("detection" if path in DETECTORS else "classification")
        assert {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST} <= set(known), path


def test_the_papers_recipe_on_cifar10():
    """The paper's section 4.2, for every net of Table 6 and Fig. 6."""
    nets = {f"{kind}{d}" for kind in ("resnet", "plain") for d in (20, 32, 44, 56, 110)}
    paths = {p.stem: p for p in (ROOT / "configs/cifar").glob("*.yaml")}
    assert paths.keys() == nets | {"resnet1202", "Base-CIFAR10"}
    for name in nets | {"resnet1202"}:
        cfg = load_config(paths[name])
        s, crop = cfg.SOLVER, cfg.INPUT.CROP
        assert cfg.MODEL.BACKBONE.NAME == f"cifar_{name}" and cfg.MODEL.RESNETS.NORM == "BN"
        assert (s.IMS_PER_BATCH, s.BASE_LR, s.GAMMA, s.MOMENTUM) == (128, 0.1, 0.1, 0.9)
        assert (tuple(s.STEPS), s.MAX_ITER, s.NESTEROV) == ((32000, 48000), 64000, False)
        assert (s.WEIGHT_DECAY, s.WEIGHT_DECAY_NORM, s.WEIGHT_DECAY_BIAS) == (0.0001, 0.0, 0.0)
        assert (crop.ENABLED, crop.TYPE, list(crop.SIZE)) == (True, "absolute", [32, 32])
        assert cfg.RESNET_DET.CROP_PADDING == 4 and cfg.INPUT.RANDOM_FLIP == "horizontal"
        assert cfg.RESNET_DET.PER_PIXEL_MEAN and list(cfg.MODEL.PIXEL_STD) == [1.0, 1.0, 1.0]
        assert (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST) == ("cifar10_train", "cifar10_test")
        warm = name in ("resnet110", "resnet1202")
        assert cfg.RESNET_DET.WARMUP_UNTIL_ERROR == (80.0 if warm else 0.0)
        assert s.WARMUP_ITERS == 0 and (not warm or s.WARMUP_FACTOR == 0.1)  # of 0.1
        assert not cfg.TEST.PRECISE_BN.ENABLED
        assert cfg.CUDNN_BENCHMARK  # one size of image


def test_the_papers_recipe_on_imagenet():
    """The paper's section 3.4; VGG-16 is trained as its own paper says."""
    nets = {"plain18", "plain34", "resnet18_a", "resnet34_a", "resnet34_b", "resnet34_c",
            "resnet50", "resnet101", "resnet152", "vgg16"}  # fmt: skip
    paths = {p.stem: p for p in (ROOT / "configs/imagenet").glob("*.yaml")}
    assert paths.keys() == nets | {"Base-ImageNet"}
    for name in nets:
        cfg = load_config(paths[name])
        s, vgg = cfg.SOLVER, name == "vgg16"
        assert cfg.MODEL.BACKBONE.NAME == f"paper_{name}" and cfg.MODEL.RESNETS.STRIDE_IN_1X1
        assert (s.IMS_PER_BATCH, s.MAX_ITER, s.MOMENTUM, s.GAMMA) == (256, 600_000, 0.9, 0.1)
        assert (s.BASE_LR, s.WEIGHT_DECAY) == ((0.01, 0.0005) if vgg else (0.1, 0.0001))
        assert (s.WEIGHT_DECAY_NORM, s.WEIGHT_DECAY_BIAS, s.WARMUP_ITERS) == (0.0, 0.0, 0)
        assert list(cfg.INPUT.MIN_SIZE_TRAIN) == [256, 480] and cfg.INPUT.MIN_SIZE_TEST == 256
        assert cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range"
        assert list(cfg.INPUT.CROP.SIZE) == [224, 224] and cfg.INPUT.RANDOM_FLIP == "horizontal"
        assert list(cfg.MODEL.PIXEL_STD) == [1.0, 1.0, 1.0] and cfg.RESNET_DET.COLOR_PCA
        assert cfg.RESNET_DET.TEST_CROPS == 10
        assert list(cfg.TEST.AUG.MIN_SIZES) == [224, 256, 384, 480, 640] and cfg.TEST.AUG.FLIP
        assert cfg.TEST.PRECISE_BN.ENABLED != vgg and cfg.TEST.PRECISE_BN.NUM_ITER == 200
        assert tuple(s.STEPS) == (150_000, 300_000, 450_000)
        assert list(cfg.MODEL.PIXEL_MEAN) == [103.53, 116.28, 123.675]  # BGR, of Detectron2


@pytest.mark.parametrize("beta", [1.0, 1 / 9])
def test_beta_is_caffes_sigma(beta):
    """Fast R-CNN's loss: sigma^2 x^2 / 2 below 1 / sigma^2, |x| - 1 / (2 sigma^2) beyond."""
    x, sigma2 = torch.linspace(-2, 2, 401, dtype=torch.float64), 1 / beta
    caffe = torch.where(x.abs() < 1 / sigma2, x**2 * sigma2 / 2, x.abs() - 0.5 / sigma2)
    ours = torch.stack([rpn_module.smooth_l1(v.float(), torch.zeros(()), beta) for v in x])
    assert torch.allclose(ours.double(), caffe, atol=1e-6)


def test_min_size_is_exclusive_at_the_scale_of_the_input():
    """As in Detectron2; the released code includes equality and measures in the original image."""
    cfg = load_config(ROOT / "configs/faster_rcnn_R18.yaml")
    with torch.device("meta"):
        rpn = build.build_model(cfg).proposal_generator
    rpn.eval()
    boxes = torch.tensor([[0.0, 0, 16, 40], [60, 0, 76.01, 40], [0, 60, 100, 75.9]])
    kept, _ = rpn.filter_proposals(boxes[None], torch.tensor([3.0, 2, 1]), [(200, 200)], [3])
    assert kept[0].tolist() == boxes[1:2].tolist()


def test_fresh_layers_are_drawn_as_published():
    """N(0, 0.01), the box layer N(0, 0.001) (Fast R-CNN, section 2.3); biases are 0."""
    torch.manual_seed(0)
    model = build.build_model(load_config(ROOT / "configs/faster_rcnn_R18.yaml"))
    head, predictor = model.proposal_generator.head, model.roi_heads.box_predictor
    layers = {x: 0.01 for x in (head.conv, head.objectness_logits, head.anchor_deltas)}
    layers |= {predictor.cls_score: 0.01, predictor.bbox_pred: 0.001}
    for layer, std in layers.items():
        assert layer.weight.std().item() == pytest.approx(std, rel=0.03) and not layer.bias.any()
    with torch.device("meta"):
        vgg = build_net("paper_vgg16")
    x = torch.ones(4, 25088)
    for layer in (vgg.fc6, vgg.fc7):  # half of the numbers go, the others are doubled
        whole = torch.nn.Linear(x.shape[1], layer.out_features)
        layer.weight, layer.bias = whole.weight, whole.bias
        y, expected = layer(x), whole(x).relu()
        assert y[expected > 0].bool().float().mean().item() == pytest.approx(0.5, abs=0.03)
        torch.testing.assert_close(y[y > 0], 2 * expected[y > 0])
        x = expected.detach()


@pytest.mark.detectron2
@pytest.mark.parametrize("kind", ["C4", "FPN"])
@pytest.mark.parametrize("depth", [50, 101])
def test_the_modern_recipe_is_the_model_zoos(depth, kind):
    from detectron2 import model_zoo

    zoo = model_zoo.get_config_file(f"COCO-Detection/faster_rcnn_R_{depth}_{kind}_3x.yaml")
    ours, theirs = (
        flatten(load_config(path))
        for path in (ROOT / f"configs/modern_faster_rcnn_R{depth}_{kind}.yaml", zoo)
    )
    different = {key for key in ours if ours[key] != theirs[key]}
    own = {"MODEL.BACKBONE.NAME", "OUTPUT_DIR", "SOLVER.REFERENCE_WORLD_SIZE"}
    own |= {"MODEL.RESNETS.DEPTH"} if depth == 101 else set()
    assert different == own | ({"MODEL.ROI_HEADS.NAME"} if kind == "C4" else set())


@pytest.mark.detectron2
@pytest.mark.parametrize("path", DETECTORS, ids=name)
def test_loads_and_builds_in_detectron2(path):
    from detectron2.modeling import build_model

    from resnet_det.engines.on_detectron2 import engine as detectron2_engine

    cfg = detectron2_engine.load_config(path, ["MODEL.DEVICE", "meta"])
    if path.stem.startswith("Base-"):  # it may name no net
        return
    with torch.device("meta"):
        model = build_model(cfg)
        ours = build.build_model(load_config(path))
    shapes = {k: v.shape for k, v in ours.state_dict().items()}
    assert {k: v.shape for k, v in model.state_dict().items()} == shapes


def test_a_net_has_a_trunk_of_91_convolutions():
    """Section 4.3 of ResNet-101: conv1 to conv4_x are 91 layers, projections not counted."""
    with torch.device("meta"):
        trunk, _ = build_net("paper_resnet101").split()
    convs = [n for n, x in trunk.named_modules() if isinstance(x, torch.nn.Conv2d)]
    assert len([n for n in convs if "shortcut" not in n]) == 91
