"""Region pooling in float32, and RoIAlign at every ``step``-th bin of its grid."""

import torch


def pool_exactly(pool, x, rois, *args):
    """``pool(x, rois, *args)`` in float32 at least, returned in the type of ``x``.

    A corner at 1,300 pixels moves by up to 4 in bfloat16, so regions must not take the type of the
    maps under mixed precision. torchvision's operators want one type for both, and some of them
    have no bfloat16 at all.

    Args:
        pool: a region pooling, such as ``torchvision.ops.roi_pool``.
        x: (N, C, H, W).
        rois: (R, 5): image, x1, y1, x2, y2, in float32.
    """
    exact = torch.promote_types(x.dtype, torch.float32)
    return pool(x.to(exact), rois.to(exact), *args).to(x.dtype)


def _bin_weights(start, size, bins, step, sampling_ratio, length):
    """What each cell of an axis weighs in each bin: (R, ceil(bins / step), length).

    ``start`` and ``size`` (R,) are the regions' in cells. Rules as in torchvision's operator:
    ``ceil(size / bins)`` samples a bin (none in an empty region) where ``sampling_ratio`` is 0;
    a sample more than a cell outside of the map is zero, one on the rim takes the rim's value.
    """
    samples = torch.ceil(size / bins) if sampling_ratio <= 0 else size.new_full((), sampling_ratio)
    samples = samples.expand_as(size).clamp(min=0)[:, None]
    first = start[:, None] + torch.arange(0, bins, step, device=size.device) * size[:, None] / bins
    weights = size.new_zeros(*first.shape, length)
    for s in range(int(samples.max()) if len(samples) else 0):
        at = first + (s + 0.5) / samples * (size[:, None] / bins)
        share = ((s < samples) & (at >= -1) & (at <= length)) / samples
        share = torch.where(s < samples, share, 0)  # no sample at all: 0 / 0
        at = torch.where(s < samples, at, 0).clamp(0, length - 1)
        low = at.floor()
        high_share = share * (at - low)
        low = low.long()[..., None]
        weights.scatter_add_(2, low, (share - high_share)[..., None])
        weights.scatter_add_(2, (low + 1).clamp(max=length - 1), high_share[..., None])
    return weights


def strided_roi_align(x, rois, size, scale, sampling_ratio, aligned, step, chunk=2**23):
    """``torchvision.ops.roi_align(...)[:, :, ::step, ::step]``, computing no other bin.

    Bilinear sampling and the mean over a bin are separable, so the result is two matrix products
    with each region's weights of rows and of columns.

    Args:
        x: (N, C, H, W).
        rois: (R, 5): image, x1, y1, x2, y2, in float32 whatever the type of ``x``.
        size, scale, sampling_ratio, aligned: as the operator's.
        step: take the bins 0, step, 2 step...
        chunk: numbers that a step of the computation may hold between the two products.

    Returns:
        (R, C, ceil(size / step), ceil(size / step)) in the memory format channels last.
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
        if not len(rois):
            return x.new_zeros(0, channels, bins, bins) + 0 * x.sum()
        images, counts = torch.unique_consecutive(rois[:, 0].long(), return_counts=True)
        images = images.repeat_interleave(counts).tolist()
        most = max(1, chunk // (bins * width * channels))
        parts, first = [], 0
        while first < len(images):
            last = first + 1
            while last < len(images) and last - first < most and images[last] == images[first]:
                last += 1
            y = rows[first:last].flatten(0, 1) @ maps[images[first]].flatten(1)
            y = y.view(last - first, bins, width, channels)
            parts.append(columns[first:last, None] @ y)
            first = last
        return torch.cat(parts).to(x.dtype).permute(0, 3, 1, 2)
