"""Pixel grids of masks: windows of a GeoTIFF, files of a folder, XYZ tiles of a folder or a cover.

A `Grid` is a set of pieces, each a rectangle of pixels with a transform. Work goes piece by piece, so memory
does not grow with the area. XYZ tiles are pieces of one grid in Web Mercator.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import LabelsError
from retrieval.labels.covers import read_cover
from retrieval.labels.files import Role, find_files, tile_of
from retrieval.labels.masks import alpha_bands, open_raster, shape_of

WINDOW_PX = 2048
"""Side of the windows in which a large raster is processed."""
TILE_PX = 256
"""Side of an XYZ tile of a cover."""
WEB_MERCATOR = "EPSG:3857"


@dataclass(frozen=True, slots=True)
class Piece:
    """A rectangle of pixels: a window of a raster, or a whole tile."""

    name: str
    """Name of the file that it belongs to, without ending."""
    path: Path | None
    """The image; None for a tile of a cover."""
    crs: Any
    """CRS of rasterio."""
    transform: Any
    """From the piece's pixels to map coordinates, an `Affine`."""
    width: int
    height: int
    x: int = 0
    """First column in the file."""
    y: int = 0
    """First row in the file."""

    @property
    def window(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows and columns in the file, for rasterio."""
        return (self.y, self.y + self.height), (self.x, self.x + self.width)

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Smallest and largest map coordinates: west, south, east, north."""
        import shapely
        from shapely.affinity import affine_transform

        outline = affine_transform(shapely.box(0, 0, self.width, self.height), self.transform.to_shapely())
        west, south, east, north = outline.bounds
        return west, south, east, north


@dataclass(frozen=True)
class Grid:
    """The pixels that masks are made for."""

    pieces: tuple[Piece, ...]
    """Pieces of one file follow each other."""
    is_tiled: bool
    """Whether the pieces are XYZ tiles, whose masks are PNGs."""
    is_folder: bool
    """Whether the masks form a folder."""

    def by_crs(self) -> dict[Any, list[int]]:
        """Return the numbers of the pieces by the text of their CRS."""
        groups: dict[Any, list[int]] = {}
        for number, piece in enumerate(self.pieces):
            groups.setdefault(piece.crs.to_wkt(), []).append(number)
        return groups

    def files(self) -> Iterator[tuple[str, list[int]]]:
        """Yield the name of each file and the numbers of its pieces."""
        groups: dict[str, list[int]] = {}
        for number, piece in enumerate(self.pieces):
            groups.setdefault(piece.name, []).append(number)
        yield from groups.items()


def open_grid(
    like: str | Path, zoom: int | None = None, role: Role = "image", window_px: int = WINDOW_PX
) -> Grid:
    """Open the pixels that a raster, a folder or a cover stands for.

    Args:
        like: a raster with a CRS, a folder of such rasters or of XYZ tiles, or a cover (CSV).
        zoom: only the XYZ tiles of this zoom.
        role: whether the files are images or masks.
        window_px: side of the windows of a raster.

    Returns:
        The grid; no pixel is read.

    Raises:
        MissingInputError: nothing there.
        LabelsError: a raster has no CRS, or the folder mixes tiles and other files.
    """
    like = Path(like)
    if like.suffix.lower() == ".csv":
        tiles = [tile for tile, _ in read_cover(like) if zoom in (None, tile.z)]
        if not tiles:
            raise LabelsError(f"{like}: no tile of zoom {zoom}. Expected one of the file's zooms.")
        return Grid(tuple(_tile_piece(tile, None, TILE_PX) for tile in tiles), True, True)
    files = find_files(like, role, zoom)
    tiles_of = {name: tile_of(name) for name in files}
    if like.is_dir() and all(tiles_of.values()):
        pieces = []
        for name, path in files.items():
            with open_raster(path) as dataset:
                pieces.append(_tile_piece(tiles_of[name], path, dataset.width, name))
        return Grid(tuple(pieces), True, True)
    return Grid(
        tuple(p for name, path in files.items() for p in _windows(name, path, window_px)),
        False,
        like.is_dir(),
    )


def _tile_piece(tile: Any, path: Path | None, size: int, name: str = "") -> Piece:
    import mercantile
    import rasterio

    name = name or f"{tile.z}/{tile.x}/{tile.y}"
    box = mercantile.xy_bounds(tile)
    step = (box.right - box.left) / size
    transform = rasterio.Affine(step, 0.0, box.left, 0.0, -step, box.top)
    return Piece(name, path, _web_mercator(), transform, size, size)


@cache
def _web_mercator() -> Any:
    """Return one CRS for all tiles, which may be millions."""
    import rasterio

    return rasterio.CRS.from_string(WEB_MERCATOR)


def _windows(name: str, path: Path, side: int) -> Iterator[Piece]:
    """Yield the windows of a raster, row by row."""
    shape = shape_of(path)
    if not shape.crs:
        raise LabelsError(
            f"{path}: no CRS. Expected a georeferenced raster or XYZ tiles, to place labels on its pixels."
        )
    for y in range(0, shape.height, side):
        for x in range(0, shape.width, side):
            width, height = min(side, shape.width - x), min(side, shape.height - y)
            yield Piece(name, path, shape.crs, moved(shape.transform, x, y), width, height, x, y)


def moved(transform: Any, x: int, y: int) -> Any:
    """Return the transform of a window, an `Affine`, from its raster's and its first column and row."""
    import rasterio

    a, b, c, d, e, f = transform[:6]
    return rasterio.Affine(a, b, a * x + b * y + c, d, e, d * x + e * y + f)


def hidden_pixels(piece: Piece) -> NDArray[np.bool_] | None:
    """Return where an image has no data: alpha 0, or all bands equal to the nodata tag.

    Returns:
        (h, w); None where every pixel has data.
    """
    if piece.path is None:
        return None
    with open_raster(piece.path) as dataset:
        alpha = alpha_bands(dataset)
        if alpha:
            hidden = dataset.read(alpha[0], window=piece.window) == 0
        elif dataset.nodata is not None:
            pixels = dataset.read(window=piece.window)
            nodata = dataset.nodata
            hidden = (np.isnan(pixels) if np.isnan(nodata) else pixels == nodata).all(axis=0)
        else:
            return None
    return hidden if hidden.any() else None
