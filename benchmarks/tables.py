"""Write the tables of the documentation from the JSON files of the benchmarks.

    python benchmarks/tables.py docs/accuracy.md benchmarks/results
    python benchmarks/tables.py docs/performance.md benchmarks/results

The text between `<!-- table: NAME -->` and `<!-- end -->` is replaced. A table whose JSON file is missing
stays unchanged.
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
from speed_tables import (
    change_speed_table,
    dense_table,
    ground_table,
    index_kinds_table,
    job_note,
    job_table,
    many_shards_table,
    rasterize_table,
    run_note,
    scale_note,
    scale_table,
    segment_speed_table,
    stream_note,
    stream_table,
)
from table_cells import interval, markdown, plain
from task_tables import (
    change_places_table,
    change_sites_table,
    change_table,
    few_labels_table,
    open_data_ranked_table,
    open_data_table,
    segment_classes_table,
    segment_table,
    segment_tried_table,
)

Row = Sequence[str]
KINDS = ("with features", "texture-rich", "texture-poor", "featureless")
LEARNED = "learned half alone: recall at 1", "minus the first row, paired"
MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


# --- rows ---------------------------------------------------------------------------------------------


def each(accuracy: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield group, encoder and measurements."""
    for name, group in accuracy["groups"].items():
        for encoder, result in group["encoders"].items():
            yield name, encoder, result


# --- tables of accuracy.json --------------------------------------------------------------------------


def main_table(accuracy: dict[str, Any]) -> str:
    """Return the scores after refinement."""
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
    """Return the recall of the search, and the result after matching."""
    rows = []
    for name, encoder, result in each(accuracy):
        a = result["scores"]["all"]
        moved = a["reranking"]
        recall = [plain(a["recall"][k]) for k in ("1", "5", "20", "500")]
        after = [plain(a.get("recall_after", {}).get(k)) for k in ("5", "20")]
        cells = (name, encoder, interval(a["recall"]["1"]), *recall[1:], interval(a["right"]), *after)
        rows.append((*cells, str(moved["mended"]), str(moved["broken"])))
    head = ("group", "encoder", "recall at 1", "at 5", "at 20", "at 500", "right after matching")
    return markdown((*head, "in 5 after", "in 20 after", "corrected", "broken"), rows)


def kinds_table(accuracy: dict[str, Any]) -> str:
    """Return SC by kind of ground."""
    rows = []
    for name, encoder, result in each(accuracy):
        scores, count = result["scores"], accuracy["groups"][name]["queries"]
        cells = [f"{plain(scores[k]['SC'])} ({count[k]})" if k in scores else "–" for k in KINDS]
        rows.append((name, encoder, *cells))
    return markdown(("group", "encoder", *(f"{k}: SC (queries)" for k in KINDS)), rows)


def places_table(accuracy: dict[str, Any]) -> str:
    """Return SC of every place by the shipped encoder, without the variants of a group."""
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
    """Return the size of each database."""
    rows = []
    for name, group in accuracy["groups"].items():
        counts = next((e["counts"] for e in group["encoders"].values()), None)
        if counts:
            number = f"{counts['patches']} ({group['queries'].get('featureless', 0)})"
            size = f"{counts['images']} of {counts['megapixels']:.0f} Mpx", f"{counts['windows']:,}"
            rows.append((name, " ".join(group["bands"]), *size, number))
    return markdown(("group", "bands", "images", "windows", "queries (featureless)"), rows)


def differences_table(accuracy: dict[str, Any]) -> str:
    """Return paired differences to the first two encoders of the run."""
    rows = []
    for name, encoder, result in each(accuracy):
        for yardstick, minus in result.get("minus", {}).items():
            found = [minus.get("recall", {}).get(k) for k in ("1", "20")]
            found += [minus["SC"], minus["within_5px"]]
            rows.append((name, f"{encoder} − {yardstick}", *(interval(f, signed=True) for f in found)))
    head = ("recall at 1", "recall at 20", "SC", "within 5 px")
    return markdown(("group", "encoders", *head), rows)


def exhaustive_table(accuracy: dict[str, Any]) -> str:
    """Return exhaustive NCC on a sample of the queries."""
    rows = []
    for name, group in accuracy["groups"].items():
        if "exhaustive" not in group:
            continue
        other = group["exhaustive"]
        figures = interval(other["score"]["SC"]), f"{other['seconds_per_query']:.2f} s"
        rows.append((name, str(other["queries"]), "exhaustive NCC", *figures, "–"))
        for encoder, result in other["encoders"].items():
            counts = group["encoders"][encoder]["counts"]
            spent = f"{counts['query_s'] / counts['patches']:.2f} s"
            minus = interval(result["minus"]["SC"], signed=True)
            rows.append((name, str(other["queries"]), encoder, interval(result["score"]["SC"]), spent, minus))
    head = ("group", "queries", "method", "SC", "time per query", "minus exhaustive, paired")
    return markdown(head, rows)


def bands_table(accuracy: dict[str, Any]) -> str:
    """Return the loss by other bands, bit depths and products."""
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
    head = ("group", "query bands", "encoder", "SC", "with features", "minus cities in four bands, paired")
    return markdown(head, rows)


def accuracy_note(accuracy: dict[str, Any]) -> str:
    """Return date, machine and size of the run."""
    return (
        f"{run_note(accuracy['context'])} {accuracy['queries']} queries per group, seed {accuracy['seed']}, "
        f"stride {accuracy['stride_px']}; {accuracy['seconds'] / 60:.0f} minutes."
    )


def large_table(accuracy: dict[str, Any]) -> str:
    """Return scores in large databases, wrong answers by real and generated ground, and calibration."""
    rows = []
    for name, encoder, result in each(accuracy):
        scores, counts = result["scores"], result["counts"]
        seen = interval(scores.get("with features", scores["all"])["SC"])
        wrong = f"{result['wrong']['real']:.3f}", f"{result['wrong']['generated']:.3f}"
        sure = f"{result['stated']:.3f}", interval(result["calibration_error"])
        size, took = f"{counts['megapixels']:.0f}", f"{counts['query_s'] / counts['patches']:.2f} s"
        rows.append((name, encoder, size, interval(scores["all"]["SC"]), seen, *wrong, *sure, took))
    head = (
        "group",
        "encoder",
        "megapixels",
        "SC",
        "SC, with features",
        "wrong, real ground",
        "wrong, generated",
    )
    return markdown((*head, "mean confidence", "calibration error", "time per query"), rows)


# --- tables of the others -----------------------------------------------------------------------------


def subpixel_table(subpixel: dict[str, Any]) -> str:
    """Return the error of refinement on known shifts."""
    rows = []
    for name, kinds in subpixel["groups"].items():
        for kind, figures in kinds.items():
            if figures["patches"]:
                shares = f"{figures['within_half']:.3f}", f"{figures['beyond_5']:.3f}"
                size = f"{figures['median_px']:.2f}", f"{figures['p90_px']:.2f}"
                rows.append((name, kind, str(figures["patches"]), *size, *shares))
    head = ("group", "patches", "number", "median, px", "90 %, px", "within 0.5 px", "beyond 5 px")
    return markdown(head, rows)


def error_of(error: dict[str, float] | float) -> str:
    """Return a calibration error with its interval; figures of earlier runs have none."""
    return interval(error) if isinstance(error, dict) else f"{error:.3f}"


def calibration_groups_table(figures: dict[str, Any]) -> str:
    """Return the calibration error of each held-out group and of all."""
    rows = [
        (name, str(g["answers"]), f"{g['right']:.3f}", f"{g['stated']:.3f}", error_of(g["error"]))
        for name, g in figures["groups"].items()
    ]
    answers = sum(g["answers"] for g in figures["groups"].values())
    rows.append(("**all**", str(answers), "", "", f"**{figures['error']:.3f}**"))
    return markdown(
        ("held-out group", "answers", "share right", "mean confidence", "calibration error"), rows
    )


def calibration_table(figures: dict[str, Any]) -> str:
    """Return calibration error per held-out group, precision at coverage, and the chart."""
    errors = calibration_groups_table(figures)
    kept = [(f"{c['at_least']:g}", f"{c['covers']:.3f}", f"{c['right']:.4f}") for c in figures["coverage"]]
    precision = markdown(("confidence at least", "share of answers", "share right"), kept)
    chart = (
        f"![{figures['encoder']}: confidence against the share right, and precision over coverage]"
        f"(images/calibration-{figures['encoder']}.svg)"
    )
    return "\n\n".join((errors, precision, chart))


def dates_table(run: dict[str, Any]) -> str:
    """Return confidence by the number of dates of a place in the index."""
    rows = []
    for count, one in run["counts"].items():
        minus = one["minus_first"]
        sure = one["confidence_right"], one["confidence_wrong"]
        means = ("–" if f is None else f"{f['value']:.3f} ({f['number']})" for f in sure)
        gain = interval(minus["confidence_right_in_both"], signed=True)
        shares = interval(one["place"]), interval(one["right"])
        rows.append((count, *shares, *means, f"{one['calibration_error']:.3f}", gain))
    head = ("dates", "right place", "within 5 px", "mean confidence if right (answers)", "if wrong (answers)")
    return markdown(
        (*head, "calibration error", "confidence minus the first row, right in both, paired"), rows
    )


def dates_note(run: dict[str, Any]) -> str:
    """Return date, machine and size of the run."""
    shapes = run["context"]["shapes"]
    return (
        f"{run_note(run['context'])} {run['encoder']}, {shapes['queries']} queries of the last "
        f"{shapes['held_out']} dates."
    )


def tried_table(tried: dict[str, Any]) -> str:
    """Return the recall of the search by variant, grouped by question."""
    variants = list(tried["variants"].values())
    questions = dict.fromkeys(v["question"] for v in variants)
    rows = []
    for figures in sorted(variants, key=lambda v: list(questions).index(v["question"])):
        indexed, alone = figures["halves"]["indexed"], figures["halves"].get("learned")
        groups = [plain(figures["1"]) for name, figures in indexed.items() if name in GROUPS]
        minus = interval(indexed.get("minus"), signed=True)
        cells = figures["question"], figures["name"], interval(indexed["all"]["1"]), minus
        deep = [plain(indexed["all"][k]) for k in ("20", "500")]
        alone_minus = interval(alone.get("minus") if alone else None, signed=True)
        rows.append((*cells, *deep, *groups, plain(alone["all"]["1"] if alone else None), alone_minus))
    names = [g for g in variants[0]["halves"]["indexed"] if g in GROUPS]
    head = ("question", "variant", "recall at 1", "minus the first row, paired", "at 20", "at 500")
    return markdown((*head, *(f"{g}: at 1" for g in names), *LEARNED), rows)


def tried_note(tried: dict[str, Any]) -> str:
    """Return size, date and duration of the comparison."""
    where, variants = tried["context"], list(tried["variants"].values())
    windows = " and ".join(f"{n:,}" for n in dict.fromkeys(variants[0]["windows"].values()))
    spent = sum(sum(v["cpu_s"].values()) for v in variants)
    copies = "its seven turned copies"
    if tried["copies"] < 7:
        copies = f"{tried['copies']} of {copies}"
    return (
        f"{run_note(where)} {len(variants)} variants, trained for {tried['steps']} steps of {tried['batch']} "
        f"pairs, seed {tried['seed']}; {tried['queries']} queries per group in {windows} windows (every "
        f"image and {copies}); {spent / 60:.0f} minutes of processor time."
    )


# --- tables of overhead.json -------------------------------------------------------------------------


def overhead_table(run: dict[str, Any]) -> str:
    """Return wall and processor time of index and query on each executor, against threads."""
    rows = []
    for of in run["runs"]:
        both = [f"{of[f'index{unit}_s']:.1f} s, {of[f'query{unit}_s']:.1f} s" for unit in ("", "_cpu")]
        more = [f"{of[f'overhead{unit}']:+.0%}" for unit in ("", "_cpu")]
        same = "yes" if of["same_answers"] else "no"
        rows.append(
            (f"`{of['executor']}`", f"{of['start_s']:.1f} s", both[0], more[0], both[1], more[1], same)
        )
    head = ("executor", "start", "index, query: wall", "more", "processors", "more", "same answers")
    return markdown(head, rows)


# --- tables of faults.json ---------------------------------------------------------------------------


def faults_table(run: dict[str, Any]) -> str:
    """Return the counts of kills, readings and additions."""
    rows = []
    for name, of in run["kills"].items():
        between = of.get("between", 0)
        tried = of["former"] + of["new"] + between + len(of["faults"])
        result = f"{of['former']} left the former output, {of['new']} the new one"
        result += f", {between} the new one of the first of two" if between else ""
        result += "; reruns equal"
        rows.append((f"kills of `{name}`", str(tried), result, str(len(of["faults"]))))
    readers, writers = run["readers"], run["writers"]
    refused, wrong = _refused(readers, ("whole", "changes"))
    rows.append(
        (
            f"readings during {readers['changes']} changes",
            str(readers["whole"] + refused + wrong),
            f"{readers['whole']} of one version, {refused} refused",
            str(wrong),
        )
    )
    refused, wrong = _refused(writers, ("added", "leftovers"))
    added = writers.get("added", 0)
    rows.append(
        (
            "additions by two writers",
            str(added + refused + wrong),
            f"{added} added, {refused} refused",
            str(wrong),
        )
    )
    rows += _rows_of_surroundings(run) + _rows_of_space(run) + _rows_of_memory(run) + _rows_of_soak(run)
    rows += _rows_of_descriptors(run)
    return markdown(("fault", "volume", "result", "faults"), rows)


def _rows_of_surroundings(run: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    rows = []
    for name, of in run.get("surroundings", {}).items():
        tried = of["equal"] + len(of["faults"])
        rows.append(
            (f"surroundings: {name}", str(tried), f"{of['equal']} equal outputs", str(len(of["faults"])))
        )
    return rows


def _rows_of_space(run: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    rows = []
    for name, of in run.get("space", {}).items():
        counts = [of.get(outcome, 0) for outcome in ("refused", "done", "stopped")]
        result = f"{counts[0]} refused in one sentence, {counts[1]} complete; reruns equal"
        rows.append((f"nowhere to write: {name}", str(sum(counts)), result, str(len(of["faults"]))))
    return rows


def _rows_of_memory(run: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    rows = []
    for name, of in run.get("memory", {}).items():
        counts = [of.get(outcome, 0) for outcome in ("done", "refused", "stopped")]
        result = "{} complete, {} refused in one sentence, {} ended by a library; no half output".format(
            *counts
        )
        rows.append((f"too little memory for `{name}`", str(sum(counts)), result, str(len(of["faults"]))))
    return rows


def _rows_of_soak(run: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    if not (of := run.get("soak")):
        return []
    growth = {name: max(values) for name, values in of["growth"].items()}
    result = f"{growth['memory_kb'] / 1000:+.1f} MB, {growth['descriptors']:+d} descriptors"
    result += f", {growth['threads']:+d} threads"
    return [("queries of one index from 4 threads", f"{of['queries']:,}", result, str(of["wrong"]))]


def _rows_of_descriptors(run: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    if not (of := run.get("few_descriptors")):
        return []
    result = (
        f"{of['same']} of {of['asked']} answers as without the limit, {of['right']} of them right, at most "
    )
    result += f"{of['held']} descriptors open"
    wrong = of["asked"] - of["same"]
    return [(f"image files with {of['descriptors']} descriptors", f"{of['images']:,}", result, str(wrong))]


def _refused(seen: dict[str, int], others: tuple[str, ...]) -> tuple[int, int]:
    """Return how many readings or additions were refused, and how many went wrong."""
    refused = sum(count for name, count in seen.items() if name.startswith("refused"))
    wrong = sum(n for name, n in seen.items() if name not in others and not name.startswith("refused"))
    return refused, wrong


# --- tables of mutations.json and guided.json -----------------------------------------------------------


def guided_table(run: dict[str, Any]) -> str:
    """Return the inputs and branches of each parser."""
    rows = [
        (
            name,
            f"{of['inputs']:,}",
            f"{of['branches'][0]} to {of['branches'][-1]}",
            str(len(of["faults"])),
        )
        for name, of in run["parsers"].items()
    ]
    return markdown(("parser", "inputs", "branches reached", "faults"), rows)


def mutations_table(run: dict[str, Any]) -> str:
    """Return how many damaged files of each kind were refused, read, or gave a fault."""
    rows, total = [], [0, 0, 0]
    for name, of in run["kinds"].items():
        counts = [of.get("refused", 0), of.get("read", 0), len(of["faults"])]
        total = [a + b for a, b in zip(total, counts, strict=True)]
        rows.append((name, *map(str, counts)))
    rows.append(("all", *(f"{count:,}" for count in total)))
    return markdown(("file", "refused by name", "read", "faults"), rows)


Table = tuple[str, Callable[[dict[str, Any]], str]]
TABLES: dict[str, Table] = {
    "run": ("accuracy.json", accuracy_note),
    "main": ("accuracy.json", main_table),
    "search": ("accuracy.json", search_table),
    "kinds": ("accuracy.json", kinds_table),
    "places": ("accuracy.json", places_table),
    "databases": ("accuracy.json", databases_table),
    "differences": ("accuracy.json", differences_table),
    "exhaustive": ("accuracy.json", exhaustive_table),
    "bands": ("accuracy.json", bands_table),
    "large": ("accuracy-300.json", large_table),
    "large-run": ("accuracy-300.json", accuracy_note),
    "rescaled": ("accuracy-246.json", large_table),
    "rescaled-run": ("accuracy-246.json", accuracy_note),
    "parts": ("accuracy-parts.json", large_table),
    "parts-run": ("accuracy-parts.json", accuracy_note),
    "subpixel": ("subpixel.json", subpixel_table),
    "calibration-siamese": ("calibration-siamese.json", calibration_table),
    "calibration-parts": ("calibration-parts.json", calibration_groups_table),
    "calibration-structure-tensor": ("calibration-structure-tensor.json", calibration_table),
    "dates-venice": ("dates-venice.json", dates_table),
    "dates-venice-run": ("dates-venice.json", dates_note),
    "tried": ("tried.json", tried_table),
    "tried-run": ("tried.json", tried_note),
    "job": ("challenge-600.json", job_table),
    "job-run": ("challenge-600.json", job_note),
    "dense": ("embedding.json", dense_table),
    "dense-run": ("embedding.json", lambda run: run_note(run["context"])),
    "index-kinds": ("kinds.json", index_kinds_table),
    "index-kinds-run": ("kinds.json", lambda run: run_note(run["context"])),
    "open-data": ("open-data.json", open_data_table),
    "open-data-ranked": ("open-data.json", open_data_ranked_table),
    "open-data-run": ("open-data.json", run_note),
    "rasterize": ("rasterize.json", rasterize_table),
    "rasterize-run": ("rasterize.json", run_note),
    "segment-speed": ("segment-speed.json", segment_speed_table),
    "segment-speed-run": ("segment-speed.json", run_note),
    "change-speed": ("change-speed.json", change_speed_table),
    "change-speed-run": ("change-speed.json", run_note),
    "segment-buildings": ("segment-buildings.json", segment_table),
    "segment-deepglobe": ("segment-deepglobe.json", segment_table),
    "segment-deepglobe-classes": ("segment-deepglobe.json", segment_classes_table),
    "segment-tried": ("segment-tried.json", segment_tried_table),
    "overhead": ("overhead.json", overhead_table),
    "overhead-run": ("overhead.json", lambda run: run_note(run["context"])),
    "overhead-600": ("overhead-600.json", overhead_table),
    "overhead-600-run": ("overhead-600.json", lambda run: run_note(run["context"])),
    "many-shards": ("many-shards.json", many_shards_table),
    "many-shards-run": ("many-shards.json", lambda run: run_note(run["context"])),
    "faults": ("faults.json", faults_table),
    "guided": ("guided.json", guided_table),
    "guided-run": ("guided.json", lambda run: run_note(run["context"])),
    "faults-run": ("faults.json", lambda run: run_note(run["context"])),
    "mutations": ("mutations.json", mutations_table),
    "mutations-run": ("mutations.json", lambda run: run_note(run["context"])),
    "few-labels": ("few-labels.json", few_labels_table),
    "few-labels-run": ("few-labels.json", lambda run: run_note(run["context"])),
    "stream-64": ("stream-64.json", stream_table),
    "stream-64-run": ("stream-64.json", stream_note),
    "stream-320": ("stream-320.json", stream_table),
    "stream-320-run": ("stream-320.json", stream_note),
    "scale": ("scale.json", scale_table),
    "scale-run": ("scale.json", scale_note),
    "ground": ("scale.json", ground_table),
    "change-oscd": ("change-oscd.json", change_table),
    "change-oscd-places": ("change-oscd.json", change_places_table),
    "change-ombria": ("change-ombria.json", change_table),
    "change-ombria-places": ("change-ombria.json", change_sites_table),
}


def filled(text: str, folder: Path) -> str:
    """Return a page with its tables rewritten.

    Raises:
        KeyError: the page names an unknown table.
    """

    def replace(match: re.Match[str]) -> str:
        file, make = TABLES[match[2]]
        if not (folder / file).is_file():
            print(f"{match[2]}: {folder / file} is missing, the table stays unchanged", file=sys.stderr)
            return match[0]
        return f"{match[1]}{make(json.loads((folder / file).read_text()))}\n{match[3]}"

    return MARKED.sub(replace, text)


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
