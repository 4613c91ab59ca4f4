"""Decision trees that map images: their growth from a sample, their answers, and their file.

A forest takes the place of a network in a model of maps: pixels divided by the full scale in, logits out. It
sees the features of `neighbourhood`. From few labelled scenes it learns what holds for others better than a
network from random weights does, in seconds.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import ForestConfig
from retrieval.errors import ModelError
from retrieval.kernels.trees import LEAF, answer_of_trees, grow_tree
from retrieval.tasks.neighbourhood import Indices, Pairs, feature_count, features, view_px
from tfrecords.errors import DAMAGED_ZIP

FOREST = "forest.npz"
"""File of a forest in a model folder."""
MAX_BYTES = 1 << 30
"""Largest size of a forest's arrays."""
MAX_PAIRS = 1 << 16
"""Most normalized differences, and most gaps, of a forest that is opened."""
_FLOOR = 1e-4
"""Smallest probability: a leaf of few pixels proves nothing impossible."""
_DTYPES = {
    "reduction": "<i4",
    "sides": "<i4",
    "channels": "<i4",
    "roots": "<i4",
    "feature": "<i4",
    "limit": "<f4",
    "child": "<i4",
    "share": "<f4",
}
_LATER = {"pairs": "<i4", "gaps": "<i4"}
"""Arrays that older files lack, with the dtype of each; a forest without indices has none."""


@dataclass(frozen=True, eq=False)
class Forest:
    """Trees with the features that they see."""

    reduction: int
    """Side of the blocks that are answered, pixels."""
    sides: tuple[int, ...]
    """Sides of the squares around a block, in blocks."""
    channels: int
    """Bands of the pixels."""
    roots: NDArray[np.int32]
    """(t,) first node of each tree."""
    feature: NDArray[np.int32]
    """(nodes,) feature of a node, -1 for a leaf."""
    limit: NDArray[np.float32]
    """(nodes,) largest value that goes to the first child."""
    child: NDArray[np.int32]
    """(nodes,) number of the first child, which the second follows."""
    share: NDArray[np.float32]
    """(nodes, k) share of each class."""
    pairs: Pairs = ()
    """Channels whose normalized differences are features, see `neighbourhood.Indices`."""
    gaps: Pairs = ()
    """Channels and normalized differences whose plain differences are features."""

    @property
    def indices(self) -> Indices:
        """What of two numbers is a feature."""
        return Indices(self.pairs, self.gaps)

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """Shape of the pixels, None for any size."""
        return None, None, None, self.channels

    @property
    def output_shape(self) -> tuple[int | None, ...]:
        """Shape of the logits, None for any size."""
        return None, None, None, self.share.shape[1]

    @property
    def view_px(self) -> int:
        """How far an answer sees beyond its block, with the next block between whose middle it lies."""
        return view_px(self.reduction, self.sides) + (self.reduction if self.reduction > 1 else 0)

    def __call__(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """Return the logits (n, y, x, k) of pixels (n, y, x, c) whose sides are multiples of `reduction`."""
        return np.stack([np.log(np.maximum(self._answer(one), _FLOOR)) for one in pixels])

    def _answer(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        shown = features(pixels, self.reduction, self.sides, self.indices)
        found = self.shares(shown.reshape(-1, shown.shape[-1]))
        return enlarged(found.reshape(*shown.shape[:2], -1), self.reduction)

    def shares(self, shown: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the probability of each class (n, k) for features (n, f)."""
        return answer_of_trees(shown, self.roots, self.feature, self.limit, self.child, self.share)

    def get_weights(self) -> list[NDArray[Any]]:
        """Return all arrays, as a network does."""
        return [np.asarray(getattr(self, one.name)) for one in fields(self)]

    def save(self, path: str | Path) -> None:
        """Write the arrays as a NumPy archive."""
        dtypes = _DTYPES | {name: dtype for name, dtype in _LATER.items() if getattr(self, name)}
        arrays = {name: np.asarray(getattr(self, name), dtype) for name, dtype in dtypes.items()}
        with Path(path).open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def enlarged(values: NDArray[np.float32], times: int) -> NDArray[np.float32]:
    """Return (y, x, k) with each side `times` as long, linear between the middles of the blocks."""
    for axis in (0, 1) if times > 1 else ():
        count = values.shape[axis]
        place = np.clip((np.arange(count * times) + 0.5) / times - 0.5, 0, count - 1)
        first = np.minimum(place.astype(np.int64), max(count - 2, 0))
        part = (place - first).astype(np.float32).reshape([-1 if n == axis else 1 for n in range(3)])
        second = np.take(values, np.minimum(first + 1, count - 1), axis)
        values = np.take(values, first, axis) * (1 - part) + second * part
    return values


# --- growth -----------------------------------------------------------------------------------------------


def grow_forest(
    shown: NDArray[np.float32],
    labels: NDArray[Any],
    k: int,
    channels: int,
    config: ForestConfig,
    stands_for: NDArray[Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Forest:
    """Grow a forest from a sample.

    Args:
        shown: (n, f) features of the sample, as `features` gives them.
        labels: (n,) class of each.
        k: number of classes.
        channels: bands of the pixels.
        config: the recipe.
        stands_for: (n,) pixels that each stands for, equal within a class; None for one.
        progress: called with the number of trees after each.
    """
    columns, truth = np.ascontiguousarray(shown.T), np.asarray(labels, np.int64)
    found, counts = (np.bincount(truth, w, minlength=k) for w in (None, stands_for))
    even = counts.sum() / (np.maximum(counts, 1e-9) * max(int((counts > 0).sum()), 1))
    weights = np.where(counts > 0, even**config.balance * counts / np.maximum(found, 1), 0.0)
    tries = max(1, round(len(columns) * config.tries))
    most = 2 * (len(truth) // config.min_leaf) + 1
    grown = []
    for number in range(config.trees):
        draws = np.random.default_rng([config.seed, number]).random((most, tries, 2))
        grown.append(grow_tree(columns, truth, weights, draws, config.min_leaf))
        if progress is not None:
            progress(number + 1)
    roots = np.cumsum([0] + [len(tree[0]) for tree in grown[:-1]]).astype(np.int32)
    feature, limit, child, total = (np.concatenate(part) for part in zip(*grown, strict=True))
    start = np.repeat(roots, [len(tree[0]) for tree in grown])
    return Forest(
        config.reduction,
        config.squares,
        channels,
        roots,
        feature,
        limit,
        np.where(feature == LEAF, 0, child + start).astype(np.int32),
        (total / np.maximum(total.sum(1, keepdims=True), 1e-12)).astype(np.float32),
    )


# --- file -------------------------------------------------------------------------------------------------


def load_forest(path: Path) -> Forest:
    """Open a forest; code in its file never runs.

    Raises:
        ModelError: the file is damaged, too large, or holds no forest.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(one.file_size for one in archive.infolist()) > MAX_BYTES:
                raise ValueError(f"arrays of more than {MAX_BYTES >> 20} MB")
        with np.load(path, allow_pickle=False) as stored:
            if set(stored.files) - set(_LATER) != set(_DTYPES):
                raise ValueError(f"arrays {', '.join(stored.files)}")
            arrays = {name: stored[name] for name in stored.files}
        return _checked(arrays)
    except DAMAGED_ZIP as error:
        raise ModelError(
            f"{path}: no forest can be read ({error}). Expected a file that a training wrote. Train it again."
        ) from error


def _checked(arrays: dict[str, NDArray[Any]]) -> Forest:
    """Return the forest of arrays.

    Raises:
        ValueError: the arrays do not describe trees whose walks end inside them.
    """
    dtypes = _DTYPES | _LATER
    wrong = [name for name, array in arrays.items() if array.dtype != np.dtype(dtypes[name])]
    expected = {"reduction": 0, "channels": 0, "share": 2, "pairs": 2, "gaps": 2}
    if wrong or any(array.ndim != expected.get(name, 1) for name, array in arrays.items()):
        raise ValueError("other types or shapes of arrays")
    reduction, channels = int(arrays["reduction"]), int(arrays["channels"])
    sides = tuple(int(side) for side in arrays["sides"])
    feature, child, share = arrays["feature"], arrays["child"], arrays["share"]
    nodes, roots = len(feature), arrays["roots"]
    if not 1 <= reduction <= 1024 or not 1 <= channels <= 4096 or not all(1 <= s <= 1023 for s in sides):
        raise ValueError("impossible blocks, bands or squares")
    if not (len(arrays["limit"]) == len(child) == len(share) == nodes > 0 and len(roots) > 0):
        raise ValueError("arrays of different lengths")
    if roots.min() < 0 or roots.max() >= nodes or share.shape[1] < 2:
        raise ValueError("trees that start outside")
    pairs = _checked_pairs(arrays, "pairs", channels)
    gaps = _checked_pairs(arrays, "gaps", channels + len(pairs))
    indices = len(pairs) + len(gaps)
    inner, count = np.flatnonzero(feature >= 0), feature_count(channels, reduction, len(sides), indices)
    if (feature[inner] >= count).any() or (feature < LEAF).any():
        raise ValueError("unknown features")
    if (child[inner] <= inner).any() or (child[inner].astype(np.int64) + 1 >= nodes).any():
        raise ValueError("nodes without an end")
    if not (np.isfinite(share).all() and (share >= 0).all() and np.isfinite(arrays["limit"]).all()):
        raise ValueError("impossible numbers")
    return Forest(reduction, sides, channels, roots, feature, arrays["limit"], child, share, pairs, gaps)


def _checked_pairs(arrays: dict[str, NDArray[Any]], name: str, numbers: int) -> Pairs:
    """Return pairs of an array that a file may lack.

    Raises:
        ValueError: they name other numbers than those from 0 below `numbers`.
    """
    pairs = arrays.get(name, np.zeros((0, 2), np.int32))
    if pairs.shape[1] != 2 or len(pairs) > MAX_PAIRS or ((pairs < 0) | (pairs >= numbers)).any():
        raise ValueError(f"impossible {name} of numbers")
    return tuple((int(first), int(second)) for first, second in pairs)
