"""PyTorch's global settings that change numbers: TF32, deterministic kernels, cuDNN's benchmark."""

import contextlib
import os
from collections.abc import Iterator

import torch

PRECISIONS = ("", "highest", "high", "medium")
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextlib.contextmanager
def numerics(
    *, benchmark: bool = False, float32_precision: str = "", deterministic: bool = False
) -> Iterator[None]:
    """Set how PyTorch computes, and restore the earlier settings on exit.

    Args:
        benchmark: let cuDNN time its algorithms and choose the fastest.
        float32_precision: "highest", "high" or "medium", as in Detectron2: on a GPU, all but
            "highest" allow TF32 in matrix products and convolutions. "" keeps PyTorch's setting,
            by default TF32 in convolutions only.
        deterministic: use deterministic kernels. An operation that has none raises RuntimeError.

    Raises:
        ValueError: ``float32_precision`` is none of these.
    """
    if float32_precision not in PRECISIONS:
        raise ValueError(
            f"FLOAT32_PRECISION: {float32_precision!r}: give one of {', '.join(map(repr, PRECISIONS))}"
        )
    cudnn = torch.backends.cudnn
    tf32 = torch.cuda.is_available() and float32_precision != ""
    before = cudnn.benchmark, os.environ.get(WORKSPACE)
    strict = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    if tf32:  # reading these fails where a program has set PyTorch's newer fp32_precision
        precision = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    try:
        cudnn.benchmark = benchmark
        if tf32:
            torch.set_float32_matmul_precision(float32_precision)
            cudnn.allow_tf32 = float32_precision != "highest"
        if deterministic:
            # cuBLAS reads this at its first product, and is deterministic only with fixed buffers.
            os.environ.setdefault(WORKSPACE, ":4096:8")
            torch.use_deterministic_algorithms(True)
        yield
    finally:
        cudnn.benchmark, workspace = before
        if workspace is None:
            os.environ.pop(WORKSPACE, None)
        torch.use_deterministic_algorithms(strict, warn_only=warn_only)
        if tf32:
            torch.set_float32_matmul_precision(precision[0])
            cudnn.allow_tf32 = precision[1]
