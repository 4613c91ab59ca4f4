"""The context of a speed figure: machine, versions and shapes; and a clock.

Every benchmark puts `context()` into its JSON. `stage` runs one step in a separate process, so that its peak
memory does not include earlier steps.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import wraps
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "patch-retrieval",
    "numpy",
    "keras",
    "tensorflow",
    "tensorflow-cpu",
    "faiss-cpu",
    "faiss-gpu",
    "rasterio",
)
THREADS = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "KERAS_BACKEND")
ROOT = Path(__file__).resolve().parents[1]


# --- where and with what ----------------------------------------------------------------------------------


def context(**shapes: Any) -> dict[str, Any]:
    """Return machine, versions, threads, commit, time and the caller's shapes."""
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": _machine(),
        "versions": {name: v for name in PACKAGES if (v := _version(name))},
        "python": platform.python_version(),
        "threads": {name: os.environ[name] for name in THREADS if name in os.environ} | _pools(),
        "shapes": shapes,
    }


def _machine() -> dict[str, Any]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (ValueError, AttributeError):
        memory = float("nan")
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": usable,
        "memory_gb": round(memory, 1),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "gpu": _gpu(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _gpu() -> str | None:
    said = _said("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")
    return said or None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    """Return the commit, with a + if the sources differ from it."""
    commit = _said("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD")
    changed = _said("git", "-C", str(ROOT), "status", "--porcelain", "--", "retrieval", "tfrecords")
    return (commit + ("+" if changed else "")) or "no repository"


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _pools() -> dict[str, int]:
    """Return the threads of the libraries loaded so far."""
    found = {}
    if "faiss" in sys.modules:
        found["faiss"] = sys.modules["faiss"].omp_get_max_threads()
    return found


# --- time and memory -------------------------------------------------------------------------------------


@dataclass
class Stage:
    """Cost of a step."""

    name: str
    """Name in the table."""
    seconds: float
    """Wall time without start-up."""
    peak_mb: float
    """Peak resident memory of its process."""
    result: Any = None
    """Return value."""
    parts: dict[str, float] = field(default_factory=dict)
    """Seconds of its parts, from `clocked`."""
    start_s: float = 0.0
    """Seconds of the imports before it."""

    def row(self, amount: float = 0, unit: str = "") -> tuple[str, ...]:
        """Return a row of the table: name, time, throughput, memory."""
        rate = f"{amount / self.seconds:,.1f} {unit}/s" if amount else ""
        return self.name, f"{self.seconds:.1f} s", rate, f"{self.peak_mb:,.0f} MB"


def peak_mb() -> float:
    """Return the peak resident memory of this process, in MB."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        scale = 1e6 if sys.platform == "darwin" else 1e3
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def stage(name: str, step: Callable[..., Any], *args: Any, imports: Sequence[str] = ()) -> Stage:
    """Run a function of a module in a separate process.

    Args:
        name: name in the table.
        step: a function importable by name, with a picklable result; the entry "parts" of a dict holds parts.
        args: picklable arguments.
        imports: modules to import before the clock starts.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        start_s, seconds, peak, result = pool.apply(_clocked_step, (step, args, tuple(imports)))
    parts = result.pop("parts", {}) if isinstance(result, dict) else {}
    return Stage(name, seconds, peak, result, parts, start_s)


def _clocked_step(
    step: Callable[..., Any], args: tuple[Any, ...], imports: tuple[str, ...]
) -> tuple[float, float, float, Any]:
    begin = time.perf_counter()
    for module in imports:
        import_module(module)
    start = time.perf_counter()
    result = step(*args)
    return start - begin, time.perf_counter() - start, peak_mb(), result


@contextmanager
def clocked(parts: dict[str, float], *places: tuple[Any, str, str]) -> Iterator[None]:
    """Add up the time of functions inside a block.

    Args:
        parts: label -> seconds; updated.
        places: (module or class, name of a function in it, label).

    Yields:
        Nothing.
    """
    former = [(owner, name, owner.__dict__[name]) for owner, name, _ in places]
    for owner, name, label in places:
        setattr(owner, name, _clock(getattr(owner, name), parts, label))
    try:
        yield
    finally:
        for owner, name, value in former:
            setattr(owner, name, value)


def _clock(function: Callable[..., Any], parts: dict[str, float], label: str) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: Any, **more: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **more)
        finally:
            parts[label] = parts.get(label, 0.0) + time.perf_counter() - start

    return call


# --- telling ----------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return columns of text, the first left-aligned, the others right-aligned."""
    widths = [max(len(r[i]) for r in (head, *rows)) for i in range(len(head))]
    lines = []
    for r in (head, ["-" * w for w in widths], *rows):
        cells = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options of all benchmarks."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write context and figures there")
    return parser


def write_json(path: Path | None, figures: dict[str, Any]) -> None:
    """Write the figures if a path is given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=1) + "\n")
