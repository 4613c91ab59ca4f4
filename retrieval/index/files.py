"""The file of an index of codes: written and opened without its half-precision vectors in memory.

The file is what FAISS itself writes of `IndexIDMap(IndexRefine(codes, IndexScalarQuantizer))`, byte for byte:

    header of the map | header of the refinement | codes | half-precision vectors | factor | ids

FAISS would hold all of it at once to write it, and to open it makes a table from ids to rows of the older
`IndexIDMap2`, 40 bytes a window. Here vectors and ids go through a block at a time, and stay in the file,
memory-mapped, when it is opened: codes are what is in memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
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


def halves(vectors: NDArray[Any]) -> NDArray[np.float16]:
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


def singles(vectors: NDArray[Any]) -> NDArray[np.float32]:
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


def write_refined(path: Path, codes: Any, blocks: Iterable[tuple[NDArray[np.int64], NDArray[Any]]]) -> None:
    """Write the file.

    Args:
        path: the file.
        codes: FAISS index of the codes of all vectors.
        blocks: ids, ascending, and the same vectors (m, dim) in the same order.
    """
    ids = []
    with path.open("wb") as file:
        after = begin_refined(file, codes)
        for part, vectors in blocks:
            file.write(np.ascontiguousarray(halves(vectors)).data)
            ids.append(part)
        end_refined(file, after, ids)


def begin_refined(file: BinaryIO, codes: Any) -> bytes:
    """Write all that comes before the half-precision vectors, of which there are as many as codes.

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
    file.write(_bytes(named)[: _header(named, plain, 8)])
    file.write(_bytes(both)[: len(_bytes(both)) - len(plain) - len(half_of_none) - 4])
    faiss.write_index(codes, faiss.PyCallbackIOWriter(file.write))
    file.write(_bytes(half)[:-8] + _length(codes.ntotal * half.code_size))
    return factor


def end_refined(file: BinaryIO, after: bytes, ids: Iterable[NDArray[np.int64]]) -> None:
    """Write what comes behind the half-precision vectors.

    Args:
        file: stands behind them.
        after: as `begin_refined` gives it.
        ids: of all of them, in blocks.
    """
    parts = [np.ascontiguousarray(part, np.int64) for part in ids]
    file.write(after + _length(sum(map(len, parts))))
    for part in parts:
        file.write(part.tobytes())


def open_refined(path: Path) -> tuple[Any, NDArray[np.int64], Any] | None:
    """Open the file.

    Returns:
        The refinement, which knows vectors by their rows; the ids of the rows, ascending, in the file; and
        what must live as long as the refinement. None where the file is of another kind.

    Raises:
        RuntimeError: FAISS finds it damaged.
    """
    faiss = load_faiss()
    start = _header(faiss.IndexIDMap(faiss.IndexFlatIP(1)), _bytes(faiss.IndexFlatIP(1)), 8)
    with path.open("rb") as file:
        begin = file.read(start + 4)
    if begin[:4] not in HEADS or begin[start:] != REFINED:
        return None
    whole = np.memmap(path, np.uint8, "r")
    reader = faiss.ZeroCopyIOReader(faiss.swig_ptr(whole[start:]), whole.size - start)
    index = faiss.read_index(reader)
    count, at = int(index.ntotal), whole.size - 8 * int(index.ntotal)
    if at < 8 or whole[at - 8 : at].tobytes() != _length(count):
        raise RuntimeError(f"its ids are not those of {count} vectors")
    return index, np.memmap(path, np.int64, "r", at, (count,)), whole


def _header(index: Any, inside: bytes, behind: int) -> int:
    """Bytes that FAISS writes of an index before the empty one in it."""
    return len(_bytes(index)) - len(inside) - behind


def _bytes(index: Any) -> bytes:
    data: bytes = load_faiss().serialize_index(index).tobytes()
    return data


def _length(count: int) -> bytes:
    return count.to_bytes(8, "little")
