"""Normalized cross-correlation of templates with pictures, read in place, for the CPU.

Strategy. A template is padded to the row length of a region, so that a shift along x is a single sum over
contiguous memory. Five shifts are summed in one pass, since one read of the template serves all. Where a part
of the template is hidden, sums over its visible pixels run in the same way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.kernels.numba_loops import CHANNELS, loop

SHIFTS_PER_PASS = 5
"""Shifts along x that one pass over the template sums."""


@loop
def zero_mean(template: NDArray[np.float32], shifts: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Prepare templates for `ncc_around`: remove the mean of each channel and pad the rows.

    Args:
        template: (n, s, s, 3).
        shifts: along a side.

    Returns:
        Zero-mean templates (n, s, 3 (s + shifts - 1)), zeros after each row, and their sums of squares (n,).
    """
    n, side = template.shape[:2]
    length, width = side * CHANNELS, (side + shifts - 1) * CHANNELS
    padded, energy = np.zeros((n, side, width), np.float32), np.zeros(n, np.float32)
    total = np.empty(length)
    for t in range(n):
        total[:] = 0.0
        for y in range(side):
            row = template[t, y].reshape(length)
            for k in range(length):
                total[k] += row[k]
        for k in range(CHANNELS, length):
            total[k % CHANNELS] += total[k]
        for k in range(length - 1, -1, -1):
            total[k] = total[k % CHANNELS] / (side * side)
        squares = np.float32(0)
        for y in range(side):
            row, target = template[t, y].reshape(length), padded[t, y]
            for k in range(length):
                target[k] = row[k] - np.float32(total[k])
            for k in range(length):
                squares += target[k] * target[k]
        energy[t] = squares
    return padded, energy


@loop
def ncc_around(
    padded: NDArray[np.float32],
    energy: NDArray[np.float32],
    owner: NDArray[np.int64],
    pictures: NDArray[Any],
    local: NDArray[np.float32],
    picture: NDArray[np.int64],
    corner: NDArray[np.int64],
    scale: float,
    flat: float,
    steps: float,
    rows: NDArray[np.int64],
    out: NDArray[np.float32],
) -> None:
    """Write the NCC of templates with the surroundings of positions, where all pixels are visible.

    Args:
        padded: (n, s, 3 (s + shifts - 1)) templates from `zero_mean`.
        energy: (n,) their sums of squares.
        owner: (m,) template of each position; fastest where positions of one template are neighbours.
        pictures: (p, h, 3 w) tensors, int16 or float32.
        local: (p, h - s + 1, w - s + 1) from `local_energy`.
        picture: (m,) picture of each position.
        corner: (m, 2) x and y of the template's corner at the first shift; beyond the picture's edge its last
            pixels repeat.
        scale: value of one unit of the pictures.
        flat: sum of squares of a zero-mean tensor up to which it counts as flat, with an NCC of 0.
        steps: NCC is rounded to this many steps between 0 and 1.
        rows: (m,) row of `out` for each position.
        out: (l, shifts, shifts) NCC in [-1, 1], [..., dy, dx]; written to.
    """
    (side, width), shifts = padded.shape[1:], out.shape[1]
    templates = padded.reshape(len(padded), side * width)
    region = np.zeros((side + shifts - 1) * width + CHANNELS * shifts, np.float32)
    for n in range(len(owner)):
        x, y = corner[n, 0], corner[n, 1]
        _copy_square(pictures[picture[n]], x, y, side + shifts - 1, region)
        surface, of_template = out[rows[n]], energy[owner[n]]
        for dy in range(shifts):
            _sum_products(templates[owner[n]], region[dy * width :], CHANNELS, surface[dy])
        last_y, last_x = local.shape[1] - 1, local.shape[2] - 1
        for dy in range(shifts):
            row = local[picture[n], min(max(y + dy, 0), last_y)]
            for dx in range(shifts):
                of_region = row[min(max(x + dx, 0), last_x)]
                if of_template > flat and of_region > flat:
                    product = np.float64(of_template) * np.float64(of_region)
                    ratio = surface[dy, dx] * np.float32(scale / np.sqrt(product))
                    ratio = min(max(ratio, np.float32(-1)), np.float32(1))
                    surface[dy, dx] = np.rint(ratio * np.float32(steps)) / np.float32(steps)
                else:
                    surface[dy, dx] = 0


@loop
def _copy_square(picture: NDArray[Any], x: int, y: int, size: int, region: NDArray[np.float32]) -> None:
    """Copy a square of a picture as float32, row by row; beyond the edge the last pixels repeat."""
    height, width = picture.shape[0], picture.shape[1] // CHANNELS
    length, inside = size * CHANNELS, x >= 0 and x + size <= width
    for row in range(size):
        at = min(max(y + row, 0), height - 1)
        target = region[row * length : (row + 1) * length]
        if inside:
            source = picture[at, x * CHANNELS : x * CHANNELS + length]
            for k in range(length):
                target[k] = np.float32(source[k])
        else:
            for k in range(length):
                column = min(max(x + k // CHANNELS, 0), width - 1)
                target[k] = np.float32(picture[at, column * CHANNELS + k % CHANNELS])


@loop
def _sum_products(
    template: NDArray[np.float32], region: NDArray[np.float32], stride: int, out: NDArray[np.float32]
) -> None:
    """Sum the products of a padded template with a region, at every shift along x, `stride` numbers apart."""
    first = 0
    while first + SHIFTS_PER_PASS <= len(out):
        r0, r1, r2, r3, r4 = (
            region[stride * first :],
            region[stride * (first + 1) :],
            region[stride * (first + 2) :],
            region[stride * (first + 3) :],
            region[stride * (first + 4) :],
        )
        s0 = s1 = s2 = s3 = s4 = np.float32(0)
        for k in range(len(template)):
            value = template[k]
            s0 += value * r0[k]
            s1 += value * r1[k]
            s2 += value * r2[k]
            s3 += value * r3[k]
            s4 += value * r4[k]
        out[first], out[first + 1], out[first + 2], out[first + 3], out[first + 4] = s0, s1, s2, s3, s4
        first += SHIFTS_PER_PASS
    for dx in range(first, len(out)):
        shifted, total = region[stride * dx :], np.float32(0)
        for k in range(len(template)):
            total += template[k] * shifted[k]
        out[dx] = total


def masked_templates(
    template: NDArray[np.float32], mask: NDArray[Any], shifts: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Prepare partly visible templates for `masked_ncc_around`.

    Args:
        template: (n, s, s, 3).
        mask: (n, s, s, 1) visible pixels.
        shifts: along a side.

    Returns:
        Templates (n, s, 3 (s + shifts - 1)) without the mean of their visible pixels, 0 where hidden. Masks
        (n, s, s + shifts - 1). Sums of squares (n,). Numbers of visible pixels (n,).
    """
    visible = mask.astype(np.float32)
    count = visible.sum((1, 2, 3))
    mean = (template * visible).sum((1, 2)) / np.maximum(count, 1)[:, None]
    zero_mean = (template - mean[:, None, None]) * visible
    after = ((0, 0), (0, 0), (0, shifts - 1), (0, 0))
    padded, masks = (np.pad(v, after).astype(np.float32) for v in (zero_mean, visible))
    energy = np.einsum("nyxc,nyxc->n", zero_mean, zero_mean)
    return padded.reshape(*padded.shape[:2], -1), masks[..., 0], energy.astype(np.float32), count


@loop
def masked_ncc_around(
    padded: NDArray[np.float32],
    masks: NDArray[np.float32],
    energy: NDArray[np.float32],
    count: NDArray[np.float32],
    owner: NDArray[np.int64],
    pictures: NDArray[Any],
    picture: NDArray[np.int64],
    corner: NDArray[np.int64],
    scale: float,
    flat: float,
    steps: float,
    rows: NDArray[np.int64],
    out: NDArray[np.float32],
) -> None:
    """Write the NCC of partly visible templates with the surroundings of positions that are visible all over.

    Args:
        padded: (n, s, 3 (s + shifts - 1)) templates from `masked_templates`.
        masks: (n, s, s + shifts - 1) their visible pixels.
        energy: (n,) their sums of squares.
        count: (n,) their numbers of visible pixels.
        owner: (m,) template of each position.
        pictures: (p, h, 3 w) tensors, int16 or float32.
        picture: (m,) picture of each position.
        corner: (m, 2) x and y as for `ncc_around`.
        scale: value of one unit of the pictures.
        flat: mean square of a zero-mean tensor up to which it counts as flat.
        steps: NCC is rounded to this many steps between 0 and 1.
        rows: (m,) row of `out` for each position.
        out: (l, shifts, shifts) NCC in [-1, 1], [..., dy, dx]; written to.
    """
    (side, width), shifts = masks.shape[1:], out.shape[1]
    size = side + shifts - 1
    templates = padded.reshape(len(padded), side * width * CHANNELS)
    flat_masks = masks.reshape(len(masks), side * width)
    region = np.zeros((size * width + shifts) * CHANNELS, np.float32)
    planes = np.zeros((CHANNELS + 1, size * width + shifts), np.float32)
    sums = np.empty((CHANNELS + 1, shifts), np.float32)
    for n in range(len(owner)):
        template = owner[n]
        _copy_square(pictures[picture[n]], corner[n, 0], corner[n, 1], size, region)
        _zero_mean_planes(region, planes, size * width)
        surface, visible = out[rows[n]], max(count[template], np.float32(1))
        least = np.float64(flat * visible)
        for dy in range(shifts):
            start = dy * width
            _sum_products(templates[template], region[CHANNELS * start :], CHANNELS, surface[dy])
            for plane in range(CHANNELS + 1):
                _sum_products(flat_masks[template], planes[plane, start:], 1, sums[plane])
            for dx in range(shifts):
                total = np.float64(sums[CHANNELS, dx])
                for plane in range(CHANNELS):
                    total -= np.float64(sums[plane, dx]) * np.float64(sums[plane, dx]) / visible
                total *= scale * scale
                if energy[template] > least and total > least and count[template] >= 2:
                    ratio = surface[dy, dx] * np.float32(
                        scale / np.sqrt(np.float64(energy[template]) * total)
                    )
                    ratio = min(max(ratio, np.float32(-1)), np.float32(1))
                    surface[dy, dx] = np.rint(ratio * np.float32(steps)) / np.float32(steps)
                else:
                    surface[dy, dx] = 0


@loop
def _zero_mean_planes(region: NDArray[np.float32], planes: NDArray[np.float32], count: int) -> None:
    """Split a region into its channels without their mean, in place too, and their sum of squares."""
    planes[CHANNELS, :count] = 0
    for channel in range(CHANNELS):
        plane, total = planes[channel], np.float32(0)
        for k in range(count):
            plane[k] = region[CHANNELS * k + channel]
        for k in range(count):
            total += plane[k]
        mean = total / np.float32(count)
        for k in range(count):
            plane[k] -= mean
            planes[CHANNELS, k] += plane[k] * plane[k]
            region[CHANNELS * k + channel] = plane[k]


@loop
def local_energy(pictures: NDArray[Any], box: int, scale: float) -> NDArray[np.float32]:
    """Return the sum of squares of the zero-mean tensor in every box x box square of pictures.

    Args:
        pictures: (p, h, w, 3), int16 or float32.
        box: side of a square, at most h and w.
        scale: value of one unit of the pictures.

    Returns:
        (p, h - box + 1, w - box + 1). Sums run in float64: exact for integers.
    """
    count, height, width = pictures.shape[:3]
    out = np.empty((count, height - box + 1, width - box + 1), np.float32)
    total, square = np.empty(width * CHANNELS), np.empty(width * CHANNELS)  # of `box` rows
    for p in range(count):
        total[:], square[:] = 0.0, 0.0
        for y in range(height):
            _add_row(pictures[p, y].reshape(width * CHANNELS), 1.0, total, square)
            if y >= box:
                _add_row(pictures[p, y - box].reshape(width * CHANNELS), -1.0, total, square)
            if y >= box - 1:
                _slide_box(total, square, box, scale, out[p, y - box + 1])
    return out


@loop
def _add_row(row: NDArray[Any], sign: float, total: NDArray[np.float64], square: NDArray[np.float64]) -> None:
    for k in range(len(row)):
        value = np.float64(row[k])
        total[k] += sign * value
        square[k] += sign * value * value


@loop
def _slide_box(
    total: NDArray[np.float64],
    square: NDArray[np.float64],
    box: int,
    scale: float,
    out: NDArray[np.float32],
) -> None:
    """Turn sums over columns into sums over squares, moving a box along a row."""
    a = b = c = energy = 0.0
    for x in range(len(total) // CHANNELS):
        k = CHANNELS * x
        a, b, c = a + total[k], b + total[k + 1], c + total[k + 2]
        energy += square[k] + square[k + 1] + square[k + 2]
        if x >= box:
            k -= CHANNELS * box
            a, b, c = a - total[k], b - total[k + 1], c - total[k + 2]
            energy -= square[k] + square[k + 1] + square[k + 2]
        if x >= box - 1:
            mean = (a * a + b * b + c * c) / (box * box)
            out[x - box + 1] = np.float32((energy - mean) * scale * scale)
