"""One HTML page of what was found: no network, no server, nothing beside it.

`found` reads the table of candidates and chooses patches, `gather` cuts and correlates what they show,
`places` and `map` put images and footprints on sheets, `figures` and `charts` draw the numbers, `cards`
writes down each patch; `markup` escapes all of it. Style and script are files beside this one, and go
into the page whole: the page's own security policy names their hashes, lets no other script run and
nothing be fetched.
"""

from __future__ import annotations

from retrieval.report.page.found import Results, read_details, results
from retrieval.report.page.runs import read_benchmark, read_training
from retrieval.report.page.write import MOST, MOST_SHOWN, PageMade, write_page

__all__ = [
    "MOST",
    "MOST_SHOWN",
    "PageMade",
    "Results",
    "read_benchmark",
    "read_details",
    "read_training",
    "results",
    "write_page",
]
