"""Small detectors, images and reference computations of the appendix's tests."""

import numpy as np
import torch
from golden import fill

from resnet_det.detector.build import build_model


def picture(height, width, seed=0):
    """The same blocks at every size, so that scales show one scene."""
    blocks = np.random.default_rng(seed).integers(0, 256, (3, 6, 8), dtype=np.uint8)
    rows, columns = np.arange(height) * 6 // height, np.arange(width) * 8 // width
    return torch.from_numpy(blocks[:, rows][:, :, columns])


def filled(cfg):
    model = fill(build_model(cfg))
    with torch.no_grad():  # scores that differ, not all of them 0 or 1
        model.roi_heads.box_predictor.cls_score.weight.mul_(0.1)
    return model


def iou(a, b):
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(w, 0) * max(h, 0)
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return shared / (sum(areas) - shared) if sum(areas) else 0


def voted(box, candidates):
    total, mean = 0, [0] * 4
    for score, other in candidates:
        if other == box or iou(box, other) >= 0.5:
            total += score
            mean = [m + score * x for m, x in zip(mean, other)]
    return [m / total for m in mean]
