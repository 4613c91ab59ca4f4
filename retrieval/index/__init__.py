"""FAISS behind one small class: unit vectors and their ids, nothing else.

Similarity is the inner product, which for unit vectors is the cosine: higher is better, in [-1, 1].
Ids are any int64 of 0 or more; the engine packs image and position into them
(`retrieval.types.pack_ids`). Every kind keeps its vectors in the order of their ids; with the exact kind
the order in which images came does not change an answer, and a tie goes to the smaller id.

`kinds` says what an index of each kind is made of and which one a number of windows gets, `vectors` is the
class, `device` finds a GPU, `recall` measures a kind against exact search.
"""

from retrieval.index.device import on_device, resolve_device
from retrieval.index.kinds import Blocks, choose_kind, ivf_cells
from retrieval.index.recall import Recall, exact_search, measure_recall
from retrieval.index.vectors import VectorIndex

__all__ = [
    "Blocks",
    "Recall",
    "VectorIndex",
    "choose_kind",
    "exact_search",
    "ivf_cells",
    "measure_recall",
    "on_device",
    "resolve_device",
]
