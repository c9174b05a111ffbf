"""Mixed precision, in the data type that is fast on the device."""

import logging

import torch

from . import distributed

logger = logging.getLogger(__name__)


def has_bfloat16(device: str | torch.device) -> bool:
    """Whether the hardware computes in bfloat16.

    A CPU without bfloat16 emulates it, many times slower than float32.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def amp_dtype(
    device: str | torch.device, key: str = "SOLVER.AMP.ENABLED", *, shared: bool = True
) -> torch.dtype:
    """The data type of mixed precision: bfloat16 if the hardware supports it, else float16 on a
    GPU.

    bfloat16 has the range of float32; float16 needs loss scaling. A CPU without bfloat16 computes
    in float32, with a warning.

    Args:
        key: the config key that enables mixed precision, for the warnings.
        shared: all processes call this, and use the type of the least capable device.
    """
    if has_bfloat16(device):
        own = torch.bfloat16
    else:
        own = torch.float16 if torch.device(device).type == "cuda" else torch.float32
    types = distributed.all_gather_objects(own) if shared else [own]
    agreed = next(t for t in (torch.float32, torch.float16, torch.bfloat16) if t in types)
    if agreed is not torch.bfloat16 and distributed.is_main():
        ranks = [rank for rank, dtype in enumerate(types) if dtype is agreed]
        if len(ranks) < len(types):
            logger.warning(
                "%s: every process uses %s, because the devices of processes %s do not support "
                "bfloat16", key, agreed, ranks,
            )  # fmt: skip
        elif agreed is torch.float32:
            logger.warning("%s: this CPU does not support bfloat16: using float32", key)
    return agreed


def mixed_precision(
    device: str | torch.device, key: str, enabled: bool, *, shared: bool = True
) -> torch.autocast:
    """A context in which operations run in the type of :func:`amp_dtype`, if ``enabled``.

    It can be entered many times.
    """
    dtype = amp_dtype(device, key, shared=shared) if enabled else torch.float32
    return torch.autocast(torch.device(device).type, dtype, enabled=dtype is not torch.float32)
