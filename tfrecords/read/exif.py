"""The tag Orientation of a TIFF or PNG, which GDAL does not report.

A TIFF is a list of tags, and so is the chunk eXIf of a PNG. A header has the byte order and the offset of the
list; the list has a number of entries, and entries of one size. Source: TIFF 6.0 and BigTIFF, tag 274; PNG,
third edition, chunk eXIf.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import IO

ORIENTATION = 274
SHORT = 3
"""Type of a tag of two bytes."""
MAX_ENTRIES = 4096
"""Most entries that are searched: a damaged count must not cost time."""
MAX_BYTES = 1 << 16
"""Largest part of a chunk eXIf that is read."""
PNG = b"\x89PNG\r\n\x1a\n"


def orientation_tag(path: Path) -> int:
    """Return the tag Orientation of a TIFF or PNG, 1 to 8; 1 without a valid one, and for other files."""
    with path.open("rb") as file:
        if file.read(8) == PNG:
            number = _of_tags(io.BytesIO(_exif_chunk(file)))
        else:
            number = _of_tags(file)
    return number if 1 <= number <= 8 else 1


def _exif_chunk(file: IO[bytes]) -> bytes:
    """Return the chunk eXIf of a PNG that is read up to its first chunk; empty without one."""
    size = _size(file)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"eXIf":
            return file.read(min(length, MAX_BYTES))
        if file.tell() + length + 4 > size:
            break
        file.seek(length + 4, io.SEEK_CUR)
    return b""


def _size(file: IO[bytes]) -> int:
    """Return the size of a file in bytes; a file system may refuse to seek far behind its end."""
    here = file.tell()
    size = file.seek(0, io.SEEK_END)
    file.seek(here)
    return size


def _of_tags(file: IO[bytes]) -> int:
    """Return the value of the tag in a file or chunk; 0 without it."""
    file.seek(0)
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 8:
        return 0
    version = struct.unpack(f"{order}H", head[2:4])[0]
    if version == 42:
        offset, counter, entry = struct.unpack(f"{order}I", head[4:8])[0], "H", f"{order}HHIH2x"
    elif version == 43 and len(head) == 16:
        offset, counter, entry = struct.unpack(f"{order}Q", head[8:16])[0], "Q", f"{order}HHQH6x"
    else:
        return 0
    if offset >= _size(file):
        return 0
    file.seek(offset)
    counted = file.read(struct.calcsize(counter))
    if len(counted) < struct.calcsize(counter):
        return 0
    count = min(struct.unpack(f"{order}{counter}", counted)[0], MAX_ENTRIES)
    size = struct.calcsize(entry)
    entries = file.read(count * size)
    for tag, kind, _, value in struct.iter_unpack(entry, entries[: len(entries) // size * size]):
        if tag == ORIENTATION and kind == SHORT:
            return int(value)
    return 0
