"""Compare the pixel sizes of chips and images: a chip is used as it is, resampled, or refused.

Both sides of a pixel count, in metres on the ground at the chip's latitude. Images stay on their own grid.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX
from retrieval.types import StoredImage
from tfrecords.errors import GridError
from tfrecords.read.pixel_size import middle_sides_m, pixel_sides_m, size_text
from tfrecords.schema import Chips, Georeference, Image, Patches, is_nodata

Images = Mapping[int, StoredImage]

MAX_DIFFERENCE = 0.05
"""Largest difference, as a share of either side, between the pixels of a chip and an image that are compared
as they are."""
MAX_FACTOR = 1.5
"""Largest factor between the two, either side, at which a chip is resampled."""
SLACK = 1e-3
"""Part of a limit that map projections take: a metre of UTM is 0.9996 to 1.001 m on the ground."""
SAMPLED_ROWS = 9
"""Rows of an image at which its pixel is measured: its size varies with the latitude."""


def match_pixel_size(images: Images, queries: Patches | Chips) -> Patches | Chips:
    """Return queries with pixels of the images' size on the ground.

    Args:
        images: the index's image table.
        queries: patches or chips; without georeferences, or with images without any, they are unchanged.

    Returns:
        The same, if the pixels of each differ by at most 5 % from an image's. Else chips: those up to a
        factor of 1.5 away are resampled to the nearest image's pixel when they are read; the note says so.
        A chip that then has fewer than 64 rows or columns is padded with nodata (`Chips.unpadded`).

    Raises:
        GridError: the pixels of a chip differ by more than a factor of 1.5 from the pixels of every image.
    """
    sides, latitude = middle_sides_m(queries.georeferences or (None,) * len(queries), queries.sizes)
    measured = _measure_images(images) if np.isfinite(sides).any() else []
    if not measured:
        return queries
    targets, alike = _nearest(sides, latitude, measured)
    with np.errstate(invalid="ignore"):
        factor = np.exp(np.abs(np.log(sides / targets)).max(1))
    for row in np.flatnonzero(~alike & (factor > MAX_FACTOR * (1 + SLACK))).tolist():
        raise GridError(
            f"{_name(queries, row)}: its pixels are {size_text(sides[row])} on the ground. Expected the "
            f"images' {size_text(targets[row])}, within a factor of {MAX_FACTOR:g}. Resample it with "
            "gdalwarp -r average to the images' CRS (-t_srs) and pixel size (-tr)."
        )
    rows = np.flatnonzero(~alike & np.isfinite(factor))
    return _resampled(queries, rows, sides, targets) if len(rows) else queries


# --- measuring ------------------------------------------------------------------------------------


def _measure_images(images: Images) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return the sides (m, 2) and latitudes (m,) of pixels at several rows of each image on the map."""
    by_crs: dict[str, list[StoredImage]] = defaultdict(list)
    for image in images.values():
        if image.crs and image.transform is not None:
            by_crs[image.crs].append(image)
    measured: dict[bytes, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}  # dates of a place are alike
    share = np.linspace(0, 1, SAMPLED_ROWS)
    for crs, members in by_crs.items():
        transforms = np.repeat(np.array([i.transform for i in members]), SAMPLED_ROWS, axis=0)
        x = np.repeat([i.width / 2 for i in members], SAMPLED_ROWS)
        y = np.concatenate([share * i.height for i in members])
        sides, latitude = pixel_sides_m(crs, transforms, x, y)
        for part in np.split(np.arange(len(x)), len(members)):
            known = part[np.isfinite(sides[part]).all(1)]
            if len(known):
                measured[sides[known].tobytes() + latitude[known].tobytes()] = sides[known], latitude[known]
    return list(measured.values())


def _nearest(
    sides: NDArray[np.float64],
    latitude: NDArray[np.float64],
    measured: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]],
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the pixel of the nearest size (n, 2), and whether a query needs no resampling (n,)."""
    targets, least = np.full(sides.shape, np.nan), np.full(len(sides), np.inf)
    alike: NDArray[np.bool_] = np.asarray(np.isnan(sides).any(1))
    for image_sides, image_latitude in measured:
        rows = np.abs(np.nan_to_num(latitude)[:, None] - image_latitude).argmin(1)
        ratio = sides / image_sides[rows]
        with np.errstate(invalid="ignore"):
            alike = alike | (np.abs(ratio - 1) <= MAX_DIFFERENCE + SLACK).all(1)
            distance = np.abs(np.log(ratio)).max(1)
        nearer = distance < least
        least[nearer], targets[nearer] = distance[nearer], image_sides[rows][nearer]
    return targets, alike


def _name(queries: Patches | Chips, row: int) -> str:
    """Return the file of a query, or its id."""
    return queries.paths[row] if len(queries.paths) == len(queries) else f"chip {queries.patch_ids[row]}"


# --- resampling -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Reader:
    """Reads queries; resamples some."""

    queries: Patches | Chips
    steps: Mapping[int, tuple[float, float]]
    """Pixels of the chip in a new pixel, along a row and along a column, by row of the queries."""

    def __call__(self, row: int) -> Image:
        image = self._read(row)
        return resample(image, *self.steps[row]) if row in self.steps else image

    def _read(self, row: int) -> Image:
        queries = self.queries
        if isinstance(queries, Chips):
            return queries.read(row)
        path = queries.paths[row] if len(queries.paths) == len(queries) else ""
        pixels, number = np.asarray(queries.pixels[row]), int(queries.patch_ids[row])
        form = queries.units, queries.bands, queries.nodata
        return Image(number, pixels, *form, path=path, clipped=queries.clipped)


def _resampled(
    queries: Patches | Chips, rows: NDArray[np.intp], sides: NDArray[np.float64], targets: NDArray[np.float64]
) -> Chips:
    """Return chips of which some are resampled."""
    sizes, places = queries.sizes.copy(), list(queries.georeferences)
    steps: dict[int, tuple[float, float]] = {}
    for row in rows.tolist():
        step = float(targets[row, 0] / sides[row, 0]), float(targets[row, 1] / sides[row, 1])
        steps[row] = step
        sizes[row] = _new_size(sizes[row].tolist(), step)
        place = places[row]
        assert place is not None
        a, b, c, d, e, f = place.transform
        places[row] = Georeference(place.crs, (a * step[0], b * step[1], c, d * step[0], e * step[1], f))
    first = int(rows[0])
    note = (
        f"{len(rows)} of {len(queries)} chips resampled to the images' pixel size (e.g. "
        f"{_name(queries, first)}: {size_text(sides[first])} to {size_text(targets[first])})"
    )
    return Chips(
        queries.patch_ids,
        np.maximum(sizes, PATCH_PX),
        tuple(queries.bands_of(row) for row in range(len(queries))),
        _Reader(queries, steps),
        paths=queries.paths,
        note="; ".join(filter(None, (queries.note, note))),
        georeferences=tuple(places),
        unpadded=sizes,
    )


def _new_size(size: Sequence[int], step: tuple[float, float]) -> tuple[int, int]:
    """Return the rows and columns of whole new pixels inside a chip."""
    return max(int(size[0] / step[1] + SLACK), 1), max(int(size[1] / step[0] + SLACK), 1)


def resample(image: Image, step_x: float, step_y: float) -> Image:
    """Resample a chip by cubic convolution from its top-left corner, smoothed where pixels grow.

    Args:
        image: the chip.
        step_x: its pixels in a new pixel, along a row.
        step_y: the same, along a column.

    Returns:
        float32 of the same units, nodata NaN; padded with nodata to 64 rows and columns.

    Source: R. Keys, Cubic convolution interpolation for digital image processing (1981), a = -0.5.
    """
    pixels = np.asarray(image.pixels, np.float64)
    visible = ~is_nodata(np.asarray(image.pixels), image.nodata)
    pixels[~visible] = 0
    height, width = _new_size(pixels.shape[:2], (step_x, step_y))
    rows, columns = _weights(pixels.shape[0], height, step_y), _weights(pixels.shape[1], width, step_x)
    weight = rows @ visible @ columns.T
    values = np.einsum("ij,jkb,lk->ilb", rows, pixels, columns, optimize=True)
    known = weight > 0.5
    out = np.full((max(height, PATCH_PX), max(width, PATCH_PX), pixels.shape[2]), np.nan, np.float32)
    if known.any():
        low, high = pixels[visible].min(0), pixels[visible].max(0)
        inner = np.clip(values / np.where(known, weight, 1)[..., None], low, high)
        out[:height, :width] = np.where(known[..., None], inner, np.nan)
    return replace(image, pixels=out, nodata=float("nan"))


def _weights(length: int, count: int, step: float) -> NDArray[np.float64]:
    """Return (count, length): the share of each pixel in each new one."""
    scale = max(step, 1.0)
    middle = (np.arange(count) + 0.5) * step - 0.5
    t = np.abs(np.arange(length) - middle[:, None]) / scale
    near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    weights = np.where(t <= 1, near, np.where(t < 2, far, 0.0))
    shares: NDArray[np.float64] = weights / weights.sum(1, keepdims=True)
    return shares
