"""What the real Detectron2 computes for weights and images filled by a formula.

    python tests/helpers/golden.py      # records golden/*.json; needs Detectron2

``golden/*.json`` hold the embedded engine to it where Detectron2 is absent. The networks of
both compute in double precision: in float32 one convolution algorithm's rounding or another's,
amplified by such weights, moves a box by a few thousandths of a pixel.
"""

import json
import sys
import zlib
from pathlib import Path

import numpy as np
import torch
from torch.utils._pytree import tree_map

from resnet_det.nets.layers import FullyConnected

FOLDER = Path(__file__).parent / "golden"
HEIGHT, WIDTH = 160, 224  # of the network's input; the original image is half as large again

_C4 = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.DEVICE": "cpu",
    "MODEL.ROI_HEADS.NAME": "PaperROIHeads",
    "MODEL.ROI_HEADS.NUM_CLASSES": 7,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.1,
    "MODEL.PIXEL_STD": [57.375, 57.12, 58.395],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 400,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 300,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 24,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
    "TEST.DETECTIONS_PER_IMAGE": 15,
    # Every labelled anchor and region is taken, so nothing is left to chance.
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 100_000,
    "MODEL.RPN.POSITIVE_FRACTION": 1.0,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 10_000,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 1.0,
}
_FPN = {
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
}
CASES = {
    "R18-C4": {"MODEL.BACKBONE.NAME": "paper_resnet18", "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIPool"},
    "R50-C4": {"MODEL.BACKBONE.NAME": "paper_resnet50"},
    "R101-C4": {
        "MODEL.BACKBONE.NAME": "paper_resnet101",
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.RPN.SMOOTH_L1_BETA": 1 / 9,
        "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 1.0,
        "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": 16,
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlign",
    },
    "VGG16": {
        "MODEL.BACKBONE.NAME": "paper_vgg16",
        "MODEL.RESNETS.OUT_FEATURES": ["conv5"],
        "MODEL.RPN.IN_FEATURES": ["conv5"],
        "MODEL.ROI_HEADS.IN_FEATURES": ["conv5"],
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
        "MODEL.RPN.BOUNDARY_THRESH": 0,
        "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.1, 0.5],
        "MODEL.ROI_HEADS.IOU_LABELS": [-1, 0, 1],
    },
    "R50-FPN": {"MODEL.BACKBONE.NAME": "paper_resnet50_fpn", **_FPN},
    # Appendix B: the last row of a single model in Table 9.
    "R18-C4-appendix": {
        "MODEL.BACKBONE.NAME": "paper_resnet18",
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIPool",
        "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.3,
        "MODEL.PIXEL_STD": [1000.0] * 3,  # scores that differ, not all of them 1
        "RESNET_DET.GLOBAL_CONTEXT": True,
        "RESNET_DET.BOX_REFINEMENT": True,
        "RESNET_DET.MULTI_SCALE_TEST": (96, 160, 224, 320),
    },
}  # fmt: skip


def overrides(case):
    """The case as a list KEY, VALUE, ..."""
    return [x for pair in (_C4 | CASES[case]).items() for x in pair]


def noise(count, name):
    """``count`` numbers in [-1, 1), a function of ``name``: a linear congruence, tiled."""
    states = _FACTORS * np.uint64(zlib.crc32(name.encode())) + _TERMS
    return np.resize((states % 2**32).astype(float) / 2**31 - 1, count)


def _congruence(steps):
    """Factors a and terms b: from the seed x, state i is a[i] x + b[i] modulo 2^32."""
    factor, term, pairs = 1, 0, []
    for _ in range(steps):
        factor, term = (1664525 * v % 2**32 for v in (factor, term))
        term = (term + 1013904223) % 2**32
        pairs.append((factor, term))
    return np.array(pairs, dtype=np.uint64).T


_FACTORS, _TERMS = _congruence(9973)


def fill(model):
    """Give every parameter and statistic of a detector its value by the formula."""
    state = {}
    for key, value in model.state_dict().items():
        if (
            key.endswith(("num_batches_tracked", "pixel_mean", "pixel_std"))
            or "cell_anchors" in key
        ):
            continue
        x = torch.from_numpy(noise(value.numel(), key)).view(value.shape)
        if key.endswith("running_var"):
            x = 1 + 0.3 * x
        elif "norm.weight" in key:  # a residual branch's last norm is small, as after training
            x = (0.3 if "conv3.norm" in key else 1) * (1 + 0.3 * x)
        elif value.dim() > 1:
            small = {"deltas": 0.01, "bbox_pred": 0.01, "cls_score": 1.0}
            gain = next((g for k, g in small.items() if k in key), 2)
            x = x * (3 * gain / value[0].numel()) ** 0.5
        else:
            x = 0.1 * x
        state[key] = x.to(value.dtype)
    model.load_state_dict(state, strict=False)
    for module in model.modules():
        if isinstance(module, FullyConnected):
            module.dropout = 0.0
    return model


def in_double(model):
    """Let trunk, RPN head and RoI heads take, compute and keep float64, and give float32."""

    def cast(dtype):
        return lambda m, args, *out: tree_map(
            lambda x: x.to(dtype) if torch.is_tensor(x) else x, out[0] if out else args
        )

    rpn = dict(model.proposal_generator.named_children())
    heads = [m for m in model.roi_heads.children() if any(True for _ in m.parameters())]
    for module in (model.backbone, rpn.get("rpn_head") or rpn["head"], *heads):
        module.double()
        module.register_forward_pre_hook(cast(torch.float64))
        module.register_forward_hook(cast(torch.float32))
    return model


def at_side(image, side):
    """The image with the shorter side ``side``, by the nearest pixels."""
    h, w = side, side * WIDTH // HEIGHT
    rows, columns = torch.arange(h) * HEIGHT // h, torch.arange(w) * WIDTH // w
    return image[:, rows][:, :, columns]


def batch(sides=()):
    """Two training samples, which test alike: image, boxes, classes, original size, scales."""
    samples = []
    for i, (boxes, classes) in enumerate(
        [
            ([[10, 20, 90, 150], [60, 5, 210, 70]], [1, 6]),
            ([[100, 40, 180, 120], [0, 0, 40, 60], [150, 90, 223, 159]], [0, 3, 6]),
        ]
    ):
        pixels = noise(3 * (HEIGHT // 8) * (WIDTH // 8), f"image{i}") * 127 + 128
        pixels = pixels.reshape(3, HEIGHT // 8, WIDTH // 8).repeat(8, 1).repeat(8, 2)
        samples.append(
            {
                "image": torch.from_numpy(pixels.astype(np.uint8)),
                "height": HEIGHT * 3 // 2,
                "width": WIDTH * 3 // 2,
                "boxes": torch.tensor(boxes, dtype=torch.float32),
                "classes": torch.tensor(classes),
            }
        )
        samples[-1]["scales"] = [at_side(samples[-1]["image"], side) for side in sides]
    return samples


def _plain(losses, proposals, detections):
    return {
        "losses": {k: float(v) for k, v in losses.items()},
        "proposals": [p.tolist() for p in proposals],
        "detections": [
            {k: v.tolist() for k, v in zip(("boxes", "scores", "classes"), d)} for d in detections
        ],
    }


def embedded_config(case):
    from resnet_det.config.defaults import get_cfg

    cfg = get_cfg()
    cfg.merge_from_list(overrides(case))
    return cfg


def embedded_model(case):
    from resnet_det.detector.build import build_model

    return build_model(embedded_config(case))


def detectron2_config(case, fast=True):
    from detectron2.config import get_cfg

    from resnet_det.config.defaults import add_resnet_det_config

    cfg = get_cfg()
    add_resnet_det_config(cfg)
    cfg.RESNET_DET.FAST = fast
    cfg.merge_from_list(overrides(case))
    return cfg


def detectron2_model(case, fast=True):
    from detectron2.modeling import build_model

    return build_model(detectron2_config(case, fast))


@torch.no_grad()
def with_torchvision(case):
    """The embedded engine's losses, proposals and detections of a case."""
    from resnet_det.engines.embedded import as_tested

    cfg = embedded_config(case)
    model = in_double(fill(embedded_model(case))).train()
    losses = model(batch())
    model.eval()
    given = []
    model.proposal_generator.register_forward_hook(lambda module, args, out: given.append(out[0]))
    found = as_tested(model, cfg, "cpu")(batch(cfg.RESNET_DET.MULTI_SCALE_TEST))
    (proposals,) = given
    detections = [(d["boxes"], d["scores"], d["classes"]) for d in found]
    return _plain(losses, proposals, detections)


@torch.no_grad()
def with_detectron2(case, fast=True):
    """The same from the real Detectron2."""
    from resnet_det.engines.on_detectron2.evaluation import as_tested

    cfg = detectron2_config(case, fast)
    model = in_double(fill(detectron2_model(case, fast)))
    return by_detectron2(model, as_tested(model, cfg), batch(cfg.RESNET_DET.MULTI_SCALE_TEST))


@torch.no_grad()
def by_detectron2(model, tested=None, tests=None):
    """The same of a detector of Detectron2; ``tested`` detects in its place, in ``tests``."""
    from detectron2.structures import Boxes, Instances
    from detectron2.utils.events import EventStorage

    model.train()
    samples = batch()
    for sample in samples:
        sample["instances"] = Instances((HEIGHT, WIDTH))
        sample["instances"].gt_boxes = Boxes(sample["boxes"])
        sample["instances"].gt_classes = sample["classes"]
    with EventStorage():
        losses = model(samples)
    model.eval()
    images = model.preprocess_image(samples)
    proposals, _ = model.proposal_generator(images, model.backbone(images.tensor))
    found = [r["instances"] for r in (tested or model)(tests or batch())]
    detections = [(f.pred_boxes.tensor, f.scores, f.pred_classes) for f in found]
    return _plain(losses, [p.proposal_boxes.tensor for p in proposals], detections)


def recorded(case):
    return json.loads((FOLDER / f"{case}.json").read_text())


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for case in sys.argv[1:] or CASES:
        result = with_detectron2(case, fast=False)
        (FOLDER / f"{case}.json").write_text(json.dumps(result) + "\n")
        counts = [len(d["scores"]) for d in result["detections"]]
        print(case, result["losses"], "detections:", counts)
