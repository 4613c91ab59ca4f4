"""FAISS behind one small class: unit vectors and their ids, nothing else.

Similarity is the inner product, which for unit vectors is the cosine: higher is better, in [-1, 1].
Ids are any int64 of 0 or more; the engine packs image and position into them
(`retrieval.types.pack_ids`). Every kind keeps its vectors in the order of their ids; with the exact kind
the order in which images came does not change an answer, and a tie goes to the smaller id.

`kinds` says what an index of each kind is made of and which one a number of windows gets, `vectors` is the
class, `adding` puts vectors into codes, `device` finds a GPU, `recall` measures a kind against exact search.
"""

from retrieval.index.device import on_device, resolve_device
from retrieval.index.files import halves
from retrieval.index.kinds import Blocks, choose_kind, ivf_cells, joined, most_exact
from retrieval.index.recall import DEEPEST, Recall, exact_search, measure_recall
from retrieval.index.vectors import VectorIndex

__all__ = [
    "DEEPEST",
    "Blocks",
    "Recall",
    "VectorIndex",
    "choose_kind",
    "exact_search",
    "halves",
    "ivf_cells",
    "joined",
    "measure_recall",
    "most_exact",
    "on_device",
    "resolve_device",
]
