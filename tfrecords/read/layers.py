"""Bands that lie in several files, or on several pages of a TIFF, as one virtual raster.

GDAL opens the XML of a VRT in place of a file name. Whatever reads windows, warps or samples one file can
therefore read such an image, with one nodata tag, scale and offset for each band.
Source: https://gdal.org/drivers/raster/vrt.html
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tfrecords.errors import ArrayError, GridError
from tfrecords.schema.bands import canonical, is_band_name

GDAL_TYPES = {"float32": "Float32", "float64": "Float64", "uint8": "Byte", "int8": "Int8"}
"""GDAL's names of dtypes; others have NumPy's name with a capital or two."""


@dataclass(frozen=True)
class BandFiles:
    """An image in several files, one band each."""

    files: tuple[Path, ...]
    """The files, sorted by name."""
    bands: tuple[str, ...]
    """Name of the band in each file."""

    @property
    def path(self) -> Path:
        """The first file, which stands for the image in tables and messages."""
        return self.files[0]

    def new_names(self, given: Sequence[str] | None) -> Sequence[str] | None:
        """Return the user's names; None where they only order the bands, which the files name already."""
        return None if set(map(canonical, given or ())) == set(self.bands) else given


RasterFile = Path | BandFiles
"""What holds an image: a file, or one file for each band."""


def path_of(file: RasterFile) -> Path:
    """Return the path that stands for an image."""
    return file.path if isinstance(file, BandFiles) else file


@dataclass(frozen=True)
class Layer:
    """One band of a virtual raster."""

    name: str
    """What GDAL opens."""
    label: str
    """Its name in messages."""
    band: str
    """Name of the band; empty if unknown."""
    size: tuple[int, int]
    """Rows and columns."""
    dtype: str
    """NumPy's name of the dtype."""
    crs: str
    """As WKT; empty without one."""
    transform: tuple[float, ...] | None
    """(a, b, c, d, e, f) from pixel corners to map coordinates, or None."""
    nodata: float | None
    """The nodata tag, or None."""
    scaling: tuple[float, float]
    """The tags SCALE and OFFSET."""
    tags: Mapping[str, str]
    """Tags of the file."""


def layer_of(dataset: Any, name: str, label: str, band: str = "") -> Layer:
    """Return the first band of an opened file as a layer.

    Args:
        dataset: the opened file.
        name: what GDAL opens.
        label: its name in messages.
        band: name of the band, if known.
    """
    return Layer(
        name=name,
        label=label,
        band=band,
        size=(dataset.height, dataset.width),
        dtype=dataset.dtypes[0],
        crs=dataset.crs.to_wkt() if dataset.crs else "",
        transform=None if dataset.transform.is_identity else tuple(map(float, dataset.transform[:6])),
        nodata=None if dataset.nodata is None else float(dataset.nodata),
        scaling=(float(dataset.scales[0]), float(dataset.offsets[0])),
        tags={key: value for key, value in dataset.tags().items() if not key.startswith("TIFFTAG_IMAGEDESC")},
    )


def pages_as_bands(path: str, dataset: Any) -> str | None:
    """Return the XML of a virtual raster of a TIFF whose bands are pages.

    Args:
        path: its name in messages.
        dataset: the opened file. GDAL counts no overviews and masks as pages.

    Returns:
        The XML; None if the file has one page. Bands have names if every page names a band, by its band
        description or its ImageDescription.

    Raises:
        GridError: the pages differ in size or georeference.
        ArrayError: a page has several bands, or pages differ in dtype or nodata.
    """
    import rasterio

    names = dataset.subdatasets if dataset.driver == "GTiff" else []
    if len(names) < 2:
        return None
    layers: list[Layer] = []
    for number, name in enumerate(names, 1):
        with rasterio.open(name) as page:
            if page.count != 1:
                raise ArrayError(
                    f"{path}: {len(names)} pages, page {number} has {page.count} bands. Expected one page, "
                    "or pages of one band each. Save each page as a file: "
                    f"gdal_translate {_directory(name)}:{path} page{number}.tif"
                )
            text = page.descriptions[0] or page.tags().get("TIFFTAG_IMAGEDESCRIPTION", "")
            layer = layer_of(page, name, f"page {number}", text if is_band_name(text) else "")
        first = layers[0] if layers else layer
        if not layer.crs and layer.transform is None:  # some writers place the first page only
            layer = replace(layer, crs=first.crs, transform=first.transform)
        layers.append(layer if layer.nodata is not None else replace(layer, nodata=first.nodata))
    remedy = (
        "Save the pages that you need as files: "
        f"gdal_translate {_directory(names[-1])}:{path} page{len(names)}.tif"
    )
    check_alike(layers, path, remedy)
    return virtual_raster(layers)


def _directory(name: str) -> str:
    """Return what names a page to GDAL, without the file: GTIFF_DIR:2."""
    return ":".join(name.split(":")[:2])


def check_alike(layers: Sequence[Layer], name: str, remedy: str) -> None:
    """Refuse layers that cannot be bands of one image.

    Args:
        layers: the layers, at least one.
        name: name of the image in messages.
        remedy: how to correct it, a sentence.

    Raises:
        GridError: they differ in size, CRS or transform.
        ArrayError: they differ in dtype or nodata tag.
    """
    first = layers[0]
    for layer in layers[1:]:
        if layer.size != first.size:
            raise GridError(
                f"{name}: {layer.label} has {_size(layer)} pixels, {first.label} {_size(first)}. Expected "
                f"bands of one size. {remedy}"
            )
        if not same_grid(layer, first):
            raise GridError(
                f"{name}: {layer.label} lies on another grid than {first.label}. Expected bands of one CRS "
                f"and transform. {remedy}"
            )
        if (layer.dtype, str(layer.nodata)) != (first.dtype, str(first.nodata)):
            raise ArrayError(
                f"{name}: {layer.label} has dtype {layer.dtype} and nodata {layer.nodata}, {first.label} "
                f"{first.dtype} and {first.nodata}. Expected the same for all bands. {remedy}"
            )


def same_grid(a: Layer, b: Layer) -> bool:
    """Return whether two layers of one size show the same ground, to a thousandth of a pixel."""
    if a.crs != b.crs or (a.transform is None) != (b.transform is None):
        return False
    if a.transform is None or b.transform is None:
        return True
    height, width = a.size
    corners = np.array([(0, 0, 1), (width, 0, 1), (0, height, 1)]).T
    of_a, of_b = (np.reshape(six, (2, 3)) @ corners for six in (a.transform, b.transform))
    return bool(np.abs(of_a - of_b).max() <= 1e-3 * np.abs(np.array(a.transform)[[0, 1, 3, 4]]).max())


def _size(layer: Layer) -> str:
    """Return the size of a layer as text."""
    return f"{layer.size[0]} x {layer.size[1]}"


def virtual_raster(layers: Sequence[Layer]) -> str:
    """Return the XML of a VRT with one band for each layer; the first gives grid and tags."""
    first = layers[0]
    root = ElementTree.Element("VRTDataset", rasterXSize=str(first.size[1]), rasterYSize=str(first.size[0]))
    if first.crs:
        _add(root, "SRS", first.crs)
    if first.transform is not None:
        a, b, c, d, e, f = first.transform
        _add(root, "GeoTransform", ", ".join(map(repr, (c, a, b, f, d, e))))
    metadata = ElementTree.SubElement(root, "Metadata")
    for key, value in first.tags.items():
        _add(metadata, "MDI", value, key=key)
    named = all(layer.band for layer in layers)
    for number, layer in enumerate(layers, 1):
        kind = GDAL_TYPES.get(layer.dtype) or layer.dtype.capitalize().replace("Uint", "UInt")
        band = ElementTree.SubElement(root, "VRTRasterBand", dataType=kind, band=str(number))
        if named:
            _add(band, "Description", layer.band)
        if layer.nodata is not None:
            _add(band, "NoDataValue", repr(layer.nodata))
        _add(band, "Scale", repr(layer.scaling[0]))
        _add(band, "Offset", repr(layer.scaling[1]))
        source = ElementTree.SubElement(band, "SimpleSource")
        _add(source, "SourceFilename", layer.name, relativeToVRT="0", shared="0")
        _add(source, "SourceBand", "1")
    return ElementTree.tostring(root, encoding="unicode")


def _add(parent: ElementTree.Element, tag: str, text: str, **attributes: str) -> None:
    """Append an element with a text."""
    ElementTree.SubElement(parent, tag, attributes).text = text
