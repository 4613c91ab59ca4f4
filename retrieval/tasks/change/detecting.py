"""Map the change between two dates: `change.tif`, its probabilities and its polygons."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.errors import LabelsError
from retrieval.ingest.grids import quiet_gdal
from retrieval.labels.classes import IGNORED, Classes
from retrieval.labels.masks import create_map, finish_map
from retrieval.labels.vectorizing import check_vector_output, vectorize
from retrieval.tasks.change.learned import Models, check_bands, scorer_of
from retrieval.tasks.change.mapping import ChangeMap, Options, Write, map_change
from retrieval.tasks.change.pairs import Pair, open_pair
from retrieval.types import Executor, Progress, silent
from tfrecords.artifacts import check_free
from tfrecords.read import Raster
from tfrecords.storage import check_raster, scratch_beside, writing_file

CHANGE = Classes.binary("change")
"""Classes of the map: background 0, change 1."""


@dataclass(frozen=True)
class DetectReport:
    """Result of `detect`."""

    path: Path
    """The map."""
    height: int
    """Rows of the map."""
    width: int
    """Columns of the map."""
    dx: float
    """Shift that was removed: ground of column x of `before` is at x + dx in `after`, pixels."""
    dy: float
    """Likewise for rows."""
    shift_found: bool
    """Whether a shift was measured; else the dates are compared as they lie."""
    ncc: float
    """Mean correlation of the dates at this shift."""
    threshold: float
    """Probability from which a pixel counts as changed."""
    change_share: float
    """Share of the visible pixels that changed."""
    hidden_share: float
    """Share of the pixels that are nodata or cloud on either date."""
    cloud_share: float
    """Share of the pixels under cloud on either date."""
    probabilities: Path | None
    """The map of probabilities, or None."""
    polygons: Path | None
    """The vector file, or None."""
    areas: int | None
    """Polygons in it, or None."""
    notes: tuple[str, ...]
    """Warped grids and bands left out, one sentence each."""


def detect(
    before: str | Path,
    after: str | Path,
    out: str | Path,
    *,
    probabilities: str | Path | None = None,
    polygons: str | Path | None = None,
    model: Models | None = None,
    threshold: float | None = None,
    options: Options | None = None,
    bands: Sequence[str] | None = None,
    units: str | None = None,
    overwrite: bool = False,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> DetectReport:
    """Map the change between two dates, on the grid of the first.

    Args:
        before: GeoTIFF of the first date.
        after: GeoTIFF of the second date; another grid is warped, with a note.
        out: the map, uint8: 1 change, 0 none, 255 nodata or cloud of either date. The tags `SHIFT_DX` and
            `SHIFT_DY` hold the shift that was removed.
        probabilities: also write the probability of change, float32, NaN where no ground is seen.
        polygons: also write changed areas as polygons: .gpkg, .parquet, .geojson or .fgb.
        model: folder that `train` wrote, or several, whose mean decides; None compares without labels.
        threshold: probability from which a pixel counts as changed; None takes the method's.
        options: coregistration, cloud mask and smallest area.
        bands: names of the bands; else the files', else by their number.
        units: units of the pixels; else inferred.
        overwrite: replace existing outputs.
        executor: runs the strips; None for this thread.
        progress: called after each strip.

    Raises:
        MissingInputError, ArrayError: a file is missing or damaged.
        BandsError, GridError, UnitsError: the dates do not fit each other.
        ExamplesError: the dates share less than 256 pixels of visible ground.
        LabelsError: polygons of a file without a CRS, or with another ending.
        OutputExistsError: an output exists and `overwrite` is false.
    """
    out = Path(out)
    more = [Path(path) if path is not None else None for path in (probabilities, polygons)]
    _check_outputs(out, *more, overwrite=overwrite)
    pair = open_pair(before, after, bands=bands, units=units)
    if more[1] is not None and not pair.grid.crs:
        raise LabelsError(f"{before}: no CRS. Expected one to place polygons. Leave out --polygons.")
    scorer = scorer_of(model, threshold)
    check_bands(scorer, pair)
    with _writing_probabilities(more[0], pair.grid, overwrite) as write:
        found = map_change(pair, scorer, options, write, progress, executor)
    write_map(found, pair.grid, out, overwrite=overwrite)
    areas = None
    if more[1] is not None:
        areas = vectorize(out, more[1], classes=CHANGE, overwrite=overwrite).features
    return _report(found, pair, out, more[0], more[1], areas)


def _check_outputs(out: Path, probabilities: Path | None, polygons: Path | None, *, overwrite: bool) -> None:
    """Refuse outputs that exist or have another ending, before anything is read."""
    for path in (out, probabilities):
        if path is not None:
            if path.suffix.lower() not in (".tif", ".tiff"):
                raise LabelsError(f"{path}: the ending is {path.suffix!r}. Expected .tif.")
            check_free(path, overwrite=overwrite)
    if polygons is not None:
        check_vector_output(polygons, overwrite)


def _report(
    found: ChangeMap,
    pair: Pair,
    out: Path,
    probabilities: Path | None,
    polygons: Path | None,
    areas: int | None,
) -> DetectReport:
    return DetectReport(
        path=out,
        height=pair.shape[0],
        width=pair.shape[1],
        dx=round(found.shift.dx, 3),
        dy=round(found.shift.dy, 3),
        shift_found=found.shift.found,
        ncc=round(found.shift.ncc, 4),
        threshold=found.threshold,
        change_share=found.change_share,
        hidden_share=found.hidden_share,
        cloud_share=found.cloud_share,
        probabilities=probabilities,
        polygons=polygons,
        areas=areas,
        notes=pair.notes,
    )


def write_map(found: ChangeMap, grid: Raster, out: Path, *, overwrite: bool = False) -> None:
    """Write a map of change as a cloud-optimized GeoTIFF with class names and the tags of the shift."""
    import rasterio

    with scratch_beside(out) as scratch:
        plain = scratch / "plain.tif"
        create_map(plain, grid.width, grid.height, *_georeference(grid), IGNORED)
        with quiet_gdal(), rasterio.open(plain, "r+") as dataset:
            dataset.write(found.values, 1)
            shift = found.shift
            dataset.update_tags(
                SHIFT_DX=f"{shift.dx:.3f}",
                SHIFT_DY=f"{shift.dy:.3f}",
                SHIFT_FOUND=str(shift.found).lower(),
                THRESHOLD=f"{found.threshold:.6g}",
            )
        finish_map(plain, out, CHANGE, overwrite=overwrite)


def _georeference(grid: Raster) -> tuple[Any, Any]:
    """Return CRS and transform of a raster for rasterio, None where it has none."""
    from affine import Affine

    return grid.crs, Affine(*grid.transform) if grid.transform else None


@contextmanager
def _writing_probabilities(path: Path | None, grid: Raster, overwrite: bool) -> Iterator[Write | None]:
    """Write strips of probabilities as a cloud-optimized GeoTIFF, whole or not at all."""
    import rasterio
    import rasterio.shutil
    from rasterio.windows import Window

    if path is None:
        yield None
        return
    crs, transform = _georeference(grid)
    profile = dict(driver="GTiff", dtype="float32", count=1, width=grid.width, height=grid.height)
    profile |= dict(nodata=float("nan"), tiled=True, blockxsize=256, blockysize=256, BIGTIFF="IF_SAFER")
    profile |= dict(crs=crs, compress="zstd", zstd_level=1) | ({"transform": transform} if transform else {})
    with scratch_beside(path) as scratch:
        plain = scratch / "plain.tif"
        with quiet_gdal(), rasterio.open(plain, "w", **profile) as dataset:
            dataset.set_band_description(1, "probability of change")

            def write(top: int, values: np.ndarray) -> None:
                dataset.write(values, 1, window=Window(0, top, grid.width, len(values)))

            yield write
        check_raster(plain)
        options = dict(COMPRESS="DEFLATE", PREDICTOR="YES", BIGTIFF="IF_SAFER", RESAMPLING="AVERAGE")
        with quiet_gdal(), writing_file(path, overwrite=overwrite) as partial:
            rasterio.shutil.copy(plain, partial, driver="COG", **options)
