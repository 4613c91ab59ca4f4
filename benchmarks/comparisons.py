"""Comparisons of the accuracy benchmark: encoders, exhaustive NCC, and variants of a group."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from exhaustive import search
from failures import Failure
from numpy.typing import NDArray
from protocol import GROUPS, RECALLED, Database, Question, ask, part, share_less, title

from retrieval.config.engine import PartsChoice
from retrieval.evaluation.scoring import compare, score
from retrieval.evaluation.submission import Submission

Recalled = dict[int, NDArray[np.bool_]]
"""For each k, the queries whose right place is among the first k of the search."""


@dataclass
class Run:
    """A run: its settings and the results so far."""

    data: Path
    out: Path
    encoders: list[str]
    queries: int
    exhaustive: int
    stride: int
    seed: int
    parts: PartsChoice = "auto"
    groups: dict[str, dict[str, Any]] = field(default_factory=dict)
    questions: dict[str, Question] = field(default_factory=dict)
    answers: dict[tuple[str, str], Submission] = field(default_factory=dict)
    searched: dict[tuple[str, str], Recalled] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0


def compared(run: Run, name: str, database: Database) -> None:
    """Add the differences of each encoder to the first two before it, and to exhaustive NCC."""
    group, question = run.groups[name], run.questions[name]
    of_group = {e: run.answers[name, e] for e in run.encoders if (name, e) in run.answers}
    names = list(of_group)
    for number, encoder in enumerate(names):
        entry = group["encoders"][title(encoder)]
        entry["minus"] = {}
        for yardstick in names[: min(number, 2)]:
            minus = difference(of_group[encoder], of_group[yardstick], question.answers)
            both = [run.searched.get((name, e)) for e in (encoder, yardstick)]
            if all(both):
                shares = {k: share_less(*(b[k] for b in both), question.answers) for k in RECALLED}
                minus["recall"] = {str(k): share for k, share in shares.items()}
            entry["minus"][title(yardstick)] = minus
            print_sc_difference(f"{name}: {title(encoder)} - {title(yardstick)}", minus)
    if run.exhaustive and not GROUPS[name].form_of:
        kept = group.get("exhaustive", {"queries": 0, "encoders": {}})
        same = kept["queries"] == min(run.exhaustive, len(question.patches))
        if not same or set(map(title, names)) != set(kept["encoders"]):
            group["exhaustive"] = beside_exhaustive(run, name, database, of_group)


def difference(a: Submission, b: Submission, answers: Submission) -> dict[str, Any]:
    """Return the paired difference of all figures."""
    return compare(a, b, answers).to_dict()


def print_sc_difference(what: str, minus: dict[str, Any]) -> None:
    """Print a difference of SC."""
    sc = minus["SC"]
    print(f"  {what}: SC {sc['value']:+.3f} [{sc['low']:+.3f}, {sc['high']:+.3f}]", flush=True)


def beside_exhaustive(
    run: Run, name: str, database: Database, submissions: dict[str, Submission]
) -> dict[str, Any]:
    """Measure exhaustive NCC and every encoder on a sample of the queries."""
    question = run.questions[name]
    number = min(run.exhaustive, len(question.patches))
    rows = np.unique(np.linspace(0, len(question.patches) - 1, number).round().astype(np.int64))
    patches = replace(
        question.patches, patch_ids=question.patches.patch_ids[rows], pixels=question.patches.pixels[rows]
    )
    best, spent = search(database, patches)
    answers = part(question.answers, rows)
    exhaustive = score(best, answers).to_dict()
    out: dict[str, Any] = {"queries": len(rows), "seconds_per_query": spent / len(rows), "score": exhaustive}
    out["encoders"] = {}
    for encoder, submission in submissions.items():
        same = part(submission, rows)
        minus = difference(same, best, answers)
        out["encoders"][title(encoder)] = {"score": score(same, answers).to_dict(), "minus": minus}
    sc = {k: v["score"]["SC"]["value"] for k, v in out["encoders"].items()}
    print(
        f"  {name}, {len(rows)} queries: exhaustive NCC SC {exhaustive['SC']['value']:.3f}, "
        f"{out['seconds_per_query']:.2f} s a query; " + ", ".join(f"{k} {v:.3f}" for k, v in sc.items()),
        flush=True,
    )
    return out


def forms(run: Run) -> None:
    """Add the loss by fewer bands or bits, for variants measured together with their group."""
    for (name, encoder), submission in run.answers.items():
        of, entry = GROUPS[name].form_of, run.groups[name]["encoders"][title(encoder)]
        if (of, encoder) not in run.answers or "form" in entry:
            continue
        for missing in {name, of} - set(run.questions):
            run.questions[missing] = ask(run.data, GROUPS[missing], run.queries, run.seed)
        here, there = run.questions[name].answers, run.questions[of].answers
        if all(np.array_equal(getattr(here, f), getattr(there, f)) for f in ("image_ids", "x", "y")):
            entry["form"] = {of: difference(submission, run.answers[of, encoder], here)}
            print_sc_difference(f"{title(encoder)}: {name} - {of}", entry["form"][of])
