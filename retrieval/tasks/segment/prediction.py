"""Class maps of scenes of any size, or of all images of a folder.

A scene is read in strips of a window's height, and each strip is written as soon as no later window changes
it. So memory follows the scene's width, never its height. On an executor the windows of a scene are tasks, or
the images of a folder.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ConfigError
from retrieval.kernels.executors import SerialExecutor, stream_map
from retrieval.labels.classes import IGNORED
from retrieval.labels.files import find_files, tile_of
from retrieval.tasks.segment.drawing import Drawing, DrawnMap, MapTask, map_one, map_task
from retrieval.tasks.segment.model import Segmenter, load_segmenter
from retrieval.tasks.segment.sources import ImageFile, open_images
from retrieval.tasks.segment.vote import Vote
from retrieval.tasks.segment.windows import WINDOW_PX
from retrieval.types import Executor, Progress, silent
from tfrecords.artifacts import PartialFolder, check_free, writing_folder

MAPS = (".tif", ".tiff")
"""Endings of the map of one image."""
NAMES = ".aux.xml"
"""After the name of a map: GDAL's file of class names."""
KIND = "masks"
"""Kind of the folder of maps: that of masks, so that its class names are found alike."""
TABLES = "probabilities"
"""Kind of the folder of probabilities."""


@dataclass(frozen=True)
class SegmentReport:
    """The result of `predict`."""

    path: Path
    """The map, or the folder of maps."""
    images: int
    """Number of images."""
    pixels: int
    """Their pixels."""
    shares: dict[str, float]
    """Share of the valid pixels in each class."""
    nodata_share: float
    """Share of the pixels without data."""


def predict(
    images: str | Path,
    models: str | Path | Segmenter | Sequence[str | Path | Segmenter],
    out: str | Path,
    *,
    probabilities: str | Path | None = None,
    zoom: int | None = None,
    bands: Sequence[str] | None = None,
    units: str | None = None,
    orientations: int | None = None,
    window_px: int = WINDOW_PX,
    overwrite: bool = False,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> SegmentReport:
    """Write the class of each pixel of a scene, or of all images of a folder.

    The map of an image is a cloud-optimized GeoTIFF on its grid, with colour table and class names; 255 is
    nodata. The map of an XYZ tile is a palette PNG. An interrupted run over a folder resumes.

    Args:
        images: an image of any size (GeoTIFF, COG, VRT ...), or a folder of images or XYZ tiles.
        models: model folders or opened models; the mean of their probabilities decides.
        out: the map (.tif), or for a folder the folder of maps.
        probabilities: also write the probability of each class, float32: a .tif, or for a folder a folder.
        zoom: only the XYZ tiles of this zoom.
        bands: names of the images' bands; else the files', else by their number.
        units: units of the pixels; else inferred.
        orientations: flips and rotations of a window to average; None takes the model's.
        window_px: largest side of a window.
        overwrite: replace existing outputs.
        executor: runs the windows of a scene, or the images of a folder; None for this thread.
        progress: called after each window or image.

    Raises:
        MissingInputError, LabelsError, ArrayError: no image, or one that cannot be read.
        ModelError: models of different classes, or of several dates.
        BandsError, UnitsError: an image lacks a band, or is of another kind than the model's images.
        ConfigError: an output has an unsuitable ending.
        OutputExistsError: an output exists and `overwrite` is false.
    """
    many = models if isinstance(models, Sequence) and not isinstance(models, str) else [models]
    vote = Vote.of([m if isinstance(m, Segmenter) else load_segmenter(m) for m in many], orientations)
    images, out = Path(images), Path(out)
    extra = Path(probabilities) if probabilities else None
    files = find_files(images, "image", zoom)
    is_one = images.is_file()
    for path in (out, extra):
        if path is not None:
            _check_output(path, is_one, overwrite)
    opened = open_images(files, bands, units)
    for image in opened.values():
        vote.check(image)
    drawing = Drawing(vote, window_px, executor)
    if is_one:
        counts = map_one(next(iter(opened.values())), drawing, out, extra, overwrite, progress)
    else:
        counts = _map_folder(opened, drawing, out, extra, overwrite, progress)
    valid, k = counts[: len(vote.legend.names)], max(int(counts.sum()), 1)
    shares = {n: float(c / max(valid.sum(), 1)) for n, c in zip(vote.legend.names, valid, strict=True)}
    return SegmentReport(out, len(opened), int(counts.sum()), shares, float(counts[IGNORED] / k))


def _check_output(path: Path, is_one: bool, overwrite: bool) -> None:
    if is_one and path.suffix.lower() not in MAPS:
        raise ConfigError(f"{path}: the ending is {path.suffix!r}. Expected .tif for the map of one image.")
    check_free(path, overwrite=overwrite, folder=not is_one)


def _map_folder(
    images: Mapping[str, ImageFile],
    drawing: Drawing,
    out: Path,
    extra: Path | None,
    overwrite: bool,
    progress: Progress,
) -> NDArray[np.int64]:
    """Write the maps of a folder; return the pixels of each value. A stopped run's maps are kept."""
    config = {
        "images": {name: [image.height, image.width, image.units] for name, image in images.items()},
        "models": [[m.name, _fingerprint(m)] for m in drawing.vote.models],
        "orientations": drawing.vote.orientations,
        "probabilities": extra is not None,
    }
    counts = np.zeros(256, np.int64)
    with ExitStack() as stack:
        tables: PartialFolder | None = None
        if extra is not None:
            made = writing_folder(extra, kind=TABLES, config=config, overwrite=overwrite)
            tables = stack.enter_context(made)
        folder = stack.enter_context(writing_folder(out, kind=KIND, config=config, overwrite=overwrite))
        goals = {name: name + (".png" if tile_of(name) else ".tif") for name in images}
        left = [name for name in images if not _is_done(folder, tables, name, goals[name])]
        for name in set(images) - set(left):
            counts += np.array(folder.meta(goals[name])["counts"])
        beside = tempfile.TemporaryDirectory(
            prefix=".retrieve-maps-", dir=folder.path.parent, ignore_cleanup_errors=True
        )
        scratch = Path(stack.enter_context(beside))
        tasks = (
            MapTask(images[n], replace(drawing, executor=None), scratch, goals[n][-4:], extra is not None)
            for n in left
        )
        maps = stream_map(drawing.executor or SerialExecutor(), map_task, tasks)
        for done, (name, drawn) in enumerate(zip(left, maps, strict=True), start=len(images) - len(left) + 1):
            _take(folder, tables, name, goals[name], drawn)
            counts += drawn.counts
            progress("segmenting images", done, len(images))
        for one in (folder,) if tables is None else (folder, tables):
            one.counts |= {"masks": len(images)}
            one.extra |= {"classes": list(drawing.vote.legend.names)}
    return counts


def _is_done(folder: PartialFolder, tables: PartialFolder | None, name: str, goal: str) -> bool:
    """Return whether a stopped run finished a map, with its class names and probabilities."""
    is_mapped = folder.done(goal) and (goal.endswith(".png") or folder.done(goal + NAMES))
    return is_mapped and (tables is None or tables.done(f"{name}.tif"))


def _take(folder: PartialFolder, tables: PartialFolder | None, name: str, goal: str, drawn: DrawnMap) -> None:
    """Move the files of a map into the folders: probabilities first, class names last."""
    made = drawn.folder / f"map{goal[-4:]}"
    if tables is not None:
        with tables.part(f"{name}.tif") as path:
            shutil.move(drawn.folder / "table.tif", path)
    with folder.part(goal, {"counts": drawn.counts.tolist()}) as path:
        made.replace(path)
    if not goal.endswith(".png"):
        with folder.part(goal + NAMES) as path:
            made.with_name(made.name + NAMES).replace(path)
    shutil.rmtree(drawn.folder, ignore_errors=True)


def _fingerprint(model: Segmenter) -> str:
    """Return a digest of a model's weights."""
    content = hashlib.sha256()
    for weight in model.network.get_weights():
        content.update(np.ascontiguousarray(weight).tobytes())
    return content.hexdigest()[:16]
