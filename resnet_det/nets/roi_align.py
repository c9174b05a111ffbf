"""Region pooling in float32, and a RoIAlign that computes only every ``step``-th bin of its
grid."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def pool_exactly(pool: Callable[..., Tensor], x: Tensor, rois: Tensor, *args: Any) -> Tensor:
    """Run ``pool(x, rois, *args)`` in float32 or wider. Returns the result in the type of ``x``.

    In bfloat16, a corner at 1,300 pixels moves by up to 4 pixels, so under mixed precision the
    regions must not have the type of the maps. torchvision's operators need the same type for both,
    and some of them do not support bfloat16.

    Args:
        pool: a region pooling function, such as ``torchvision.ops.roi_pool``.
        x: maps (N, C, H, W).
        rois: regions (R, 5), rows of (image index, x1, y1, x2, y2), in float32.
    """
    exact = torch.promote_types(x.dtype, torch.float32)
    return pool(x.to(exact), rois.to(exact), *args).to(x.dtype)


def _bin_weights(
    start: Tensor, size: Tensor, bins: int, step: int, sampling_ratio: int, length: int
) -> Tensor:
    """The weight of each cell along an axis in each bin, as in torchvision's operator.

    A bin has ``sampling_ratio`` samples, or ``ceil(size / bins)`` if that is 0 (none for an empty
    region). A sample more than one cell outside the map is zero; one closer to the border takes the
    value at the border.

    Args:
        start, size: start and size of the regions along the axis, in cells (R,).
        bins: number of bins of a region, of which every ``step``-th is computed.
        length: number of cells.

    Returns:
        (R, ceil(bins / step), length).
    """
    samples = torch.ceil(size / bins) if sampling_ratio <= 0 else size.new_full((), sampling_ratio)
    samples = samples.expand_as(size).clamp(min=0)[:, None]
    first = start[:, None] + torch.arange(0, bins, step, device=size.device) * size[:, None] / bins
    if torch.compiler.is_compiling():
        return _exported_bin_weights(first, size / bins, samples, length)
    weights = size.new_zeros(*first.shape, length)
    for s in range(int(samples.max()) if len(samples) else 0):
        at = first + (s + 0.5) / samples * (size[:, None] / bins)
        share = ((s < samples) & (at >= -1) & (at <= length)) / samples
        share = torch.where(s < samples, share, 0)  # 0 / 0 if a region has no samples
        at = torch.where(s < samples, at, 0).clamp(0, length - 1)
        low = at.floor()
        high_share = share * (at - low)
        low = low.long()[..., None]
        weights.scatter_add_(2, low, (share - high_share)[..., None])
        weights.scatter_add_(2, (low + 1).clamp(max=length - 1), high_share[..., None])
    return weights


def _exported_bin_weights(first: Tensor, bin: Tensor, samples: Tensor, length: int) -> Tensor:
    """:func:`_bin_weights` without a loop over the samples, whose number depends on the data.

    Args:
        first: start of each bin (R, N), in cells.
        bin: length of a region's bins (R,).
        samples: samples per bin (R, 1).
    """
    most = torch.cat((samples.flatten(), samples.new_ones(1))).max()  # there may be no region
    s = torch.arange(most.long().item(), device=first.device)  # type: ignore[arg-type]
    bin, samples = bin[:, None, None], samples[..., None]
    at = first[..., None] + (s + 0.5) / samples.clamp(min=1) * bin
    share = ((s < samples) & (at >= -1) & (at <= length)) / samples.clamp(min=1)
    distance = at.clamp(0, length - 1)[..., None] - torch.arange(length, device=first.device)
    return (share[..., None] * (1 - distance.abs()).clamp(min=0)).sum(2)


def strided_roi_align(
    x: Tensor,
    rois: Tensor,
    size: int,
    scale: float,
    sampling_ratio: int,
    aligned: bool,
    step: int,
    chunk: int = 2**23,
) -> Tensor:
    """Compute ``torchvision.ops.roi_align(...)[:, :, ::step, ::step]`` without the other bins.

    Bilinear sampling and the mean over a bin are separable. Each region is therefore computed by
    two matrix products, one with its row weights and one with its column weights.

    Args:
        x: maps (N, C, H, W).
        rois: regions (R, 5), rows of (image index, x1, y1, x2, y2) in pixels of the image, in
            float32 for any type of ``x``.
        size: bins per side of a region before subsampling.
        scale: cells per pixel.
        sampling_ratio: samples per bin and axis; 0 adapts to the region.
        aligned: shift pixels by half a cell, as in ROIAlignV2.
        step: compute the bins 0, step, 2 step, ...
        chunk: maximum number of elements of the intermediate product, to limit the memory.

    Returns:
        (R, C, ceil(size / step), ceil(size / step)) in the type of ``x``, in channels-last format.
    """
    height, width = x.shape[2:]
    with torch.autocast(x.device.type, enabled=False):
        exact = torch.promote_types(x.dtype, torch.float32)
        maps, rois = x.to(exact).permute(0, 2, 3, 1).contiguous(), rois.detach().to(exact)
        corners = rois[:, 1:] * scale - (0.5 if aligned else 0)
        start, sides = corners[:, :2], corners[:, 2:] - corners[:, :2]
        if not aligned:
            sides = sides.clamp(min=1)
        columns, rows = (
            _bin_weights(start[:, i], sides[:, i], size, step, sampling_ratio, length)
            for i, length in enumerate((width, height))
        )
        bins, channels = rows.shape[1], x.shape[1]
        if torch.compiler.is_compiling() and x.shape[0] == 1:
            # An export cannot loop over regions, whose number depends on the data.
            parts = [
                columns[:, None] @ (rows @ part.flatten(1)).view(-1, bins, width, part.shape[2])
                for part in maps[0].split(128, 2)
            ]
            return torch.cat(parts, 3).to(x.dtype).permute(0, 3, 1, 2)
        if not len(rois):
            return x.new_zeros(0, channels, bins, bins) + 0 * x.sum()
        images, counts = torch.unique_consecutive(rois[:, 0].long(), return_counts=True)
        image_of = images.repeat_interleave(counts).tolist()
        max_regions = max(1, chunk // (bins * width * channels))
        parts, first = [], 0
        while first < len(image_of):
            # A chunk holds consecutive regions of one image.
            image, last = image_of[first], first + 1
            while last < len(image_of) and last - first < max_regions and image_of[last] == image:
                last += 1
            y = rows[first:last].flatten(0, 1) @ maps[image].flatten(1)
            y = y.view(last - first, bins, width, channels)
            parts.append(columns[first:last, None] @ y)
            first = last
        return torch.cat(parts).to(x.dtype).permute(0, 3, 1, 2)
