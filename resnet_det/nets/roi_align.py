"""Region pooling in float32, and a RoIAlign that computes only every ``step``-th bin of its
grid."""

from collections.abc import Callable
from itertools import groupby
from typing import Any, NamedTuple

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


class _Bins(NamedTuple):
    """The bins of regions along an axis.

    Attributes:
        first: start of each bin (R, N), in cells.
        length: length of a region's bins (R, 1), in cells.
        samples: samples per bin (R, 1).
    """

    first: Tensor
    length: Tensor
    samples: Tensor


def _bins(start: Tensor, size: Tensor, bins: int, step: int, sampling_ratio: int) -> _Bins:
    """Every ``step``-th of the ``bins`` of regions (R,), with torchvision's number of samples.

    A bin has ``sampling_ratio`` samples, or ``ceil(size / bins)`` if that is 0 (none for an empty
    region).
    """
    samples = torch.ceil(size / bins) if sampling_ratio <= 0 else size.new_full((), sampling_ratio)
    samples = samples.expand_as(size).clamp(min=0)[:, None]
    first = start[:, None] + torch.arange(0, bins, step, device=size.device) * size[:, None] / bins
    return _Bins(first, size[:, None] / bins, samples)


def _bin_weights(bins: _Bins, most: int, cells: int) -> Tensor:
    """The weight of each cell along an axis in each bin, as in torchvision's operator.

    A sample more than one cell outside the map is zero; one closer to the border takes the value at
    the border.

    Args:
        most: the maximum of ``bins.samples``.
        cells: number of cells.

    Returns:
        (R, N, cells).
    """
    first, length, samples = bins
    weights = first.new_zeros(*first.shape, cells)
    for s in range(most):
        at = first + (s + 0.5) / samples * length
        share = ((s < samples) & (at >= -1) & (at <= cells)) / samples
        share = torch.where(s < samples, share, 0)  # 0 / 0 if a region has no samples
        at = torch.where(s < samples, at, 0).clamp(0, cells - 1)
        low = at.floor()
        high_share = share * (at - low)
        low = low.long()[..., None]
        weights.scatter_add_(2, low, (share - high_share)[..., None])
        weights.scatter_add_(2, (low + 1).clamp(max=cells - 1), high_share[..., None])
    return weights


def _exported_bin_weights(bins: _Bins, cells: int) -> Tensor:
    """:func:`_bin_weights` without a loop over the samples, whose number depends on the data."""
    first, length, samples = bins.first[..., None], bins.length[..., None], bins.samples[..., None]
    most = torch.cat((samples.flatten(), samples.new_ones(1))).max()  # there may be no region
    s = torch.arange(most.long().item(), device=first.device)  # type: ignore[arg-type]
    at = first + (s + 0.5) / samples.clamp(min=1) * length
    share = ((s < samples) & (at >= -1) & (at <= cells)) / samples.clamp(min=1)
    distance = at.clamp(0, cells - 1)[..., None] - torch.arange(cells, device=first.device)
    return (share[..., None] * (1 - distance.abs()).clamp(min=0)).sum(2)


def strided_roi_align(
    x: Tensor,
    rois: Tensor,
    size: int,
    scale: float,
    sampling_ratio: int,
    aligned: bool,
    step: int,
    chunk: int | None = None,
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
        chunk: maximum number of elements of the intermediate product, to limit the memory; None
            chooses 2**28 on a GPU, where small products leave most of it idle, and 2**23 elsewhere.

    Returns:
        (R, C, ceil(size / step), ceil(size / step)) in the type of ``x``, in channels-last format.
    """
    channels, height, width = x.shape[1:]
    with torch.autocast(x.device.type, enabled=False):
        exact = torch.promote_types(x.dtype, torch.float32)
        maps, rois = x.to(exact).permute(0, 2, 3, 1).contiguous(), rois.detach().to(exact)
        corners = rois[:, 1:] * scale - (0.5 if aligned else 0)
        start, sides = corners[:, :2], corners[:, 2:] - corners[:, :2]
        if not aligned:
            sides = sides.clamp(min=1)
        across, down = (
            _bins(start[:, i], sides[:, i], size, step, sampling_ratio) for i in range(2)
        )
        bins = down.first.shape[1]
        if torch.compiler.is_compiling() and len(maps) == 1:
            # An export cannot loop over regions, whose number depends on the data.
            columns = _exported_bin_weights(across, width)
            rows = _exported_bin_weights(down, height)
            parts = [
                columns[:, None] @ (rows @ part.flatten(1)).view(-1, bins, width, part.shape[2])
                for part in maps[0].split(128, 2)
            ]
            return torch.cat(parts, 3).to(x.dtype).permute(0, 3, 1, 2)
        if not len(rois):
            return x.new_zeros(0, channels, bins, bins) + 0 * x.sum()
        # All numbers that the host needs come in one transfer, because a GPU runs idle meanwhile.
        needed = [rois[:, 0], across.samples.max()[None], down.samples.max()[None]]
        *image_of, most_across, most_down = map(int, torch.cat(needed).tolist())
        columns = _bin_weights(across, most_across, width)
        rows = _bin_weights(down, most_down, height)
        if chunk is None:
            chunk = 2**28 if x.is_cuda else 2**23
        max_regions = max(1, chunk // (bins * width * channels))
        flat = [image.flatten(1) for image in maps.unbind(0)]
        parts, first = [], 0
        for image, regions in groupby(image_of):
            # A chunk holds consecutive regions of one image.
            end = first + len(list(regions))
            while first < end:
                last = min(first + max_regions, end)
                y = rows[first:last].flatten(0, 1) @ flat[image]
                y = y.view(last - first, bins, width, channels)
                parts.append(columns[first:last, None] @ y)
                first = last
        return torch.cat(parts).to(x.dtype).permute(0, 3, 1, 2)
