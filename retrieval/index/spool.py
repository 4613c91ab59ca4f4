"""Sort the codes of an "ivf" index into its cells through temporary files, in little memory.

Cells that grow in memory take twice their final size, 30 GB for 60,000 images. FAISS's file holds one cell
after the other, each with its ids and codes, but vectors arrive in the order of their ids. So there are two
passes, as in an external bucket sort:

1. `add` appends each vector's cell, row and code to the temporary file of its range of cells.
2. `write` reads one range at a time, sorts it by cell, and writes its cells as FAISS does.

Only one range is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from retrieval.index.codes import Encoded, add_codes, encode_blocks, sort_into_cells
from retrieval.index.device import load_faiss
from retrieval.index.kinds import DEFAULT_SIZES, Block, BlockSizes
from retrieval.index.vector_file import WriteCodes, header_of, length_bytes

MAX_RANGES = 128
"""Temporary files that are open together; with more than 64 million vectors a range holds more of them."""


@contextmanager
def spooled_codes(
    codes: Any, blocks: Iterable[Block], count: int, folder: Path, sizes: BlockSizes = DEFAULT_SIZES
) -> Iterator[WriteCodes | None]:
    """Encode all vectors; inside the block their codes can be written.

    Args:
        codes: trained and empty, as for `add_codes`.
        blocks: as for `add_codes`.
        count: number of vectors.
        folder: where the temporary files lie.
        sizes: vectors in memory at a time.

    Yields:
        A function that writes the codes; None where they are in `codes`, because there are no cells.
    """
    if load_faiss().try_extract_index_ivf(codes) is None:
        add_codes(codes, blocks, count, sizes)
        yield None
        return
    with InvertedListSpool(codes, count, folder, sizes.sort) as spool:
        for encoded in encode_blocks(codes, blocks, count):
            spool.add(encoded)
        spool.check_complete()
        yield spool.write


class InvertedListSpool:
    """Rows, cells and codes of an index with cells, kept in temporary files until they are written."""

    def __init__(self, codes: Any, count: int, folder: Path, range_size: int = BlockSizes.sort) -> None:
        """Open empty temporary files.

        Args:
            codes: FAISS index with trained cells and without vectors.
            count: number of vectors that `add` will get.
            folder: where the files lie; they have no name and vanish with the block or the process.
            range_size: vectors that are sorted at a time, about.
        """
        faiss = load_faiss()
        self._codes, self._index = codes, faiss.downcast_index(codes.index)
        self._count, self._added = count, 0
        self._codes.ntotal = self._index.ntotal = count  # the header before the cells holds this number
        ranges = max(1, min(self._index.nlist, MAX_RANGES, -(-count // range_size)))
        self._first_cells = np.linspace(0, self._index.nlist, ranges + 1).astype(np.int64)
        width = self._index.code_size
        self._record = np.dtype([("cell", np.int32), ("row", np.int64), ("code", np.uint8, width)])
        self._stack = ExitStack()
        self._files = [self._stack.enter_context(TemporaryFile(dir=folder)) for _ in range(ranges)]

    def __enter__(self) -> InvertedListSpool:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._stack.close()

    def add(self, encoded: Encoded) -> None:
        """Store the next vectors."""
        cells, codes = encoded
        records = np.empty(len(cells), self._record)
        records["cell"], records["code"] = cells, codes
        records["row"] = np.arange(self._added, self._added + len(cells))
        self._added += len(cells)
        ranges = np.searchsorted(self._first_cells, cells, side="right") - 1
        order = np.argsort(ranges, kind="stable")
        ends = np.cumsum(np.bincount(ranges, minlength=len(self._files)))
        for file, rows in zip(self._files, np.split(order, ends[:-1]), strict=True):
            file.write(records[rows].data)

    def check_complete(self) -> None:
        """Assert that `add` got all vectors."""
        assert self._added == self._count, f"{self._added} vectors came, {self._count} were announced"

    def write(self, file: BinaryIO) -> None:
        """Write what FAISS writes of the whole index; can be called once.

        HACK: the header is cut out of the serialized empty index. Its tail has two lengths of 0, 16 bytes,
        for each empty cell; the cells that replace it have the layout of FAISS's `ArrayInvertedLists`.
        """
        file.write(header_of(self._codes, 16 * self._index.nlist))
        for number, spooled in enumerate(self._files):
            spooled.seek(0)
            records = np.frombuffer(spooled.read(), self._record)
            spooled.close()  # frees the disk before the range is written a second time
            self._write_range(file, records, *self._first_cells[number : number + 2].tolist())
            del records

    def _write_range(self, file: BinaryIO, records: NDArray[Any], first: int, stop: int) -> None:
        """Write the cells `first` to `stop` - 1."""
        begun = np.zeros(stop - first, np.int64)
        cells = sort_into_cells(records["cell"] - first, records["code"], self._index.bbs, begun)
        for rows, blocks in cells:
            ids = records["row"][rows]
            file.write(length_bytes(ids.size) + ids.tobytes() + length_bytes(blocks.size) + blocks.tobytes())
