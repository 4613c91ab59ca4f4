"""Measure accuracy on real imagery: is the place found, years and seasons apart?

    python benchmarks/accuracy.py DATA --out build/accuracy

DATA holds `train/` and `val/`: a folder for every group of places, a folder for every place, a GeoTIFF for
every date. `docs/accuracy.md` describes the protocol; `protocol.py` implements it.

All encoders of a run share queries and refinement, and exhaustive NCC runs on a sample of the queries. Only
`training-free` is refined differently. It ranks the first 20 places by NCC on the structure tensor and
similarity, in one round, without verifier and local descriptors.

Outputs in --out: `accuracy.json`, `evidence-*.npz` for the calibration, and `failures.html` with the errors.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, get_args

import numpy as np
from comparisons import Recalled, Run, compared, forms
from context import context
from failures import Failure, failures, write_page
from protocol import (
    GROUPS,
    RECALLED,
    TRAINING_FREE,
    Database,
    Question,
    ask,
    by_database,
    calibration_error,
    evidence_file,
    figures,
    is_right,
    look_alikes,
    recalled,
    title,
)

from retrieval.config import IndexConfig, IndexKind, RefineConfig, SearchConfig
from retrieval.config.engine import PartsChoice
from retrieval.errors import UncalibratedWarning
from retrieval.evaluation.submission import Submission
from retrieval.matching.candidates import find_candidates
from retrieval.models.embed import embed_patches
from retrieval.pipeline import Index, build_index
from retrieval.results.matches import Matches
from retrieval.types import Progress
from tfrecords.errors import RetrieveError

PHYSICS = {
    "search": SearchConfig(top_k=256, max_candidates=20, round2_max_candidates=20, exhaustive_budget=0),
    "refinement": RefineConfig(half_res_k=20, verify_k=1),
}
"""Settings of the training-free baseline: NCC decides, in one round."""
DEEP = SearchConfig(top_k=SearchConfig.round2_top_k, max_candidates=SearchConfig.round2_max_candidates)
"""Settings of the search whose order recall is measured in: that of round 2."""


# --- one encoder ----------------------------------------------------------------------------------------


def measure(run: Run, names: list[str], database: Database) -> None:
    """Measure groups that share a database: index it with every encoder, query, compare."""
    for name in names:
        question = run.questions[name] = ask(run.data, GROUPS[name], run.queries, run.seed)
        kinds = {kind: int(rows.sum()) for kind, rows in question.kinds().items()}
        fresh = {"queries": kinds, "bands": GROUPS[name].bands, "encoders": {}}
        run.groups[name] = run.groups.get(name, fresh)
    for encoder in run.encoders:
        if all((name, encoder) in run.answers for name in names):
            continue
        try:
            measure_encoder(run, names, encoder, database)
        except RetrieveError as e:
            print(f"{', '.join(names)}: {title(encoder)} is left out: {e}", file=sys.stderr)
        clear(run.out)
    for name in names:
        results = run.groups[name]["encoders"]
        run.groups[name]["encoders"] = {t: results[t] for t in map(title, run.encoders) if t in results}
        compared(run, name, database)


def measure_encoder(run: Run, names: list[str], encoder: str, database: Database) -> None:
    """Measure one encoder in a separate process, which frees the code compiled for each image size."""
    questions = {name: run.questions[name] for name in names if (name, encoder) not in run.answers}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        kind: IndexKind = "auto" if database.is_enlarged else "exact"
        config = IndexConfig(stride_px=run.stride, kind=kind, parts=run.parts)
        asked = pool.submit(ask_index, run.out, config, encoder, database, questions)
        for name, one in asked.result().items():
            run.groups[name]["encoders"][title(encoder)] = one.result
            run.answers[name, encoder], run.searched[name, encoder] = one.given, one.searched
            run.failures += one.failures


@dataclass(frozen=True)
class Answered:
    """Results of an encoder on a group."""

    result: dict[str, Any]
    given: Submission
    searched: Recalled
    failures: list[Failure]


def ask_index(
    out: Path, config: IndexConfig, encoder: str, database: Database, questions: dict[str, Question]
) -> dict[str, Answered]:
    """Index a database with one encoder and query its groups; skip groups whose bands it refuses."""
    index, counts = built(out, config, encoder, database)
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


def built(out: Path, config: IndexConfig, encoder: str, database: Database) -> tuple[Index, dict[str, Any]]:
    """Index a database."""
    clear(out)
    start = time.perf_counter()
    made_by = "structure-tensor" if encoder == TRAINING_FREE else encoder
    index = build_index(
        database.images(), out / "index", encoder=made_by, config=config, progress=said(encoder)
    )
    counts = {"images": len(index.folder.images), "windows": len(index.folder.vectors)}
    pixels = sum(i.width * i.height for i in index.folder.images.values())
    return index, counts | {"megapixels": round(pixels / 1e6, 1), "index_s": time.perf_counter() - start}


def clear(out: Path) -> None:
    """Remove the index, also an unfinished one."""
    for folder in out.glob("index*"):
        shutil.rmtree(folder)


def said(name: str) -> Progress:
    """Print progress on a terminal."""

    def say(stage: str, done: int, total: int | None) -> None:
        if sys.stderr.isatty():
            print(f"\r{name}: {stage} {done}/{total or '?'}   ", end="", file=sys.stderr)

    return say


def answered(out: Path, name: str, encoder: str, index: Index, question: Question) -> Answered:
    """Locate a group's queries and measure the answers."""
    start = time.perf_counter()
    how = PHYSICS if encoder == TRAINING_FREE else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UncalibratedWarning)
        found = index.matches(question.patches, **how, progress=said(encoder))
    spent = time.perf_counter() - start
    vectors = embed_patches(index.folder.encoder, question.patches.scaled())
    proposed = find_candidates(index.folder.vectors, vectors, DEEP)
    searched = {k: recalled(proposed, question.answers, k) for k in RECALLED}
    given = Submission(found.patch_ids, *found.best(), source="answer")
    right = is_right(given.image_ids, given.x, given.y, question.answers)
    keep_evidence(evidence_file(out, name, encoder), question, found, searched)
    result = {"counts": {"patches": len(question.patches), "query_s": spent}}
    result |= figures(question, given, searched, found.candidates)
    status, counts = np.unique(found.status, return_counts=True)
    result["status"] = dict(zip(status.tolist(), counts.tolist(), strict=True))
    result["wrong"] = look_alikes(given, right)
    # The page sorts errors by confidence, which needs a calibration.
    has_confidence = encoder != TRAINING_FREE and bool(found.calibrated.all())
    if has_confidence:
        result["calibration_error"] = calibration_error(found.confidence, right, question.answers)
        result["stated"] = float(found.confidence.mean())
    wrong = failures(name, title(encoder), question, found) if has_confidence else []
    return Answered(result, given, searched, wrong)


def keep_evidence(path: Path, question: Question, found: Matches, searched: Recalled) -> None:
    """Save the arrays that calibration and later comparisons need."""
    candidates = {f: getattr(found.candidates, f) for f in found.candidates.__dataclass_fields__}
    answers = question.answers
    np.savez(
        path,
        **candidates,
        confidence=found.confidence,
        features=found.features,
        searched=np.stack([searched[k] for k in RECALLED], 1),
        answers=np.stack([answers.image_ids, answers.x, answers.y], 1),
        places=question.places.astype("U32"),
        edges=question.edges,
        featureless=question.featureless,
    )


def line(group: str, encoder: str, result: dict[str, Any]) -> str:
    """Return a row of the printed table."""
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
    """Copy the results and evidence of an earlier run, group by group.

    If two folders hold the same result, the first counts.

    Raises:
        SystemExit: the earlier run had other settings.
    """
    former = json.loads((folder / "accuracy.json").read_text())
    ours = {"queries": run.queries, "seed": run.seed, "stride_px": run.stride}
    if {k: former[k] for k in ours} != ours:
        sys.exit(f"{folder}/accuracy.json was asked otherwise; expected {ours}")
    run.seconds += former["seconds"]
    for name, group in former["groups"].items():
        there = [e for e in run.encoders if title(e) in group["encoders"] and (name, e) not in run.answers]
        kept = run.groups.setdefault(name, group | {"encoders": {}})
        kept["encoders"] |= {title(e): group["encoders"][title(e)] for e in there}
        beside = kept.get("exhaustive", {}).get("encoders", {})
        for other in set(beside) - set(kept["encoders"]):
            del beside[other]
        for encoder in there:
            take_answers(run, folder, name, encoder)


def take_answers(run: Run, folder: Path, name: str, encoder: str) -> None:
    """Return the answers of an encoder in an earlier run, and copy their evidence."""
    mine, kept = (evidence_file(f, name, encoder) for f in (run.out, folder))
    if not mine.exists():
        shutil.copy(kept, mine)
    with np.load(mine, allow_pickle=False) as content:
        best = [np.maximum(content[f][:, 0], 0) for f in ("image_ids", "x", "y")]
        if "searched" in content:
            run.searched[name, encoder] = dict(zip(RECALLED, content["searched"].T, strict=True))
    run.answers[name, encoder] = Submission(np.arange(len(best[0])), *best, source="answer")


def write(run: Run, start: float) -> None:
    """Write the JSON and the page of the results so far."""
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
    """Measure the groups and write table, JSON and pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with train/ and val/")
    parser.add_argument("--out", type=Path, default=Path("build/accuracy"))
    parser.add_argument(
        "--encoder",
        action="append",
        help="name, .keras file or training-free; each is compared with the first two; default: all three",
    )
    parser.add_argument("--group", action="append", choices=list(GROUPS))
    parser.add_argument("--queries", type=int, default=300, help="queries per group")
    parser.add_argument(
        "--exhaustive", type=int, default=24, help="queries per group for exhaustive NCC; 0 turns it off"
    )
    parser.add_argument(
        "--keep",
        action="append",
        type=Path,
        metavar="FOLDER",
        help="reuse the results of an earlier or interrupted run in this folder; may be --out",
    )
    parser.add_argument("--stride", type=int, default=IndexConfig.stride_px)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--parts",
        choices=get_args(PartsChoice),
        default="auto",
        help="which databases hold parts",
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    encoders = args.encoder or [TRAINING_FREE, "structure-tensor", "siamese"]
    asked = args.queries, args.exhaustive, args.stride, args.seed, args.parts
    run = Run(args.data, args.out, encoders, *asked)
    start = time.perf_counter()
    wanted = args.group or [*GROUPS]
    for folder in args.keep or ():
        take_up(run, folder)
    for database, names in by_database(run.data, wanted).items():
        measure(run, names, database)
        forms(run)
        write(run, start)


if __name__ == "__main__":
    main()
