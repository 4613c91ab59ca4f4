"""From images to places or records: series to train from, or a challenge with its answers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from retrieval.errors import ConfigError
from retrieval.geo.request import ImageFilter
from retrieval.ingest.challenge import write_as_challenge
from retrieval.ingest.fetch import fetch, is_plain_folder, keep_only, working_places
from retrieval.ingest.ground import overlapping, quiet_gdal
from retrieval.ingest.images import some
from retrieval.ingest.places import Place, find_places
from retrieval.ingest.retry import RetryPolicy
from retrieval.ingest.series import write_as_series
from retrieval.ingest.survey import Cut, Survey, plan_cuts, survey
from tfrecords.artifacts import check_free, fingerprint
from tfrecords.challenge import Progress
from tfrecords.errors import MissingInputError
from tfrecords.grid import PATCH_PX
from tfrecords.read.rasters import RESOLUTION_M


@dataclass(frozen=True)
class IngestReport:
    """What was read and written."""

    path: Path
    """The folder."""
    places: int
    """How many places gave something."""
    records: int
    """How many series, or how many images: of places, one for each date."""
    patches: int
    """How many patches; 0 but for a challenge."""
    notes: tuple[str, ...]
    """What bands and units were taken, what was left out and why; one sentence each."""


def ingest(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    as_: Literal["series", "challenge", "images"] = "series",
    image_filter: ImageFilter | None = None,
    size_px: int = 512,
    bands: Sequence[str] | None = None,
    units: str | None = None,
    max_nodata: float = 0.9,
    patches_per_image: int = 64,
    seed: int = 0,
    retry: RetryPolicy | None = None,
    overwrite: bool = False,
    reading: Progress | None = None,
    progress: Progress | None = None,
) -> IngestReport:
    """Turn Sentinel-2 products or GeoTIFFs into places or records.

    A folder that directly holds GeoTIFFs is a place, at any depth; each of its files is a date, told by its
    name. Dates on other grids are warped onto the first date's. Of products, each tile is a place. Records
    of products, or of a part of GeoTIFFs, are made by way of `<out>.places`, removed when they are done.

    Args:
        source: A folder of GeoTIFFs; a Sentinel-2 product, its zip, or a folder of some; a GeoTIFF's address
            or path, or a `.txt` file with one a line.
        out: Folder to write.
        as_: "series": shards of training series. "challenge": the latest date of each place as images,
            patches of the other dates at seeded random pixels, and the answers. "images":
            `<place>/<date>.tif`, which is a source itself; more dates may be added to it.
        image_filter: Which dates, how much cloud, which part of the ground; None = all.
        size_px: Places larger than this are cut into squares of this side, at least 64.
        bands: Names of the bands in their order, for all files; else the files' descriptions, else by count.
        units: "dn", "reflectance", "scaled" or "byte", for all files; else told for each place from its
            dtype and range.
        max_nodata: A date is left out of a square of which it has no data in more than this share, 0 to 1.
        patches_per_image: Patches from each image of a challenge, at most.
        seed: Decides where they are cut.
        retry: How often a read from the web is tried; None = four times.
        overwrite: Replace a finished output.
        reading: Told how many blocks of how many are read from products, or from parts of GeoTIFFs.
        progress: Told how many squares of how many are written.

    Returns:
        What was written, with notes on what was taken for what and left out.

    Raises:
        MissingInputError: No folder, no GeoTIFF, no date in a name, a date twice, or no place of two dates.
        ProductError: The product that was named can't be used.
        RemoteError: The address that was named can't be read.
        BandsError: Bands cannot be named or are not shared; for a challenge, places have different ones.
        UnitsError: Units cannot be told, or differ between the dates of a place.
        GridError: Dates do not overlap or lack a georeference; or nothing is as large as a patch.
        ArrayError: A file is damaged, or holds NaN or infinity that is not its nodata.
        OutputExistsError: Something is there, and `overwrite` is not given.
        UnfinishedOutputError: A stopped run of another configuration is in the way.
        DiskFullError: The disk is full.
    """
    _check(as_, size_px, max_nodata, patches_per_image, seed)
    image_filter = image_filter or ImageFilter()
    out = Path(out)
    if as_ == "images":
        got = fetch(source, out, image_filter, bands, retry=retry, overwrite=overwrite, progress=reading)
        return IngestReport(out, got.places, len(got.paths), 0, got.notes)
    check_free(out, overwrite=overwrite, folder=True)
    job = _Records(as_, size_px, bands, units, max_nodata, patches_per_image, seed)
    if is_plain_folder(source) and image_filter.takes_all:
        return _to_records(Path(source), out, job, overwrite, progress)
    with working_places(out) as work:
        got = fetch(source, work, image_filter, bands, retry=retry, overwrite=overwrite, progress=reading)
        keep_only(work, got.paths)
        report = _to_records(work, out, replace(job, bands=None), overwrite, progress)
    return replace(report, notes=(*got.notes, *report.notes))


@dataclass(frozen=True)
class _Records:
    """What records shall be made of places; see `ingest`."""

    as_: Literal["series", "challenge"]
    size_px: int
    bands: Sequence[str] | None
    units: str | None
    max_nodata: float
    patches_per_image: int
    seed: int


def _to_records(
    source: Path, out: Path, job: _Records, overwrite: bool, progress: Progress | None
) -> IngestReport:
    """Make records of a folder of places."""
    places = find_places(source)
    notes: list[str] = []
    with quiet_gdal():
        seen, cuts = _surveyed(places, job.bands, job.units, job.size_px, job.max_nodata, notes)
        work = [(one, cut) for one in seen for cut in cuts[one.place.name]]
        config = {
            "size_px": job.size_px,
            "bands": list(job.bands or ()),
            "units": job.units,
            "max_nodata": job.max_nodata,
            "inputs": _inputs(source, places),
        }
        groups = _groups(seen, notes)
        if job.as_ == "series":
            count = write_as_series(work, groups, out, config, overwrite=overwrite, progress=progress)
            return IngestReport(out, len(seen), count, 0, tuple(notes))
        report = write_as_challenge(
            work,
            out,
            {**config, "patches_per_image": job.patches_per_image, "seed": job.seed},
            patches_per_image=job.patches_per_image,
            seed=job.seed,
            overwrite=overwrite,
            progress=progress,
        )
    return IngestReport(out, len(seen), report.images, report.patches, (*notes, *report.notes))


def _check(as_: str, size_px: int, max_nodata: float, patches_per_image: int, seed: int) -> None:
    if as_ not in ("series", "challenge", "images"):
        raise ConfigError(f"--as {as_}: unknown output. Expected series, challenge or images")
    if size_px < PATCH_PX or not 0 <= max_nodata <= 1 or patches_per_image < 1 or seed < 0:
        raise ConfigError(
            f"size {size_px} px, max-nodata {max_nodata:g}, {patches_per_image} patches per image, seed "
            f"{seed}: out of range. Expected at least {PATCH_PX} px, 0 to 1, 1 or more, and 0 or more"
        )


def _surveyed(
    places: Sequence[Place],
    bands: Sequence[str] | None,
    units: str | None,
    size_px: int,
    max_nodata: float,
    notes: list[str],
) -> tuple[list[Survey], dict[str, list[Cut]]]:
    """Look at all places; those that give nothing are left out, which is noted."""
    seen: list[Survey] = []
    cuts: dict[str, list[Cut]] = {}
    left: dict[str, list[str]] = {}
    for place in places:
        if len(place.files) < 2:
            left.setdefault("have one date only", []).append(place.name)
            continue
        one = survey(place, bands, units)
        if min(one.rasters[0].height, one.rasters[0].width) < PATCH_PX:
            left.setdefault(f"are smaller than {PATCH_PX} x {PATCH_PX} px", []).append(place.name)
            continue
        cuts[place.name] = plan_cuts(one, size_px, max_nodata)
        if cuts[place.name]:
            seen.append(one)
        else:
            left.setdefault("have nowhere ground on two dates", []).append(place.name)
    told = [f"{len(names)} places {why} and were left out: {some(names)}" for why, names in left.items()]
    if not seen:
        raise MissingInputError(
            f"nothing to write: {'; '.join(told)}; expected a place of two dates and {PATCH_PX} px each way"
        )
    notes += [*told, *_taken(seen)]
    return seen, cuts


def _taken(seen: Sequence[Survey]) -> list[str]:
    """Say what files were taken for, which were guessed, warped, or have other pixels than of 10 m."""
    kinds: dict[str, list[Survey]] = {}
    for one in seen:
        guess = "" if one.sure else " (a guess from the range: --units says otherwise)"
        kinds.setdefault(f"{one.units}{guess}, {' '.join(one.bands)}", []).append(one)
    notes = [
        f"{sum(len(one.rasters) for one in those)} files of {len(those)} places: {kind} "
        f"({some(_names(those))})"
        for kind, those in kinds.items()
    ]
    moved = [one for one in seen if any(one.warped)]
    if moved:
        notes.append(
            f"{len(moved)} places have dates on other grids, warped to the first: {some(_names(moved))}"
        )
    coarse = [
        one for one in seen if abs((one.rasters[0].resolution_m or RESOLUTION_M) / RESOLUTION_M - 1) > 0.05
    ]
    if coarse:
        notes.append(f"{len(coarse)} places have pixels of another size than 10 m: {some(_names(coarse))}")
    return notes


def _names(seen: Sequence[Survey]) -> list[str]:
    return [one.place.name for one in seen]


def _groups(seen: Sequence[Survey], notes: list[str]) -> dict[str, str]:
    """For each place the name of the one that stands for all that share ground with it."""
    names = _names(seen)
    stands = [names[first] for first in overlapping([one.rasters[0] for one in seen])]
    for name in sorted(set(stands)):
        members = [own for own, other in zip(names, stands, strict=True) if other == name]
        if len(members) > 1:
            notes.append(f"{some(members)} overlap on the ground: none will be a negative of another")
    return dict(zip(names, stands, strict=True))


def _inputs(root: Path, places: Sequence[Place]) -> str:
    """Fingerprint of the input: names, sizes and times of its files."""
    stats = [(one.path, one.path.stat()) for place in places for one in place.files]
    return fingerprint(
        {path.relative_to(root).as_posix(): [stat.st_size, stat.st_mtime_ns] for path, stat in stats}
    )
