"""Write the tables of docs/accuracy.md and docs/performance.md from the JSON files that the benchmarks leave.

    python benchmarks/tables.py docs/accuracy.md benchmarks/results
    python benchmarks/tables.py docs/performance.md benchmarks/results

What stands between `<!-- table: NAME -->` and `<!-- end -->` is replaced; where the measurement of a table
is not in the folder, its place is left as it is. Files: `accuracy.json`, `subpixel.json`,
`calibration-ENCODER.json`, `tried.json` and `scale.json`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from protocol import GROUPS
from scale_tables import ground_table, markdown, scale_note, scale_table

Row = Sequence[str]
KINDS = ("with features", "texture-rich", "texture-poor", "featureless")
LEARNED = "learned half alone: first", "less the first row's, paired"
MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


# --- cells --------------------------------------------------------------------------------------------


def interval(figure: dict[str, float] | None, signed: bool = False) -> str:
    """A figure with its interval."""
    if figure is None:
        return "–"
    form = "+.3f" if signed else ".3f"
    low, high = (format(figure[k], form) for k in ("low", "high"))
    return f"{figure['value']:{form}} [{low}, {high}]"


def plain(figure: dict[str, float] | None) -> str:
    """A figure alone."""
    return "–" if figure is None else f"{figure['value']:.3f}"


def each(accuracy: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Group, encoder and what was measured."""
    for name, group in accuracy["groups"].items():
        for encoder, result in group["encoders"].items():
            yield name, encoder, result


# --- tables of accuracy.json --------------------------------------------------------------------------


def main_table(accuracy: dict[str, Any]) -> str:
    """Scores after refinement."""
    rows = []
    for name, encoder, result in each(accuracy):
        scores = result["scores"]
        a = scores["all"]
        strict = [plain(a[f"within_{t}px"]) for t in (2, 5)]
        seen = interval(scores.get("with features", a)["SC"])
        rows.append((name, encoder, plain(a["SC_img"]), plain(a["SC_loc"]), interval(a["SC"]), seen, *strict))
    head = ("group", "encoder", "SC_img", "SC_loc", "SC", "SC, with features", "within 2 px", "within 5 px")
    return markdown(head, rows)


def search_table(accuracy: dict[str, Any]) -> str:
    """Recall of the search, and what refinement made of it."""
    rows = []
    for name, encoder, result in each(accuracy):
        a = result["scores"]["all"]
        moved = a["reranking"]
        recall = [plain(a["recall"][k]) for k in ("1", "5", "20", "500")]
        after = [plain(a.get("recall_after", {}).get(k)) for k in ("5", "20")]
        cells = (name, encoder, interval(a["recall"]["1"]), *recall[1:], interval(a["right"]), *after)
        rows.append((*cells, str(moved["mended"]), str(moved["broken"])))
    head = ("group", "encoder", "first", "in 5", "in 20", "in 500", "right after refinement")
    return markdown((*head, "in 5 then", "in 20 then", "mended", "broken"), rows)


def kinds_table(accuracy: dict[str, Any]) -> str:
    """SC by kind of ground."""
    rows = []
    for name, encoder, result in each(accuracy):
        scores, count = result["scores"], accuracy["groups"][name]["queries"]
        cells = [f"{plain(scores[k]['SC'])} ({count[k]})" if k in scores else "–" for k in KINDS]
        rows.append((name, encoder, *cells))
    return markdown(("group", "encoder", *(f"{k}: SC (queries)" for k in KINDS)), rows)


def places_table(accuracy: dict[str, Any]) -> str:
    """SC of every place by the last encoder of each group, of the groups that are no other's form."""
    rows = []
    for name, group in accuracy["groups"].items():
        if not group["encoders"] or GROUPS[name].form_of:
            continue
        encoder, result = next(
            (pair for pair in group["encoders"].items() if pair[0] == "siamese"),
            list(group["encoders"].items())[-1],
        )
        kinds = {"all", *KINDS}
        each_place = [f"{k} {plain(v['SC'])}" for k, v in result["scores"].items() if k not in kinds]
        rows.append((name, encoder, ", ".join(each_place)))
    return markdown(("group", "encoder", "SC by place, all queries"), rows)


def databases_table(accuracy: dict[str, Any]) -> str:
    """What was searched."""
    rows = []
    for name, group in accuracy["groups"].items():
        counts = next((e["counts"] for e in group["encoders"].values()), None)
        if counts:
            number = f"{counts['patches']} ({group['queries'].get('featureless', 0)})"
            size = f"{counts['images']} of {counts['megapixels']:.0f} Mpx", f"{counts['windows']:,}"
            rows.append((name, " ".join(group["bands"]), *size, number))
    return markdown(("group", "bands", "images", "windows", "queries (featureless)"), rows)


def differences_table(accuracy: dict[str, Any]) -> str:
    """Paired differences to the first two encoders of the run."""
    rows = []
    for name, encoder, result in each(accuracy):
        for yardstick, minus in result.get("minus", {}).items():
            found = [minus.get("recall", {}).get(k) for k in ("1", "20")]
            found += [minus["SC"], minus["within_5px"]]
            rows.append((name, f"{encoder} less {yardstick}", *(interval(f, signed=True) for f in found)))
    head = ("search: first", "search: in 20", "SC", "within 5 px")
    return markdown(("group", "encoders", *head), rows)


def exhaustive_table(accuracy: dict[str, Any]) -> str:
    """Exhaustive NCC on a sample of the queries."""
    rows = []
    for name, group in accuracy["groups"].items():
        if "exhaustive" not in group:
            continue
        other = group["exhaustive"]
        own = interval(other["score"]["SC"]), f"{other['seconds_per_query']:.2f} s"
        rows.append((name, str(other["queries"]), "exhaustive NCC", *own, "–"))
        for encoder, result in other["encoders"].items():
            counts = group["encoders"][encoder]["counts"]
            spent = f"{counts['query_s'] / counts['patches']:.2f} s"
            minus = interval(result["minus"]["SC"], signed=True)
            rows.append((name, str(other["queries"]), encoder, interval(result["score"]["SC"]), spent, minus))
    head = ("group", "queries", "method", "SC", "time a query", "less exhaustive, paired")
    return markdown(head, rows)


def bands_table(accuracy: dict[str, Any]) -> str:
    """What other bands, bits and products cost."""
    rows = []
    for name, encoder, result in each(accuracy):
        group = GROUPS[name]
        if group.clouds:
            continue
        minus = result.get("form", {}).get(group.form_of)
        scores = result["scores"]
        seen = scores.get("with features", scores["all"])["SC"]
        cells = name, " ".join(group.bands), encoder, interval(scores["all"]["SC"]), plain(seen)
        rows.append((*cells, interval(minus["SC"] if minus else None, signed=True)))
    head = ("group", "bands asked", "encoder", "SC", "with features", "less cities in four bands, paired")
    return markdown(head, rows)


def run_note(accuracy: dict[str, Any]) -> str:
    """Machine and time of the run."""
    where = accuracy["context"]
    machine, versions = where["machine"], where["versions"]
    return (
        f"Measured {where['when'][:10]} at {where['commit']}, {accuracy['queries']} queries a group, seed "
        f"{accuracy['seed']}, stride {accuracy['stride_px']}: {accuracy['seconds'] / 60:.0f} minutes on "
        f"{machine['cores']} cores of {machine['processor']} (load {machine['load']} at the end), keras "
        f"{versions.get('keras')}."
    )


# --- tables of the others -----------------------------------------------------------------------------


def subpixel_table(subpixel: dict[str, Any]) -> str:
    """Error of refinement on synthetic shifts."""
    rows = []
    for name, kinds in subpixel["groups"].items():
        for kind, one in kinds.items():
            if one["patches"]:
                shares = f"{one['within_half']:.3f}", f"{one['beyond_5']:.3f}"
                size = f"{one['median_px']:.2f}", f"{one['p90_px']:.2f}"
                rows.append((name, kind, str(one["patches"]), *size, *shares))
    head = ("group", "patches", "number", "median, px", "90 %, px", "within 0.5 px", "beyond 5 px")
    return markdown(head, rows)


def calibration_table(one: dict[str, Any]) -> str:
    """Calibration error by group left out, precision at coverage, and the chart of `calibrate.py`."""
    rows = [
        (name, str(g["answers"]), f"{g['right']:.3f}", f"{g['stated']:.3f}", f"{g['error']:.3f}")
        for name, g in one["groups"].items()
    ]
    answers = sum(g["answers"] for g in one["groups"].values())
    rows.append(("**all**", str(answers), "", "", f"**{one['error']:.3f}**"))
    errors = markdown(("group, left out", "answers", "right", "stated", "calibration error"), rows)
    kept = [(f"{c['at_least']:g}", f"{c['covers']:.3f}", f"{c['right']:.4f}") for c in one["coverage"]]
    precision = markdown(("stated at least", "share of all answers", "of these right"), kept)
    chart = (
        f"![{one['encoder']}: stated probability against the share right, and precision over coverage]"
        f"(images/calibration-{one['encoder']}.svg)"
    )
    return "\n\n".join((errors, precision, chart))


def tried_table(tried: dict[str, Any]) -> str:
    """Recall of the search by variant, question by question."""
    variants = list(tried["variants"].values())
    questions = dict.fromkeys(v["question"] for v in variants)
    rows = []
    for one in sorted(variants, key=lambda v: list(questions).index(v["question"])):
        indexed, alone = one["halves"]["indexed"], one["halves"].get("learned")
        groups = [plain(figures["1"]) for name, figures in indexed.items() if name in GROUPS]
        minus = interval(indexed.get("minus"), signed=True)
        cells = one["question"], one["name"], interval(indexed["all"]["1"]), minus
        deep = [plain(indexed["all"][k]) for k in ("20", "500")]
        alone_minus = interval(alone.get("minus") if alone else None, signed=True)
        rows.append((*cells, *deep, *groups, plain(alone["all"]["1"] if alone else None), alone_minus))
    names = [g for g in variants[0]["halves"]["indexed"] if g in GROUPS]
    head = ("of", "tried", "first", "less the first row's, paired", "in 20", "in 500")
    return markdown((*head, *(f"{g}: first" for g in names), *LEARNED), rows)


def tried_note(tried: dict[str, Any]) -> str:
    """How long, on what, among how much."""
    where, variants = tried["context"], list(tried["variants"].values())
    windows = " and ".join(f"{n:,}" for n in dict.fromkeys(variants[0]["windows"].values()))
    spent = sum(sum(v["cpu_s"].values()) for v in variants)
    copies = "its seven turned copies"
    if tried["copies"] < 7:
        copies = f"{tried['copies']} of {copies}"
    return (
        f"{len(variants)} variants, measured until {where['when'][:10]} at {where['commit']}: trainings of "
        f"{tried['steps']} steps of {tried['batch']} pairs, seed {tried['seed']}; {tried['queries']} queries "
        f"a group, among {windows} windows (every image and {copies}); {spent / 60:.0f} minutes of "
        f"{where['machine']['processor']}'s processor time."
    )


Table = tuple[str, Callable[[dict[str, Any]], str]]
TABLES: dict[str, Table] = {
    "run": ("accuracy.json", run_note),
    "main": ("accuracy.json", main_table),
    "search": ("accuracy.json", search_table),
    "kinds": ("accuracy.json", kinds_table),
    "places": ("accuracy.json", places_table),
    "databases": ("accuracy.json", databases_table),
    "differences": ("accuracy.json", differences_table),
    "exhaustive": ("accuracy.json", exhaustive_table),
    "bands": ("accuracy.json", bands_table),
    "subpixel": ("subpixel.json", subpixel_table),
    "calibration-siamese": ("calibration-siamese.json", calibration_table),
    "calibration-structure-tensor": ("calibration-structure-tensor.json", calibration_table),
    "tried": ("tried.json", tried_table),
    "tried-run": ("tried.json", tried_note),
    "scale": ("scale.json", scale_table),
    "scale-run": ("scale.json", scale_note),
    "ground": ("scale.json", ground_table),
}


def filled(text: str, folder: Path) -> str:
    """A page with its tables written anew.

    Raises:
        KeyError: the page asks for a table that nobody makes.
    """

    def one(match: re.Match[str]) -> str:
        file, make = TABLES[match[2]]
        if not (folder / file).is_file():
            print(f"{match[2]}: no {folder / file}, left as it is", file=sys.stderr)
            return match[0]
        return f"{match[1]}{make(json.loads((folder / file).read_text()))}\n{match[3]}"

    return MARKED.sub(one, text)


def main() -> None:
    """Fill the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", type=Path)
    parser.add_argument("results", type=Path, help="folder with the JSON files")
    args = parser.parse_args()
    args.page.write_text(filled(args.page.read_text(), args.results))


if __name__ == "__main__":
    main()
