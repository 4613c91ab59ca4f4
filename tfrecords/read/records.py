"""TFRecord files, record by record, with every fault named by file and record number.

A record is: length (8 bytes, little-endian), masked crc32c of these, the bytes, masked crc32c of the
bytes. TensorFlow checks both sums but takes a file that ends within a length for a whole one, and
names neither file nor record; so the frames are walked here first, which reads 12 bytes a record.

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
TOGETHER = 4 << 20
"""Bytes of records that are asked for together: with each asking TensorFlow takes its time."""
CASTAGNOLI = 0x82F63B78
"""Polynomial of crc32c, reflected."""
MASK_DELTA = 0xA282EAD8


def _table() -> tuple[int, ...]:
    """The crc32c of every byte."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (CASTAGNOLI if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


TABLE = _table()


def masked_crc32c(data: bytes) -> int:
    """Checksum of a TFRecord frame; slow, meant for the 8 bytes of a length."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + MASK_DELTA) & 0xFFFFFFFF


def place_of(path: Path, record: int) -> str:
    """How messages name a record."""
    return f"{path}: record {record} (counted from 0)"


def count_records(path: Path) -> int:
    """Number of records of a file; see `record_offsets`."""
    return len(record_offsets(path))


def record_offsets(path: Path) -> list[int]:
    """Where the records of a file begin, by walking its frames; the bytes in them are not read.

    Args:
        path: a TFRecord file.

    Returns:
        For each record the place of its first byte.

    Raises:
        MissingInputError: the file is missing, no file, or empty.
        RecordError: a frame is damaged or the file ends within one.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            found = _walk(path, file.fileno(), size)
    except OSError as err:
        raise MissingInputError(f"{path} can't be read: {err.strerror}") from err
    if not found:
        raise MissingInputError(f"{path} is empty; expected a TFRecord file with at least one record")
    return found


def _walk(path: Path, handle: int, size: int) -> list[int]:
    """Step from frame to frame to the end of the file."""
    offset, found = 0, list[int]()
    while offset < size:
        count = len(found)
        os.lseek(handle, offset, os.SEEK_SET)
        header = os.read(handle, HEADER)
        if len(header) < HEADER:
            raise RecordError(
                f"{place_of(path, count)}: the file ends within the record's length: it is truncated"
            )
        length, checksum = struct.unpack("<QI", header)
        if masked_crc32c(header[:8]) != checksum:
            zipped = header[:2] == b"\x1f\x8b" and not count
            raise RecordError(
                f"{place_of(path, count)}: its length is damaged (checksum differs)"
                + (
                    "; the file is compressed: gunzip it"
                    if zipped
                    else ": the file is corrupt or no TFRecord file"
                )
            )
        found.append(offset + HEADER)
        offset += HEADER + length + FOOTER
        if offset > size:
            raise RecordError(
                f"{place_of(path, count)}: {length} bytes were written, the file ends {offset - size} bytes "
                f"before their end: it is truncated"
            )
    return found


def raw_records(path: Path) -> Iterator[bytes]:
    """Records of a file in order.

    Args:
        path: a TFRecord file.

    Yields:
        The bytes of each record, their checksum verified.

    Raises:
        MissingInputError: the file is missing or empty.
        RecordError: it is truncated or corrupt.
    """
    import tensorflow as tf

    count = count_records(path)
    # Its tuning is of no use to one reader, and at the end the iterator may wait for the tuner to wake, which
    # sleeps twice as long each time: of a reading of 25 s we have seen it wait 17 s more.
    options = tf.data.Options()
    options.autotune.enabled = False
    frames, record = tf.data.TFRecordDataset(str(path)).with_options(options), 0
    together = max(1, TOGETHER * count // path.stat().st_size)
    # One by one from the records on among which one is damaged, so that the others before it come too.
    for several in (together, 1):
        try:
            # The next ones are read and checked while these are made use of.
            for some in frames.skip(record).batch(several).prefetch(1).as_numpy_iterator():
                for raw in some:
                    yield raw
                    record += 1
            break
        except tf.errors.DataLossError as err:
            if several == 1:
                raise RecordError(
                    f"{place_of(path, record)}: its bytes are damaged (checksum differs)"
                ) from err
    if record != count:
        raise RecordError(f"{place_of(path, record)}: the file changed while it was read")


def read_fields(path: Path) -> Iterator[Fields]:
    """Parsed records of a file in order.

    Args:
        path: a TFRecord file.

    Yields:
        The features of each record.

    Raises:
        MissingInputError: the file is missing or empty.
        RecordError: it is truncated, also between two records of ours; corrupt; or a record is no
            `tf.train.Example`.
    """
    for _, fields in raw_and_fields(path):
        yield fields


def raw_and_fields(path: Path) -> Iterator[tuple[bytes, Fields]]:
    """Records of a file in order, their bytes and what is in them; raises as `read_fields`."""
    ended: bool | None = None
    record = -1
    for record, raw in enumerate(raw_records(path)):
        fields = parse(raw, place_of(path, record))
        ended = fields.ends_file
        yield raw, fields
    if ended is False:
        raise RecordError(
            f"{place_of(path, record)}: more records were written after it: the file is truncated"
        )
