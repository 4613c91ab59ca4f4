"""From pixels to places on the map: longitude and latitude of what was found."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX
from retrieval.store import StoredImage
from tfrecords.grid import pixel_to_map


def lonlat(
    images: Mapping[int, StoredImage], image_ids: NDArray, x: NDArray, y: NDArray
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centre of each patch in degrees, WGS 84.

    Args:
        images: the index's table.
        image_ids: (n,) of the answers; -1 for none.
        x: (n,) columns of the top-left pixels, fractions allowed.
        y: (n,) rows.

    Returns:
        longitude and latitude, (n,) each; NaN where the image has no CRS or there is no answer.
    """
    longitude, latitude = np.full(len(x), np.nan), np.full(len(x), np.nan)
    for image_id in np.unique(image_ids):
        image = images.get(int(image_id))
        if image is None or image.crs is None or image.transform is None:
            continue
        mine = image_ids == image_id
        half = PATCH_PX / 2
        east, north = pixel_to_map(image.transform, x[mine] + half, y[mine] + half)
        longitude[mine], latitude[mine] = _to_wgs84(image.crs, east, north)
    return longitude, latitude


def _to_wgs84(crs: str, east: NDArray, north: NDArray) -> tuple[NDArray, NDArray]:
    from rasterio.warp import transform

    lon, lat = transform(crs, "EPSG:4326", np.ravel(east).tolist(), np.ravel(north).tolist())
    return np.asarray(lon), np.asarray(lat)
