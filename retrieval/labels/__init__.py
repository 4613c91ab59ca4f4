"""Vector labels and masks: from an area to tiles, from polygons to masks and back, and how good labels are.

`covers` lists the XYZ tiles of an area, `window_cover` windows of rasters, and `splits` divides both by
ground. `downloading` fetches tiles, `dataset` checks pairs of images and masks, `selection` copies chosen
tiles or cuts windows. `vectors` reads vector files in batches. `rasterizing` burns them
into masks on the pixels of `grids`, which its `canvas` holds; `recoding` turns masks of colours into such.
`vectorizing` turns class maps into polygons. `comparing` sets a map against labels, by the rules of
`agreement`. Its `label_features` wait on the disk as `stored_shapes`, and so do its `compared_rows`. The
`evidence` of probabilities supports features, `areas` collects what the labels lack, and `comparison_page`
fills its page. `metres` measures on the ground. `classes` names classes and
their colours, `masks` reads and writes class maps, and `files` pairs images, masks and predictions by name.

The room needs the extra `labels`. The commands of `retrieve labels` call the functions below.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrieval.labels.comparing import compare
    from retrieval.labels.covers import cover
    from retrieval.labels.dataset import check
    from retrieval.labels.downloading import download
    from retrieval.labels.rasterizing import rasterize
    from retrieval.labels.recoding import recode
    from retrieval.labels.selection import subset
    from retrieval.labels.vectorizing import vectorize

_HOME = {
    "check": "dataset",
    "compare": "comparing",
    "cover": "covers",
    "download": "downloading",
    "rasterize": "rasterizing",
    "recode": "recoding",
    "subset": "selection",
    "vectorize": "vectorizing",
}

__all__ = ["check", "compare", "cover", "download", "rasterize", "recode", "subset", "vectorize"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'retrieval.labels' has no attribute {name!r}")
    return getattr(import_module(f"retrieval.labels.{_HOME[name]}"), name)
