"""The command that brings images in from a catalogue: ingest-stac. It parses, makes one call and prints."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from retrieval.cli.app import app, since, tell
from retrieval.cli.options import AsJson, Overwrite, Quiet, Verbose, examples
from retrieval.cli.talk import Talk
from retrieval.geo.request import BoundingBox, DateSpan
from retrieval.ingest.stac.query import CATALOGUES, CatalogQuery
from retrieval.ingest.stac.run import ingest_stac


@app.command(
    name="ingest-stac",
    short_help="A search in a STAC catalogue to dated GeoTIFFs",
    epilog=examples(
        "retrieve ingest-stac --bbox 1.35,43.55,1.50,43.65 --dates 2021/2023 --out places",
        "retrieve ingest-stac --api planetary-computer --sign planetary-computer --bbox=-1.5,43.4,-1.4,43.5 "
        "--dates 2023-04/2023-09 --max-cloud 20 --hide-snow --out places",
    ),
)
def ingest_from_stac(
    bbox: Annotated[
        str, typer.Option(metavar="W,S,E,N", help="Ground wanted: west, south, east, north in degrees.")
    ],
    dates: Annotated[
        str,
        typer.Option(metavar="FROM/TO", help="Days wanted, both included: YYYY-MM-DD, YYYY-MM or YYYY each."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write: one folder a place in it.")],
    api: Annotated[
        str, typer.Option(metavar="URL|NAME", help=f"The catalogue's address, or {', '.join(CATALOGUES)}.")
    ] = "earth-search",
    collection: Annotated[
        str, typer.Option(metavar="ID", help="The collection of the catalogue.")
    ] = CatalogQuery.collection,
    max_cloud: Annotated[
        float,
        typer.Option(
            metavar="PERCENT", min=0, max=100, help="Pass over items with more cloud over their whole tile."
        ),
    ] = CatalogQuery.max_cloud,
    max_hidden: Annotated[
        float,
        typer.Option(
            metavar="PERCENT", min=0, max=100, help="Leave out days with more of the ground wanted hidden."
        ),
    ] = CatalogQuery.max_hidden,
    hide_snow: Annotated[
        bool, typer.Option("--hide-snow", help="Hide snow as cloud and shadow are hidden.")
    ] = False,
    dates_per_place: Annotated[
        int, typer.Option(min=1, help="Keep so many dates of a place: spread over time, then the clearest.")
    ] = CatalogQuery.dates_per_place,
    sign: Annotated[
        Literal["planetary-computer"] | None,
        typer.Option(help="Sign the addresses of files, with the package planetary-computer."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Bring a search in a STAC catalogue into folders of dated GeoTIFFs, one folder a place.

    Only the ground wanted is fetched; cloud, shadow and nodata are hidden. items.csv says what became of each
    item. A run that was stopped goes on where it was; items that could not be read are tried again.
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
    begun = time.monotonic()
    with Talk(quiet, verbose=verbose) as talk:
        report = ingest_stac(out, query, overwrite=overwrite, progress=talk)
        for note in report.notes:
            talk.note(note)
    counts = {"places": report.places, "dates": report.dates, "new": report.new, "items": report.items}
    left = len(report.left_out)
    result = {"out": str(report.path), **counts, "left_out": left, "notes": list(report.notes)}
    text = "{out}: {dates} dates of {places} places, {new} of them new; {left_out} of {items} items left out"
    tell(as_json, result | {"seconds": since(begun)}, text)
