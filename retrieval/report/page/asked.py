"""What was asked, patch by patch: patches of one size and one set of bands, or chips of any."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX
from tfrecords.schema import Chips, Patches


@dataclass(frozen=True, eq=False)
class Asked:
    """Patches or chips, by row."""

    all: Patches | Chips
    """What `read_queries` gives."""

    def __len__(self) -> int:
        return len(self.all)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(n, 2) rows and columns of each."""
        if isinstance(self.all, Chips):
            return self.all.sizes
        return np.full((len(self.all), 2), PATCH_PX, np.int64)

    @property
    def paths(self) -> tuple[str, ...]:
        """File of each; empty where they are of one file."""
        return self.all.paths if len(self.all.paths) == len(self.all) else ()

    def bands(self, row: int) -> tuple[str, ...]:
        """Names of the bands of one."""
        return self.all.bands[row] if isinstance(self.all, Chips) else self.all.bands

    def pixels(self, row: int) -> NDArray[np.float32]:
        """(h, w, b) scaled pixels of one, NaN where nothing is known."""
        if isinstance(self.all, Chips):
            return self.all.read(row).scaled()
        return self.all.scaled(slice(row, row + 1))[0]
