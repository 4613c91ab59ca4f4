"""The page from top to bottom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from retrieval.errors import ConfigError
from retrieval.evaluation.submission import Submission
from retrieval.index.folder import IndexFolder
from retrieval.report.cards import Words, card
from retrieval.report.curve import TrainingCurve
from retrieval.report.figures import probability_charts, score_section
from retrieval.report.filters import toolbar
from retrieval.report.found import Results, choose, results
from retrieval.report.gather import Card, gather
from retrieval.report.map import map_section, plan
from retrieval.report.markup import Markup, digest, tag, text
from retrieval.report.places import lay_out
from retrieval.report.runs import benchmark_panels, training_charts
from retrieval.types import Progress, silent
from tfrecords.artifacts import check_free, writing_file
from tfrecords.artifacts.manifest import created_by
from tfrecords.schema import Chips, Patches

MOST = 60
"""Patches that a page shows by default."""
MOST_SHOWN = 500
"""Patches that a page can show: each is some 60 kB."""


@dataclass(frozen=True)
class PageMade:
    """A page that was written."""

    path: Path
    """The file."""
    patches: int
    """Patches that were asked about."""
    shown: int
    """Patches that have a card."""
    failures: int
    """Failures among them; 0 where no answers are known."""
    bytes: int
    """Length of the file."""


def write_page(
    out: str | Path,
    store: IndexFolder,
    patches: Patches | Chips,
    details: Any,
    *,
    answers: Submission | None = None,
    curve: TrainingCurve | None = None,
    benchmarks: Mapping[str, dict[str, Any]] | None = None,
    title: str = "",
    most: int = MOST,
    overwrite: bool = False,
    progress: Progress = silent,
) -> PageMade:
    """Write one self-contained HTML page of what was found.

    Args:
        out: the file, ending in `.html`; written whole or not at all.
        store: the index that was asked.
        patches: what was asked.
        details: frame of all candidates, from `read_details` or `Matches.details()`.
        answers: what is right, of some or all of the patches.
        curve: how the encoder's training went.
        benchmarks: results of benchmarks by name, from `read_benchmark`.
        title: of the page.
        most: patches that are shown one by one, 1 to 500; failures first where answers are known.
        overwrite: replace a file that is there.
        progress: told of each stage.

    Returns:
        What was written.

    Raises:
        ConfigError: another ending, a number out of range, or a table that is not of these patches and index.
        OutputExistsError: the file is there and `overwrite` is not set.
    """
    out = Path(out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"{out}: received the ending {out.suffix!r} for a page; expected .html")
    if not 1 <= most <= MOST_SHOWN:
        raise ConfigError(f"received {most} patches to show; expected 1 to {MOST_SHOWN}")
    check_free(out, overwrite=overwrite)
    found = results(details, patches.patch_ids, store.images, answers, patches.sizes)
    chosen = choose(found, most)
    mapped = plan(lay_out(list(store.images.values())), found, chosen)
    cards, cuts = gather(found, chosen, store, patches, mapped.overviews, progress)
    progress("writing the page", 0, None)
    bands = dict.fromkeys(band for card in cards for band in card.bands)
    paths = patches.paths if len(patches.paths) == len(patches) else ()
    words = Words(mapped.layout, store.images, tuple(bands), paths)
    sections: list[tuple[str, str, Markup]] = []
    if found.score is not None:
        sections.append(("score", "Score", score_section(found.score, int((~found.known).sum()))))
    sections.append(
        ("sureness", "Probability", _charts("sureness", "How sure, and how right", probability_charts(found)))
    )
    sections.append(("map", "Map", map_section(mapped, found, cuts.overviews, chosen)))
    sections.append(("patches", "Patches", _patches(cards, words, found)))
    if curve is not None:
        sections.append(
            (
                "training",
                "Training",
                _charts("training", "How the encoder was trained", training_charts(curve)),
            )
        )
    if benchmarks:
        panels = [panel for name, content in benchmarks.items() for panel in benchmark_panels(name, content)]
        sections.append(("benchmarks", "Benchmarks", _charts("benchmarks", "Benchmarks", panels)))
    html = page(title or "What was found", _about(store, len(patches)), sections)
    with writing_file(out, overwrite=overwrite) as temporary:
        # A path may hold bytes that are no UTF-8, which Python keeps as what can't be written.
        temporary.write_text(html, encoding="utf-8", errors="replace", newline="\n")
    failures = int((found.known & ~found.right)[chosen].sum())
    return PageMade(out, len(patches), len(chosen), failures, out.stat().st_size)


def page(title: str, about: str, sections: Sequence[tuple[str, str, Markup]]) -> str:
    """The whole document.

    Args:
        title: of the page.
        about: a line under it.
        sections: anchor, short name and content of each.
    """
    files = resources.files("retrieval.report")
    style, script, frame = (
        (files / f"page.{end}").read_text(encoding="utf-8") for end in ("css", "js", "html")
    )
    links = [tag("li", tag("a", name, href=f"#{anchor}")) for anchor, name, _ in sections]
    mark = tag(
        "svg",
        tag("path", d="M4 4h24v24H4z", class_="ground"),
        tag("path", d="M13 10h9v9h-9zM17.5 6v4M17.5 19v4M9 14.5h4M22 14.5h4", class_="aim"),
        viewBox="0 0 32 32",
        class_="mark",
        aria_hidden="true",
    )
    head = tag(
        "header",
        mark,
        tag("h1", title),
        tag("p", about, class_="quiet"),
        tag("nav", tag("ul", *links), aria_label="Sections"),
        class_="top",
    )
    foot = tag(
        "footer",
        tag("p", f"Made by {created_by()}. This file is all there is: it asks no server for anything."),
    )
    return Template(frame).substitute(
        style=style,
        script=script,
        style_hash=digest(style),
        script_hash=digest(script),
        generator=text(created_by()),
        title=text(title),
        body=tag(
            "div", head, tag("main", *(part for _, _, part in sections), id="main"), foot, class_="page"
        ),
    )


def _about(store: IndexFolder, patches: int) -> str:
    images = len(store.images)
    return (
        f"{patches} patch{'es' * (patches != 1)}, looked for in {images} image"
        f"{'s' * (images != 1)}, {len(store.vectors)} windows, with the encoder {store.encoder.name}"
    )


def _charts(anchor: str, heading: str, charts: Sequence[Markup]) -> Markup:
    return tag(
        "section", tag("h2", heading, id=anchor), tag("div", *charts, class_="plots"), aria_labelledby=anchor
    )


def _patches(cards: Sequence[Card], words: Words, found: Results) -> Markup:
    """All cards, and what chooses between them."""
    told = (
        "Failures come first, the surest on top; then a spread from the least sure to the surest."
        if found.answered
        else "The least sure come first, then a spread up to the surest."
    )
    total = len(found.best)
    shown = f"{len(cards)} of {total}" if len(cards) < total else "All"
    return tag(
        "section",
        tag("h2", "Patches", id="patches"),
        tag("p", f"{shown} patches are shown. {told}", class_="quiet"),
        toolbar(cards, words, found),
        tag("div", *(card(shown, n, words) for n, shown in enumerate(cards)), class_="cards", id="cards"),
        tag("p", "No patch fits these choices.", class_="nothing", hidden=True, id="nothing"),
        aria_labelledby="patches",
    )
