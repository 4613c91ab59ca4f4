"""Normalized cross-correlation of many templates, in `keras.ops`.

Templates are compared at few shifts each, so the sums run over the shifts directly, as a depthwise
convolution whose channels are those of all pairs: on a CPU a third to a tenth of the time of Fourier
transforms. Where pixels are hidden on either side, all sums run over the pixels that both show.

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


def ncc(template: Any, region: Any, weight: Any = None, known: Any = None) -> Any:
    """Normalized cross-correlation of templates with larger regions, at every whole shift.

    Each channel's mean is taken out, in the template and in the part of the region under it, so that
    the result is unchanged by an offset for each channel and by a common gain: +1 for a copy, -1 for
    its negative. Where either is flat the result is 0, never NaN.

    Args:
        template: (n, h, w, c).
        region: (n, H, W, c), H >= h and W >= w.
        weight: None, or (n, h, w, 1) in {0, 1}: the template's pixels that count.
        known: None, or (n, H, W, 1) in {0, 1}: the region's.

    Returns:
        (n, H - h + 1, W - w + 1) float32 in [-1, 1]; [i, dy, dx] has the template's top-left pixel on
        the region's (dx, dy).
    """
    from keras import ops

    template, region = ops.convert_to_tensor(template), ops.convert_to_tensor(region)
    if weight is None and known is None:
        return _whole(template, region)
    weight = ops.ones_like(template[..., :1]) if weight is None else ops.convert_to_tensor(weight)
    known = ops.ones_like(region[..., :1]) if known is None else ops.convert_to_tensor(known)
    return _masked(template, region, weight, known)


def _whole(template: Any, region: Any) -> Any:
    """NCC where everything is visible."""
    from keras import ops

    h, w = template.shape[1:3]
    count = float(h * w)
    centred = template - ops.mean(template, axis=(1, 2), keepdims=True)
    region = region - ops.mean(region, axis=(1, 2), keepdims=True)  # keeps sums small: float32
    square = _box(ops.sum(region * region, -1, keepdims=True), h, w)[..., 0]
    spread = square - ops.sum(_box(region, h, w) ** 2, -1) / count
    energy = ops.sum(centred * centred, axis=(1, 2, 3))[:, None, None]
    return _ratio(ops.sum(correlate_each(centred, region), -1), energy, spread, count)


def _masked(template: Any, region: Any, weight: Any, known: Any) -> Any:
    """NCC over the pixels that both sides show, at each shift those."""
    from keras import ops

    template = _centred(template, weight)
    region = _centred(region, known)
    c = template.shape[-1]
    squares = [ops.sum(x * x, -1, keepdims=True) for x in (template, region)]
    ones, shown = ops.repeat(weight, c, -1), ops.repeat(known, c, -1)
    left = ops.concatenate([template, template, ones, squares[0], weight, weight], -1)
    right = ops.concatenate([region, shown, region, known, squares[1], known], -1)
    sums = correlate_each(left, right)  # (n, p, q, 3 c + 3)
    both, of_template, of_region = (sums[..., i * c : (i + 1) * c] for i in range(3))
    energy, spread, count = (sums[..., 3 * c + i] for i in range(3))
    count = ops.maximum(count, 1.0)
    product = ops.sum(both, -1) - ops.sum(of_template * of_region, -1) / count
    energy = energy - ops.sum(of_template**2, -1) / count
    spread = spread - ops.sum(of_region**2, -1) / count
    least = LEAST_SHARED * ops.sum(weight, axis=(1, 2, 3))[:, None, None]
    return ops.where(count >= ops.maximum(least, 2.0), _ratio(product, energy, spread, count), 0.0)


def _centred(x: Any, weight: Any) -> Any:
    """Without the mean of the visible pixels, 0 at the hidden ones: keeps sums small."""
    from keras import ops

    x = ops.where(weight > 0, x, 0.0)
    count = ops.maximum(ops.sum(weight, axis=(1, 2), keepdims=True), 1.0)
    return (x - ops.sum(x, axis=(1, 2), keepdims=True) / count) * weight


def _ratio(product: Any, energy: Any, spread: Any, count: Any) -> Any:
    """The quotient, 0 where either side is flat."""
    from keras import ops

    least = FLAT * count
    seen = ops.logical_and(energy > least, spread > least)
    scale = ops.rsqrt(ops.maximum(energy, least)) * ops.rsqrt(ops.maximum(spread, least))
    return ops.where(seen, ops.clip(product * scale, -1.0, 1.0), 0.0)


def correlate_each(template: Any, region: Any) -> Any:
    """Valid cross-correlation, channel by channel.

    Args:
        template: (n, h, w, c).
        region: (n, H, W, c).

    Returns:
        (n, H - h + 1, W - w + 1, c).
    """
    from keras import ops

    n, h, w, c = template.shape
    height, width = region.shape[1:3]
    kernels = ops.reshape(ops.transpose(template, (1, 2, 0, 3)), (h, w, n * c, 1))
    pictures = ops.reshape(ops.transpose(region, (1, 2, 0, 3)), (1, height, width, n * c))
    sums = ops.depthwise_conv(pictures, kernels, padding="valid", data_format="channels_last")
    sums = ops.reshape(sums, (height - h + 1, width - w + 1, n, c))
    return ops.transpose(sums, (2, 0, 1, 3))


def _box(x: Any, h: int, w: int) -> Any:
    """Sums over every h x w box of (n, H, W, c): two products with banded matrices of ones.

    On two cores a third of the time of running sums, and nothing large is subtracted from anything large.
    """
    from keras import ops

    rows, cols = (
        ops.convert_to_tensor(_band(length, box)) for length, box in ((x.shape[1], h), (x.shape[2], w))
    )
    return ops.einsum("ph,nhwc,qw->npqc", rows, x, cols)


def _band(length: int, box: int) -> NDArray[np.float32]:
    """(length - box + 1, length): row i is 1 from i to i + box - 1."""
    start, at = np.arange(length - box + 1)[:, None], np.arange(length)
    return ((at >= start) & (at < start + box)).astype(np.float32)
