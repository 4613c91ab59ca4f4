"""The vectors of all windows and their ids: build, add, save, open, merge, search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import IndexConfig, IndexKind
from retrieval.errors import ConfigError, IndexFormatError, IndexMismatchError
from retrieval.index.codes import add_codes
from retrieval.index.device import load_faiss, to_gpu
from retrieval.index.kinds import (
    Blocks,
    as_float16,
    choose_kind,
    joined,
    refined,
    set_probes,
    train_quantizer,
    trained_copy,
)
from retrieval.index.spool import filled
from retrieval.index.vector_file import half_precision, open_refined, to_float32, write_refined

TIES = 16
"""Neighbours asked for beyond k: of those that tie with the k-th FAISS keeps any, we the smaller ids."""
GPU_K = 2048
"""Most neighbours that FAISS gives on a GPU."""
ROWS = 100_000
"""Vectors in memory at a time where an index is gone through."""
QUERY_BLOCK = 4096
"""Queries searched at a time: bounds the memory of results."""


class VectorIndex:
    """Vectors and ids; see the package's text for similarity and ties."""

    def __init__(
        self,
        index: Any,
        kind: IndexKind,
        probes: int,
        device: str = "cpu",
        again: int = IndexConfig.rerank_k,
        named: tuple[NDArray[np.int64], Any] | None = None,
    ) -> None:
        """Wrap a FAISS index; use `build` or `open`.

        Args:
            index: FAISS's.
            kind: which it is.
            probes: see `open`.
            device: see `open`.
            again: see `open`.
            named: where the index knows vectors by their rows, the ids of these, ascending, and what must
                live as long as the index.
        """
        self._cpu, self.kind, self.device, self.again = index, kind, device, again
        self._refined, self._named = refined(index), named
        # `extract_index_ivf` does not look behind a refinement.
        self.probes = (
            set_probes(self._refined.base_index if self._refined else index, probes) if kind == "ivf" else 0
        )
        self._index, self._only = index, None
        if device == "gpu":
            self._index = to_gpu(index, self._refined.refine_index if self._refined else None)

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
        learned: VectorIndex | None = None,
        added: Callable[[], object] | None = None,
    ) -> VectorIndex:
        """Build an index.

        Args:
            blocks: gives the blocks, ids ascending over all of them; called anew for each pass.
            dim: length of a vector.
            config: kind and its parameters.
            device: "cpu" or "gpu", as `resolve_device` gives it.
            path: file to write the index to. Half-precision vectors go there a block at a time and are never
                in memory together. None builds in memory.
            count: how many vectors they are, where that is known: the blocks are then not counted.
            sample: some of the blocks, to learn codes and cells from, and how many vectors these are; None
                learns from all.
            learned: an index whose kind, codes and cells are taken over; nothing is learned then.
            added: called when all vectors are in codes, before they are sorted and written: from then on the
                disk has more to do than the processor. Not with the exact kind.

        Raises:
            DuplicateIdError: an id comes twice, or ids do not ascend.
        """
        count = sum(len(ids) for ids, _ in blocks()) if count is None else count
        kind = learned.kind if learned else choose_kind(config.kind, count, config, device)
        if kind == "exact":
            exact = load_faiss().IndexIDMap2(load_faiss().IndexFlatIP(dim))
            for ids, vectors in joined(blocks()):
                exact.add_with_ids(to_float32(vectors), ids)
            index = cls(exact, kind, config.nprobe, device, config.rerank_k)
            if path:
                index.save(path)
            return index
        few, known = sample or (blocks, count)
        blocks = as_float16(blocks)  # codes are those of the vectors that are kept
        codes = (
            trained_copy(learned._cpu)
            if learned
            else train_quantizer(kind, as_float16(few), known, dim, count)
        )
        if kind == "ivf":
            set_probes(codes, config.nprobe)
        if path:
            with filled(codes, joined(blocks()), count, path.parent) as write:
                if added:
                    added()
                write_refined(path, codes, joined(blocks()), write)
            del codes, write
            return cls.open(path, kind, config.nprobe, device, config.rerank_k)
        add_codes(codes, joined(blocks()), count)
        if added:
            added()
        half, parts = half_precision(dim), [np.zeros(0, np.int64)]
        for ids, vectors in joined(blocks()):
            half.add(to_float32(vectors))
            parts.append(ids)
        both = load_faiss().IndexRefine(codes, half)
        return cls(both, kind, config.nprobe, device, config.rerank_k, (np.concatenate(parts), None))

    def search(
        self, vectors: NDArray[np.float32], k: int, share: float = 1.0
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k most similar vectors to each query, best first.

        Args:
            vectors: (n, dim) of unit length, or zero.
            k: 1 to 2048; more than the index holds is answered with what there is.
            share: of the cells that a query looks into otherwise, and of the candidates that are ranked anew,
                above 0 to 1; counts with "ivf" on the CPU.

        Returns:
            similarity (n, k) float32 and ids (n, k) int64; -inf and -1 where there is nothing more.

        Raises:
            IndexMismatchError: the vectors have another length than the index's.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise IndexMismatchError(
                f"queries have shape {vectors.shape}; the index holds vectors of {self.dim}"
            )
        take = min(k + TIES, max(k, GPU_K), len(self))
        similarity = np.full((len(vectors), max(k, take)), -np.inf, np.float32)
        ids = np.full(similarity.shape, -1, np.int64)
        if len(self):
            for start in range(0, len(vectors), QUERY_BLOCK):
                block = np.ascontiguousarray(vectors[start : start + QUERY_BLOCK], np.float32)
                s, i = self._index.search(block, take, **self._params(take, share))
                similarity[start : start + len(block), : s.shape[1]] = np.where(i < 0, -np.inf, s)
                ids[start : start + len(block), : i.shape[1]] = self._ids_at(i)
            if self._refined is not None:
                self._answer_nothing(vectors, similarity, ids, take)
        return _ordered(similarity, ids, k)

    def _ids_at(self, found: NDArray[np.int64]) -> NDArray[np.int64]:
        """The ids of what FAISS found, -1 for nothing."""
        if self._named is None:
            return found
        return np.where(found < 0, -1, self._named[0][np.maximum(found, 0)])

    def _answer_nothing(
        self,
        vectors: NDArray[np.float32],
        similarity: NDArray[np.float32],
        ids: NDArray[np.int64],
        take: int,
    ) -> None:
        """The zero vector is as like one window as another; codes make no number of it, exact search 0."""
        nothing = ~vectors.any(1)
        similarity[nothing, :take], ids[nothing, :take] = 0, self.ids(0, take)

    def _params(self, take: int, share: float) -> dict[str, Any]:
        """What FAISS is told beside the queries: which windows may be found, how many are ranked anew."""
        if self._only is not None:
            return {"params": self._only}
        if self._refined is None or self.device == "gpu":
            return {}
        faiss, share = load_faiss(), share if self.kind == "ivf" else 1.0
        depth = min(rerank(take, round(share * self.again)), len(self))
        cells = None
        if self.kind == "ivf":
            cells = faiss.SearchParametersPreTransform(
                index_params=faiss.SearchParametersIVF(nprobe=max(1, round(share * self.probes)))
            )
        # FAISS cuts k * k_factor to a whole number: half a candidate more makes it ours.
        factor = max(1.0, (depth + 0.5) / take)
        return {"params": faiss.IndexRefineSearchParameters(k_factor=factor, base_index_params=cells)}

    def restricted(self, ids: NDArray[np.int64]) -> VectorIndex:
        """The same vectors, of which only some are ever found.

        Args:
            ids: (m,) those that may be found; others than the index's do no harm.

        Returns:
            A view on the CPU, for FAISS's search on a GPU cannot be restricted. Neither can that of
            codes: there it is an index of its own, of the same codes, or exact where the windows are few.
        """
        faiss = load_faiss()
        if self._refined is not None:
            return self._part(np.flatnonzero(np.isin(self.ids(), ids)))
        view = copy(self)
        view._index, view.device = self._cpu, "cpu"
        selector = faiss.IDSelectorBatch(np.ascontiguousarray(ids, np.int64))
        if self.kind == "ivf":
            # The few that are left are spread over all cells: look into more, and scan as many vectors.
            lists = faiss.extract_index_ivf(self._cpu)
            probes = int(np.ceil(lists.nprobe * len(self) / max(1, len(ids))))
            view._only = faiss.SearchParametersIVF(sel=selector, nprobe=min(probes, lists.nlist))
        else:
            view._only = faiss.SearchParameters(sel=selector)
        return view

    def _part(self, rows: NDArray[np.intp]) -> VectorIndex:
        """An index of some of the vectors."""

        def blocks() -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
            for ids, vectors in self.blocks(ROWS):
                mine = np.isin(ids, wanted, assume_unique=True)
                yield ids[mine], vectors[mine]

        wanted = self.ids()[rows]
        config = IndexConfig(kind="exact", nprobe=self.probes, rerank_k=self.again)
        few = len(rows) <= config.exact_below
        return VectorIndex.build(blocks, self.dim, config, count=len(rows), learned=None if few else self)

    def save(self, path: Path) -> None:
        """Write one file that plain `faiss.read_index` opens (always the CPU form)."""
        if self._named is None:
            load_faiss().write_index(self._cpu, str(path))
        else:
            write_refined(path, self._refined.base_index, self.blocks(ROWS))

    @classmethod
    def open(
        cls,
        path: Path,
        kind: IndexKind,
        probes: int,
        device: str = "cpu",
        again: int = IndexConfig.rerank_k,
    ) -> VectorIndex:
        """Open a file written by `save`; ids and what is compared in full stay in it until they are needed.

        Args:
            path: the file; it may be replaced by another meanwhile, but not changed.
            kind: as it was built.
            probes: cells that a query looks into, 0 for a quarter of them.
            device: "cpu" or "gpu".
            again: candidates ranked anew, at least.

        Raises:
            IndexFormatError: not a FAISS file, or not one of ours.
        """
        faiss = load_faiss()
        try:
            known = open_refined(path)
            index = known[0] if known else faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except (RuntimeError, OSError) as e:
            raise IndexFormatError(
                f"{path}: FAISS cannot read it: {str(e).splitlines()[0]}; build the index again"
            ) from e
        if index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise IndexFormatError(f"{path}: its metric is {index.metric_type}; expected inner product")
        return cls(index, kind, probes, device, again, known[1:] if known else None)

    @classmethod
    def merge(cls, indexes: Sequence[VectorIndex], config: IndexConfig) -> VectorIndex:
        """One index that answers as if it had been built from all vectors at once (exact kind).

        Raises:
            ConfigError: nothing to merge, or a kind that does not keep its vectors exactly.
            IndexMismatchError: lengths of vectors differ.
            DuplicateIdError: an id is in two of them.
        """
        if not indexes or any(i.kind != "exact" for i in indexes):
            raise ConfigError(
                "merge takes one or more exact indexes; build other kinds again from their images"
            )
        if len({i.dim for i in indexes}) > 1:
            raise IndexMismatchError(
                f"vectors of {sorted({i.dim for i in indexes})} cannot be merged: use one encoder"
            )
        parts = [i.vectors() for i in indexes]
        ids = np.concatenate([p[0] for p in parts])
        vectors = np.concatenate([p[1] for p in parts])
        order = np.argsort(ids, kind="stable")
        return cls.build(lambda: [(ids[order], vectors[order])], indexes[0].dim, config)

    def ids(self, start: int = 0, stop: int | None = None) -> NDArray[np.int64]:
        """Ids (m,), ascending; of all kinds that this release builds.

        Args:
            start: the first, in that order.
            stop: the one behind the last; None for all.
        """
        if self._named:
            return np.array(self._named[0][start:stop])
        ids: NDArray[np.int64] = load_faiss().vector_to_array(self._cpu.id_map)[start:stop]
        return ids

    def blocks(self, rows: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """All ids and vectors in the order of their ids, a block at a time, of any kind of index.

        Args:
            rows: length of a block, at least 1; the last may be shorter.

        Yields:
            ids (m,) and vectors (m, dim) float32; of all kinds but "exact" what half precision kept.
        """
        if self._refined is not None or self.kind == "exact":
            for start in range(0, len(self), rows):
                yield self.vectors(start, start + rows)
            return
        faiss = load_faiss()
        kept = faiss.extract_index_ivf(self._cpu)  # an IVF of release 0.1
        ids = np.sort(_ids_of(kept.invlists, kept.nlist))
        kept.set_direct_map_type(faiss.DirectMap.Hashtable)
        for start in range(0, len(ids), rows):
            part = slice(start, start + rows)
            yield ids[part], kept.reconstruct_batch(ids[part])

    def vectors(
        self, start: int = 0, stop: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids and vectors, in the order of their ids.

        Args:
            start: the first, in that order.
            stop: the one behind the last; None for all.

        Returns:
            ids (m,) and vectors (m, dim) float32: as they were put in with the exact kind, in half
            precision with the others.

        Raises:
            ConfigError: an IVF of release 0.1, which can't give them back.
        """
        if self._refined is None and self.kind != "exact":
            raise ConfigError(
                f"the index is of kind {self.kind!r} as release 0.1 made it, which does not give its vectors "
                "back: build it again from its images"
            )
        held = self._refined.refine_index if self._refined else self._cpu.index
        ids = self.ids(start, stop)
        if not len(ids):
            return ids, np.zeros((0, self.dim), np.float32)
        return ids, held.reconstruct_n(start, len(ids))


def rerank(take: int, again: int) -> int:
    """Candidates that are compared in full where so many neighbours are wanted, `again` of them at least."""
    return max(again, take + take // 4)


def _ordered(
    similarity: NDArray[np.float32], ids: NDArray[np.int64], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The best k of each row, of those that tie the smaller ids first; FAISS has ordered all but the ties."""
    s, i = (similarity[:, :-1], similarity[:, 1:]), (ids[:, :-1], ids[:, 1:])
    rows = np.flatnonzero(((s[0] < s[1]) | ((s[0] == s[1]) & (i[0] > i[1]))).any(1))
    order = np.lexsort((ids[rows], -similarity[rows]), axis=-1)
    for values in (similarity, ids):
        values[rows] = np.take_along_axis(values[rows], order, 1)
    return similarity[:, :k], ids[:, :k]


def _ids_of(lists: Any, count: int) -> NDArray[np.int64]:
    """The ids in all cells of an IVF."""
    faiss = load_faiss()
    sizes = [lists.list_size(cell) for cell in range(count)]
    parts = [faiss.rev_swig_ptr(lists.get_ids(c), n).copy() for c, n in enumerate(sizes) if n]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)
