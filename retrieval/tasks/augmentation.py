"""Augmentation of images in TensorFlow; every draw follows from a seed, so a resumed training repeats it.

A *weak* augmentation keeps the class obvious: flips, rotations by quarter turns, a shift of a few pixels. A
*strong* one also changes scale, angle, light and colour, and hides a square. Pixels are standardized.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Warp:
    """Largest changes of geometry."""

    zoom: float
    """Logarithm of the scale."""
    angle: float
    """Rotation, radians."""
    shear: float
    """Shear, as a slope."""
    shift: float
    """Shift, as a share of the image's side."""


WEAK = Warp(0.05, 0.0, 0.0, 0.06)
MEDIUM = Warp(0.15, 0.3, 0.1, 0.1)
STRONG = Warp(0.25, 0.4, 0.15, 0.125)
GAIN, BAND_GAIN, LIGHT, OFFSET, BAND_OFFSET, SATURATION = 0.25, 0.05, 0.08, 0.3, 0.08, 0.3
"""Standard deviations of the changes of light at strength 1, in standardized units or logarithms."""
HIDDEN_SHARE = 0.5
"""Largest side of the hidden square, as a share of the image's side."""


def weak(pixels: Any, seed: Any) -> Any:
    """Return images (n, h, w, b) float32, weakly augmented. `seed` is an int32 tensor (2,)."""
    return warped(pixels, seed, WEAK)


def medium(pixels: Any, seed: Any, colour: float) -> Any:
    """Return images augmented between weakly and strongly, for the labelled ones."""
    return relit(warped(pixels, seed, MEDIUM), seed + 1, colour / 2)


def strong(pixels: Any, seed: Any, colour: float) -> Any:
    """Return images, strongly augmented; `colour` scales the changes of light."""
    return partly_hidden(relit(warped(pixels, seed, STRONG), seed + 1, colour), seed + 2)


def warped(pixels: Any, seed: Any, warp: Warp) -> Any:
    """Flip, rotate, scale, shear and shift each image around its centre, in one interpolation.

    Each image first gets one of the eight flips and quarter turns at random, or one of the four flips where
    it is not square. Ground beyond the border is mirrored.
    """
    import tensorflow as tf

    rows, columns = pixels.shape[1:3]
    draw = tf.random.stateless_uniform((8, tf.shape(pixels)[0]), seed, -1.0, 1.0)
    scale, angle, shear = tf.exp(draw[0] * warp.zoom), draw[1] * warp.angle, draw[2] * warp.shear
    cosine, sine = tf.cos(angle) * scale, tf.sin(angle) * scale
    flip_x, flip_y = tf.sign(draw[5]), tf.sign(draw[6])
    a, b = flip_x * cosine, flip_y * (cosine * shear - sine)
    d, e = flip_x * sine, flip_y * (sine * shear + cosine)
    if rows == columns:
        is_turned = draw[7] < 0
        a, b, d, e = (tf.where(is_turned, *pair) for pair in ((b, a), (a, b), (e, d), (d, e)))
    x, y = (columns - 1) / 2, (rows - 1) / 2
    c = x + draw[3] * warp.shift * columns - a * x - b * y
    f = y + draw[4] * warp.shift * rows - d * x - e * y
    zero = tf.zeros_like(a)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=pixels,
        transforms=tf.stack([a, b, c, d, e, f, zero, zero], axis=1),
        output_shape=(rows, columns),
        interpolation="BILINEAR",
        fill_mode="REFLECT",
        fill_value=0.0,
    )


def relit(pixels: Any, seed: Any, strength: float) -> Any:
    """Change contrast, brightness and saturation of each image, and a little of each band."""
    import tensorflow as tf

    bands = pixels.shape[-1]
    draw = strength * tf.random.stateless_normal((tf.shape(pixels)[0], 1, 1, 4 + 2 * bands), seed)
    mean = tf.reduce_mean(pixels, (1, 2), keepdims=True)
    gain = tf.exp(GAIN * draw[..., :1] + BAND_GAIN * draw[..., 4 : 4 + bands])
    offset = OFFSET * draw[..., 1:2] + BAND_OFFSET * draw[..., 4 + bands :]
    y = (pixels - mean) * gain + mean * tf.exp(LIGHT * draw[..., 2:3]) + offset
    grey = tf.reduce_mean(y, -1, keepdims=True)
    return grey + (y - grey) * tf.exp(SATURATION * draw[..., 3:4])


def partly_hidden(pixels: Any, seed: Any) -> Any:
    """Replace a square of random size and place by the image's mean.

    Source: T. DeVries and G. Taylor, Improved regularization with cutout, 2017.
    """
    import tensorflow as tf

    rows, columns = pixels.shape[1:3]
    draw = tf.random.stateless_uniform((3, tf.shape(pixels)[0], 1, 1), seed)
    half = draw[2] * (HIDDEN_SHARE / 2) * min(rows, columns)
    y = tf.abs(tf.range(rows, dtype=tf.float32)[None, :, None] - draw[0] * rows)
    x = tf.abs(tf.range(columns, dtype=tf.float32)[None, None, :] - draw[1] * columns)
    hidden = ((y < half) & (x < half))[..., None]
    return tf.where(hidden, tf.reduce_mean(pixels, (1, 2), keepdims=True), pixels)
