"""How long does the command line take to start?

`retrieve --help` and the help of each command run in separate processes, in turns with an empty Python and
with the import of Typer. Wall times are noisy on a shared machine, so the JSON also holds processor times.

python benchmarks/startup.py --json build/bench/startup.json
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from context import arguments, context, table, write_json

from retrieval.cli.app import COMMANDS

BASELINES = {"empty Python": ["-c", ""], "import typer": ["-c", "import typer"]}
"""Arguments of Python that show what the command line adds to."""


def run(arguments: Sequence[str]) -> tuple[float, float]:
    """Run Python once and return its wall time and its processor time, in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    wall_s = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(repeats: int) -> dict[str, dict[str, Any]]:
    """Return the times of all cases by name, measured in turns.

    Args:
        repeats: runs of each case, after one that warms the disk cache.
    """
    cases = BASELINES | {"retrieve --help": ["-m", "retrieval", "--help"]}
    cases |= {f"retrieve {name} --help": ["-m", "retrieval", name, "--help"] for name in COMMANDS}
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for repeat in range(repeats + 1):
        for name, python in cases.items():
            times = run(python)
            if repeat:
                runs[name].append(times)
    return {name: _summary(times) for name, times in runs.items()}


def _summary(times: Sequence[tuple[float, float]]) -> dict[str, Any]:
    wall, processor = ([round(value, 4) for value in values] for values in zip(*times, strict=True))
    return {
        "wall_s": statistics.median(wall),
        "processor_s": statistics.median(processor),
        "processor_low_s": min(processor),
        "runs_wall_s": wall,
        "runs_processor_s": processor,
    }


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    cases = measure(args.repeats)
    rows = [
        (name, f"{case['wall_s']:.2f} s", f"{case['processor_s']:.2f} s", f"{case['processor_low_s']:.2f} s")
        for name, case in cases.items()
    ]
    print(table(("command", "wall, median", "processor, median", "processor, lowest"), rows))
    write_json(args.json, {"context": context(repeats=args.repeats), "cases": cases})


if __name__ == "__main__":
    main()
