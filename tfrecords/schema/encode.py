"""From a series, an image or a patch to the bytes of a record."""

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
"""Protocol buffers end at 2 GiB; a little is kept for the names."""


def _feature(value: Any) -> Any:
    """A `tf.train.Feature` for bytes, text, a whole number or several texts."""
    from tensorflow.train import BytesList, Feature, Int64List

    if isinstance(value, (int, np.integer)):
        return Feature(int64_list=Int64List(value=[int(value)]))
    values = [value] if isinstance(value, (bytes, str)) else list(value)
    return Feature(bytes_list=BytesList(value=[v.encode() if isinstance(v, str) else v for v in values]))


def _serialised(features: dict[str, Any], what: str) -> bytes:
    """Bytes of an Example with these features, in an order that is always the same."""
    from tensorflow.train import Example, Features

    size = sum(len(v) for v in features.values() if isinstance(v, bytes))
    if size > RECORD_LIMIT:
        raise ArrayError(
            f"{what}: {size} bytes do not fit one record (2 GiB): cut it smaller, or take fewer dates"
        )
    features = {k: _feature(v) for k, v in features.items() if v is not None}
    return Example(features=Features(feature=features)).SerializeToString(deterministic=True)


def _described(
    pixels: NDArray[Any], units: Units, bands: Sequence[str], nodata: float | None
) -> dict[str, Any]:
    """The features that say what the pixels are."""
    return {
        "height": pixels.shape[-3],
        "width": pixels.shape[-2],
        "bands": tuple(bands),
        "units": units,
        "nodata": None if nodata is None else repr(float(nodata)),
        "dtype": _little(pixels).dtype.str,
    }


def _little(pixels: NDArray[Any]) -> NDArray[Any]:
    """The same values, little-endian."""
    little = pixels.astype(pixels.dtype.newbyteorder("<"), copy=False)
    if little.dtype.str not in DTYPES:
        raise ArrayError(
            f"pixels of dtype {pixels.dtype} cannot be stored; expected one of {', '.join(DTYPES)}"
        )
    return little


def _lossless(half: NDArray[np.float16], pixels: NDArray[Any]) -> bool:
    """Whether the float16 copy gives the pixels back bit for bit."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.array_equal(half.astype(pixels.dtype), pixels)


def encode_series(
    series: Series, *, challenge: bool = False, exact: bool = True, last: bool | None = None
) -> bytes:
    """Bytes of a training record.

    Args:
        series: what to store.
        challenge: the challenge's one feature and nothing else.
        exact: keep a whole copy where float16 digital numbers would lose a bit; without it the
            record is half as long, and holds `dn` with nodata 0.
        last: whether the record ends its file; None leaves that out.

    Returns:
        A serialised `tf.train.Example`, always the same for the same series.

    Raises:
        ArrayError: with `challenge`, the series is not 12 x 512 x 512 x 4 of B04 B03 B02 B08; or it
            does not fit one record.
    """
    what = f"series of {series.place!r}"
    half = np.minimum(to_dn(series.pixels, series.units, series.nodata), FLOAT16_TOP).astype("<f2")
    features: dict[str, Any] = {"time_series_raw": half.transpose(1, 2, 0, 3).tobytes()}  # (y, x, t, b)
    if challenge:
        _check_challenge(what, half.shape, SERIES_SHAPE, series.bands)
        return _serialised(features, what)
    features |= _described(series.pixels, series.units, series.bands, series.nodata)
    if not exact:
        features |= {"units": "dn", "nodata": "0.0", "dtype": "<f2"}
    elif series.units != "dn" or not _lossless(half, series.pixels):
        features["time_series_exact"] = _little(series.pixels).transpose(1, 2, 0, 3).tobytes()
    features |= {"dates": series.dates, "place": series.place, "x0": series.x0, "y0": series.y0}
    features |= {"overlap_group": series.overlap_group, "last": None if last is None else int(last)}
    return _serialised(features, what)


def encode_image(image: Image, *, challenge: bool = False, last: bool | None = None) -> bytes:
    """Bytes of a record of `test_images.tfrecords`.

    Args:
        image: what to store.
        challenge: the challenge's two features and nothing else.
        last: whether the record ends its file; None leaves that out.

    Returns:
        A serialised `tf.train.Example`, always the same for the same image.

    Raises:
        ArrayError: with `challenge`, the image is not 512 x 512 x 4 of B04 B03 B02 B08; or it does
            not fit one record.
    """
    what = f"image {image.image_id}"
    features = _scaled_features("image", image.pixels, image.units, image.nodata) | {
        "image_id": image.image_id
    }
    if challenge:
        _check_challenge(what, image.pixels.shape, IMAGE_SHAPE, image.bands)
        return _serialised({k: features[k] for k in ("image_raw", "image_id")}, what)
    features |= _described(image.pixels, image.units, image.bands, image.nodata)
    features |= {"path": image.path or None, "crs": image.crs, "date": image.date}
    features["transform"] = [repr(float(v)) for v in image.transform] if image.transform else None
    features["last"] = None if last is None else int(last)
    return _serialised(features, what)


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
    """Bytes of a record of `test_patches.tfrecords`.

    Args:
        patch_id: its id, in [0, 2**31).
        pixels: (h, w, b) as stored.
        units: their units.
        bands: names of the bands.
        nodata: the tag, None = nothing is nodata.
        challenge: the challenge's two features and nothing else.
        last: whether the record ends its file; None leaves that out.

    Returns:
        A serialised `tf.train.Example`, always the same for the same patch.

    Raises:
        ArrayError: with `challenge`, the patch is not 64 x 64 x 4 of B04 B03 B02 B08.
    """
    what = f"patch {patch_id}"
    features = _scaled_features("patch", pixels, units, nodata) | {"patch_id": int(patch_id)}
    if challenge:
        _check_challenge(what, pixels.shape, PATCH_SHAPE, tuple(bands))
        return _serialised({k: features[k] for k in ("patch_raw", "patch_id")}, what)
    features |= _described(pixels, units, bands, nodata) | {"last": None if last is None else int(last)}
    return _serialised(features, what)


def _scaled_features(kind: str, pixels: NDArray[Any], units: Units, nodata: float | None) -> dict[str, Any]:
    """The challenge's float16 scaled copy, nodata -1, and the pixels whole where it would lose a bit."""
    half = np.nan_to_num(to_scaled(pixels, units, nodata), nan=-1.0).astype("<f2")
    features = {f"{kind}_raw": half.tobytes()}
    if units != "scaled" or not _lossless(half, pixels):
        features[f"{kind}_exact"] = _little(pixels).tobytes()
    return features


def _check_challenge(
    what: str, shape: tuple[int, ...], wanted: tuple[int, ...], bands: tuple[str, ...]
) -> None:
    """Refuse what the challenge's records, which do not say their shape, cannot hold."""
    if tuple(shape) != wanted or bands != BANDS:
        raise ArrayError(
            f"{what}: shape {tuple(shape)} of {' '.join(bands)}; the challenge's record is {wanted} of "
            f"{' '.join(BANDS)}: cut it to that, or write our own records, which take any"
        )
