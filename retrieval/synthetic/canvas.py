"""The map and the table that a place is painted on: later layers cover earlier ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.synthetic.noise import Field
from retrieval.synthetic.units import LONG_AGO, Kind, Units

Mask = NDArray[np.bool_]


class Canvas:
    """A map of units under construction."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, int]) -> None:
        self.rng = rng
        self.shape = shape
        self.unit: NDArray[np.int32] = np.zeros(shape, np.int32)
        self._kinds: list[NDArray[np.uint8]] = []
        self._traits: list[Field] = []
        self._since: list[NDArray[np.int16]] = []
        self._partner: list[NDArray[np.int32]] = []
        self._count = 0

    def add(
        self,
        kind: Kind | NDArray[np.uint8],
        traits: Field | int,
        since: NDArray[np.int16] | int = LONG_AGO,
        partner: NDArray[np.int32] | None = None,
    ) -> int:
        """Add rows to the table.

        Args:
            kind: Kind of all of them, or one a row.
            traits: Float32 (n, 4) from 0 to 1, or n: then they are drawn.
            since: Year of all of them, or one a row.
            partner: Row among these, from 0, whose crop a row shares in some years; itself if not given.

        Returns:
            Unit number of the first of them.
        """
        if isinstance(traits, int):
            traits = self.rng.random((traits, 4), dtype=np.float32)
        count = len(traits)
        first = self._count
        self._kinds.append(np.broadcast_to(np.asarray(kind, np.uint8), (count,)))
        self._traits.append(traits)
        self._since.append(np.broadcast_to(np.asarray(since, np.int16), (count,)))
        own = np.arange(count, dtype=np.int32) if partner is None else partner
        self._partner.append(own + np.int32(first))
        self._count += count
        return first

    def paint(self, mask: Mask, unit: NDArray[np.integer] | int) -> None:
        """Set the unit of the masked pixels: one for all, or one each in row-major order."""
        self.unit[mask] = unit

    def shades(self, kind: Kind, mask: Mask, field: Field, levels: int = 24) -> None:
        """Paint a mask with one kind whose first trait follows a smooth field in small steps."""
        traits = self.rng.random((levels, 4), dtype=np.float32)
        traits[:, 0] = (np.arange(levels, dtype=np.float32) + 0.5) / levels
        traits[:, 1] = traits[::-1, 0]
        first = self.add(kind, traits)
        step = np.clip((field[mask] + 2) * (levels / 4), 0, levels - 1)
        self.paint(mask, first + step.astype(np.int32))

    def finished(self) -> tuple[NDArray[np.int32], Units]:
        """The map, renumbered, and the table of the units that can be seen in it."""
        partner = np.concatenate(self._partner)
        seen = np.bincount(self.unit.ravel(), minlength=self._count) > 0
        seen[partner[seen]] = True
        number = (np.cumsum(seen) - 1).astype(np.int32)
        kind, since = np.concatenate(self._kinds)[seen], np.concatenate(self._since)[seen]
        traits = np.concatenate(self._traits)[seen]
        return number[self.unit], Units(kind, traits, since, number[partner[seen]])
