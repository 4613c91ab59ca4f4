"""The tables of docs/performance.md on scale, from `scale.json`: what was measured, and what ground it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

WINDOW_M = 80
"""Distance between windows at the default stride, in metres."""
EMBED_S = 11e-6
"""Processor time to embed a window with the shipped encoder, from the reference job's 22 s."""
PIXEL_BYTES = 8
"""Of a pixel that is kept: four bands of 16 bits."""
GROUNDS = (
    ("one Sentinel-2 tile, 10,980 × 10,980 px", 109.8**2),
    ("Belgium", 30_700),
    ("Germany", 357_600),
    ("the land surface", 149e6),
)
"""Names and square kilometres."""


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def scale_table(scale: dict[str, Any]) -> str:
    """Every size and kind; what was worked out has a ~."""
    head = ("images", "windows", "kind", "build", "peak, build", "memory a window, open", "peak, asking")
    return markdown(
        (*head, "on disk a window", "a patch", "recall of 1", "of 20"), list(map(_row, scale["sizes"]))
    )


def _row(f: dict[str, Any]) -> tuple[str, ...]:
    about = "" if f["measured"] or "hollow" in f else "~"
    asked = "" if f["measured"] or "ask_own_peak_mb" in f else "~"
    peaks = [f"{f[k] / 1e3:.1f} GB" if k in f else "–" for k in ("build_own_peak_mb", "ask_own_peak_mb")]
    memory = f"{asked}{f['memory_bytes_a_window']:.0f} B" + (
        " and the vectors" if f["kind"] == "exact" else ""
    )
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
    """A short time, of three digits or whole."""
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


def spent(seconds: float) -> str:
    """A time in the unit that fits it."""
    for unit, length, most in (("s", 1, 100), ("min", 60, 100 * 60)):
        if seconds < most:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds / 3600:.0f} h"


def scale_note(scale: dict[str, Any]) -> str:
    """Machine and time of the run."""
    where, noise = scale["context"], scale["noise"]
    machine, shapes = where["machine"], where["shapes"]
    return (
        f"Measured {where['when'][:10]} at {where['commit']}: {shapes['embedded']:,} embeddings of "
        f"{shapes['dim']} numbers by `{shapes['encoder']}`, the rest jitter (noise of {noise['near']} "
        f"of their length), {shapes['queries']} patches (noise of {noise['far']}), 20 neighbours; "
        f"{machine['cores']} cores of {machine['processor']}, load {machine['load']} at the end; seconds are "
        "the processor's."
    )


def ground_table(scale: dict[str, Any]) -> str:
    """What ground takes, in proportion to the largest size of `ivf` that was measured."""
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
        "ground",
        "windows",
        "memory",
        "vectors on disk",
        "pixels on disk",
        "embedding",
        "build",
        "a patch",
    )
    return markdown(head, rows)
