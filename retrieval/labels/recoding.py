"""Masks of colours to masks of class indices, and back, on the same pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import LabelsError
from retrieval.labels.classes import Classes, read_classes
from retrieval.labels.files import find_files
from retrieval.labels.masks import create_map, finish_map, read_mask, shape_of, write_png
from retrieval.types import Progress, silent
from tfrecords.artifacts import check_free, writing_folder
from tfrecords.storage import scratch_beside, writing_file


@dataclass(frozen=True)
class RecodeReport:
    """Result of `recode`."""

    path: Path
    """The mask, or the folder of masks."""
    masks: int
    """Number of files."""
    classes: dict[str, int]
    """Pixels by class."""


def recode(
    masks: str | Path,
    out: str | Path,
    *,
    classes: str | Path | Classes,
    colours: bool = False,
    zoom: int | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> RecodeReport:
    """Write masks of colours as masks of class indices, or the other way round.

    Args:
        masks: a mask, or a folder of masks, of colours or indices.
        out: the mask (.png, or .tif for a georeferenced one), or the folder.
        classes: the classes, or their file.
        colours: write red, green and blue instead of indices; 255 becomes black. They are PNGs.
        zoom: only the XYZ tiles of this zoom.
        overwrite: replace an existing output.
        progress: called after each mask.

    Returns:
        Numbers of masks and pixels.

    Raises:
        LabelsError: a colour or a value is no class's, or the output has an unsuitable ending.
        MissingInputError: no mask.
        OutputExistsError: the output exists and `overwrite` is not set.
    """
    known = read_classes(classes) if isinstance(classes, str | Path) else classes
    files, out = find_files(masks, "mask", zoom), Path(out)
    counts = np.zeros(256, np.int64)
    if Path(masks).is_file():
        path = next(iter(files.values()))
        ending = _ending(path, colours)
        if out.suffix.lower() != ending:
            raise LabelsError(f"{out}: the ending is {out.suffix!r}. Expected {ending}.")
        check_free(out, overwrite=overwrite)
        counts += _write(path, out, known, colours, overwrite)
    else:
        config = {"classes": list(known.names), "masks": len(files), "colours": colours}
        with writing_folder(out, kind="masks", config=config, overwrite=overwrite) as folder:
            for done, (name, path) in enumerate(files.items(), start=1):
                goal = folder.path / (name + _ending(path, colours))
                goal.parent.mkdir(parents=True, exist_ok=True)
                counts += _write(path, goal, known, colours, True)
                progress("recoding masks", done, len(files))
            folder.counts |= {"masks": len(files)}
            folder.extra |= {"classes": list(known.names)}
    pixels = {name: int(counts[index]) for index, name in enumerate(known.names)}
    return RecodeReport(out, len(files), pixels)


def _ending(path: Path, colours: bool) -> str:
    """Return the ending of a mask's copy: a georeference needs GeoTIFF."""
    return ".tif" if shape_of(path).crs and not colours else ".png"


def _write(path: Path, out: Path, classes: Classes, colours: bool, overwrite: bool) -> NDArray[np.int64]:
    """Write one mask; return the pixels of each value, (256,)."""
    import rasterio
    from PIL import Image

    values = read_mask(path, classes)
    shape = shape_of(path)
    if out.suffix.lower() == ".tif":
        with scratch_beside(out) as scratch:
            plain = scratch / "mask.tif"
            create_map(plain, shape.width, shape.height, shape.crs, shape.transform, classes.unlabelled)
            with rasterio.open(plain, "r+") as dataset:
                dataset.write(values, 1)
            finish_map(plain, out, classes, overwrite=overwrite)
    else:
        with writing_file(out, overwrite=overwrite) as partial:
            if colours:
                Image.fromarray(classes.to_colours(values)).save(partial, "PNG")
            else:
                write_png(partial, values, classes)
    return np.bincount(values.ravel(), minlength=256)
