"""The command that shows what was found. It parses, makes one call and prints."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retrieval.cli.app import app, import_tensorflow, since, tell
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
    examples,
    split_names,
)
from retrieval.cli.talk import Talk
from tfrecords.challenge import ANSWERS, PATCHES

if TYPE_CHECKING:
    from retrieval.evaluation.submission import Submission

MATCHES = Path("matches.parquet")
"""Table that the README has `retrieve query --details` write."""


@app.command(
    short_help="What was found, as a page to look at",
    context_settings=ONE_SOURCE,
    epilog=examples(
        "retrieve report",
        "retrieve report chips/ --index scenes.index --matches found/matches.parquet --most 100",
    ),
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
            help="What is right, as for `retrieve score`.", show_default=f"{ANSWERS}, if it is there"
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Page to write; ends in .html.")] = Path(
        "report.html"
    ),
    most: Annotated[int, typer.Option(min=1, max=500, help="Patches to show one by one, at most.")] = 60,
    title: Annotated[str, typer.Option(help="Title of the page.")] = "What was found",
    bands: Bands = None,
    units: UnitsOption = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write one HTML page of what was found, to look at in a browser: no network, nothing beside it.

    It shows the score where answers are known, how sure the answers are, a map of the index, and patches one
    by one beside what was found for them: failures first, or else the least sure.
    """
    check_one(context)
    names = split_names(bands)
    import_tensorflow()
    from retrieval.pipeline import open_index
    from retrieval.report.page import write_page
    from retrieval.report.patch_results import read_details
    from tfrecords.read import read_queries

    begun = time.monotonic()
    with Talk(quiet, verbose=verbose) as talk:
        details = read_details(matches)
        right = _answers(answers, talk)
        opened = open_index(index, device="cpu")
        asked = read_queries(patches, bands=names, units=units)
        talk.note(asked.note)
        made = write_page(
            out,
            opened.folder,
            asked,
            details,
            answers=right,
            title=title,
            limit=most,
            overwrite=overwrite,
            progress=talk,
        )
    result = {"report": str(made.path), "patches": made.patches, "shown": made.shown}
    result |= {"failures": made.failures if right is not None else None, "bytes": made.bytes}
    told = "{report}: {shown} of {patches} patches" + (
        ", {failures} of them failures" if right is not None else ""
    )
    tell(
        as_json,
        result | {"seconds": since(begun)},
        told + f"; {made.bytes / 1e6:.1f} MB, open it in a browser",
    )


def _answers(path: Path | None, talk: Talk) -> Submission | None:
    """The answers that are named, or else those of the working folder, if there are any."""
    from retrieval.evaluation.submission import read_submission

    if path is None:
        path = Path(ANSWERS)
        if not path.is_file():
            return None
        talk.note(f"answers: {path}")
    return read_submission(path)
