"""Mixed precision (``SOLVER.AMP``) in the type that a device is fast in."""

import logging

import torch

logger = logging.getLogger(__name__)


def has_bfloat16(device):
    """Whether the device computes in bfloat16 by its hardware.

    Where it does not, a CPU emulates the type many times slower than float32.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def amp_dtype(device):
    """The type of mixed precision: bfloat16 in hardware; else float16 on a GPU, float32 on a CPU.

    bfloat16 has float32's range; float16 needs its loss scaled. float32 comes with a warning.
    """
    if has_bfloat16(device):
        return torch.bfloat16
    if torch.device(device).type == "cuda":
        return torch.float16
    logger.warning("SOLVER.AMP.ENABLED: this CPU has no bfloat16: training in float32")
    return torch.float32
