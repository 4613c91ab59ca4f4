"""Reads the pixels of an item's files: only the requested window, with retries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from retrieval.ingest.dated_image import hidden_mask, to_dn
from retrieval.ingest.offset_check import leaves_negatives
from retrieval.ingest.redaction import redact_text
from retrieval.ingest.retry import RetryPolicy, TransientError
from retrieval.ingest.stac.access import Sign, explain_final
from retrieval.ingest.stac.scene import COMMON, SCL, Grid, Scene, Source, place_of
from tfrecords.errors import CatalogueError, DiskFullError
from tfrecords.geotiff import driver_of

STRIP_PX = 1024
"""Rows that are converted at a time: a whole tile in float64 would take gigabytes."""
THREADS = 4
"""Number of parts of a window that are fetched at a time."""

T = TypeVar("T")

NO_GEOREFERENCE = "its files have no georeference"
"""Reason for an item whose files lack one after every attempt."""


class Reader:
    """Reads windows of items."""

    def __init__(self, retry: RetryPolicy, sign: Sign = str) -> None:
        """Create a reader.

        Args:
            retry: how often a read is tried.
            sign: called for each address just before it is read, because signatures expire.
        """
        self._retry, self._sign = retry, sign

    def locate(self, scene: Scene) -> Scene:
        """Return the scene with its grid, read from the red band's file where the metadata lack it.

        Raises:
            CatalogueError: the file cannot be read, or has no georeference.
        """
        if scene.grid is None:
            grid = self._read(lambda: self._read_grid(scene.bands["B04"]), scene.bands["B04"].href)
            scene = replace(scene, grid=grid, place=scene.place or place_of(grid))
        return scene

    def hidden(self, scene: Scene, window: Grid, *, snow: bool) -> NDArray[np.bool_] | None:
        """Return the pixels that the scene classification hides.

        Args:
            scene: the item.
            window: the pixels to read.
            snow: hide snow too.

        Returns:
            (h, w) bool; None where the item has no scene classification.

        Raises:
            CatalogueError: the file cannot be read.
        """
        if SCL not in scene.bands:
            return None
        (classes,) = self._load(scene, (SCL,), window)
        return hidden_mask(classes, snow=snow)

    def pixels(self, scene: Scene, window: Grid, *, snow: bool) -> tuple[NDArray[np.uint16], bool]:
        """Return the digital numbers of a window.

        Args:
            scene: the item.
            window: the pixels to read.
            snow: hide snow too.

        Returns:
            (h, w, 4) digital numbers without an offset, 0 = nodata or hidden; and whether the offset in the
            metadata makes too many pixels negative.

        Raises:
            CatalogueError: a file cannot be read.
        """
        loaded = dict(zip(scene.bands, self._load(scene, tuple(scene.bands), window), strict=True))
        out = np.zeros((window.height, window.width, len(COMMON)), np.uint16)
        negative = [_convert(loaded[name], scene.bands[name], out[..., n]) for n, name in enumerate(COMMON)]
        if SCL in loaded:
            out[hidden_mask(loaded[SCL], snow=snow)] = 0
        return out, any(negative)

    def _load(self, scene: Scene, names: Sequence[str], window: Grid) -> list[NDArray[Any]]:
        return self._read(lambda: self._fetch(scene, names, window), scene.bands[names[0]].href)

    def _read(self, read: Callable[[], T], href: str) -> T:
        """Call a function that reads files, one of them at `href`; repeat it while it fails.

        Raises:
            CatalogueError: every attempt failed, or the failure will not pass.
        """
        import rasterio
        from rasterio.errors import NotGeoreferencedWarning

        def attempt() -> T:
            try:
                with rasterio.Env(**self._retry.gdal_options()):
                    return read()
            except (MemoryError, DiskFullError, CatalogueError):
                raise
            except Exception as error:  # GDAL's own errors have no public names
                if reason := explain_final(str(error), href, signed=self._sign is not str):
                    raise CatalogueError(reason) from None  # the cause can hold a signature
                # odc-stac asserts, without a text, that a file has a georeference. A truncated answer looks
                # the same, so it is tried again.
                if isinstance(error, AssertionError | NotGeoreferencedWarning):
                    raise TransientError(NO_GEOREFERENCE) from None
                raise TransientError(redact_text(" ".join(str(error).split()))[:160]) from None

        try:
            return self._retry.call(attempt)
        except TransientError as error:
            tried = f"it cannot be read ({error}, tried {error.attempts} times)"
            raise CatalogueError(NO_GEOREFERENCE if str(error) == NO_GEOREFERENCE else tried) from None

    def _read_grid(self, source: Source) -> Grid:
        import rasterio

        with rasterio.open(self._sign(source.href), driver=_driver(source.href)) as file:
            if file.crs is None or file.transform.is_identity or file.transform.b or file.transform.d:
                raise CatalogueError("neither its metadata nor its files have a north-up georeference")
            return Grid(file.crs.to_string(), tuple(file.transform)[:6], file.height, file.width)

    def _fetch(self, scene: Scene, names: Sequence[str], window: Grid) -> list[NDArray[Any]]:
        """Return bands of a scene on the pixels of a window, each (h, w) in the type of its file."""
        import odc.stac
        import rasterio
        from affine import Affine
        from odc.geo.geobox import GeoBox

        sources = {name: scene.bands[name] for name in names}
        for href in {source.href for source in sources.values()}:  # odc-stac takes what GDAL takes
            rasterio.open(self._sign(href), driver=_driver(href)).close()
        loaded = odc.stac.load(
            [_minimal_item(scene, sources, window)],
            bands=[
                f"{name}.{source.number}" if source.number > 1 else name for name, source in sources.items()
            ],
            geobox=GeoBox((window.height, window.width), Affine(*window.transform), window.crs),
            resampling={"*": "bilinear", SCL: "nearest"},
            patch_url=self._sign,
            pool=THREADS,
            groupby="id",
        )
        return [loaded[band].values[0] for band in loaded.data_vars]


def _driver(href: str) -> str:
    """Return the driver of a file: what a catalogue names may not lead to further files."""
    return driver_of(urlsplit(href).path)


def _minimal_item(scene: Scene, sources: dict[str, Source], window: Grid) -> Any:
    """Return an item with only what odc-stac needs, so that the style of the catalogue does not matter."""
    import pystac
    from rasterio.warp import transform_bounds

    west, south, east, north = transform_bounds(window.crs, "EPSG:4326", *window.bounds)
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    box = {"type": "Polygon", "coordinates": [ring]}
    item = pystac.Item(scene.id, box, [west, south, east, north], scene.when, {})
    for name, source in sources.items():
        bands = [{"data_type": source.dtype, "nodata": source.nodata}] * source.number
        asset = pystac.Asset(source.href, media_type="image/tiff", roles=["data"])
        asset.extra_fields["bands"] = bands
        item.add_asset(name, asset)
    return item


def _convert(stored: NDArray[Any], source: Source, out: NDArray[np.uint16]) -> bool:
    """Write digital numbers into `out`; return whether the offset makes too many pixels negative."""
    negative = leaves_negatives(stored, source.offset.dn)
    for y in range(0, len(stored), STRIP_PX):
        strip = stored[y : y + STRIP_PX]
        strip = np.where(strip == source.nodata, 0, strip) if source.nodata else strip
        out[y : y + STRIP_PX] = to_dn(strip, source.offset.dn, source.offset.quantification)
    return negative
