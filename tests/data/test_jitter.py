"""Colour jitter, against torchvision; tests/engines/test_data_on_detectron2.py compares it with
Detectron2."""

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as F

from resnet_det.data.jitter import ColorJitter

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)


def fixed(**factors):
    return ColorJitter(**{k: (v, v) for k, v in factors.items()}, format="RGB")


def changed(jitter, image=PICTURE):
    return jitter(image, np.random.default_rng(0))


@pytest.mark.parametrize("factor", [0.0, 0.4, 0.9, 1.3, 1.9])
def test_a_factor_means_what_torchvision_means(factor):
    """torchvision rounds the grey levels, and takes its mean of them instead of the channels'."""
    tensor = torch.from_numpy(PICTURE).permute(2, 0, 1)
    for name, limit in (("brightness", 0), ("saturation", 2)):
        expected = getattr(F, f"adjust_{name}")(tensor, factor).permute(1, 2, 0).numpy()
        found = changed(fixed(**{name: factor})).astype(int)
        assert abs(found - expected).max() <= limit
    grey = PICTURE[:, :, :1].repeat(3, 2)
    expected = F.adjust_contrast(torch.from_numpy(grey).permute(2, 0, 1), factor)
    found = changed(fixed(contrast=factor), grey).astype(int)
    assert abs(found - expected.permute(1, 2, 0).numpy()).max() <= 2


def test_channels_are_taken_in_their_order():
    ends = {"brightness": (0.5, 1.5), "contrast": (0.5, 1.5), "saturation": (0.2, 0.3)}
    rgb = changed(ColorJitter(**ends, format="RGB"))
    bgr = changed(ColorJitter(**ends, format="BGR"), PICTURE[:, :, ::-1])
    assert np.array_equal(rgb, bgr[:, :, ::-1])
    swapped = changed(ColorJitter(**ends, format="BGR"))
    assert abs(rgb.astype(int) - swapped).max() > 20


def test_factors_are_uniform_and_each_image_has_its_own():
    jitter, rng = ColorJitter(brightness=(0.2, 0.8)), np.random.default_rng(0)
    grey = np.full((1, 1, 3), 250, np.uint8)
    factors = [jitter(grey, rng)[0, 0, 0] / 250 for _ in range(3000)]
    quarters = np.quantile(factors, (0, 0.25, 0.5, 0.75, 1))
    assert np.allclose(quarters, (0.2, 0.35, 0.5, 0.65, 0.8), atol=0.02)


def test_without_jitter_nothing_is_drawn():
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    assert ColorJitter()(PICTURE, rng) is PICTURE and rng.bit_generator.state == before
    ColorJitter(contrast=(0.9, 1.1))(PICTURE, rng)
    assert rng.bit_generator.state != before
