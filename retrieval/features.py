"""What survives a season: the structure tensor of an image, merged over its bands.

The gradient of a field's edge keeps its direction when the crop turns from green to bare, while its
sign and size change; clouds and haze scale it. The multi-band structure tensor of Di Zenzo (1986),
`J = sum over bands of grad(I) grad(I)^T`, forgets sign and band, so that any number of bands gives
the same three channels: the log-magnitude of the gradient `g`, `g cos 2t` and `g sin 2t`, with `t`
the gradient's direction.

Written in `keras.ops`: the encoder's stem and the refinement's images are the same function, on
TensorFlow, JAX and PyTorch. NaN is "nothing known here"; no NaN comes out.

Source: S. Di Zenzo, A note on the gradient of a multi-image, CVGIP 33 (1986), 116-125.
"""

from __future__ import annotations

from typing import Any

BORDER_PX = 1
"""Pixels lost on each side: a central difference needs both neighbours."""


def known(scaled: Any) -> Any:
    """Where an image shows anything.

    Args:
        scaled: (n, h, w, b) float32; NaN where a band is nodata or missing.

    Returns:
        (n, h, w, 1) float32, 1 where at least one band is a number.
    """
    from keras import ops

    return ops.cast(ops.any(ops.logical_not(ops.isnan(scaled)), axis=-1, keepdims=True), "float32")


def structure_tensor(scaled: Any, noise: float) -> tuple[Any, Any]:
    """Log-magnitude and doubled direction of the multi-band gradient.

    Args:
        scaled: (n, h, w, b) float32 in [-1, 1], any b; NaN = not known.
        noise: gradient, in scaled units, below which a slope is taken for sensor noise.

    Returns:
        tensor: (n, h - 2, w - 2, 3) float32: g >= 0, g cos 2t, g sin 2t; 0 where not visible.
        visible: (n, h - 2, w - 2, 1) float32: 1 where the gradient of at least one band is known.
    """
    from keras import ops

    number = ops.logical_not(ops.isnan(scaled))
    filled = ops.where(number, scaled, ops.zeros_like(scaled))
    number = ops.cast(number, "float32")
    # A gradient counts in a band only where all four neighbours are known in that band.
    whole = number[:, 1:-1, 2:] * number[:, 1:-1, :-2] * number[:, 2:, 1:-1] * number[:, :-2, 1:-1]
    gx = (filled[:, 1:-1, 2:] - filled[:, 1:-1, :-2]) * whole  # (n, h-2, w-2, b)
    gy = (filled[:, 2:, 1:-1] - filled[:, :-2, 1:-1]) * whole
    jxx = ops.sum(gx * gx, axis=-1, keepdims=True)
    jyy = ops.sum(gy * gy, axis=-1, keepdims=True)
    jxy = ops.sum(gx * gy, axis=-1, keepdims=True)
    energy = jxx + jyy
    g = 0.5 * ops.log1p(energy / noise**2)
    per = g / (energy + noise**2 * 1e-3)
    tensor = ops.concatenate([g, per * (jxx - jyy), per * (2.0 * jxy)], axis=-1)
    return tensor, ops.max(whole, axis=-1, keepdims=True)
