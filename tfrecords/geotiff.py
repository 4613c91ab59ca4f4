"""Rasters: which drivers may open a file, whether a written one is whole, no warning of a georeference."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from threading import Lock
from typing import Any

RASTERS = (".tif", ".tiff")
"""Endings of GeoTIFFs."""
SIGNATURES = {
    b"II*\0": "GTiff",
    b"MM\0*": "GTiff",
    b"II+\0": "GTiff",
    b"MM\0+": "GTiff",
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"RIFF": "WEBP",
    b"\0\0\0\x0cjP  ": "JP2OpenJPEG",
    b"\xff\x4f\xff\x51": "JP2OpenJPEG",
}
"""GDAL's drivers of formats whose files hold their pixels themselves, by the first bytes."""
ENDINGS = {
    ".vrt": "VRT",
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".jp2": "JP2OpenJPEG",
}
"""Drivers by ending; GTiff of others."""


def driver_of(path: str | Path) -> str:
    """Return the driver that may open a raster.

    GDAL alone would choose it by content: a file named .tif could be a list of other files, of this machine
    or of a server. A file is such a list only if its name ends in .vrt.

    Args:
        path: a file, of any ending if it is of this machine, or a path of GDAL such as `/vsis3/bucket/a.tif`.
    """
    ending = Path(path).suffix.lower()
    if ending != ".vrt":
        with suppress(OSError), Path(path).open("rb") as file:
            head = file.read(8)
            return next((name for start, name in SIGNATURES.items() if head.startswith(start)), "GTiff")
    return ENDINGS.get(ending, "GTiff")


class _Silence:
    """Hides the warning that a file has no georeference while at least one thread wants it hidden.

    Filters of warnings belong to the process: two threads that each change and restore them mix their
    filters. So the first thread changes them, and the last one restores them.
    """

    def __init__(self) -> None:
        self._lock, self._users = Lock(), 0
        self._former: warnings.catch_warnings[Any] | None = None

    def __enter__(self) -> None:
        from rasterio.errors import NotGeoreferencedWarning

        with self._lock:
            self._users += 1
            if self._users == 1:
                self._former = warnings.catch_warnings()
                self._former.__enter__()
                warnings.simplefilter("ignore", NotGeoreferencedWarning)

    def __exit__(self, *raised: Any) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0 and self._former is not None:
                self._former.__exit__(*raised)


_SILENCE = _Silence()


def silent_georeference() -> AbstractContextManager[None]:
    """Hide rasterio's warning that a file has no georeference, on all threads, while the block runs."""
    return _SILENCE


def ends_within_file(path: Path) -> bool:
    """Return whether all stored blocks of a GeoTIFF lie within the file; True for files of other formats.

    GDAL writes the last blocks when it closes a file, and no error says that it could not: their places
    then lie beyond the end. A block without a place was never written, which is right in a sparse file.
    """
    import rasterio
    from rasterio.errors import RasterioError

    size = path.stat().st_size
    try:
        with silent_georeference(), rasterio.open(path, driver=driver_of(path)) as dataset:
            return dataset.driver != "GTiff" or all(end <= size for end in _ends_of_blocks(dataset))
    except RasterioError:
        return False


def _ends_of_blocks(dataset: Any) -> Iterator[int]:
    """Yield where each stored block ends in the file, and each block of an overview."""
    for band, (height, width) in zip(dataset.indexes, dataset.block_shapes, strict=True):
        for overview, step in enumerate([1, *dataset.overviews(band)], start=-1):
            level = {"bidx": band, "ovr": overview if overview >= 0 else None}
            for row in range(-(-dataset.height // (step * height))):
                for column in range(-(-dataset.width // (step * width))):
                    at = [f"BLOCK_{what}_{column}_{row}" for what in ("OFFSET", "SIZE")]
                    places = [dataset.get_tag_item(name, "TIFF", **level) for name in at]
                    yield sum(int(place) for place in places if place)
