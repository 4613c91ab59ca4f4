"""Functions of arrays, compiled where that pays: for shapes that come again and again.

Compiling takes a second, running what was compiled a fifth of the time of its steps one by one. So the
first calls with a shape run as they are, and a job of many batches is compiled by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

AFTER = 3
"""Calls with the same shapes before a function is compiled for them."""


class Compiled:
    """A function of arrays; call it as the function itself."""

    def __init__(self, function: Callable[..., Any], *, fused: bool = True) -> None:
        """Wrap a function.

        Args:
            function: written in `keras.ops`; arrays in, an array or a tuple of arrays out.
            fused: let TensorFlow fuse all steps into one (XLA): for chains of small steps. Without it
                its own kernels run one by one: for large convolutions.
        """
        self._function, self._fused = function, fused
        self._seen: Counter[tuple] = Counter()
        # One for each shape: TensorFlow counts shapes of one function, and warns of many.
        self._fast: dict[tuple, Callable[..., Any]] = {}

    def __call__(self, *arrays: np.ndarray) -> Any:
        """Run it.

        Returns:
            NumPy arrays, as many as the function gives.
        """
        shapes = tuple((a.shape, str(a.dtype)) for a in arrays)
        self._seen[shapes] += 1
        if self._seen[shapes] <= AFTER:
            return _numpy(self._function(*arrays))
        if shapes not in self._fast:
            self._fast[shapes] = _compiled(self._function, self._fused)
        return _numpy(self._fast[shapes](*arrays))


def _numpy(result: Any) -> Any:
    from keras import ops

    if isinstance(result, (tuple, list)):
        return tuple(np.asarray(ops.convert_to_numpy(r)) for r in result)
    return np.asarray(ops.convert_to_numpy(result))


def _compiled(function: Callable[..., Any], fused: bool) -> Callable[..., Any]:
    """Compiled by the backend, once for each shape; PyTorch runs it as it is, without gradients."""
    import keras

    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=fused or None, autograph=False)  # type: ignore[no-any-return]
    if backend == "jax":
        import jax

        return jax.jit(function)  # type: ignore[no-any-return]
    import torch

    return torch.no_grad()(function)  # type: ignore[no-any-return]
