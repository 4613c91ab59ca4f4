"""Loops over many small pieces, compiled to machine code by Numba: for a CPU, on any backend of Keras.

Correlating a template at 25 shifts is a microsecond's arithmetic. NumPy and the backends take several
times that to cut a region out, to copy it into a batch and to lay it out for a product of matrices. These
loops read the images' tensors where they lie, and let go of Python's lock, so that threads don't wait for
each other.

A sum is taken in the same order wherever its numbers lie: copies of one picture get the same numbers.
Compiled code is kept for the next process: in `patch-retrieval` in the user's cache folder (`XDG_CACHE_HOME`,
else `~/.cache`), or where `NUMBA_CACHE_DIR` says.
"""

from retrieval.loops.correlation import centred, ncc_around, spreads
from retrieval.loops.places import thinned
from retrieval.loops.tensors import coded, halved, tensors

__all__ = ["centred", "coded", "halved", "ncc_around", "spreads", "tensors", "thinned"]
