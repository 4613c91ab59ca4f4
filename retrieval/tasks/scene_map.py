"""A classified scene: windows slide over a GeoTIFF, and each pixel gets the class of the nearest window.

The scene is read, and the map is written, in strips of a few rows of windows. So memory does not grow with
the scene's height. Windows lie `stride` pixels apart, and along the right and lower edge. A pixel belongs to
the window with the nearest centre; ties go to the window further up and left. Nodata pixels inside of a
window are filled with the mean of its valid ones; in the map they are 255.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ConfigError, UnitsWarning
from retrieval.evaluation.temperature import softmax
from retrieval.ingest.offset_check import DARK_PERCENT
from retrieval.kernels.executors import SerialExecutor, stream_map
from retrieval.labels.classes import IGNORED, Classes
from retrieval.labels.masks import create_map, finish_map
from retrieval.tasks.classifier import Classifier
from retrieval.tasks.images import image_set
from retrieval.types import Executor, Progress, silent
from tfrecords.artifacts import check_free
from tfrecords.errors import BandsError, GridError
from tfrecords.read import Raster, describe_raster
from tfrecords.read.images import units_of_rasters
from tfrecords.read.rasters import open_raster
from tfrecords.schema import band_names, default_nodata, is_nodata
from tfrecords.storage import scratch_beside

ROWS_AT_A_TIME = 4
"""Rows of windows that are classified together."""
_BATCH = 1024
OFFSET_DN = 1000.0
"""Offset of products from baseline 04.00 on; darkest pixels of ground lie far below it without."""
_OVERVIEW_PX = 512


@dataclass(frozen=True)
class SceneReport:
    """The result of `classify_scene`."""

    path: Path
    """The map."""
    height: int
    """Rows of the map."""
    width: int
    """Columns of the map."""
    windows: int
    """Windows that were classified."""
    shares: dict[str, float]
    """Share of the valid pixels in each class."""
    nodata_share: float
    """Share of the pixels without data."""


def classify_scene(
    source: str | Path,
    classifier: Classifier,
    out: str | Path,
    *,
    stride: int = 10,
    bands: tuple[str, ...] | None = None,
    units: str | None = None,
    orientations: int | None = None,
    overwrite: bool = False,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> SceneReport:
    """Write the class of each pixel of a GeoTIFF, on its own grid.

    Args:
        source: the scene.
        classifier: the model; the scene holds its bands in any order.
        out: the map, uint8: rows of the model's classes, 255 = nodata, with a colour table and names.
        stride: distance of windows in pixels.
        bands: names of the scene's bands; else the file's, else by their number.
        units: units of the scene's pixels; else inferred.
        orientations: flips and rotations to average; None takes the model's.
        overwrite: replace an existing map.
        executor: classifies the strips; None for this thread.
        progress: called after each strip.

    Raises:
        BandsError, UnitsError: the scene lacks a band, or is of another kind than the model's images.
        GridError: the scene is smaller than a window.
        ConfigError: the stride is out of range.
        OutputExistsError: the map exists and `overwrite` is false.
    """
    source, out = Path(source), Path(out)
    check_free(out, overwrite=overwrite)
    scene = _Scene.open(source, classifier, stride, bands, units, orientations)
    classes = Classes(classifier.description.classes)
    with scratch_beside(out) as scratch:
        plain = scratch / "plain.tif"
        counts = _write_plain(scene, plain, executor or SerialExecutor(), progress)
        finish_map(plain, out, classes, overwrite=overwrite)
    valid = counts[: len(classes.names)]
    return SceneReport(
        out,
        scene.raster.height,
        scene.raster.width,
        len(scene.tops) * len(scene.lefts),
        {name: float(n / max(valid.sum(), 1)) for name, n in zip(classes.names, valid, strict=True)},
        float(counts[IGNORED] / counts.sum()),
    )


def _write_plain(scene: _Scene, plain: Path, executor: Executor, progress: Progress) -> NDArray[np.int64]:
    """Write the classes without names and colours, and return the number of pixels of each value."""
    import rasterio
    from rasterio.windows import Window

    raster, counts, total = scene.raster, np.zeros(256, np.int64), len(scene.tops)
    with open_raster(raster.file) as dataset:
        create_map(plain, raster.width, raster.height, dataset.crs, dataset.transform, IGNORED)
    tasks = (StripTask(scene, first) for first in range(0, total, ROWS_AT_A_TIME))
    with rasterio.open(plain, "r+") as target:
        for done, (top, strip) in enumerate(stream_map(executor, strip_task, tasks), start=1):
            target.write(strip, 1, window=Window(0, top, raster.width, len(strip)))
            counts += np.bincount(strip.ravel(), minlength=256)
            progress("classifying rows of windows", min(done * ROWS_AT_A_TIME, total), total)
    return counts


@dataclass(frozen=True, eq=False)
class _Scene:
    """A scene, the windows on it, and the model."""

    raster: Raster
    classifier: Classifier
    columns: list[int]
    """Band of the file for each band of the model, from 0."""
    units: str
    tops: NDArray[np.int64]
    """First row of each row of windows."""
    lefts: NDArray[np.int64]
    """First column of each column of windows."""
    orientations: int | None

    @classmethod
    def open(
        cls,
        source: Path,
        classifier: Classifier,
        stride: int,
        bands: tuple[str, ...] | None,
        units: str | None,
        orientations: int | None,
    ) -> _Scene:
        """Check a scene against a model and lay out the windows."""
        wanted, size = classifier.description.bands, classifier.description.size
        if not 1 <= stride <= min(size):
            raise ConfigError(f"the stride is {stride} pixels. Expected 1 to {min(size)}.")
        raster = describe_raster(source)
        names = band_names(raster.count, bands, raster.descriptions)
        missing = [band for band in wanted if band not in names]
        if missing:
            raise BandsError(
                f"{source}: bands {' '.join(names)}; model {classifier.name} also needs {' '.join(missing)}. "
                "Name the bands with --bands, or give a scene with these bands."
            )
        if raster.height < size[0] or raster.width < size[1]:
            raise GridError(
                f"{source}: {raster.height} x {raster.width} pixels. Expected at least {size[0]} x "
                f"{size[1]}, a window of model {classifier.name}."
            )
        decided = units_of_rasters([raster], units)[0].units
        if decided == "dn" and classifier.description.dn_range is not None:
            _warn_of_offset(raster, [names.index(band) for band in wanted])
        tops, lefts = (
            window_starts(length, side, stride)
            for length, side in zip((raster.height, raster.width), size, strict=True)
        )
        return cls(raster, classifier, [names.index(b) for b in wanted], decided, tops, lefts, orientations)

    def strip(self, dataset: Any, first: int) -> tuple[int, NDArray[np.uint8]]:
        """Return the first row and the classes (h, width) of a strip of the map.

        Args:
            dataset: the open file.
            first: its first row of windows.
        """
        size = self.classifier.description.size
        row_of = nearest(self.tops, size[0], self.raster.height)
        column_of = nearest(self.lefts, size[1], self.raster.width)
        tops = self.tops[first : first + ROWS_AT_A_TIME]
        top, bottom = int(tops[0]), int(tops[-1]) + size[0]
        pixels, known = self._read(dataset, top, bottom)
        grid = self._classes(pixels, known, tops - top)
        rows = np.flatnonzero((row_of >= first) & (row_of < first + len(tops)))
        strip = grid[row_of[rows] - first][:, column_of]
        strip[~self._known(dataset, int(rows[0]), int(rows[-1]) + 1)] = IGNORED
        return int(rows[0]), strip

    def _stored(self, dataset: Any, top: int, bottom: int) -> NDArray[Any]:
        from rasterio.windows import Window

        window = Window(0, top, self.raster.width, bottom - top)
        return self.raster.values(np.moveaxis(dataset.read(window=window), 0, -1))

    def _known(self, dataset: Any, top: int, bottom: int) -> NDArray[np.bool_]:
        """Return where rows of the scene hold data."""
        stored = self._stored(dataset, top, bottom)
        tag = self.raster.nodata
        empty = is_nodata(stored, tag if tag is not None else default_nodata(self.units))  # type: ignore[arg-type]
        if stored.dtype.kind == "f":
            empty |= ~np.isfinite(stored).all(-1)
        return ~empty

    def _read(self, dataset: Any, top: int, bottom: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return rows of the scene in the model's bands and form, and where they hold data."""
        known = self._known(dataset, top, bottom)
        stored = np.where(known[..., None], self._stored(dataset, top, bottom), 0)[..., self.columns]
        name = str(self.raster.path)
        images = image_set(stored[None], self.units, self.classifier.description.bands, ["0"], name)
        return self.classifier.fitting(images, any_size=True).pixels[0], known

    def _classes(
        self, pixels: NDArray[Any], known: NDArray[np.bool_], tops: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """Return the class of each window (rows of windows, columns of windows); 255 where all is nodata."""
        size, positions = self.classifier.description.size, [(t, x) for t in tops for x in self.lefts]
        found = np.full(len(positions), IGNORED, np.uint8)
        for start in range(0, len(positions), _BATCH):
            rows, windows = [], []
            for row, (top, left) in enumerate(positions[start : start + _BATCH], start):
                part = np.s_[top : top + size[0], left : left + size[1]]
                if known[part].any():
                    rows.append(row)
                    windows.append(filled(pixels[part], known[part]))
            if rows:
                logits = self.classifier.logits(np.stack(windows), self.orientations)
                probability = softmax(logits, self.classifier.description.temperature)
                found[rows] = self.classifier.choose(probability)
        return found.reshape(len(tops), len(self.lefts))


@dataclass(frozen=True, eq=False)
class StripTask:
    """Rows of windows to classify; it can be pickled."""

    scene: _Scene
    """The scene, which the worker opens."""
    first: int
    """First row of windows."""


def strip_task(task: StripTask) -> tuple[int, NDArray[np.uint8]]:
    """Return the first row and the classes (h, width) of a strip of the map."""
    with open_raster(task.scene.raster.file) as dataset:
        return task.scene.strip(dataset, task.first)


def _warn_of_offset(raster: Raster, columns: list[int]) -> None:
    """Warn of digital numbers that seem to hold the offset of baseline 04.00."""
    with open_raster(raster.file) as dataset:
        shape = min(_OVERVIEW_PX, raster.height), min(_OVERVIEW_PX, raster.width)
        stored = dataset.read([column + 1 for column in columns], out_shape=(len(columns), *shape))
    numbers = raster.values(np.moveaxis(stored, 0, -1))
    known = numbers[~is_nodata(numbers, raster.nodata if raster.nodata is not None else 0)]
    if known.size and np.percentile(known, DARK_PERCENT) >= OFFSET_DN:
        warnings.warn(
            f"{raster.path}: the darkest pixels lie above {OFFSET_DN:g} DN. The offset of baseline 04.00 may "
            "be in the numbers, or all is bright. Remove it with retrieve ingest, or set the tag OFFSET.",
            UnitsWarning,
            stacklevel=2,
        )


def window_starts(length: int, side: int, stride: int) -> NDArray[np.int64]:
    """Return the first pixel of each window along an axis: one every `stride`, and one at the far end."""
    return np.unique(np.r_[np.arange(0, length - side + 1, stride), length - side]).astype(np.int64)


def nearest(starts: NDArray[np.int64], side: int, length: int) -> NDArray[np.int64]:
    """Return, for each of `length` pixels, the row of the window with the nearest centre; ties: the first."""
    centres = starts + (side - 1) / 2
    borders = (centres[1:] + centres[:-1]) / 2
    return np.searchsorted(borders, np.arange(length), side="left")


def filled(window: NDArray[Any], known: NDArray[np.bool_]) -> NDArray[Any]:
    """Return a window whose nodata pixels hold the mean of its valid ones."""
    if known.all():
        return window
    mean = np.rint(window[known].mean(0)).astype(window.dtype)
    return np.where(known[..., None], window, mean)
