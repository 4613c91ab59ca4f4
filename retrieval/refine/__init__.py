"""Normalized cross-correlation around a candidate: the pixel, the offset below it, and a new ranking.

NCC runs on the structure tensor (`retrieval.features`), not on bands: seasons turn brightness over
and leave edges. All candidates of a patch are compared at quarter resolution within `radius_px` and at
half resolution around the peak found there; the best few again at full resolution, where a parabola
through the peak's neighbours gives the offset below the pixel.

`correlation` is the NCC itself, `surfaces` runs it over many pairs, `tensors` and `ground` are what is
correlated, of patches and of images, `table` what is known of the images, `peaks` where a correlation
peaks, `job` all candidates on their way through the resolutions, `candidates` the ways that are taken,
`arrays` images that are in memory.

Sources: J. P. Lewis, Fast normalized cross-correlation (1995); D. Padfield, Masked object
registration in the Fourier domain, IEEE TIP 21 (2012), for hidden pixels.
"""

from retrieval.refine.arrays import Arrays
from retrieval.refine.candidates import align, finish, measure, rank, refine
from retrieval.refine.correlation import ncc
from retrieval.refine.ground import Ground, Sites
from retrieval.refine.tensors import PatchPixels, Pixels, Templates

__all__ = [
    "Arrays",
    "Ground",
    "PatchPixels",
    "Pixels",
    "Sites",
    "Templates",
    "align",
    "finish",
    "measure",
    "ncc",
    "rank",
    "refine",
]
