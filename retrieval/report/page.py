"""The HTML page of a query's matches: one self-contained file, made from the templates in `templates/`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval.errors import ConfigError
from retrieval.evaluation.submission import Submission
from retrieval.index.folder import IndexFolder
from retrieval.report.card_data import make_cards
from retrieval.report.cards import CardView, Filters, Names, card_view, filters
from retrieval.report.charts import Figure, ScoreSummary, confidence_figures, score_summary
from retrieval.report.html import check_page, render_template, write_html
from retrieval.report.layout import lay_out
from retrieval.report.map import MapView, draw_map, plan_map
from retrieval.report.patch_results import PatchResults, choose, judge
from retrieval.types import Progress, silent
from tfrecords.schema import Chips, Patches

CARDS = 60
"""Patches that a page shows by default."""
MAX_CARDS = 500
"""Largest number of patches on a page: each takes about 60 kB."""


@dataclass(frozen=True)
class PageReport:
    """Result of `write_page`."""

    path: Path
    """The file."""
    patches: int
    """Number of query patches."""
    shown: int
    """Number of patches with a card."""
    failures: int
    """Failures among the patches shown; 0 without answers."""
    bytes: int
    """Size of the file."""


@dataclass(frozen=True)
class PageView:
    """The content of a page, ready for the templates."""

    title: str
    summary: str
    """Line under the title."""
    score: ScoreSummary | None
    """None without answers."""
    figures: Sequence[Figure]
    map: MapView
    cards: Sequence[CardView]
    cards_note: str
    filters: Filters


def write_page(
    out: str | Path,
    index: IndexFolder,
    patches: Patches | Chips,
    details: Any,
    *,
    answers: Submission | None = None,
    title: str = "",
    limit: int = CARDS,
    overwrite: bool = False,
    progress: Progress = silent,
) -> PageReport:
    """Write one self-contained HTML page of the matches.

    Args:
        out: the file, ending in `.html`; written as a whole.
        index: the index folder of the query.
        patches: the query patches.
        details: frame of all candidates, from `read_details` or `Matches.details()`.
        answers: the right places of all or some patches.
        title: title of the page.
        limit: largest number of patches with a card, 1 to 500; with answers failures come first.
        overwrite: replace an existing file.
        progress: called at each stage.

    Returns:
        The file and its numbers.

    Raises:
        ConfigError: another ending, a number out of range, or a table of other patches or another index.
        OutputExistsError: the file exists and `overwrite` is not set.
    """
    out = Path(out)
    if not 1 <= limit <= MAX_CARDS:
        raise ConfigError(f"{limit} patches to show: out of range. Expected 1 to {MAX_CARDS}.")
    check_page(out, overwrite)
    results = judge(details, patches.patch_ids, index.images, answers, patches.sizes)
    rows = choose(results, limit)
    plan = plan_map(lay_out(list(index.images.values())), results, rows)
    cards, crops = make_cards(results, rows, index, patches, plan.overviews, progress)
    progress("writing the page", 0, None)
    paths = patches.paths if len(patches.paths) == len(patches) else ()
    names = Names(plan.layout, index.images, paths)
    views = [card_view(card, order, names) for order, card in enumerate(cards)]
    no_answer = int((~results.has_answer).sum())
    page = PageView(
        title=title or "Matches",
        summary=_summary(index, results),
        score=None if results.score is None else score_summary(results.score, no_answer),
        figures=confidence_figures(results),
        map=draw_map(plan, results, crops.overviews, rows),
        cards=views,
        cards_note=_cards_note(len(views), len(patches), answers is not None),
        filters=filters(views, plan.layout, answers is not None),
    )
    write_html(out, render(page), overwrite)
    failures = int((results.has_answer & ~results.is_right)[rows].sum())
    return PageReport(out, len(patches), len(rows), failures, out.stat().st_size)


def render(page: PageView) -> str:
    """Return the HTML of a page; every text and attribute is escaped."""
    return render_template("page.html", page.title, script="page.js", page=page)


def _summary(index: IndexFolder, results: PatchResults) -> str:
    images, patches = len(index.images), len(results.best)
    text = (
        f"{patches} patch{'es' * (patches != 1)}, searched in {images} image{'s' * (images != 1)} with "
        f"{len(index.vectors)} windows; encoder {index.encoder.name}"
    )
    counts = {name: int((results.best.status == name).sum()) for name in ("not_found", "partly_searched")}
    return text + "".join(f"; {n} {name.replace('_', ' ')}" for name, n in counts.items() if n)


def _cards_note(shown: int, total: int, has_answers: bool) -> str:
    number = "All patches" if shown == total else f"{shown} of {total} patches"
    if has_answers:
        return (
            f"{number} are shown: failures first, the most confident on top; then an even selection by "
            "rising confidence."
        )
    return f"{number} are shown: the least confident first, then an even selection by rising confidence."
