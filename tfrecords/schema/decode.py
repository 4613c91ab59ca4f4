"""Decode the bytes of a record to a series, an image or a patch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from tfrecords.errors import RetrieveError
from tfrecords.schema.bands import BANDS, band_names
from tfrecords.schema.fields import IMAGE_SHAPE, PATCH_SHAPE, SERIES_SHAPE, Fields, parse
from tfrecords.schema.records import ID_LIMIT, Image, Series
from tfrecords.schema.units import Units, default_nodata

Built = TypeVar("Built", Series, Image)


class PatchBytes(NamedTuple):
    """The pixels of a patch as bytes of its record."""

    patch_id: int
    """The record's id."""
    data: bytes
    """Its pixels."""
    stored: np.dtype[Any]
    """Dtype of the bytes."""
    dtype: np.dtype[Any]
    """Dtype of the pixels before they were written."""
    shape: tuple[int, int, int]
    """(h, w, b)."""
    bands: tuple[str, ...]
    """Names of the b bands."""


def group_of(name: str) -> int:
    """Return a number in [0, 2**63) for a name, the same on every machine and in every release."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def _size(fields: Fields, count: int) -> tuple[int, int, tuple[str, ...]]:
    """Return height, width and bands of a record; the challenge's if it has none."""
    if not fields.has("height") and not fields.has("width"):
        return count, count, BANDS
    return fields.integer("height", 1, 2**31), fields.integer("width", 1, 2**31), _bands(fields)


def _bands(fields: Fields) -> tuple[str, ...]:
    """Return the names of the bands of a record."""
    return fields.texts("bands") if fields.has("bands") else BANDS


def series_of(fields: Fields, fallback_place: str) -> Series:
    """Return the series of a parsed record; see `decode_series`."""
    height, width, bands = _size(fields, SERIES_SHAPE[1])
    count = len(fields.values("dates", "bytes_list")) if fields.has("dates") else SERIES_SHAPE[0]
    dates = fields.texts("dates") if fields.has("dates") else tuple(f"{i:02d}" for i in range(count))
    flat = fields.pixels("time_series", (height, width, count * len(bands)), (512, 512, 48))
    pixels = flat.reshape(height, width, count, len(bands)).transpose(2, 0, 1, 3)  # (t, y, x, b)
    place = fields.text("place") or fallback_place
    units = fields.units or "dn"
    return _build(
        fields,
        Series,
        pixels=pixels,
        units=units,
        bands=bands,
        nodata=_nodata(fields, units),
        dates=dates,
        place=place,
        x0=fields.integer("x0") if fields.has("x0") else 0,
        y0=fields.integer("y0") if fields.has("y0") else 0,
        overlap_group=fields.integer("overlap_group") if fields.has("overlap_group") else group_of(place),
    )


def image_of(fields: Fields, units: Units | None = None, bands: Sequence[str] | None = None) -> Image:
    """Return the image of a parsed record; see `decode_image`."""
    height, width, stored = _size(fields, IMAGE_SHAPE[0])
    pixels = fields.pixels("image", (height, width, len(stored)), IMAGE_SHAPE)
    units = units or fields.units or "scaled"
    return _build(
        fields,
        Image,
        image_id=fields.integer("image_id", 0, ID_LIMIT - 1),
        pixels=pixels,
        units=units,
        bands=band_names(len(stored), bands) if bands else stored,
        nodata=_nodata(fields, units),
        path=fields.text("path"),
        crs=fields.text("crs") or None,
        transform=fields.numbers("transform", 6),
        date=fields.text("date") or None,
        clipped=True,
    )


def patch_of(fields: Fields) -> tuple[int, NDArray[Any], tuple[str, ...]]:
    """Return the patch of a parsed record; see `decode_patch`."""
    patch_id, shape, bands = _patch(fields)
    return patch_id, fields.pixels("patch", shape, PATCH_SHAPE), bands


def patch_bytes(fields: Fields) -> PatchBytes:
    """Return the bytes of the patch of a parsed record; raises like `decode_patch`."""
    patch_id, shape, bands = _patch(fields)
    return PatchBytes(patch_id, *fields.bytes_of("patch", shape, PATCH_SHAPE), shape, bands)


def _patch(fields: Fields) -> tuple[int, tuple[int, int, int], tuple[str, ...]]:
    """Return id, shape and bands of a patch."""
    height, width, bands = _size(fields, PATCH_SHAPE[0])
    return fields.integer("patch_id", 0, ID_LIMIT - 1), (height, width, len(bands)), bands


def _nodata(fields: Fields, units: Units) -> float | None:
    """Return a record's nodata tag, or the units' default if the record states no units."""
    return fields.number("nodata") if fields.units else default_nodata(units)


def _build(fields: Fields, kind: type[Built], **values: Any) -> Built:
    """Make a series or an image; values that it refuses are a fault of the bytes."""
    try:
        return kind(**values)
    except RetrieveError as err:
        raise fields.fault(str(err)) from err


def decode_series(raw: bytes, where: str = "record", place: str | None = None) -> Series:
    """Parse a training record, the challenge's or ours.

    Args:
        raw: bytes of a `tf.train.Example`.
        where: file and record number, for messages.
        place: name of the place if the record has none; `where` by default.

    Returns:
        The series; the challenge's own are `dn`, 12 dates named "00" to "11", 512 x 512 pixels of
        B04 B03 B02 B08.

    Raises:
        RecordError: the bytes are not an Example, or a feature is missing or has a wrong kind or length.
    """
    return series_of(parse(raw, where), place or where)


def decode_image(
    raw: bytes, where: str = "record", units: Units | None = None, bands: Sequence[str] | None = None
) -> Image:
    """Parse a record of `test_images.tfrecords`, the challenge's or ours.

    Args:
        raw: bytes of a `tf.train.Example`.
        where: file and record number, for messages.
        units: units of the file; they take precedence over the record's; "scaled" if both are missing.
        bands: names that replace the record's.

    Returns:
        The image; the challenge's own are float16 (512, 512, 4).

    Raises:
        RecordError: like `decode_series`, or an id is out of range.
        BandsError: `bands` has the wrong number of names.
    """
    return image_of(parse(raw, where), units, bands)


def decode_patch(raw: bytes, where: str = "record") -> tuple[int, NDArray[Any], tuple[str, ...]]:
    """Parse a record of `test_patches.tfrecords`, the challenge's or ours.

    Args:
        raw: bytes of a `tf.train.Example`.
        where: file and record number, for messages.

    Returns:
        Patch id, pixels (h, w, b) as stored, names of the bands.

    Raises:
        RecordError: like `decode_series`, or an id is out of range.
    """
    return patch_of(parse(raw, where))
