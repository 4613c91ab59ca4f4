"""Places with labels: `places/NAME/<date>.tif` and `labels/NAME.tif`, matched by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import LabelsError
from retrieval.ingest.grids import needs_warp, quiet_gdal
from retrieval.ingest.places import Place, find_places
from retrieval.labels.classes import IGNORED, Classes
from retrieval.labels.files import find_files
from retrieval.labels.masks import read_mask
from tfrecords.errors import listed
from tfrecords.read import Raster, describe_raster
from tfrecords.read.rasters import open_raster

_CHANGE = Classes.binary("change")


@dataclass(frozen=True)
class LabelledPlace:
    """A place of at least two dates, and the file of its labels."""

    place: Place
    labels: Path

    @property
    def name(self) -> str:
        """Name of the place."""
        return self.place.name


def labelled_places(
    places: str | Path, labels: str | Path
) -> tuple[tuple[LabelledPlace, ...], tuple[str, ...]]:
    """Pair places with labels of the same name.

    Args:
        places: folder of folders of dated GeoTIFFs.
        labels: folder of masks called as the places.

    Returns:
        The pairs in the order of the names, and notes on places and labels without a partner.

    Raises:
        MissingInputError: a folder is missing or empty, or a file name holds no date.
        LabelsError: no place of two dates has labels.
    """
    found = {place.name: place for place in find_places(places)}
    masks = find_files(labels, "mask")
    paired = sorted(set(found) & set(masks))
    single = [name for name in paired if len(found[name].files) < 2]
    kept = tuple(LabelledPlace(found[name], masks[name]) for name in paired if name not in single)
    notes = [
        f"{len(names)} {text}: {listed(names, 5)}"
        for names, text in (
            (sorted(set(found) - set(masks)), "places without labels are skipped"),
            (sorted(set(masks) - set(found)), "labels without a place are skipped"),
            (single, "places of one date are skipped"),
        )
        if names
    ]
    if not kept:
        raise LabelsError(
            f"{labels}: no mask has the name of a place of two dates in {places}, such as "
            f"{next(iter(found))!r}. Expected {Path(labels) / (next(iter(found)) + '.tif')}."
        )
    return kept, tuple(notes)


def read_labels(path: Path, grid: Raster) -> tuple[NDArray[np.uint8], str | None]:
    """Read labels on the grid of a place.

    Args:
        path: the mask: 1 change, 0 none, 255 no label.
        grid: first date of the place.

    Returns:
        (height, width), and a note if the labels lie on another grid and were warped.

    Raises:
        LabelsError: another value.
        GridError: another size without a georeference, or no overlap.
    """
    raster = describe_raster(path)
    with quiet_gdal():
        if not needs_warp(grid, raster):
            return read_mask(path, _CHANGE), None
        values = _warped(path, grid)
    wrong = [int(value) for value in np.unique(values) if value not in (0, 1, IGNORED)]
    if wrong:
        raise LabelsError(f"{path}: class value {wrong[0]}. Expected 0, 1 (change), or 255 for no label.")
    return values, f"{path}: labels on another grid, warped to that of {grid.path}"


def _warped(path: Path, grid: Raster) -> NDArray[np.uint8]:
    from affine import Affine
    from rasterio.enums import Resampling
    from rasterio.vrt import WarpedVRT

    assert grid.transform is not None
    with (
        open_raster(path) as dataset,
        WarpedVRT(
            dataset,
            crs=grid.crs,
            transform=Affine(*grid.transform),
            width=grid.width,
            height=grid.height,
            resampling=Resampling.nearest,
            src_nodata=IGNORED,
            nodata=IGNORED,
        ) as warped,
    ):
        return np.asarray(warped.read(1), np.uint8)
