"""From streamed crops to batches: places of the training, composition of batches, allowed negatives.

A batch depends only on the recipe's seed and on its number. Training data are streamed in *rounds* of
`checkpoint_every` steps, each with a new shuffle of the data. A resumed run therefore skips the batches of
one round only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX, TrainConfig
from retrieval.errors import TrainingError
from retrieval.models.embed import embed_patches
from retrieval.models.encoder import load_encoder
from retrieval.models.registry import TRAINING_FREE
from retrieval.training.augment import augment_pairs
from tfrecords.grid import overlap
from tfrecords.read import CropPlan, naming_bad_records, stream_crops


class LookAlikes:
    """Assigns crops to clusters; the same crops in the same order get the same clusters."""

    def __init__(self, clusters: int) -> None:
        """Set the number of clusters, 1 or more."""
        self._clusters, self._encoder = clusters, load_encoder(TRAINING_FREE)
        self._centres = np.zeros((0, self._encoder.dim), np.float32)

    def __call__(self, crops: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the clusters of the next crops.

        Args:
            crops: (n, 64, 64, b) scaled, NaN = nodata.

        Returns:
            (n,) in [0, clusters).
        """
        vectors = embed_patches(self._encoder, crops)
        target = self._clusters - len(self._centres)
        self._centres = np.concatenate([self._centres, vectors[:target]])
        return (vectors @ self._centres.T).argmax(1)


EPOCHS_PER_ROUND = 1 << 12
"""Epoch numbers reserved for a round; small data take many epochs in one."""
_PATIENCE = 20_000
"""Crops in a row without a usable one after which the data are refused."""
_FIRST_FILL = 4
"""Crops in the pool before the first batch, in batches."""
EARLY_STEPS = 128
"""Steps before the end of a round at which the stream of the next round is opened."""
_READ = 64
"""Crops read from the stream at a time."""

Element = dict[str, NDArray[Any]]
"""One crop pair, or a batch of pairs, as `stream_crops` gives it."""


@dataclass(frozen=True, eq=False)
class Split:
    """The places that are held out of the training."""

    seed: int = 0
    """Seed of the draw by number."""
    share: float = 0.0
    """Share of the overlap groups held out by their numbers, 0 to 1."""
    groups: frozenset[int] = frozenset()
    """Further overlap groups held out."""
    places: frozenset[int] = frozenset()
    """Further places held out, as `tfrecords.schema.group_of` numbers their names."""

    def held(self, place_id: NDArray[np.int64], overlap_group: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which crops or series are held out; all three arrays have one shape."""
        drawn = draw_number(overlap_group, self.seed) < self.share
        listed = np.isin(overlap_group, sorted(self.groups)) | np.isin(place_id, sorted(self.places))
        return drawn | listed


def draw_number(values: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """Return a pseudo-random number in [0, 1) for each value, the same everywhere (SplitMix64)."""
    with np.errstate(over="ignore"):
        z = np.asarray(values).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15) * np.uint64(2 * seed + 1)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) / np.float64(2**64)


def allowed_negatives(batch: Element, jitter_px: int) -> NDArray[np.bool_]:
    """Return which crops of a batch may be negatives of which.

    Crops that share ground never are: crops of one place whose windows meet, the positive's shift included,
    and crops of two places that overlap anywhere.

    Args:
        batch: place_id, overlap_group, x, y, each (n,).
        jitter_px: largest shift between the crops of a pair.

    Returns:
        (n, n) bool, symmetric, False on the diagonal.
    """
    place, group, x, y = (batch[k] for k in ("place_id", "overlap_group", "x", "y"))
    same_place = place[:, None] == place
    meets = overlap(x[:, None], y[:, None], x, y, PATCH_PX + jitter_px)
    shares = np.where(same_place, meets, group[:, None] == group)
    np.fill_diagonal(shares, True)
    return ~shares


def texture(crops: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean difference of neighbouring pixels, in the band where it is largest.

    Args:
        crops: (n, s, s, b) scaled, NaN = nodata.

    Returns:
        (n,) float32, 0 without data.
    """
    steps = np.abs(np.diff(crops, axis=2))
    known = ~np.isnan(steps)
    total = np.where(known, steps, 0).sum((1, 2))
    return (total / np.maximum(known.sum((1, 2)), 1)).max(-1)


def plan_of(config: TrainConfig) -> CropPlan:
    """Return how a recipe cuts crops."""
    return CropPlan(
        size_px=PATCH_PX,
        crops_per_series=config.crops_per_series,
        jitter_px=config.jitter_px,
        shuffle=config.shuffle,
        seed=config.seed,
    )


def training_crops(source: Any, config: TrainConfig, split: Split, round_: int) -> Iterator[Element]:
    """Yield endless crops to train on.

    Args:
        source: see `tfrecords.read.series_files`.
        config: the recipe.
        split: places that are held out.
        round_: number of the round; each has another order.

    Yields:
        One element of `stream_crops`, as NumPy arrays; with `config.alike` also its cluster.

    Raises:
        TrainingError: no crop is usable.
        RecordError: a record is damaged.
    """
    dataset = stream_crops(source, plan_of(config), epoch=round_ * EPOCHS_PER_ROUND, repeat=True)
    left_out, alike = 0, LookAlikes(config.alike) if config.alike else None
    with naming_bad_records(source):
        for block in dataset.batch(_READ).prefetch(1).as_numpy_iterator():
            keep = ~split.held(block["place_id"], block["overlap_group"])
            least = np.minimum(texture(block["anchor"]), texture(block["positive"]))
            keep &= least >= config.min_texture
            left_out = 0 if keep.any() else left_out + len(keep)
            if left_out > _PATIENCE:
                raise TrainingError(
                    f"{left_out} crops in a row are held out or show nothing (min_texture "
                    f"{config.min_texture:g}): give series of other places, or lower min_texture"
                )
            if alike and keep.any():
                block["cluster"] = np.full(len(keep), -1)
                block["cluster"][keep] = alike(block["anchor"][keep])
            for row in np.flatnonzero(keep):
                # Copies: a view would keep its whole block in memory as long as it waits in the pool.
                yield {name: values[row].copy() for name, values in block.items()}


def compose(
    crops: Iterable[Element], batch: int, per_place: int, pool: int, uses: int, rng: np.random.Generator
) -> Iterator[Element]:
    """Compose batches with several crops of a place, or of a cluster where crops have one.

    Reading is slower than training, so each crop is used several times with another augmentation (data
    echoing, Choi et al. 2019). Crops wait in a pool between their uses. A batch takes up to `per_place`
    crops of each place, in random order. With too few places it starts again with the first.

    Args:
        crops: single elements, endless.
        batch: crops per batch.
        per_place: most crops of a place in a batch.
        pool: size of the full pool; at least `batch`.
        uses: batches that use a crop.
        rng: random generator.

    Yields:
        Batches: the elements' arrays, stacked.
    """
    crops = iter(crops)
    waiting: dict[int, deque[_Waiting]] = {}
    pool, fresh = max(pool, batch), max(1, batch // uses)
    count, target = 0, min(pool, _FIRST_FILL * batch)
    while True:
        for crop in islice(crops, target):
            of = int(crop.get("cluster", crop["place_id"]))
            waiting.setdefault(of, deque()).append(_Waiting(crop, uses))
            count += 1
        chosen = _take(waiting, batch, per_place, rng)
        count = sum(map(len, waiting.values()))
        # Twice as many as were used up until the pool is full: the first batch need not wait for that.
        target = max(batch - count, min(2 * fresh, pool - count))
        yield {name: np.stack([c[name] for c in chosen]) for name in chosen[0]}


@dataclass(eq=False)
class _Waiting:
    """A crop in the pool."""

    crop: Element
    uses: int


def _take(
    waiting: dict[int, deque[_Waiting]], target: int, per_place: int, rng: np.random.Generator
) -> list[Element]:
    """Take crops out of the pool, place by place; crops with uses left return when the batch is full."""
    chosen: list[Element] = []
    back: list[tuple[int, _Waiting]] = []
    while len(chosen) < target:
        places = list(waiting)
        for i in rng.permutation(len(places)):
            queue = waiting[places[i]]
            for _ in range(min(per_place, len(queue), target - len(chosen))):
                entry = queue.popleft()
                chosen.append(entry.crop)
                entry.uses -= 1
                if entry.uses > 0:
                    back.append((places[i], entry))
            if not queue:
                del waiting[places[i]]
    for place, entry in back:
        waiting.setdefault(place, deque()).append(entry)
    return chosen


@dataclass(frozen=True, eq=False)
class Batch:
    """The input of one step."""

    pixels: NDArray[np.float32]
    """(2n, 64, 64, 4) augmented: n anchors, then their n positives."""
    allowed: NDArray[np.bool_]
    """(n, n) which crops may be negatives of which."""


Crops = Callable[[int], Iterable[Element]]
"""Gives the crops of a round."""


def numbered_batches(
    crops: Crops, config: TrainConfig, start: int, early_steps: int = EARLY_STEPS
) -> Generator[tuple[int, Element], None, None]:
    """Yield raw batches from step `start` on, with their steps.

    Args:
        crops: gives the crops of a round.
        config: the recipe.
        start: first step.
        early_steps: steps before the end of a round at which the next one is opened.
    """
    round_steps = config.checkpoint_every
    round_, passed = divmod(start, round_steps)
    with ThreadPoolExecutor(1, "open") as opening:
        stream = opening.submit(_opened, crops(round_))
        while True:
            rng = np.random.default_rng([config.seed, 1, round_])
            batches = compose(
                stream.result(), config.batch, config.per_place, config.pool_size, config.reuse_per_pair, rng
            )
            end, early = (round_ + 1) * round_steps, None
            for step, batch in enumerate(islice(batches, passed, round_steps), round_ * round_steps + passed):
                if early is None and step >= end - early_steps and end < config.steps:
                    early = opening.submit(_opened, crops(round_ + 1))
                yield step, batch
            round_, passed = round_ + 1, 0
            stream = early or opening.submit(_opened, crops(round_))


def _opened(crops: Iterable[Element]) -> Iterator[Element]:
    """Read the first crop, so that the stream runs, and return all crops."""
    crops = iter(crops)
    return chain(list(islice(crops, 1)), crops)


def prepare(step: int, raw: Element, config: TrainConfig) -> Batch:
    """Augment a raw batch; the same step gives the same pixels."""
    rng = np.random.default_rng([config.seed, 2, step])
    pixels = augment_pairs(raw["anchor"], raw["positive"], config.augment, rng)
    if config.overlaps:
        return Batch(pixels, ~np.eye(len(raw["place_id"]), dtype=bool))
    return Batch(pixels, allowed_negatives(raw, config.jitter_px))


@contextmanager
def training_batches(crops: Crops, config: TrainConfig, start: int) -> Iterator[Iterator[Batch]]:
    """Prepare batches from step `start` on in threads, before the training needs them.

    Args:
        crops: gives the crops of a round.
        config: the recipe; the batches end with its steps.
        start: first step.

    Yields:
        An iterator; leaving the block ends the threads.
    """
    reading = ThreadPoolExecutor(1, "read")
    preparing = ThreadPoolExecutor(config.workers, "augment")
    raw = numbered_batches(crops, config, start)
    ahead: deque[Future[Batch]] = deque()

    def job(taken: Future[tuple[int, Element]]) -> Batch:
        return prepare(*taken.result(), config)

    left = iter(range(start, config.steps))

    def order() -> None:
        if next(left, None) is not None:
            ahead.append(preparing.submit(job, reading.submit(next, raw)))

    def batches() -> Iterator[Batch]:
        order()
        while ahead:
            yield ahead.popleft().result()
            order()

    try:
        for _ in range(config.workers + 1):
            order()
        yield batches()
    finally:
        preparing.shutdown(wait=True, cancel_futures=True)
        reading.shutdown(wait=True, cancel_futures=True)
        raw.close()
