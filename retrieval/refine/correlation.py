"""Normalized cross-correlation of many templates, by FFT, in `keras.ops`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FLAT = 1e-4
"""Mean square of the mean-free tensor below which a picture counts as flat: NCC is 0 then."""


def ncc(template: Any, region: Any, weight: Any = None) -> Any:
    """Normalized cross-correlation of templates with larger regions, at every whole shift.

    Each channel's mean is taken out, in the template and in the part of the region under it, so that
    the result is unchanged by an offset for each channel and by a common gain: +1 for a copy, -1 for
    its negative. Where either is flat the result is 0, never NaN.

    Args:
        template: (n, h, w, c).
        region: (n, H, W, c), H >= h and W >= w.
        weight: None, or (n, h, w, 1) in {0, 1}: the template's pixels that count.

    Returns:
        (n, H - h + 1, W - w + 1) float32 in [-1, 1]; [i, dy, dx] has the template's top-left pixel on
        the region's (dx, dy).
    """
    from keras import ops

    template, region = ops.convert_to_tensor(template), ops.convert_to_tensor(region)
    h, w = template.shape[1:3]
    region = region - ops.mean(region, axis=(1, 2), keepdims=True)  # keeps sums small: float32
    if weight is None:
        count: Any = float(h * w)
        centred = template - ops.mean(template, axis=(1, 2), keepdims=True)
        square = _box(ops.sum(region * region, -1, keepdims=True), h, w)[..., 0]
        spread = square - ops.sum(_box(region, h, w) ** 2, -1) / count
    else:
        weight = ops.convert_to_tensor(weight)
        count = ops.maximum(ops.sum(weight, axis=(1, 2, 3), keepdims=True), 1.0)
        centred = (template - ops.sum(template * weight, axis=(1, 2), keepdims=True) / count) * weight
        count = count[..., 0]
        square = _correlate(weight, ops.sum(region * region, -1, keepdims=True))
        sums = [_correlate(weight, region[..., c : c + 1]) ** 2 for c in range(region.shape[-1])]
        spread = square - sum(sums[1:], sums[0]) / count
    energy = ops.sum(centred * centred, axis=(1, 2, 3))[:, None, None]
    seen = ops.logical_and(energy > FLAT * count, spread > FLAT * count)
    scale = ops.rsqrt(ops.maximum(energy, FLAT * count)) * ops.rsqrt(ops.maximum(spread, FLAT * count))
    return ops.where(seen, ops.clip(_correlate(centred, region) * scale, -1.0, 1.0), 0.0)


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


def _correlate(template: Any, region: Any) -> Any:
    """Sum over channels of the valid cross-correlation, (n, H - h + 1, W - w + 1), by FFT.

    Two real channels travel as one complex picture: the real part of `sum z_region conj(z_template)`
    is the sum of both correlations. The valid part never wraps, so the FFT is as large as the region.
    """
    from keras import ops

    h, w, channels = template.shape[1:]
    height, width = region.shape[1:3]
    rows, cols = _fft_size(height), _fft_size(width)
    total: Any = None
    for c in range(0, channels, 2):
        pair = slice(c, c + 2)
        a = _spectrum(template[..., pair], rows, cols)
        b = _spectrum(region[..., pair], rows, cols)
        # b * conj(a), as real and imaginary parts.
        product = b[0] * a[0] + b[1] * a[1], b[1] * a[0] - b[0] * a[1]
        total = product if total is None else (total[0] + product[0], total[1] + product[1])
    return ops.ifft2(total)[0][:, : height - h + 1, : width - w + 1]


def _spectrum(x: Any, rows: int, cols: int) -> tuple[Any, Any]:
    from keras import ops

    x = ops.pad(x, ((0, 0), (0, rows - x.shape[1]), (0, cols - x.shape[2]), (0, 0)))
    return ops.fft2((x[..., 0], x[..., 1] if x.shape[-1] == 2 else ops.zeros_like(x[..., 0])))


def _fft_size(n: int) -> int:
    """The next length whose only factors are 2, 3 and 5: fast on every backend."""
    while True:
        rest = n
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return n
        n += 1
