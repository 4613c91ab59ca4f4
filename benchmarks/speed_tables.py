"""The tables of docs/performance.md, from the JSON files of the speed benchmarks."""

from __future__ import annotations

from statistics import median
from typing import Any

from table_cells import markdown

WINDOW_M = 80
"""Distance between windows at the default stride, in metres."""
EMBED_S = 11e-6
"""Processor time to embed a window with the shipped encoder, from the reference job's 22 s."""
PIXEL_BYTES = 8
"""Bytes of a stored pixel: four bands of 16 bits."""
GROUNDS = (
    ("one Sentinel-2 tile, 10,980 × 10,980 px", 109.8**2),
    ("Belgium", 30_700),
    ("Germany", 357_600),
    ("the land surface", 149e6),
)
"""Names and square kilometres."""
SHIPPED_KINDS = {
    "exact, float32": "`exact`",
    "fast, 2 bits, 400 re-ranked": "`fast`",
    "cells of fast, 2 bits, 256 of 1024, 400 re-ranked": "`ivf`, 256 of 1,024 cells",
}
"""The settings of `kinds.json` that ship, and their names."""


PARTS = {
    "embedding images, threads together": "embedding images, sum of both threads",
}
"""Plain names of parts that stored files name differently."""


def run_note(context: dict[str, Any]) -> str:
    """Return date, commit and machine of a run."""
    machine = context["machine"]
    cores = f"{machine['cores']} core{'' if machine['cores'] == 1 else 's'}"
    return (
        f"Measured {context['when'][:10]} at commit `{context['commit'].rstrip('+')[:7]}` on "
        f"{cores} of {machine['processor']}, {machine['memory_gb']:.0f} GB, no GPU, "
        f"load {machine['load']}."
    )


def job_table(job: dict[str, Any]) -> str:
    """Return wall time and peak memory of each stage of the reference job."""
    rows = []
    for stage in ("index", "query", "score"):
        figures = job["stages"][stage]
        rows.append((stage, f"{figures['seconds']:.1f} s", f"{figures['peak_mb'] / 1e3:.1f} GB"))
        rows += [(f"– {PARTS.get(k, k)}", f"{s:.1f} s", "") for k, s in figures["parts"].items()]
    return markdown(("stage", "wall time", "peak memory"), rows)


def job_note(job: dict[str, Any]) -> str:
    """Return size, result and machine of the reference job."""
    shapes, stages = job["context"]["shapes"], job["stages"]
    index, sc = stages["index"]["result"], stages["score"]["result"]["all"]["SC"]
    total = sum(stages[stage]["seconds"] for stage in ("index", "query"))
    return (
        f"{run_note(job['context'])} {shapes['images']:,} images of {shapes['size']} × {shapes['size']} px, "
        f"{shapes['patches']:,} patches, {index['windows']:,} windows, kind `{index['kind']}`: index and "
        f"query take {total:.0f} s. SC {sc['value']:.3f} [{sc['low']:.3f}, {sc['high']:.3f}] on "
        "generated scenes."
    )


def dense_table(embedding: dict[str, Any]) -> str:
    """Return the time of the dense embedding and of embedding each window."""
    rows = [
        (
            name,
            f"{figures['dense_s']:.3f} s",
            f"{figures['batches_s']:.2f} s",
            f"{figures['ratio']:.1f} ({figures['ratio_low']:.1f}–{figures['ratio_high']:.1f})",
            f"{figures['largest_difference']:.1e}",
        )
        for name, figures in embedding["encoders"].items()
    ]
    return markdown(("encoder", "dense", "in batches", "ratio", "largest difference"), rows)


def index_kinds_table(kinds: dict[str, Any]) -> str:
    """Return build time, search time and recall of the kinds of index that ship."""
    rows = [
        (
            SHIPPED_KINDS[figures["kind"]],
            f"{figures['build_cpu_s']:.0f} s",
            f"{median(figures['search_cpu_s']):.1f} s",
            f"{figures['recall_1']:.3f}",
            f"{figures['recall_20']:.3f}",
        )
        for figures in kinds["kinds"]
        if figures["kind"] in SHIPPED_KINDS
    ]
    return markdown(("kind", "build", "1,000 patches", "recall at 1", "recall at 20"), rows)


def stream_table(stream: dict[str, Any]) -> str:
    """Return throughput and peak memory of each stage of the input stream."""
    rows = []
    size = stream["context"]["shapes"]["bytes"] / 1e6
    for stage in ("bytes", "records", "crops", "training"):
        figures = stream["stages"][stage]
        rate = f"{size / figures['seconds']:,.0f} MB/s"
        if stage == "training":
            result = figures["result"]
            rate = (
                f"{1 / result['step_s']:.1f} steps/s, {result['waiting']:.2%} of the time waiting for input"
            )
        rows.append((stage, rate, f"{figures['peak_mb'] / 1e3:.1f} GB"))
    return markdown(("stage", "throughput", "peak memory"), rows)


def stream_note(stream: dict[str, Any]) -> str:
    """Return size and machine of a run of the input stream."""
    shapes = stream["context"]["shapes"]
    return (
        f"{run_note(stream['context'])} {shapes['series']} series of {shapes['dates']} dates, "
        f"{shapes['bytes'] / 1e9:.1f} GB; a shuffle buffer of {shapes['shuffle']:,} pairs."
    )


def rasterize_table(run: dict[str, Any]) -> str:
    """Return time and peak memory of masks by the number of features."""
    rows = [
        (
            f"{r['features']:,}",
            f"{r['file_mb']:,.0f} MB",
            f"{r['seconds']:.0f} s",
            f"{r['cpu_s']:.0f} s",
            f"{r['peak_mb']:,} MB",
        )
        for r in run["rows"]
    ]
    return markdown(("features", "file", "time", "processor", "peak memory"), rows)


def segment_speed_table(run: dict[str, Any]) -> str:
    """Return time and peak memory of a class map, and the time of its network alone."""
    size, figures = run["shapes"], run["figures"]
    row = (
        f"{size['size']:,} × {size['height']:,}",
        f"{figures['cpu_s']:.0f} s",
        f"{figures['network_cpu_s']:.0f} s",
        f"{figures['seconds']:,.0f} s",
        f"{figures['peak_mb']:,} MB",
        f"{figures['cpu_s_per_1000_km2']:.0f} s",
    )
    head = ("pixels", "processor", "the network alone", "wall time", "peak memory", "processor per 1,000 km²")
    return markdown(head, [row])


def change_speed_table(run: dict[str, Any]) -> str:
    """Return time and peak memory of maps of change without labels."""
    size = run["shapes"]["size"]
    rows = [
        (
            f"{size:,} × {size:,}, {name}",
            f"{figures['cpu_s']:.0f} s",
            f"{figures['seconds']:,.0f} s",
            f"{figures['peak_mb']:,} MB",
            f"{figures['cpu_s_per_1000_km2']:.0f} s",
        )
        for name, figures in run["rows"].items()
    ]
    return markdown(("pixels", "processor", "wall time", "peak memory", "processor per 1,000 km²"), rows)


def scale_table(scale: dict[str, Any]) -> str:
    """Return a row for every size and kind; computed figures have a ~."""
    head = ("images", "windows", "kind", "build", "build, peak", "memory per window", "query, peak")
    return markdown(
        (*head, "disk per window", "per patch", "recall at 1", "at 20"), list(map(_row, scale["sizes"]))
    )


def _row(f: dict[str, Any]) -> tuple[str, ...]:
    about = "" if f["measured"] or "hollow" in f else "~"
    asked = "" if f["measured"] or "ask_own_peak_mb" in f else "~"
    peaks = [f"{f[k] / 1e3:.1f} GB" if k in f else "–" for k in ("build_own_peak_mb", "ask_own_peak_mb")]
    memory = f"{asked}{f['memory_bytes_a_window']:.0f} B" + (" + vectors" if f["kind"] == "exact" else "")
    recall = f"{f['recall_20']:.3f}" if "recall_20" in f else "–"
    if "recall_20_estimated" in f:
        recall = f"~{f['recall_20_estimated']:.3f}"
    return (
        f"{f['images']:,}",
        f"{f['windows']:,}",
        f"`{f['kind']}`",
        f"{about}{spent(f['build_cpu_s'])}",
        peaks[0],
        memory,
        peaks[1],
        f"{f['file_bytes_a_window']:.0f} B",
        f"{asked}{milliseconds(f['query_cpu_ms'])}",
        f"{f['recall_1']:.3f}" if "recall_1" in f else "–",
        recall,
    )


def milliseconds(value: float) -> str:
    """Return a short time with three digits."""
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


def spent(seconds: float) -> str:
    """Return a time in the unit that fits it."""
    for unit, length, most in (("s", 1, 100), ("min", 60, 100 * 60)):
        if seconds < most:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds / 3600:.0f} h"


def scale_note(scale: dict[str, Any]) -> str:
    """Return data, machine and date of the run."""
    shapes, noise = scale["context"]["shapes"], scale["noise"]
    return (
        f"{run_note(scale['context'])} {shapes['embedded']:,} embeddings of {shapes['dim']} numbers by "
        f"`{shapes['encoder']}`; the other vectors are copies with noise of {noise['near']} of their length. "
        f"{shapes['queries']} patches with noise of {noise['far']}, 20 neighbours. Times are processor time."
    )


def ground_table(scale: dict[str, Any]) -> str:
    """Return the cost of an area, in proportion to the largest measured size of `ivf`."""
    f = max((f for f in scale["sizes"] if f["kind"] == "ivf" and f["measured"]), key=lambda f: f["windows"])
    rows = []
    for name, area in GROUNDS:
        windows = area * 1e6 / WINDOW_M**2
        times = windows / f["windows"]
        sizes = (
            windows * f["memory_bytes_a_window"],
            windows * f["file_bytes_a_window"],
            area * 1e4 * PIXEL_BYTES,
        )
        rows.append(
            (
                name,
                f"{windows / 1e6:,.1f} M",
                *(f"{s / 1e9:,.3g} GB" if s < 1e12 else f"{s / 1e12:.1f} TB" for s in sizes),
                spent(windows * EMBED_S),
                spent(times * f["build_cpu_s"]),
                milliseconds(times * f["query_cpu_ms"]),
            )
        )
    head = (
        "area",
        "windows",
        "memory",
        "vectors on disk",
        "pixels on disk",
        "embedding",
        "build",
        "per patch",
    )
    return markdown(head, rows)


def many_shards_table(run: dict[str, Any]) -> str:
    """Return time, memory, size and answers of an index of many images in shards."""
    built, asked, shapes = run["build"], run["query"], run["context"]["shapes"]
    counts = built["counts"]
    what = (
        f"{counts['images']:,} images of {shapes['size']} px, {counts['windows']:,} windows, {counts['kind']}"
    )
    rows = [
        (f"build, {shapes['shards']} shards: {what}", *_cost(built), f"{built['gb']:.1f} GB on the disk"),
        (
            f"query of {shapes['queries']} patches",
            *_cost(asked),
            f"{asked['right']['within_2px']:.3f} within 2 px",
        ),
    ]
    return markdown(("stage", "time", "processors", "memory without pages of files", "result"), rows)


def _cost(stage: dict[str, Any]) -> tuple[str, str, str]:
    return f"{stage['s']:.0f} s", f"{stage['cpu_s']:.0f} s", f"{stage['anonymous_mb']:,.0f} MB"
