"""FAISS itself, the parts of it that the product uses, and the device on which it computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from retrieval.config import Device
from retrieval.errors import DependencyError

GPU_BLOCK = 1_000_000
"""Vectors copied to a GPU at a time."""
BLAS_FROM = 2048
"""Queries times dimensions from which FAISS multiplies matrices: 8 queries of 256. By default it waits for
500, and each of fewer costs seven times as much."""


class FaissIndex(Protocol):
    """The members that all FAISS indexes share and the product uses."""

    d: int
    """Length of a vector."""
    ntotal: int
    """Number of vectors."""
    metric_type: int
    """FAISS's number of the similarity."""

    def search(
        self, queries: NDArray[np.float32], k: int, **options: Any
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return similarities and ids (n, k); id -1 where there is no further vector."""
        ...

    def reconstruct_n(self, start: int, count: int) -> NDArray[np.float32]:
        """Return `count` stored vectors from row `start`."""
        ...

    def reset(self) -> None:
        """Remove all vectors and keep the trained parts."""
        ...


class RefineIndex(FaissIndex, Protocol):
    """An index that finds candidates by codes and re-ranks them by vectors of half precision."""

    base_index: Any
    """The codes."""
    refine_index: FaissIndex
    """The vectors of half precision."""


def load_faiss() -> Any:
    """Import FAISS and return the module.

    Raises:
        DependencyError: FAISS is not installed.
    """
    try:
        import faiss
    except ImportError as e:
        raise DependencyError(
            "FAISS is not installed: pip install 'patch-retrieval[cpu]', or [gpu] on a GPU node"
        ) from e
    return faiss


class BlasThreshold:
    """FAISS's threshold for matrix products, which all threads of a process share."""

    def __init__(self) -> None:
        """Start with FAISS's own value."""
        self._lock = Lock()
        self._searches = 0
        self._before = 0

    @contextmanager
    def lowered(self) -> Iterator[None]:
        """Let FAISS multiply matrices for few queries until the last search that runs ends.

        Training before and after keeps its bytes. A training in another thread at the same time does not.
        """
        variables = load_faiss().cvar
        with self._lock:
            if not self._searches:
                self._before = variables.distance_compute_blas_threshold
                # Earlier releases count queries alone, and 20 of them suffice.
                variables.distance_compute_blas_threshold = min(BLAS_FROM, self._before)
            self._searches += 1
        try:
            yield
        finally:
            with self._lock:
                self._searches -= 1
                if not self._searches:
                    variables.distance_compute_blas_threshold = self._before


BLAS_THRESHOLD = BlasThreshold()
"""The one of this process."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Run FAISS on one thread inside the block.

    Training makes a hundred tiny clusterings; each ends before a second thread wakes. On two busy cores two
    threads took 6 to 20 s, one thread 0.6 s.
    """
    faiss = load_faiss()
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def resolve_device(device: Device) -> str:
    """Return "gpu" or "cpu"; "auto" is "gpu" where FAISS has GPU code and sees a GPU.

    Raises:
        DependencyError: "gpu" was requested and is not available; the text names what is missing.
    """
    if device == "cpu":
        return "cpu"
    faiss = load_faiss()
    has_gpu_code = hasattr(faiss, "StandardGpuResources")
    if has_gpu_code and faiss.get_num_gpus():
        return "gpu"
    if device == "auto":
        return "cpu"
    missing = "no GPU is visible to FAISS" if has_gpu_code else "this FAISS has no GPU code"
    raise DependencyError(
        f"--device gpu: {missing}. Install 'patch-retrieval[gpu]' in a separate environment."
    )


def on_device(device: Device) -> AbstractContextManager[Any]:
    """Keep Keras on the CPU inside the block if `device` is "cpu"; else let the backend choose."""
    resolve_device(device)
    if device != "cpu":
        return nullcontext()
    import keras

    return keras.device("cpu:0")


def to_gpu(index: FaissIndex, half_vectors: FaissIndex | None = None) -> FaissIndex:
    """Copy an index to the first GPU, flat vectors in half precision.

    Args:
        index: any index that FAISS can copy, or one that re-ranks by `half_vectors`.
        half_vectors: vectors of an index whose codes exist for the CPU only. The GPU compares queries with
            all of them, which is exact and fast there; it returns rows instead of ids.
    """
    faiss = load_faiss()
    resources = faiss.StandardGpuResources()
    if half_vectors is None:
        options = faiss.GpuClonerOptions()
        options.useFloat16 = True
        copied: FaissIndex = faiss.index_cpu_to_gpu(resources, 0, index, options)
        return copied
    config = faiss.GpuIndexFlatConfig()
    config.useFloat16 = True
    flat = faiss.GpuIndexFlatIP(resources, index.d, config)
    for start in range(0, half_vectors.ntotal, GPU_BLOCK):
        flat.add(half_vectors.reconstruct_n(start, min(GPU_BLOCK, half_vectors.ntotal - start)))
    gpu: FaissIndex = flat
    return gpu
