"""The file of a "fast" or "ivf" index, written and opened without its vectors in memory.

The file is byte for byte what FAISS writes of `IndexIDMap(IndexRefine(codes, IndexScalarQuantizer))`:

    header of the id map | header of the refinement | codes | half-precision vectors | factor | ids

FAISS needs all of it in memory to write it; to open it, FAISS builds the id table of the older
`IndexIDMap2`, 40 bytes per window. Here vectors and ids pass through memory one block at a time, and an
opened file is memory-mapped: only the codes are in memory.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from retrieval.index.device import RefineIndex, load_faiss, one_thread

ID_MAP_TAGS = (b"IxMp", b"IxM2")
"""First bytes of a file with an id map; the first builds of 0.1.0 wrote the second tag."""
REFINE_TAG = b"IxRF"
"""First bytes of the refinement inside it."""

WriteCodes = Callable[[BinaryIO], None]
"""Write the codes to a file as FAISS does."""


@dataclass(frozen=True)
class MappedIndex:
    """An opened file."""

    index: RefineIndex
    """Returns rows instead of ids."""
    ids: NDArray[np.int64]
    """Id of each row, ascending, mapped from the file."""
    mapping: NDArray[np.uint8]
    """The whole file; it must live as long as `index`, which reads from it."""


def half_precision(dim: int) -> Any:
    """Return an empty FAISS index of half-precision vectors."""
    faiss = load_faiss()
    return faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)


def to_float16(vectors: NDArray[Any]) -> NDArray[np.float16]:
    """Return vectors (m, dim) in half precision; FAISS converts four times as fast as NumPy."""
    if vectors.dtype == np.float16:
        return vectors
    with one_thread():
        encoded = half_precision(vectors.shape[1]).sa_encode(np.ascontiguousarray(vectors, np.float32))
    halves: NDArray[np.float16] = encoded.view(np.float16)
    return halves


def to_float32(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """Return vectors (m, dim) in single precision, contiguous."""
    if vectors.dtype != np.float16:
        return np.ascontiguousarray(vectors, np.float32)
    with one_thread():
        singles: NDArray[np.float32] = half_precision(vectors.shape[1]).sa_decode(
            np.ascontiguousarray(vectors).view(np.uint8)
        )
    return singles


def write_refined(
    path: Path,
    codes: Any,
    blocks: Iterable[tuple[NDArray[np.int64], NDArray[Any]]],
    write_codes: WriteCodes | None = None,
) -> None:
    """Write the file.

    Args:
        path: the file.
        codes: FAISS index with the codes of all vectors.
        blocks: ids, ascending, and the same vectors (m, dim) in the same order.
        write_codes: writes codes that are not in memory; `codes.ntotal` must hold their number.
    """
    # Ids come after all vectors. They wait in a file: 60,000 images have 1.6 GB of them.
    with path.open("wb") as file, TemporaryFile(dir=path.parent) as id_file:
        factor = begin_refined(file, codes, write_codes)
        for ids, vectors in blocks:
            file.write(np.ascontiguousarray(to_float16(vectors)).data)
            id_file.write(np.ascontiguousarray(ids, np.int64).data)
        count = id_file.tell() // 8
        id_file.seek(0)
        end_refined(file, factor, count, id_file)


def begin_refined(file: BinaryIO, codes: Any, write_codes: WriteCodes | None = None) -> bytes:
    """Write everything before the half-precision vectors; the caller then writes `codes.ntotal` vectors.

    HACK: FAISS has no call that writes headers alone, so they are cut out of serialized empty indexes. This
    relies on FAISS's layout: a header, the inner indexes, and at the end the lengths and data of vectors.
    Tests compare the result with `faiss.write_index` byte for byte, so a new layout does not go unnoticed.

    Args:
        file: an empty file.
        codes: as for `write_refined`.
        write_codes: as for `write_refined`.

    Returns:
        The bytes that belong between the vectors and the ids: the refinement's factor.
    """
    faiss = load_faiss()
    flat, half = faiss.IndexFlatIP(codes.d), half_precision(codes.d)
    flat_bytes, half_bytes = _serialized(flat), _serialized(half)
    refinement, id_map = faiss.IndexRefine(flat, half), faiss.IndexIDMap(faiss.IndexFlatIP(codes.d))
    factor = _serialized(refinement)[-4:]
    for index in (half, refinement, id_map):
        index.ntotal = codes.ntotal  # headers hold the number of vectors
    file.write(header_of(id_map, len(flat_bytes) + 8))
    file.write(header_of(refinement, len(flat_bytes) + len(half_bytes) + 4))
    if write_codes:
        write_codes(file)
    else:
        faiss.write_index(codes, faiss.PyCallbackIOWriter(file.write))
    file.write(_serialized(half)[:-8] + length_bytes(codes.ntotal * half.code_size))
    return factor


def end_refined(file: BinaryIO, factor: bytes, count: int, id_file: BinaryIO) -> None:
    """Write everything after the half-precision vectors.

    Args:
        file: positioned after the vectors.
        factor: as `begin_refined` returns it.
        count: number of ids.
        id_file: int64 ids, read from its position to its end.
    """
    file.write(factor + length_bytes(count))
    shutil.copyfileobj(id_file, file, 1 << 20)


def open_refined(path: Path) -> MappedIndex | None:
    """Open the file, or return None if it holds another kind of index.

    Raises:
        RuntimeError: the file is damaged.
    """
    faiss = load_faiss()
    flat = faiss.IndexFlatIP(1)
    start = len(header_of(faiss.IndexIDMap(flat), len(_serialized(flat)) + 8))
    with path.open("rb") as file:
        head = file.read(start + 4)
    if head[:4] not in ID_MAP_TAGS or head[start:] != REFINE_TAG:
        return None
    mapping = np.memmap(path, np.uint8, "r")
    reader = faiss.ZeroCopyIOReader(faiss.swig_ptr(mapping[start:]), mapping.size - start)
    index = faiss.read_index(reader)
    count = int(index.ntotal)
    ids_start = mapping.size - 8 * count
    if ids_start < 8 or mapping[ids_start - 8 : ids_start].tobytes() != length_bytes(count):
        raise RuntimeError(f"the file does not end with the ids of its {count} vectors")
    return MappedIndex(index, np.memmap(path, np.int64, "r", ids_start, (count,)), mapping)


def header_of(index: Any, tail: int) -> bytes:
    """Return what FAISS writes of an index without the last `tail` bytes."""
    return _serialized(index)[:-tail]


def _serialized(index: Any) -> bytes:
    data: bytes = load_faiss().serialize_index(index).tobytes()
    return data


def length_bytes(count: int) -> bytes:
    """Return a number of elements as FAISS writes it before them."""
    return count.to_bytes(8, "little")
