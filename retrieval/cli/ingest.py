"""`retrieve ingest`: Sentinel-2 products or GeoTIFFs to images, training series or a challenge."""

from __future__ import annotations

import time
from inspect import signature
from pathlib import Path
from typing import Annotated, Literal

import typer

from retrieval.cli.app import command, elapsed_s, import_tensorflow, print_result
from retrieval.cli.console import ConsoleProgress
from retrieval.cli.options import (
    AsJson,
    Bands,
    Box,
    Dates,
    ExecutorOption,
    HideSnow,
    MaxCloud,
    Memory,
    Overwrite,
    Quiet,
    Seed,
    UnitsOption,
    Verbose,
    executor_of,
    split_names,
)
from retrieval.config import PATCH_PX
from retrieval.geo.request import ImageFilter
from retrieval.ingest.run import ingest as ingest_folders

_DEFAULTS = {name: parameter.default for name, parameter in signature(ingest_folders).parameters.items()}


@command(
    "ingest",
    "retrieve ingest places/ --out series",
    "retrieve ingest downloads/ --as images --out places --bbox 1.3,43.5,1.5,43.7 --max-cloud 20",
)
def ingest(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder of Sentinel-2 products or of GeoTIFFs, a GeoTIFF's URL, or a .txt file of URLs. "
            "Products are SAFE folders or zips. GeoTIFFs lie in one folder per place, one file per date.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    as_: Annotated[
        Literal["series", "challenge", "images"],
        typer.Option(
            "--as",
            help="series: time series for training; challenge: images, patches of other dates and answers; "
            "images: GeoTIFFs to index.",
        ),
    ] = _DEFAULTS["as_"],
    bbox: Box = None,
    dates: Dates = None,
    max_cloud: MaxCloud = None,
    hide_snow: HideSnow = False,
    size: Annotated[
        int, typer.Option(min=PATCH_PX, help="Side of the squares that places are cut into, in pixels.")
    ] = _DEFAULTS["size_px"],
    max_nodata: Annotated[
        float, typer.Option(min=0, max=1, help="Skip a date of a square with a larger share of nodata.")
    ] = _DEFAULTS["max_nodata"],
    patches_per_image: Annotated[
        int, typer.Option(min=1, help="Maximum number of patches per image of a challenge.")
    ] = _DEFAULTS["patches_per_image"],
    seed: Seed = _DEFAULTS["seed"],
    bands: Bands = None,
    units: UnitsOption = None,
    executor: ExecutorOption = None,
    memory: Memory = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Turn Sentinel-2 products, or folders of dated GeoTIFFs, into images, training series or a challenge.

    A product's tile is a place and its day a date; cloud and shadow are masked by the scene classification.
    Unusable products are skipped and listed. Dates of GeoTIFFs come from file names such as 2019-07-23.tif.
    Dates on other grids are warped to the first date's grid.
    """
    names = split_names(bands)
    image_filter = ImageFilter.parse(bbox, dates, max_cloud, hide_snow=hide_snow)
    if as_ != "images":
        import_tensorflow()

    start = time.monotonic()
    with (
        ConsoleProgress(quiet, verbose=verbose) as console,
        executor_of(executor, memory, console) as runner,
    ):
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
            executor=runner,
            progress=console,
        )
        for note in report.notes:
            console.note(note)
    unit = {"series": "series", "challenge": "images", "images": "dates"}[as_]
    result = {"out": str(report.path), "places": report.places, unit: report.records}
    template = f"{{out}}: {{{unit}}} {unit} of {{places}} places"
    if as_ == "challenge":
        result["patches"] = report.patches
        template += ", {patches} patches"
    result |= {"notes": list(report.notes), "seconds": elapsed_s(start)}
    print_result(as_json, result, template)
