"""One image against its candidates: tensors of patches and image, correlation, peaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX, TensorConfig
from retrieval.features import structure_tensor
from retrieval.refine.correlation import ncc

BATCH = 1024
"""Pairs of patch and candidate that are correlated at a time."""


class Pixels(Protocol):
    """Where refinement reads pixels from: the store of an index, or arrays in a test."""

    def bands(self, image_id: int) -> tuple[str, ...]:
        """Names of an image's bands, in their order."""
        ...

    def scaled(self, image_id: int) -> NDArray[np.float32]:
        """An image, (h, w, b) scaled, NaN = not known."""
        ...


class PatchPixels(Protocol):
    """The patches that are asked about; `tfrecords.schema.Patches` is one."""

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands, in their order."""
        ...

    def __len__(self) -> int: ...

    def scaled(self, rows: slice) -> NDArray[np.float32]:
        """Some patches, (n, 64, 64, b) scaled, NaN = not known."""
        ...


# --- tensors of patches and images at two resolutions --------------------------------------------


def _tensor(scaled: NDArray[np.float32], level: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Structure tensor (n, h', w', 3) and visibility (n, h', w', 1), halved `level` times."""
    from keras import ops

    tensor, visible = structure_tensor(ops.convert_to_tensor(scaled), TensorConfig.noise)
    if level:
        tensor = ops.average_pool(tensor, 2**level, 2**level)
        visible = ops.cast(ops.average_pool(visible, 2**level, 2**level) > 0.5, "float32")
        tensor = tensor * visible
    return ops.convert_to_numpy(tensor), ops.convert_to_numpy(visible)


@dataclass(frozen=True)
class Templates:
    """Tensors of all patches in the bands that they share with some images."""

    tensor: NDArray[np.float16]
    """(n, s, s, 3)."""
    visible: NDArray[np.bool_] | None
    """(n, s, s, 1), None where nothing is hidden in any patch."""

    @classmethod
    def of(cls, patches: PatchPixels, columns: Sequence[int], level: int) -> Templates:
        """Tensors of these columns of the patches, at a level."""
        blocks = [
            _tensor(patches.scaled(slice(i, i + BATCH))[..., list(columns)], level)
            for i in range(0, len(patches), BATCH)
        ]
        visible = np.concatenate([v for _, v in blocks]) > 0
        tensor = np.concatenate([t.astype(np.float16) for t, _ in blocks])
        return cls(tensor, None if visible.all() else visible)

    def take(self, rows: NDArray[np.intp]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Tensors and visibility of some patches as float32; None where nothing of them is hidden."""
        visible = None if self.visible is None else self.visible[rows]
        if visible is not None and visible.all():
            visible = None
        return self.tensor[rows].astype(np.float32), None if visible is None else visible.astype(np.float32)


def shared_columns(asked: tuple[str, ...], stored: tuple[str, ...]) -> tuple[list[int], list[int]]:
    """Columns of the bands that patch and image share; all of each where there are none."""
    both = [b for b in asked if b in stored]
    if not both:
        return list(range(len(asked))), list(range(len(stored)))
    return [asked.index(b) for b in both], [stored.index(b) for b in both]


# --- one image against its candidates -------------------------------------------------------------


@dataclass(frozen=True)
class Peaks:
    """Where the correlation peaked, in whole pixels of the full resolution."""

    x: NDArray[np.int64]
    """(m,) column, in the image."""
    y: NDArray[np.int64]
    """(m,) row."""
    dx: NDArray[np.float32]
    """(m,) sub-pixel offset to add to x, in pixels of the level, in [-0.5, 0.5]."""
    dy: NDArray[np.float32]
    """(m,) likewise for y."""
    ncc: NDArray[np.float32]
    """(m,) height of the peak, in [-1, 1]."""


def correlate_at(
    image: NDArray[np.float32],
    templates: Templates,
    rows: NDArray[np.intp],
    x: NDArray,
    y: NDArray,
    radius: int,
    level: int,
) -> Peaks:
    """Correlate patches with an image around positions given in full-resolution pixels.

    Args:
        image: (h, w, b) scaled, only the bands that are shared.
        templates: tensors of all patches at `level`.
        rows: (m,) which patch.
        x: (m,) columns around which to look.
        y: (m,) rows.
        radius: in pixels of the level.
        level: 0 for full resolution, 1 for half.

    Returns:
        The peak of each, the patch lying wholly inside the image.
    """
    from keras import ops

    size = templates.tensor.shape[1]
    tensor = np.pad(_tensor(image[None], level)[0][0], ((radius, radius + 1), (radius, radius + 1), (0, 0)))
    regions = np.lib.stride_tricks.sliding_window_view(tensor, (size + 2 * radius,) * 2, (0, 1))
    limit = np.array([image.shape[1] - PATCH_PX, image.shape[0] - PATCH_PX])  # largest x and y of a patch
    parts = []
    for start in range(0, len(rows), BATCH):
        part = slice(start, start + BATCH)
        at = np.minimum(np.stack([x[part], y[part]], -1) >> level, limit >> level)  # (m, 2)
        region = np.moveaxis(regions[at[:, 1], at[:, 0]], 1, -1)
        template, weight = templates.take(rows[part])
        surface = ops.convert_to_numpy(ncc(template, np.ascontiguousarray(region), weight))
        parts.append(_peaks(surface, at, radius, level, limit))
    return Peaks(*(np.concatenate([getattr(p, f) for p in parts]) for f in Peaks.__dataclass_fields__))


def _peaks(surface: NDArray[np.float32], at: NDArray, radius: int, level: int, limit: NDArray) -> Peaks:
    """Highest point of each surface whose patch lies inside the image, and the parabola's offset."""
    n, side = len(surface), surface.shape[1]
    shift = np.arange(side) - radius
    inside_x = (at[:, 0, None] + shift >= 0) & (at[:, 0, None] + shift <= limit[0] >> level)  # (n, side)
    inside_y = (at[:, 1, None] + shift >= 0) & (at[:, 1, None] + shift <= limit[1] >> level)
    open_ = np.where(inside_y[:, :, None] & inside_x[:, None, :], surface, -2.0)
    # Where nothing stands out (a flat patch) the answer is the candidate's own window, not a corner.
    open_[:, radius, radius] += 1e-6
    best = open_.reshape(n, -1).argmax(1)
    iy, ix = np.divmod(best, side)
    i = np.arange(n)
    peak = surface[i, iy, ix]
    dx = _parabola(surface[i, iy, np.maximum(ix - 1, 0)], peak, surface[i, iy, np.minimum(ix + 1, side - 1)])
    dy = _parabola(surface[i, np.maximum(iy - 1, 0), ix], peak, surface[i, np.minimum(iy + 1, side - 1), ix])
    edge_x, edge_y = (ix == 0) | (ix == side - 1), (iy == 0) | (iy == side - 1)
    return Peaks(
        np.clip(at[:, 0] + shift[ix] << level, 0, limit[0]),
        np.clip(at[:, 1] + shift[iy] << level, 0, limit[1]),
        np.where(edge_x, 0, dx).astype(np.float32),
        np.where(edge_y, 0, dy).astype(np.float32),
        peak.astype(np.float32),
    )


def _parabola(before: NDArray, peak: NDArray, after: NDArray) -> NDArray:
    """Offset of the top of the parabola through three neighbours, in [-0.5, 0.5]; 0 where it has none."""
    bend = before - 2 * peak + after
    top = (before - after) / np.where(bend < -1e-9, 2 * bend, 1)
    return np.where(bend < -1e-9, np.clip(top, -0.5, 0.5), 0)
