"""Vector labels to masks on the pixels of images.

The vector file is read once, in batches, which are brought to the CRS of the masks. A `Canvas` burns them
into the pieces that they meet; later features cover earlier ones. A pixel belongs to a polygon if its centre
lies inside. Memory does not grow with the file or the area.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import LabelsError
from retrieval.labels.canvas import Canvas
from retrieval.labels.classes import BACKGROUND, Classes, read_classes
from retrieval.labels.files import find_files
from retrieval.labels.grids import Grid, Piece, open_grid
from retrieval.labels.masks import classes_of, create_map, finish_map, open_raster, read_mask, write_png
from retrieval.labels.metres import buffer_m
from retrieval.labels.vectors import Batch, Box, VectorFile
from retrieval.types import Progress, silent
from tfrecords.artifacts import check_free, writing_folder
from tfrecords.errors import MissingInputError, OutputExistsError
from tfrecords.storage import scratch_beside

METRES_PER_DEGREE = 111_320.0
"""Length of a degree at the equator."""


@dataclass(frozen=True)
class RasterizeReport:
    """Result of `rasterize`."""

    path: Path
    """The mask, or the folder of masks."""
    masks: int
    """Number of files."""
    features: int
    """Features that touch the masks."""
    classes: dict[str, int]
    """Pixels by class."""
    notes: tuple[str, ...] = field(default=())


def rasterize(
    labels: str | Path,
    like: str | Path,
    out: str | Path,
    *,
    classes: str | Path | Classes | None = None,
    attribute: str | None = None,
    as_class: str | None = None,
    layer: str | None = None,
    line_width_m: float | None = None,
    append: bool = False,
    zoom: int | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> RasterizeReport:
    """Burn vector labels into masks on the pixels of images.

    Args:
        labels: a vector file of points, lines or polygons.
        like: a GeoTIFF, a folder of GeoTIFFs or XYZ tiles, or a cover.
        out: the mask (.tif) of a GeoTIFF, else the folder of masks.
        classes: the classes, or their file; None for background and one class.
        attribute: attribute that holds the class of a feature; it needs `classes`.
        as_class: class of all features; None for the only class of `classes`.
        layer: layer of the vector file.
        line_width_m: width of lines on the ground, metres; None draws them one pixel wide.
        append: add to the masks in `out`, above their labels.
        zoom: only the XYZ tiles of this zoom.
        overwrite: replace an existing output.
        progress: called after each batch of features.

    Returns:
        Numbers of masks, features and pixels, and notes on repairs and reprojection.

    Raises:
        LabelsError: no feature touches the masks, no CRS, an unknown class, or unsuitable options.
        MissingInputError: an input, or the masks to append to, do not exist.
        OutputExistsError: the output exists, and neither `append` nor `overwrite` is set.
    """
    out = Path(out)
    grid = open_grid(like, zoom)
    known = _classes(classes, as_class, Path(labels), out if append else None)
    choose = class_chooser(known, attribute, as_class)
    _check_output(out, grid, append, overwrite)
    if line_width_m is not None and not line_width_m > 0:
        raise LabelsError(f"--line-width {line_width_m:g}: expected a width above 0 metres.")
    file = VectorFile.open(labels, layer)
    if attribute is not None:
        file.check_column(attribute)
    with tempfile.TemporaryDirectory(prefix="retrieve-labels-") as scratch:
        canvas = Canvas(grid, known.unlabelled, Path(scratch), _base(out, known) if append else None)
        touched, unclassed = _read_all(file, grid, canvas, choose, attribute, line_width_m, progress)
        if not touched:
            raise LabelsError(
                f"{labels}: none of its {file.read} features touches the pixels of {like}. Expected labels "
                "of the same ground."
            )
        counts = _write(canvas, grid, out, known, append or overwrite, progress)
    notes = file.notes()
    if unclassed:
        notes.append(f"{unclassed} features without a value of {attribute} left out")
    pixels = {name: int(counts[index]) for index, name in enumerate(known.names)}
    files = len({piece.name for piece in grid.pieces})
    return RasterizeReport(out, files, touched, pixels, tuple(notes))


def _classes(
    classes: str | Path | Classes | None, as_class: str | None, labels: Path, base: Path | None
) -> Classes:
    """Return the classes of the masks: named by the user, by masks to append to, or background and one."""
    if isinstance(classes, str | Path):
        classes = read_classes(classes)
    if classes is None and base is not None and base.is_file():
        classes = classes_of(base)
    return classes or Classes.binary(as_class or labels.stem.lower() or "label")


def class_chooser(classes: Classes, attribute: str | None, as_class: str | None) -> Callable[[Any], int]:
    """Return the function from an attribute value to the index of a class."""
    if attribute is not None:
        if as_class is not None:
            raise LabelsError("--attribute and --class exclude each other. Name one of them.")
        return classes.index_of
    if as_class is not None:
        if as_class not in classes.names:
            raise LabelsError(f"--class {as_class}: unknown. Expected one of {', '.join(classes.names)}.")
        chosen = classes.names.index(as_class)
    elif len(classes.labels) == 1:
        chosen = classes.labels[0]
    else:
        raise LabelsError(
            f"{len(classes.labels)} classes: which one do the features belong to? Name their attribute with "
            "--attribute, or one class with --class."
        )
    return lambda _: chosen


def _check_output(out: Path, grid: Grid, append: bool, overwrite: bool) -> None:
    if not grid.is_folder and out.suffix.lower() not in (".tif", ".tiff"):
        raise LabelsError(f"{out}: the ending is {out.suffix!r}. Expected .tif, as --like is one raster.")
    if append and not out.exists():
        raise MissingInputError(f"{out}: no masks to append to. Leave --append out.")
    if append and out.is_dir() != grid.is_folder:
        raise OutputExistsError(f"{out}: it does not fit --like. Expected a folder for a folder.")
    check_free(out, overwrite=overwrite or append, folder=grid.is_folder)


# --- reading ------------------------------------------------------------------------------------


def _read_all(
    file: VectorFile,
    grid: Grid,
    canvas: Canvas,
    choose: Callable[[Any], int],
    attribute: str | None,
    line_width_m: float | None,
    progress: Progress,
) -> tuple[int, int]:
    """Read all features; return the number on the pieces, and the number without a class."""
    import shapely

    touched, unclassed = 0, 0
    columns = [attribute] if attribute else []
    groups = grid.by_crs()
    for crs, numbers in groups.items():
        boxes = np.array([grid.pieces[number].bounds for number in numbers])
        outlines, of_group = shapely.STRtree(shapely.box(*boxes.T)), np.array(numbers, np.int64)
        box = (*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist())
        file.read, file.repaired, file.empty = 0, 0, 0  # the file is read once for each CRS of the masks
        for batch in file.batches(crs, columns, _wider(box, crs, line_width_m or 0.0)):
            values, without = class_values(batch, attribute, choose)
            unclassed += without
            shapes = _widened(batch.shapes, crs, line_width_m)
            rows, places = outlines.query(shapes, predicate="intersects")
            classed = values[rows] >= 0
            rows, places = rows[classed], places[classed]
            canvas.add(shapes, values, rows, of_group[places])
            touched += len(np.unique(rows))
            progress("reading features", file.read, None)
    return touched, unclassed


def _wider(box: Box, crs: Any, line_width_m: float) -> Box:
    """Return a box with room for the width of lines; Web Mercator stretches them up to twelve times."""
    from pyproj import CRS

    system = CRS.from_user_input(crs)
    unit_m = METRES_PER_DEGREE if system.is_geographic else system.axis_info[0].unit_conversion_factor
    margin = max(box[2] - box[0], box[3] - box[1]) * 0.01 + 12 * line_width_m / unit_m
    return box[0] - margin, box[1] - margin, box[2] + margin, box[3] + margin


def class_values(
    batch: Batch, attribute: str | None, choose: Callable[[Any], int]
) -> tuple[NDArray[np.int64], int]:
    """Return the class of each feature, -1 without a value, and the number of the latter."""
    if attribute is None:
        return np.full(len(batch.shapes), choose(None), np.int64), 0
    known: dict[Any, int] = {None: -1}
    for value in batch.values[attribute]:
        if value not in known:
            known[value] = -1 if value != value or value == "" else choose(value)
    values = np.array([known[value] for value in batch.values[attribute]], np.int64)
    return values, int((values < 0).sum())


def _widened(shapes: NDArray[np.object_], crs: Any, width_m: float | None) -> NDArray[np.object_]:
    """Return the geometries with lines widened to polygons, also those in collections."""
    import shapely

    if width_m is None:
        return shapes
    parts, rows = shapely.get_parts(shapes, return_index=True)
    lines = np.flatnonzero(shapely.get_dimensions(parts) == 1)
    if not len(lines):
        return shapes
    parts[lines] = buffer_m(parts[lines], crs, width_m / 2)
    return np.asarray(shapely.geometrycollections(parts, indices=rows), object)


def _base(out: Path, classes: Classes) -> Callable[[Piece], NDArray[np.uint8] | None]:
    """Return a function that reads the former mask of a piece; None where there is no mask."""
    files = find_files(out, "mask")

    def read(piece: Piece) -> NDArray[np.uint8] | None:
        path = files.get(piece.name) if out.is_dir() else out
        if path is None:
            return None
        with open_raster(path) as dataset:
            size = dataset.width, dataset.height
        if piece.x + piece.width > size[0] or piece.y + piece.height > size[1]:
            raise LabelsError(f"{path}: {size[0]}x{size[1]} pixels; --like has more. Expected the same size.")
        return read_mask(path, classes, piece.window)

    return read


# --- writing ------------------------------------------------------------------------------------


def _write(
    canvas: Canvas, grid: Grid, out: Path, classes: Classes, overwrite: bool, progress: Progress
) -> NDArray[np.int64]:
    """Write all masks; return the pixels of each value, (256,)."""
    counts = np.zeros(256, np.int64)
    if not grid.is_folder:
        _write_map(canvas, grid, range(len(grid.pieces)), out, classes, counts, overwrite)
        return counts
    files = list(grid.files())
    config = {"classes": list(classes.names), "masks": len(files)}
    with writing_folder(out, kind="masks", config=config, overwrite=overwrite) as folder:
        for done, (name, numbers) in enumerate(files, start=1):
            if grid.is_tiled:
                with folder.part(f"{name}.png") as partial:
                    mask = canvas.finished(numbers[0])
                    counts += np.bincount(mask.ravel(), minlength=256)
                    write_png(partial, mask, classes)
            else:
                goal = folder.path / f"{name}.tif"
                _write_map(canvas, grid, numbers, goal, classes, counts, True)
            progress("writing masks", done, len(files))
        folder.counts |= {"masks": len(files)}
        folder.extra |= {"classes": list(classes.names), "background": BACKGROUND in classes.names}
    return counts


def _write_map(
    canvas: Canvas,
    grid: Grid,
    numbers: Sequence[int],
    out: Path,
    classes: Classes,
    counts: NDArray[np.int64],
    overwrite: bool,
) -> None:
    """Write the mask of one raster."""
    import rasterio
    from rasterio.windows import Window

    first = grid.pieces[numbers[0]]
    last = grid.pieces[numbers[-1]]
    with scratch_beside(out) as scratch:
        plain = scratch / "mask.tif"
        size = last.x + last.width, last.y + last.height
        create_map(plain, *size, first.crs, first.transform, classes.unlabelled)
        with rasterio.open(plain, "r+") as dataset:
            for number in numbers:
                piece = grid.pieces[number]
                mask = canvas.finished(number)
                counts += np.bincount(mask.ravel(), minlength=256)
                dataset.write(mask, 1, window=Window(piece.x, piece.y, piece.width, piece.height))
        finish_map(plain, out, classes, overwrite=overwrite)
