"""The codes of cells on their way to the file: through other files, cell after cell, in little memory.

Cells that grow in memory take twice what they hold in the end, 30 GB for 60,000 images. FAISS writes a cell's
ids and codes one after the other, so nothing needs more than a cell at a time but what sorts them: rows
come in the order of their ids. They are put aside by range of cells, and each range is sorted for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from retrieval.index.codes import Placed, add_codes, by_cell, placed
from retrieval.index.device import load_faiss
from retrieval.index.vector_file import header_of, length

RANGE = 500_000
"""Vectors that are sorted at a time, about: some 170 MB while it is done."""
MOST_RANGES = 128
"""Files that are open together: of more than 64 million vectors more are sorted at a time."""


@contextmanager
def filled(
    codes: Any, blocks: Iterable[tuple[NDArray[np.int64], NDArray[Any]]], count: int, folder: Path
) -> Iterator[Callable[[BinaryIO], None] | None]:
    """Codes of all vectors, in a block in which they can be written.

    Args:
        codes: empty, as for `add_codes`.
        blocks: likewise.
        count: likewise.
        folder: where codes of cells wait.

    Yields:
        What writes them, or None where they are in `codes`: those without cells, which do not grow.
    """
    if load_faiss().try_extract_index_ivf(codes) is None:
        add_codes(codes, blocks, count)
        yield None
        return
    with InvertedListSpool(codes, count, folder) as spool:
        for part in placed(codes, blocks, count):
            spool.add(part)
        spool.full()
        yield spool.write


class InvertedListSpool:
    """Rows, cells and codes of an index with cells, kept in files without a name until they are written."""

    def __init__(self, codes: Any, count: int, folder: Path) -> None:
        """Begin with none.

        Args:
            codes: FAISS's, with cells and without vectors, as `empty_codes` and `emptied` give it.
            count: how many vectors will come.
            folder: where the files are; they go when the block is left, or the process.
        """
        faiss = load_faiss()
        self._codes, self._cells = codes, faiss.downcast_index(codes.index)
        self._count, self._row = count, 0
        self._codes.ntotal = self._cells.ntotal = count  # what is written before them says how many
        ranges = max(1, min(self._cells.nlist, MOST_RANGES, -(-count // RANGE)))
        self._first = np.linspace(0, self._cells.nlist, ranges + 1).astype(np.int64)
        width = self._cells.code_size
        self._kind = np.dtype([("cell", np.int32), ("row", np.int64), ("code", np.uint8, width)])
        self._opened = ExitStack()
        self._files = [self._opened.enter_context(TemporaryFile(dir=folder)) for _ in range(ranges)]

    def __enter__(self) -> InvertedListSpool:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._opened.close()

    def add(self, placed: Placed) -> None:
        """Put vectors aside, which follow those before."""
        cells, codes = placed
        new = np.empty(len(cells), self._kind)
        new["cell"], new["code"] = cells, codes
        new["row"] = np.arange(self._row, self._row + len(cells))
        self._row += len(cells)
        of = np.searchsorted(self._first, cells, side="right") - 1
        order, ends = np.argsort(of, kind="stable"), np.cumsum(np.bincount(of, minlength=len(self._files)))
        for file, rows in zip(self._files, np.split(order, ends[:-1]), strict=True):
            file.write(new[rows].data)

    def full(self) -> None:
        """Make sure that all vectors came."""
        assert self._row == self._count, f"{self._row} vectors came, {self._count} were announced"

    def write(self, file: BinaryIO) -> None:
        """Write what FAISS writes of the whole index, once."""
        empty = 16 * self._cells.nlist  # an empty cell is two lengths of 0
        file.write(header_of(self._codes, empty))
        for number, waiting in enumerate(self._files):
            waiting.seek(0)
            held = np.frombuffer(waiting.read(), self._kind)
            waiting.close()  # what is written is no longer on the disk twice
            self._write_range(file, held, *self._first[number : number + 2].tolist())
            del held

    def _write_range(self, file: BinaryIO, held: NDArray[Any], first: int, stop: int) -> None:
        """Some cells, one after the other."""
        none = np.zeros(stop - first, np.int64)
        for rows, blocks in by_cell(held["cell"] - first, held["code"], self._cells.bbs, none):
            ids = held["row"][rows]
            file.write(length(ids.size) + ids.tobytes() + length(blocks.size) + blocks.tobytes())
