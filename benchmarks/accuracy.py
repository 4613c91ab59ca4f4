"""Accuracy on real imagery: is the place found, years and seasons apart?

    python benchmarks/accuracy.py DATA --out build/accuracy

DATA holds `train/` and `val/`, each with a folder for every group of places, a folder for every
place and a GeoTIFF for every date. Protocol, for each group of scenes:

* splits are by place. `val` chooses between encoders, so its figures are those of the set that chose;
* queries: patches of every date but the target's, the same number for every place of the group, at
  seeded random places with under 2 % nodata in both dates;
* target: the latest date of every `val` place (the first of Venice and of `pajottenland`);
* database: the targets, the target date of every other `val` place and the latest of every `train` place
  that has the bands, reduced to them, with the seven turned and mirrored copies of each;
* kinds of ground, by the share of a query's pixels with a gradient above 150 DN, before any encoder is
  asked: *featureless* below 13 % (open water, flat lagoon), *texture-poor* from there to 70 %,
  *texture-rich* above.

Encoders are compared in one run, on the same queries, beside exhaustive NCC on a sample of them. Intervals
are bootstrapped over disjoint 256-pixel blocks of ground, differences paired. Left behind in --out:
`accuracy.json`, `evidence-*.npz` for `calibrate.py`, and `failures.html`, a page of what went wrong.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from context import context
from exhaustive import search
from failures import Failure, failures, write_page
from numpy.typing import NDArray
from protocol import GROUPS, Database, Question, ask, database_of, is_right, part, recalled, reranking, told

from retrieval import build_index
from retrieval.config import IndexConfig, SearchConfig
from retrieval.embed import embed_patches
from retrieval.errors import RetrieveError
from retrieval.matches import Matches
from retrieval.pipeline import Index
from retrieval.score import Submission, compare, score
from retrieval.search import find_candidates
from retrieval.types import Candidates, Progress

RECALLED = (1, 5, 20, 500)
"""Recall of the search is told for so many places."""
DEEP = SearchConfig(windows=SearchConfig.deep_windows, places=SearchConfig.deep_places)
"""What the search of the second round proposes: the order that recall is measured in."""


@dataclass
class Run:
    """What is asked for, and what was measured so far."""

    data: Path
    out: Path
    encoders: list[str]
    queries: int
    exhaustive: int
    stride: int
    seed: int
    groups: dict[str, dict[str, Any]] = field(default_factory=dict)
    questions: dict[str, Question] = field(default_factory=dict)
    answers: dict[tuple[str, str], Submission] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)


# --- one encoder ----------------------------------------------------------------------------------------


def measure(run: Run, names: list[str], database: Database) -> None:
    """Groups that share a database: index it with every encoder, ask, compare."""
    for name in names:
        question = run.questions[name] = ask(run.data, GROUPS[name], run.queries, run.seed)
        kinds = {kind: int(rows.sum()) for kind, rows in question.kinds().items()}
        run.groups[name] = {"queries": kinds, "bands": GROUPS[name].bands, "encoders": {}}
    for encoder in run.encoders:
        try:
            measure_encoder(run, names, encoder, database)
        except RetrieveError as e:  # an encoder for four bands only, say
            print(f"{', '.join(names)}: {title(encoder)} is left out: {e}", file=sys.stderr)
        clear(run)
    for name in names:
        compared(run, name, database)


def measure_encoder(run: Run, names: list[str], encoder: str, database: Database) -> None:
    """Index a database with one encoder and ask the groups of it, those with the database's bands first."""
    index, counts = built(run, encoder, database)
    for name in sorted(names, key=lambda n: GROUPS[n].bands != database.bands):
        result = answered(run, name, encoder, index)
        result["counts"] |= counts
        run.groups[name]["encoders"][title(encoder)] = result
        print(line(name, title(encoder), result), flush=True)


def title(encoder: str) -> str:
    """An encoder's name in tables."""
    return Path(encoder).stem


def built(run: Run, encoder: str, database: Database) -> tuple[Index, dict[str, Any]]:
    """Index a database."""
    clear(run)
    start = time.perf_counter()
    config = IndexConfig(stride_px=run.stride, kind="exact")
    index = build_index(
        database.images(), run.out / "index", encoder=encoder, config=config, progress=said(encoder)
    )
    counts = {"images": len(index.store.images), "windows": len(index.store.vectors)}
    pixels = sum(i.width * i.height for i in index.store.images.values())
    return index, counts | {"megapixels": round(pixels / 1e6, 1), "index_s": time.perf_counter() - start}


def clear(run: Run) -> None:
    """No index is left behind, nor a part of one."""
    for folder in run.out.glob("index*"):
        shutil.rmtree(folder)


def said(name: str) -> Progress:
    """Progress on a terminal."""

    def say(stage: str, done: int, total: int | None) -> None:
        if sys.stderr.isatty():
            print(f"\r{name}: {stage} {done}/{total or '?'}   ", end="", file=sys.stderr)

    return say


def answered(run: Run, name: str, encoder: str, index: Index) -> dict[str, Any]:
    """Ask an index a group's queries and measure the answers."""
    question = run.questions[name]
    start = time.perf_counter()
    found = index.matches(question.patches, progress=said(encoder))
    spent = time.perf_counter() - start
    vectors = embed_patches(index.store.encoder, iter([question.patches.scaled()]))
    searched = find_candidates(index.store.vectors, vectors, DEEP)
    run.answers[name, encoder] = Submission(found.patch_ids, *found.best(), source="answer")
    run.failures += failures(name, title(encoder), question, found)
    keep_evidence(run.out / f"evidence-{slug(name)}-{title(encoder)}.npz", question, found)
    counts = {"patches": len(question.patches), "query_s": spent}
    return {"counts": counts} | figures(question, run.answers[name, encoder], searched)


def slug(name: str) -> str:
    """A group's name for files."""
    return re.sub(r"\W+", "-", name)


def keep_evidence(path: Path, question: Question, found: Matches) -> None:
    """Everything that calibration needs, and who is who."""
    candidates = {f: getattr(found.candidates, f) for f in found.candidates.__dataclass_fields__}
    answers = question.answers
    np.savez(
        path,
        **candidates,
        confidence=found.confidence,
        answers=np.stack([answers.image_ids, answers.x, answers.y], 1),
        places=question.places.astype("U32"),
        edges=question.edges,
        featureless=question.featureless,
    )


def figures(question: Question, given: Submission, searched: Candidates) -> dict[str, Any]:
    """Scores, recall of the search and re-ranking, for every kind of ground and every place."""
    answers = question.answers
    right = is_right(given.image_ids, given.x, given.y, answers)
    first = {k: recalled(searched, answers, k) for k in RECALLED}
    out: dict[str, Any] = {}
    for kind, rows in question.kinds().items():
        of_kind = part(answers, rows)
        one = score(part(given, rows), of_kind).to_dict()
        one["recall"] = {str(k): share(found[rows], of_kind) for k, found in first.items()}
        one["right"] = share(right[rows], of_kind)
        out[kind] = one | {"reranking": reranking(first[1][rows], right[rows])}
    return {"scores": out}


def share(right: NDArray[np.bool_], answers: Submission) -> dict[str, float]:
    """A share of queries, with its interval."""
    return score(told(right, answers), answers).to_dict()["SC_img"]  # type: ignore[no-any-return]


# --- comparisons ----------------------------------------------------------------------------------------


def compared(run: Run, name: str, database: Database) -> None:
    """Differences between encoders, to exhaustive NCC, and to the same queries in their full form."""
    group, question = run.groups[name], run.questions[name]
    of_group = {e: run.answers[name, e] for e in run.encoders if (name, e) in run.answers}
    yardstick = next(iter(of_group), "")
    for encoder in [e for e in of_group if e != yardstick]:
        group["encoders"][title(encoder)]["minus"] = {
            title(yardstick): difference(of_group[encoder], of_group[yardstick], question.answers)
        }
        told_sc(f"{name}: {title(encoder)} - {title(yardstick)}", group["encoders"][title(encoder)]["minus"])
    if run.exhaustive and not GROUPS[name].form_of:
        group["exhaustive"] = beside_exhaustive(run, name, database, of_group)
    of = GROUPS[name].form_of
    if of in run.groups:
        for encoder in of_group:
            cost_of_form(run, name, of, encoder)


def difference(a: Submission, b: Submission, answers: Submission) -> dict[str, Any]:
    """Paired difference of all figures."""
    return compare(a, b, answers).to_dict()


def told_sc(what: str, minus: dict[str, Any]) -> None:
    """Print a difference of SC."""
    sc = next(iter(minus.values()))["SC"]
    print(f"  {what}: SC {sc['value']:+.3f} [{sc['low']:+.3f}, {sc['high']:+.3f}]", flush=True)


def beside_exhaustive(
    run: Run, name: str, database: Database, given: dict[str, Submission]
) -> dict[str, Any]:
    """A sample of the queries by exhaustive NCC, and by every encoder."""
    question = run.questions[name]
    number = min(run.exhaustive, len(question.patches))
    rows = np.unique(np.linspace(0, len(question.patches) - 1, number).round().astype(np.int64))
    patches = replace(
        question.patches, patch_ids=question.patches.patch_ids[rows], pixels=question.patches.pixels[rows]
    )
    best, spent = search(database, patches)
    answers = part(question.answers, rows)
    own = score(best, answers).to_dict()
    out: dict[str, Any] = {"queries": len(rows), "seconds_per_query": spent / len(rows), "score": own}
    out["encoders"] = {}
    for encoder, submission in given.items():
        same = part(submission, rows)
        minus = difference(same, best, answers)
        out["encoders"][title(encoder)] = {"score": score(same, answers).to_dict(), "minus": minus}
    sc = {k: v["score"]["SC"]["value"] for k, v in out["encoders"].items()}
    print(
        f"  {name}, {len(rows)} queries: exhaustive NCC SC {own['SC']['value']:.3f}, "
        f"{out['seconds_per_query']:.2f} s a query; " + ", ".join(f"{k} {v:.3f}" for k, v in sc.items()),
        flush=True,
    )
    return out


def cost_of_form(run: Run, name: str, of: str, encoder: str) -> None:
    """What fewer bands or bits cost: the same queries, paired."""
    here, there = run.questions[name].answers, run.questions[of].answers
    same = all(np.array_equal(getattr(here, f), getattr(there, f)) for f in ("image_ids", "x", "y"))
    if same and (of, encoder) in run.answers:
        minus = {of: difference(run.answers[name, encoder], run.answers[of, encoder], here)}
        run.groups[name]["encoders"][title(encoder)]["form"] = minus
        told_sc(f"{title(encoder)}: {name} - {of}", minus)


def line(group: str, encoder: str, result: dict[str, Any]) -> str:
    """A row of the table that people read."""
    counts, scores = result["counts"], result["scores"]
    a, f = scores["all"], scores.get("with features", scores["all"])
    moved, recall = a["reranking"], a["recall"]
    return (
        f"{group:38s} {encoder:18s} {counts['images']:5d} images {counts['windows']:8d} windows "
        f"{counts['patches']:4d} patches  "
        f"SC {a['SC']['value']:.3f} [{a['SC']['low']:.3f}, {a['SC']['high']:.3f}] "
        f"with features {f['SC']['value']:.3f}  in 2 px {a['within_2px']['value']:.3f}  "
        f"in 5 px {a['within_5px']['value']:.3f}  search "
        + " ".join(f"@{k} {recall[str(k)]['value']:.3f}" for k in RECALLED)
        + f"  mended {moved['mended']} broken {moved['broken']}  "
        f"index {counts['index_s']:.0f} s, query {counts['query_s']:.0f} s"
    )


# --- all ------------------------------------------------------------------------------------------------


def by_database(run: Run, names: list[str]) -> dict[Database, list[str]]:
    """Groups, those that share a database together."""
    together: dict[Database, list[str]] = {}
    for name in names:
        together.setdefault(database_of(run.data, GROUPS[name]), []).append(name)
    return together


def write(run: Run, start: float) -> None:
    """The JSON and the page, as far as they are."""
    result = {
        "context": context(),
        "queries": run.queries,
        "seed": run.seed,
        "stride_px": run.stride,
        "seconds": time.perf_counter() - start,
        "groups": {name: run.groups[name] for name in GROUPS if name in run.groups},
    }
    (run.out / "accuracy.json").write_text(json.dumps(result, indent=1) + "\n")
    note = f"{run.queries} queries a group. Bold: the stated probability of being right; grey: below 0.5."
    write_page(run.failures, run.out / "failures.html", note)


def main() -> None:
    """Measure the groups asked for and write table, JSON and pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with train/ and val/")
    parser.add_argument("--out", type=Path, default=Path("build/accuracy"))
    parser.add_argument(
        "--encoder",
        action="append",
        help="name or .keras file, the first is the yardstick; default: both shipped",
    )
    parser.add_argument("--group", action="append", choices=list(GROUPS))
    parser.add_argument("--queries", type=int, default=300, help="for a group")
    parser.add_argument(
        "--exhaustive", type=int, default=24, help="queries of a group by exhaustive NCC; 0: none"
    )
    parser.add_argument("--stride", type=int, default=IndexConfig.stride_px)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    encoders = args.encoder or ["structure-tensor", "siamese"]
    run = Run(args.data, args.out, encoders, args.queries, args.exhaustive, args.stride, args.seed)
    start = time.perf_counter()
    for database, names in by_database(run, args.group or list(GROUPS)).items():
        measure(run, names, database)
        write(run, start)


if __name__ == "__main__":
    main()
