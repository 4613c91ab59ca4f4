"""One record: a `tf.train.Example` with the challenge's features, and ours beside them.

The challenge's features always hold what the challenge says they hold, so that its decoder reads
our shards: float16 digital numbers `(y, x, date-major blocks of bands)` in `time_series_raw`,
float16 scaled `(y, x, b)` in `image_raw` and `patch_raw`. Where that would lose a bit of what is
stored, the pixels stand beside it whole, in `*_exact`. All arrays are little-endian, C order.
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
"""Shapes of the challenge's records, which do not say them: (t, y, x, b) and (y, x, b)."""

DTYPES = ("|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8")


@dataclass(frozen=True, eq=False)
class Fields:
    """A parsed record with typed access to its features; every fault is a `RecordError`."""

    features: Any
    """Protocol-buffer map from feature name to `tf.train.Feature`."""
    where: str
    """File and record number, for messages."""

    def fault(self, text: str) -> RecordError:
        """The error that names this record and says `text`."""
        return RecordError(f"{self.where}: {text}")

    def has(self, name: str) -> bool:
        """Whether the feature is there."""
        return name in self.features

    def values(self, name: str, kind: str) -> Sequence[Any]:
        """All values of a feature.

        Args:
            name: the feature.
            kind: "bytes_list", "int64_list" or "float_list".

        Returns:
            Its values, at least one.

        Raises:
            RecordError: the feature is missing, empty or of another kind.
        """
        if name not in self.features:
            raise self.fault(f"feature {name!r} is missing; it has {sorted(self.features) or 'none'}")
        found = self.features[name].WhichOneof("kind")
        values = getattr(self.features[name], kind).value
        if found != kind or not len(values):
            raise self.fault(f"feature {name!r} holds {len(values)} values of {found}; expected {kind}")
        return values

    def raw(self, name: str) -> bytes:
        """The one bytes value of a feature."""
        return self.values(name, "bytes_list")[0]

    def integer(self, name: str, low: int = 0, high: int = 2**63 - 1) -> int:
        """The one whole number of a feature, in [low, high]."""
        value = int(self.values(name, "int64_list")[0])
        if not low <= value <= high:
            raise self.fault(f"feature {name!r} is {value}; expected {low} to {high}")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """The texts of a feature."""
        try:
            return tuple(v.decode() for v in self.values(name, "bytes_list"))
        except UnicodeDecodeError as err:
            raise self.fault(f"feature {name!r} is no text ({err})") from err

    def text(self, name: str, default: str = "") -> str:
        """The one text of a feature, or `default` where there is none."""
        return self.texts(name)[0] if self.has(name) else default

    def numbers(self, name: str, count: int) -> tuple[float, ...] | None:
        """The `count` numbers of a feature, written as texts, or None where there is none."""
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
        """The one number of a feature, or None where there is none."""
        found = self.numbers(name, 1)
        return found[0] if found else None

    @property
    def ends_file(self) -> bool | None:
        """True for the last record of a file, False for others, None where it isn't said."""
        return bool(self.integer("last", 0, 1)) if self.has("last") else None

    @property
    def units(self) -> Units | None:
        """Units of the pixels, None where they aren't said (the challenge's own files)."""
        units = self.text("units")
        if units and units not in UNITS:
            raise self.fault(f"feature 'units' is {units!r}; expected one of {', '.join(UNITS)}")
        return units or None  # type: ignore[return-value]

    def pixels(self, kind: str, shape: tuple[int, ...], stored: tuple[int, ...]) -> NDArray[Any]:
        """Pixels of a record, the exact copy where there is one; as `bytes_of`.

        Returns:
            An array of `shape`, read-only.
        """
        data, dtype, final = self.bytes_of(kind, shape, stored)
        with np.errstate(invalid="ignore", over="ignore"):
            return np.frombuffer(data, dtype).reshape(shape).astype(final, copy=False)

    def bytes_of(
        self, kind: str, shape: tuple[int, ...], stored: tuple[int, ...]
    ) -> tuple[bytes, np.dtype[Any], np.dtype[Any]]:
        """Bytes of the pixels of a record, of the exact copy where there is one.

        Args:
            kind: "time_series", "image" or "patch".
            shape: shape to give them, in the order in which they are stored.
            stored: the challenge's shape, for the message.

        Returns:
            The bytes, the dtype that they are of, and the one that the pixels were before they were written.

        Raises:
            RecordError: the bytes do not fit the shape or the dtype is none of ours.
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
        wanted = math.prod(shape) * dtype.itemsize
        if len(data) != wanted:
            raise self.fault(
                f"feature {name!r} has {len(data)} bytes; expected {wanted} for {dtype.name} {shape}"
                + (
                    ""
                    if self.has("height")
                    else f" (without 'height' and 'width' it is the challenge's {stored})"
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
        RecordError: the bytes are no `tf.train.Example`.
    """
    import tensorflow as tf
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return Fields(tf.train.Example.FromString(raw).features.feature, where)
    except DecodeError as err:
        raise RecordError(f"{where}: {len(raw)} bytes that are no tf.train.Example ({err})") from err
