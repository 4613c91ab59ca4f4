"""Masks and class maps on disk: any kind is read as class indices; palette PNG and GeoTIFF are written.

A mask holds the index of a class in each pixel and 255 where there is no data or no label. It may be a
palette PNG, a grey image, a GeoTIFF of one band, or an image of the classes' colours. The names of the
classes stand in the tag `CLASSES` of a GeoTIFF and, as GDAL's category names, in its file `.aux.xml`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import LabelsError
from retrieval.labels.classes import IGNORED, Classes
from tfrecords.artifacts.manifest import MANIFEST
from tfrecords.errors import ArrayError, MissingInputError, parse_json
from tfrecords.geotiff import driver_of, silent_georeference
from tfrecords.read.rasters import check_png
from tfrecords.storage import check_raster, writing_file

if TYPE_CHECKING:
    from rasterio import DatasetReader
    from rasterio.windows import Window

TAG = "CLASSES"
"""Tag of a GeoTIFF that lists the names of its classes as JSON."""

PNG = b"\x89PNG\r\n\x1a\n"
"""First bytes of a PNG."""

Kind = Literal["indices", "palette", "colours"]


@dataclass(frozen=True)
class RasterShape:
    """Size, bands and grid of an image or a mask."""

    width: int
    height: int
    bands: int
    """Number of bands without alpha."""
    dtype: str
    crs: Any
    """CRS of rasterio; None without a georeference."""
    transform: Any


@contextmanager
def open_raster(path: str | Path) -> Iterator[DatasetReader]:
    """Open a raster with rasterio; a missing georeference is no warning.

    Raises:
        MissingInputError: no such file.
        LabelsError: GDAL cannot read it.
    """
    import rasterio
    from rasterio.errors import RasterioIOError

    path = Path(path)
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file. Expected an image or a mask.")
    _check_png(path)
    try:
        with silent_georeference():
            dataset = rasterio.open(path, driver=driver_of(path))
        with dataset:
            yield dataset
    except RasterioIOError as error:
        raise LabelsError(f"{path}: not a readable image ({error}). Replace the file.") from None


def _check_png(path: Path) -> None:
    """Refuse a damaged PNG, which GDAL decodes into noise."""
    with path.open("rb") as file:
        if file.read(len(PNG)) != PNG:
            return
    try:
        check_png(path)
    except ArrayError as error:
        raise LabelsError(f"{error} Replace the file.") from None


def alpha_bands(dataset: DatasetReader) -> list[int]:
    """Return the numbers of the alpha bands, from 1: a band called alpha, next to one or three others."""
    from rasterio.enums import ColorInterp

    if dataset.count not in (2, 4) or any(dataset.descriptions):
        return []
    return [i for i, colour in enumerate(dataset.colorinterp, start=1) if colour == ColorInterp.alpha]


def shape_of(path: str | Path) -> RasterShape:
    """Return size, bands and grid of a raster."""
    with open_raster(path) as dataset:
        bands = dataset.count - len(alpha_bands(dataset))
        crs = dataset.crs if dataset.crs else None
        return RasterShape(dataset.width, dataset.height, bands, dataset.dtypes[0], crs, dataset.transform)


def kind_of(dataset: DatasetReader) -> Kind:
    """Return how an open mask holds its classes.

    Raises:
        LabelsError: neither one band of integers nor three or four bands of bytes.
    """
    from rasterio.enums import ColorInterp

    if dataset.count in (1, 2) and np.dtype(dataset.dtypes[0]).kind in "iu":
        return "palette" if dataset.colorinterp[0] == ColorInterp.palette else "indices"
    if dataset.count in (3, 4) and dataset.dtypes[0] == "uint8":
        return "colours"
    raise LabelsError(
        f"{dataset.name}: {dataset.count} bands of {dataset.dtypes[0]}. Expected a mask: one band of class "
        "indices, or red, green and blue."
    )


def read_mask(
    path: str | Path, classes: Classes | None = None, window: Window | None = None
) -> NDArray[np.uint8]:
    """Read a mask as class indices.

    Args:
        path: the mask.
        classes: the classes; needed for a mask of colours. None accepts every index.
        window: a part of the mask; None for all of it.

    Returns:
        (h, w) class indices, 255 where there is no data or no label.

    Raises:
        LabelsError: a value or a colour is no class's, or the mask has an unsuitable form.
    """
    with open_raster(path) as dataset:
        return read_open_mask(dataset, classes, window)


def read_open_mask(
    dataset: DatasetReader, classes: Classes | None = None, window: Window | None = None
) -> NDArray[np.uint8]:
    """Read an open mask as class indices; see `read_mask`."""
    if kind_of(dataset) == "colours":
        if classes is None:
            raise LabelsError(f"{dataset.name}: a mask of colours. Name their classes with --classes.")
        colours = np.moveaxis(dataset.read((1, 2, 3), window=window), 0, -1)
        try:
            return classes.to_indices(colours)
        except LabelsError as error:
            raise LabelsError(f"{dataset.name}: {error}") from None
    values = dataset.read(1, window=window)
    if dataset.nodata is not None and dataset.nodata == dataset.nodata:
        values = np.where(values == dataset.nodata, IGNORED, values)
    limit = IGNORED - 1 if classes is None else len(classes.names) - 1
    wrong = (values != IGNORED) & ((values < 0) | (values > limit))
    if wrong.any():
        found = ", ".join(str(value) for value in np.unique(values[wrong])[:4])
        names = "" if classes is None else f" ({', '.join(classes.names)})"
        raise LabelsError(
            f"{dataset.name}: class value {found}. Expected 0 to {limit}{names}, or 255 for no label."
        )
    return values.astype(np.uint8)


def classes_of(path: str | Path) -> Classes | None:
    """Return the classes that a GeoTIFF, or the manifest of its folder, names; None where neither does."""
    path = Path(path)
    with open_raster(path) as dataset:
        names = _json_names(dataset.tags().get(TAG)) or _category_names(path) or _folder_names(path)
        if not names:
            return None
        colours: tuple[Any, ...] = ()
        if dataset.count == 1 and kind_of(dataset) == "palette":
            table = dataset.colormap(1)
            colours = tuple(table.get(index, (0, 0, 0))[:3] for index in range(len(names)))
    return Classes(names, colours)


def _json_names(text: str | None) -> tuple[str, ...]:
    try:
        names = parse_json(text or "[]")
    except ValueError:
        return ()
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _category_names(path: Path) -> tuple[str, ...]:
    """Return GDAL's category names, which rasterio does not read."""
    try:
        root = ElementTree.parse(path.with_name(path.name + ".aux.xml"))
    except (OSError, ElementTree.ParseError):
        return ()
    names = [element.text or "" for element in root.iterfind(".//CategoryNames/Category")]
    return tuple(names) if all(names) and len(set(names)) == len(names) else ()


def _folder_names(path: Path) -> tuple[str, ...]:
    """Return the names in the manifest of a folder of masks, up to three levels above a mask."""
    for folder in path.resolve().parents[:3]:
        try:
            page = parse_json((folder / MANIFEST).read_text(encoding="utf-8"))
            return tuple(map(str, page["extra"]["classes"])) if page["kind"] == "masks" else ()
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return ()


def write_png(path: Path, indices: NDArray[np.uint8], classes: Classes) -> None:
    """Write class indices (h, w) as a palette PNG; 255 is transparent."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(indices, np.uint8), mode=None)
    image = image.convert("L")
    image.putpalette(classes.colour_table().tobytes())
    image.save(path, "PNG", transparency=IGNORED)


def create_map(path: Path, width: int, height: int, crs: Any, transform: Any, fill: int) -> None:
    """Create a plain GeoTIFF of one value, to be filled window by window and finished by `finish_map`."""
    import rasterio

    profile = dict(driver="GTiff", dtype="uint8", count=1, width=width, height=height, nodata=IGNORED)
    profile |= dict(tiled=True, blockxsize=512, blockysize=512, compress="zstd", zstd_level=1)
    profile |= dict(crs=crs, BIGTIFF="IF_SAFER") | ({"transform": transform} if transform is not None else {})
    with silent_georeference(), rasterio.open(path, "w", **profile) as dataset:
        for _, window in dataset.block_windows(1):
            dataset.write(np.full((window.height, window.width), fill, np.uint8), 1, window=window)
    check_raster(path)


def finish_map(plain: Path, path: Path, classes: Classes, *, overwrite: bool = False) -> None:
    """Turn a plain GeoTIFF of class indices into a cloud-optimized one with colour table and class names.

    Args:
        plain: file that `create_map` made; it gets the colour table.
        path: the output; GDAL's category names are written to `<path>.aux.xml`.
        classes: the classes of the map.
        overwrite: replace an existing output.
    """
    import rasterio
    import rasterio.shutil

    table = {value: (*map(int, colour), 255) for value, colour in enumerate(classes.colour_table())}
    table[IGNORED] = (0, 0, 0, 0)
    check_raster(plain)
    with silent_georeference():
        with rasterio.open(plain, "r+") as dataset:
            dataset.write_colormap(1, table)
            dataset.update_tags(**{TAG: json.dumps(list(classes.names))})
        options = dict(COMPRESS="DEFLATE", OVERVIEW_RESAMPLING="NEAREST", BIGTIFF="IF_SAFER")
        check_raster(plain)
        with writing_file(path, overwrite=overwrite) as partial:
            rasterio.shutil.copy(plain, partial, driver="COG", **options)
            partial.with_name(partial.name + ".aux.xml").unlink(missing_ok=True)
    names = path.with_name(path.name + ".aux.xml")
    with writing_file(names, overwrite=True) as partial:
        partial.write_bytes(_aux_xml(classes))


def _aux_xml(classes: Classes) -> bytes:
    root = ElementTree.Element("PAMDataset")
    band = ElementTree.SubElement(root, "PAMRasterBand", band="1")
    categories = ElementTree.SubElement(band, "CategoryNames")
    for name in classes.names:
        ElementTree.SubElement(categories, "Category").text = name
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8")
