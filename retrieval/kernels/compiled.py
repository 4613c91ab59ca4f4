"""Functions of arrays, compiled for shapes that recur.

Compilation takes a second; compiled code takes a fifth of the time of separate steps. So the first calls with
a shape run uncompiled, and a job of many batches gets compiled code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from threading import Lock
from typing import Any

import numpy as np

MAX_SHAPES = 12
"""Most shapes that a function is compiled for: compiled code stays in memory, about 5 MB each."""
AFTER = 3
"""Calls with the same shapes before a function is compiled for them, by default."""


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
        self._seen: Counter[tuple[Any, ...]] = Counter()
        self._fast: dict[tuple[Any, ...], Callable[..., Any]] = {}
        self._lock = Lock()

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the first argument for which compiled code exists, oldest first."""
        return [arguments[0][0] for arguments in self._fast]

    def warm_up(self, calls: int) -> None:
        """Announce the number of calls: with many, the first shapes are compiled at once."""
        self._at_once = calls >= 2 * self._after

    def __call__(self, *arrays: np.ndarray) -> Any:
        """Run it.

        Returns:
            NumPy arrays, as many as the function gives.
        """
        shapes = tuple((a.shape, str(a.dtype)) for a in arrays)
        self._seen[shapes] += 1
        full = len(self._fast) >= MAX_SHAPES and shapes not in self._fast
        at_once = self._at_once and (not self._fast or shapes in self._fast)
        if full or (self._seen[shapes] <= self._after and not at_once):
            return _numpy(self._function(*arrays))
        with self._lock:
            if shapes not in self._fast:
                self._fast[shapes] = _compiled(self._function, self._fused, arrays)
        return _numpy(self._fast[shapes](*arrays))


def tile(pictures: np.ndarray, y: int, x: int, size: int, beyond: float) -> np.ndarray:
    """Crop a square of pictures (n, h, w, c), padded with `beyond` outside of them."""
    part = pictures[:, y : y + size, x : x + size]
    rest = [(0, size - length) for length in part.shape[1:3]]
    return np.pad(part, ((0, 0), *rest, (0, 0)), constant_values=beyond)


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

        return jax.jit(function)
    import torch

    return torch.no_grad()(function)


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

        return jax.default_backend() != "cpu"
    import torch

    return torch.cuda.is_available()
