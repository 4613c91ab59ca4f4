"""Cuts of places -> a challenge: one date as images, patches of the others, and the answers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.ingest.ground import OpenDates
from retrieval.ingest.survey import Cut, Survey
from tfrecords.challenge import ChallengeReport, Progress, Target, write_challenge
from tfrecords.errors import BandsError, GridError
from tfrecords.grid import PATCH_PX, pixel_to_map, valid_share
from tfrecords.schema import Image, Patches, Units, is_nodata, to_scaled

PATCH_NODATA = 0.02
"""A patch has less nodata than this share, on its own date and on the image's."""

COLUMNS = ("place", "date", "image_date", "image_x0", "image_y0")
"""What truth.csv says of a patch: where the image begins on the place's grid, too."""


@dataclass(frozen=True, eq=False)
class _Draw:
    """The patches that were drawn for one image."""

    seen: Survey
    cut: Cut
    image_id: int
    first_id: int
    dates: NDArray[np.int64]
    xy: NDArray[np.int32]


@dataclass(frozen=True)
class _Form:
    """What all pixels of the challenge are stored as: records of one file must be alike."""

    bands: tuple[str, ...]
    units: Units
    nodata: float | None
    as_found: bool

    def store(self, seen: Survey, pixels: NDArray[Any]) -> NDArray[Any]:
        """Bring a place's pixels to the form."""
        pixels = pixels[..., [seen.bands.index(name) for name in self.bands]]
        if self.as_found:
            return pixels
        return np.nan_to_num(to_scaled(pixels, seen.units, seen.nodata), nan=-1.0)


def write_as_challenge(
    work: Sequence[tuple[Survey, Cut]],
    out: str | os.PathLike[str],
    config: Mapping[str, Any],
    *,
    patches_per_image: int,
    seed: int,
    overwrite: bool,
    progress: Progress | None,
) -> ChallengeReport:
    """Write a challenge, one image for each cut in which a patch can be placed.

    Args:
        work: The cuts; each one's latest date is the image.
        out: Folder to write.
        config: All that decides the result.
        patches_per_image: At most so many patches of each image.
        seed: Decides where they are cut, and of which date.
        overwrite: Replace a finished challenge.
        progress: Told how many images are written.

    Returns:
        What was written.

    Raises:
        BandsError: Places have different bands.
        GridError: No patch can be placed: nodata is everywhere.
        OutputExistsError: Something is there, and `overwrite` is not given.
        UnfinishedOutputError: A stopped run of another configuration is in the way.
        DiskFullError: The disk is full.
    """
    form = _common_form([seen for seen, _ in work])
    draws = _draw_all(work, patches_per_image, seed)
    if not draws:
        raise GridError(
            f"{out}: no window of {PATCH_PX} px has less than {PATCH_NODATA:.0%} nodata on two dates of a "
            "place; expected ground that was seen twice: check the nodata tags of the files"
        )
    largest = max(cut.height * cut.width for _, cut in work) + patches_per_image * PATCH_PX**2
    report = write_challenge(
        out,
        lambda first, last: _targets(draws[first:last], form),
        len(draws),
        config=config,
        columns=COLUMNS,
        image_bytes=largest * len(form.bands) * 8,
        overwrite=overwrite,
        progress=progress,
    )
    left = len(work) - len(draws)
    notes = [f"{left} squares were left out: no patch of them has ground on two dates"] if left else []
    if not form.as_found:
        notes.append("places have pixels of different kinds: all are stored scaled to [-1, 1]")
    return ChallengeReport(report.path, report.images, report.patches, tuple(notes))


def _common_form(places: Sequence[Survey]) -> _Form:
    first = places[0]
    for seen in places:
        if set(seen.bands) != set(first.bands):
            raise BandsError(
                f"{seen.place.name} has the bands {' '.join(seen.bands)}, {first.place.name} "
                f"{' '.join(first.bands)}; expected the same in all places of a challenge: ingest them into "
                "challenges of their own, or as series"
            )
    kinds = {(seen.units, seen.dtype.str, repr(seen.nodata)) for seen in places}
    if len(kinds) == 1:
        return _Form(first.bands, first.units, first.nodata, True)
    return _Form(first.bands, "scaled", -1.0, False)


def _draw_all(work: Sequence[tuple[Survey, Cut]], count: int, seed: int) -> list[_Draw]:
    """Draw the patches of all cuts; those without any are left out, and numbers given to the rest."""
    draws: list[_Draw] = []
    patches = 0
    by_place: dict[int, list[Cut]] = {}
    for seen, cut in work:
        by_place.setdefault(id(seen), []).append(cut)
    for number, (seen, cut) in enumerate(work):
        siblings = [other for other in by_place[id(seen)] if other is not cut]
        rng = np.random.default_rng([seed, 23, number])
        with seen.opened() as dates:
            chosen, xy = _draw(seen, dates, cut, siblings, count, rng)
        if len(xy):
            draws.append(_Draw(seen, cut, len(draws), patches, chosen, xy))
            patches += len(xy)
    return draws


def _draw(
    seen: Survey, dates: OpenDates, cut: Cut, siblings: Sequence[Cut], count: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Dates and top-left pixels (x, y in the cut) of up to `count` patches, none twice."""
    free = _valid(seen, dates, cut.dates[-1], cut) & ~_in_siblings(cut, siblings)
    open_by_date = {date: np.flatnonzero(free & _valid(seen, dates, date, cut)) for date in cut.dates[:-1]}
    usable = [date for date, spots in open_by_date.items() if len(spots)]
    chosen, xy = [], []
    wanted = np.bincount(rng.integers(len(usable), size=count), minlength=len(usable)) if usable else ()
    for date, number in zip(usable, wanted, strict=True):
        spots = open_by_date[date]
        flat = rng.choice(spots, min(int(number), len(spots)), replace=False)
        y, x = np.unravel_index(flat, free.shape)
        chosen += [date] * len(flat)
        xy += list(zip(x.tolist(), y.tolist(), strict=True))
    return np.array(chosen, np.int64), np.array(xy, np.int32).reshape(-1, 2)


def _valid(seen: Survey, dates: OpenDates, number: int, cut: Cut) -> NDArray[np.bool_]:
    """Windows that have enough ground on a date, (rows, cols)."""
    gone = is_nodata(seen.read(dates, number, cut), seen.nodata)
    return valid_share(~gone, PATCH_PX, 1) > 1 - PATCH_NODATA


def _in_siblings(cut: Cut, siblings: Sequence[Cut]) -> NDArray[np.bool_]:
    """Windows that lie in another square of the place, too: two images would be right answers."""
    y = cut.y0 + np.arange(cut.height - PATCH_PX + 1)
    x = cut.x0 + np.arange(cut.width - PATCH_PX + 1)
    inside = np.zeros((len(y), len(x)), bool)
    for other in siblings:
        rows = (y >= other.y0) & (y + PATCH_PX <= other.y0 + other.height)
        cols = (x >= other.x0) & (x + PATCH_PX <= other.x0 + other.width)
        inside |= rows[:, None] & cols[None]
    return inside


def _targets(draws: Sequence[_Draw], form: _Form) -> Iterator[Target]:
    for draw in draws:
        with draw.seen.opened() as dates:
            yield _target(draw, form, dates)


def _target(draw: _Draw, form: _Form, dates: OpenDates) -> Target:
    """Read one image and its patches."""
    seen, cut = draw.seen, draw.cut
    shown = cut.dates[-1]
    date = seen.place.files[shown].date
    image = Image(
        draw.image_id,
        form.store(seen, seen.read(dates, shown, cut)),
        form.units,
        form.bands,
        form.nodata,
        path=seen.rasters[shown].path.as_posix(),
        crs=seen.rasters[0].crs,
        transform=_moved(seen.rasters[0].transform, cut),
        date=date if len(date) == 10 else None,
    )
    pixels = np.zeros((len(draw.xy), PATCH_PX, PATCH_PX, len(form.bands)), image.pixels.dtype)
    for number in np.unique(draw.dates):
        whole = form.store(seen, seen.read(dates, int(number), cut))
        for row in np.flatnonzero(draw.dates == number):
            x, y = draw.xy[row]
            pixels[row] = whole[y : y + PATCH_PX, x : x + PATCH_PX]
    ids = np.arange(draw.first_id, draw.first_id + len(draw.xy), dtype=np.int64)
    names = [seen.place.files[number].date for number in draw.dates]
    truth = [(seen.place.name, name, date, str(cut.x0), str(cut.y0)) for name in names]
    return Target(image, Patches(ids, pixels, form.units, form.bands, form.nodata), draw.xy, truth)


def _moved(
    transform: tuple[float, float, float, float, float, float] | None, cut: Cut
) -> tuple[float, float, float, float, float, float] | None:
    """The transform of a cut."""
    if transform is None:
        return None
    a, b, _, d, e, _ = transform
    left, top = pixel_to_map(transform, cut.x0, cut.y0)
    return a, b, float(left), d, e, float(top)
