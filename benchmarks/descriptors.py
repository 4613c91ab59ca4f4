"""Build, ask and change an index of more image files than a process may have descriptors.

A child with a limit of descriptors runs `index`, `query`, `index --add` and `index --remove`. Each image has
its own texture, so that each patch has one right place. Each query runs once more without the limit, and must
give the same answers. The largest number of descriptors that the child
holds is counted while it works.
"""

from __future__ import annotations

import json
import resource
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from children import fork, wait
from job import command, ground, write_tif
from numpy.typing import NDArray

DESCRIPTORS = 256
SIDE = 72
"""Side of an image in pixels."""
ASKED = 20
"""Patches of a query, spread over all images."""
CHANGED = 10
"""Images that are added, and removed."""
BUDGET_S = 0
"""Time that a query may spend on patches that the search leaves uncertain: answers must not depend on it."""
PATIENCE_S = 3600
"""Time until the child counts as hanging."""


def few_descriptors(images: int, folder: Path) -> dict[str, Any]:
    """Run the commands on many images with few descriptors.

    Args:
        images: number of image files.
        folder: where to work; it exists.

    Returns:
        Numbers of images, descriptors allowed and held, patches, answers that are the same without the limit,
        right ones, and seconds of each step.
    """
    for number in range(images + CHANGED):
        path = folder / ("first" if number < images else "more") / f"{number:05}.tif"
        row, column = divmod(number, 200)
        write_tif(path, ground(number, 0, SIDE, SIDE), 4e5 + 1e3 * column, top=5e6 + 1e3 * row)
    report = folder / "report.json"
    child = fork(lambda: _limited(images, folder, report))
    most, stop = [0], threading.Event()
    watching = threading.Thread(target=_watch, args=(child, most, stop))
    watching.start()
    code = wait(child, patience_s=PATIENCE_S)
    stop.set()
    watching.join()
    assert code == 0
    return {"images": images, "descriptors": DESCRIPTORS, "held": most[0], **json.loads(report.read_text())}


def _watch(child: int, most: list[int], stop: threading.Event) -> None:
    while not stop.wait(0.2):
        try:
            most[0] = max(most[0], len(list(Path(f"/proc/{child}/fd").iterdir())))
        except OSError:
            return


def _limited(images: int, folder: Path, report: Path) -> None:
    """Run the commands in this child, and write the counts."""
    limit, hard = resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(limit, (DESCRIPTORS, hard))
    seconds, counts = dict[str, float](), Counter[str]()
    index = folder / "index"
    removed = [flag for n in range(CHANGED) for flag in ("--remove", f"{n:05}.tif")]
    flags = ("--out", index, "--quiet")

    def timed(name: str, run: Callable[[], object]) -> None:
        begin = time.monotonic()
        run()
        seconds[name] = round(time.monotonic() - begin, 1)

    def ask(name: str, first: int, last: int) -> None:
        """Count answers to patches of images `first` to `last`, `last` not included."""
        numbers = np.linspace(first, last - 1, ASKED).astype(int)
        np.save(folder / "patches.npy", np.stack([ground(n, 0, SIDE, SIDE)[4:68, 5:69] for n in numbers]))
        limited, free = folder / "limited.csv", folder / "free.csv"
        asked = (
            "query",
            folder / "patches.npy",
            "--index",
            index,
            "--budget",
            BUDGET_S,
            "--overwrite",
            "--quiet",
        )
        timed(name, lambda: command(*asked, "--out", limited))
        resource.setrlimit(limit, (hard, hard))
        command(*asked, "--out", free)
        resource.setrlimit(limit, (DESCRIPTORS, hard))
        rows = zip(limited.read_text().splitlines()[1:], free.read_text().splitlines()[1:], strict=True)
        counts["same"] += sum(one == other for one, other in rows)
        counts["right"] += _right(index, limited, numbers)

    timed("index", lambda: command("index", folder / "first", *flags))
    ask("query", 0, images)
    timed("add", lambda: command("index", folder / "more", *flags, "--add"))
    timed("remove", lambda: command("index", *removed, *flags))
    ask("query of the changed index", CHANGED, images + CHANGED)
    report.write_text(json.dumps({"asked": 2 * ASKED, **counts, "seconds": seconds}))


def _right(index: Path, submission: Path, numbers: NDArray[np.int64]) -> int:
    """Return the number of answers in the image of their patch, within a pixel."""
    from retrieval.evaluation.submission import read_submission
    from retrieval.pipeline import open_index

    names = {number: row.path for number, row in open_index(index).folder.images.items()}
    found = read_submission(submission)
    return sum(
        bool(Path(names[int(image)]).stem == f"{number:05}" and abs(x - 5) <= 1 and abs(y - 4) <= 1)
        for number, image, x, y in zip(numbers, found.image_ids, found.x, found.y, strict=True)
    )
