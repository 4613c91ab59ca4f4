"""GeoTIFFs: whether a written file is whole, and no warning where one has no georeference."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Lock
from typing import Any

RASTERS = (".tif", ".tiff")
"""Endings of GeoTIFFs."""


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
        with silent_georeference(), rasterio.open(path) as dataset:
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
