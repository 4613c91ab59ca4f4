"""Normalized cross-correlation of templates with larger regions, in `keras.ops`.

Strategy. Each template is compared at few shifts, so the sums run over the shifts directly, as matrix
products. Rows of a region times a band matrix of rows of the template give all shifts along x. Sums along
diagonals give all shifts along y. On a CPU that takes a sixth of the time of a depthwise convolution, and at
most a tenth of Fourier transforms. Where pixels are hidden, all sums run over the pixels visible in both.

Source: J. P. Lewis, Fast normalized cross-correlation (1995); D. Padfield, Masked object registration in
the Fourier domain (2012).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FLAT = 1e-4
"""Mean square of the zero-mean tensor below which a picture counts as flat, with an NCC of 0."""
MIN_OVERLAP = 0.25
"""Share of a template's visible pixels that must meet visible pixels of the region; NCC is 0 below it."""
STEPS = 2.0**17
"""NCC is rounded to this many steps between 0 and 1. As a power of two it survives further arithmetic."""
ROWS, ROWS_SINGLE_REGION = 8, 2
"""Rows of a template that are multiplied at a time: more waste sums, fewer make small matrices. A template
with a single region, whose band matrix serves no other, takes fewer."""


def ncc(template: Any, region: Any, weight: Any = None, known: Any = None) -> Any:
    """Correlate templates with larger regions at every whole shift.

    The mean of each channel is removed, in the template and in the region under it. So an offset of each
    channel and a common gain change nothing: +1 for a copy, -1 for its negative. Where either is flat the
    result is 0, never NaN.

    Args:
        template: (n, h, w, c).
        region: (n, H, W, c), H >= h and W >= w; or (n, k, H, W, c), k of them for each template.
        weight: None, or (n, h, w, 1) in {0, 1}: visible pixels of the template.
        known: None, or in {0, 1}: visible pixels of the region, shaped as the region with one channel.

    Returns:
        (n, H - h + 1, W - w + 1) or (n, k, H - h + 1, W - w + 1) float32 in [-1, 1]; [..., dy, dx] has the
        template's top-left pixel on the region's (dx, dy).
    """
    from keras import ops

    template, region = ops.convert_to_tensor(template), ops.convert_to_tensor(region)
    if len(region.shape) == 4:
        known = None if known is None else ops.convert_to_tensor(known)[:, None]
        return ncc(template, region[:, None], weight, known)[:, 0]
    if weight is None and known is None:
        h, w = template.shape[1:3]
        region = region - ops.mean(region, axis=(2, 3), keepdims=True)  # keeps sums small: float32
        square = _box(ops.sum(region * region, -1, keepdims=True), h, w)[..., 0]
        return ncc_of(template, region, square - ops.sum(_box(region, h, w) ** 2, -1) / float(h * w))
    weight = ops.ones_like(template[..., :1]) if weight is None else ops.convert_to_tensor(weight)
    known = ops.ones_like(region[..., :1]) if known is None else ops.convert_to_tensor(known)
    return _masked(template, region, weight, known)


def ncc_of(template: Any, region: Any, energy: Any) -> Any:
    """Correlate fully visible templates with regions whose local energy is known.

    Args:
        template: (n, h, w, c).
        region: (n, k, H, W, c).
        energy: (n, k, H - h + 1, W - w + 1) sum of squares of the zero-mean region under the template.

    Returns:
        As `ncc`.
    """
    from keras import ops

    count = float(template.shape[1] * template.shape[2])
    zero_mean = template - ops.mean(template, axis=(1, 2), keepdims=True)
    own_energy = ops.sum(zero_mean * zero_mean, axis=(1, 2, 3))[:, None, None, None]
    return _ratio(correlate(zero_mean, region), own_energy, energy, count)


def _masked(template: Any, region: Any, weight: Any, known: Any) -> Any:
    """NCC over the pixels that are visible in both, at each shift."""
    from keras import ops

    template, region = _remove_mean(template, weight), _remove_mean(region, known)
    squares = [ops.sum(x * x, -1, keepdims=True) for x in (template, region)]
    # Sums over the template under the region's mask, and over the region under the template's mask.
    of_template = _correlate_channels(ops.concatenate([template, squares[0], weight], -1), known)
    of_region = _correlate_channels(weight, ops.concatenate([region, squares[1]], -1))
    c = template.shape[-1]
    count = ops.maximum(of_template[..., c + 1], 1.0)
    mean = ops.sum(of_template[..., :c] * of_region[..., :c], -1) / count
    energy = of_template[..., c] - ops.sum(of_template[..., :c] ** 2, -1) / count
    region_energy = of_region[..., c] - ops.sum(of_region[..., :c] ** 2, -1) / count
    ratio = _ratio(correlate(template, region) - mean, energy, region_energy, count)
    least = MIN_OVERLAP * ops.sum(weight, axis=(1, 2, 3))[:, None, None, None]
    return ops.where(count >= ops.maximum(least, 2.0), ratio, 0.0)


def _correlate_channels(template: Any, region: Any) -> Any:
    """Correlate each channel of one side with the single channel of the other: (n, k, p, q, channels)."""
    from keras import ops

    sums = [
        correlate(template[..., i : i + 1], region[..., j : j + 1])
        for i in range(template.shape[-1])
        for j in range(region.shape[-1])
    ]
    return ops.stack(sums, -1)


def _remove_mean(x: Any, weight: Any) -> Any:
    """Remove the mean of the visible pixels and set hidden ones to 0: keeps sums small."""
    from keras import ops

    x = ops.where(weight > 0, x, 0.0)
    count = ops.maximum(ops.sum(weight, axis=(-3, -2), keepdims=True), 1.0)
    return (x - ops.sum(x, axis=(-3, -2), keepdims=True) / count) * weight


def _ratio(product: Any, energy: Any, region_energy: Any, count: Any) -> Any:
    """Normalize a product; 0 where either side is flat."""
    from keras import ops

    least = FLAT * count
    textured = ops.logical_and(energy > least, region_energy > least)
    scale = ops.rsqrt(ops.maximum(energy, least)) * ops.rsqrt(ops.maximum(region_energy, least))
    # Rounded: the last bits depend on the place in a batch, but copies of one picture must tie.
    ratio = ops.round(ops.clip(product * scale, -1.0, 1.0) * STEPS) / STEPS
    return ops.where(textured, ratio, 0.0)


def correlate(template: Any, region: Any) -> Any:
    """Cross-correlate each template with its regions, summed over the channels, at every whole shift.

    Args:
        template: (n, h, w, c).
        region: (n, k, H, W, c).

    Returns:
        (n, k, H - h + 1, W - w + 1).
    """
    from keras import ops

    n, h, w, c = template.shape
    k, height, width = region.shape[1:4]
    p, q = height - h + 1, width - w + 1
    block = ROWS if k > 1 else ROWS_SINGLE_REGION
    blocks = -(-h // block)
    high, missing = block + p - 1, blocks * block - h
    template = ops.pad(template, ((0, 0), (0, missing), (0, 0), (0, 0)))
    shifted = [ops.pad(template, ((0, 0), (0, 0), (d, q - 1 - d), (0, 0))) for d in range(q)]
    band = ops.reshape(ops.stack(shifted, -1), (n, blocks, block, width * c, q))
    band = ops.reshape(ops.transpose(band, (0, 1, 3, 2, 4)), (n, blocks, width * c, block * q))
    region = ops.pad(region, ((0, 0), (0, 0), (0, missing), (0, 0), (0, 0)))
    starts = range(0, blocks * block, block)
    rows = [ops.reshape(region[:, :, y : y + high], (n, k * high, width * c)) for y in starts]
    # Each row of a region with each row of the template: (region row, template row, dx), flattened.
    products = ops.reshape(ops.matmul(ops.stack(rows, 1), band), (n * blocks * k, high * block * q))
    products = ops.pad(products, ((0, 0), (0, block * q)))
    sums = []
    for d in range(p):
        # Along the diagonal: one row further in both.
        part = products[:, d * block * q : (d + block + 1) * block * q]
        diagonal = ops.reshape(part, (-1, block, (block + 1) * q))[..., :q]
        sums.append(ops.sum(diagonal, axis=1))
    return ops.sum(ops.reshape(ops.stack(sums, 1), (n, blocks, k, p, q)), 1)


def _box(x: Any, h: int, w: int) -> Any:
    """Sum every h x w box of (n, k, H, W, c): two products with banded matrices of ones.

    On two cores this takes a third of the time of running sums. No large numbers are subtracted.
    """
    from keras import ops

    rows, cols = (
        ops.convert_to_tensor(_band(length, box)) for length, box in ((x.shape[2], h), (x.shape[3], w))
    )
    return ops.einsum("ph,nkhwc,qw->nkpqc", rows, x, cols)


def _band(length: int, box: int) -> NDArray[np.float32]:
    """Matrix (length - box + 1, length) whose row i is 1 from i to i + box - 1."""
    start, at = np.arange(length - box + 1)[:, None], np.arange(length)
    return ((at >= start) & (at < start + box)).astype(np.float32)
