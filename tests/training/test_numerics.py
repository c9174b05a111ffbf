"""PyTorch's global settings during a run, and after it."""

import os

import pytest
import torch

from resnet_det.training.numerics import numerics


def settings():
    return {
        "benchmark": torch.backends.cudnn.benchmark,
        "convolutions": torch.backends.cudnn.allow_tf32,
        "products": torch.backends.cuda.matmul.allow_tf32,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    }


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)


# PyTorch documents all but "highest" as TF32 for products; Detectron2 adds convolutions.
@pytest.mark.parametrize("precision, tf32", [("highest", False), ("high", True), ("medium", True)])
def test_the_precision_of_float32(precision, tf32):
    before = settings()
    assert (before["products"], before["convolutions"]) == (False, True)  # PyTorch's defaults
    with numerics(float32_precision=precision):
        assert settings() == before | {"products": tf32, "convolutions": tf32}
    assert settings() == before
    with numerics():
        assert settings() == before


def test_a_program_may_use_pytorchs_newer_settings():
    """Then PyTorch refuses to read the older ones."""
    convolutions = getattr(torch.backends.cudnn, "conv", None)
    if not hasattr(convolutions, "fp32_precision"):
        pytest.skip("this version of PyTorch has only the older settings")
    before = convolutions.fp32_precision
    convolutions.fp32_precision = "ieee"
    try:
        with pytest.raises(RuntimeError):
            settings()
        with numerics(deterministic=True):
            assert torch.are_deterministic_algorithms_enabled()
        assert convolutions.fp32_precision == "ieee"
    finally:
        convolutions.fp32_precision = before


@pytest.mark.detectron2
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_the_precision_is_detectron2s(precision):
    from detectron2.engine.defaults import _set_float32_precision

    with numerics(float32_precision="highest"):  # restores what Detectron2 leaves
        _set_float32_precision(precision)
        theirs = settings()
    with numerics(float32_precision=precision):
        assert settings() == theirs


def test_deterministic_mode_ends_with_the_run():
    """In this mode PyTorch refuses put_, which has no deterministic kernel, also on a CPU."""
    x, index = torch.zeros(3), torch.zeros(1, dtype=torch.int64)
    before = settings()
    refused = pytest.raises(RuntimeError, match="does not have a deterministic")
    with refused, numerics(deterministic=True, benchmark=True):
        now = {"deterministic": True, "benchmark": True, "workspace": ":4096:8"}
        assert settings() == before | now
        x.put_(index, torch.ones(1))
    assert settings() == before
    x.put_(index, torch.ones(1))


def test_the_settings_of_the_caller_stay(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with numerics(deterministic=True):
            assert settings()["workspace"] == ":16:8"
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        with numerics():
            assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_wrong_precision_is_refused():
    with (
        pytest.raises(ValueError, match="FLOAT32_PRECISION: 'tf32': give one of"),
        numerics(float32_precision="tf32"),
    ):
        pass
