"""A small detector's config for the tests of the embedded engine."""

import pytest

from resnet_det.config.loading import load_config


@pytest.fixture
def config(tmp_path):
    """``config(KEY, VALUE, ...)``: a small C4 detector on a CIFAR net, with fresh norms."""

    def build(*overrides):
        path = tmp_path / "config.yaml"
        path.write_text(
            "MODEL: {BACKBONE: {NAME: cifar_resnet20, FREEZE_AT: 0},"
            " RESNETS: {OUT_FEATURES: [res3], NORM: BN},"
            " ANCHOR_GENERATOR: {SIZES: [[16, 32]]}, RPN: {IN_FEATURES: [res3]},"
            " ROI_HEADS: {IN_FEATURES: [res3], NUM_CLASSES: 3, BATCH_SIZE_PER_IMAGE: 16},"
            " ROI_BOX_HEAD: {POOLER_RESOLUTION: 8}}"
        )
        return load_config(path, overrides)

    return build
