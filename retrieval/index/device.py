"""Where FAISS computes: the library itself, and the first GPU where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from retrieval.config import Device
from retrieval.errors import DependencyError

GPU_BLOCK = 1_000_000
"""Vectors brought to a GPU at a time."""


def load_faiss() -> Any:
    """The FAISS module.

    Raises:
        DependencyError: it is not installed.
    """
    try:
        import faiss
    except ImportError as e:
        raise DependencyError(
            "FAISS is not installed: pip install 'patch-retrieval[cpu]', or [gpu] on a GPU node"
        ) from e
    return faiss


@contextmanager
def one_thread() -> Iterator[None]:
    """FAISS on one thread: of a hundred tiny clusterings each is over before a second thread has woken.

    On two cores that others use too, two threads took 6 to 20 s where one takes 0.6.
    """
    faiss = load_faiss()
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def resolve_device(device: Device) -> str:
    """Turn "auto" into "gpu" where FAISS has GPU code and sees a GPU, else into "cpu".

    Raises:
        DependencyError: "gpu" was asked for and cannot be had; the text says what is missing.
    """
    if device == "cpu":
        return "cpu"
    faiss = load_faiss()
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


def on_device(device: Device) -> AbstractContextManager[Any]:
    """Keras's arithmetic on the CPU where "cpu" is asked for; otherwise where the backend puts it."""
    resolve_device(device)
    if device != "cpu":
        return nullcontext()
    import keras

    return keras.device("cpu:0")  # type: ignore[no-any-return]


def to_gpu(index: Any, exact_of: Any = None) -> Any:
    """A copy on the first GPU, of half precision where it is flat.

    Args:
        index: any that FAISS can copy, or one around `exact_of`.
        exact_of: the half-precision vectors of a kind whose codes are for the CPU alone; on the GPU
            they are compared one by one, which is exact and quick there. It knows them by their rows.
    """
    faiss = load_faiss()
    resources = faiss.StandardGpuResources()
    if exact_of is None:
        options = faiss.GpuClonerOptions()
        options.useFloat16 = True
        return faiss.index_cpu_to_gpu(resources, 0, index, options)
    config = faiss.GpuIndexFlatConfig()
    config.useFloat16 = True
    flat = faiss.GpuIndexFlatIP(resources, index.d, config)
    for start in range(0, exact_of.ntotal, GPU_BLOCK):
        flat.add(exact_of.reconstruct_n(start, min(GPU_BLOCK, exact_of.ntotal - start)))
    return flat
