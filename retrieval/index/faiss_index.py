"""The vectors of all windows and their ids: build, save, open, search.

Similarity is the inner product of unit vectors, the cosine. Results are ordered by similarity; ties go to
the smaller id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import IndexConfig, IndexKind
from retrieval.errors import ConfigError, IndexFormatError, IndexMismatchError
from retrieval.index.codes import add_codes
from retrieval.index.device import BLAS_THRESHOLD, FaissIndex, RefineIndex, load_faiss, to_gpu
from retrieval.index.kinds import (
    DEFAULT_SIZES,
    Block,
    Blocks,
    BlockSizes,
    as_float16,
    choose_kind,
    regroup_blocks,
    set_nprobe,
    train_quantizer,
    trained_copy,
)
from retrieval.index.spool import spooled_codes
from retrieval.index.vector_file import half_precision, open_refined, to_float32, write_refined

TIES = 16
"""Neighbours requested beyond k: FAISS keeps any of those that tie with the k-th, we keep the smaller ids."""
GPU_K = 2048
"""Most neighbours that FAISS returns on a GPU."""
READ_ROWS = 100_000
"""Vectors in memory at a time while an index is read."""
QUERY_BLOCK = 4096
"""Queries searched at a time: bounds the memory of results."""


class VectorIndex:
    """Vectors and their ids in a FAISS index of one kind."""

    def __init__(
        self,
        index: FaissIndex,
        kind: IndexKind,
        nprobe: int,
        device: str = "cpu",
        rerank_k: int = IndexConfig.rerank_k,
        row_ids: NDArray[np.int64] | None = None,
        mapping: NDArray[np.uint8] | None = None,
    ) -> None:
        """Wrap a FAISS index; use `build` or `open`.

        Args:
            index: a FAISS index on the CPU.
            kind: its kind.
            nprobe: see `open`.
            device: see `open`.
            rerank_k: see `open`.
            row_ids: id of each row, ascending, where `index` returns rows.
            mapping: the mapped file from which `index` reads.
        """
        self._cpu, self.kind, self.device, self.rerank_k = index, kind, device, rerank_k
        self._refine: RefineIndex | None = _as_refine_index(index)
        self._row_ids, self._mapping = row_ids, mapping
        # `extract_index_ivf` does not look inside a refinement.
        inner = self._refine.base_index if self._refine else index
        self.nprobe = set_nprobe(inner, nprobe) if kind == "ivf" else 0
        self._index, self._allowed = index, None
        if device == "gpu":
            self._index = to_gpu(index, self._refine.refine_index if self._refine else None)

    def __len__(self) -> int:
        return int(self._cpu.ntotal)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self._cpu.d)

    @classmethod
    def build(
        cls,
        blocks: Blocks,
        dim: int,
        config: IndexConfig,
        device: str = "cpu",
        *,
        path: Path | None = None,
        count: int | None = None,
        sample: tuple[Blocks, int] | None = None,
        trained: VectorIndex | None = None,
        on_encoded: Callable[[], object] = lambda: None,
        sizes: BlockSizes = DEFAULT_SIZES,
    ) -> VectorIndex:
        """Build an index.

        Args:
            blocks: returns the blocks; ids ascend over all of them. It is called once per pass.
            dim: length of a vector.
            config: kind and its parameters.
            device: "cpu" or "gpu", as `resolve_device` returns it.
            path: file to write the index to; half-precision vectors then pass through memory one block at
                a time. None builds in memory.
            count: number of vectors; None counts them in a separate pass.
            sample: blocks to train codes and cells with, and their number of vectors; None trains with all.
            trained: an index whose kind, codes and cells are reused; nothing is trained then.
            on_encoded: called when all vectors are encoded, before they are sorted and written. From then
                on the disk is busier than the processor. Not called for the exact kind.
            sizes: vectors in memory at a time.

        Raises:
            DuplicateIdError: an id is doubled, or ids do not ascend.
        """
        count = sum(len(ids) for ids, _ in blocks()) if count is None else count
        # An index without vectors is false, so `trained` is compared with None.
        kind = choose_kind(config.kind, count, config, device) if trained is None else trained.kind
        options = (kind, config.nprobe, device, config.rerank_k)
        if kind == "exact":
            index = cls(_exact(regroup_blocks(blocks(), sizes.group), dim), *options)
            if path:
                index.save(path)
            return index
        codes = _trained_codes(kind, sample or (blocks, count), dim, count, trained)
        if kind == "ivf":
            set_nprobe(codes, config.nprobe)
        halves = as_float16(blocks)  # codes describe the vectors that are kept

        def passed() -> Iterator[Block]:
            return regroup_blocks(halves(), sizes.group)

        if path:
            with spooled_codes(codes, passed(), count, path.parent, sizes) as write_codes:
                on_encoded()
                write_refined(path, codes, passed(), write_codes)
            del codes, write_codes  # frees their memory before the file is opened
            return cls.open(path, *options)
        add_codes(codes, passed(), count, sizes)
        on_encoded()
        half, row_ids = _half_vectors(passed(), dim)
        return cls(load_faiss().IndexRefine(codes, half), *options, row_ids)

    @classmethod
    def of_codes(cls, codes: NDArray[np.uint8], kind: IndexKind) -> VectorIndex:
        """Return an index without vectors, for `trained` of `build`.

        Args:
            codes: (m,) bytes that `train_codes` returned.
            kind: "fast" or "ivf".
        """
        base = load_faiss().deserialize_index(codes)
        no_ids = np.zeros(0, np.int64)
        return cls(load_faiss().IndexRefine(base, half_precision(base.d)), kind, 0, row_ids=no_ids)

    def search(
        self, vectors: NDArray[np.float32], k: int, share: float = 1.0, *, query_block: int = QUERY_BLOCK
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the k most similar vectors to each query, best first.

        Args:
            vectors: (n, dim) of unit length, or zero.
            k: 1 to 2048; if the index holds fewer vectors, all of them are returned.
            share: share of `nprobe` and `rerank_k` to use, above 0 to 1; applies to "ivf" on the CPU.
            query_block: queries searched at a time.

        Returns:
            similarity (n, k) float32 and ids (n, k) int64; -inf and -1 beyond the last vector.

        Raises:
            IndexMismatchError: the queries have another length than the vectors of the index.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise IndexMismatchError(
                f"queries have shape {vectors.shape}; the index holds vectors of {self.dim}"
            )
        take = min(k + TIES, max(k, GPU_K), len(self))
        similarity = np.full((len(vectors), max(k, take)), -np.inf, np.float32)
        ids = np.full(similarity.shape, -1, np.int64)
        if len(self):
            options = self._search_options(take, share)
            for start in range(0, len(vectors), query_block):
                block = np.ascontiguousarray(vectors[start : start + query_block], np.float32)
                with BLAS_THRESHOLD.lowered():
                    s, i = self._index.search(block, take, **options)
                similarity[start : start + len(block), : s.shape[1]] = np.where(i < 0, -np.inf, s)
                ids[start : start + len(block), : i.shape[1]] = self._to_ids(i)
            if self._refine is not None:
                self._answer_zero_queries(vectors, similarity, ids, take)
        return _break_ties(similarity, ids, k)

    def _to_ids(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the ids of what FAISS returned, -1 for nothing."""
        if self._row_ids is None:
            return rows
        return np.where(rows < 0, -1, self._row_ids[np.maximum(rows, 0)])

    def _answer_zero_queries(
        self,
        vectors: NDArray[np.float32],
        similarity: NDArray[np.float32],
        ids: NDArray[np.int64],
        take: int,
    ) -> None:
        """Give a zero query similarity 0 and the smallest ids, as exact search does; codes cannot."""
        zero = ~vectors.any(1)
        similarity[zero, :take], ids[zero, :take] = 0, self.ids(0, take)

    def _search_options(self, take: int, share: float) -> dict[str, Any]:
        """Return FAISS's search parameters: allowed ids, number of cells, number of re-ranked candidates."""
        if self._allowed is not None:
            return {"params": self._allowed}
        if self._refine is None or self.device == "gpu":
            return {}
        faiss, share = load_faiss(), share if self.kind == "ivf" else 1.0
        depth = min(rerank_depth(take, round(share * self.rerank_k)), len(self))
        cells = None
        if self.kind == "ivf":
            cells = faiss.SearchParametersPreTransform(
                index_params=faiss.SearchParametersIVF(nprobe=max(1, round(share * self.nprobe)))
            )
        # FAISS rounds k * k_factor down to a whole number: half a candidate more gives exactly `depth`.
        factor = max(1.0, (depth + 0.5) / take)
        return {"params": faiss.IndexRefineSearchParameters(k_factor=factor, base_index_params=cells)}

    def restricted(self, ids: NDArray[np.int64]) -> VectorIndex:
        """Return an index that finds only some of the vectors.

        Args:
            ids: (m,) ids that may be found; ids that are not in the index are ignored.

        Returns:
            An index on the CPU, because FAISS cannot restrict a search on a GPU. It is a view of this one
            where FAISS can restrict a search. It cannot with codes: then it is a copy, with the same codes,
            or exact if the vectors are few.
        """
        faiss = load_faiss()
        if self._refine is not None:
            return self._subset(np.flatnonzero(np.isin(self.ids(), ids)))
        view = copy(self)
        view._index, view.device = self._cpu, "cpu"
        selector = faiss.IDSelectorBatch(np.ascontiguousarray(ids, np.int64))
        if self.kind == "ivf":
            # The allowed vectors are spread over all cells: read more cells, to scan as many vectors.
            lists = faiss.extract_index_ivf(self._cpu)
            nprobe = int(np.ceil(lists.nprobe * len(self) / max(1, len(ids))))
            view._allowed = faiss.SearchParametersIVF(sel=selector, nprobe=min(nprobe, lists.nlist))
        else:
            view._allowed = faiss.SearchParameters(sel=selector)
        return view

    def _subset(self, rows: NDArray[np.intp]) -> VectorIndex:
        """Return an index of the vectors in some rows."""
        wanted = self.ids()[rows]

        def blocks() -> Iterator[Block]:
            for ids, vectors in self.blocks(READ_ROWS):
                mask = np.isin(ids, wanted, assume_unique=True)
                yield ids[mask], vectors[mask]

        config = IndexConfig(kind="exact", nprobe=self.nprobe, rerank_k=self.rerank_k)
        trained = None if len(rows) <= config.exact_below else self
        return VectorIndex.build(blocks, self.dim, config, count=len(rows), trained=trained)

    def save(self, path: Path) -> None:
        """Write one file that plain `faiss.read_index` opens; always the CPU form."""
        if self._row_ids is None:
            load_faiss().write_index(self._cpu, str(path))
        else:
            assert self._refine is not None
            write_refined(path, self._refine.base_index, self.blocks(READ_ROWS))

    @classmethod
    def open(
        cls,
        path: Path,
        kind: IndexKind,
        nprobe: int,
        device: str = "cpu",
        rerank_k: int = IndexConfig.rerank_k,
    ) -> VectorIndex:
        """Open a file written by `save`; ids and vectors stay in the file until they are read.

        Args:
            path: the file. It may be replaced by another file while it is open, but not changed.
            kind: the kind it was built with.
            nprobe: cells that a query reads, 0 for a quarter of them.
            device: "cpu" or "gpu".
            rerank_k: candidates that are re-ranked, at least.

        Raises:
            IndexFormatError: not a FAISS file, or not one of ours.
        """
        faiss = load_faiss()
        try:
            mapped = open_refined(path)
            index = mapped.index if mapped else faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except (RuntimeError, OSError) as e:
            raise IndexFormatError(
                f"{path}: FAISS cannot read it: {str(e).splitlines()[0]}; build the index again"
            ) from e
        if index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise IndexFormatError(f"{path}: its metric is {index.metric_type}; expected inner product")
        if mapped is None:
            return cls(index, kind, nprobe, device, rerank_k)
        return cls(index, kind, nprobe, device, rerank_k, mapped.ids, mapped.mapping)

    def ids(self, start: int = 0, stop: int | None = None) -> NDArray[np.int64]:
        """Return ids (m,), ascending.

        Args:
            start: position of the first id in that order.
            stop: position behind the last id; None for all.
        """
        if self._row_ids is not None:
            return np.array(self._row_ids[start:stop])
        exact: Any = self._cpu
        ids: NDArray[np.int64] = load_faiss().vector_to_array(exact.id_map)[start:stop]
        return ids

    def blocks(self, rows: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Yield all ids and vectors in the order of ids, block by block, from any kind of index.

        Args:
            rows: length of a block, at least 1; the last may be shorter.

        Yields:
            ids (m,) and vectors (m, dim) float32; rounded to half precision in all kinds but "exact".
        """
        if self._refine is not None or self.kind == "exact":
            for start in range(0, len(self), rows):
                yield self.vectors(start, start + rows)
            return
        faiss = load_faiss()
        cells = faiss.extract_index_ivf(self._cpu)  # an IVF of the first builds of 0.1.0
        ids = np.sort(_ids_in_cells(cells.invlists, cells.nlist))
        cells.set_direct_map_type(faiss.DirectMap.Hashtable)
        for start in range(0, len(ids), rows):
            part = slice(start, start + rows)
            yield ids[part], cells.reconstruct_batch(ids[part])

    def vectors(
        self, start: int = 0, stop: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return ids and vectors in the order of ids.

        Args:
            start: position of the first vector in that order.
            stop: position behind the last vector; None for all.

        Returns:
            ids (m,) and vectors (m, dim) float32; rounded to half precision in all kinds but "exact".

        Raises:
            ConfigError: an IVF of the first builds of 0.1.0, which cannot return vectors in this order.
        """
        exact: Any = self._cpu
        if self._refine is None and self.kind != "exact":
            raise ConfigError(
                f"the index: kind {self.kind!r} of the first builds of 0.1.0 does not return its "
                "vectors. Build it again from its images."
            )
        stored: FaissIndex = self._refine.refine_index if self._refine else exact.index
        ids = self.ids(start, stop)
        if not len(ids):
            return ids, np.zeros((0, self.dim), np.float32)
        return ids, stored.reconstruct_n(start, len(ids))


def train_codes(kind: IndexKind, sample: tuple[Blocks, int], dim: int, count: int) -> NDArray[np.uint8]:
    """Train codes, and cells of "ivf", and return them as bytes, which can be sent.

    Args:
        kind: "fast" or "ivf".
        sample: blocks to train with, and their number of vectors.
        dim: length of a vector.
        count: number of vectors of all indexes that share the codes.
    """
    codes: NDArray[np.uint8] = load_faiss().serialize_index(_trained_codes(kind, sample, dim, count, None))
    return codes


def rerank_depth(k: int, rerank_k: int) -> int:
    """Return how many candidates are re-ranked to find k neighbours: a quarter more than k, or `rerank_k`."""
    return max(rerank_k, k + k // 4)


def _as_refine_index(index: Any) -> RefineIndex | None:
    """Return the index itself if it re-ranks by half-precision vectors, or None."""
    return index if isinstance(index, load_faiss().IndexRefine) else None


def _exact(blocks: Iterator[Block], dim: int) -> Any:
    """Return a FAISS index of float32 vectors under their ids."""
    exact = load_faiss().IndexIDMap2(load_faiss().IndexFlatIP(dim))
    for ids, vectors in blocks:
        exact.add_with_ids(to_float32(vectors), ids)
    return exact


def _trained_codes(
    kind: IndexKind, sample: tuple[Blocks, int], dim: int, count: int, trained: VectorIndex | None
) -> Any:
    """Return trained codes without vectors: a copy of `trained`'s, or new ones."""
    if trained is not None:
        return trained_copy(trained._cpu)
    blocks, sample_count = sample
    return train_quantizer(kind, as_float16(blocks), sample_count, dim, count)


def _half_vectors(blocks: Iterator[Block], dim: int) -> tuple[Any, NDArray[np.int64]]:
    """Return a FAISS index of half-precision vectors, and the id of each row."""
    half, ids_of_blocks = half_precision(dim), [np.zeros(0, np.int64)]
    for ids, vectors in blocks:
        half.add(to_float32(vectors))
        ids_of_blocks.append(ids)
    return half, np.concatenate(ids_of_blocks)


def _break_ties(
    similarity: NDArray[np.float32], ids: NDArray[np.int64], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the best k of each row, ties by smaller id; FAISS has ordered everything but the ties."""
    s, i = (similarity[:, :-1], similarity[:, 1:]), (ids[:, :-1], ids[:, 1:])
    rows = np.flatnonzero(((s[0] < s[1]) | ((s[0] == s[1]) & (i[0] > i[1]))).any(1))
    order = np.lexsort((ids[rows], -similarity[rows]), axis=-1)
    for values in (similarity, ids):
        values[rows] = np.take_along_axis(values[rows], order, 1)
    return similarity[:, :k], ids[:, :k]


def _ids_in_cells(lists: Any, count: int) -> NDArray[np.int64]:
    """Return the ids in all cells of an IVF."""
    faiss = load_faiss()
    sizes = [lists.list_size(cell) for cell in range(count)]
    parts = [faiss.rev_swig_ptr(lists.get_ids(c), n).copy() for c, n in enumerate(sizes) if n]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)
