"""Damage files of every kind that we read, and count what the readers say.

    python benchmarks/mutations.py --count 200 --json FILE
    python benchmarks/mutations.py --count 4400 --log LOG --json FILE    # continues a log

Strategy. Each kind has a small valid file and a reader that touches all of it. A mutation cuts the file,
flips bits, overwrites, swaps, removes or repeats blocks, or replaces a number by an absurd one. The seed
draws it. A reader must return or raise an error of ours. All else is a fault: another exception, more than
ten seconds, a kill by a signal, memory for a number that the file only claims. Each kind runs in a child with
a limit of its address space. Where a signal kills the child, another one continues with the next mutation.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import tempfile
import time
import warnings
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from context import arguments, context, table, write_json
from file_kinds import KINDS, MODULES, Kind

from retrieval.errors import RetrieveError

LIMIT_S = 10
"""Longest time of a reader."""
MAX_FAULTS = 20
"""Faults of a kind after which it ends."""
ROOM_BYTES = 3 << 30
"""Address space beyond that of the child when it starts."""
ABSURD = (b"0", b"-1", b"999999999999", b"1e999", b"NaN", b'"x"', b"[" * 20000, b"{}")
"""What replaces a number of a text."""


# --- mutations ------------------------------------------------------------------------------------


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Return damaged content."""
    size, data = len(content), bytearray(content)
    at = int(rng.integers(size))
    length = int(min(size - at, rng.integers(1, max(2, size // 4))))
    match int(rng.integers(7)):
        case 0:
            return content[:at]
        case 1:
            for place in rng.integers(0, size, int(rng.integers(1, 9))):
                data[place] ^= 1 << int(rng.integers(8))
        case 2:
            data[at : at + length] = rng.bytes(length)
        case 3:
            other = int(rng.integers(size))
            first, second = bytes(data[at : at + length]), bytes(data[other : other + length])
            data[at : at + len(second)], data[other : other + len(first)] = second, first
        case 4:
            del data[at : at + length]
        case 5:
            data[at:at] = data[at : at + length]
        case _:
            numbers = list(re.finditer(rb"\d+", content))
            if numbers:
                one = numbers[int(rng.integers(len(numbers)))]
                data[one.start() : one.end()] = ABSURD[int(rng.integers(len(ABSURD)))]
            else:
                data[at : at + 4] = b"\xff\xff\xff\x7f"
    return bytes(data)


# --- children -------------------------------------------------------------------------------------


def run_kind(kind: Kind, numbers: range, seed: int, folder: Path, report: Path) -> None:
    """Damage a file many times in this process; write the outcomes, and before each the number to come."""
    goal = kind.make(folder)
    content = goal.read_bytes()
    warnings.simplefilter("ignore")
    expected = kind.read(folder)
    status = Path("/proc/self/status").read_text().splitlines()
    used = next(int(line.split()[1]) for line in status if line.startswith("VmSize")) << 10
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM_BYTES, resource.RLIM_INFINITY))
    seen, faults = Counter[str](), list[str]()
    for number in numbers:
        damaged = mutated(content, np.random.default_rng([seed, number]))
        if damaged == content:
            seen["unchanged"] += 1
            continue
        goal.write_bytes(damaged)
        report.write_text(json.dumps({"seen": seen, "faults": faults, "number": number}))
        signal.alarm(LIMIT_S)
        try:
            result = kind.read(folder)
            seen["read"] += 1
            if kind.has_checksum and result != expected:
                faults.append(f"{number}: the damage was not noticed")
        except RetrieveError as error:
            seen["refused"] += 1
            if not str(error):
                faults.append(f"{number}: an error without a text")
        except BaseException as error:
            faults.append(f"{number}: {type(error).__name__}: {error}"[:200])
        finally:
            signal.alarm(0)
    report.write_text(json.dumps({"seen": seen, "faults": faults, "number": numbers.stop}))


def _hang(*_: object) -> None:
    raise TimeoutError(f"more than {LIMIT_S} s")


def in_children(kind: Kind, count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Run a kind in a child, and in another one behind each mutation that kills one; return the outcomes."""
    seen, faults, first = Counter[str](), list[str](), 0
    while first < count and len(faults) < MAX_FAULTS:
        part = in_child(kind, range(first, count), seed, folder.with_name(f"{folder.name}-{first}"))
        seen.update(part["seen"])
        faults += part["faults"]
        first = part["number"]
    return {"mutations": first, **seen, "faults": faults}


def in_child(kind: Kind, numbers: range, seed: int, folder: Path) -> dict[str, Any]:
    """Run mutations of a kind in a child; return its outcomes, and the number of the next mutation.

    A signal that kills the child is a fault of the mutation that it read.
    """
    report = folder.with_name(folder.name + ".json")
    folder.mkdir()
    child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, _hang)
        try:
            run_kind(kind, numbers, seed, folder, report)
            os._exit(0)
        except BaseException as error:
            print(f"{folder.name}: {error!r}", flush=True)
            os._exit(1)
    _, status = os.waitpid(child, 0)
    begun: dict[str, Any] = {"seen": {}, "faults": [], "number": numbers.start}
    outcome: dict[str, Any] = json.loads(report.read_text()) if report.exists() else begun
    if status:
        outcome["faults"].append(f"{outcome['number']}: the process ended with {status}")
        outcome["number"] += 1
    return outcome


# --- the campaign ---------------------------------------------------------------------------------


def run_campaign(
    count: int, seed: int, folder: Path, names: tuple[str, ...] = (), log: Path | None = None
) -> dict[str, Any]:
    """Damage each kind and return the outcomes by kind.

    Args:
        count: mutations of each kind.
        seed: of the mutations.
        folder: where to work.
        names: some kinds; all without any.
        log: gets a line of JSON for each kind; the kinds that it holds are not repeated.
    """
    for module in MODULES:  # once here, not in each child
        import_module(module)
    lines = log.read_text().splitlines() if log and log.exists() else []
    outcomes: dict[str, Any] = {name: one for line in lines for name, one in json.loads(line).items()}
    for number, (name, kind) in enumerate(KINDS.items()):
        if name not in outcomes and (not names or name in names):
            begin = time.monotonic()
            outcomes[name] = in_children(kind, count, seed, folder / f"{number:02d}")
            outcomes[name]["seconds"] = round(time.monotonic() - begin, 1)
            if log:
                with log.open("a") as file:
                    file.write(json.dumps({name: outcomes[name]}) + "\n")
    return {name: outcomes[name] for name in KINDS if name in outcomes}


def main() -> None:
    """Run the campaign and print its counts."""
    parser = arguments(__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", default=[], help="only this kind; repeatable")
    parser.add_argument("--log", type=Path, help="file of the finished kinds; a later run continues it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = run_campaign(
            options.count, options.seed, Path(folder).resolve(), tuple(options.kind), options.log
        )
    rows = [
        [name, *(str(of.get(k, 0)) for k in ("mutations", "read", "refused")), str(len(of["faults"]))]
        for name, of in figures.items()
    ]
    print(table(["kind", "mutations", "read", "refused", "faults"], rows))
    for name, of in figures.items():
        for fault in of["faults"][:5]:
            print(f"{name}: {fault}")
    write_json(options.json, {"context": context(count=options.count, seed=options.seed), "kinds": figures})


if __name__ == "__main__":
    main()
