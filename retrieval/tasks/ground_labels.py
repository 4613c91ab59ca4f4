"""Labelled images out of GeoTIFFs: chips around labelled points and inside labelled polygons.

A point gives the window around it, moved inwards at the border of the image. A polygon gives the windows of a
grid that lie in it as a whole, evenly spread, `MAX_CHIPS` at most. A smaller polygon gives the window around
a point in it. A label on several dates gives chips of each. Windows with nodata are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ExamplesError, LabelsError
from retrieval.labels.vectors import VectorFile
from tfrecords.errors import BandsError, GridError, MissingInputError
from tfrecords.read import Raster, describe_raster
from tfrecords.read.rasters import open_raster
from tfrecords.read.sources import TIF, files_below
from tfrecords.schema import band_names, default_nodata, is_nodata

MAX_CHIPS = 50
"""Most chips of a polygon in an image."""


@dataclass(frozen=True)
class Ground:
    """Where vector labels get their images from."""

    images: Path
    """A GeoTIFF, or a folder of GeoTIFFs."""
    attribute: str
    """Attribute that holds the class of a feature."""
    size_px: int = 64
    """Side of a chip."""
    layer: str | None = None
    """Layer of the vector file; None for the only one."""


@dataclass
class Chips:
    """The chips that labels gave."""

    pixels: list[NDArray[Any]] = field(default_factory=list)
    """Each (size, size, b) as stored."""
    labels: list[Any] = field(default_factory=list)
    """Class of each."""
    ids: list[str] = field(default_factory=list)
    """File, number of the feature and of the chip."""
    bands: tuple[str, ...] = ()
    """Names of the bands."""
    notes: list[str] = field(default_factory=list)
    """Remarks on labels that gave no chip, and on repairs and reprojection."""


def cut_labelled(labels: str | Path, ground: Ground, bands: Sequence[str] | None = None) -> Chips:
    """Cut chips where labels lie.

    Args:
        labels: a vector file of points and polygons.
        ground: the images, the attribute, and the size of a chip.
        bands: names of the images' bands; else the files', else by their number.

    Raises:
        MissingInputError: no such file or image.
        LabelsError: no CRS, no such attribute, a line, or a damaged file.
        GridError: an image without a CRS.
        BandsError: images with different bands.
        ExamplesError: no label lies on an image.
    """
    files = files_below(ground.images, TIF) if ground.images.is_dir() else (ground.images,)
    if not files:
        raise MissingInputError(f"{ground.images}: no GeoTIFF in it. Expected the images of the labels.")
    chips, seen, total, unlabelled, holed = Chips(), set[int](), 0, set[int](), 0
    reading: set[str] = set()
    for path in files:
        raster = describe_raster(path)
        _check(raster, bands, chips, files[0])
        file = VectorFile.open(labels, ground.layer)
        file.check_column(ground.attribute)
        for row, shape, value in _features(file, raster, ground.attribute):
            total = max(total, file.read)
            windows = list(_windows(shape, row, raster, ground.size_px, labels))
            if not windows:
                continue
            seen.add(row)
            if value is None or str(value).strip() == "":
                unlabelled.add(row)
                continue
            holed += _cut(raster, windows, (path, row, value), ground, chips)
        total = max(total, file.read)
        reading |= set(file.notes())
    if not seen:
        raise ExamplesError(
            f"{labels}: none of its {total} labels lies on an image of {ground.images} with "
            f"{ground.size_px} x {ground.size_px} pixels or more. Give images of the same ground."
        )
    chips.notes += sorted(reading)
    for count, text in (
        (total - len(seen), "labels outside of all images"),
        (len(unlabelled), f"labels without {ground.attribute}"),
        (holed, "chips with nodata"),
    ):
        if count:
            chips.notes.append(f"{Path(labels).name}: {text}: {count}, left out")
    if not chips.pixels:
        raise ExamplesError(f"{labels}: no chip is left. {'; '.join(chips.notes)}.")
    return chips


def _check(raster: Raster, bands: Sequence[str] | None, chips: Chips, first: Path) -> None:
    """Refuse an image without a place on the ground, or with other bands than the first one."""
    if raster.georeference is None:
        raise GridError(
            f"{raster.path}: no CRS or transform. Labels need images with a place on the ground. Add it: "
            "gdal_translate -a_srs EPSG:NUMBER."
        )
    names = band_names(raster.count, bands, raster.descriptions)
    if chips.bands and chips.bands != names:
        raise BandsError(
            f"{raster.path}: bands {' '.join(names)}; {first} has {' '.join(chips.bands)}. Expected the same "
            "bands in all images."
        )
    chips.bands = names


def _features(file: VectorFile, raster: Raster, attribute: str) -> Iterator[tuple[int, Any, Any]]:
    """Yield number, geometry and class of each feature, in pixels of an image."""
    import shapely.affinity
    from affine import Affine

    assert raster.georeference is not None
    inverse = ~Affine(*raster.georeference.transform)
    for batch in file.batches(raster.georeference.crs, [attribute]):
        for row, shape, value in zip(batch.rows, batch.shapes, batch.values[attribute], strict=True):
            yield int(row), shapely.affinity.affine_transform(shape, inverse.to_shapely()), value


def _windows(
    shape: Any, row: int, raster: Raster, size: int, labels: str | Path
) -> Iterator[tuple[int, int]]:
    """Yield column and row of each chip of a label, given in pixels of the image."""
    import shapely

    if raster.width < size or raster.height < size:
        return
    for part in shapely.get_parts(shape):
        kind = part.geom_type
        if kind == "Point":
            yield from _around(part.x, part.y, raster, size)
        elif kind == "Polygon":
            yield from _inside(part, raster, size)
        else:
            raise LabelsError(f"{labels}: feature {row} is a {kind}. Expected points or polygons.")


def _around(x: float, y: float, raster: Raster, size: int) -> Iterator[tuple[int, int]]:
    """Yield the window around a pixel coordinate, moved inwards at the border; none outside of the image."""
    if 0 <= x < raster.width and 0 <= y < raster.height:
        corner = (round(v - size / 2) for v in (x, y))
        left, top = (
            min(max(c, 0), n - size) for c, n in zip(corner, (raster.width, raster.height), strict=True)
        )
        yield left, top


def _inside(polygon: Any, raster: Raster, size: int) -> Iterator[tuple[int, int]]:
    """Yield the windows of a grid that lie in a polygon, else the window around a point in it."""
    import shapely

    inside = shapely.intersection(polygon, shapely.box(0, 0, raster.width, raster.height))
    if inside.is_empty or not inside.area:
        return
    west, north, east, south = (int(v) for v in inside.bounds)
    corners = [
        (x, y)
        for y in range(north, min(south, raster.height - size) + 1, size)
        for x in range(west, min(east, raster.width - size) + 1, size)
    ]
    boxes = shapely.box(*np.array([(x, y, x + size, y + size) for x, y in corners] or np.zeros((0, 4))).T)
    shapely.prepare(inside)
    whole = [corner for corner, held in zip(corners, shapely.covers(inside, boxes), strict=True) if held]
    if not whole:
        point = inside.representative_point()
        yield from _around(point.x, point.y, raster, size)
        return
    for number in np.unique(np.linspace(0, len(whole) - 1, min(MAX_CHIPS, len(whole))).round().astype(int)):
        yield whole[number]


def _cut(
    raster: Raster,
    windows: Sequence[tuple[int, int]],
    label: tuple[Path, int, Any],
    ground: Ground,
    chips: Chips,
) -> int:
    """Read the windows of a label, and return how many hold nodata."""
    from rasterio.windows import Window

    path, row, value = label
    base = path.relative_to(ground.images).as_posix() if ground.images.is_dir() else path.name
    holed = 0
    with open_raster(raster.file) as dataset:
        for number, (left, top) in enumerate(windows):
            window = Window(left, top, ground.size_px, ground.size_px)
            tile = raster.values(np.moveaxis(dataset.read(window=window), 0, -1))
            tag = raster.nodata
            if tag is None and tile.dtype != np.uint8:
                tag = default_nodata("dn")
            if is_nodata(tile, tag).any():
                holed += 1
                continue
            chips.pixels.append(tile)
            chips.labels.append(value if isinstance(value, (int, float)) else str(value).strip())
            chips.ids.append(f"{base.rsplit('.', 1)[0]}-{row}-{number}")
    return holed
