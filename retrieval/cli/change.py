"""`retrieve change ...`: what differs between two dates of a place."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from retrieval.cli.app import command, elapsed_s, import_tensorflow, print_result
from retrieval.cli.console import ConsoleProgress
from retrieval.cli.options import (
    AsJson,
    Bands,
    DeviceOption,
    ExecutorOption,
    Licence,
    Memory,
    Method,
    Overwrite,
    Quiet,
    TrainingSeed,
    UnitsOption,
    Verbose,
    executor_of,
    forest_result,
    refuse_for_trees,
    split_names,
)

Coregister = Annotated[
    bool,
    typer.Option(
        "--coregister/--no-coregister",
        help="Measure the shift of the second date, up to 8 px, and remove it.",
    ),
]
Clouds = Annotated[
    bool, typer.Option("--clouds/--no-clouds", help="Mark cloud of either date as 255, without data.")
]
MinPixels = Annotated[
    int,
    typer.Option(
        "--min-pixels", metavar="N", min=1, help="Leave out areas of change, and holes, of fewer pixels."
    ),
]
Model = Annotated[
    list[Path] | None,
    typer.Option(
        "--model",
        metavar="FOLDER",
        help="Model that `retrieve change train` wrote; of several, the mean probability decides.",
        show_default="none: without labels",
    ),
]
Places = Annotated[
    Path, typer.Argument(metavar="PLACES", help="Folder with a folder for each place, a GeoTIFF a date.")
]
Labels = Annotated[
    Path,
    typer.Argument(
        metavar="LABELS", help="Folder of masks called as the places: 1 change, 0 none, 255 no label."
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        "--threshold",
        min=0,
        max=1,
        help="Probability from which a pixel counts as changed.",
        show_default="the method's",
    ),
]


@command(
    "change detect",
    "retrieve change detect before.tif after.tif --out change.tif",
    "retrieve change detect 2018.tif 2024.tif --model change --out change.tif --polygons change.gpkg",
)
def detect_command(
    before: Annotated[Path, typer.Argument(metavar="BEFORE", help="GeoTIFF of the first date.")],
    after: Annotated[
        Path, typer.Argument(metavar="AFTER", help="GeoTIFF of the second date; another grid is warped.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Map to write: 1 change, 0 none, 255 nodata or cloud.")
    ],
    probabilities: Annotated[
        Path | None,
        typer.Option(help="Also write the probability of change, a .tif file.", show_default="none"),
    ] = None,
    polygons: Annotated[
        Path | None,
        typer.Option(
            help="Also write the changed areas: .gpkg, .parquet, .geojson or .fgb.", show_default="none"
        ),
    ] = None,
    model: Model = None,
    threshold: Threshold = None,
    min_pixels: MinPixels = 12,
    coregister: Coregister = True,
    clouds: Clouds = True,
    bands: Bands = None,
    units: UnitsOption = None,
    device: DeviceOption = "auto",
    executor: ExecutorOption = None,
    memory: Memory = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Map what differs between two dates, beyond season and light, without labels or by a trained model.

    The map lies on the grid of BEFORE. The shift between the dates is measured and removed; it stands in
    the tags SHIFT_DX and SHIFT_DY of the map.
    """
    import_tensorflow()
    from retrieval.index.device import on_device
    from retrieval.tasks.change import detect
    from retrieval.tasks.change.mapping import Options

    start = time.monotonic()
    with (
        ConsoleProgress(quiet, verbose=verbose) as console,
        executor_of(executor, memory, console) as runner,
        on_device(device),
    ):
        report = detect(
            before,
            after,
            out,
            probabilities=probabilities,
            polygons=polygons,
            model=model or None,
            threshold=threshold,
            options=Options(coregister, clouds, min_pixels),
            bands=split_names(bands),
            units=units,
            overwrite=overwrite,
            executor=runner,
            progress=console,
        )
        for note in report.notes:
            console.note(note)
        if coregister and not report.shift_found:
            console.note("no shift fits the dates: they are compared as they lie")
    result = _plain(report) | {"seconds": elapsed_s(start)}
    moved = "AFTER lies dx {dx:+.2f}, dy {dy:+.2f} px from BEFORE"
    shown = f"{{out}}: {{change_share:.2%}} changed, {{hidden_share:.1%}} without ground; {moved}"
    print_result(as_json, result, shown)


def _plain(report: Any) -> dict[str, Any]:
    """Return a report for JSON; its path is called out."""
    page = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(report).items()}
    page["out"] = page.pop("path")
    return page | {"notes": list(report.notes)}


@command(
    "change train",
    "retrieve change train places/ labels/ --out change",
    "retrieve change train places/ labels/ --out change --steps 1000 --seed 1",
    "retrieve change train places/ labels/ --method trees --out change",
)
def train_command(
    places: Places,
    labels: Labels,
    out: Annotated[Path, typer.Option("--out", "-o", help="Model folder to write.")],
    method: Method = "network",
    recipe: Annotated[
        str | None, typer.Option(metavar="FILE", help="Settings as JSON. Flags override them.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps.", show_default="the recipe's")
    ] = None,
    seed: TrainingSeed = None,
    licence: Licence = "not stated",
    coregister: Coregister = True,
    clouds: Clouds = True,
    bands: Bands = None,
    units: UnitsOption = None,
    device: DeviceOption = "auto",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a network or trees of change on labelled places.

    The lowest fifth of each place trains no network: it fits temperature and threshold. The state is kept in
    OUT.training/, from which an interrupted run resumes. Trees learn from all pixels; places that take turns
    to be left out fit their threshold.
    """
    if method == "trees":
        refuse_for_trees(steps=steps)
    import_tensorflow()
    from retrieval.config import ForestConfig
    from retrieval.index.device import on_device
    from retrieval.tasks.change import train
    from retrieval.tasks.change.mapping import Options
    from retrieval.tasks.change.training import recipe_of
    from retrieval.tasks.segment.trees import ForestReport
    from retrieval.training.recipes import read_recipe

    given = {name: value for name, value in (("steps", steps), ("seed", seed)) if value is not None}
    values = (read_recipe(recipe) if recipe else {}) | given
    with ConsoleProgress(quiet, verbose=verbose) as console, on_device(device):
        report = train(
            places,
            labels,
            out,
            ForestConfig.from_mapping(values) if method == "trees" else recipe_of(values),
            options=Options(coregister, clouds),
            bands=split_names(bands),
            units=units,
            licence=licence,
            overwrite=overwrite,
            progress=console,
            training_progress=console.training,
        )
        for note in report.notes:
            console.note(note)
    more = {"places": report.places, "change_share": report.change_share, "notes": list(report.notes)}
    if isinstance(report.training, ForestReport):
        page, template = forest_result(report.training)
        print_result(as_json, page | more, template)
        return
    page = asdict(report.training) | more
    page |= {"out": str(report.training.out), "history": str(report.training.history)}
    template = "{out}: {steps} steps on {places} places in {seconds:.0f} s"
    if report.training.miou is not None:
        template += "; IoU on their held-out fifth {miou:.3f}, threshold {threshold:.2f}"
    print_result(as_json, page, template)


@command(
    "change evaluate",
    "retrieve change evaluate places/ labels/",
    "retrieve change evaluate places/ labels/ --model change --json > figures.json",
)
def evaluate_command(
    places: Places,
    labels: Labels,
    model: Model = None,
    threshold: Threshold = None,
    min_pixels: MinPixels = 12,
    coregister: Coregister = True,
    clouds: Clouds = True,
    bands: Bands = None,
    units: UnitsOption = None,
    device: DeviceOption = "auto",
    executor: ExecutorOption = None,
    memory: Memory = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure maps of change against labels: F1, IoU, precision and recall, pooled and by place.

    The first and the last date of each place are compared. Change that cloud or nodata hides counts as
    missed. Intervals are a bootstrap over blocks of 256 x 256 pixels.
    """
    import_tensorflow()
    from retrieval.index.device import on_device
    from retrieval.tasks.change import evaluate
    from retrieval.tasks.change.mapping import Options

    with (
        ConsoleProgress(quiet, verbose=verbose) as console,
        executor_of(executor, memory, console) as runner,
        on_device(device),
    ):
        report = evaluate(
            places,
            labels,
            model=model or None,
            threshold=threshold,
            options=Options(coregister, clouds, min_pixels),
            bands=split_names(bands),
            units=units,
            executor=runner,
            progress=console,
        )
        for note in report.notes:
            console.note(note)
    page = report.figures.to_dict()
    if as_json:
        print_result(True, page | {"shifts": report.shifts, "notes": list(report.notes)}, "")
        return
    width = max(6, *map(len, page["places"]))
    for name, figures in {"pooled": page, **page["places"]}.items():
        shown = ", ".join(f"{key} {_interval(figures[key])}" for key in ("f1", "iou", "precision", "recall"))
        typer.echo(f"{name:<{width}}  {shown}")


def _interval(figure: dict[str, Any]) -> str:
    if figure["value"] is None:
        return "undefined"
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
