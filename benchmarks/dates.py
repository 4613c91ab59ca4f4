"""Measure confidence with several dates of a place in the index, on the same queries.

    python benchmarks/dates.py DATA --folder venice --dates 1 --dates 2 --dates 6 --held-out 2

Queries come from the last dates of the places of a folder of `val`; the index never holds these dates. It
holds the first dates of these places, as many as asked. Of other places of `val` it holds up to that number.
An answer is right in any date of the place, within 5 px. Differences to the first number of dates are paired.
The evidence in --out serves `benchmarks/calibrate.py`; an interrupted run continues.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from context import arguments, context, table, write_json
from numpy.typing import NDArray
from protocol import (
    RGBN,
    TURNS,
    Group,
    Question,
    ask,
    dates,
    has_bands,
    opened,
    part,
    places,
    share_as_submission,
)

from retrieval.evaluation.calibration_fit import expected_calibration_error
from retrieval.evaluation.intervals import bootstrap_interval, ground_blocks
from retrieval.evaluation.scoring import RESAMPLES, score
from retrieval.evaluation.submission import Submission
from retrieval.models.calibration import RIGHT_PX
from retrieval.pipeline import build_index
from retrieval.results.matches import Matches
from tfrecords.read import ImageSource
from tfrecords.schema import Image

DATES = 100
"""An image number is this times the rank of its place, plus the number of its date."""


@dataclass(frozen=True)
class Answers:
    """Confidence and correctness of every query, for one number of dates."""

    confidence: NDArray[np.float64]
    """(n,)."""
    place: NDArray[np.bool_]
    """(n,) whether the answer is in the right place."""
    right: NDArray[np.bool_]
    """(n,) whether it also lies within 5 px."""


def held_out_queries(data: Path, group: Group, held_out: int, queries: int, seed: int) -> Question:
    """Return the queries of the last dates of each place, without repeats."""
    chosen = [p for p in places(data / "val") if p.parent.name in group.folders]
    last = {str(f.relative_to(data / "val")) for p in chosen for f in dates(p)[-held_out:]}
    share = min(held_out / (len(dates(p)) - 1) for p in chosen)
    question = ask(data, group, round(queries / share), seed)
    asked = question.answers
    key = np.stack([np.unique(question.dates, return_inverse=True)[1], asked.x, asked.y], 1)
    first = np.zeros(len(key), bool)
    first[np.unique(key, axis=0, return_index=True)[1]] = True
    rows = np.flatnonzero(first & np.isin(question.dates, list(last)))[:queries]
    answers = part(asked, rows)
    image_ids = answers.image_ids // TURNS * DATES
    return Question(
        question.patches.select(rows),
        Submission(answers.patch_ids, image_ids, answers.x, answers.y, source="answers"),
        question.places[rows],
        question.dates[rows],
        question.edges[rows],
    )


def images(data: Path, group: Group, count: int, held_out: int) -> ImageSource:
    """Return the images of the index with `count` dates of a place."""
    files: list[tuple[int, Path]] = []
    for rank, place in enumerate(places(data / "val")):
        of_place = dates(place)
        usable = of_place[:-held_out] if place.parent.name in group.folders else of_place
        files += [(DATES * rank + n, f) for n, f in enumerate(usable[:count])]
    files = [(i, f) for i, f in files if has_bands(f, group.bands)]

    def begin() -> Iterator[Image]:
        for image_id, file in files:
            yield replace(opened(file, group.bands), image_id=image_id)

    return ImageSource(f"real imagery, {count} dates", len(files), begin)


def judged(evidence: Path, question: Question) -> Answers:
    """Return confidence and correctness of the answers, by place."""
    answers = question.answers
    with np.load(evidence, allow_pickle=False) as kept:
        image, x, y = (kept[f][:, 0] for f in ("image_ids", "x", "y"))
        near = np.hypot(x - answers.x, y - answers.y) <= RIGHT_PX
        place = image == answers.image_ids
        return Answers(kept["confidence"], place, place & near)


def mean(values: NDArray[Any], answers: Submission) -> dict[str, float] | None:
    """Return a mean with its interval over blocks of ground; None without values."""
    if not len(values):
        return None
    block = ground_blocks(answers)
    out = {"value": float(values.mean()), "number": len(values), "blocks": int(block.max()) + 1}
    if out["blocks"] > 1:
        low, high = bootstrap_interval(values[:, None].astype(np.float64), block, RESAMPLES, 0)
        out |= {"low": float(low[0]), "high": float(high[0])}
    return out


def figures(one: Answers, first: Answers, answers: Submission) -> dict[str, Any]:
    """Return the figures of a number of dates, and the paired differences to the first one."""
    both = one.right & first.right
    gain = one.confidence - first.confidence
    return {
        "place": score(share_as_submission(one.place, answers), answers).to_dict()["SC_img"],
        "right": score(share_as_submission(one.right, answers), answers).to_dict()["SC_img"],
        "confidence_right": mean(one.confidence[one.right], part(answers, one.right)),
        "confidence_wrong": mean(one.confidence[~one.right], part(answers, ~one.right)),
        "calibration_error": expected_calibration_error(one.confidence, one.right),
        "minus_first": {
            "confidence_right_in_both": mean(gain[both], part(answers, both)),
            "lower_by_a_tenth": int((gain[both] < -0.1).sum()),
            "higher_by_a_tenth": int((gain[both] > 0.1).sum()),
            "right": mean(one.right.astype(float) - first.right, answers),
        },
    }


def keep_evidence(path: Path, found: Matches, question: Question) -> None:
    """Save candidates, features and answers as `benchmarks/accuracy.py`; each date has its place's number."""
    kept = {f: getattr(found.candidates, f) for f in found.candidates.__dataclass_fields__}
    kept["image_ids"] = np.where(kept["image_ids"] < 0, -1, kept["image_ids"] // DATES * DATES)
    answers = question.answers
    right = np.stack([answers.image_ids, answers.x, answers.y], 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **kept, features=found.features, confidence=found.confidence, answers=right)


def report(counts: dict[str, dict[str, Any]]) -> None:
    """Print a row for each number of dates."""
    rows = []
    for count, one in counts.items():
        gain = one["minus_first"]["confidence_right_in_both"]
        shown = [one["place"], one["right"], one["confidence_right"], one["confidence_wrong"]]
        rows.append(
            (
                count,
                *("–" if f is None else f"{f['value']:.3f}" for f in shown),
                f"{one['calibration_error']:.3f}",
                f"{gain['value']:+.3f}" if gain else "–",
            )
        )
    head = ("dates", "place", "right", "sure if right", "sure if wrong", "error", "minus first")
    print(table(head, rows), flush=True)


def main() -> None:
    """Index each number of dates, query, compare."""
    parser = arguments(__doc__)
    parser.add_argument("data", type=Path, help="folder with train/ and val/")
    parser.add_argument("--folder", default="venice", help="folder of val whose places are asked")
    parser.add_argument("--dates", type=int, action="append", required=True, help="dates of a place; repeat")
    parser.add_argument("--held-out", type=int, default=2, help="last dates of a place, for queries")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--encoder", default="siamese")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/dates"), help="evidence; kept if it exists")
    args = parser.parse_args()
    of_folder = [p for p in places(args.data / "val") if p.parent.name == args.folder]
    bands = RGBN if has_bands(dates(of_folder[0])[0], RGBN) else RGBN[:3]
    group = Group((args.folder,), bands)
    question = held_out_queries(args.data, group, args.held_out, args.queries, args.seed)
    counts: dict[str, dict[str, Any]] = {}
    first: Answers | None = None
    for count in args.dates:
        evidence = args.out / f"evidence-{args.folder}-with-{count}-dates-{args.encoder}.npz"
        if not evidence.exists():
            source = images(args.data, group, count, args.held_out)
            with tempfile.TemporaryDirectory() as folder:
                index = build_index(source, Path(folder) / "index", encoder=args.encoder)
                keep_evidence(evidence, index.matches(question.patches), question)
        one = judged(evidence, question)
        first = first or one
        counts[str(count)] = figures(one, first, question.answers)
        report(counts)
    shapes = context(queries=len(question.patches), folder=args.folder, held_out=args.held_out)
    write_json(args.json, {"context": shapes, "encoder": args.encoder, "counts": counts})


if __name__ == "__main__":
    main()
