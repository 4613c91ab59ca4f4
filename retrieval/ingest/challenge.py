"""Cuts of places to a challenge: one date as images, patches of the other dates, and the answers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.ingest.grids import OpenDates, quiet_gdal
from retrieval.ingest.survey import Cut, Survey
from retrieval.kernels.executors import SerialExecutor, stream_map
from retrieval.types import Executor
from tfrecords.challenge import ChallengeReport, Progress, Target, write_challenge
from tfrecords.errors import BandsError, GridError
from tfrecords.grid import PATCH_PX, pixel_to_map, valid_share
from tfrecords.schema import Image, Patches, Units, is_nodata, to_scaled

PATCH_NODATA = 0.02
"""A patch has a smaller share of nodata than this, on its date and on the image's date."""

COLUMNS = ("place", "date", "image_date", "image_x0", "image_y0")
"""Columns of truth.csv for a patch; x0 and y0 are the first pixel of the image on the place's grid."""


@dataclass(frozen=True, eq=False)
class _Draw:
    """The patches drawn for one image."""

    survey: Survey
    cut: Cut
    image_id: int
    first_id: int
    dates: NDArray[np.int64]
    xy: NDArray[np.int32]


@dataclass(frozen=True)
class _Form:
    """Bands, units and nodata of all pixels of the challenge: records of one file are alike."""

    bands: tuple[str, ...]
    units: Units
    nodata: float | None
    unchanged: bool

    def store(self, survey: Survey, pixels: NDArray[Any]) -> NDArray[Any]:
        """Convert a place's pixels."""
        pixels = pixels[..., [survey.bands.index(name) for name in self.bands]]
        if self.unchanged:
            return pixels
        return np.nan_to_num(to_scaled(pixels, survey.units, survey.nodata), nan=-1.0)


def write_as_challenge(
    work: Sequence[tuple[Survey, Cut]],
    out: str | os.PathLike[str],
    config: Mapping[str, Any],
    *,
    patches_per_image: int,
    seed: int,
    overwrite: bool,
    executor: Executor | None = None,
    progress: Progress | None,
) -> ChallengeReport:
    """Write a challenge, one image for each cut in which a patch can be placed.

    Args:
        work: the cuts; the latest date of each is the image.
        out: folder to write.
        config: all that decides the result.
        patches_per_image: largest number of patches per image.
        seed: decides where patches are cut, and from which date.
        overwrite: replace a finished challenge.
        executor: draws patches and reads images; None for this thread.
        progress: called with the number of images written, and of all images.

    Returns:
        The report.

    Raises:
        BandsError: places have different bands.
        GridError: no patch fits, because of nodata.
        OutputExistsError: the folder exists, and `overwrite` is false.
        UnfinishedOutputError: an interrupted run with another config left its output.
        DiskFullError: the disk is full.
    """
    form = _common_form([survey for survey, _ in work])
    executor = executor or SerialExecutor()
    draws = _draw_all(work, patches_per_image, seed, executor)
    if not draws:
        raise GridError(
            f"{out}: no window of {PATCH_PX} px has less than {PATCH_NODATA:.0%} nodata on two dates of a "
            "place. Check the nodata tags of the files"
        )
    largest = max(cut.height * cut.width for _, cut in work) + patches_per_image * PATCH_PX**2
    report = write_challenge(
        out,
        lambda first, last: stream_map(executor, target_task, [(draw, form) for draw in draws[first:last]]),
        len(draws),
        config=config,
        columns=COLUMNS,
        image_bytes=largest * len(form.bands) * 8,
        overwrite=overwrite,
        progress=progress,
    )
    skipped = len(work) - len(draws)
    notes = [f"skipped: {skipped} squares, no patch in them shows ground on two dates"] if skipped else []
    if not form.unchanged:
        notes.append("places differ in units, dtype or nodata: all pixels are stored scaled to [-1, 1]")
    return ChallengeReport(report.path, report.images, report.patches, tuple(notes))


def _common_form(places: Sequence[Survey]) -> _Form:
    first = places[0]
    for survey in places:
        if set(survey.bands) != set(first.bands):
            raise BandsError(
                f"{survey.place.name} has the bands {' '.join(survey.bands)}, {first.place.name} "
                f"{' '.join(first.bands)}. Expected the same in all places of a challenge. Ingest them into "
                "separate challenges, or as series"
            )
    kinds = {(survey.units, survey.dtype.str, repr(survey.nodata)) for survey in places}
    if len(kinds) == 1:
        return _Form(first.bands, first.units, first.nodata, True)
    return _Form(first.bands, "scaled", -1.0, False)


@dataclass(frozen=True, eq=False)
class DrawTask:
    """A cut in which patches are drawn; it can be pickled."""

    survey: Survey
    """Its place."""
    cut: Cut
    """The rectangle."""
    siblings: tuple[Cut, ...]
    """The other cuts of the place."""
    count: int
    """Largest number of patches."""
    seed: tuple[int, ...]
    """Seed of the draw."""


def draw_task(task: DrawTask) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return dates and top-left pixels of the patches of a cut."""
    with quiet_gdal(), task.survey.open() as dates:
        rng = np.random.default_rng(task.seed)
        return _draw(task.survey, dates, task.cut, task.siblings, task.count, rng)


def _draw_all(work: Sequence[tuple[Survey, Cut]], count: int, seed: int, executor: Executor) -> list[_Draw]:
    """Draw the patches of all cuts, and number the images and patches; cuts without patches are skipped."""
    draws: list[_Draw] = []
    patches = 0
    by_place: dict[int, list[Cut]] = {}
    for survey, cut in work:
        by_place.setdefault(id(survey), []).append(cut)

    def tasks() -> Iterator[DrawTask]:
        for number, (survey, cut) in enumerate(work):
            siblings = tuple(other for other in by_place[id(survey)] if other is not cut)
            yield DrawTask(survey, cut, siblings, count, (seed, 23, number))

    for (survey, cut), (chosen, xy) in zip(work, stream_map(executor, draw_task, tasks()), strict=True):
        if len(xy):
            draws.append(_Draw(survey, cut, len(draws), patches, chosen, xy))
            patches += len(xy)
    return draws


def _draw(
    survey: Survey, dates: OpenDates, cut: Cut, siblings: Sequence[Cut], count: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return dates and top-left pixels (x, y in the cut) of up to `count` patches, none twice."""
    free = _valid(survey, dates, cut.dates[-1], cut) & ~_in_siblings(cut, siblings)
    open_by_date = {date: np.flatnonzero(free & _valid(survey, dates, date, cut)) for date in cut.dates[:-1]}
    usable = [date for date, positions in open_by_date.items() if len(positions)]
    chosen, xy = [], []
    counts = np.bincount(rng.integers(len(usable), size=count), minlength=len(usable)) if usable else ()
    for date, number in zip(usable, counts, strict=True):
        positions = open_by_date[date]
        flat = rng.choice(positions, min(int(number), len(positions)), replace=False)
        y, x = np.unravel_index(flat, free.shape)
        chosen += [date] * len(flat)
        xy += list(zip(x.tolist(), y.tolist(), strict=True))
    return np.array(chosen, np.int64), np.array(xy, np.int32).reshape(-1, 2)


def _valid(survey: Survey, dates: OpenDates, number: int, cut: Cut) -> NDArray[np.bool_]:
    """Return which windows have enough ground on a date, (rows, cols)."""
    empty = is_nodata(survey.read(dates, number, cut), survey.nodata)
    return valid_share(~empty, PATCH_PX, 1) > 1 - PATCH_NODATA


def _in_siblings(cut: Cut, siblings: Sequence[Cut]) -> NDArray[np.bool_]:
    """Return which windows also lie in another square of the place: two images would be right answers."""
    y = cut.y0 + np.arange(cut.height - PATCH_PX + 1)
    x = cut.x0 + np.arange(cut.width - PATCH_PX + 1)
    inside = np.zeros((len(y), len(x)), bool)
    for other in siblings:
        rows = (y >= other.y0) & (y + PATCH_PX <= other.y0 + other.height)
        cols = (x >= other.x0) & (x + PATCH_PX <= other.x0 + other.width)
        inside |= rows[:, None] & cols[None]
    return inside


def target_task(task: tuple[_Draw, _Form]) -> Target:
    """Read one image and its patches."""
    draw, form = task
    with quiet_gdal(), draw.survey.open() as dates:
        return _target(draw, form, dates)


def _target(draw: _Draw, form: _Form, dates: OpenDates) -> Target:
    """Read one image and its patches."""
    survey, cut = draw.survey, draw.cut
    latest = cut.dates[-1]
    date = survey.place.files[latest].date
    image = Image(
        draw.image_id,
        form.store(survey, survey.read(dates, latest, cut)),
        form.units,
        form.bands,
        form.nodata,
        path=survey.rasters[latest].path.as_posix(),
        crs=survey.rasters[0].crs,
        transform=_cut_transform(survey.rasters[0].transform, cut),
        date=date if len(date) == 10 else None,
    )
    pixels = np.zeros((len(draw.xy), PATCH_PX, PATCH_PX, len(form.bands)), image.pixels.dtype)
    for number in np.unique(draw.dates):
        whole = form.store(survey, survey.read(dates, int(number), cut))
        for row in np.flatnonzero(draw.dates == number):
            x, y = draw.xy[row]
            pixels[row] = whole[y : y + PATCH_PX, x : x + PATCH_PX]
    ids = np.arange(draw.first_id, draw.first_id + len(draw.xy), dtype=np.int64)
    names = [survey.place.files[number].date for number in draw.dates]
    truth = [(survey.place.name, name, date, str(cut.x0), str(cut.y0)) for name in names]
    return Target(image, Patches(ids, pixels, form.units, form.bands, form.nodata), draw.xy, truth)


def _cut_transform(
    transform: tuple[float, float, float, float, float, float] | None, cut: Cut
) -> tuple[float, float, float, float, float, float] | None:
    """Return the transform of a cut."""
    if transform is None:
        return None
    a, b, _, d, e, _ = transform
    left, top = pixel_to_map(transform, cut.x0, cut.y0)
    return a, b, float(left), d, e, float(top)
