"""The windows of rasters that an area covers, and their split into train, val and test by blocks of ground.

A raster is cut into windows from its first pixel on; the last ones of a row or column may be smaller. A
window belongs to the block, an XYZ tile of a coarse zoom, that holds its centre. Windows of one raster share
no ground. Windows of several may: of two that share ground, only windows of one split stay.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import LabelsError
from retrieval.labels.files import find_files, reading_csv
from retrieval.labels.masks import open_raster, shape_of
from retrieval.labels.splits import SPLITS, assign, blocks_of
from tfrecords.errors import MissingInputError

if TYPE_CHECKING:
    from shapely import Geometry

HEADER = ("name", "col_off", "row_off", "width", "height", "split")
"""Columns of a cover of windows; the four in the middle are the arguments of `rasterio.windows.Window`."""
SMALLEST_PX, LARGEST_PX = 16, 2**15
"""Sides of a window."""
_SHRINK_PX = 0.01
"""Pixels by which a window is smaller in tests, so that it does not touch its neighbours."""


@dataclass(frozen=True, slots=True)
class SceneWindow:
    """A rectangle of pixels of a raster."""

    name: str
    """Name of the raster, without ending."""
    col_off: int
    """First column."""
    row_off: int
    """First row."""
    width: int
    height: int


@dataclass(frozen=True, eq=False)
class SceneWindows:
    """Windows with their ground."""

    windows: tuple[SceneWindow, ...]
    outlines: NDArray[np.object_]
    """(n,) polygons in longitude and latitude, a trace smaller than the windows."""
    grown: NDArray[np.object_]
    """(n,) the same with the gap on each side."""

    def at(self, rows: NDArray[np.int64]) -> SceneWindows:
        """Return some of the windows."""
        return SceneWindows(tuple(self.windows[row] for row in rows), self.outlines[rows], self.grown[rows])


def scene_windows(like: Path, side: int, gap: int = 0) -> SceneWindows:
    """Cut a raster, or each raster of a folder, into windows.

    Args:
        like: the raster or the folder.
        side: pixels of a side of a window, 16 to 32,768.
        gap: windows between two splits.

    Raises:
        LabelsError: the side is out of range, or a raster has no CRS.
        MissingInputError: no raster.
    """
    if not SMALLEST_PX <= side <= LARGEST_PX:
        raise LabelsError(f"--window {side}: out of range. Expected {SMALLEST_PX} to {LARGEST_PX} pixels.")
    windows, outlines, grown = list[SceneWindow](), [], []
    for name, path in find_files(like).items():
        shape = shape_of(path)
        mine = [
            SceneWindow(name, x, y, min(side, shape.width - x), min(side, shape.height - y))
            for y in range(0, shape.height, side)
            for x in range(0, shape.width, side)
        ]
        numbers = np.array([astuple(window)[1:] for window in mine], np.float64)
        windows += mine
        outlines.append(_outlines(path, numbers, -_SHRINK_PX))
        grown.append(_outlines(path, numbers, gap * side - _SHRINK_PX))
    return SceneWindows(tuple(windows), np.concatenate(outlines), np.concatenate(grown))


def covered(found: SceneWindows, batches: Iterable[Iterable[Geometry]]) -> SceneWindows:
    """Return the windows that share ground with geometries in longitude and latitude."""
    import shapely

    tree, hit = shapely.STRtree(found.outlines), np.zeros(len(found.windows), bool)
    for shapes in batches:
        hit[tree.query(np.array(list(shapes), object), predicate="intersects")[1]] = True
    return found.at(np.flatnonzero(hit))


def split_windows(
    found: SceneWindows, shares: Sequence[float], block_zoom: int | None, seed: int
) -> tuple[list[tuple[SceneWindow, str]], int, int]:
    """Assign windows to splits by blocks of ground.

    Args:
        found: the windows.
        shares: wanted share of the windows, by split.
        block_zoom: zoom of the blocks; None for the largest that are at least twenty.
        seed: decides which block goes to which split.

    Returns:
        - windows and their splits, without those that share ground with a window of a later split
        - the zoom of the blocks
        - the number of blocks
    """
    import mercantile
    import shapely

    west, _, east, _ = shapely.bounds(found.outlines).T
    zoom = int(np.clip(np.ceil(np.log2(360 / (east - west).max())), 0, 30))
    centres = shapely.get_coordinates(shapely.centroid(found.outlines))
    blocks, used = blocks_of([mercantile.tile(x, y, zoom) for x, y in centres], shares, block_zoom)
    assigned = assign(blocks, shares, seed)
    names = [assigned[block] for block in blocks]
    order = np.array([SPLITS.index(name) for name in names])
    one, two = shapely.STRtree(found.outlines).query(found.grown, predicate="intersects")
    given_way = set(one[order[one] < order[two]].tolist())
    pairs = zip(found.windows, names, strict=True)
    return [pair for row, pair in enumerate(pairs) if row not in given_way], used, len(set(blocks))


def write_windows(path: Path, rows: Iterable[tuple[SceneWindow, str]]) -> None:
    """Write windows and their splits as a CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        writer.writerows((*astuple(window), name) for window, name in rows)


def read_windows(path: str | Path, split: str | None = None) -> list[tuple[SceneWindow, str]]:
    """Read windows and their splits, which are `train` without a column `split`.

    Args:
        path: a CSV that `retrieve labels cover --window` wrote, or one with its columns.
        split: only the windows of this split.

    Raises:
        MissingInputError: no such file.
        LabelsError: a column is missing, a row is no window, or no row is left.
    """
    path, expected = Path(path), ",".join(HEADER)
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file. Expected a CSV with the columns {expected}.")
    rows = []
    with reading_csv(path, expected) as reader:
        for row in reader:
            try:
                window = SceneWindow(row["name"], *(int(row[name]) for name in HEADER[1:5]))
            except (KeyError, TypeError, ValueError):
                raise LabelsError(
                    f"{path}, line {reader.line_num}: no window. Expected {expected}."
                ) from None
            name = row.get("split") or "train"
            least = min(window.col_off, window.row_off, window.width - 1, window.height - 1)
            if not window.name or least < 0 or name not in SPLITS:
                raise LabelsError(f"{path}, line {reader.line_num}: no window. Expected {expected}.")
            if split in (None, name):
                rows.append((window, name))
    if not rows:
        raise LabelsError(
            f"{path}: no window" + (f" of split {split}." if split else ".") + " Check the file."
        )
    return rows


def _outlines(path: Path, windows: NDArray[np.float64], grow: float) -> NDArray[np.object_]:
    """Return the outlines (n,) of windows (n, 4) of a raster, larger by some pixels on each side."""
    import shapely

    with open_raster(path) as dataset:
        crs, transform = dataset.crs, dataset.transform
    x, y, width, height = windows.T
    xs = np.stack([x - grow, x + width + grow, x + width + grow, x - grow], -1)
    ys = np.stack([y - grow, y - grow, y + height + grow, y + height + grow], -1)
    corners = _lonlat(path, crs, transform, np.stack([xs.ravel(), ys.ravel()], -1))
    return np.asarray(shapely.polygons(corners.reshape(-1, 4, 2)))


def _lonlat(path: Path, crs: Any, transform: Any, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return longitude and latitude (n, 2) of points (n, 2) in pixels of a raster.

    Raises:
        LabelsError: the raster has no CRS, or one without longitude and latitude.
    """
    from rasterio.errors import CRSError
    from rasterio.warp import transform as warped

    if not crs:
        raise LabelsError(f"{path}: no CRS. Expected a raster with a georeference.")
    try:
        a, b, c, d, e, f = transform[:6]
        x, y = pixels.T
        return np.array(warped(crs, "OGC:CRS84", a * x + b * y + c, d * x + e * y + f)).T
    except CRSError as error:
        raise LabelsError(f"{path}: its CRS has no longitude and latitude ({error}).") from None
