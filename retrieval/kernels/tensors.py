"""Structure tensors of pictures, their means over 2 x 2 pixels, and their int16 codes, for the CPU."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.kernels.numba_loops import CHANNELS, loop


@loop
def tensors(scaled: NDArray[np.float32], noise: float) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Compute `retrieval.models.structure_tensor.structure_tensor` of pictures, row by row.

    Args:
        scaled: (n, h, w, b), NaN = nodata.
        noise: as there.

    Returns:
        (n, h - 2, w - 2, 3), and the visible pixels (n, h - 2, w - 2, 1).
    """
    count, height, width, bands = scaled.shape
    out = np.empty((count, height - 2, width - 2, CHANNELS), np.float32)
    visible = np.empty((count, height - 2, width - 2, 1), np.bool_)
    rows = np.empty((3, bands, width), np.float32)  # a band is contiguous: its neighbours are read together
    energies, known = np.empty((3, width - 2), np.float32), np.empty(width - 2, np.bool_)
    for n in range(count):
        for y in range(height):
            for band in range(bands):
                for x in range(width):
                    rows[y % 3, band, x] = scaled[n, y, x, band]
            if y >= 2:
                above, here, below = rows[(y - 2) % 3], rows[(y - 1) % 3], rows[y % 3]
                _gradient_products(above, here, below, energies, known)
                _write_tensor(energies, noise, out[n, y - 2])
                for x in range(width - 2):
                    visible[n, y - 2, x, 0] = known[x]
    return out, visible


@loop
def _gradient_products(
    above: NDArray[np.float32],
    here: NDArray[np.float32],
    below: NDArray[np.float32],
    energies: NDArray[np.float32],
    known: NDArray[np.bool_],
) -> None:
    """Sum the products of derivatives over the bands: xx, yy and xy."""
    energies[:], known[:] = 0, False
    xx, yy, xy = energies[0], energies[1], energies[2]
    for band in range(len(here)):
        left, right, up, down = here[band], here[band, 2:], above[band, 1:], below[band, 1:]
        for x in range(len(known)):
            gx, gy = right[x] - left[x], down[x] - up[x]
            finite = gx + gy == gx + gy  # false where one of the four is NaN
            gx, gy = (gx, gy) if finite else (np.float32(0), np.float32(0))
            xx[x] += gx * gx
            yy[x] += gy * gy
            xy[x] += gx * gy
            known[x] |= finite


@loop
def _write_tensor(energies: NDArray[np.float32], noise: float, out: NDArray[np.float32]) -> None:
    """Write the three channels of a row of the tensor."""
    xx, yy, xy = energies[0], energies[1], energies[2]
    inverse_noise, floor = np.float32(1 / (noise * noise)), np.float32(noise * noise * 1e-3)
    size = np.empty(len(out), np.float32)
    for x in range(len(out)):
        size[x] = np.float32(1) + (xx[x] + yy[x]) * inverse_noise
    log_in_place(size)
    for x in range(len(out)):
        g = np.float32(0.5) * size[x]
        gain = g / (xx[x] + yy[x] + floor)
        out[x, 0], out[x, 1], out[x, 2] = g, gain * (xx[x] - yy[x]), gain * np.float32(2) * xy[x]


@loop
def log_in_place(values: NDArray[np.float32]) -> None:
    """Replace positive numbers by their natural logarithms, exact to the last bit but one.

    Source: S. Moshier, Cephes Mathematical Library (1989), logf.
    """
    bits, exponent = values.view(np.int32), np.empty(len(values), np.float32)
    for k in range(len(bits)):
        power = (bits[k] - np.int32(0x3F3504F3)) >> np.int32(23)  # 0 from sqrt(0.5) to sqrt(2)
        exponent[k] = np.float32(power)
        bits[k] -= power << np.int32(23)
    for k in range(len(values)):
        x = values[k] - np.float32(1)
        y = np.float32(7.0376836292e-2)
        y = y * x - np.float32(1.1514610310e-1)
        y = y * x + np.float32(1.1676998740e-1)
        y = y * x - np.float32(1.2420140846e-1)
        y = y * x + np.float32(1.4249322787e-1)
        y = y * x - np.float32(1.6668057665e-1)
        y = y * x + np.float32(2.0000714765e-1)
        y = y * x - np.float32(2.4999993993e-1)
        y = y * x + np.float32(3.3333331174e-1)
        y = y * x * x * x - np.float32(0.5) * x * x
        values[k] = x + y + np.float32(0.6931471806) * exponent[k]


@loop
def downsample2(
    tensor: NDArray[np.float32], visible: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Average the visible pixels of every 2 x 2; visible where at least half of them are.

    Args:
        tensor: (n, h, w, 3), 0 where hidden.
        visible: (n, h, w, 1).

    Returns:
        (n, h // 2, w // 2, 3) and (n, h // 2, w // 2, 1).
    """
    count, height, width = tensor.shape[0], tensor.shape[1] // 2, tensor.shape[2] // 2
    out = np.empty((count, height, width, CHANNELS), np.float32)
    known = np.empty((count, height, width, 1), np.bool_)
    for n in range(count):
        for y in range(height):
            upper, lower = tensor[n, 2 * y], tensor[n, 2 * y + 1]
            first, second = visible[n, 2 * y], visible[n, 2 * y + 1]
            for x in range(width):
                share = first[2 * x, 0] + first[2 * x + 1, 0] + second[2 * x, 0] + second[2 * x + 1, 0]
                known[n, y, x, 0] = share >= 2
                part = np.float32(1 / share) if share >= 2 else np.float32(0)
                for k in range(CHANNELS):
                    above, below = (
                        upper[2 * x, k] + upper[2 * x + 1, k],
                        lower[2 * x, k] + lower[2 * x + 1, k],
                    )
                    out[n, y, x, k] = (above + below) * part
    return out, known


@loop
def quantize_int16(tensor: NDArray[np.float32], codes: float) -> NDArray[np.int16]:
    """Return a tensor as int16 codes, `codes` to one."""
    out = np.empty(tensor.shape, np.int16)
    values, whole = tensor.reshape(tensor.size), out.reshape(tensor.size)
    for k in range(tensor.size):
        code = np.rint(values[k] * np.float32(codes))
        whole[k] = np.int16(min(max(code, np.float32(-32767)), np.float32(32767)))
    return out
