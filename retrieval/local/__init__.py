"""Local descriptors, compared everywhere: the search for patches of which only a part is seen.

A vector of a whole window says nothing useful once half of the window is hidden. Descriptors of small
parts still do: a network gives one for every four pixels, of what lies within some 10 px of them, and none
where nothing is seen. A patch is then 12 x 12 descriptors, an image a field of them, and the sum of
products at every place, the patch's descriptors being the kernel of a convolution over the image's, finds
the places that agree in what is seen. This looks at every fourth pixel of every image, and at every second
one around the places that agree best: some milliseconds of two cores for a patch and a million pixels, a
thousand times the cost of an index, for the few patches that need it.

The network sees the structure tensor alone, as everything here does: any bands. It was trained on patches
under clouds (`retrieval.train.covered`).
"""

from retrieval.local.model import SEEN, STEP_PX, half_resolution, local_model
from retrieval.local.search import LocalSearch, shipped_local_search

__all__ = [
    "SEEN",
    "STEP_PX",
    "LocalSearch",
    "half_resolution",
    "local_model",
    "shipped_local_search",
]
