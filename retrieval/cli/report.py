"""`retrieve report`: the matches of a query as one HTML page."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retrieval.cli.app import command, elapsed_s, import_tensorflow, print_result
from retrieval.cli.console import ConsoleProgress
from retrieval.cli.options import (
    INDEX,
    ONE_SOURCE,
    AsJson,
    Bands,
    IndexFolder,
    Overwrite,
    PatchesArgument,
    Quiet,
    UnitsOption,
    Verbose,
    check_one,
    split_names,
)
from tfrecords.challenge import ANSWERS, PATCHES

if TYPE_CHECKING:
    from retrieval.evaluation.submission import Submission

MATCHES = Path("matches.parquet")
"""Table that the README has `retrieve query --details` write."""


@command(
    "report",
    "retrieve report",
    "retrieve report chips/ --index scenes.index --matches found/matches.parquet --most 100",
    context_settings=ONE_SOURCE,
)
def report(
    context: typer.Context,
    patches: PatchesArgument = PATCHES,
    index: IndexFolder = INDEX,
    matches: Annotated[
        Path, typer.Option("--matches", "-m", help="Table that `retrieve query --details` wrote.")
    ] = MATCHES,
    answers: Annotated[
        Path | None,
        typer.Option(
            help="True positions, as for `retrieve score`.", show_default=f"{ANSWERS}, if it exists"
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Page to write, an .html file.")] = Path(
        "report.html"
    ),
    most: Annotated[int, typer.Option(min=1, max=500, help="Maximum number of patches shown.")] = 60,
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Matches",
    bands: Bands = None,
    units: UnitsOption = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a self-contained HTML report of the matches.

    It shows the confidences, a map of the index, and the score if answers are known. Patches with their
    matches follow: failures first, or else the lowest confidence.
    """
    check_one(context)
    names = split_names(bands)
    import_tensorflow()
    from retrieval.matching.session import adapt_to_images
    from retrieval.pipeline import open_index
    from retrieval.report.page import write_page
    from retrieval.report.patch_results import read_details
    from tfrecords.read import read_queries

    start = time.monotonic()
    with ConsoleProgress(quiet, verbose=verbose) as console:
        details = read_details(matches)
        truth = _read_answers(answers, console)
        opened = open_index(index, device="cpu")
        queries = read_queries(patches, bands=names, units=units)
        queries = adapt_to_images(opened.folder.images, queries)
        console.note(queries.note)
        page = write_page(
            out,
            opened.folder,
            queries,
            details,
            answers=truth,
            title=title,
            limit=most,
            overwrite=overwrite,
            progress=console,
        )
    result = {"report": str(page.path), "patches": page.patches, "shown": page.shown}
    result |= {"failures": page.failures if truth is not None else None, "bytes": page.bytes}
    template = "{report}: {shown} of {patches} patches" + (
        ", {failures} failures" if truth is not None else ""
    )
    template += f"; {page.bytes / 1e6:.1f} MB, open it in a browser"
    print_result(as_json, result | {"seconds": elapsed_s(start)}, template)


def _read_answers(path: Path | None, console: ConsoleProgress) -> Submission | None:
    """Return the named answers, or `answers.csv` of the working folder if it exists."""
    from retrieval.evaluation.submission import read_submission

    if path is None:
        path = Path(ANSWERS)
        if not path.is_file():
            return None
        console.note(f"answers: {path}")
    return read_submission(path)
