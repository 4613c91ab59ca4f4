"""One record: a `tf.train.Example` with the challenge's features and our own.

The challenge's features keep their published content, so its decoder reads our shards. They are
float16 digital numbers `(y, x, date-major blocks of bands)` in `time_series_raw`, and
float16 scaled `(y, x, b)` in `image_raw` and `patch_raw`. If float16 would lose a bit, `*_exact` holds
an exact copy of the pixels. All arrays are little-endian, C order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfrecords.errors import RecordError
from tfrecords.schema.units import UNITS, Units

SERIES_SHAPE = (12, 512, 512, 4)
IMAGE_SHAPE = (512, 512, 4)
PATCH_SHAPE = (64, 64, 4)
"""Shapes of the challenge's records, which do not state them: (t, y, x, b) and (y, x, b)."""

DTYPES = ("|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8")


@dataclass(frozen=True, eq=False)
class Fields:
    """A parsed record with typed access to its features; every fault is a `RecordError`."""

    features: Any
    """Protocol-buffer map from feature name to `tf.train.Feature`."""
    where: str
    """File and record number, for messages."""

    def fault(self, text: str) -> RecordError:
        """Return the error that names this record."""
        return RecordError(f"{self.where}: {text}")

    def has(self, name: str) -> bool:
        """Return whether the record has a feature."""
        return name in self.features

    def values(self, name: str, kind: str) -> Sequence[Any]:
        """Return all values of a feature.

        Args:
            name: the feature.
            kind: "bytes_list", "int64_list" or "float_list".

        Returns:
            Its values, at least one.

        Raises:
            RecordError: the feature is missing, empty or has another kind.
        """
        if name not in self.features:
            raise self.fault(f"feature {name!r} is missing; it has {sorted(self.features) or 'none'}")
        stored_kind = self.features[name].WhichOneof("kind")
        values: Sequence[Any] = getattr(self.features[name], kind).value
        if stored_kind != kind or not len(values):
            raise self.fault(f"feature {name!r} holds {len(values)} values of {stored_kind}; expected {kind}")
        return values

    def raw(self, name: str) -> bytes:
        """Return the first bytes value of a feature."""
        return bytes(self.values(name, "bytes_list")[0])

    def integer(self, name: str, low: int = 0, high: int = 2**63 - 1) -> int:
        """Return the one whole number of a feature, in [low, high]."""
        values = self.values(name, "int64_list")
        if len(values) != 1:
            raise self.fault(f"feature {name!r} holds {len(values)} numbers; expected one")
        value = int(values[0])
        if not low <= value <= high:
            raise self.fault(f"feature {name!r} is {value}; expected {low} to {high}")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """Return the texts of a feature."""
        try:
            return tuple(v.decode() for v in self.values(name, "bytes_list"))
        except UnicodeDecodeError as err:
            raise self.fault(f"feature {name!r} is not a text ({err})") from err

    def text(self, name: str, default: str = "") -> str:
        """Return the first text of a feature, or `default` if it is missing."""
        return self.texts(name)[0] if self.has(name) else default

    def numbers(self, name: str, count: int) -> tuple[float, ...] | None:
        """Return the `count` numbers of a feature, stored as texts, or None if it is missing."""
        if not self.has(name):
            return None
        texts = self.texts(name)
        try:
            values = tuple(float(text) for text in texts)
        except ValueError:
            values = ()
        if len(values) != count:
            raise self.fault(f"feature {name!r} is {texts}; expected {count} numbers")
        return values

    def number(self, name: str) -> float | None:
        """Return the number of a feature, or None if it is missing."""
        numbers = self.numbers(name, 1)
        return numbers[0] if numbers else None

    @property
    def ends_file(self) -> bool | None:
        """True for the last record of a file, False for others, None if the record does not state it."""
        return bool(self.integer("last", 0, 1)) if self.has("last") else None

    @property
    def units(self) -> Units | None:
        """Units of the pixels; None if the record does not state them (the challenge's files)."""
        units = self.text("units")
        if units and units not in UNITS:
            raise self.fault(f"feature 'units' is {units!r}; expected one of {', '.join(UNITS)}")
        return units or None

    def pixels(self, kind: str, shape: tuple[int, ...], stored: tuple[int, ...]) -> NDArray[Any]:
        """Return the pixels of a record, read-only; `bytes_of` explains the arguments."""
        data, dtype, final = self.bytes_of(kind, shape, stored)
        with np.errstate(invalid="ignore", over="ignore"):
            return np.frombuffer(data, dtype).reshape(shape).astype(final, copy=False)

    def bytes_of(
        self, kind: str, shape: tuple[int, ...], stored: tuple[int, ...]
    ) -> tuple[bytes, np.dtype[Any], np.dtype[Any]]:
        """Return the bytes of the pixels of a record, of the exact copy if there is one.

        Args:
            kind: "time_series", "image" or "patch".
            shape: shape of the pixels, in the order in which they are stored.
            stored: the challenge's shape, for the message.

        Returns:
            The bytes, their dtype, and the dtype of the pixels before they were written.

        Raises:
            RecordError: the bytes do not fit the shape, or the dtype is not in `DTYPES`.
        """
        dtype = final = np.dtype("<f2")
        name = f"{kind}_exact" if self.has(f"{kind}_exact") else f"{kind}_raw"
        if self.has("dtype"):
            if self.text("dtype") not in DTYPES:
                raise self.fault(
                    f"feature 'dtype' is {self.text('dtype')!r}; expected one of {', '.join(DTYPES)}"
                )
            final = np.dtype(self.text("dtype"))
            dtype = final if name.endswith("exact") else dtype
        data = self.raw(name)
        expected = math.prod(shape) * dtype.itemsize
        if len(data) != expected:
            raise self.fault(
                f"feature {name!r} has {len(data)} bytes; expected {expected} for {dtype.name} {shape}"
                + (
                    ""
                    if self.has("height")
                    else f" (without 'height' and 'width' a record has the challenge's shape {stored})"
                )
            )
        return data, dtype, final


def parse(raw: bytes, where: str) -> Fields:
    """Parse one record.

    Args:
        raw: the bytes of the record.
        where: file and record number, for messages.

    Returns:
        Its features.

    Raises:
        RecordError: the bytes are not a `tf.train.Example`.
    """
    import tensorflow as tf
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return Fields(tf.train.Example.FromString(raw).features.feature, where)
    except DecodeError as err:
        raise RecordError(f"{where}: its {len(raw)} bytes are not a tf.train.Example ({err})") from err
