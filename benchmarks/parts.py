"""Designs of a search for patches of which only a part is visible: recall, size and time on equal queries.

    votes        every part of a patch votes for places, by the parts of the database that resemble it most;
                 the inner product that exceeds what a share of all parts reaches is the weight of a vote
    windows      `retrieval.index.parts`: codes of windows of 36 parts, then their parts
    everywhere   `retrieval.matching.local_search`: descriptors compared at every place

The queries equal the queries of `benchmarks/accuracy.py`. `--upright` leaves out the turned copies of the
database.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from context import context
from numpy.typing import NDArray
from protocol import (
    GROUPS,
    TURNS,
    Database,
    Question,
    ask,
    calibration_error,
    database_of,
    is_right,
    look_alikes,
    part,
    recalled,
    share,
)

from retrieval.config import SearchConfig
from retrieval.evaluation.scoring import score
from retrieval.evaluation.submission import Submission
from retrieval.index.parts import CODES, PARTS, PartsIndex, Projection, joined, write_parts
from retrieval.matching.exhaustive import rank_candidates, search_uncertain
from retrieval.matching.local_search import best_of_cells, best_places, merge_best, shipped_local_search
from retrieval.matching.parts_search import find_places
from retrieval.matching.session import Session
from retrieval.matching.tensors import Templates
from retrieval.matching.visible import VisiblePatches
from retrieval.models.calibration import calibration_features, calibration_of
from retrieval.models.encoder import load_encoder
from retrieval.models.local_descriptors import shipped_descriptors
from retrieval.types import Candidates, RankedCandidates
from tfrecords.schema import to_scaled

RECALLED = (1, 20, 100, 500, 2000)
"""Numbers of places for which recall is reported."""
SEARCH = SearchConfig(round2_max_candidates=2000)
"""As many places as recall needs."""
NOWHERE = 10**6, 0, 0
"""Image, x and y of an answer that is wrong: of a patch without enough texture, which is not searched."""
VOTE_SHARES = (0.1, 0.01)
"""Shares of the database's parts whose votes count."""
FITTED = 40
"""First images that the projection is fitted to."""
SAMPLED = 23
"""One part of this many tells what a share of all parts reaches."""


class TurnedImages:
    """The images of a database, turned when they are read; implements `Pixels`."""

    def __init__(self, database: Database, turns: int = TURNS) -> None:
        """Read the upright images."""
        self._upright = dict(database.upright())
        self._bands = database.bands
        self.ids = [TURNS * rank + turn for rank in self._upright for turn in range(turns)]

    def bands(self, image_id: int) -> tuple[str, ...]:
        """Return the names of the bands."""
        return self._bands

    def size(self, image_id: int) -> tuple[int, int]:
        """Return height and width of an image."""
        height, width = self._upright[image_id // TURNS].pixels.shape[:2]
        return (width, height) if image_id % TURNS % 2 else (height, width)

    def scaled(self, image_id: int, window: tuple[int, int, int, int] | None = None) -> NDArray[np.float32]:
        """Return an image or a window (x, y, width, height) of it."""
        image = self._upright[image_id // TURNS]
        x, y, width, height = window or (0, 0, *self.size(image_id)[::-1])
        pixels = turned_view(image.pixels, image_id % TURNS)[y : y + height, x : x + width]
        return to_scaled(np.ascontiguousarray(pixels), image.units, image.nodata)

    def squares(self, image_id: int, corners: NDArray[np.int64], side: int) -> NDArray[np.float32]:
        """Return squares of an image from their corners."""
        return np.stack([self.scaled(image_id, (x, y, side, side)) for x, y in corners.tolist()])

    @property
    def megapixels(self) -> float:
        """Pixels of all images, in millions."""
        return sum(float(np.prod(self.size(i))) for i in self.ids) / 1e6


def turned_view(pixels: NDArray[Any], turn: int) -> NDArray[Any]:
    """Return one of `protocol.turned` without a copy."""
    return np.rot90(pixels if turn < 4 else pixels[:, ::-1], turn % 4)


# --- votes ------------------------------------------------------------------------------------------


def places_by_votes(session: Session, vote_share: float) -> Candidates:
    """Let every part of a patch vote for places, by exact inner products with all parts of the database.

    Args:
        session: its queries are NaN where hidden.
        vote_share: share of the parts of the database whose votes count, for each part of a patch.
    """
    local, queries = shipped_local_search(), session.queries
    rows, columns = np.arange(len(queries)), tuple(range(len(queries.bands)))
    asked = joined(local.describe(*Templates(queries, columns).take(rows, 1)), 1)  # (n, 11, 11, 96)
    stored = {}
    for image_id in session.image_ids:
        stored[image_id] = joined(local.describe_image(session.images.scaled(image_id)))
    sample = np.concatenate([p.reshape(-1, p.shape[-1])[::SAMPLED] for p in stored.values()])
    found = []
    for patch in asked:
        parts = patch.reshape(-1, patch.shape[-1]).T
        beyond = np.quantile(sample @ parts, 1 - vote_share, axis=0).astype(np.float32)
        places = [best_of_cells(_votes(p, parts, beyond), i, 0, 0) for i, p in stored.items()]
        best, ids = merge_best(places, 4 * SEARCH.round2_max_candidates)
        found.append((best, ids))
    width = max(b.shape[1] for b, _ in found)
    best = np.concatenate(
        [np.pad(b, ((0, 0), (0, width - b.shape[1])), constant_values=-1) for b, _ in found]
    )
    ids = np.concatenate([np.pad(i, ((0, 0), (0, width - i.shape[1])), constant_values=-1) for _, i in found])
    return best_places(best, ids, session.search)


def _votes(
    stored: NDArray[np.float32], parts: NDArray[np.float32], beyond: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Sum the votes for the places of an image, every 4 px: (h, w, 1)."""
    h, w, _ = stored.shape
    votes = np.maximum(stored.reshape(h * w, -1) @ parts - beyond, 0).reshape(h, w, -1)
    side = int(np.sqrt(votes.shape[-1]))
    places, count = np.zeros((2, 2 * h, 2 * w), np.float32)
    for number in range(votes.shape[-1]):
        y, x = divmod(number, side)
        # A part at (row, column) of the database votes for the place 2 row - y, 2 column - x.
        top, left = -(-y // 2), -(-x // 2)
        target = np.s_[2 * top - y : 2 * h - y : 2, 2 * left - x : 2 * w - x : 2]
        places[target] += votes[top:, left:, number]
        count[target] += 1
    whole = count.max(initial=1.0)
    return (places * whole / np.maximum(count, 1))[: 2 * h - 10, : 2 * w - 10, None]


# --- measuring --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """A design on the queries."""

    name: str
    candidates: Candidates
    ms_per_patch: float
    kilobytes: float
    """Of an image of 512 x 512 px."""
    parts: PartsIndex | None = None
    """Searched by the engine for the score; None where correlation ranks the candidates."""


def measured(name: str, session: Session, find: Callable[[Session], Candidates], size: float) -> Measured:
    """Run a design on the queries, after a few that compile what it needs."""
    find(session.select(slice(0, 2)))
    start = time.process_time()
    candidates = find(session)
    return Measured(name, candidates, 1000 * (time.process_time() - start) / len(session.queries), size)


def figures(one: Measured, session: Session, question: Question, rank: bool) -> dict[str, Any]:
    """Return recall, and the score of what correlation makes of the candidates."""
    answers = question.answers
    found = {k: recalled(one.candidates, answers, k) for k in RECALLED}
    result: dict[str, Any] = {"recall": {str(k): share(v, answers) for k, v in found.items()}}
    result |= {"ms_per_patch": one.ms_per_patch, "kilobytes": one.kilobytes}
    if rank and one.parts is not None:
        result |= engine_figures(replace(session, parts=one.parts, search=SearchConfig()), question)
    elif rank:
        start = time.process_time()
        ranked = rank_candidates(session, one.candidates)
        result["ranking_ms_per_patch"] = 1000 * (time.process_time() - start) / len(answers.x)
        first = (v[:, 0] for v in (ranked.image_ids, ranked.x, ranked.y))
        given = Submission(answers.patch_ids, *first, source="answer")
        for kind, rows in question.kinds().items():
            if kind in ("all", "with features"):
                result[f"SC {kind}"] = score(part(given, rows), part(answers, rows)).to_dict()["SC"]
    recall = "  ".join(f"{k} {v['value']:.3f}" for k, v in result["recall"].items())
    scored = f"  SC {result['SC all']['value']:.3f}" if rank else ""
    print(f"{one.name}: {recall}{scored}  {one.ms_per_patch:.0f} ms  {one.kilobytes:.0f} KB", flush=True)
    return result


def engine_figures(session: Session, question: Question) -> dict[str, Any]:
    """Return score and calibration of the engine where every patch is uncertain and searches the parts."""
    answers, start = question.answers, time.process_time()
    hidden = session.with_queries(question.patches)
    ranked = search_uncertain(hidden, RankedCandidates.empty(len(answers.x), 20)).candidates
    result: dict[str, Any] = {"engine_ms_per_patch": 1000 * (time.process_time() - start) / len(answers.x)}
    first = (v[:, 0] for v in (ranked.image_ids, ranked.x, ranked.y))
    image_ids, x, y = (
        np.where(ranked.image_ids[:, 0] < 0, v, w) for v, w in zip(NOWHERE, first, strict=True)
    )
    given = Submission(answers.patch_ids, image_ids, x, y, source="answer")
    for kind, rows in question.kinds().items():
        if kind in ("all", "with features"):
            result[f"SC {kind}"] = score(part(given, rows), part(answers, rows)).to_dict()["SC"]
    right = is_right(given.image_ids, given.x, given.y, answers)
    calibration = calibration_of(load_encoder("siamese"))
    stated = np.nan_to_num(calibration.probability(calibration_features(ranked)))
    result["stated"] = float(stated.mean())
    result["right"] = share(right, answers)
    result["wrong"] = look_alikes(given, right)
    result["calibration_error"] = calibration_error(stated, right, answers)
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the designs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of `train` and `val`")
    parser.add_argument("--out", type=Path, default=Path("build/parts"))
    parser.add_argument("--group", default="cities under cloud", choices=GROUPS)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--generated", type=int, help="number of generated scenes; default: the group's")
    parser.add_argument("--every", type=int, default=1, help="take one query of this many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--upright", action="store_true")
    parser.add_argument("--designs", nargs="+", default=["windows", "votes", "everywhere"])
    parser.add_argument("--rank", action="store_true", help="also correlate the candidates, and score")
    args = parser.parse_args(arguments)
    group = GROUPS[args.group]
    group = replace(group, generated=group.generated if args.generated is None else args.generated)
    images = TurnedImages(database_of(args.data, group), 1 if args.upright else TURNS)
    question = ask(args.data, group, args.queries, args.seed)
    rows = np.arange(0, len(question.patches), args.every)
    question = subset(question, rows)
    visible = VisiblePatches(question.patches, SEARCH).select(np.arange(len(rows)))
    session = Session(images, visible, search=SEARCH, image_ids=images.ids)
    results: dict[str, Any] = {}
    for design in args.designs:
        for one in designs(design, session, images, args.out):
            results[one.name] = figures(one, session, question, args.rank)
    note = {"context": context(queries=len(rows), megapixels=images.megapixels)}
    note |= {"group": args.group, "seed": args.seed, "every": args.every}
    name = f"parts-{images.megapixels:.0f}.json"
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / name).write_text(json.dumps(note | {"designs": results}, indent=1))


def designs(name: str, session: Session, images: TurnedImages, out: Path) -> list[Measured]:
    """Run a design with each of its settings."""
    per_image = 512 * 512 / (1e6 * images.megapixels) / 1024

    def described(image_id: int) -> NDArray[Any]:
        return shipped_descriptors().describe_image(images.scaled(image_id))

    if name == "windows":
        folder = out / f"index-{images.megapixels:.0f}"
        if not (folder / "parts.faiss").exists():
            folder.mkdir(parents=True, exist_ok=True)
            projection = Projection.fit(map(described, images.ids[:FITTED]))
            parts = ((i, projection.parts(described(i))) for i in images.ids)
            write_parts(folder / PARTS, folder / CODES, parts, projection)
        index = PartsIndex.open(folder)
        size = sum(f.stat().st_size for f in folder.iterdir()) * per_image
        found = measured("windows", session, partial(find_places, index), size)
        return [replace(found, parts=index)]
    if name == "votes":
        # 16 bytes for each part, every 8 px: what an inverted list of quantized parts takes.
        return [
            measured(f"votes of {v:.0%}", session, lambda s, v=v: places_by_votes(s, v), 62 * 62 * 16 / 1024)
            for v in VOTE_SHARES
        ]
    return [measured("everywhere", session, shipped_local_search().search_images, 0)]


def subset(question: Question, rows: NDArray[np.intp]) -> Question:
    """Return some queries."""
    return Question(
        question.patches.select(rows),
        part(question.answers, rows),
        question.places[rows],
        question.dates[rows],
        question.edges[rows],
    )


if __name__ == "__main__":
    main()
