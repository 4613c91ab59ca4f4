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
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from context import context
from exhaustive import search
from failures import Failure, failures, write_page
from numpy.typing import NDArray
from protocol import (
    GROUPS,
    RECALLED,
    Database,
    Question,
    ask,
    by_database,
    evidence_file,
    figures,
    part,
    recalled,
    share_less,
    title,
)

from retrieval import build_index
from retrieval.config import IndexConfig, SearchConfig
from retrieval.embed import embed_patches
from retrieval.errors import RetrieveError
from retrieval.matches import Matches
from retrieval.pipeline import Index
from retrieval.score import Submission, compare, score
from retrieval.search import find_candidates
from retrieval.types import Progress

DEEP = SearchConfig(windows=SearchConfig.deep_windows, places=SearchConfig.deep_places)
"""What the search of the second round proposes: the order that recall is measured in."""


Recalled = dict[int, NDArray[np.bool_]]
"""Which queries' right places search proposes among its first so many."""


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
    searched: dict[tuple[str, str], Recalled] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0


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
        except RetrieveError as e:
            print(f"{', '.join(names)}: {title(encoder)} is left out: {e}", file=sys.stderr)
        clear(run.out)
    for name in names:
        compared(run, name, database)


def measure_encoder(run: Run, names: list[str], encoder: str, database: Database) -> None:
    """One encoder, in a process of its own: what is compiled for every size of image goes with it."""
    questions = {name: run.questions[name] for name in names}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        asked = pool.submit(ask_index, run.out, run.stride, encoder, database, questions)
        for name, one in asked.result().items():
            run.groups[name]["encoders"][title(encoder)] = one.result
            run.answers[name, encoder], run.searched[name, encoder] = one.given, one.searched
            run.failures += one.failures


@dataclass(frozen=True)
class Answered:
    """What an encoder made of a group."""

    result: dict[str, Any]
    given: Submission
    searched: Recalled
    failures: list[Failure]


def ask_index(
    out: Path, stride: int, encoder: str, database: Database, questions: dict[str, Question]
) -> dict[str, Answered]:
    """Index a database with one encoder and ask the groups of it; what it can't take is left out."""
    index, counts = built(out, stride, encoder, database)
    answers = {}
    for name, question in questions.items():
        try:
            answers[name] = answered(out, name, encoder, index, question)
        except RetrieveError as e:  # an encoder for four bands only, say
            print(f"{name}: {title(encoder)} is left out: {e}", file=sys.stderr)
            continue
        answers[name].result["counts"].update(counts)
        print(line(name, title(encoder), answers[name].result), flush=True)
    return answers


def built(out: Path, stride: int, encoder: str, database: Database) -> tuple[Index, dict[str, Any]]:
    """Index a database."""
    clear(out)
    start = time.perf_counter()
    config = IndexConfig(stride_px=stride, kind="exact")
    index = build_index(
        database.images(), out / "index", encoder=encoder, config=config, progress=said(encoder)
    )
    counts = {"images": len(index.store.images), "windows": len(index.store.vectors)}
    pixels = sum(i.width * i.height for i in index.store.images.values())
    return index, counts | {"megapixels": round(pixels / 1e6, 1), "index_s": time.perf_counter() - start}


def clear(out: Path) -> None:
    """No index is left behind, nor a part of one."""
    for folder in out.glob("index*"):
        shutil.rmtree(folder)


def said(name: str) -> Progress:
    """Progress on a terminal."""

    def say(stage: str, done: int, total: int | None) -> None:
        if sys.stderr.isatty():
            print(f"\r{name}: {stage} {done}/{total or '?'}   ", end="", file=sys.stderr)

    return say


def answered(out: Path, name: str, encoder: str, index: Index, question: Question) -> Answered:
    """Ask an index a group's queries and measure the answers."""
    start = time.perf_counter()
    found = index.matches(question.patches, progress=said(encoder))
    spent = time.perf_counter() - start
    vectors = embed_patches(index.store.encoder, question.patches.scaled())
    proposed = find_candidates(index.store.vectors, vectors, DEEP)
    searched = {k: recalled(proposed, question.answers, k) for k in RECALLED}
    given = Submission(found.patch_ids, *found.best(), source="answer")
    keep_evidence(evidence_file(out, name, encoder), question, found, searched)
    result = {"counts": {"patches": len(question.patches), "query_s": spent}}
    result |= figures(question, given, searched, found.candidates)
    return Answered(result, given, searched, failures(name, title(encoder), question, found))


def keep_evidence(path: Path, question: Question, found: Matches, searched: Recalled) -> None:
    """Everything that calibration and later comparisons need, and who is who."""
    candidates = {f: getattr(found.candidates, f) for f in found.candidates.__dataclass_fields__}
    answers = question.answers
    np.savez(
        path,
        **candidates,
        confidence=found.confidence,
        searched=np.stack([searched[k] for k in RECALLED], 1),
        answers=np.stack([answers.image_ids, answers.x, answers.y], 1),
        places=question.places.astype("U32"),
        edges=question.edges,
        featureless=question.featureless,
    )


# --- comparisons ----------------------------------------------------------------------------------------


def compared(run: Run, name: str, database: Database) -> None:
    """Differences between encoders, and to exhaustive NCC."""
    group, question = run.groups[name], run.questions[name]
    of_group = {e: run.answers[name, e] for e in run.encoders if (name, e) in run.answers}
    yardstick = next(iter(of_group), "")
    for encoder in [e for e in of_group if e != yardstick]:
        minus = difference(of_group[encoder], of_group[yardstick], question.answers)
        both = [run.searched.get((name, e)) for e in (encoder, yardstick)]
        if all(both):
            minus["recall"] = {str(k): share_less(*(b[k] for b in both), question.answers) for k in RECALLED}
        group["encoders"][title(encoder)]["minus"] = {title(yardstick): minus}
        told_sc(f"{name}: {title(encoder)} - {title(yardstick)}", group["encoders"][title(encoder)]["minus"])
    if run.exhaustive and not GROUPS[name].form_of:
        group["exhaustive"] = beside_exhaustive(run, name, database, of_group)


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


def forms(run: Run) -> None:
    """What fewer bands or bits cost, wherever both forms are measured and it isn't told yet."""
    for (name, encoder), given in run.answers.items():
        of, own = GROUPS[name].form_of, run.groups[name]["encoders"][title(encoder)]
        if (of, encoder) not in run.answers or "form" in own:
            continue
        here, there = run.questions[name].answers, run.questions[of].answers
        if all(np.array_equal(getattr(here, f), getattr(there, f)) for f in ("image_ids", "x", "y")):
            own["form"] = {of: difference(given, run.answers[of, encoder], here)}
            told_sc(f"{title(encoder)}: {name} - {of}", own["form"])


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


def take_up(run: Run, folder: Path) -> None:
    """Keep the groups that an earlier run has measured with all of the encoders, and their evidence.

    Raises:
        SystemExit: it was asked in another way.
    """
    former = json.loads((folder / "accuracy.json").read_text())
    ours = {"queries": run.queries, "seed": run.seed, "stride_px": run.stride}
    if {k: former[k] for k in ours} != ours:
        sys.exit(f"{folder}/accuracy.json was asked otherwise; expected {ours}")
    whole = {
        name: group
        for name, group in former["groups"].items()
        if {title(e) for e in run.encoders} <= set(group["encoders"])
    }
    run.seconds += former["seconds"]
    run.groups |= whole
    for name in whole:
        run.questions[name] = ask(run.data, GROUPS[name], run.queries, run.seed)
        for encoder in run.encoders:
            mine, kept = (evidence_file(f, name, encoder) for f in (run.out, folder))
            if not mine.exists():
                shutil.copy(kept, mine)
            with np.load(mine, allow_pickle=False) as content:
                best = [np.maximum(content[f][:, 0], 0) for f in ("image_ids", "x", "y")]
                if "searched" in content:
                    run.searched[name, encoder] = dict(zip(RECALLED, content["searched"].T, strict=True))
            run.answers[name, encoder] = Submission(np.arange(len(best[0])), *best, source="answer")


def write(run: Run, start: float) -> None:
    """The JSON and the page, as far as they are."""
    result = {
        "context": context(),
        "queries": run.queries,
        "seed": run.seed,
        "stride_px": run.stride,
        "seconds": run.seconds + time.perf_counter() - start,
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
    parser.add_argument(
        "--keep",
        action="append",
        type=Path,
        metavar="FOLDER",
        help="take up the groups measured there, by another run or one that was stopped; may be --out",
    )
    parser.add_argument("--stride", type=int, default=IndexConfig.stride_px)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    encoders = args.encoder or ["structure-tensor", "siamese"]
    run = Run(args.data, args.out, encoders, args.queries, args.exhaustive, args.stride, args.seed)
    start = time.perf_counter()
    for folder in args.keep or ():
        take_up(run, folder)
    wanted = [n for n in args.group or GROUPS if n not in run.groups]
    for database, names in by_database(run.data, wanted).items():
        measure(run, names, database)
        forms(run)
        write(run, start)
    forms(run)
    write(run, start)


if __name__ == "__main__":
    main()
