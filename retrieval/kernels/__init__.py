"""Compiled loops and parallel execution: Numba kernels, XLA compilation, executors."""
