"""Class maps of scenes of any size: overlapping windows, blended, written strip by strip.

A scene is read in strips of a window's height, and each strip is written as soon as no later window changes
it. So memory follows the scene's width, never its height. Small images of a folder, such as XYZ tiles, go
through the network together. Files are read by threads while the network computes.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ConfigError, ModelError
from retrieval.kernels.executors import prefetch_map
from retrieval.labels.classes import IGNORED, Classes
from retrieval.labels.files import find_files, tile_of
from retrieval.labels.masks import create_map, finish_map, open_raster, silent_georeference, write_png
from retrieval.tasks.classifier import chosen
from retrieval.tasks.segment.model import Segmenter, load_segmenter
from retrieval.tasks.segment.sources import ImageFile, open_images
from retrieval.tasks.segment.windows import WINDOW_PX, Layout
from retrieval.types import Progress, silent
from tfrecords.artifacts import PartialFolder, check_free, writing_folder
from tfrecords.errors import UnitsError
from tfrecords.storage import writing_file

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
        progress: called after each strip or image.

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
    if is_one:
        counts = _map_one(next(iter(opened.values())), vote, out, extra, window_px, overwrite, progress)
    else:
        counts = _map_folder(opened, vote, out, extra, window_px, overwrite, progress)
    valid, k = counts[: len(vote.legend.names)], max(int(counts.sum()), 1)
    shares = {n: float(c / max(valid.sum(), 1)) for n, c in zip(vote.legend.names, valid, strict=True)}
    return SegmentReport(out, len(opened), int(counts.sum()), shares, float(counts[IGNORED] / k))


def _check_output(path: Path, is_one: bool, overwrite: bool) -> None:
    if is_one and path.suffix.lower() not in MAPS:
        raise ConfigError(f"{path}: the ending is {path.suffix!r}. Expected .tif for the map of one image.")
    check_free(path, overwrite=overwrite, folder=not is_one)


@dataclass(frozen=True, eq=False)
class Vote:
    """Models of the same classes whose probabilities are averaged."""

    models: tuple[Segmenter, ...]
    orientations: int | None
    """Flips and rotations; None takes each model's."""

    @classmethod
    def of(cls, models: Sequence[Segmenter], orientations: int | None = None) -> Vote:
        """Check that models agree.

        Raises:
            ModelError: they have other classes, or take several dates.
        """
        if not models:
            raise ModelError("no model. Expected one or more model folders. Name one with --model.")
        first = models[0].description
        for model in models:
            d = model.description
            if d.classes != first.classes:
                raise ModelError(
                    f"model {model.name}: classes {', '.join(d.classes)}; model {models[0].name} has "
                    f"{', '.join(first.classes)}. Expected models of the same classes."
                )
            if d.dates != 1:
                raise ModelError(
                    f"model {model.name}: it takes {d.dates} dates. Expected a model of one date. Use "
                    "`retrieve change detect` for two."
                )
        return cls(tuple(models), orientations)

    @property
    def legend(self) -> Classes:
        """Names and colours of the classes."""
        return self.models[0].description.legend

    @property
    def unit_px(self) -> int:
        """Windows start at multiples of it."""
        return int(np.lcm.reduce([model.description.unit_px for model in self.models]))

    def check(self, image: ImageFile) -> None:
        """Refuse an image that a model cannot take.

        Raises:
            BandsError, UnitsError: it lacks a band, or is of another form.
        """
        for model in self.models:
            d = model.description
            image.columns(d.bands, f"model {model.name}")
            if image.form != d.form:
                raise UnitsError(
                    f"{image.path}: {image.form} pixels; model {model.name} takes {d.form}. State the units "
                    "with --units, or train a model on such images."
                )

    def probabilities(
        self, pixels: NDArray[Any], known: NDArray[np.bool_], image: ImageFile
    ) -> NDArray[np.float32]:
        """Return the mean probabilities (n, y, x, k) of pixels (n, y, x, b) with all bands of an image."""
        total: Any = 0.0
        for model in self.models:
            columns = image.columns(model.description.bands, model.name)
            shown = pixels if columns == list(range(pixels.shape[-1])) else pixels[..., columns]
            total = total + model.probabilities(model.filled(shown, known), self.orientations)
        return (total / np.float32(len(self.models))).astype(np.float32, copy=False)

    def choose(self, probabilities: NDArray[np.float32], known: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """Return the class of each pixel, 255 where there is no data; of two, by the mean threshold."""
        thresholds = [m.description.threshold for m in self.models]
        stated = [threshold for threshold in thresholds if threshold is not None]
        limit = float(np.mean(stated)) if len(stated) == len(thresholds) else None
        found = chosen(probabilities, limit).astype(np.uint8)
        found[~known] = IGNORED
        return found


# --- one scene ------------------------------------------------------------------------------------


def _strips(
    image: ImageFile, vote: Vote, window_px: int, progress: Progress
) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.bool_]]]:
    """Yield the first row, the probabilities (h, width, k) and the known pixels of successive strips."""
    layout = Layout.of(image.height, image.width, window_px, vote.unit_px)
    k, side = len(vote.legend.names), layout.side
    known_rows: list[NDArray[np.bool_]] = []
    windows = len(layout.tops) * len(layout.lefts)

    def read(top: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        with open_raster(image.path) as dataset:
            every = list(range(len(image.bands)))
            return image.read(dataset, every, (top, min(top + side, image.height)))

    def rows() -> Iterator[Iterator[NDArray[np.float32]]]:
        for number, (pixels, known) in enumerate(prefetch_map(read, layout.tops, count=2)):
            known_rows.append(known)
            yield answers(number, pixels, known)

    def answers(number: int, pixels: NDArray[Any], known: NDArray[np.bool_]) -> Iterator[NDArray[np.float32]]:
        for column, left in enumerate(layout.lefts):
            part = known[:, left : left + side]
            if part.any():
                yield vote.probabilities(pixels[None, :, left : left + side], part[None], image)[0]
            else:
                yield np.full((*part.shape, k), 1 / k, np.float32)
            progress("segmenting windows", number * len(layout.lefts) + column + 1, windows)

    for top, strip in layout.blended(rows()):
        yield top, strip, known_rows.pop()[: len(strip)]


def _map_one(
    image: ImageFile,
    vote: Vote,
    out: Path,
    extra: Path | None,
    window_px: int,
    overwrite: bool,
    progress: Progress,
) -> NDArray[np.int64]:
    """Write the map of one image, and perhaps its probabilities; return the pixels of each value."""
    import rasterio
    from rasterio.windows import Window

    counts = np.zeros(256, np.int64)
    out.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        scratch = tempfile.TemporaryDirectory(prefix=".retrieve-map-", dir=out.parent)
        plain = Path(stack.enter_context(scratch)) / "plain.tif"
        with open_raster(image.path) as dataset:
            crs, transform = dataset.crs, dataset.transform
        create_map(plain, image.width, image.height, crs, transform if crs else None, IGNORED)
        table = stack.enter_context(writing_file(extra, overwrite=overwrite)) if extra else None
        likely = stack.enter_context(_create_table(table, image, vote, crs, transform)) if table else None
        with silent_georeference():
            target = stack.enter_context(rasterio.open(plain, "r+"))
        for top, strip, known in _strips(image, vote, window_px, progress):
            found, window = vote.choose(strip, known), Window(0, top, image.width, len(strip))
            target.write(found, 1, window=window)
            counts += np.bincount(found.ravel(), minlength=256)
            if likely is not None:
                strip[~known] = np.nan
                likely.write(np.moveaxis(strip, -1, 0), window=window)
        target.close()
        finish_map(plain, out, vote.legend, overwrite=overwrite)
    return counts


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


# --- folders --------------------------------------------------------------------------------------


def _map_folder(
    images: Mapping[str, ImageFile],
    vote: Vote,
    out: Path,
    extra: Path | None,
    window_px: int,
    overwrite: bool,
    progress: Progress,
) -> NDArray[np.int64]:
    """Write the maps of a folder; return the pixels of each value. A stopped run's maps are kept."""
    config = {
        "images": {name: [image.height, image.width, image.units] for name, image in images.items()},
        "models": [[m.name, _fingerprint(m)] for m in vote.models],
        "orientations": vote.orientations,
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
        for done, name in enumerate(left, start=len(images) - len(left) + 1):
            add = _add_tile if goals[name].endswith(".png") else _add_scene
            counts += add(folder, tables, name, goals[name], images[name], vote, window_px)
            progress("segmenting images", done, len(images))
        for one in (folder,) if tables is None else (folder, tables):
            one.counts |= {"masks": len(images)}
            one.extra |= {"classes": list(vote.legend.names)}
    return counts


def _is_done(folder: PartialFolder, tables: PartialFolder | None, name: str, goal: str) -> bool:
    """Return whether a stopped run finished a map, with its class names and probabilities."""
    is_mapped = folder.done(goal) and (goal.endswith(".png") or folder.done(goal + NAMES))
    return is_mapped and (tables is None or tables.done(f"{name}.tif"))


def _add_scene(
    folder: PartialFolder,
    tables: PartialFolder | None,
    name: str,
    goal: str,
    image: ImageFile,
    vote: Vote,
    window_px: int,
) -> NDArray[np.int64]:
    """Add the map of a scene and its class names to a folder; return the pixels of each value."""
    with tempfile.TemporaryDirectory(prefix=".retrieve-map-", dir=folder.path.parent) as scratch:
        made, table = Path(scratch) / "map.tif", Path(scratch) / "table.tif"
        counts = _map_one(image, vote, made, table if tables else None, window_px, True, silent)
        if tables is not None:
            with tables.part(f"{name}.tif") as path:
                shutil.move(table, path)
        with folder.part(goal, {"counts": counts.tolist()}) as path:
            made.replace(path)
        with folder.part(goal + NAMES) as path:
            made.with_name(made.name + NAMES).replace(path)
    return counts


def _add_tile(
    folder: PartialFolder,
    tables: PartialFolder | None,
    name: str,
    goal: str,
    image: ImageFile,
    vote: Vote,
    window_px: int,
) -> NDArray[np.int64]:
    """Add the map of an XYZ tile, a palette PNG, to a folder; return the pixels of each value."""
    strips = list(_strips(image, vote, window_px, silent))
    strip = np.concatenate([part for _, part, _ in strips])
    known = np.concatenate([part for _, _, part in strips])
    found = vote.choose(strip, known)
    counts = np.bincount(found.ravel(), minlength=256)
    if tables is not None:
        strip[~known] = np.nan
        with (
            tables.part(f"{name}.tif") as path,
            _create_table(path, image, vote, None, None) as dataset,
        ):
            dataset.write(np.moveaxis(strip, -1, 0))
    with folder.part(goal, {"counts": counts.tolist()}) as path:
        write_png(path, found, vote.legend)
    return counts


def _fingerprint(model: Segmenter) -> str:
    """Return a digest of a model's weights."""
    content = hashlib.sha256()
    for weight in model.network.get_weights():
        content.update(np.ascontiguousarray(weight).tobytes())
    return content.hexdigest()[:16]
