"""FAISS behind one small class: unit vectors and their ids, nothing else.

Similarity is the inner product, which for unit vectors is the cosine: higher is better, in [-1, 1].
Ids are any int64 of 0 or more; the engine packs image and position into them
(`retrieval.types.pack_ids`). The exact kind keeps its vectors in the order of their ids, so that the
order in which images came does not change an answer, and a tie goes to the smaller id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import Device, IndexConfig, IndexKind
from retrieval.errors import ConfigError, DependencyError, IndexFormatError, IndexMismatchError
from tfrecords.errors import DuplicateIdError

Blocks = Callable[[], Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]]]
"""Gives blocks of (ids (m,), vectors (m, dim)) anew at each call: once to train, once to add."""

TRAINING_PER_CELL = 48
"""Vectors per cell that an IVF is trained on; FAISS asks for 39 at least."""
LEAST_PER_CELL = 39
"""Vectors per cell below which FAISS calls a clustering too fine."""
TIES = 16
"""Neighbours asked for beyond k: of those that tie with the k-th FAISS keeps any, we the smaller ids."""
GPU_K = 2048
"""Most neighbours that FAISS gives on a GPU."""
QUERY_BLOCK = 4096
"""Queries searched at a time: bounds the memory of results."""


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as e:
        raise DependencyError(
            "FAISS is not installed: pip install 'patch-retrieval[cpu]', or [gpu] on a GPU node"
        ) from e
    return faiss


def choose_kind(kind: IndexKind, count: int, config: IndexConfig) -> IndexKind:
    """What "auto" means for `count` vectors; any other kind is itself, but none is trained on nothing."""
    if not count:
        return "exact"
    if kind != "auto":
        return kind
    return "exact" if count <= config.exact_below else "ivf"


class VectorIndex:
    """Vectors and ids; see the module's text for similarity and ties."""

    def __init__(self, index: Any, kind: IndexKind, probes: int, device: str = "cpu") -> None:
        """Wrap a FAISS index; use `build` or `open`."""
        self._cpu, self.kind, self.device = index, kind, device
        self._set_probes(probes)
        self._index = _to_gpu(index) if device == "gpu" else index
        self._only: Any = None

    def _set_probes(self, probes: int) -> None:
        self.probes = probes
        if self.kind == "ivf":
            ivf = _faiss().extract_index_ivf(self._cpu)
            ivf.nprobe = min(probes, ivf.nlist)

    def __len__(self) -> int:
        return int(self._cpu.ntotal)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self._cpu.d)

    @classmethod
    def build(cls, blocks: Blocks, dim: int, config: IndexConfig, device: str = "cpu") -> VectorIndex:
        """Build an index.

        Args:
            blocks: gives the blocks, ids ascending over all of them; called once, or twice for IVF.
            dim: length of a vector.
            config: kind and its parameters.
            device: "cpu" or "gpu", as `resolve_device` gives it.

        Raises:
            DuplicateIdError: an id comes twice, or ids do not ascend.
        """
        count = sum(len(ids) for ids, _ in blocks())
        kind = choose_kind(config.kind, count, config)
        index = _new_exact(dim) if kind == "exact" else _new_ivf(blocks, dim, count)
        last = -1
        for ids, vectors in blocks():
            if len(ids) and (ids[0] <= last or (np.diff(ids) <= 0).any()):
                raise DuplicateIdError(
                    "window ids must ascend over all blocks; one is doubled or out of order"
                )
            last = int(ids[-1]) if len(ids) else last
            index.add_with_ids(np.ascontiguousarray(vectors, np.float32), np.ascontiguousarray(ids, np.int64))
        return cls(index, kind, config.ivf_probes, device)

    def search(self, vectors: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k most similar vectors to each query, best first.

        Args:
            vectors: (n, dim) of unit length, or zero.
            k: 1 to 2048; more than the index holds is answered with what there is.

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
                s, i = self._index.search(block, take, **({"params": self._only} if self._only else {}))
                similarity[start : start + len(block), : s.shape[1]] = np.where(i < 0, -np.inf, s)
                ids[start : start + len(block), : i.shape[1]] = i
        order = np.lexsort((ids, -similarity), axis=-1)[:, :k]
        return np.take_along_axis(similarity, order, 1), np.take_along_axis(ids, order, 1)

    def restricted(self, ids: NDArray[np.int64]) -> VectorIndex:
        """The same vectors, of which only some are ever found: FAISS passes over the others as it searches.

        Args:
            ids: (m,) those that may be found; others than the index's do no harm.

        Returns:
            A view on the CPU, for FAISS's search on a GPU cannot be restricted.
        """
        faiss, view = _faiss(), copy(self)
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

    def save(self, path: Path) -> None:
        """Write one file that plain `faiss.read_index` opens (always the CPU form)."""
        _faiss().write_index(self._cpu, str(path))

    @classmethod
    def open(cls, path: Path, kind: IndexKind, probes: int, device: str = "cpu") -> VectorIndex:
        """Open a file written by `save`.

        Raises:
            IndexFormatError: not a FAISS file, or not one of ours.
        """
        faiss = _faiss()
        try:
            index = faiss.read_index(str(path))
        except RuntimeError as e:
            raise IndexFormatError(
                f"{path}: FAISS cannot read it: {str(e).splitlines()[0]}; build the index again"
            ) from e
        if index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise IndexFormatError(f"{path}: its metric is {index.metric_type}; expected inner product")
        return cls(index, kind, probes, device)

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

    def vectors(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids (m,) and vectors (m, dim) of an exact index, in the order of their ids."""
        faiss = _faiss()
        ids = faiss.vector_to_array(self._cpu.id_map)
        return ids, self._cpu.index.reconstruct_n(0, len(self)) if len(self) else np.zeros(
            (0, self.dim), np.float32
        )


def _new_exact(dim: int) -> Any:
    faiss = _faiss()
    return faiss.IndexIDMap2(faiss.IndexFlatIP(dim))


def _new_ivf(blocks: Blocks, dim: int, count: int) -> Any:
    """An inverted file of half-precision vectors, trained on a seeded sample."""
    faiss = _faiss()
    cells = ivf_cells(count)
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(dim), dim, cells, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
    )
    index.cp.seed, index.cp.spherical, index.cp.niter, index.cp.min_points_per_centroid = 1234, True, 10, 1
    index.train(_sample(blocks, min(count, cells * TRAINING_PER_CELL), count))
    return index


def ivf_cells(count: int) -> int:
    """Cells of an IVF: a power of two near 3 sqrt(count), so that probing and scanning cost alike.

    Of few vectors fewer: as many as have `LEAST_PER_CELL` each.
    """
    wanted = np.round(np.log2(max(1.0, 3 * count**0.5)))
    most = np.floor(np.log2(max(1.0, count / LEAST_PER_CELL)))
    return int(2 ** np.clip(min(wanted, most), 0, 16))


def _sample(blocks: Blocks, wanted: int, count: int) -> NDArray[np.float32]:
    """About `wanted` of all `count` vectors, evenly drawn, seeded."""
    rng = np.random.default_rng(0)
    picked = np.sort(rng.choice(count, wanted, replace=False))
    parts, start = [], 0
    for ids, vectors in blocks():
        mine = picked[(picked >= start) & (picked < start + len(ids))] - start
        parts.append(vectors[mine])
        start += len(ids)
    return np.concatenate(parts).astype(np.float32)


def resolve_device(device: Device) -> str:
    """Turn "auto" into "gpu" where FAISS has GPU code and sees a GPU, else into "cpu".

    Raises:
        DependencyError: "gpu" was asked for and cannot be had; the text says what is missing.
    """
    if device == "cpu":
        return "cpu"
    faiss = _faiss()
    gpus = faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0
    if gpus:
        return "gpu"
    if device == "auto":
        return "cpu"
    missing = (
        "no GPU is visible to FAISS"
        if hasattr(faiss, "StandardGpuResources")
        else "this FAISS has no GPU code"
    )
    raise DependencyError(
        f"--device gpu: {missing}; install 'patch-retrieval[gpu]' in an environment of its own"
    )


def _to_gpu(index: Any) -> Any:
    """A copy on the first GPU, float16 where the kind is flat."""
    faiss = _faiss()
    options = faiss.GpuClonerOptions()
    options.useFloat16 = True
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index, options)
