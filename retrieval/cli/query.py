"""`retrieve query` and `retrieve score`: patches to a submission, a submission to scores."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retrieval.cli.app import command, elapsed_s, import_tensorflow, print_result
from retrieval.cli.console import ConsoleProgress
from retrieval.cli.options import (
    INDEX,
    ONE_SOURCE,
    SUBMISSION,
    AsJson,
    Bands,
    ConfigFile,
    DeviceOption,
    ExecutorOption,
    Memory,
    Overwrite,
    PatchesArgument,
    Quiet,
    UnitsOption,
    Verbose,
    check_one,
    executor_of,
    split_names,
)
from retrieval.config import ChipConfig, RefineConfig, SearchConfig
from retrieval.config.settings import read_settings
from retrieval.errors import ConfigError
from tfrecords.challenge import ANSWERS, PATCHES

if TYPE_CHECKING:
    from retrieval.results.matches import Matches


@command(
    "query",
    "retrieve query",
    "retrieve query chips/ --index germany.index --index france.index",
    "retrieve query chips/ --details matches.parquet --min-confidence 0.9 --drop-unsure",
    context_settings=ONE_SOURCE,
)
def query(
    context: typer.Context,
    patches: PatchesArgument = PATCHES,
    index: Annotated[
        list[Path],
        typer.Option(
            "--index",
            "-i",
            help="Index folder that `retrieve index` wrote; repeatable: several with distinct image ids "
            "answer as one.",
        ),
    ] = [INDEX],  # noqa: B006 - typer copies it
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Submission to write: a CSV with one row per patch.")
    ] = SUBMISSION,
    details: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Also write all candidates of each patch: .parquet, .csv or .geojson."
        ),
    ] = None,
    save_windows: Annotated[
        Path | None,
        typer.Option(
            "--save-windows", metavar="DIR", help="Also save the matched window of each patch as a GeoTIFF."
        ),
    ] = None,
    between: Annotated[
        str | None,
        typer.Option(
            metavar="DATES", help="Search only images of these dates: 2019-01/2021-12 or 2019-06-15/.."
        ),
    ] = None,
    within: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Search only inside the polygons of a GeoJSON file."),
    ] = None,
    min_confidence: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Mark matches with a lower confidence as unsure in the details."),
    ] = None,
    drop_unsure: Annotated[
        bool, typer.Option("--drop-unsure", help="Leave unsure matches out of the submission.")
    ] = False,
    budget: Annotated[
        str,
        typer.Option(
            metavar="SECONDS",
            help="Time for uncertain patches, those with the most to gain first; auto allows for a minute to "
            "ten, by their share.",
        ),
    ] = "auto",
    exhaustive: Annotated[
        bool,
        typer.Option("--exhaustive", help="Compare all uncertain patches with every place, however long."),
    ] = False,
    encoder: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="Refuse an index that was built with another encoder."),
    ] = None,
    bands: Bands = None,
    units: UnitsOption = None,
    device: DeviceOption = "auto",
    executor: ExecutorOption = None,
    memory: Memory = None,
    config: ConfigFile = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Locate patches in an index and write a submission: image, x and y of each patch.

    A chip larger than 64 x 64 pixels is located as a whole. For patches from files, patches.csv next to the
    submission lists the file of each number.
    """
    check_one(context)
    names = split_names(bands)
    if drop_unsure and min_confidence is None:
        raise typer.BadParameter("--drop-unsure needs --min-confidence, the limit of unsure matches.")
    settings = read_settings(config)
    kinds = {"search": SearchConfig, "refinement": RefineConfig, "chips": ChipConfig}
    configs: dict[str, Any] = {name: settings.make(kind) for name, kind in kinds.items()}
    configs["search"] = _search_settings(configs["search"], budget, exhaustive)
    import_tensorflow()
    from retrieval.distributed.shards import open_folder
    from retrieval.geo.filters import read_filter
    from retrieval.matching.session import open_index_and_queries
    from retrieval.models.calibration import CHIP_TERMS, TERMS, calibration_of
    from retrieval.models.encoder import load_encoder
    from retrieval.pipeline import Index, locate
    from retrieval.results.matches import check_confidence_limit, warn_not_found
    from retrieval.results.outputs import QueryOutputs
    from tfrecords.schema import Chips

    start = time.monotonic()
    outputs = QueryOutputs(out, details, save_windows, overwrite)
    with ConsoleProgress(quiet, verbose=verbose) as console:
        console.note(settings.note(*kinds.values()))
        console.detail("; ".join(f"{name}: {values.to_dict()}" for name, values in configs.items()))
        expected = load_encoder(encoder) if encoder else None
        folder, queries = open_index_and_queries(
            index,
            patches,
            open_folder=open_folder,
            encoder=expected,
            bands=names,
            units=units,
            device=device,
        )
        outputs.check(queries)
        terms = CHIP_TERMS if isinstance(queries, Chips) else TERMS
        check_confidence_limit(min_confidence, folder, calibration_of(folder.encoder, terms).is_fitted)
        search_filter = read_filter(folder.images, between, within)
        images = search_filter.images if search_filter else folder.images
        console.note(queries.note)
        console.note(search_filter.note if search_filter else "")
        if details and details.suffix.lower() != ".csv" and not any(image.crs for image in images.values()):
            console.note(f"{details} holds pixel positions and no footprints: no image has a CRS")
        with executor_of(executor, memory, console) as runner:
            configs |= {"executor": runner, "progress": console}
            matches = locate(Index(folder, device), queries, search_filter=search_filter, **configs)
        outputs.write(matches, min_confidence, drop_unsure, console)
        warn_not_found(matches)
        console.note(_uncertain_note(matches))
        console.note(_clipped_note(matches))
    paths = {"patch_table": outputs.patch_table(queries), "details": details, "windows": save_windows}
    result: dict[str, Any] = {"submission": str(out)}
    result |= {name: str(path) if path else None for name, path in paths.items()}
    result |= {"patches": len(queries), "images": len(images)} | _status_counts(matches)
    result |= _confidence_summary(matches, min_confidence, drop_unsure)
    template = "{submission}: {patches} patches, confidence not calibrated"
    if result["mean_confidence"] is not None:
        template = "{submission}: {patches} patches, mean confidence {mean_confidence:.2f}"
    if result["not_found"]:
        template += "; {not_found} not found"
    if min_confidence is not None:
        template += "; {unsure} unsure, below {min_confidence:g}" + (", left out" if drop_unsure else "")
    print_result(as_json, result | {"seconds": elapsed_s(start)}, template)


def _search_settings(search: SearchConfig, budget: str, exhaustive: bool) -> SearchConfig:
    """Return settings with the flags.

    Raises:
        typer.BadParameter: the budget is no number of seconds.
    """
    if exhaustive:
        search = replace(search, exhaustive=True)
    if budget == "auto":
        return search
    try:
        return replace(search, budget_s=float(budget))
    except (ValueError, ConfigError):
        raise typer.BadParameter(f"--budget is {budget!r}. Expected auto or seconds from 0 on.") from None


def _uncertain_note(matches: Matches) -> str:
    """Return a note with the searches of uncertain patches; empty without any."""
    counts = matches.searched.counts if matches.searched else {}
    names = {
        "everywhere": "compared with every place",
        "in_parts": "searched in the index of parts",
        "left_out": "left out by the budget",
    }
    found = [f"{counts[name]} {text}" for name, text in names.items() if counts.get(name)]
    return f"{sum(counts.values())} uncertain patches: {', '.join(found)}" if found else ""


def _clipped_note(matches: Matches) -> str:
    """Return a note where the submission, which has no negative numbers, cannot hold a position."""
    _, x, y = matches.best()
    count = int(((x < 0) | (y < 0)).sum())
    if not count:
        return ""
    return f"{count} chips begin outside their image: the submission has 0 there, --details the true position"


def _status_counts(matches: Matches) -> dict[str, Any]:
    """Return the number of patches of each status, of uncertain ones, and the ids of those not found."""
    status = matches.status
    counts: dict[str, Any] = {
        name: int((status == name).sum()) for name in ("found", "partly_searched", "not_found")
    }
    counts |= {"uncertain": matches.searched.counts if matches.searched else None}
    return counts | {"not_found_ids": matches.patch_ids[status == "not_found"].tolist()}


def _confidence_summary(matches: Matches, min_confidence: float | None, drop_unsure: bool) -> dict[str, Any]:
    unsure = int(matches.unsure(min_confidence).sum())
    return {
        "mean_confidence": round(float(matches.confidence.mean()), 4) if matches.calibrated.all() else None,
        "min_confidence": min_confidence,
        "unsure": None if min_confidence is None else unsure,
        "dropped": unsure if drop_unsure else 0,
    }


@command("score", "retrieve score", "retrieve score submission.csv answers.csv --json")
def score(
    submission: Annotated[
        Path, typer.Argument(metavar="SUBMISSION", help="Submission of `retrieve query`.")
    ] = SUBMISSION,
    answers: Annotated[Path, typer.Argument(metavar="ANSWERS", help="True positions.")] = Path(ANSWERS),
    as_json: AsJson = False,
) -> None:
    """Score a submission: SC_img, SC_loc, SC and the shares within 1, 2, 5 and 10 px.

    Each figure has a 95 % interval. A patch without a row counts as wrong and prints a warning.
    """
    from retrieval.pipeline import evaluate

    result = evaluate(submission, answers)
    typer.echo(json.dumps(result.to_dict()) if as_json else result.table())
