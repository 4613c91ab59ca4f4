"""The file of an index of codes: written and opened without its half-precision vectors in memory.

The file is what FAISS itself writes of `IndexIDMap(IndexRefine(codes, IndexScalarQuantizer))`, byte for byte:

    header of the map | header of the refinement | codes | half-precision vectors | factor | ids

FAISS would hold all of it at once to write it, and to open it makes a table from ids to rows of the older
`IndexIDMap2`, 40 bytes a window. Here vectors and ids go through a block at a time, and stay in the file,
memory-mapped, when it is opened: codes are what is in memory.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from retrieval.index.device import load_faiss, one_thread

HEADS = (b"IxMp", b"IxM2")
"""How a file with a map of ids begins; the second is what release 0.1.0 wrote first."""
REFINED = b"IxRF"
"""How the refinement in it begins."""


def half_precision(dim: int) -> Any:
    """An empty FAISS index of half-precision vectors."""
    faiss = load_faiss()
    return faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)


def to_float16(vectors: NDArray[Any]) -> NDArray[np.float16]:
    """Vectors of half precision; FAISS converts in a quarter of NumPy's time.

    Args:
        vectors: (m, dim) of single or half precision.
    """
    if vectors.dtype == np.float16:
        return vectors
    with one_thread():
        coded = half_precision(vectors.shape[1]).sa_encode(np.ascontiguousarray(vectors, np.float32))
    found: NDArray[np.float16] = coded.view(np.float16)
    return found


def to_float32(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """Vectors of single precision, contiguous.

    Args:
        vectors: (m, dim) of single or half precision.
    """
    if vectors.dtype != np.float16:
        return np.ascontiguousarray(vectors, np.float32)
    with one_thread():
        found: NDArray[np.float32] = half_precision(vectors.shape[1]).sa_decode(
            np.ascontiguousarray(vectors).view(np.uint8)
        )
    return found


def write_refined(
    path: Path,
    codes: Any,
    blocks: Iterable[tuple[NDArray[np.int64], NDArray[Any]]],
    write: Callable[[BinaryIO], None] | None = None,
) -> None:
    """Write the file.

    Args:
        path: the file.
        codes: FAISS index of the codes of all vectors.
        blocks: ids, ascending, and the same vectors (m, dim) in the same order.
        write: writes the codes, where they are not in memory; `codes` then knows their number.
    """
    # Ids wait in a file: 1.6 GB of 60,000 images.
    with path.open("wb") as file, TemporaryFile(dir=path.parent) as waiting:
        after = begin_refined(file, codes, write)
        for part, vectors in blocks:
            file.write(np.ascontiguousarray(to_float16(vectors)).data)
            waiting.write(np.ascontiguousarray(part, np.int64).data)
        count = waiting.tell() // 8
        waiting.seek(0)
        end_refined(file, after, count, waiting)


def begin_refined(file: BinaryIO, codes: Any, write: Callable[[BinaryIO], None] | None = None) -> bytes:
    """Write all that comes before the half-precision vectors, of which there are as many as codes.

    Args:
        file: where.
        codes: as for `write_refined`.
        write: likewise.

    Returns:
        What comes behind them, before the ids.
    """
    faiss = load_faiss()
    flat, half = faiss.IndexFlatIP(codes.d), half_precision(codes.d)
    plain, half_of_none = _bytes(flat), _bytes(half)
    both, named = faiss.IndexRefine(flat, half), faiss.IndexIDMap(faiss.IndexFlatIP(codes.d))
    factor = _bytes(both)[-4:]
    for index in (half, both, named):
        index.ntotal = codes.ntotal
    file.write(header_of(named, len(plain) + 8))
    file.write(header_of(both, len(plain) + len(half_of_none) + 4))
    if write:
        write(file)
    else:
        faiss.write_index(codes, faiss.PyCallbackIOWriter(file.write))
    file.write(_bytes(half)[:-8] + length(codes.ntotal * half.code_size))
    return factor


def end_refined(file: BinaryIO, after: bytes, count: int, ids: BinaryIO) -> None:
    """Write what comes behind the half-precision vectors.

    Args:
        file: stands behind them.
        after: as `begin_refined` gives it.
        count: how many ids there are.
        ids: a file of them, int64, from where it stands on.
    """
    file.write(after + length(count))
    shutil.copyfileobj(ids, file, 1 << 20)


def open_refined(path: Path) -> tuple[Any, NDArray[np.int64], Any] | None:
    """Open the file.

    Returns:
        The refinement, which knows vectors by their rows; the ids of the rows, ascending, in the file; and
        what must live as long as the refinement. None where the file is of another kind.

    Raises:
        RuntimeError: FAISS finds it damaged.
    """
    faiss = load_faiss()
    flat = faiss.IndexFlatIP(1)
    start = len(header_of(faiss.IndexIDMap(flat), len(_bytes(flat)) + 8))
    with path.open("rb") as file:
        begin = file.read(start + 4)
    if begin[:4] not in HEADS or begin[start:] != REFINED:
        return None
    whole = np.memmap(path, np.uint8, "r")
    reader = faiss.ZeroCopyIOReader(faiss.swig_ptr(whole[start:]), whole.size - start)
    index = faiss.read_index(reader)
    count, at = int(index.ntotal), whole.size - 8 * int(index.ntotal)
    if at < 8 or whole[at - 8 : at].tobytes() != length(count):
        raise RuntimeError(f"its ids are not those of {count} vectors")
    return index, np.memmap(path, np.int64, "r", at, (count,)), whole


def header_of(index: Any, behind: int) -> bytes:
    """What FAISS writes of an index but the last `behind` bytes."""
    return _bytes(index)[:-behind]


def _bytes(index: Any) -> bytes:
    data: bytes = load_faiss().serialize_index(index).tobytes()
    return data


def length(count: int) -> bytes:
    """A number of elements as FAISS writes it before them."""
    return count.to_bytes(8, "little")
