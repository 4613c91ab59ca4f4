"""Normalized cross-correlation of templates with larger regions, in `keras.ops`.

Templates are compared at few shifts each, so the sums run over the shifts directly, written as products
of matrices: some rows of a region times a band matrix of some rows of the template give all shifts along
x, and sums along diagonals those along y. On a CPU that takes a sixth of the time of a depthwise
convolution, and a tenth or less of Fourier transforms. Where pixels are hidden on either side, all sums
run over the pixels that both show.

Source: J. P. Lewis, Fast normalized cross-correlation (1995); D. Padfield, Masked object registration in
the Fourier domain (2012).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FLAT = 1e-4
"""Mean square of the mean-free tensor below which a picture counts as flat: NCC is 0 then."""
LEAST_SHARED = 0.25
"""Share of a template's visible pixels that must meet visible ground; NCC is 0 below it."""
STEPS = 2.0**17
"""NCC is given in so many steps between 0 and 1, a power of two: no arithmetic rounds them again."""
ROWS, ROWS_OF_ONE = 8, 2
"""Rows of a template that are multiplied at a time: more waste sums, fewer make small matrices. Of a template
with one region alone, whose band matrix serves no other, fewer are better."""


def ncc(template: Any, region: Any, weight: Any = None, known: Any = None) -> Any:
    """Normalized cross-correlation of templates with larger regions, at every whole shift.

    Each channel's mean is taken out, in the template and in the part of the region under it, so that
    the result is unchanged by an offset for each channel and by a common gain: +1 for a copy, -1 for
    its negative. Where either is flat the result is 0, never NaN.

    Args:
        template: (n, h, w, c).
        region: (n, H, W, c), H >= h and W >= w; or (n, k, H, W, c), k of them for each template.
        weight: None, or (n, h, w, 1) in {0, 1}: the template's pixels that count.
        known: None, or in {0, 1}: the region's; as the region, with one channel.

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


def ncc_of(template: Any, region: Any, spread: Any) -> Any:
    """NCC where everything is visible and the regions' energies are known.

    Args:
        template: (n, h, w, c).
        region: (n, k, H, W, c).
        spread: (n, k, H - h + 1, W - w + 1) sum of squares of the mean-free region under the template.

    Returns:
        As `ncc`.
    """
    from keras import ops

    count = float(template.shape[1] * template.shape[2])
    zero_mean = template - ops.mean(template, axis=(1, 2), keepdims=True)
    energy = ops.sum(zero_mean * zero_mean, axis=(1, 2, 3))[:, None, None, None]
    return _ratio(correlate(zero_mean, region), energy, spread, count)


def _masked(template: Any, region: Any, weight: Any, known: Any) -> Any:
    """NCC over the pixels that both sides show, at each shift those."""
    from keras import ops

    template, region = _centred(template, weight), _centred(region, known)
    crop_windows = [ops.sum(x * x, -1, keepdims=True) for x in (template, region)]
    # What the region's mask cuts out of the template, and the template's of the region.
    of_template = _each(ops.concatenate([template, crop_windows[0], weight], -1), known)
    of_region = _each(weight, ops.concatenate([region, crop_windows[1]], -1))
    c = template.shape[-1]
    count = ops.maximum(of_template[..., c + 1], 1.0)
    mean = ops.sum(of_template[..., :c] * of_region[..., :c], -1) / count
    energy = of_template[..., c] - ops.sum(of_template[..., :c] ** 2, -1) / count
    spread = of_region[..., c] - ops.sum(of_region[..., :c] ** 2, -1) / count
    ratio = _ratio(correlate(template, region) - mean, energy, spread, count)
    least = LEAST_SHARED * ops.sum(weight, axis=(1, 2, 3))[:, None, None, None]
    return ops.where(count >= ops.maximum(least, 2.0), ratio, 0.0)


def _each(template: Any, region: Any) -> Any:
    """Correlation of each channel of one with the only channel of the other: (n, k, p, q, channels)."""
    from keras import ops

    sums = [
        correlate(template[..., i : i + 1], region[..., j : j + 1])
        for i in range(template.shape[-1])
        for j in range(region.shape[-1])
    ]
    return ops.stack(sums, -1)


def _centred(x: Any, weight: Any) -> Any:
    """Without the mean of the visible pixels, 0 at the hidden ones: keeps sums small."""
    from keras import ops

    x = ops.where(weight > 0, x, 0.0)
    count = ops.maximum(ops.sum(weight, axis=(-3, -2), keepdims=True), 1.0)
    return (x - ops.sum(x, axis=(-3, -2), keepdims=True) / count) * weight


def _ratio(product: Any, energy: Any, spread: Any, count: Any) -> Any:
    """The quotient, 0 where either side is flat."""
    from keras import ops

    least = FLAT * count
    seen = ops.logical_and(energy > least, spread > least)
    scale = ops.rsqrt(ops.maximum(energy, least)) * ops.rsqrt(ops.maximum(spread, least))
    # Rounded: the last bits depend on the place in a batch, and copies of one picture shall tie.
    ratio = ops.round(ops.clip(product * scale, -1.0, 1.0) * STEPS) / STEPS
    return ops.where(seen, ratio, 0.0)


def correlate(template: Any, region: Any) -> Any:
    """Valid cross-correlation of each template with its regions, summed over the channels.

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
    some = ROWS if k > 1 else ROWS_OF_ONE
    blocks = -(-h // some)
    high, missing = some + p - 1, blocks * some - h
    template = ops.pad(template, ((0, 0), (0, missing), (0, 0), (0, 0)))
    moved = [ops.pad(template, ((0, 0), (0, 0), (d, q - 1 - d), (0, 0))) for d in range(q)]
    band = ops.reshape(ops.stack(moved, -1), (n, blocks, some, width * c, q))
    band = ops.reshape(ops.transpose(band, (0, 1, 3, 2, 4)), (n, blocks, width * c, some * q))
    region = ops.pad(region, ((0, 0), (0, 0), (0, missing), (0, 0), (0, 0)))
    starts = range(0, blocks * some, some)
    rows = [ops.reshape(region[:, :, y : y + high], (n, k * high, width * c)) for y in starts]
    # Every row of a region with every row of the template: (region's row, template's row, dx) flattened.
    every = ops.reshape(ops.matmul(ops.stack(rows, 1), band), (n * blocks * k, high * some * q))
    every = ops.pad(every, ((0, 0), (0, some * q)))
    sums = [
        # From one pair on the diagonal to the next: a row further in both.
        ops.sum(
            ops.reshape(every[:, d * some * q : (d + some + 1) * some * q], (-1, some, (some + 1) * q))[
                ..., :q
            ],
            axis=1,
        )
        for d in range(p)
    ]
    return ops.sum(ops.reshape(ops.stack(sums, 1), (n, blocks, k, p, q)), 1)


def _box(x: Any, h: int, w: int) -> Any:
    """Sums over every h x w box of (n, k, H, W, c): two products with banded matrices of ones.

    On two cores a third of the time of running sums, and nothing large is subtracted from anything large.
    """
    from keras import ops

    rows, cols = (
        ops.convert_to_tensor(_band(length, box)) for length, box in ((x.shape[2], h), (x.shape[3], w))
    )
    return ops.einsum("ph,nkhwc,qw->nkpqc", rows, x, cols)


def _band(length: int, box: int) -> NDArray[np.float32]:
    """(length - box + 1, length): row i is 1 from i to i + box - 1."""
    start, at = np.arange(length - box + 1)[:, None], np.arange(length)
    return ((at >= start) & (at < start + box)).astype(np.float32)
