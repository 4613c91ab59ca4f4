"""From images to places or records: training series, or a challenge with its answers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from retrieval.errors import ConfigError
from retrieval.geo.request import ImageFilter
from retrieval.ingest.challenge import write_as_challenge
from retrieval.ingest.grids import overlapping, quiet_gdal
from retrieval.ingest.places import Place, find_places
from retrieval.ingest.places_writer import join_names
from retrieval.ingest.retry import RetryPolicy
from retrieval.ingest.series import SHARD_BYTES, write_as_series
from retrieval.ingest.sources import is_plain_folder, keep_only, temporary_places, write_places
from retrieval.ingest.survey import Cut, Survey, plan_cuts, survey
from retrieval.kernels.executors import SerialExecutor, stream_map
from retrieval.types import Executor, Progress, silent
from tfrecords.artifacts import check_free, fingerprint
from tfrecords.errors import MissingInputError
from tfrecords.grid import PATCH_PX
from tfrecords.read import scaling_note
from tfrecords.read.rasters import RESOLUTION_M
from tfrecords.write import SERIES_PER_SHARD


@dataclass(frozen=True)
class IngestReport:
    """What was read and written."""

    path: Path
    """The output folder."""
    places: int
    """Number of places that gave something."""
    records: int
    """Number of series or images; of places, the number of dates."""
    patches: int
    """Number of patches; 0 except for a challenge."""
    notes: tuple[str, ...]
    """Inferred bands and units, and skipped inputs with the reason; one sentence each."""


@dataclass(frozen=True)
class _RecordOptions:
    """How records are made from places; see `ingest`."""

    as_: Literal["series", "challenge"]
    size_px: int
    bands: Sequence[str] | None
    units: str | None
    max_nodata: float
    patches_per_image: int
    seed: int
    series_per_shard: int
    overwrite: bool
    executor: Executor | None
    progress: Progress


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
    series_per_shard: int = SERIES_PER_SHARD,
    retry: RetryPolicy | None = None,
    overwrite: bool = False,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> IngestReport:
    """Turn Sentinel-2 products or GeoTIFFs into places or records.

    A folder that directly holds GeoTIFFs is a place, at any depth; each of its files is a date, read from its
    name. Dates on other grids are warped onto the first date's grid. Of products, each tile is a place.
    Records of products, or of a part of GeoTIFFs, are made by way of `<out>.places`, a temporary folder.

    Args:
        source: a folder of GeoTIFFs; a Sentinel-2 product, its zip, or a folder of products. Or the address
            or path of a GeoTIFF, or a `.txt` file with one per line.
        out: folder to write.
        as_: "series": shards of training series. "challenge": the latest date of each place as images,
            patches of the other dates at seeded random pixels, and the answers. "images":
            `<place>/<date>.tif`, itself a source; later runs add dates.
        image_filter: which dates, which cloud cover, which part of the ground; None = all.
        size_px: places larger than this are cut into squares of this side, at least 64.
        bands: names of the bands in their order, for all files; None = from the files' descriptions, else
            from the number of bands.
        units: "dn", "reflectance", "scaled" or "byte", for all files; None = inferred for each place from
            dtype and range.
        max_nodata: a date is left out of a square in which its share of nodata is larger, 0 to 1.
        patches_per_image: largest number of patches from each image of a challenge, 1 or more.
        seed: decides where patches are cut, 0 or more.
        series_per_shard: largest number of series per shard, 1 or more.
        retry: how often a read from the web is tried; None = four times.
        overwrite: replace a finished output.
        executor: reads the dates and cuts of places; None for this thread.
        progress: called with the stage, the number of blocks read or squares written, and of all.

    Returns:
        The report, with notes on inferred units and bands and on skipped inputs.

    Raises:
        ConfigError: an option is out of range.
        MissingInputError: no folder, no GeoTIFF, no date in a name, a date twice, or no place with two dates.
        ProductError: the product that was named cannot be used.
        RemoteError: the address that was named cannot be read.
        BandsError: bands cannot be named or are not shared; for a challenge, places have different bands.
        UnitsError: units cannot be inferred, or differ between the dates of a place.
        GridError: dates do not overlap or lack a georeference, or no place is as large as a patch.
        ArrayError: a file is damaged, or holds NaN or infinity that is not its nodata.
        OutputExistsError: the output exists, and `overwrite` is false.
        UnfinishedOutputError: an interrupted run with other settings left its output.
        DiskFullError: the disk is full.
    """
    _check_options(as_, size_px, max_nodata, patches_per_image, seed, series_per_shard)
    image_filter = image_filter or ImageFilter()
    out = Path(out)
    fetch = partial(
        write_places,
        retry=retry,
        overwrite=overwrite,
        executor=executor,
        progress=partial(progress, "reading blocks"),
    )
    if as_ == "images":
        written = fetch(source, out, image_filter, bands)
        return IngestReport(out, written.places, len(written.paths), 0, written.notes)
    check_free(out, overwrite=overwrite, folder=True)
    options = _RecordOptions(
        as_,
        size_px,
        bands,
        units,
        max_nodata,
        patches_per_image,
        seed,
        series_per_shard,
        overwrite,
        executor,
        progress,
    )
    if is_plain_folder(source) and image_filter.takes_all:
        return _write_records(Path(source), out, options)
    with temporary_places(out) as work:
        written = fetch(source, work, image_filter, bands)
        keep_only(work, written.paths)
        report = _write_records(work, out, replace(options, bands=None))
    return replace(report, notes=(*written.notes, *report.notes))


def _check_options(
    as_: str, size_px: int, max_nodata: float, patches_per_image: int, seed: int, series_per_shard: int
) -> None:
    checks = (
        ("--as", as_, as_ in ("series", "challenge", "images"), "series, challenge or images"),
        ("--size", size_px, size_px >= PATCH_PX, f"at least {PATCH_PX} px"),
        ("--max-nodata", max_nodata, 0 <= max_nodata <= 1, "0 to 1"),
        ("--patches-per-image", patches_per_image, patches_per_image >= 1, "1 or more"),
        ("--seed", seed, seed >= 0, "0 or more"),
        ("series_per_shard", series_per_shard, series_per_shard >= 1, "1 or more"),
    )
    for name, value, valid, expected in checks:
        if not valid:
            raise ConfigError(f"{name} {value}: out of range. Expected {expected}")


def _write_records(source: Path, out: Path, options: _RecordOptions) -> IngestReport:
    """Write the records of a folder of places."""
    places = find_places(source)
    with quiet_gdal():
        plan = _plan(places, options)
        config = {
            "size_px": options.size_px,
            "bands": list(options.bands or ()),
            "units": options.units,
            "max_nodata": options.max_nodata,
            "inputs": _fingerprint_of_files(source, places),
        }
        groups = _overlap_groups(plan.surveys, plan.notes)
        if options.as_ == "series":
            count = write_as_series(
                plan.work,
                groups,
                out,
                config,
                series_per_shard=options.series_per_shard,
                shard_bytes=SHARD_BYTES,
                overwrite=options.overwrite,
                executor=options.executor,
                progress=partial(options.progress, "writing series"),
            )
            return IngestReport(out, len(plan.surveys), count, 0, tuple(plan.notes))
        report = write_as_challenge(
            plan.work,
            out,
            {**config, "patches_per_image": options.patches_per_image, "seed": options.seed},
            patches_per_image=options.patches_per_image,
            seed=options.seed,
            overwrite=options.overwrite,
            executor=options.executor,
            progress=partial(options.progress, "writing images"),
        )
    notes = (*plan.notes, *report.notes)
    return IngestReport(out, len(plan.surveys), report.images, report.patches, notes)


@dataclass(frozen=True)
class _Plan:
    """The places that give records, and how they are cut."""

    surveys: list[Survey] = field(default_factory=list)
    work: list[tuple[Survey, Cut]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SurveyTask:
    """A place to survey and cut; it can be pickled."""

    place: Place
    """The place."""
    bands: Sequence[str] | None
    """Names of the bands, if stated."""
    units: str | None
    """Units, if stated."""
    size_px: int
    """Side of the squares."""
    max_nodata: float
    """Largest share of nodata of a date in a square."""


def survey_task(task: SurveyTask) -> tuple[Survey | None, list[Cut], str]:
    """Return what a place holds and its cuts, or why it gives nothing."""
    if len(task.place.files) < 2:
        return None, [], "have one date only"
    with quiet_gdal():
        surveyed = survey(task.place, task.bands, task.units)
        if min(surveyed.rasters[0].height, surveyed.rasters[0].width) < PATCH_PX:
            return None, [], f"are smaller than {PATCH_PX} x {PATCH_PX} px"
        cuts = plan_cuts(surveyed, task.size_px, task.max_nodata)
    return surveyed, cuts, "" if cuts else "have no ground seen on two dates"


def _plan(places: Sequence[Place], options: _RecordOptions) -> _Plan:
    """Survey all places and cut them; a place that gives nothing is skipped, with a note."""
    plan = _Plan(notes=[note for place in places for note in place.notes])
    skipped: dict[str, list[str]] = {}
    limits = options.bands, options.units, options.size_px, options.max_nodata
    tasks = [SurveyTask(place, *limits) for place in places]
    outcomes = stream_map(options.executor or SerialExecutor(), survey_task, tasks)
    for place, (surveyed, cuts, why) in zip(places, outcomes, strict=True):
        if surveyed is None or why:
            skipped.setdefault(why, []).append(place.name)
            continue
        plan.surveys.append(surveyed)
        plan.work.extend((surveyed, cut) for cut in cuts)
    reasons = [f"{len(names)} places {why}: {join_names(names)}" for why, names in skipped.items()]
    if not plan.surveys:
        raise MissingInputError(
            f"nothing to write: {'; '.join(reasons)}. Expected a place with two dates and {PATCH_PX} px each "
            "way"
        )
    plan.notes.extend(f"skipped: {reason}" for reason in reasons)
    plan.notes.extend(_describe(plan.surveys))
    return plan


def _describe(surveys: Sequence[Survey]) -> list[str]:
    """Say which units and bands were inferred, which places were warped, and which pixels are not 10 m."""
    kinds: dict[str, list[Survey]] = {}
    for place in surveys:
        guess = "" if place.units_are_certain else " (a guess from the range; --units overrides it)"
        kinds.setdefault(f"{place.units}{guess}, {' '.join(place.bands)}", []).append(place)
    notes = [
        f"{sum(len(place.rasters) for place in members)} files of {len(members)} places: {kind} "
        f"({join_names(_names(members))})"
        for kind, members in kinds.items()
    ]
    scaled = scaling_note([raster for place in surveys for raster in place.rasters])
    if scaled:
        notes.append(scaled.removeprefix("; "))
    warped = _names([place for place in surveys if any(place.warped)])
    if warped:
        notes.append(
            f"{len(warped)} places have dates on other grids, warped to the first: {join_names(warped)}"
        )
    coarse = _names([place for place in surveys if not _is_10_m(place)])
    if coarse:
        notes.append(f"{len(coarse)} places have pixels of another size than 10 m: {join_names(coarse)}")
    return notes


def _is_10_m(place: Survey) -> bool:
    return abs((place.rasters[0].resolution_m or RESOLUTION_M) / RESOLUTION_M - 1) <= 0.05


def _names(surveys: Sequence[Survey]) -> list[str]:
    return [place.place.name for place in surveys]


def _overlap_groups(surveys: Sequence[Survey], notes: list[str]) -> dict[str, str]:
    """Return for each place the name of the first place of its group; a group shares ground."""
    names = _names(surveys)
    firsts = [names[first] for first in overlapping([place.rasters[0] for place in surveys])]
    for first in sorted(set(firsts)):
        members = [name for name, other in zip(names, firsts, strict=True) if other == first]
        if len(members) > 1:
            notes.append(f"{join_names(members)} overlap on the ground: never negatives of each other")
    return dict(zip(names, firsts, strict=True))


def _fingerprint_of_files(root: Path, places: Sequence[Place]) -> str:
    """Return the fingerprint of the input: names, sizes and modification times of its files."""
    stats = [(path, path.stat()) for place in places for file in place.files for path in file.files]
    return fingerprint(
        {path.relative_to(root).as_posix(): [stat.st_size, stat.st_mtime_ns] for path, stat in stats}
    )
