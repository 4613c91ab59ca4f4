"""The map of one image, drawn strip by strip, here or window by window on an executor.

Where one task runs at a time in this process, threads read rows of windows while the network computes. On
other executors a window is a task: a worker reads it, and returns its probabilities. Blending and writing
stay here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.kernels.executors import prefetch_map, stream_map
from retrieval.labels.classes import IGNORED
from retrieval.labels.masks import create_map, finish_map, open_raster, write_png
from retrieval.tasks.segment.sources import ImageFile
from retrieval.tasks.segment.vote import Vote
from retrieval.tasks.segment.windows import WINDOW_PX, Layout
from retrieval.types import Executor, Progress, silent
from tfrecords.geotiff import silent_georeference
from tfrecords.storage import scratch_beside, writing_file

Pixels = NDArray[Any]
Known = NDArray[np.bool_]
Answer = NDArray[np.float32]


@dataclass(frozen=True)
class Drawing:
    """How maps are drawn."""

    vote: Vote
    """The models."""
    window_px: int = WINDOW_PX
    """Largest side of a window."""
    executor: Executor | None = None
    """Runs the windows; None for this thread, which reads ahead."""

    def layout(self, image: ImageFile) -> Layout:
        """Return the windows over an image."""
        vote = self.vote
        return Layout.of(image.height, image.width, self.window_px, vote.unit_px, vote.view_px)


# --- windows --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class WindowTask:
    """A window to segment; it can be pickled."""

    image: ImageFile
    """The image, which the worker opens."""
    vote: Vote
    """The models."""
    top: int
    """First row."""
    left: int
    """First column."""
    side: int
    """Side of the window; less remains at the lower and right edge."""


def window_task(task: WindowTask) -> tuple[Answer | None, Known]:
    """Return the probabilities (y, x, k) of a window, None without data, and its known pixels (y, x)."""
    image = task.image
    down = task.top, min(task.top + task.side, image.height)
    across = task.left, min(task.left + task.side, image.width)
    with open_raster(image.path) as dataset:
        pixels, known = image.read(dataset, list(range(len(image.bands))), down, across)
    return (task.vote.probabilities(pixels[None], known[None], image)[0] if known.any() else None), known


def _windows_here(image: ImageFile, drawing: Drawing) -> Iterator[tuple[Answer | None, Known]]:
    """Yield what `window_task` returns, row by row; whole rows are read ahead by threads."""
    layout, vote = drawing.layout(image), drawing.vote
    side = layout.side

    def read(top: int) -> tuple[Pixels, Known]:
        with open_raster(image.path) as dataset:
            every = list(range(len(image.bands)))
            return image.read(dataset, every, (top, min(top + side, image.height)))

    for pixels, known in prefetch_map(read, layout.tops, count=1):
        for left in layout.lefts:
            part = known[:, left : left + side]
            shown = pixels[None, :, left : left + side]
            yield (vote.probabilities(shown, part[None], image)[0] if part.any() else None), part


def _windows_on(
    executor: Executor, image: ImageFile, drawing: Drawing
) -> Iterator[tuple[Answer | None, Known]]:
    """Yield what `window_task` returns, row by row."""
    layout = drawing.layout(image)
    tasks = (
        WindowTask(image, drawing.vote, top, left, layout.side)
        for top in layout.tops
        for left in layout.lefts
    )
    return stream_map(executor, window_task, tasks)


def strips(image: ImageFile, drawing: Drawing, progress: Progress) -> Iterator[tuple[int, Answer, Known]]:
    """Yield the first row, the probabilities (h, width, k) and the known pixels of successive strips."""
    layout, k = drawing.layout(image), len(drawing.vote.legend.names)
    executor, total = drawing.executor, len(layout.tops) * len(layout.lefts)
    if executor is None or (executor.in_process and executor.slots() == 1):
        windows = _windows_here(image, drawing)
    else:
        windows = _windows_on(executor, image, drawing)
    known_rows: list[Known] = []

    def row(number: int) -> Iterator[Answer]:
        for column, left in enumerate(layout.lefts):
            answer, known = next(windows)
            known_rows[-1][:, left : left + known.shape[1]] = known
            yield np.full((*known.shape, k), 1 / k, np.float32) if answer is None else answer
            progress("segmenting windows", number * len(layout.lefts) + column + 1, total)

    def rows() -> Iterator[Iterator[Answer]]:
        for number, top in enumerate(layout.tops):
            height = min(top + layout.side, image.height) - top
            known_rows.append(np.zeros((height, image.width), bool))
            yield row(number)

    for window_top, (top, strip) in zip(layout.tops, layout.blended(rows()), strict=True):
        yield top, strip, known_rows.pop()[top - window_top :][: len(strip)]


# --- images ---------------------------------------------------------------------------------------


def map_one(
    image: ImageFile,
    drawing: Drawing,
    out: Path,
    table: Path | None,
    overwrite: bool,
    progress: Progress = silent,
) -> NDArray[np.int64]:
    """Write the map of one image as a cloud-optimized GeoTIFF.

    Args:
        image: the image.
        drawing: models, windows and executor.
        out: the map.
        table: also write the probability of each class, a .tif.
        overwrite: replace existing files.
        progress: called after each window.

    Returns:
        (256,) pixels of each value.

    Raises:
        ArrayError: a value is NaN or infinite, and not the nodata tag.
        OutputExistsError: a file exists and `overwrite` is false.
    """
    import rasterio
    from rasterio.windows import Window

    counts = np.zeros(256, np.int64)
    with ExitStack() as stack:
        plain = stack.enter_context(scratch_beside(out)) / "plain.tif"
        with open_raster(image.path) as dataset:
            crs, transform = dataset.crs, dataset.transform
        create_map(plain, image.width, image.height, crs, transform if crs else None, IGNORED)
        partial = stack.enter_context(writing_file(table, overwrite=overwrite)) if table else None
        likely = (
            stack.enter_context(_create_table(partial, image, drawing.vote, crs, transform))
            if partial
            else None
        )
        with silent_georeference():
            target = stack.enter_context(rasterio.open(plain, "r+"))
        for top, strip, known in strips(image, drawing, progress):
            found, window = drawing.vote.choose(strip, known), Window(0, top, image.width, len(strip))
            target.write(found, 1, window=window)
            counts += np.bincount(found.ravel(), minlength=256)
            if likely is not None:
                strip[~known] = np.nan
                likely.write(np.moveaxis(strip, -1, 0), window=window)
        target.close()
        finish_map(plain, out, drawing.vote.legend, overwrite=overwrite)
    return counts


def map_tile(image: ImageFile, drawing: Drawing, out: Path, table: Path | None) -> NDArray[np.int64]:
    """Write the map of an XYZ tile, a palette PNG, and perhaps its probabilities; see `map_one`."""
    parts = list(strips(image, drawing, silent))
    strip = np.concatenate([part for _, part, _ in parts])
    known = np.concatenate([part for _, _, part in parts])
    found = drawing.vote.choose(strip, known)
    if table is not None:
        strip[~known] = np.nan
        with _create_table(table, image, drawing.vote, None, None) as dataset:
            dataset.write(np.moveaxis(strip, -1, 0))
    write_png(out, found, drawing.vote.legend)
    return np.bincount(found.ravel(), minlength=256)


def _create_table(path: Path, image: ImageFile, vote: Vote, crs: Any, transform: Any) -> Any:
    """Create a GeoTIFF with one float32 band for the probability of each class."""
    import rasterio

    names = vote.legend.names
    profile = dict(driver="GTiff", dtype="float32", count=len(names), width=image.width, height=image.height)
    profile |= dict(nodata=np.nan, tiled=True, blockxsize=512, blockysize=512, compress="zstd", predictor=3)
    profile |= dict(crs=crs, BIGTIFF="IF_SAFER", interleave="band") | (
        {"transform": transform} if crs else {}
    )
    with silent_georeference():
        dataset = rasterio.open(path, "w", **profile)
    dataset.descriptions = names
    return dataset


@dataclass(frozen=True, eq=False)
class MapTask:
    """An image of a folder to map; it can be pickled."""

    image: ImageFile
    """The image."""
    drawing: Drawing
    """Models and windows, without an executor."""
    scratch: Path
    """Folder below which the files are written."""
    ending: str
    """".png" for an XYZ tile, else ".tif"."""
    with_table: bool
    """Whether probabilities are written, too."""


@dataclass(frozen=True, eq=False)
class DrawnMap:
    """The files that `map_task` wrote."""

    folder: Path
    """A new folder with `map.tif` or `map.png`, and perhaps `table.tif`."""
    counts: NDArray[np.int64]
    """(256,) pixels of each value."""


def map_task(task: MapTask) -> DrawnMap:
    """Map an image into a new folder; a task that runs twice writes two."""
    folder = Path(tempfile.mkdtemp(dir=task.scratch))
    out, table = folder / f"map{task.ending}", folder / "table.tif" if task.with_table else None
    if task.ending == ".png":
        return DrawnMap(folder, map_tile(task.image, task.drawing, out, table))
    return DrawnMap(folder, map_one(task.image, task.drawing, out, table, True))
