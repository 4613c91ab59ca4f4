"""The structure tensor of an image, merged over its bands: it survives a change of season.

The gradient at a field's edge keeps its direction when the crop turns from green to bare. Its sign and size
change; clouds and haze scale it. The multi-band structure tensor of Di Zenzo (1986) is
`J = sum over bands of grad(I) grad(I)^T`. It drops sign and band: any number of bands gives the same three
channels. These are `g`, `g cos 2t` and `g sin 2t`, with log-magnitude `g` and direction `t` of the gradient.

The function uses `keras.ops` only. It is the encoder's stem and the input of NCC, on TensorFlow, JAX and
PyTorch. NaN is nodata; the output has no NaN.

Source: S. Di Zenzo, A note on the gradient of a multi-image, CVGIP 33 (1986), 116-125.
"""

from __future__ import annotations

from typing import Any

import numpy as np

BORDER_PX = 1
"""Pixels lost on each side: a central difference needs both neighbours."""


def known(scaled: Any) -> Any:
    """Return the pixels with data.

    Args:
        scaled: (n, h, w, b) float32; NaN where a band is nodata or missing.

    Returns:
        (n, h, w, 1) float32, 1 where at least one band is a number.
    """
    from keras import ops

    return ops.cast(ops.any(ops.logical_not(ops.isnan(scaled)), axis=-1, keepdims=True), "float32")


def structure_tensor(scaled: Any, noise: float) -> tuple[Any, Any]:
    """Return log-magnitude and doubled direction of the multi-band gradient.

    Args:
        scaled: (n, h, w, b) float32 scaled, any b; NaN = nodata.
        noise: gradient, in scaled units, below which a slope counts as sensor noise.

    Returns:
        tensor: (n, h - 2, w - 2, 3) float32: g >= 0, g cos 2t, g sin 2t; 0 where not visible.
        visible: (n, h - 2, w - 2, 1) float32: 1 where the gradient of at least one band is known.
    """
    from keras import ops

    pixels, number = filled(scaled)
    # A gradient counts in a band only where all four neighbours are known in that band.
    whole = number[:, 1:-1, 2:] * number[:, 1:-1, :-2] * number[:, 2:, 1:-1] * number[:, :-2, 1:-1]
    gx = (pixels[:, 1:-1, 2:] - pixels[:, 1:-1, :-2]) * whole  # (n, h-2, w-2, b)
    gy = (pixels[:, 2:, 1:-1] - pixels[:, :-2, 1:-1]) * whole
    return _merged(gx, gy, noise), ops.max(whole, axis=-1, keepdims=True)


def learnable_tensor(scaled: Any, noise: float) -> tuple[Any, Any]:
    """Return the structure tensor of two learned derivatives, which all bands share.

    Each is a 3 x 3 kernel that starts as the central difference. Before the first step the tensor equals
    `structure_tensor`, except next to nodata.

    Args:
        scaled: (n, h, w, b) float32 scaled, symbolic, any b; NaN = nodata.
        noise: as for `structure_tensor`.

    Returns:
        tensor: (n, h - 2, w - 2, 3), visible: (n, h - 2, w - 2, 1), as `structure_tensor` gives them.
    """
    from keras import layers, ops

    pixels, number = filled(scaled)
    # A kernel has a weight for each of nine neighbours, so that all of them have to be known.
    whole = 1.0 - layers.MaxPooling2D(3, 1, padding="valid")(1.0 - number)  # (n, h-2, w-2, b)
    shifts = [(dy, dx) for dy in range(3) for dx in range(3)]
    near = [pixels[:, dy : dy - 2 or None, dx : dx - 2 or None] for dy, dx in shifts]
    derive = layers.Dense(2, use_bias=False, name="derivatives")
    both = derive(ops.stack(near, -1)) * ops.expand_dims(whole, -1)  # (n, h-2, w-2, b, 2)
    kernel = np.zeros((3, 3, 2), np.float32)
    kernel[1, :, 0] = kernel[:, 1, 1] = -1, 0, 1
    derive.set_weights([kernel.reshape(9, 2)])
    return _merged(both[..., 0], both[..., 1], noise), ops.max(whole, axis=-1, keepdims=True)


def filled(scaled: Any) -> tuple[Any, Any]:
    """Return pixels with 0 for nodata, and 1 where there are data: (n, h, w, b) each."""
    from keras import ops

    number = ops.logical_not(ops.isnan(scaled))
    return ops.where(number, scaled, ops.zeros_like(scaled)), ops.cast(number, "float32")


def _merged(gx: Any, gy: Any, noise: float) -> Any:
    """Merge the derivatives of all bands, (n, h, w, b) each, into the tensor's channels, (n, h, w, 3)."""
    from keras import ops

    jxx = ops.sum(gx * gx, axis=-1, keepdims=True)
    jyy = ops.sum(gy * gy, axis=-1, keepdims=True)
    jxy = ops.sum(gx * gy, axis=-1, keepdims=True)
    energy = jxx + jyy
    g = 0.5 * ops.log1p(energy / noise**2)
    per = g / (energy + noise**2 * 1e-3)
    return ops.concatenate([g, per * (jxx - jyy), per * (2.0 * jxy)], axis=-1)
