"""What refinement has to know of the images that candidates lie in, looked up once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX
from retrieval.refine.ground import Ground
from retrieval.refine.tensors import Pixels, shared_columns


@dataclass(frozen=True)
class ImageTable:
    """A row for each image, in the order of their ids."""

    limit: NDArray[np.int64]
    """(images, 2) largest x and y that a patch may have."""
    kind: NDArray[np.int64]
    """(images,) which of `kinds` an image is."""
    kinds: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    """Columns of the bands that are compared, of the patches and of the images."""
    group: NDArray[np.int64]
    """(images,) equal for images whose tensors can be kept at the same time."""

    @classmethod
    def of(cls, ids: NDArray[np.int64], bands: Sequence[str], images: Pixels, ground: Ground) -> ImageTable:
        """Describe images; -1, which stands for none, gets a row that nobody looks at."""
        real = [int(i) for i in ids if i >= 0]
        none = len(ids) - len(real)  # in front, since ids are sorted
        limit = np.array([images.size(i)[::-1] for i in real], np.int64).reshape(-1, 2) - PATCH_PX
        columns = [shared_columns(bands, images.bands(i)) for i in real]
        kinds = tuple(sorted(set(columns)))
        kind = np.array([kinds.index(c) for c in columns], np.int64)
        group = ground.group(np.array(real, np.int64))
        pad = [np.pad(v, ((none, 0), *[(0, 0)] * (v.ndim - 1))) for v in (limit, kind, group)]
        return cls(pad[0], pad[1], kinds, pad[2])
