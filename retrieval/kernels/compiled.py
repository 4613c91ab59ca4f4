"""Functions of arrays, compiled where that pays: for shapes that come again and again.

Compiling takes a second, running what was compiled a fifth of the time of its steps one by one. So the
first calls with a shape run as they are, and a job of many batches is compiled by itself.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from threading import Lock
from typing import Any, TypeVar

import numpy as np

_In = TypeVar("_In")
_Out = TypeVar("_Out")

MOST_THREADS = 4
"""Threads that work side by side, at most: each holds a batch in memory."""
MOST_SHAPES = 12
"""Shapes that a function is compiled for, at most: compiled code stays in memory, some 5 MB each."""
AFTER = 3
"""Calls with the same shapes before a function is compiled for them, if nothing else is said."""


class Compiled:
    """A function of arrays; call it as the function itself."""

    def __init__(self, function: Callable[..., Any], *, fused: bool = True, after: int = AFTER) -> None:
        """Wrap a function.

        Args:
            function: written in `keras.ops`; arrays in, an array or a tuple of arrays out.
            fused: let TensorFlow fuse all steps into one (XLA): for chains of small steps. Without it
                its own kernels run one by one: for large convolutions.
            after: calls with the same shapes before it is compiled for them.
        """
        self._function, self._fused, self._after, self._at_once = function, fused, after, False
        self._seen: Counter[tuple] = Counter()
        self._fast: dict[tuple, Callable[..., Any]] = {}
        self._lock = Lock()

    def warm_up(self, calls: int) -> None:
        """Hear how many calls are to come: if compiling is sure to pay, the first shapes don't wait."""
        self._at_once = calls >= 2 * self._after

    def __call__(self, *arrays: np.ndarray) -> Any:
        """Run it.

        Returns:
            NumPy arrays, as many as the function gives.
        """
        shapes = tuple((a.shape, str(a.dtype)) for a in arrays)
        self._seen[shapes] += 1
        full = len(self._fast) >= MOST_SHAPES and shapes not in self._fast
        at_once = self._at_once and (not self._fast or shapes in self._fast)
        if full or (self._seen[shapes] <= self._after and not at_once):
            return _numpy(self._function(*arrays))
        with self._lock:
            if shapes not in self._fast:
                self._fast[shapes] = _compiled(self._function, self._fused, arrays)
        return _numpy(self._fast[shapes](*arrays))


def _numpy(result: Any) -> Any:
    from keras import ops

    if isinstance(result, (tuple, list)):
        return tuple(np.asarray(ops.convert_to_numpy(r)) for r in result)
    return np.asarray(ops.convert_to_numpy(result))


def _compiled(
    function: Callable[..., Any], fused: bool, arrays: tuple[np.ndarray, ...]
) -> Callable[..., Any]:
    """Compiled by the backend for such arrays; PyTorch runs it as it is, without gradients."""
    import keras

    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        # Traced for these shapes and no others: TensorFlow warns of a function that meets many. And for these
        # arguments: were defaults left out, every call would first fail, with all arrays in its message.
        specs = [tf.TensorSpec(a.shape, a.dtype) for a in arrays]
        whole = tf.function(lambda *given: function(*given), jit_compile=fused or None, autograph=False)
        concrete = whole.get_concrete_function(*specs)
        return lambda *given: concrete(*map(tf.convert_to_tensor, given))
    if backend == "jax":
        import jax

        return jax.jit(function)  # type: ignore[no-any-return]
    import torch

    return torch.no_grad()(function)  # type: ignore[no-any-return]


@cache
def accelerated() -> bool:
    """Whether the backend computes on an accelerator."""
    import keras

    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return bool(tf.config.list_logical_devices("GPU"))
    if backend == "jax":
        import jax

        return jax.default_backend() != "cpu"  # type: ignore[no-any-return]
    import torch

    return torch.cuda.is_available()  # type: ignore[no-any-return]


@cache
def threads() -> int:
    """Threads that pay: one for a core, and one alone where an accelerator does the arithmetic."""
    return 1 if accelerated() else min(MOST_THREADS, cores())


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit_tf_threads() -> None:
    """Let TensorFlow leave the cores to batches that are worked on side by side.

    Else it splits every step of every batch among all cores as well, and its threads and ours wait for each
    other: on two cores a query takes a third longer. To be called before TensorFlow starts, in a process that
    indexes and queries; training, one batch at a time, is better off without. `TF_NUM_INTRAOP_THREADS` is
    left alone where it is set.
    """
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(max(1, cores() // MOST_THREADS)))


def parallel_map(work: Callable[[_In], _Out], items: Iterable[_In]) -> Iterator[_Out]:
    """Do a piece of work for each item, several at a time; results in the items' order.

    Args:
        work: what it writes is its own.
        items: all of them are taken at once; a single one is worked on by the caller's own thread.
    """
    count, every = threads(), list(items)
    if count == 1 or len(every) == 1:
        yield from map(work, every)
        return
    with ThreadPoolExecutor(count) as pool:
        yield from pool.map(work, every)


def ahead(
    work: Callable[[_In], _Out],
    items: Iterable[_In],
    size: Callable[[_In], int] = lambda _: 0,
    room: int = 1,
) -> Iterator[_Out]:
    """Do a piece of work for each item while the caller takes what was made of those before.

    Items are drawn by the caller's own thread, a few at a time. If drawing one fails, what was made of those
    before it still comes; if a piece of work does, what was made before it.

    Args:
        work: what it writes is its own.
        items: at most one more than there are threads is under way.
        size: of an item.
        room: no further item is drawn while those under way have this size together: so a large one is alone.

    Yields:
        The results, in the items' order.
    """
    count = threads()
    if count == 1:
        yield from map(work, items)
        return
    waiting: deque[tuple[Future[_Out], int]] = deque()
    drawn = iter(items)
    with ThreadPoolExecutor(count) as pool:
        try:
            while True:
                while len(waiting) > count or (waiting and sum(s for _, s in waiting) >= room):
                    yield waiting.popleft()[0].result()
                try:
                    item = next(drawn)
                except StopIteration:
                    break
                except BaseException as e:  # comes in its turn
                    failed: Future[_Out] = Future()
                    failed.set_exception(e)
                    waiting.append((failed, 0))
                    break
                waiting.append((pool.submit(work, item), size(item)))
            while waiting:
                yield waiting.popleft()[0].result()
        finally:
            for future, _ in waiting:
                future.cancel()
