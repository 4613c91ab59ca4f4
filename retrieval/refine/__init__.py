"""Normalized cross-correlation around a candidate: the pixel, the offset below it, and a new ranking.

NCC runs on the structure tensor (`retrieval.features`), not on bands: seasons turn brightness over
and leave edges. All candidates of a patch are compared at half resolution within `radius_px`; the
best few again at full resolution within three pixels of the peak, where a parabola through its
neighbours gives the offset below the pixel.

The work goes image by image: an image's tensor is computed once for all the patches that have a
candidate in it.

`correlation` is the NCC itself, `peaks` one image against its candidates, `candidates` all of them.

Sources: J. P. Lewis, Fast normalized cross-correlation (1995); D. Padfield, Masked object
registration in the Fourier domain, IEEE TIP 21 (2012), for hidden pixels.
"""

from retrieval.refine.candidates import refine
from retrieval.refine.correlation import ncc
from retrieval.refine.peaks import PatchPixels, Pixels

__all__ = ["PatchPixels", "Pixels", "ncc", "refine"]
