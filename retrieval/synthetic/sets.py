"""Write data sets of generated places: a challenge with answers, and training series."""

from __future__ import annotations

import csv
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from retrieval.synthetic.scene import Observation, Scene, SceneConfig
from tfrecords.artifacts import writing_folder
from tfrecords.challenge import CHUNK_BYTES, TRUTH, ChallengeReport, Progress, Target, write_challenge
from tfrecords.errors import ArrayError
from tfrecords.grid import PATCH_PX, valid_share
from tfrecords.schema import BANDS, Image, Patches, Series, group_of
from tfrecords.write import SERIES_PER_SHARD, shard_name, summarise_shards, write_shard

FORMULA = 1
"""Version of the generator: increases when a seed gives other pixels, so that old runs do not resume."""

MAX_LOST_SHARE = 0.8
"""A patch with a larger share under cloud, shadow or open water is lost: it cannot be found."""

LOST_PATCHES_KEPT = 0.15
"""Share of lost patches that are kept: real challenges have them."""

YEARS = range(2016, 2022)
"""Years from which dates are drawn."""

TRUTH_COLUMNS = ("date", "image_date", "true_x", "true_y", "lost", "country")
"""Columns of truth.csv for a generated patch. true_x and true_y are the sub-pixel position in the image:
the answer, corrected by the misregistrations of both dates. lost is the share of the patch under cloud,
shadow or open water."""

Item = TypeVar("Item")


def make_challenge(
    out_dir: str | os.PathLike[str],
    *,
    images: int = 24,
    patches: int = 1536,
    size_px: int = 512,
    seed: int = 0,
    config: SceneConfig | None = None,
    workers: int = 2,
    overwrite: bool = False,
    progress: Progress | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> ChallengeReport:
    """Generate a challenge: images of one date, patches of another, and the answers.

    Args:
        out_dir: folder to write; see `tfrecords.challenge` for its files.
        images: number of images, each of another place; at least 1.
        patches: number of patches, spread evenly over the images at random pixels; at least `images`.
        size_px: side of the images, at least 64. With 512 the records have the published form; records of
            other sizes state their size.
        seed: decides everything, together with the other arguments.
        config: frequencies of kinds of country, clouds and haze.
        workers: number of threads; the result does not depend on it.
        overwrite: replace a finished challenge.
        progress: called after each image.
        chunk_bytes: bytes of images in a chunk, about; see `write_challenge`.

    Raises:
        ArrayError: a size or number is too small, or the seed is negative.
        OutputExistsError: the output exists and `overwrite` is false.
        UnfinishedOutputError: an interrupted run has other settings.
        DiskFullError: the disk is full.
    """
    if images < 1 or patches < images or size_px < PATCH_PX or seed < 0:
        raise ArrayError(
            f"challenge: {images} images of {size_px} px, {patches} patches and seed {seed}; expected at "
            f"least one image of {PATCH_PX} px, one patch for each and seed 0."
        )
    config = config or SceneConfig()
    numbers = np.random.default_rng([seed, 5]).permutation(patches)
    bounds = np.linspace(0, patches, images + 1).astype(int)

    def target(number: int) -> Target:
        ids = numbers[bounds[number] : bounds[number + 1]]
        return _target(seed, number, np.sort(ids), size_px, config)

    report = write_challenge(
        out_dir,
        lambda first, last: _prefetch(target, range(first, last), workers),
        images,
        config={
            "formula": FORMULA,
            "images": images,
            "patches": patches,
            "size_px": size_px,
            "seed": seed,
            "scenes": asdict(config),
        },
        columns=TRUTH_COLUMNS,
        image_bytes=size_px * size_px * 8 + patches // images * PATCH_PX * PATCH_PX * 8,
        published=size_px == 512,
        chunk_bytes=chunk_bytes,
        overwrite=overwrite,
        progress=progress,
    )
    return replace(report, notes=(_note(report),))


def _note(report: ChallengeReport) -> str:
    """Return a sentence with the number of lost patches."""
    with (report.path / TRUTH).open(newline="", encoding="utf-8") as file:
        lost = sum(float(row["lost"]) > MAX_LOST_SHARE for row in csv.DictReader(file))
    return (
        f"{lost} of {report.patches} patches ({lost / report.patches:.1%}) have more than "
        f"{MAX_LOST_SHARE:.0%} cloud, shadow or open water"
    )


@dataclass(frozen=True)
class SeriesReport:
    """The result of `make_series`."""

    path: Path
    """The folder."""
    series: int
    """Number of series."""
    dates: int
    """Number of dates in each."""


def make_series(
    out_dir: str | os.PathLike[str],
    *,
    series: int = 32,
    dates: int = 12,
    size_px: int = 512,
    seed: int = 1,
    config: SceneConfig | None = None,
    workers: int = 2,
    overwrite: bool = False,
    progress: Progress | None = None,
    per_shard: int = SERIES_PER_SHARD,
) -> SeriesReport:
    """Generate training series: places on several dates over about six years.

    Args:
        out_dir: folder to write: shards of records and a manifest.
        series: number of series, each of another place; at least 1.
        dates: dates of each, at least 2.
        size_px: side of the series, at least 64.
        seed: decides everything; other seeds give other places.
        config: frequencies of kinds of country, clouds and haze.
        workers: number of threads; the result does not depend on it.
        overwrite: replace a finished folder.
        progress: called after each series.
        per_shard: series in a shard, at least 1.

    Raises:
        ArrayError: a size or number is too small, or the seed is negative.
        OutputExistsError: the output exists and `overwrite` is false.
        UnfinishedOutputError: an interrupted run has other settings.
        DiskFullError: the disk is full.
    """
    if series < 1 or dates < 2 or size_px < PATCH_PX or seed < 0:
        raise ArrayError(
            f"series: {series} of {dates} dates and {size_px} px, and seed {seed}; expected at least one of "
            f"two dates and {PATCH_PX} px, and seed 0."
        )
    config = config or SceneConfig()
    settings = {"formula": FORMULA, "series": series, "dates": dates, "size_px": size_px, "seed": seed}
    names: list[str] = []
    with writing_folder(
        out_dir, kind="series", config={**settings, "scenes": asdict(config)}, overwrite=overwrite
    ) as folder:
        for first in range(0, series, per_shard):
            last = min(first + per_shard, series)
            names.append(shard_name(len(names)))
            if not folder.done(names[-1]):
                made = _prefetch(
                    lambda number: _series(seed, number, dates, size_px, config), range(first, last), workers
                )
                write_shard(folder, names[-1], _report_each(made, first, series, progress))
        summarise_shards(folder, names)
    return SeriesReport(Path(out_dir), series, dates)


def _prefetch(make: Callable[[int], Item], numbers: Iterable[int], workers: int) -> Iterator[Item]:
    """Yield results in order; threads make at most two items per thread in advance."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        pending: deque[Future[Item]] = deque()
        for number in numbers:
            pending.append(pool.submit(make, number))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _report_each(items: Iterable[Item], done: int, total: int, progress: Progress | None) -> Iterator[Item]:
    """Yield items and call `progress` after each."""
    for number, item in enumerate(items, start=done + 1):
        yield item
        if progress:
            progress(number, total)


def _scene(seed: int, number: int, size_px: int, config: SceneConfig) -> Scene:
    """Return a place of a set by its number; sets with different seeds share no place."""
    return Scene(
        int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> 1),
        size_px,
        size_px,
        config,
    )


def _series(seed: int, number: int, dates: int, size_px: int, config: SceneConfig) -> Series:
    scene = _scene(seed, number, size_px, config)
    rng = np.random.default_rng([seed, 11, number])
    span = len(YEARS) * 365
    days = np.sort(rng.choice(span, min(dates, span), replace=dates > span))
    observations = [scene.observe(int(day % 365) + 1, year=YEARS[0] + int(day // 365)) for day in days]
    place = f"generated-{seed}-{number:06d}"
    return Series(
        np.stack([o.dn for o in observations]),
        "dn",
        BANDS,
        0.0,
        tuple(o.date for o in observations),
        place,
        overlap_group=group_of(place),
    )


def _target(seed: int, number: int, ids: NDArray[np.int64], size_px: int, config: SceneConfig) -> Target:
    """Observe a place on two dates in different years; patches are cut from the second."""
    scene = _scene(seed, number, size_px, config)
    rng = np.random.default_rng([seed, 3, number])
    years = rng.choice(YEARS, 2, replace=False).tolist()
    days = rng.integers(1, 366, 2).tolist()
    searched, queried = (scene.observe(day, year=year) for day, year in zip(days, years, strict=True))
    lost = valid_share(queried.hidden | scene.open_water, PATCH_PX, 1)
    xy = _draw_places(rng, lost, len(ids))
    pixels = np.stack([queried.dn[y : y + PATCH_PX, x : x + PATCH_PX] for x, y in xy])
    truth = [_truth(scene, searched, queried, int(x), int(y), float(lost[y, x])) for x, y in xy]
    image = Image(number, searched.dn, "dn", BANDS, 0.0, date=searched.date)
    return Target(image, Patches(ids.astype(np.int64), pixels, "dn", BANDS, 0.0), xy, truth)


def _draw_places(rng: np.random.Generator, lost: NDArray[np.float32], count: int) -> NDArray[np.int32]:
    """Draw top-left pixels evenly, but omit most lost patches; (count, 2) as x, y."""
    places = np.zeros((count, 2), np.int32)
    for row in range(count):
        for _ in range(20):
            y, x = (int(rng.integers(side)) for side in lost.shape)
            if lost[y, x] <= MAX_LOST_SHARE or rng.random() < LOST_PATCHES_KEPT:
                break
        places[row] = x, y
    return places


def _truth(
    scene: Scene, searched: Observation, queried: Observation, x: int, y: int, lost: float
) -> tuple[str, ...]:
    """Return the cells of a patch in truth.csv."""
    true_x = x - queried.shift_x_px + searched.shift_x_px
    true_y = y - queried.shift_y_px + searched.shift_y_px
    return (queried.date, searched.date, f"{true_x:.3f}", f"{true_y:.3f}", f"{lost:.3f}", scene.country)
