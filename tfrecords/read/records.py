"""Read TFRecord files record by record; every error names file and record.

A record is: length (8 bytes, little-endian), masked crc32c of the length, the bytes, masked crc32c of the
bytes. The lengths are read first, 12 bytes per record. So a file that ends too early is refused at once, and
any record can be read alone. TensorFlow's reader neither names records nor starts at one.

Source: https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import google_crc32c

from tfrecords.errors import MissingInputError, RecordError
from tfrecords.schema import Fields, parse

HEADER = 12
FOOTER = 4
PREFIX_BYTES = 64
"""Bytes of a feature to search for in a record."""
MASK_DELTA = 0xA282EAD8


def masked_crc32c(data: bytes) -> int:
    """Return the checksum that follows a length or the bytes of a record."""
    crc = int(google_crc32c.value(data))
    return ((crc >> 15 | crc << 17) + MASK_DELTA) & 0xFFFFFFFF


def place_of(path: Path, record: int) -> str:
    """Return the name of a record for messages."""
    return f"{path}: record {record} (counted from 0)"


def count_records(path: Path) -> int:
    """Return the number of records in a file; see `record_offsets`."""
    return len(record_offsets(path))


def record_offsets(path: Path) -> list[int]:
    """Return the offset of each record's first byte; reads the lengths only.

    Args:
        path: a TFRecord file.

    Raises:
        MissingInputError: the file is missing, is a folder, or is empty.
        RecordError: a frame is damaged, or the file ends within one.
    """
    return [frame.start for frame in _frames(path)]


def _frames(path: Path) -> list[range]:
    """Return the offsets of the bytes of all records; errors as `record_offsets`."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            frames = _walk_frames(path, file.fileno(), size)
    except OSError as err:
        raise MissingInputError(f"{path} cannot be read: {err.strerror}") from err
    if not frames:
        raise MissingInputError(f"{path} is empty; expected a TFRecord file with at least one record")
    return frames


def _walk_frames(path: Path, handle: int, size: int) -> list[range]:
    """Return the offsets of the bytes of all records by following their lengths to the end of the file."""
    offset, frames = 0, list[range]()
    while offset < size:
        count = len(frames)
        os.lseek(handle, offset, os.SEEK_SET)
        header = os.read(handle, HEADER)
        if len(header) < HEADER:
            raise RecordError(
                f"{place_of(path, count)}: the file ends within the record's length. It is truncated."
            )
        length, checksum = struct.unpack("<QI", header)
        if masked_crc32c(header[:8]) != checksum:
            zipped = header[:2] == b"\x1f\x8b" and not count
            raise RecordError(
                f"{place_of(path, count)}: its length is damaged (checksum differs)"
                + (
                    ". The file is compressed: gunzip it."
                    if zipped
                    else ". The file is corrupt or not a TFRecord file."
                )
            )
        frames.append(range(offset + HEADER, offset + HEADER + length))
        offset += HEADER + length + FOOTER
        if offset > size:
            raise RecordError(
                f"{place_of(path, count)}: it has {length} bytes, but the file ends {offset - size} bytes "
                f"before their end. It is truncated."
            )
    return frames


def raw_records(path: Path, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """Yield the bytes of records of a file in order, their checksums verified.

    Args:
        path: a TFRecord file.
        start: number of the first record; those before it are not read.
        stop: number behind the last one; None for the end of the file.

    Raises:
        MissingInputError: the file is missing or empty.
        RecordError: the file is truncated or corrupt.
    """
    frames = _frames(path)
    with path.open("rb") as file:
        for record, frame in enumerate(frames[start:stop], start):
            file.seek(frame.start)
            raw, checksum = file.read(len(frame)), file.read(FOOTER)
            if len(checksum) < FOOTER:
                raise RecordError(f"{place_of(path, record)}: the file changed while it was read")
            if struct.pack("<I", masked_crc32c(raw)) != checksum:
                raise RecordError(f"{place_of(path, record)}: its bytes are damaged (checksum differs)")
            yield raw


def read_fields(path: Path, start: int = 0, stop: int | None = None) -> Iterator[Fields]:
    """Yield the features of records of a file in order.

    Args:
        path: a TFRecord file.
        start: number of the first record; those before it are not read.
        stop: number behind the last one; None for the end of the file.

    Raises:
        MissingInputError: the file is missing or empty.
        RecordError: the file is truncated, even between two of our records, or corrupt; or a record is
            not a `tf.train.Example`.
    """
    for _, fields in raw_and_fields(path, start, stop):
        yield fields


def raw_and_fields(path: Path, start: int = 0, stop: int | None = None) -> Iterator[tuple[bytes, Fields]]:
    """Yield bytes and features of records of a file in order; see `read_fields`."""
    is_last: bool | None = None
    record = -1
    for record, raw in enumerate(raw_records(path, start, stop), start):
        fields = parse(raw, place_of(path, record))
        is_last = fields.ends_file
        yield raw, fields
    if is_last is False and stop is None:
        raise RecordError(
            f"{place_of(path, record)}: more records were written after it. The file is truncated."
        )


def find_bytes(raw: bytes, data: bytes) -> int:
    """Return the offset of a feature's bytes in its record; equal bytes elsewhere serve as well."""
    prefix = data[:PREFIX_BYTES]  # searching for all bytes takes ten times as long
    offset = raw.index(prefix)
    while not raw.startswith(data, offset):
        offset = raw.index(prefix, offset + 1)
    return offset
