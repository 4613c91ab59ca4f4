"""Signed gradients of pictures, and their cosine at small shifts, for the CPU.

A field has the derivatives of all bands. Each pixel's vector keeps its direction, and its length becomes
the log-magnitude of the structure tensor. So haze, shadow and single bright edges count little.

Strategy. The field of a candidate stays in the cache: it is made, compared at nine shifts, and overwritten
by the next one. A row of a template is multiplied at three shifts at a time, between its visible ends.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.kernels.numba_loops import loop
from retrieval.kernels.tensors import log_in_place

SHIFTS = 3
"""Shifts along x, and along y, at which a template and a field are compared."""


@loop
def signed_templates(
    scaled: NDArray[np.float32], noise: float
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Compute the signed gradients of pictures, and what `best_cosines` needs of them.

    Args:
        scaled: (n, h, w, b), NaN = nodata.
        noise: gradient below which a slope counts as sensor noise.

    Returns:
        (n, h - 2, 2 b, w - 2) derivatives along x and along y of each band, 0 where hidden.
        (n, h - 2, w - 2) 1 where all four neighbours are known in a band, else 0.
        (n, h - 2, w - 2) squared length of the derivatives.
        (n, h - 2, 2) first visible pixel of each row, and the one behind the last.
    """
    count, height, width, bands = scaled.shape
    out = np.empty((count, height - 2, 2 * bands, width - 2), np.float32)
    known = np.empty((count, height - 2, width - 2), np.float32)
    squares, ends = np.empty(known.shape, np.float32), np.empty((count, height - 2, 2), np.int64)
    rows = np.empty((3, bands, width), np.float32)
    for n in range(count):
        _write_field(scaled[n], noise, rows, out[n], known[n])
        _squares(out[n], squares[n])
        _visible_ends(known[n], ends[n])
    return out, known, squares, ends


@loop
def _write_field(
    scaled: NDArray[np.float32],
    noise: float,
    rows: NDArray[np.float32],
    out: NDArray[np.float32],
    known: NDArray[np.float32],
) -> None:
    """Write the signed gradients of a picture (h, w, b); `rows` (3, b, w) holds three of its rows."""
    height, width, bands = scaled.shape
    for y in range(height):
        for band in range(bands):  # a band is contiguous: its neighbours are read together
            for x in range(width):
                rows[y % 3, band, x] = scaled[y, x, band]
        if y >= 2:
            _write_gradients(
                rows[(y - 2) % 3], rows[(y - 1) % 3], rows[y % 3], noise, out[y - 2], known[y - 2]
            )


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
    # Each loop touches few arrays: with more, the compiler cannot tell that they are distinct.
    square, size = np.zeros(len(known), np.float32), np.empty(len(known), np.float32)
    known[:] = 0
    for band in range(len(here)):
        middle, upper, lower = here[band], above[band], below[band]
        along_x, along_y = out[2 * band], out[2 * band + 1]
        for x in range(len(known)):
            along_x[x] = middle[x + 2] - middle[x]
        for x in range(len(known)):
            along_y[x] = lower[x + 1] - upper[x + 1]
        for x in range(len(known)):
            energy = along_x[x] * along_x[x] + along_y[x] * along_y[x]
            finite = energy == energy  # false where one of the four is NaN
            size[x] = energy if finite else np.float32(0)
            known[x] = np.float32(1) if finite else known[x]
        for x in range(len(known)):
            square[x] += size[x]
            hidden = size[x] == np.float32(0)
            along_x[x] = np.float32(0) if hidden else along_x[x]
            along_y[x] = np.float32(0) if hidden else along_y[x]
    inverse = np.float32(1 / (noise * noise))
    for x in range(len(size)):
        size[x] = np.float32(1) + square[x] * inverse
    log_in_place(size)
    for x in range(len(size)):
        size[x] = np.float32(0.5) * size[x] / np.sqrt(square[x] + np.float32(1e-12))
    for channel in range(len(out)):
        row = out[channel]
        for x in range(len(size)):
            row[x] *= size[x]


@loop
def best_cosines(
    template: NDArray[np.float32],
    visible: NDArray[np.float32],
    own: NDArray[np.float32],
    ends: NDArray[np.int64],
    owner: NDArray[np.int64],
    regions: NDArray[np.float32],
    noise: float,
    out: NDArray[np.float32],
) -> None:
    """Write the largest cosine of templates with the gradients of larger pictures, over what both show.

    Args:
        template: (n, s, 2 b, s) from `signed_templates`.
        visible: (n, s, s) 1 or 0, from the same.
        own: (n, s, s) squared length of the vectors, from the same.
        ends: (n, s, 2) visible ends of each row, from the same.
        owner: (m,) template of each picture.
        regions: (m, s + 4, s + 4, b) pictures, NaN = nodata: all shifts by a pixel are compared.
        noise: as in `signed_templates`.
        out: (m,); 0 where nothing shows in both.
    """
    side, channels = template.shape[1], template.shape[2]
    rows = np.empty((3, channels // 2, side + 4), np.float32)
    field = np.empty((side + 2, channels, side + 2), np.float32)
    known, energy = np.empty((side + 2, side + 2), np.float32), np.empty((side + 2, side + 2), np.float32)
    for m in range(len(regions)):
        n = owner[m]
        _write_field(regions[m], noise, rows, field, known)
        _squares(field, energy)
        best = np.float32(-1)
        for dy in range(SHIFTS):
            cosines = _cosines(template[n], visible[n], own[n], ends[n], field[dy:], known[dy:], energy[dy:])
            best = max(best, max(cosines))
        out[m] = best


@loop
def _cosines(
    template: NDArray[np.float32],
    visible: NDArray[np.float32],
    own: NDArray[np.float32],
    ends: NDArray[np.int64],
    field: NDArray[np.float32],
    known: NDArray[np.float32],
    energy: NDArray[np.float32],
) -> tuple[np.float32, np.float32, np.float32]:
    """Cosines of a template with a field at three shifts along x."""
    p0 = p1 = p2 = t0 = t1 = t2 = f0 = f1 = f2 = np.float32(0)
    for y in range(len(template)):
        first, last = ends[y]
        for channel in range(template.shape[1]):
            a, b, c = _products(template[y, channel, first:last], field[y, channel, first:])
            p0, p1, p2 = p0 + a, p1 + b, p2 + c
        a, b, c = _products(own[y, first:last], known[y, first:])
        t0, t1, t2 = t0 + a, t1 + b, t2 + c
        a, b, c = _products(visible[y, first:last], energy[y, first:])
        f0, f1, f2 = f0 + a, f1 + b, f2 + c
    floor = np.float32(1e-6)
    return p0 / np.sqrt(t0 * f0 + floor), p1 / np.sqrt(t1 * f1 + floor), p2 / np.sqrt(t2 * f2 + floor)


@loop
def _products(a: NDArray[np.float32], b: NDArray[np.float32]) -> tuple[np.float32, np.float32, np.float32]:
    """Inner products of a row with the beginning of a longer one, from its first three pixels on."""
    s0 = s1 = s2 = np.float32(0)
    for k in range(len(a)):
        s0 += a[k] * b[k]
        s1 += a[k] * b[k + 1]
        s2 += a[k] * b[k + 2]
    return s0, s1, s2


@loop
def _visible_ends(visible: NDArray[np.float32], ends: NDArray[np.int64]) -> None:
    """Write the first visible pixel of each row (h, w), and the one behind the last; 0 and 0 for none."""
    ends[:] = 0
    for y in range(len(visible)):
        for x in range(visible.shape[1]):
            if visible[y, x] > 0:
                ends[y, 0] = x if ends[y, 1] == 0 else ends[y, 0]
                ends[y, 1] = x + 1


@loop
def _squares(field: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Write the squared length (h, w) of the vectors of a field (h, c, w)."""
    out[:] = 0
    for y in range(len(field)):
        row = out[y]
        for channel in range(field.shape[1]):
            values = field[y, channel]
            for x in range(len(values)):
                row[x] += values[x] * values[x]
