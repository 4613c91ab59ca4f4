"""Sites: positions where templates are compared with images, and the tensors around them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX
from retrieval.matching.tensors import (
    CODES,
    Known,
    crop_windows,
    pyramid,
    select_bands,
    template_side,
    tensor_of,
)
from retrieval.types import Pixels

CROPS = 64
"""Sites whose surroundings are read at a time: about 7 MB."""


@dataclass(frozen=True)
class Sites:
    """Positions where templates are compared with images."""

    image_ids: NDArray[np.int64]
    """(m,); fastest where sites of one block are neighbours."""
    at: NDArray[np.int64]
    """(m, 2) x and y of a template's corner, in pixels of the level."""
    columns: tuple[int, ...]
    """Columns of the bands that count."""
    radius: int
    """Search radius, in pixels of the level."""
    level: int
    """0, 1 or 2."""

    def select(self, rows: NDArray[np.intp]) -> Sites:
        """Return the sites of these rows."""
        return replace(self, image_ids=self.image_ids[rows], at=self.at[rows])


@dataclass(frozen=True)
class LocatedSites:
    """Sites and the pictures in which they lie, of equal size."""

    rows: NDArray[np.intp]
    """(k,) rows of the sites; sites of one picture are neighbours."""
    pictures: NDArray[np.int16]
    """(p, h, w, 3) codes."""
    energy: NDArray[np.float32]
    """(p, h - s + 1, w - s + 1, 1) local energy of every square of a template's side s."""
    known: NDArray[np.bool_]
    """(p, h, w, 1) visible pixels, valid where `hidden`."""
    hidden: NDArray[np.bool_]
    """(k,) whether some of the picture is hidden."""
    picture: NDArray[np.int64]
    """(k,) picture of each site."""
    at: NDArray[np.int64]
    """(k, 2) x and y of a template's corner, in the picture."""


@dataclass(frozen=True)
class Regions:
    """Image regions in which templates are moved."""

    stored: NDArray[Any]
    """(m, s + 2 radius, s + 2 radius, 3), s the template's side: int16 codes, or float32 at full resolution.
    Values beyond the image's edge are arbitrary: no patch lies there."""
    known: Known
    """(m, s + 2 radius, s + 2 radius, 1) visible pixels, or None for all."""
    energy: NDArray[np.float32] | None
    """(m, 2 radius + 1, 2 radius + 1) sum of squares of the zero-mean tensor under the template; None at full
    resolution."""

    def tensor(self, rows: Any = slice(None)) -> NDArray[np.float32]:
        """Return the tensor of some regions, float32."""
        stored = self.stored[rows]
        return stored if self.energy is None else tensor_of(stored)


def read_side(sites: Sites) -> int:
    """Return the side of what a site needs of an image, in pixels of the full resolution."""
    if not sites.level:
        return PATCH_PX + 2 * sites.radius
    # A tensor lacks the border of its pixels: that of a level begins at the second one.
    return (template_side(sites.level) + 2 * sites.radius << sites.level) + 2


def local_energy_of(codes: NDArray[np.int16], level: int) -> NDArray[np.float32]:
    """Return the sum of squares of the zero-mean tensor under a template, (n, h - s + 1, w - s + 1, 1)."""
    from retrieval.kernels.correlation import local_energy

    return local_energy(np.ascontiguousarray(codes), template_side(level), 1 / CODES)[..., None]


def read_pixels(images: Pixels, sites: Sites, nan_beyond: bool = False) -> NDArray[np.float32]:
    """Read the regions of sites of level 0, (m, s, s, b).

    Args:
        images: of any size.
        sites: also close to an image's edge.
        nan_beyond: beyond the edge the values are NaN; else the image's last pixels repeat.
    """
    side = read_side(sites)
    pixels = np.empty((len(sites.at), side, side, len(sites.columns)), np.float32)
    for image_id, rows in _rows_by_image(sites.image_ids):
        size = images.size(image_id)
        if min(size) < side:
            squares, corner = images.scaled(image_id)[None], np.zeros((len(rows), 2), np.int64)
            square = corner[:, 0]
        else:
            corner, square = _corners(images, image_id, sites, rows), np.arange(len(rows))
            squares = images.squares(image_id, corner, side)
        at, squares = sites.at[rows] - corner, select_bands(squares, sites.columns)
        whole = len(squares) == len(rows) and (at == sites.radius).all()
        pixels[rows] = squares if whole else crop_windows(squares, square, at, side, sites.radius)
        if nan_beyond:
            _blank_beyond(pixels, rows, sites.at[rows] - sites.radius, size)
    return pixels


def _blank_beyond(
    pixels: NDArray[np.float32], rows: NDArray[np.intp], first: NDArray[np.int64], size: tuple[int, int]
) -> None:
    """Set regions to NaN beyond the edge of their image; `first` is the x and y (k, 2) of their corners."""
    limit = np.array(size[::-1], np.int64)
    for number in np.flatnonzero(((first < 0) | (first + pixels.shape[1] > limit)).any(1)):
        region, (left, top) = pixels[rows[number]], np.maximum(-first[number], 0)
        right, bottom = limit - first[number]
        region[:top] = region[bottom:] = np.nan
        region[:, :left] = region[:, right:] = np.nan


def read_around(images: Pixels, sites: Sites, rows: NDArray[np.intp]) -> LocatedSites:
    """Compute the tensors around some sites alone; whole images give equal ones.

    Args:
        images: each at least as large as `read_side`.
        sites: of level 1 or 2.
        rows: (k,) the sites.

    Returns:
        A picture for each site.
    """
    side, count, part = template_side(sites.level) + 2 * sites.radius, len(rows), sites.select(rows)
    codes, known = np.empty((count, side, side, 3), np.int16), np.empty((count, side, side, 1), bool)
    corner = np.empty((count, 2), np.int64)
    for image_id, of_image in _rows_by_image(part.image_ids):
        for crops in np.split(of_image, range(CROPS, len(of_image), CROPS)):
            corner[crops] = _corners(images, image_id, part, crops)
            pixels = images.squares(image_id, corner[crops], read_side(sites))
            layer = pyramid(select_bands(pixels, sites.columns))[sites.level]
            codes[crops] = layer.codes
            known[crops] = True if layer.known is None else layer.known
    hidden, energy = np.asarray(~known.all((1, 2, 3))), local_energy_of(codes, sites.level)
    at = part.at - (corner >> sites.level)
    return LocatedSites(rows, codes, energy, known, hidden, np.arange(count), at)


def _rows_by_image(image_ids: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Yield each image and the rows of its sites."""
    order = np.argsort(image_ids, kind="stable")
    ids, first = np.unique(image_ids[order], return_index=True)
    yield from zip(ids.tolist(), np.split(order, first[1:]), strict=True)


def _corners(images: Pixels, image_id: int, sites: Sites, rows: NDArray[np.intp]) -> NDArray[np.int64]:
    """Corners x and y (k, 2) of what is read for some sites of an image, inside it, in its pixels."""
    most = np.subtract(images.size(image_id)[::-1], read_side(sites)) >> sites.level
    return np.clip(sites.at[rows] - sites.radius, 0, most) << sites.level
