"""The three commands of the job: index, query, score. Each parses, makes one call and prints."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retrieval.cli.app import app, import_tensorflow, since, tell
from retrieval.cli.change import check_change, tell_change, told_recall
from retrieval.cli.options import (
    INDEX,
    ONE_SOURCE,
    SUBMISSION,
    AsJson,
    Bands,
    ConfigFile,
    DeviceOption,
    Encoder,
    ImagesArgument,
    IndexFolder,
    Overwrite,
    PatchesArgument,
    Quiet,
    UnitsOption,
    Verbose,
    check_one,
    examples,
    split_names,
)
from retrieval.cli.talk import Talk
from retrieval.config import PATCH_PX, ChipConfig, IndexConfig, IndexKind, RefineConfig, SearchConfig
from retrieval.config.settings import read_settings
from tfrecords.challenge import ANSWERS, IMAGES, PATCHES

if TYPE_CHECKING:
    from retrieval.geo.filters import SearchFilter
    from retrieval.results.matches import Matches
    from retrieval.types import StoredImage
    from tfrecords.read import ImageSource
    from tfrecords.schema import Chips, Patches


@app.command(
    short_help="Images to an index",
    context_settings=ONE_SOURCE,
    epilog=examples(
        "retrieve index scenes/ --bands B04,B03,B02 --out scenes.index",
        "retrieve index new-scenes/ --out scenes.index --add",
    ),
)
def index(
    context: typer.Context,
    images: ImagesArgument = IMAGES,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")] = INDEX,
    encoder: Encoder = None,
    add: Annotated[
        bool, typer.Option("--add", help="Put IMAGES into the index in --out; only they are embedded.")
    ] = False,
    remove: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID|NAME", help="Take the image of this id or file out of --out; may be repeated."
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=PATCH_PX,
            show_default=str(IndexConfig.stride_px),
            help="Pixels between indexed windows.",
        ),
    ] = None,
    kind: Annotated[
        IndexKind | None,
        typer.Option(
            show_default=IndexConfig.kind,
            help="exact compares with all windows, fast with short codes of them first, ivf with those of "
            "the likely cells; auto goes by number.",
        ),
    ] = None,
    bands: Bands = None,
    units: UnitsOption = None,
    device: DeviceOption = "auto",
    config: ConfigFile = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Embed the windows of images and write an index folder, which is all that a query needs.

    A run that was stopped goes on where it was. With --add or --remove a finished index gets images or loses
    some, and stays as it was until all is done.
    """
    check_one(context)
    check_change(context, add, remove or [])
    names = split_names(bands)
    settings = read_settings(config)
    import_tensorflow()
    from retrieval.index.update import add_to_index, remove_from_index
    from retrieval.pipeline import build_index

    begun, change = time.monotonic(), None
    with Talk(quiet, verbose=verbose) as talk:
        common: dict[str, Any] = {"device": device, "overwrite": overwrite, "progress": talk}
        if add or remove:
            stated = settings.note(IndexConfig)
            talk.note(stated and f"{stated}: left aside, since an index keeps the knobs it was made with")
        if remove:
            change = remove_from_index(out, remove, **common)
        elif add:
            source = _source(images, names, units, talk)
            change = add_to_index(source, out, encoder=encoder, stride_px=stride, kind=kind, **common)
        else:
            knobs = settings.make(IndexConfig, stride_px=stride, kind=kind)
            talk.note(settings.note(IndexConfig))
            talk.detail(f"index: {knobs.to_dict()}")
            made = build_index(
                _source(images, names, units, talk), out, encoder=encoder, config=knobs, **common
            )
    if change:
        tell_change(as_json, out, change, begun)
        return
    vectors, manifest = made.folder.vectors, made.folder.manifest
    result = {"index": str(out), **manifest.counts, "kind": vectors.kind, "encoder": made.folder.encoder.name}
    recall = manifest.extra.get("recall")
    tell(
        as_json,
        result | {"dim": vectors.dim, "recall": recall, "seconds": since(begun)},
        "{index}: {images} images, {windows} windows, {kind} search, encoder {encoder}" + told_recall(recall),
    )


def _source(images: str, bands: Sequence[str] | None, units: str | None, talk: Talk) -> ImageSource:
    """Open images, and say what they were taken for."""
    from tfrecords.read import read_images

    source = read_images(images, bands=bands, units=units)
    talk.note(source.note)
    return source


@app.command(
    short_help="Patches and an index to a submission",
    context_settings=ONE_SOURCE,
    epilog=examples(
        "retrieve query", "retrieve query chips/ --details matches.parquet --min-confidence 0.9 --drop-unsure"
    ),
)
def query(
    context: typer.Context,
    patches: PatchesArgument = PATCHES,
    index: IndexFolder = INDEX,
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV to write, a row a patch.")] = SUBMISSION,
    details: Annotated[
        Path | None,
        typer.Option(help="Also write every candidate of every patch; ends in .parquet, .csv or .geojson."),
    ] = None,
    chips: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also write the window that was found for each patch as a GeoTIFF."),
    ] = None,
    between: Annotated[
        str | None,
        typer.Option(
            metavar="DATES", help="Answer only from images of these dates: 2019-01/2021-12, 2019-06-15/.. "
        ),
    ] = None,
    within: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Answer only inside of the polygons of a GeoJSON file."),
    ] = None,
    min_confidence: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Count answers below it as unsure, and mark them in the details."),
    ] = None,
    drop_unsure: Annotated[
        bool, typer.Option("--drop-unsure", help="Leave unsure answers out of the submission.")
    ] = False,
    encoder: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="Refuse an index that another encoder made."),
    ] = None,
    bands: Bands = None,
    units: UnitsOption = None,
    device: DeviceOption = "auto",
    config: ConfigFile = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Find patches in an index and write a submission: for each patch the image, x and y.

    A chip larger than 64 x 64 pixels is located as one, from all its windows. Where patches are files,
    patches.csv beside the submission says which number is which file.
    """
    check_one(context)
    names = split_names(bands)
    if drop_unsure and min_confidence is None:
        raise typer.BadParameter("--drop-unsure needs --min-confidence: below which answers are unsure")
    settings = read_settings(config)
    knobs = {"search": SearchConfig, "refinement": RefineConfig, "chips": ChipConfig}
    made: dict[str, Any] = {name: settings.make(kind) for name, kind in knobs.items()}
    import_tensorflow()
    from retrieval.geo.filters import read_filter
    from retrieval.matching.session import open_index_and_queries
    from retrieval.models.calibration import CHIP_TERMS, TERMS, calibration_of
    from retrieval.models.encoder import load_encoder
    from retrieval.pipeline import Index, locate
    from retrieval.results.matches import check_confidence_limit
    from retrieval.results.outputs import QueryOutputs
    from tfrecords.schema import Chips

    begun = time.monotonic()
    with Talk(quiet, verbose=verbose) as talk:
        talk.note(settings.note(*knobs.values()))
        talk.detail("; ".join(f"{name}: {knob.to_dict()}" for name, knob in made.items()))
        expected = load_encoder(encoder) if encoder else None
        folder, asked = open_index_and_queries(
            index, patches, encoder=expected, bands=names, units=units, device=device
        )
        scope = read_filter(folder.images, between, within)
        images = scope.images if scope else folder.images
        for note in _notes(asked, images, scope, details):
            talk.note(note)
        outputs = QueryOutputs(out, details, chips, overwrite)
        outputs.check(asked)
        terms = CHIP_TERMS if isinstance(asked, Chips) else TERMS
        check_confidence_limit(min_confidence, folder, calibration_of(folder.encoder, terms).is_fitted)
        found = locate(Index(folder, device), asked, search_filter=scope, **made, progress=talk)
        outputs.write(found, min_confidence, drop_unsure, talk)
        talk.note(_sticking_out(found))
    written = {"patch_table": outputs.patch_table(asked), "details": details, "chips": chips}
    result: dict[str, Any] = {"submission": str(out)}
    result |= {k: str(v) if v else None for k, v in written.items()}
    result |= {"patches": len(asked), "images": len(images)}
    result |= _sureness(found, min_confidence, drop_unsure)
    text = "{submission}: {patches} patches, confidence not calibrated"
    if result["mean_confidence"] is not None:
        text = "{submission}: {patches} patches, mean confidence {mean_confidence:.2f}"
    if min_confidence is not None:
        text += "; {unsure} unsure, below {min_confidence:g}" + (" and left out" if drop_unsure else "")
    tell(as_json, result | {"seconds": since(begun)}, text)


@app.command(
    short_help="A submission and the answers to scores",
    epilog=examples("retrieve score", "retrieve score submission.csv answers.csv --json"),
)
def score(
    submission: Annotated[Path, typer.Argument(metavar="SUBMISSION", help="What was found.")] = SUBMISSION,
    answers: Annotated[Path, typer.Argument(metavar="ANSWERS", help="What is right.")] = Path(ANSWERS),
    as_json: AsJson = False,
) -> None:
    """Score a submission: SC_img, SC_loc, SC and the shares within 1, 2, 5 and 10 px, with 95 % intervals.

    A patch without a row counts as wrong, with a warning.
    """
    from retrieval.pipeline import evaluate

    result = evaluate(submission, answers)
    typer.echo(json.dumps(result.to_dict()) if as_json else result.table())


def _notes(
    asked: Patches | Chips,
    images: Mapping[int, StoredImage],
    scope: SearchFilter | None,
    details: Path | None,
) -> list[str]:
    """What is to be said before the work."""
    notes = [asked.note, scope.note if scope else ""]
    if details and details.suffix.lower() != ".csv" and not any(image.crs for image in images.values()):
        notes.append(f"none of the images has a CRS: {details} holds pixels, and no footprints")
    return notes


def _sticking_out(found: Matches) -> str:
    """Say so where the submission, which knows no sign, can't hold a place."""
    _, x, y = found.best()
    out = int(((x < 0) | (y < 0)).sum())
    return (
        f"{out} chips begin outside of their image: the submission has 0 there, --details the place"
        if out
        else ""
    )


def _sureness(found: Matches, min_confidence: float | None, drop_unsure: bool) -> dict[str, Any]:
    """How sure the answers are, for the result."""
    unsure = int(found.unsure(min_confidence).sum())
    return {
        "mean_confidence": round(float(found.confidence.mean()), 4) if found.calibrated.all() else None,
        "min_confidence": min_confidence,
        "unsure": None if min_confidence is None else unsure,
        "dropped": unsure if drop_unsure else 0,
    }
