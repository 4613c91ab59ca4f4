"""Small jobs of the commands that download, from servers on the loopback; see `small_jobs.py`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from job import Job

TESTS = Path(__file__).parents[1] / "tests"
sys.path.append(str(TESTS))  # for the servers
FILES, CATALOGUE = "FAULTS_FILES", "FAULTS_CATALOGUE"
"""Environment variables that hold the addresses of the servers, the same for all runs of a campaign."""
TILE = "31TCJ"
DAYS = ("2021-05-01", "2022-06-01")


@contextmanager
def serving_downloads(folder: Path) -> Iterator[None]:
    """Serve the files and the catalogue that the jobs ask for, in a thread of this process.

    Args:
        folder: to make, for the files.
    """
    from rangeserver import serving
    from stac_ground import Tiles, clear
    from stac_server import cataloguing

    folder.mkdir()
    with serving(folder) as files, cataloguing() as catalogue:
        made = Tiles(folder, files.url)
        for number, day in enumerate(DAYS):
            made.put(TILE, day, cloud=5.0 + number, scl=clear())
        catalogue.items = made.items
        _tiles(folder)
        os.environ |= {FILES: files.url, CATALOGUE: catalogue.url}
        yield


def _tiles(folder: Path) -> None:
    from PIL import Image

    for x in range(6):
        file = BytesIO()
        pixels = np.random.default_rng(x).integers(0, 255, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(file, "PNG")
        path = folder / f"tiles/9/{x}/5.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(file.getvalue())


def _cover(folder: Path, version: int) -> None:
    rows = (f"9,{x},5,train\n" for x in range(2 * version, 4 + version))
    (folder / "cover.csv").write_text("z,x,y,split\n" + "".join(rows))


def _download(folder: Path) -> tuple[object, ...]:
    url = os.environ[FILES] + "/tiles/{z}/{x}/{y}.png"
    return ("labels", "download", folder / "cover.csv", "--url", url, "--rate", 50, "--out", folder / "tiles")


def _dates(folder: Path, version: int) -> None:
    (folder / "dates.txt").write_text("2021" if version else "2021/2022")


def _ingest(folder: Path) -> tuple[object, ...]:
    from stac_job import ASKED

    box = ",".join(map(str, ASKED))
    dates = "--dates", (folder / "dates.txt").read_text()
    return ("ingest-stac", f"--bbox={box}", *dates, "--api", os.environ[CATALOGUE], "--out", folder / "got")


DOWNLOAD_JOBS: dict[str, Job] = {
    "labels download": Job(_cover, _download, ("tiles",)),
    "ingest-stac": Job(_dates, _ingest, ("got",), grows=True),
}
