"""The commands that make what the job needs: ingest, train, demo. Each parses, makes one call and prints."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from retrieval.cli.app import app, import_tensorflow, since, tell
from retrieval.cli.options import (
    AsJson,
    Bands,
    Box,
    ConfigFile,
    Dates,
    DeviceOption,
    Encoder,
    HideSnow,
    MaxCloud,
    Overwrite,
    Quiet,
    Seed,
    UnitsOption,
    Verbose,
    examples,
    split_names,
)
from retrieval.cli.talk import Talk
from retrieval.config import PATCH_PX, DemoConfig, Loss, TrainConfig
from retrieval.config.settings import Settings, read_settings
from retrieval.errors import ConfigError
from retrieval.geo.request import ImageFilter
from retrieval.ingest.run import ingest as ingest_folders

_INGEST = {name: parameter.default for name, parameter in signature(ingest_folders).parameters.items()}


@app.command(
    short_help="Sentinel-2 products or GeoTIFFs to places, series or a challenge",
    epilog=examples(
        "retrieve ingest places/ --out series",
        "retrieve ingest downloads/ --as images --out places --bbox 1.3,43.5,1.5,43.7 --max-cloud 20",
    ),
)
def ingest(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Sentinel-2 products, SAFE folders or zips; GeoTIFFs, a folder a place, a file a date; or a "
            "GeoTIFF's address, or a .txt of some.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    as_: Annotated[
        Literal["series", "challenge", "images"],
        typer.Option(
            "--as",
            help="Series to train from; images, patches of other dates and answers; or GeoTIFFs to index.",
        ),
    ] = _INGEST["as_"],
    bbox: Box = None,
    dates: Dates = None,
    max_cloud: MaxCloud = None,
    hide_snow: HideSnow = False,
    size: Annotated[
        int, typer.Option(min=PATCH_PX, help="Places are cut into squares of this side, in pixels.")
    ] = _INGEST["size_px"],
    max_nodata: Annotated[
        float, typer.Option(min=0, max=1, help="Leave a date out of a square with more nodata than this.")
    ] = _INGEST["max_nodata"],
    patches_per_image: Annotated[
        int, typer.Option(min=1, help="Patches from each image of a challenge, at most.")
    ] = _INGEST["patches_per_image"],
    seed: Seed = _INGEST["seed"],
    bands: Bands = None,
    units: UnitsOption = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Turn Sentinel-2 products, or folders of dated GeoTIFFs, into places, training series or a challenge.

    Products become a place for each tile, a date for each day; what their scene classification says is
    cloud or shadow is hidden. One that can't be used is left out and named. Of GeoTIFFs, dates are told from
    file names, such as 2019-07-23.tif; dates on other grids are warped to the first.
    """
    names = split_names(bands)
    image_filter = ImageFilter.parse(bbox, dates, max_cloud, hide_snow=hide_snow)
    if as_ != "images":
        import_tensorflow()

    begun = time.monotonic()
    with Talk(quiet, verbose=verbose) as talk:
        report = ingest_folders(
            source,
            out,
            as_=as_,
            image_filter=image_filter,
            size_px=size,
            max_nodata=max_nodata,
            patches_per_image=patches_per_image,
            seed=seed,
            bands=names,
            units=units,
            overwrite=overwrite,
            reading=talk.counted("reading blocks"),
            progress=talk.counted(f"writing {'series' if as_ == 'series' else 'images'}"),
        )
        for note in report.notes:
            talk.note(note)
    what = {"series": "series", "challenge": "images", "images": "dates"}[as_]
    result = {"out": str(report.path), "places": report.places, what: report.records}
    text = f"{{out}}: {{{what}}} {what} of {{places}} places"
    if as_ == "challenge":
        result["patches"] = report.patches
        text += ", {patches} patches"
    tell(as_json, result | {"notes": list(report.notes), "seconds": since(begun)}, text)


@app.command(
    short_help="Series to an encoder of one's own",
    epilog=examples(
        "retrieve train series/ --out encoder.keras",
        "retrieve train series/ --out encoder.keras --validation other-places/ --steps 20000 --loss infonce",
    ),
)
def train(
    series: Annotated[
        Path, typer.Argument(metavar="SERIES", help="Folder of series, or one .tfrecords file.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Encoder to write; ends in .keras.")] = Path(
        "encoder.keras"
    ),
    validation: Annotated[
        Path | None,
        typer.Option(
            help="Series of other places to validate on.", show_default="some of SERIES are held out"
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="JSON of knobs, see retrieval.config.TrainConfig; flags come first."
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, show_default=str(TrainConfig.steps), help="Steps to train for.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=2, show_default=str(TrainConfig.batch), help="Pairs in a step.")
    ] = None,
    loss: Annotated[
        Loss | None, typer.Option(show_default=TrainConfig.loss, help="What is minimised.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, show_default=str(TrainConfig.seed), help="Decides all that is drawn.")
    ] = None,
    device: DeviceOption = "auto",
    config_file: ConfigFile = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train an encoder on series of places, two dates of one place against those of other places.

    It measures itself on places that it does not learn from, keeps checkpoints in OUT.training/, and goes
    on from there when it was stopped.
    """
    settings = read_settings(config_file)
    config = _recipe(settings, recipe, steps=steps, batch=batch, loss=loss, seed=seed)
    import_tensorflow()
    from retrieval.index.device import on_device
    from retrieval.report.plots import draw_curve, read_history
    from retrieval.training.siamese import train as fit

    with Talk(quiet, verbose=verbose) as talk, on_device(device):
        talk.note(settings.note(TrainConfig))
        talk.detail(f"train: {config.to_dict()}")
        report = fit(series, out, config, validation=validation, overwrite=overwrite, progress=talk.training)
    free = report.training_free[0] if report.training_free else None
    curve = report.history.with_name("curve.png")
    title = f"Training of {report.out.name}"
    draw_curve(read_history(report.history, free), curve, title=title, overwrite=True)
    result = asdict(report) | {k: str(v) for k, v in (("out", report.out), ("history", report.history))}
    result["curve"] = str(curve)
    text = (
        "{out}: step {best_step} of {steps}; of {patches} patches {recall_at_1:.1%} have their right "
        "place first among {windows} windows"
    )
    tell(as_json, result, text + ("" if free is None else f", training-free {free:.1%}") + "; see {curve}")


@app.command(
    short_help="All of it, on a generated challenge in small",
    epilog=examples("retrieve demo", "retrieve demo --out small --images 6 --patches 200"),
)
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")] = Path("demo"),
    images: Annotated[
        int | None,
        typer.Option(
            min=1, show_default=str(DemoConfig.images), help="Images to generate, each of a place of its own."
        ),
    ] = None,
    patches: Annotated[
        int | None,
        typer.Option(
            min=1,
            show_default=str(DemoConfig.patches),
            help="Patches to generate, all of other dates than the images.",
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            min=PATCH_PX, show_default=str(DemoConfig.size_px), help="Side of the images in pixels."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, show_default=str(DemoConfig.seed), help="Decides all that is drawn.")
    ] = None,
    encoder: Encoder = None,
    device: DeviceOption = "auto",
    config: ConfigFile = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Generate a challenge in small, run it, score it and show it: no data, no GPU, about a minute.

    The folder then holds the challenge's files, the index, the submission, all matches and a page to look at.
    """
    settings = read_settings(config)
    knobs = settings.make(DemoConfig, images=images, patches=patches, size_px=size, seed=seed)
    import_tensorflow()
    from retrieval.demo import run_demo

    begun = time.monotonic()
    with Talk(quiet, verbose=verbose) as talk:
        talk.note(settings.note(DemoConfig))
        report = run_demo(
            out,
            knobs,
            encoder=encoder,
            device=device,
            overwrite=overwrite,
            progress=talk,
        )
    result = report.to_dict() | {"seconds": since(begun)}
    typer.echo(json.dumps(result) if as_json else f"{report.score.table()}\n\n{report.guide()}")


def _recipe(settings: Settings, path: Path | None, **flags: Any) -> TrainConfig:
    """The training's knobs: the flags that were given, the recipe's, the settings', the defaults."""
    try:
        values = json.loads(path.read_text(encoding="utf-8")) if path else {}
    except ValueError as error:
        raise ConfigError(
            f'{path} is no JSON ({error}); expected such as {{"learning_rate": 5e-4}}'
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}; expected knobs by name in braces")
    return settings.make(TrainConfig, **values | {name: v for name, v in flags.items() if v is not None})
