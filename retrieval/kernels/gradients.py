"""Signed gradients of pictures, and their cosine at small shifts, for the CPU.

A field has the derivatives of all bands. Each pixel's vector keeps its direction, and its length becomes
the log-magnitude of the structure tensor. So haze, shadow and single bright edges count little.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.kernels.numba_loops import loop
from retrieval.kernels.tensors import log_in_place


@loop
def signed_gradients(
    scaled: NDArray[np.float32], noise: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Compute the signed gradients of pictures.

    Args:
        scaled: (n, h, w, b), NaN = nodata.
        noise: gradient below which a slope counts as sensor noise.

    Returns:
        (n, h - 2, 2 b, w - 2) derivatives along x and along y of each band, 0 where hidden; and
        (n, h - 2, w - 2), 1 where all four neighbours are known in a band, else 0.
    """
    count, height, width, bands = scaled.shape
    out = np.empty((count, height - 2, 2 * bands, width - 2), np.float32)
    known = np.empty((count, height - 2, width - 2), np.float32)
    rows = np.empty((3, bands, width), np.float32)  # a band is contiguous: its neighbours are read together
    for n in range(count):
        for y in range(height):
            for band in range(bands):
                for x in range(width):
                    rows[y % 3, band, x] = scaled[n, y, x, band]
            if y >= 2:
                above, here, below = rows[(y - 2) % 3], rows[(y - 1) % 3], rows[y % 3]
                _write_gradients(above, here, below, noise, out[n, y - 2], known[n, y - 2])
    return out, known


@loop
def _write_gradients(
    above: NDArray[np.float32],
    here: NDArray[np.float32],
    below: NDArray[np.float32],
    noise: float,
    out: NDArray[np.float32],
    known: NDArray[np.float32],
) -> None:
    """Write a row of derivatives (2 b, w), and where they are known (w,)."""
    square, size = np.zeros(len(known), np.float32), np.empty(len(known), np.float32)
    known[:] = 0
    for band in range(len(here)):
        left, right, up, down = here[band], here[band, 2:], above[band, 1:], below[band, 1:]
        along_x, along_y = out[2 * band], out[2 * band + 1]
        for x in range(len(known)):
            gx, gy = right[x] - left[x], down[x] - up[x]
            finite = gx + gy == gx + gy  # false where one of the four is NaN
            gx, gy = (gx, gy) if finite else (np.float32(0), np.float32(0))
            along_x[x], along_y[x] = gx, gy
            square[x] += gx * gx + gy * gy
            known[x] = np.float32(1) if finite else known[x]
    inverse = np.float32(1 / (noise * noise))
    for x in range(len(size)):
        size[x] = np.float32(1) + square[x] * inverse
    log_in_place(size)
    for x in range(len(size)):
        size[x] = np.float32(0.5) * size[x] / np.sqrt(square[x] + np.float32(1e-12))
    for channel in range(len(out)):
        for x in range(len(size)):
            out[channel, x] *= size[x]


@loop
def best_cosines(
    template: NDArray[np.float32],
    visible: NDArray[np.float32],
    owner: NDArray[np.int64],
    field: NDArray[np.float32],
    known: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Write the largest cosine of templates with larger fields, over all shifts and what both show.

    Args:
        template: (n, s, c, s), 0 where hidden.
        visible: (n, s, s) 1 or 0.
        owner: (m,) template of each field.
        field: (m, S, c, S), 0 where hidden; S >= s.
        known: (m, S, S) 1 or 0.
        out: (m,); 0 where nothing shows in both.
    """
    side, channels = template.shape[1], template.shape[2]
    shifts = field.shape[1] - side + 1
    own = np.empty(visible.shape, np.float32)
    for n in range(len(template)):
        _squares(template[n], own[n])
    energy = np.empty(known.shape[1:], np.float32)
    for m in range(len(field)):
        n = owner[m]
        _squares(field[m], energy)
        best = np.float32(-1)
        for dy in range(shifts):
            for dx in range(shifts):
                product = of_template = of_field = np.float32(0)
                for y in range(side):
                    for channel in range(channels):
                        product += _dot(template[n, y, channel], field[m, y + dy, channel, dx:])
                    of_template += _dot(own[n, y], known[m, y + dy, dx:])
                    of_field += _dot(visible[n, y], energy[y + dy, dx:])
                cosine = product / np.sqrt(of_template * of_field + np.float32(1e-6))
                best = max(best, cosine)
        out[m] = best


@loop
def _squares(field: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Write the squared length (h, w) of the vectors of a field (h, c, w)."""
    out[:] = 0
    for y in range(len(field)):
        for channel in range(field.shape[1]):
            for x in range(field.shape[2]):
                out[y, x] += field[y, channel, x] * field[y, channel, x]


@loop
def _dot(a: NDArray[np.float32], b: NDArray[np.float32]) -> np.float32:
    """Inner product of a row with the beginning of another."""
    total = np.float32(0)
    for k in range(len(a)):
        total += a[k] * b[k]
    return total
