"""Matched windows as GeoTIFFs."""

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
"""Kind of the folder's manifest; a name on disk."""


def write_window_tifs(
    matches: Matches,
    folder: Path,
    rows: NDArray[np.bool_] | None = None,
    *,
    overwrite: bool = False,
    progress: Progress = silent,
) -> None:
    """Write the best match of each patch as `patch_<id>.tif`; the folder is written as a whole.

    A file holds the pixels of the index, north-up, as uint16 digital numbers: reflectance x 10000. Nodata and
    pixels outside the image are 65535. The file has the image's bands and CRS, and the tags PATCH_ID,
    IMAGE_ID, IMAGE, DATE and CONFIDENCE.

    Args:
        matches: the matches; a patch that finds nothing has no file.
        folder: the folder to make.
        rows: (n,) which patches; None for all.
        overwrite: replace an existing folder.
        progress: called after each file.

    Raises:
        OutputExistsError: the folder exists and `overwrite` is not set.
        DiskFullError: the disk is full; an existing folder is unchanged.
    """
    found = matches.candidates
    image_ids, x, y = found.image_ids[:, 0], found.x[:, 0], found.y[:, 0]
    selected = matches.found
    if rows is not None:
        selected &= rows
    order = np.flatnonzero(selected)
    order = order[np.argsort(image_ids[order], kind="stable")]  # each image is read once
    answers = [[int(v[row]) for v in (matches.patch_ids, image_ids, x, y)] for row in sorted(order.tolist())]
    settings = {"index": matches.folder.manifest.fingerprint, "answers": answers}
    with writing_folder(folder, kind=KIND, config=settings, overwrite=overwrite) as partial:
        image_id, scaled = -1, np.zeros((0, 0, 0), np.float32)
        for number, row in enumerate(order.tolist()):
            if image_ids[row] != image_id:
                image_id = int(image_ids[row])
                scaled = matches.folder.scaled(image_id)
            name = f"patch_{matches.patch_ids[row]}.tif"
            if not partial.done(name):
                image, corner = matches.folder.images[image_id], (int(x[row]), int(y[row]))
                codes = window_codes(scaled, *corner, *matches.sizes[row].tolist())
                with partial.part(name) as path:
                    _write_tif(path, codes, image, corner, _tags(matches, row, image))
            progress("writing windows", number + 1, len(order))
        partial.counts = {"files": len(order)}


def window_codes(scaled: NDArray[np.float32], x: int, y: int, height: int, width: int) -> NDArray[np.uint16]:
    """Return a window of an image as codes, (height, width, b); 65535 outside the image."""
    return to_codes(padded_window(scaled, x, y, width, height))


def _tags(matches: Matches, row: int, image: StoredImage) -> dict[str, str]:
    return {
        "PATCH_ID": str(matches.patch_ids[row]),
        "IMAGE_ID": str(image.image_id),
        "IMAGE": image.path,
        "DATE": image.date or "",
        "CONFIDENCE": f"{matches.confidence[row]:.4f}",
    }


def _write_tif(
    path: Path,
    codes: NDArray[np.uint16],
    image: StoredImage,
    corner: tuple[int, int],
    tags: Mapping[str, str],
) -> None:
    import warnings

    import rasterio
    from affine import Affine
    from rasterio.errors import NotGeoreferencedWarning

    height, width, count = codes.shape
    georeference: dict[str, Any] = {}
    if image.transform is not None:
        a, b, _, d, e, _ = image.transform
        c, f = (float(v) for v in pixel_to_map(image.transform, *corner))
        georeference = {"crs": image.crs, "transform": Affine(a, b, c, d, e, f)}
    shape = {"height": height, "width": width, "count": count, "dtype": "uint16", "nodata": int(NODATA)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # an image without a CRS
        with rasterio.open(path, "w", driver="GTiff", compress="deflate", **shape, **georeference) as dataset:
            dataset.write(np.moveaxis(codes, -1, 0))
            dataset.descriptions = image.bands
            dataset.update_tags(**tags)
