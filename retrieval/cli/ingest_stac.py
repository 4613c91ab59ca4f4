"""`retrieve ingest-stac`: a search in a STAC catalogue to folders of dated GeoTIFFs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from retrieval.cli.app import command, elapsed_s, print_result
from retrieval.cli.console import ConsoleProgress
from retrieval.cli.options import AsJson, ExecutorOption, Memory, Overwrite, Quiet, Verbose, executor_of
from retrieval.geo.request import BoundingBox, DateSpan
from retrieval.ingest.stac.query import CATALOGUES, CatalogQuery
from retrieval.ingest.stac.run import ingest_stac


@command(
    "ingest-stac",
    "retrieve ingest-stac --bbox 1.35,43.55,1.50,43.65 --dates 2021/2023 --out places",
    "retrieve ingest-stac --api planetary-computer --sign planetary-computer --bbox=-1.5,43.4,-1.4,43.5 "
    "--dates 2023-04/2023-09 --max-cloud 20 --hide-snow --out places",
)
def ingest_from_stac(
    bbox: Annotated[
        str, typer.Option(metavar="W,S,E,N", help="Bounding box in degrees: west, south, east, north.")
    ],
    dates: Annotated[
        str,
        typer.Option(metavar="FROM/TO", help="Date range, inclusive; each end YYYY-MM-DD, YYYY-MM or YYYY."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write, with one folder per place.")],
    api: Annotated[
        str, typer.Option(metavar="URL|NAME", help=f"URL of the catalogue, or {', '.join(CATALOGUES)}.")
    ] = "earth-search",
    collection: Annotated[
        str, typer.Option(metavar="ID", help="Collection of the catalogue.")
    ] = CatalogQuery.collection,
    max_cloud: Annotated[
        float,
        typer.Option(
            metavar="PERCENT", min=0, max=100, help="Skip items with more cloud over their whole tile."
        ),
    ] = CatalogQuery.max_cloud,
    max_hidden: Annotated[
        float,
        typer.Option(
            metavar="PERCENT", min=0, max=100, help="Skip days with more of the bounding box masked."
        ),
    ] = CatalogQuery.max_hidden,
    hide_snow: Annotated[
        bool, typer.Option("--hide-snow", help="Mask snow and ice as well as cloud and shadow.")
    ] = False,
    dates_per_place: Annotated[
        int, typer.Option(min=1, help="Maximum dates per place: spread over time, then the clearest.")
    ] = CatalogQuery.dates_per_place,
    sign: Annotated[
        Literal["planetary-computer"] | None,
        typer.Option(help="Sign file URLs with the package planetary-computer."),
    ] = None,
    executor: ExecutorOption = None,
    memory: Memory = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Download dated GeoTIFFs from a STAC catalogue, one folder per place.

    Only the bounding box is read; cloud, shadow and nodata are masked. items.csv lists the outcome for each
    item. An interrupted run resumes and retries items that could not be read.
    """
    query = CatalogQuery(
        api,
        BoundingBox.parse(bbox),
        DateSpan.parse(dates),
        collection=collection,
        max_cloud=max_cloud,
        max_hidden=max_hidden,
        hide_snow=hide_snow,
        dates_per_place=dates_per_place,
        sign=sign,
    )
    start = time.monotonic()
    with (
        ConsoleProgress(quiet, verbose=verbose) as console,
        executor_of(executor, memory, console) as runner,
    ):
        report = ingest_stac(out, query, overwrite=overwrite, executor=runner, progress=console)
        for note in report.notes:
            console.note(note)
    result = {"out": str(report.path), "places": report.places, "dates": report.dates, "new": report.new}
    result |= {"items": report.items, "left_out": len(report.left_out), "notes": list(report.notes)}
    template = (
        "{out}: {dates} dates of {places} places, {new} of them new; {left_out} of {items} items left out"
    )
    print_result(as_json, result | {"seconds": elapsed_s(start)}, template)
