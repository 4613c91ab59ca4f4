"""Validation of an encoder: recall of the right place on places without training.

Patches are cut from held-out series at random places. Each is searched in the latest dates of all held-out
series, window by window at the encoder's stride, exactly. A window within 12 px of the right place is right.
The figures are the shares of patches with a right window first, and among the first 20.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX, IndexConfig, TrainConfig
from retrieval.errors import TrainingError
from retrieval.models.embed import embed_image, embed_patches
from retrieval.training.batches import Split, draw_number
from retrieval.types import Encoder
from tfrecords.grid import valid_share
from tfrecords.read import read_series
from tfrecords.schema import BANDS, Series, group_of, to_scaled

NEAR_PX = 12
"""Largest distance of a right window; half a stride along the diagonal is 5.7."""
_KNOWN = 0.98
"""Smallest share of a patch with data, on both dates."""
_SPARE = 4
"""Most patches of a series, in even shares; they make up for series without any."""
_TRIES = 20
_FIRST = 20
_BLOCK = 64


@dataclass(frozen=True)
class Recall:
    """Shares of patches with a right window."""

    first: float
    """Share with the right window first, 0 to 1."""
    in_20: float
    """Share with a right window among the 20 most similar ones, 0 to 1."""
    patches: int
    """Number of patches."""
    windows: int
    """Number of windows searched."""


@dataclass(frozen=True)
class Accuracy:
    """Share of validation images whose class is right."""

    share: float
    """From 0 to 1."""
    images: int
    """Number of images."""


@dataclass(frozen=True)
class MapAccuracy:
    """Agreement of class maps with validation masks."""

    miou: float
    """Mean IoU of the classes without the background, 0 to 1."""
    mcc: float
    """Mean Matthews correlation coefficient of these classes, -1 to 1."""
    scenes: int
    """Number of scenes."""


Validation = Recall | Accuracy | MapAccuracy
"""The figures of a validation."""


@dataclass(frozen=True, eq=False)
class ValidationSet:
    """Images and patches of the validation; training never sees them."""

    images: list[NDArray[np.float32]]
    """Scaled (h, w, 4), NaN = nodata: the latest date of each series."""
    patches: NDArray[np.float32]
    """(n, 64, 64, 4) scaled, of other dates."""
    truth: NDArray[np.int64]
    """(n, 3): number of the image, x, y."""


def hold_out(source: Any, config: TrainConfig, validation: Any = None) -> tuple[Split, ValidationSet]:
    """Choose the places that are held out, and read them.

    Args:
        source: series to train on.
        config: the recipe: share, seed, numbers of series and patches.
        validation: series to validate on; their places are left out of the training. None holds out whole
            overlap groups of `source`, drawn by their numbers.

    Returns:
        The split, and the validation set.

    Raises:
        TrainingError: fewer than two overlap groups, or no usable patch.
    """
    if validation is not None:
        place_keys: set[tuple[int, int]] = set()
        cuts = _chosen(_noting(read_series(validation), place_keys), config)
        split = Split(places=frozenset(p for p, _ in place_keys), groups=frozenset(g for _, g in place_keys))
        if not _leaves_some(source, split):
            raise TrainingError(f"{source}: {validation} has all of its places: give series of other places")
        return split, _together(cuts, config)
    split = Split(config.seed, config.held_out)
    if not _leaves_some(source, split) or next(_held_of(source, split), None) is None:
        split = Split(groups=frozenset([_smallest(source, config)]))
    return split, _together(_chosen(_held_of(source, split), config, enough=True), config)


def _leaves_some(source: Any, split: Split) -> bool:
    """Return whether a series is left to train on."""
    return any(not _is_held(record, split) for record in read_series(source))


def _is_held(series: Series, split: Split) -> bool:
    return bool(split.held(np.array([group_of(series.place)]), np.array([series.overlap_group]))[0])


def _noting(series: Iterable[Series], place_keys: set[tuple[int, int]]) -> Iterator[Series]:
    """Yield the series, and collect their places and groups."""
    for record in series:
        place_keys.add((group_of(record.place), record.overlap_group))
        yield record


def _held_of(source: Any, split: Split) -> Iterator[Series]:
    """Return the held-out series of a source."""
    return (record for record in read_series(source) if _is_held(record, split))


def _smallest(source: Any, config: TrainConfig) -> int:
    """Return the group that a draw without held-out groups came nearest to."""
    groups = np.unique(np.array([s.overlap_group for s in read_series(source)], np.int64))
    if len(groups) < 2:
        raise TrainingError(
            f"{source}: all series show the same ground, so that none can be held out: give series of "
            f"other places, or a validation set"
        )
    return int(groups[draw_number(groups, config.seed).argmin()])


@dataclass(frozen=True, eq=False)
class _Cut:
    """Image and patches of a held-out series."""

    image: NDArray[np.float32]
    patches: NDArray[np.float32]
    xy: NDArray[np.int64]


def _chosen(series: Iterable[Series], config: TrainConfig, enough: bool = False) -> list[_Cut]:
    """Cut images and patches out of series of as many overlap groups as possible.

    Args:
        series: held-out series; one is in memory at a time.
        config: numbers of series and patches.
        enough: stop at the wanted number of groups.

    Returns:
        The first series of every group, then the second ones, up to the wanted number, in reading order.
    """
    limit = config.validation_series
    patches = max(1, _SPARE * config.validation_queries // limit)
    counts: Counter[int] = Counter()
    cuts_by_rank: list[tuple[int, int, _Cut]] = []
    for number, record in enumerate(series):
        rank = counts[record.overlap_group]
        if min(record.pixels.shape[1:3]) < PATCH_PX or (
            len(cuts_by_rank) == limit and rank >= cuts_by_rank[-1][0]
        ):
            continue
        counts[record.overlap_group] += 1
        cuts_by_rank.append(
            (rank, number, _cut(record, patches, np.random.default_rng([config.seed, 4, number])))
        )
        cuts_by_rank = sorted(cuts_by_rank, key=lambda k: k[:2])[:limit]
        if enough and cuts_by_rank[-1][0] == 0 and len(cuts_by_rank) == limit:
            break
    return [cut for _, _, cut in sorted(cuts_by_rank, key=lambda k: k[1])]


def _cut(series: Series, limit: int, rng: np.random.Generator) -> _Cut:
    """Cut the latest date, and patches of other dates where both have data."""
    image = _four_bands(series, len(series.pixels) - 1)
    shares = valid_share(_known(image), PATCH_PX, 1)
    patches, xy = [], []
    for _ in range(limit * _TRIES if (shares >= _KNOWN).any() else 0):
        x, y = int(rng.integers(shares.shape[1])), int(rng.integers(shares.shape[0]))
        patch = _four_bands(series, int(rng.integers(len(series.pixels) - 1)), x, y)
        if shares[y, x] >= _KNOWN and _known(patch).mean() >= _KNOWN:
            patches.append(patch)
            xy.append((x, y))
        if len(patches) == limit:
            break
    side = (PATCH_PX, PATCH_PX, len(BANDS))
    return _Cut(
        image, np.array(patches, np.float32).reshape(-1, *side), np.array(xy, np.int64).reshape(-1, 2)
    )


def _known(scaled: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return (h, w) whether at least one band is a number."""
    known: NDArray[np.bool_] = np.isfinite(scaled).max(axis=-1)
    return known


def _four_bands(series: Series, date: int, x: int | None = None, y: int | None = None) -> NDArray[np.float32]:
    """Return a date, or its window at (x, y), in four bands, B04, B03, B02, B08 first; NaN if missing."""
    pixels = series.pixels[date]
    if x is not None and y is not None:
        pixels = pixels[y : y + PATCH_PX, x : x + PATCH_PX]
    scaled = to_scaled(pixels, series.units, series.nodata)
    if len(series.bands) > len(BANDS):
        order = sorted(range(len(series.bands)), key=lambda i: series.bands[i] not in BANDS)
        scaled = scaled[..., order[: len(BANDS)]]
    missing = len(BANDS) - scaled.shape[-1]
    return np.pad(scaled, ((0, 0), (0, 0), (0, missing)), constant_values=np.nan)


def _together(cuts: list[_Cut], config: TrainConfig) -> ValidationSet:
    """Return one set of several series, with their patches thinned evenly to the wanted number."""
    order = sorted((k, number) for number, cut in enumerate(cuts) for k in range(len(cut.patches)))
    order = sorted((number, k) for k, number in order[: config.validation_queries])
    if not order:
        raise TrainingError(
            f"none of the {len(cuts)} held-out series shows ground on two dates: give more series, or a "
            f"validation set"
        )
    return ValidationSet(
        [cut.image for cut in cuts],
        np.stack([cuts[number].patches[k] for number, k in order]),
        np.array([(number, *cuts[number].xy[k]) for number, k in order], np.int64),
    )


def recall(encoder: Encoder, data: ValidationSet) -> Recall:
    """Measure an encoder.

    Args:
        encoder: the encoder.
        data: images and patches.

    Returns:
        Recall of the right place; a flat patch has a zero vector and counts as not found.
    """
    queries = embed_patches(encoder, data.patches)
    windows = [embed_image(encoder, image, IndexConfig(stride_px=encoder.step_px)) for image in data.images]
    vectors = np.concatenate([w.vectors for w in windows])
    where = np.concatenate([np.column_stack([np.full(len(w.xy), i), w.xy]) for i, w in enumerate(windows)])
    found = np.zeros((len(queries), 2), bool)
    count = min(_FIRST, len(vectors))
    for start in range(0, len(queries) if count else 0, _BLOCK):
        block = slice(start, start + _BLOCK)
        similarity = queries[block] @ vectors.T  # (q, windows)
        best = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
        order = np.argsort(-np.take_along_axis(similarity, best, 1), axis=1, kind="stable")
        hit = _right(where[np.take_along_axis(best, order, 1)], data.truth[block, None])
        found[block] = np.column_stack([hit[:, 0], hit.max(axis=1)])
    found &= np.linalg.norm(queries, axis=1)[:, None] > 0
    return Recall(float(found[:, 0].mean()), float(found[:, 1].mean()), len(queries), len(vectors))


def _right(found: NDArray[np.int64], truth: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return whether windows (..., 3), as image, x, y, count as the right place."""
    far = np.hypot(found[..., 1] - truth[..., 1], found[..., 2] - truth[..., 2])
    right: NDArray[np.bool_] = (found[..., 0] == truth[..., 0]) & (far <= NEAR_PX)
    return right
