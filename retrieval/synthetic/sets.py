"""Whole data sets of generated places: a challenge with answers, and training series."""

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
from tfrecords.challenge import TRUTH, ChallengeReport, Progress, Target, write_challenge
from tfrecords.errors import ArrayError
from tfrecords.grid import PATCH_PX, valid_share
from tfrecords.schema import BANDS, Image, Patches, Series, group_of
from tfrecords.write import SERIES_PER_SHARD, shard_name, summarise_shards, write_shard

FORMULA = 1
"""Counts up when the same seed begins to give other pixels: a stopped run is then not gone on with."""

HOPELESS = 0.8
"""Share of a patch under cloud, shadow or open water above which nobody could find it."""

HOPELESS_KEPT = 0.15
"""Share of the hopeless patches that are drawn nevertheless: real challenges have them."""

YEARS = range(2016, 2022)
"""Years that dates are drawn from."""

TRUTH_COLUMNS = ("date", "image_date", "true_x", "true_y", "lost", "country")
"""What truth.csv says of a generated patch. true_x and true_y are the place in the image to parts of a
pixel: the answer, corrected by the misregistrations of both dates, which are known here. lost is the share
of the patch under cloud, shadow or open water."""

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
) -> ChallengeReport:
    """Generate a challenge: images of one date, patches of another, and the answers.

    Args:
        out_dir: Folder to write; see `tfrecords.challenge` for its files.
        images: How many images, each of a place of its own; at least 1.
        patches: How many patches, spread evenly over the images at random pixels; at least as many.
        size_px: Side of the images, at least 64. With 512 the records are the published ones, bit for bit in
            form; other sizes need records that say so.
        seed: Decides everything, together with the other arguments.
        config: What places and skies are like.
        workers: Threads; they change nothing in the result.
        overwrite: Replace a finished challenge.
        progress: Told how many images are done.

    Returns:
        What was written.

    Raises:
        ArrayError: A size or number is too small, or the seed negative.
        OutputExistsError: Something is there, and `overwrite` is not given.
        UnfinishedOutputError: A stopped run of another configuration is in the way.
        DiskFullError: The disk is full.
    """
    if images < 1 or patches < images or size_px < PATCH_PX or seed < 0:
        raise ArrayError(
            f"Received {images} images of {size_px} px, {patches} patches and seed {seed}; expected at "
            f"least one image of {PATCH_PX} px, one patch for each and seed 0: give larger numbers."
        )
    config = config or SceneConfig()
    numbers = np.random.default_rng([seed, 5]).permutation(patches)
    bounds = np.linspace(0, patches, images + 1).astype(int)

    def target(number: int) -> Target:
        ids = numbers[bounds[number] : bounds[number + 1]]
        return _target(seed, number, np.sort(ids), size_px, config)

    report = write_challenge(
        out_dir,
        lambda first, last: _ahead(target, range(first, last), workers),
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
        overwrite=overwrite,
        progress=progress,
    )
    return replace(report, notes=(_note(report),))


def _note(report: ChallengeReport) -> str:
    """Say how many patches nobody could find."""
    with (report.path / TRUTH).open(newline="", encoding="utf-8") as file:
        lost = sum(float(row["lost"]) > HOPELESS for row in csv.DictReader(file))
    return (
        f"{lost} of {report.patches} patches ({lost / report.patches:.1%}) are by more than {HOPELESS:.0%} "
        "cloud, shadow or open water"
    )


@dataclass(frozen=True)
class SeriesReport:
    """What was written."""

    path: Path
    """The folder."""
    series: int
    """How many series."""
    dates: int
    """How many dates in each."""


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
) -> SeriesReport:
    """Generate training series: places that are seen on several dates over about five years.

    Args:
        out_dir: Folder to write: shards of records and a manifest.
        series: How many, each of a place of its own; at least 1.
        dates: Dates of each, at least 2.
        size_px: Side of the series, at least 64.
        seed: Decides everything; places of other seeds are other places.
        config: What places and skies are like.
        workers: Threads; they change nothing in the result.
        overwrite: Replace a finished folder.
        progress: Told how many series are done.

    Returns:
        What was written.

    Raises:
        ArrayError: A size or number is too small, or the seed negative.
        OutputExistsError: Something is there, and `overwrite` is not given.
        UnfinishedOutputError: A stopped run of another configuration is in the way.
        DiskFullError: The disk is full.
    """
    if series < 1 or dates < 2 or size_px < PATCH_PX or seed < 0:
        raise ArrayError(
            f"Received {series} series of {dates} dates and {size_px} px and seed {seed}; expected at least "
            f"one of two dates and {PATCH_PX} px and seed 0: give larger numbers."
        )
    config = config or SceneConfig()
    settings = {"formula": FORMULA, "series": series, "dates": dates, "size_px": size_px, "seed": seed}
    names: list[str] = []
    with writing_folder(
        out_dir, kind="series", config={**settings, "scenes": asdict(config)}, overwrite=overwrite
    ) as folder:
        for first in range(0, series, SERIES_PER_SHARD):
            last = min(first + SERIES_PER_SHARD, series)
            names.append(shard_name(len(names)))
            if not folder.done(names[-1]):
                wanted = range(first, last)
                ready = _ahead(lambda number: _series(seed, number, dates, size_px, config), wanted, workers)
                write_shard(folder, names[-1], _told(ready, first, series, progress))
        summarise_shards(folder, names)
    return SeriesReport(Path(out_dir), series, dates)


def _ahead(make: Callable[[int], Item], numbers: Iterable[int], workers: int) -> Iterator[Item]:
    """Results in order, made by threads that are never more than two items a thread ahead of the reader."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        waiting: deque[Future[Item]] = deque()
        for number in numbers:
            waiting.append(pool.submit(make, number))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _told(items: Iterable[Item], done: int, total: int, progress: Progress | None) -> Iterator[Item]:
    for number, item in enumerate(items, start=done + 1):
        yield item
        if progress:
            progress(number, total)


def _scene(seed: int, number: int, size_px: int, config: SceneConfig) -> Scene:
    """Place number so-and-so of a set; sets of different seeds share none."""
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
    seen = [scene.observe(int(day % 365) + 1, year=YEARS[0] + int(day // 365)) for day in days]
    place = f"generated-{seed}-{number:06d}"
    return Series(
        np.stack([one.dn for one in seen]),
        "dn",
        BANDS,
        0.0,
        tuple(one.date for one in seen),
        place,
        overlap_group=group_of(place),
    )


def _target(seed: int, number: int, ids: NDArray[np.int64], size_px: int, config: SceneConfig) -> Target:
    """One place on two dates of different years: the first is the image, patches are cut from the second."""
    scene = _scene(seed, number, size_px, config)
    rng = np.random.default_rng([seed, 3, number])
    year, other_year = (int(one) for one in rng.choice(YEARS, 2, replace=False))
    day, other_day = (int(one) for one in rng.integers(1, 366, 2))
    shown, asked = scene.observe(day, year=year), scene.observe(other_day, year=other_year)
    lost = valid_share(asked.hidden | scene.open_water, PATCH_PX, 1)
    xy = _draw_places(rng, lost, len(ids))
    pixels = np.stack([asked.dn[y : y + PATCH_PX, x : x + PATCH_PX] for x, y in xy])
    truth = [_truth(scene, shown, asked, int(x), int(y), float(lost[y, x])) for x, y in xy]
    image = Image(number, shown.dn, "dn", BANDS, 0.0, date=shown.date)
    return Target(image, Patches(ids.astype(np.int64), pixels, "dn", BANDS, 0.0), xy, truth)


def _draw_places(rng: np.random.Generator, lost: NDArray[np.float32], count: int) -> NDArray[np.int32]:
    """Top-left pixels, drawn evenly but for most of the hopeless ones; (count, 2) as x, y."""
    places = np.zeros((count, 2), np.int32)
    for row in range(count):
        for _ in range(20):
            y, x = (int(rng.integers(side)) for side in lost.shape)
            if lost[y, x] <= HOPELESS or rng.random() < HOPELESS_KEPT:
                break
        places[row] = x, y
    return places


def _truth(
    scene: Scene, shown: Observation, asked: Observation, x: int, y: int, lost: float
) -> tuple[str, ...]:
    true_x = x - asked.shift_x_px + shown.shift_x_px
    true_y = y - asked.shift_y_px + shown.shift_y_px
    return (asked.date, shown.date, f"{true_x:.3f}", f"{true_y:.3f}", f"{lost:.3f}", scene.country)
