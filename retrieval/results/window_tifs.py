"""The windows that were found, as GeoTIFFs that any GIS opens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.index.folder import NODATA, to_codes
from retrieval.results.matches import Matches
from retrieval.types import Progress, StoredImage, silent
from tfrecords.artifacts import writing_folder
from tfrecords.grid import padded_window, pixel_to_map

KIND = "cutouts"


def write_window_tifs(
    found: Matches,
    folder: Path,
    rows: NDArray[np.bool_] | None = None,
    *,
    overwrite: bool = False,
    progress: Progress = silent,
) -> None:
    """Write the matched window of each answer, `patch_<id>.tif`; all of them or none.

    A file holds the index's pixels of the image, uint16: digital numbers, which is reflectance x 10000,
    cut off at 4095, with 65535 where nothing is known or the chip sticks out of the image. It has the
    image's bands and CRS, and the tags PATCH_ID, IMAGE_ID, IMAGE, DATE and CONFIDENCE.

    Args:
        found: the answers; patches for which nothing was found have no file.
        folder: to be made.
        rows: (n,) which answers; None for all.
        overwrite: replace a finished one.
        progress: told after each file.

    Raises:
        OutputExistsError: the folder is there and `overwrite` is not set.
        DiskFullError: the disk is full; a former folder is untouched.
    """
    image_ids, x, y = found.best()
    wanted = found.candidates.image_ids[:, 0] >= 0
    if rows is not None:
        wanted &= rows
    order = np.flatnonzero(wanted)
    order = order[np.argsort(image_ids[order], kind="stable")]  # an image's pixels are read once
    answers = [[int(v[row]) for v in (found.patch_ids, image_ids, x, y)] for row in sorted(order.tolist())]
    settings = {"index": found.folder.manifest.fingerprint, "answers": answers}
    with writing_folder(folder, kind=KIND, config=settings, overwrite=overwrite) as writing:
        last, scaled = -1, np.zeros((0, 0, 0), np.float32)
        for number, row in enumerate(order.tolist()):
            if image_ids[row] != last:
                last, scaled = int(image_ids[row]), found.folder.scaled(int(image_ids[row]))
            name = f"patch_{found.patch_ids[row]}.tif"
            if not writing.done(name):
                with writing.part(name) as path:
                    place = int(x[row]), int(y[row]), *found.sizes[row].tolist()
                    image = found.folder.images[last]
                    _write(path, window(scaled, *place), image, place[:2], tags_of(found, row, image))
            progress("writing what was found", number + 1, len(order))
        writing.counts = {"files": len(order)}


def window(scaled: NDArray[np.float32], x: int, y: int, height: int, width: int) -> NDArray[np.uint16]:
    """A window of an image as codes, (height, width, b); 65535 outside of the image."""
    return to_codes(padded_window(scaled, x, y, width, height))


def tags_of(found: Matches, row: int, image: StoredImage) -> dict[str, str]:
    """What a file says of itself."""
    return {
        "PATCH_ID": str(found.patch_ids[row]),
        "IMAGE_ID": str(image.image_id),
        "IMAGE": image.path,
        "DATE": image.date or "",
        "CONFIDENCE": f"{found.confidence[row]:.4f}",
    }


def _write(
    path: Path, codes: NDArray[np.uint16], image: StoredImage, at: tuple[int, int], tags: Mapping[str, str]
) -> None:
    import warnings

    import rasterio
    from affine import Affine
    from rasterio.errors import NotGeoreferencedWarning

    height, width, count = codes.shape
    ground: dict[str, Any] = {}
    if image.transform is not None:
        a, b, _, d, e, _ = image.transform
        c, f = (float(v) for v in pixel_to_map(image.transform, *at))
        ground = {"crs": image.crs, "transform": Affine(a, b, c, d, e, f)}
    shape = {"height": height, "width": width, "count": count, "dtype": "uint16", "nodata": int(NODATA)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # where the image has none
        with rasterio.open(path, "w", driver="GTiff", compress="deflate", **shape, **ground) as dataset:
            dataset.write(np.moveaxis(codes, -1, 0))
            dataset.descriptions = image.bands
            dataset.update_tags(**tags)
