"""One HTML page of wrong answers, the most confident first.

The page contains its pictures and shows real imagery, so it belongs into `build/` and is never committed.
"""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from protocol import NEAR_PX, Question, is_right

from retrieval.report.pictures import stretch
from retrieval.results.matches import Matches

STYLE = """
body{font:15px/1.4 system-ui,sans-serif;margin:2em;color:#1a1a1a;background:#fff}
.card{display:inline-block;vertical-align:top;margin:0 1.2em 1.2em 0;border-top:3px solid #c44200}
.unsure{border-color:#bbb} figure{display:inline-block;margin:0 4px 0 0;font-size:12px;color:#555}
img{width:144px;height:144px;image-rendering:pixelated;background:#eee;display:block}
p{margin:.2em 0;max-width:450px}
"""


@dataclass(frozen=True)
class Failure:
    """A wrong answer."""

    confidence: float
    """Confidence of the answer."""
    text: str
    """Group, encoder, place, answer and right answer."""
    pictures: tuple[tuple[str, bytes], ...]
    """Caption and PNG of the patch, the answer and the right place."""


def failures(group: str, encoder: str, question: Question, found: Matches, most: int = 16) -> list[Failure]:
    """Return the wrong answers of a group, the most confident first."""
    image_ids, x, y = found.best()
    wrong = np.flatnonzero(~is_right(image_ids, x, y, question.answers))
    worst = wrong[np.argsort(-found.confidence[wrong], kind="stable")][:most]
    return [_failure(f"{group}, {encoder}", question, found, int(row)) for row in worst]


def _failure(title: str, question: Question, found: Matches, row: int) -> Failure:
    image_ids, x, y = (int(v[row]) for v in found.best())
    right = question.answers
    truth = int(right.image_ids[row]), int(right.x[row]), int(right.y[row])
    far = f"{np.hypot(x - truth[1], y - truth[2]):.0f} px off" if image_ids == truth[0] else "another image"
    at_search = found.candidates.image_ids[row] == truth[0]
    near = np.hypot(found.candidates.x[row] - truth[1], found.candidates.y[row] - truth[2]) <= NEAR_PX
    listed = "among the candidates kept" if (at_search & near).any() else "not among the candidates kept"
    text = (
        f"{title}: {question.places[row]}, query {row} of {question.dates[row]}; found image {image_ids} at "
        f"{x}, {y} ({far}), NCC {found.candidates.ncc[row, 0]:.2f}; right is image {truth[0]} at {truth[1]}, "
        f"{truth[2]}, {listed}"
    )
    shown = [("patch", found.query(row))]
    for caption, (image, left, top) in (("found", (image_ids, x, y)), ("right", truth)):
        shown.append((caption, found.folder.scaled(image, (left, top, 64, 64))))
    return Failure(float(found.confidence[row]), text, tuple((c, png(p)) for c, p in shown))


def png(scaled: NDArray[np.float32]) -> bytes:
    """Return a picture (h, w, b), stretched, as PNG."""
    from matplotlib.image import imsave

    file = BytesIO()
    imsave(file, stretch(scaled), format="png")
    return file.getvalue()


def write_page(all_failures: list[Failure], path: Path, note: str) -> None:
    """Write a self-contained HTML file, the most confident failures first."""
    ordered = sorted(all_failures, key=lambda f: -f.confidence)
    cards = "\n".join(_card(f) for f in ordered)
    path.write_text(
        "<!doctype html><html lang=en><meta charset=utf-8><title>What went wrong</title>"
        f"<style>{STYLE}</style><h1>What went wrong, the worst first</h1>"
        f"<p>{escape(note)}</p>\n{cards}\n</html>\n"
    )


def _card(failure: Failure) -> str:
    pictures = [(caption, b64encode(data).decode()) for caption, data in failure.pictures]
    figures = "".join(
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">{caption}</figure>'
        for caption, data in pictures
    )
    kind = "card" if failure.confidence >= 0.5 else "card unsure"
    stated = f"<p><b>stated {failure.confidence:.2f}</b> {escape(failure.text)}</p>"
    return f'<div class="{kind}">{figures}{stated}</div>'
