"""Damage what our own parsers read, guided by the lines that they reach.

    pip install atheris
    python benchmarks/guided.py --minutes 10 --json FILE

Strategy. A parser gets bytes or a file. Atheris (libFuzzer) counts the branches of our code that it takes,
and changes those bytes further that reach new ones. Each parser starts from small valid inputs and has its
own process, a limit of memory and an equal share of the time. It must return or raise an error of ours
within ten seconds. All else is a fault, and its bytes are printed.

`mutations.py` damages whole files of every kind instead, also those that libraries read.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from context import arguments, context, table, write_json

from tfrecords.errors import RetrieveError

LIMIT_S = 10
"""Longest time of a parser."""
MEMORY_MB = 4096
"""Most memory of a process, which TensorFlow and the tables of branches take a part of."""
MAX_BYTES = 1 << 14
"""Longest input."""
MAX_FAULTS = 20
"""Different faults that a report keeps."""
REPORT_EVERY = 1000
"""Inputs between two reports; libFuzzer ends the process itself."""


@dataclass(frozen=True)
class Parser:
    """A parser of ours and its valid inputs."""

    modules: tuple[str, ...]
    """Packages whose branches count."""
    seeds: Callable[[Path], list[bytes]]
    """Returns valid inputs; it may write into the folder."""
    reader: Callable[[Path], Callable[[bytes], object]]
    """Returns the parser; it may write its input into the folder."""


# --- parsers --------------------------------------------------------------------------------------


def _of_file(name: str, read: Callable[[Path], object]) -> Callable[[Path], Callable[[bytes], object]]:
    """Return a parser of bytes that writes them to a file first."""

    def reader(folder: Path) -> Callable[[bytes], object]:
        path = folder / name

        def parse(data: bytes) -> object:
            path.write_bytes(data)
            return read(path)

        return parse

    return reader


def _kind(name: str) -> Callable[[Path], list[bytes]]:
    """Return the valid file of a kind of `mutations.py`."""

    def seeds(folder: Path) -> list[bytes]:
        from mutations import KINDS

        return [KINDS[name].make(folder).read_bytes()]

    return seeds


def _records(folder: Path) -> list[bytes]:
    """Return records of a small image, a series and a patch."""
    import numpy as np

    from tfrecords.schema import BANDS, Image, Series
    from tfrecords.schema.encode import encode_image, encode_patch, encode_series

    pixels = np.arange(5 * 6 * 4, dtype=np.uint16).reshape(5, 6, 4)
    image = Image(3, pixels, "dn", BANDS, 0.0, crs="EPSG:32631", transform=(10.0, 0, 5e5, 0, -10.0, 5e6))
    dates = ("2020-01-01", "2020-06-01")
    series = Series(np.stack([pixels, pixels]), "dn", BANDS, 0.0, dates, "here", 0, 0)
    return [encode_image(image), encode_series(series), encode_patch(7, pixels, "dn", BANDS, 0.0)]


def _decoder(_: Path) -> Callable[[bytes], object]:
    """Return a parser of the bytes of a record, whose checksum would stop all damage in a file."""
    from tfrecords.schema.decode import decode_image, decode_patch, decode_series

    def decode(data: bytes) -> None:
        refused = []
        for kind in (decode_image, decode_series, decode_patch):
            try:
                kind(data)
            except RetrieveError as error:
                refused.append(error)
        if len(refused) == 3:
            raise refused[0]

    return decode


def _frames(path: Path) -> object:
    from tfrecords.read.records import record_offsets

    return record_offsets(path)


def _pictures(folder: Path) -> list[bytes]:
    """Return a TIFF, a BigTIFF and a PNG with a tag Orientation."""
    import struct

    entry = struct.pack("<HHIH2x", 274, 3, 1, 6)
    tiff = b"II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)
    big = b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, 1) + struct.pack("<HHQH6x", 274, 3, 1, 6) + bytes(8)
    chunk = struct.pack(">I4s", len(tiff), b"eXIf") + tiff + bytes(4)
    return [tiff, big, b"\x89PNG\r\n\x1a\n" + chunk]


def _tag(path: Path) -> object:
    from tfrecords.read.exif import orientation_tag

    return orientation_tag(path)


def _manifest(path: Path) -> object:
    from tfrecords.artifacts.manifest import parse_manifest

    return parse_manifest(path, "series")


def _names(_: Path) -> list[bytes]:
    return [b"2020-01-05", b"S2A_MSIL2A_20200105T105431_N0213_R051_T31TCJ", b"2020-01-05T10:54:31.024Z"]


def _dates(_: Path) -> Callable[[bytes], object]:
    """Return a parser of names and times."""
    from tfrecords.schema.dates import acquisition_day, date_of, days_of, moment_of, sure_date_of

    def parse(data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        for read in (date_of, sure_date_of, days_of, moment_of):
            read(text)
        acquisition_day(text, lambda: 12.0)

    return parse


def _reader_of(name: str) -> Callable[[Path], object]:
    """Return the reader of a kind of `mutations.py`; it reads the folder of a file."""

    def read(path: Path) -> object:
        from mutations import KINDS

        return KINDS[name].read(path.parent)

    return read


PARSERS: dict[str, Parser] = {
    "records": Parser(("tfrecords",), _records, _decoder),
    "frames of records": Parser(("tfrecords",), _kind("TFRecord, images"), _of_file("a.tfrecords", _frames)),
    "orientation": Parser(("tfrecords",), _pictures, _of_file("a.tif", _tag)),
    "manifest": Parser(("tfrecords",), _kind("manifest"), _of_file("manifest.json", _manifest)),
    "dates": Parser(("tfrecords",), _names, _dates),
} | {
    name: Parser(("tfrecords", "retrieval"), _kind(name), _of_file(file, _reader_of(name)))
    for name, file in {
        "submission": "s.csv",
        "settings": "retrieve.toml",
        "cover": "cover.csv",
        "classes": "classes.csv",
        "journal": "items.csv",
        "recipe": "r.json",
        "mask": "mask.png",
    }.items()
}
"""Parsers by name."""


# --- a process of one parser ----------------------------------------------------------------------


@dataclass
class Outcomes:
    """What a parser did with the inputs so far."""

    read: Callable[[bytes], object]
    """The parser."""
    report: Path
    """File of the counts and faults."""
    seen: Counter[str] = field(default_factory=Counter)
    """Numbers of inputs that were read, refused or gave a fault."""
    faults: dict[str, str] = field(default_factory=dict)
    """Text and bytes of the first fault of a kind and line."""

    def attempt(self, data: bytes) -> None:
        """Parse an input and count the outcome."""
        known = len(self.faults)
        try:
            self.read(data)
            self.seen["read"] += 1
        except RetrieveError:
            self.seen["refused"] += 1
        except Exception as error:
            self.seen["faulty"] += 1
            frame = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__} at {frame.filename}:{frame.lineno}"
            if known < MAX_FAULTS:
                self.faults.setdefault(what, f"{str(error)[:200]}: {data[:200]!r}")
        if sum(self.seen.values()) % REPORT_EVERY == 1 or len(self.faults) > known:
            self.report.write_text(json.dumps({"seen": self.seen, "faults": self.faults}))


def hunt(name: str, seconds: int, folder: Path) -> None:
    """Damage the inputs of one parser in this process; it writes its counts, and does not return."""
    atheris = import_module("atheris")
    parser, seeds, made, work = PARSERS[name], folder / "seeds", folder / "made", folder / "work"
    for path in (seeds, made, work):
        path.mkdir()
    with atheris.instrument_imports(include=list(parser.modules)):
        read = parser.reader(work)
        for number, content in enumerate(parser.seeds(made)):
            (seeds / str(number)).write_bytes(content)
            read(content)  # imports what it needs
    flags = {"max_total_time": seconds, "timeout": LIMIT_S, "rss_limit_mb": MEMORY_MB, "max_len": MAX_BYTES}
    flags |= {"print_final_stats": 1, "artifact_prefix": f"{folder}/"}
    given = [name, *(f"-{flag}={value}" for flag, value in flags.items()), str(seeds)]
    atheris.Setup(given, Outcomes(read, folder / "report.json").attempt)
    atheris.Fuzz()


def hunted(name: str, seconds: int, folder: Path) -> dict[str, Any]:
    """Damage the inputs of one parser in a process, and return its counts and faults."""
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    code = f"import pathlib, guided; guided.hunt({name!r}, {seconds}, pathlib.Path({str(folder)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        errors="replace",
    )
    report = folder / "report.json"
    counts = json.loads(report.read_text()) if report.exists() else {"seen": {}, "faults": {}}
    faults = [f"{what}: {text}" for what, text in counts["faults"].items()]
    faults += (
        [] if done.returncode == 0 else [f"the process ended with {done.returncode}: {done.stderr[-600:]}"]
    )
    executed = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    reached = re.findall(r"cov: (\d+)", done.stderr)
    branches = [int(reached[0]), int(reached[-1])] if reached else []
    return {
        "inputs": int(executed[1]) if executed else sum(counts["seen"].values()),
        **counts["seen"],
        "branches": branches,
        "faults": faults,
    }


def main() -> None:
    """Run all parsers and print their counts."""
    parser = arguments(__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="of all parsers together")
    parser.add_argument("--parser", action="append", default=[], choices=list(PARSERS), help="repeatable")
    options = parser.parse_args()
    names = options.parser or list(PARSERS)
    found = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = hunted(
                name, max(1, round(60 * options.minutes / len(names))), Path(folder).resolve()
            )
        print(name, found[name], flush=True)
    rows = [
        [name, str(of["inputs"]), str(of["branches"][-1:]), str(len(of["faults"]))]
        for name, of in found.items()
    ]
    print(table(["parser", "inputs", "branches", "faults"], rows))
    write_json(options.json, {"context": context(minutes=options.minutes), "parsers": found})


if __name__ == "__main__":
    main()
