"""A small job of the command line: two images, five patches, right answers and an index."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from typer.testing import CliRunner

from retrieval.cli import app
from retrieval.synthetic.scene import Scene


def run(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments], prog_name="retrieve")


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def make_ground(folder: Path) -> None:
    """Write two small images of dn, five patches out of them, right answers, and their index."""
    images = np.stack([Scene(seed, 128, 136).render(150) for seed in (1, 2)])
    places = [(0, 5, 7), (0, 64, 33), (1, 11, 60), (1, 72, 2)]
    patches = [images[i, y : y + 64, x : x + 64] for i, x, y in places]
    np.save(folder / "images.npy", images)
    np.save(folder / "patches.npy", np.stack([*patches, np.full_like(patches[0], 700)]))
    rows = [f"{n},{i} {x} {y}" for n, (i, x, y) in enumerate(places)]
    (folder / "answers.csv").write_text("\n".join(["Patch ID,Result", *rows]) + "\n")
    done = run("index", folder / "images.npy", "--out", folder / "index", "--json", "--quiet")
    assert done.exit_code == 0, done.output
