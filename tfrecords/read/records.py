"""Read TFRecord files record by record; every error names file and record number.

A record is: length (8 bytes, little-endian), masked crc32c of the length, the bytes, masked crc32c of the
bytes. TensorFlow checks both sums, but accepts a file that ends within a length, and names neither file
nor record. So the frames are checked here first, which reads 12 bytes per record.

Source: https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from tfrecords.errors import MissingInputError, RecordError
from tfrecords.schema import Fields, parse

HEADER = 12
FOOTER = 4
REQUEST_BYTES = 4 << 20
"""Bytes of records in one request; each request to TensorFlow has a fixed cost."""
PREFIX_BYTES = 64
"""Bytes of a feature to search for in a record."""
CASTAGNOLI = 0x82F63B78
"""Polynomial of crc32c, reflected."""
MASK_DELTA = 0xA282EAD8


def _table() -> tuple[int, ...]:
    """Return the crc32c of every byte."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (CASTAGNOLI if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


TABLE = _table()


def masked_crc32c(data: bytes) -> int:
    """Return the checksum of a TFRecord frame; slow, meant for the 8 bytes of a length."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + MASK_DELTA) & 0xFFFFFFFF


def place_of(path: Path, record: int) -> str:
    """Return the name of a record for messages."""
    return f"{path}: record {record} (counted from 0)"


def count_records(path: Path) -> int:
    """Return the number of records in a file; see `record_offsets`."""
    return len(record_offsets(path))


def record_offsets(path: Path) -> list[int]:
    """Return the offset of each record's first byte; reads the frames only.

    Args:
        path: a TFRecord file.

    Raises:
        MissingInputError: the file is missing, is a folder, or is empty.
        RecordError: a frame is damaged, or the file ends within one.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            offsets = _walk_frames(path, file.fileno(), size)
    except OSError as err:
        raise MissingInputError(f"{path} cannot be read: {err.strerror}") from err
    if not offsets:
        raise MissingInputError(f"{path} is empty; expected a TFRecord file with at least one record")
    return offsets


def _walk_frames(path: Path, handle: int, size: int) -> list[int]:
    """Return the offsets of all records by following their lengths to the end of the file."""
    offset, offsets = 0, list[int]()
    while offset < size:
        count = len(offsets)
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
        offsets.append(offset + HEADER)
        offset += HEADER + length + FOOTER
        if offset > size:
            raise RecordError(
                f"{place_of(path, count)}: it has {length} bytes, but the file ends {offset - size} bytes "
                f"before their end. It is truncated."
            )
    return offsets


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
    import tensorflow as tf

    total = count_records(path)
    count = total if stop is None else min(stop, total)
    # Autotuning does not help a single reader. At the end the iterator may wait for the tuner to wake, whose
    # sleep doubles each time: a reading of 25 s once waited 17 s more.
    options = tf.data.Options()
    options.autotune.enabled = False
    frames, record = tf.data.TFRecordDataset(str(path)).with_options(options), start
    frames = frames if stop is None else frames.take(count)
    batch_size = max(1, REQUEST_BYTES * total // path.stat().st_size)
    # If a batch has a damaged record, read on one by one, so that the records before it are yielded.
    for size in (batch_size, 1):
        try:
            # The next batch is read and checked while the caller uses this one. Of skipped records
            # TensorFlow reads the lengths alone.
            for batch in frames.skip(record).batch(size).prefetch(1).as_numpy_iterator():
                for raw in batch:
                    yield raw
                    record += 1
            break
        except tf.errors.DataLossError as err:
            if size == 1:
                raise RecordError(
                    f"{place_of(path, record)}: its bytes are damaged (checksum differs)"
                ) from err
    if record != count:
        raise RecordError(f"{place_of(path, record)}: the file changed while it was read")


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
