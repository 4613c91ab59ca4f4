"""Encode a series, an image or a patch to the bytes of a record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfrecords.errors import ArrayError
from tfrecords.schema.bands import BANDS
from tfrecords.schema.fields import DTYPES, IMAGE_SHAPE, PATCH_SHAPE, SERIES_SHAPE
from tfrecords.schema.records import Image, Series
from tfrecords.schema.units import Units, to_dn, to_scaled

FLOAT16_TOP = 65504.0
RECORD_LIMIT = 2**31 - 2**16
"""Protocol buffers are limited to 2 GiB; the rest is for names."""


def _feature(value: Any) -> Any:
    """Return a `tf.train.Feature` of bytes, a text, a whole number or several texts."""
    from tensorflow.train import BytesList, Feature, Int64List

    if isinstance(value, (int, np.integer)):
        return Feature(int64_list=Int64List(value=[int(value)]))
    values = [value] if isinstance(value, (bytes, str)) else list(value)
    return Feature(bytes_list=BytesList(value=[v.encode() if isinstance(v, str) else v for v in values]))


def _serialized(features: dict[str, Any], what: str, limit: int = RECORD_LIMIT) -> bytes:
    """Return the bytes of an Example with these features, in a fixed order."""
    from tensorflow.train import Example, Features

    size = sum(len(v) for v in features.values() if isinstance(v, bytes))
    if size > limit:
        raise ArrayError(
            f"{what}: {size} bytes do not fit one record (2 GiB). Cut smaller pieces, or use fewer dates."
        )
    features = {k: _feature(v) for k, v in features.items() if v is not None}
    data: bytes = Example(features=Features(feature=features)).SerializeToString(deterministic=True)
    return data


def _described(
    pixels: NDArray[Any], units: Units, bands: Sequence[str], nodata: float | None
) -> dict[str, Any]:
    """Return the features that describe the pixels."""
    return {
        "height": pixels.shape[-3],
        "width": pixels.shape[-2],
        "bands": tuple(bands),
        "units": units,
        "nodata": None if nodata is None else repr(float(nodata)),
        "dtype": _little(pixels).dtype.str,
    }


def _little(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return the same values, little-endian."""
    little = pixels.astype(pixels.dtype.newbyteorder("<"), copy=False)
    if little.dtype.str not in DTYPES:
        raise ArrayError(
            f"pixels: dtype {pixels.dtype} cannot be stored; expected one of {', '.join(DTYPES)}"
        )
    return little


def _lossless(half: NDArray[np.float16], pixels: NDArray[Any]) -> bool:
    """Return whether the float16 copy equals the pixels bit for bit."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.array_equal(half.astype(pixels.dtype), pixels)


def encode_series(
    series: Series,
    *,
    challenge: bool = False,
    exact: bool = True,
    last: bool | None = None,
    limit: int = RECORD_LIMIT,
) -> bytes:
    """Return the bytes of a training record.

    Args:
        series: the series to store.
        challenge: write the challenge's feature only.
        exact: add an exact copy where float16 digital numbers would lose a bit; without it the
            record is half as long, and holds `dn` with nodata 0.
        last: whether the record is the last of its file; None omits this feature.
        limit: largest number of bytes of a record.

    Returns:
        A serialized `tf.train.Example`, always the same for the same series.

    Raises:
        ArrayError: the series does not fit one record; or, with `challenge`, it is not
            12 x 512 x 512 x 4 of B04 B03 B02 B08.
    """
    what = f"series of {series.place!r}"
    half = np.minimum(to_dn(series.pixels, series.units, series.nodata), FLOAT16_TOP).astype("<f2")
    features: dict[str, Any] = {"time_series_raw": half.transpose(1, 2, 0, 3).tobytes()}  # (y, x, t, b)
    if challenge:
        _check_challenge(what, half.shape, SERIES_SHAPE, series.bands)
        return _serialized(features, what)
    features |= _described(series.pixels, series.units, series.bands, series.nodata)
    if not exact:
        features |= {"units": "dn", "nodata": "0.0", "dtype": "<f2"}
    elif series.units != "dn" or not _lossless(half, series.pixels):
        features["time_series_exact"] = _little(series.pixels).transpose(1, 2, 0, 3).tobytes()
    features |= {"dates": series.dates, "place": series.place, "x0": series.x0, "y0": series.y0}
    features |= {"overlap_group": series.overlap_group, "last": None if last is None else int(last)}
    return _serialized(features, what, limit)


def encode_image(image: Image, *, challenge: bool = False, last: bool | None = None) -> bytes:
    """Return the bytes of a record of `test_images.tfrecords`.

    Args:
        image: the image to store.
        challenge: write the challenge's two features only.
        last: whether the record is the last of its file; None omits this feature.

    Returns:
        A serialized `tf.train.Example`, always the same for the same image.

    Raises:
        ArrayError: the image does not fit one record; or, with `challenge`, it is not 512 x 512 x 4 of
            B04 B03 B02 B08.
    """
    what = f"image {image.image_id}"
    features = _scaled_features("image", image.pixels, image.units, image.nodata) | {
        "image_id": image.image_id
    }
    if challenge:
        _check_challenge(what, image.pixels.shape, IMAGE_SHAPE, image.bands)
        return _serialized({k: features[k] for k in ("image_raw", "image_id")}, what)
    features |= _described(image.pixels, image.units, image.bands, image.nodata)
    features |= {"path": image.path or None, "crs": image.crs, "date": image.date}
    features["transform"] = [repr(float(v)) for v in image.transform] if image.transform else None
    features["last"] = None if last is None else int(last)
    return _serialized(features, what)


def encode_patch(
    patch_id: int,
    pixels: NDArray[Any],
    units: Units,
    bands: Sequence[str],
    nodata: float | None,
    *,
    challenge: bool = False,
    last: bool | None = None,
) -> bytes:
    """Return the bytes of a record of `test_patches.tfrecords`.

    Args:
        patch_id: its id, in [0, 2**31).
        pixels: (h, w, b) as stored.
        units: their units.
        bands: names of the bands.
        nodata: the tag, None = nothing is nodata.
        challenge: write the challenge's two features only.
        last: whether the record is the last of its file; None omits this feature.

    Returns:
        A serialized `tf.train.Example`, always the same for the same patch.

    Raises:
        ArrayError: with `challenge`, the patch is not 64 x 64 x 4 of B04 B03 B02 B08.
    """
    what = f"patch {patch_id}"
    features = _scaled_features("patch", pixels, units, nodata) | {"patch_id": int(patch_id)}
    if challenge:
        _check_challenge(what, pixels.shape, PATCH_SHAPE, tuple(bands))
        return _serialized({k: features[k] for k in ("patch_raw", "patch_id")}, what)
    features |= _described(pixels, units, bands, nodata) | {"last": None if last is None else int(last)}
    return _serialized(features, what)


def _scaled_features(kind: str, pixels: NDArray[Any], units: Units, nodata: float | None) -> dict[str, Any]:
    """Return the challenge's float16 scaled copy, nodata -1, and an exact copy if float16 loses a bit."""
    half = np.nan_to_num(to_scaled(pixels, units, nodata), nan=-1.0).astype("<f2")
    features = {f"{kind}_raw": half.tobytes()}
    if units != "scaled" or not _lossless(half, pixels):
        features[f"{kind}_exact"] = _little(pixels).tobytes()
    return features


def _check_challenge(
    what: str, shape: tuple[int, ...], expected: tuple[int, ...], bands: tuple[str, ...]
) -> None:
    """Refuse other shapes and bands than the challenge's, whose records do not state them."""
    if tuple(shape) != expected or bands != BANDS:
        raise ArrayError(
            f"{what}: shape {tuple(shape)} of {' '.join(bands)}; the challenge's record is {expected} of "
            f"{' '.join(BANDS)}. Cut it to that, or write our own records, which accept any shape."
        )
