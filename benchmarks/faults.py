"""Kill commands at random moments, let them work where little is as usual, and ask them for a long time.

    python benchmarks/faults.py --kills 200 --rounds 1000 --json FILE
    python benchmarks/faults.py --kills 16 --rounds 24 --minutes 30 --log LOG --json FILE    # in parts

Strategy. Each command runs in a forked child, which starts in milliseconds because the parent has imported
everything and computed nothing. Pictures are seeded noise, and the encoder averages cells: a command takes a
fraction of a second, so that a thousand faults fit into minutes. All that is written passes through the same
code as with any other encoder. The same seed draws the same shares of a command's duration.

Kills: the former output must be intact, or the new one complete; a rerun must give the bytes of an
undisturbed run. Readers: the images, pixels and vectors that a reader sees must belong to one version.
Writers: each change that reports success must be in the final index. Surroundings, memory, soak and few
descriptors: see `surroundings.py`, `soak.py` and `descriptors.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import lru_cache, reduce
from pathlib import Path
from typing import Any

import numpy as np
from children import fork, wait
from context import arguments, context, table, write_json
from descriptors import few_descriptors
from download_jobs import DOWNLOAD_JOBS, serving_downloads
from job import snapshots
from numpy.typing import NDArray
from small_jobs import JOBS, import_all
from soak import soak
from space import withhold_space
from surroundings import SHARE, compare_surroundings, starve

from retrieval.config import IndexConfig
from retrieval.errors import RetrieveError
from retrieval.index.builder import write_index
from retrieval.index.folder import IndexFolder, from_codes, to_codes
from retrieval.index.update import Change, add_images, remove_images
from retrieval.models.embed import embed_image
from retrieval.models.encoder import FakeEncoder
from retrieval.pipeline import locate, open_index
from retrieval.results.outputs import QueryOutputs
from tfrecords.read import ImageSource
from tfrecords.schema import BANDS, Image

CONFIG = IndexConfig(stride_px=16, kind="exact")
ENCODER = FakeEncoder()
HEIGHT, WIDTH = 96, 80
READER_NICE = 5
"""How much readers step back, so that the writer does not wait for them and interrupts their readings."""


# --- scenes -----------------------------------------------------------------------------------------------


def scene(number: int, version: int = 0) -> Image:
    """Return a scene, its pixels drawn by number and version; the date holds the version."""
    rng = np.random.default_rng([number, version])
    coarse = rng.uniform(500, 3500, (HEIGHT // 8, WIDTH // 8, 4))
    pixels = np.kron(coarse, np.ones((8, 8, 1))) + rng.normal(0, 40, (HEIGHT, WIDTH, 4))
    day = f"20{version // 336:02}-{version // 28 % 12 + 1:02}-{version % 28 + 1:02}"
    return Image(number, pixels.astype(np.uint16), "dn", BANDS, 0.0, f"/scenes/{number}.tif", date=day)


def version_of(date: str | None) -> int:
    """Return the version that a date holds."""
    year, month, day = map(int, str(date).split("-"))
    return (year - 2000) * 336 + (month - 1) * 28 + day - 1


def source(images: Sequence[Image]) -> ImageSource:
    """Return scenes as a source whose images have ids."""
    return ImageSource("noise", len(images), lambda: iter(images), own_ids=True)


def build(out: Path, images: Sequence[Image], overwrite: bool = False) -> None:
    """Write an index of scenes."""
    write_index(images, out, ENCODER, CONFIG, source="noise", overwrite=overwrite)


def add(out: Path, images: Sequence[Image]) -> Change:
    """Add scenes to an index."""
    return add_images(source(images), out, source="noise", encoder=ENCODER)


def remove(out: Path, numbers: Sequence[int]) -> Change:
    """Remove scenes from an index."""
    return remove_images(out, numbers, encoder=ENCODER)


# --- kills ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """A command to kill."""

    prepare: Callable[[Path], object]
    """Writes what it starts from into a folder."""
    run: Callable[[Path], object]
    """Runs it in the folder."""
    outputs: tuple[str, ...]
    """Names of its outputs in the folder."""


def _query(folder: Path) -> None:
    index = open_index(folder / "index", encoder=ENCODER, device="cpu")
    patches = np.stack([scene(n).pixels[5:69, 7:71] for n in range(3)])
    files = QueryOutputs(folder / "submission.csv", overwrite=True)
    files.write(locate(index, patches), None, False)


def _prepare_query(folder: Path) -> None:
    build(folder / "index", [scene(n) for n in range(3)])
    (folder / "submission.csv").write_text("Patch ID,Result\n0,1 2 3\n")


def _start(folder: Path) -> None:
    build(folder / "index", [scene(n) for n in range(6)])


CHANGED = [scene(1, 1), scene(4, 1), scene(6), scene(7)]
"""Two rewritten scenes and two new ones."""
COMMANDS = {
    "index": Command(_start, lambda f: build(f / "index", [scene(n, 2) for n in range(6)], True), ("index",)),
    "add": Command(_start, lambda f: add(f / "index", CHANGED), ("index",)),
    "remove": Command(_start, lambda f: remove(f / "index", [2, 3]), ("index",)),
    "query": Command(_prepare_query, _query, ("submission.csv",)),
} | {
    name: Command(JOBS[name].prepare, JOBS[name].run, JOBS[name].outputs)
    for name in (
        *("ingest", "train", "classify predict", "segment predict"),
        *("classify train", "segment train", "change detect", "change train"),
    )
}
"""The first four are called from Python, the others as on the command line."""


@dataclass
class Kills:
    """The counts of one command."""

    killed: int = 0
    """Children that were killed before they ended."""
    former: int = 0
    """Kills that left the former output."""
    new: int = 0
    """Kills after the new output was complete."""
    between: int = 0
    """Kills of a command with two outputs that left the new one of the first, the former of the second."""
    faults: list[str] = field(default_factory=list)
    """What was wrong."""


def kill_rounds(command: Command, rounds: int, seed: int, folder: Path) -> Kills:
    """Kill a command in each round, and run it again.

    Args:
        command: the command.
        rounds: number of kills, whether or not the child ended before.
        seed: of the moments.
        folder: where to work; it exists.
    """
    template, work, counts = folder / "template", folder / "work", Kills()  # outputs may name their folder
    rng = np.random.default_rng(seed)
    work.mkdir()
    assert wait(fork(lambda: command.prepare(work))) == 0
    shutil.copytree(work, template)
    begin = time.monotonic()
    assert wait(fork(lambda: command.run(work))) == 0
    duration_s = time.monotonic() - begin
    former, new = (snapshots(where, command.outputs) for where in (template, work))
    for number in range(rounds):
        shutil.rmtree(work)
        shutil.copytree(template, work)
        code = wait(fork(lambda: command.run(work)), float(rng.uniform(0, duration_s)))
        counts.killed += code == -signal.SIGKILL
        left = snapshots(work, command.outputs)
        if all(one in pair for one, *pair in zip(left, former, new, strict=True)):
            counts.former, counts.new = counts.former + (left == former), counts.new + (left == new)
            counts.between += left not in (former, new)
        else:
            counts.faults.append(f"round {number}: an output is neither the former nor the new one")
            continue
        # A removal cannot be repeated once it is complete.
        repeated = not (left == new and command is COMMANDS["remove"])
        if repeated and wait(fork(lambda: command.run(work))):
            counts.faults.append(f"round {number}: the rerun failed")
        elif snapshots(work, command.outputs) != new:
            counts.faults.append(f"round {number}: the rerun has other bytes than an undisturbed run")
    return counts


def killing_rounds(kills: int, seed: int, names: Sequence[str], folder: Path) -> dict[str, dict[str, Any]]:
    """Kill each command an equal number of times, and return the counts.

    Args:
        kills: of all commands together.
        seed: of the moments.
        names: some commands; all without any.
        folder: where to work; it exists.
    """
    counts, chosen = {}, [name for name in COMMANDS if not names or name in names]
    for name in chosen:
        (folder / name).mkdir()
        counts[name] = asdict(kill_rounds(COMMANDS[name], kills // len(chosen), seed, folder / name))
    return counts


# --- readers and writers ----------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def right(number: int, version: int) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
    """Return the codes and the vectors of a scene."""
    codes = to_codes(scene(number, version).scaled())
    return codes, embed_image(ENCODER, from_codes(codes), CONFIG).vectors


def check_version(out: Path) -> str:
    """Read an index as a query does, and return "whole", or the part that does not fit."""
    store = IndexFolder(out, encoder=ENCODER, device="cpu")
    ids, vectors = store.vectors.vectors()
    for number, row in sorted(store.images.items()):
        codes, of_scene = right(number, version_of(row.date))
        if not np.array_equal(to_codes(store.scaled(number)), codes):
            return f"pixels of image {number} are of another version"
        if not np.array_equal(vectors[ids >> 32 == number], of_scene):
            return f"vectors of image {number} are of another version"
    return "whole"


def read_until(out: Path, stop: Path, report: Path) -> None:
    """Read an index until a file exists and once more, and write the counts of its readings."""
    os.nice(READER_NICE)
    seen, ended = Counter[str](), False
    while not ended:
        ended = stop.exists()  # the last reading meets no change
        try:
            seen[check_version(out)] += 1
        except RetrieveError as error:
            seen[f"refused: {type(error).__name__}"] += 1
        except Exception as error:  # counted as a fault
            seen[f"crash: {error!r}"] += 1
    report.write_text("".join(f"{count} {what}\n" for what, count in seen.items()))


def change_index(out: Path, rng: np.random.Generator, version: int) -> None:
    """Add, replace, remove or overwrite scenes."""
    numbers = rng.permutation(8)
    kind = rng.integers(4)
    if kind == 0:
        build(out, [scene(n, version) for n in range(6)], overwrite=True)
    elif kind == 1:
        kept = sorted(IndexFolder(out, encoder=ENCODER, device="cpu").images)
        remove(out, kept[:2] if len(kept) > 4 else kept[:1])
    else:
        add(out, [scene(int(n), version) for n in numbers[:3]])


def reading_rounds(rounds: int, readers: int, seed: int, folder: Path) -> Counter[str]:
    """Change an index in each round while readers read it all the time; return what they saw."""
    out, stop, rng = folder / "index", folder / "stop", np.random.default_rng(seed)
    assert wait(fork(lambda: build(out, [scene(n) for n in range(6)]))) == 0
    reports = [folder / f"reader-{n}.txt" for n in range(readers)]
    children = [fork(lambda report=report: read_until(out, stop, report)) for report in reports]

    def write() -> None:
        for number in range(rounds):
            change_index(out, rng, number + 1)

    writer = fork(write)
    _, status = os.waitpid(writer, 0)
    stop.touch()
    seen = Counter[str]({"writer failed": 1} if status else {})
    seen["changes"] = rounds
    for child, report in zip(children, reports, strict=True):
        wait(child)
        for line in report.read_text().splitlines():
            count, what = line.split(" ", 1)
            seen[what] += int(count)
    return seen


def add_repeatedly(out: Path, first: int, rounds: int, report: Path) -> None:
    """Add one new scene in each round, and write the numbers of those that were added and the refusals."""
    with report.open("w") as log:
        for number in range(first, first + rounds):
            try:
                add(out, [scene(number)])
                log.write(f"added {number}\n")
            except RetrieveError as error:
                log.write(f"refused: {type(error).__name__}\n")
            except Exception as error:
                log.write(f"crash: {error!r}\n")


def writing_rounds(rounds: int, writers: int, folder: Path) -> Counter[str]:
    """Let writers add scenes to one index at the same time; return what became of their changes."""
    out = folder / "index"
    assert wait(fork(lambda: build(out, [scene(0)]))) == 0
    reports = [folder / f"writer-{n}.txt" for n in range(writers)]
    children = [
        fork(lambda n=n, report=report: add_repeatedly(out, 1 + n * rounds, rounds, report))
        for n, report in enumerate(reports)
    ]
    for child in children:
        os.waitpid(child, 0)
    held = IndexFolder(out, encoder=ENCODER, device="cpu").images
    seen = Counter[str]()
    for report in reports:
        for line in report.read_text().splitlines():
            what, _, number = line.partition(" ")
            if what == "added":
                seen["added" if int(number) in held else "lost"] += 1
            else:
                seen[line] += 1
    seen["leftovers"] = sum(p.name.startswith("index.") for p in folder.iterdir())
    return seen


# --- one index, asked for a long time -----------------------------------------------------------------


def ask_for_long(queries: int, folder: Path) -> dict[str, Any]:
    """Ask one opened index from four threads, in a child; return the counts of `soak`."""
    report = folder / "report.json"

    def ask_all() -> None:
        warnings.simplefilter("ignore")  # there is no calibration
        scenes = [scene(n) for n in range(3)]
        build(folder / "index", scenes)
        index = open_index(folder / "index", encoder=ENCODER, device="cpu")
        cut = np.stack([one.pixels[y : y + 64, 7:71] for one in scenes for y in (0, 5, 18, 32)])

        def ask(number: int) -> Any:
            return np.stack(locate(index, cut[number : number + 1]).best())

        report.write_text(json.dumps(soak(ask, len(cut), queries)))

    assert wait(fork(ask_all)) == 0
    return dict(json.loads(report.read_text()))


SECTIONS: dict[str, Callable[[Any, Path], dict[str, Any]]] = {
    "kills": lambda o, f: killing_rounds(o.kills, o.seed, o.job, f),
    "readers": lambda o, f: dict(reading_rounds(o.rounds, o.readers, o.seed, f)),
    "writers": lambda o, f: dict(writing_rounds(o.rounds // 2, 2, f)),
    "surroundings": lambda o, f: compare_surroundings(o.surrounding, o.job, f),
    "memory": lambda o, f: starve(o.job, shares_of(o.starvings, o.seed), f),
    "space": lambda o, f: withhold_space(o.job, shares_of(o.starvings, o.seed), f),
    "soak": lambda o, f: ask_for_long(o.queries, f),
    "few_descriptors": lambda o, f: few_descriptors(o.images, f),
}
"""Faults by name: options and a folder to counts."""


def run_campaign(options: Any, folder: Path) -> dict[str, Any]:
    """Run faults and return their counts.

    Args:
        options: of the command line; `only` names some sections.
        folder: where to work; it exists.
    """
    found, chosen = {}, options.only or list(SECTIONS)
    of_jobs = {"surroundings", "memory", "space"} & set(chosen)
    downloads = of_jobs and not set(DOWNLOAD_JOBS).isdisjoint(options.job or DOWNLOAD_JOBS)
    with serving_downloads(folder / "served") if downloads else nullcontext():
        for name in chosen:
            (folder / name).mkdir()
            found[name] = SECTIONS[name](options, folder / name)
    return found


def shares_of(count: int, seed: int) -> list[float]:
    """Return shares of what a job needs: the agreed one, then drawn ones."""
    return [SHARE, *np.random.default_rng(seed).uniform(0.05, 0.95, count - 1).tolist()][:count]


def added(one: Any, other: Any) -> Any:
    """Return counts together: numbers are added, lists joined, and mappings added by key."""
    if isinstance(one, dict):
        keys = [*one, *(key for key in other if key not in one)]
        return {
            key: added(one[key], other[key]) if key in one and key in other else (one | other)[key]
            for key in keys
        }
    return one + other


def run_parts(options: Any) -> list[dict[str, Any]]:
    """Run parts of a campaign, each with the next seed; a log that exists is continued.

    Args:
        options: of the command line. `minutes`: no part starts later; 0 runs one part. `log` gets one line of
            JSON for each part.
    """
    log, first = options.log, options.seed
    parts = [json.loads(line) for line in log.read_text().splitlines()] if log and log.exists() else []
    end, begun = time.monotonic() + 60 * options.minutes, False
    while not begun or time.monotonic() < end:
        begun, options.seed = True, first + len(parts)
        with tempfile.TemporaryDirectory() as folder:
            parts.append(run_campaign(options, Path(folder).resolve()))
        if log:
            with log.open("a") as file:
                file.write(json.dumps(parts[-1]) + "\n")
    options.seed = first
    return parts


def main() -> None:
    """Run the campaign and print its counts."""
    parser = arguments(__doc__)
    for name, default in (("kills", 200), ("rounds", 1000), ("readers", 8), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--starvings", type=int, default=4, help="runs of each job with too little memory, room"
    )
    parser.add_argument("--queries", type=int, default=10_000, help="of the soak")
    parser.add_argument("--images", type=int, default=10_000, help="files of the index with few descriptors")
    parser.add_argument(
        "--job", action="append", default=[], choices=list(JOBS | COMMANDS), help="repeatable"
    )
    parser.add_argument("--surrounding", action="append", default=[], help="repeatable")
    parser.add_argument("--only", action="append", choices=list(SECTIONS), help="a section; repeatable")
    parser.add_argument("--minutes", type=float, default=0, help="repeat with other seeds")
    parser.add_argument("--log", type=Path, help="file of the parts; a later run continues it")
    options = parser.parse_args()
    import_all()
    parts = run_parts(options)
    figures = reduce(added, parts)
    for section in ("kills", "surroundings", "memory", "space"):
        for name, of in figures.get(section, {}).items():
            for fault in of["faults"]:
                print(f"{section}, {name}: {fault}")
    rows = [
        [name, *(str(of.get(k, 0)) for k in ("killed", "former", "between", "new")), str(len(of["faults"]))]
        for name, of in figures.get("kills", {}).items()
    ]
    print(table(["command", "killed", "former left", "between", "new left", "faults"], rows))
    for name in [name for name in figures if name != "kills"]:
        print(table([name, "times"], [[what, str(count)] for what, count in sorted(figures[name].items())]))
    shapes = {name: getattr(options, name) for name in ("kills", "rounds", "readers", "seed")}
    write_json(options.json, {"context": context(**shapes, parts=len(parts))} | figures)


if __name__ == "__main__":
    main()
