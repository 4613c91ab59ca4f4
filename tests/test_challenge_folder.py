"""The reference job: in a folder with the challenge's file names, three bare commands give right answers."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from retrieval.synthetic.light import Sky
from retrieval.synthetic.scene import Scene
from tfrecords.schema import BANDS, Image, Patches
from tfrecords.write import write_images, write_patches

ROOT = Path(__file__).parent.parent
CLEAR = Sky(0.0, 0.0)
IMAGES = {563: 11, 192: 4}
"""Image id -> seed of its place: ids are the challenge's own, neither dense nor in order."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The challenge's three files, byte for byte of its form, after `retrieve index`, `query` and `score`.

    Half of the patches are cut from the images themselves, half from another year, laid exactly over them.
    """
    folder = tmp_path_factory.mktemp("challenge")
    rng = np.random.default_rng(7)
    images, pixels, rows = [], [], []
    for image_id, seed in IMAGES.items():
        scene = Scene(seed, 512, 512)
        shown = scene.observe(160, year=2017, sky=CLEAR, shift_xy_px=(0, 0)).dn
        later = scene.observe(205, year=2019, sky=CLEAR, shift_xy_px=(0, 0)).dn
        images.append(Image(image_id, shown, "dn", BANDS, 0.0))
        for date in (shown, later):
            for x, y in rng.integers(0, 449, (6, 2)):
                pixels.append(date[y : y + 64, x : x + 64])
                rows.append((image_id, int(x), int(y)))
    ids = rng.permutation(5000)[: len(rows)]
    write_images(images, folder / "test_images.tfrecords", challenge=True)
    write_patches(
        Patches(ids.astype(np.int64), np.stack(pixels), "dn", BANDS, 0.0),
        folder / "test_patches.tfrecords",
        challenge=True,
    )
    with (folder / "answers.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Patch ID", "Result"])
        writer.writerows([int(n), "{} {} {}".format(*row)] for n, row in zip(ids, rows, strict=True))
    np.save(folder / "of-the-same-date.npy", ids.reshape(2, 2, 6)[:, 0].ravel())
    _three_bare_commands(folder)
    return folder


def _three_bare_commands(folder: Path) -> None:
    """Run them as a user does, in a shell in the folder."""
    program = folder / "bin" / "retrieve"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom retrieval.cli import main\n\nmain()\n")
    program.chmod(0o755)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-ec", "retrieve index\nretrieve query\nretrieve score > score.txt"],
        cwd=folder,
        env=os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (folder / "stderr.txt").write_text(done.stderr)


def _rows(path: Path) -> dict[int, str]:
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["Patch ID", "Result"]
    return {int(patch): result for patch, result in rows}


def test_the_index_holds_every_window_of_every_image(folder):
    import faiss

    from retrieval.types import unpack_ids
    from tfrecords.artifacts import read_manifest

    manifest = read_manifest(folder / "index", "index")
    assert manifest.counts == {"images": 2, "windows": 2 * 57 * 57}
    index = faiss.read_index(str(folder / "index" / "vectors.faiss"))
    assert index.ntotal == 2 * 57 * 57
    image_ids, x, y = unpack_ids(faiss.vector_to_array(index.id_map))
    steps = 8 * np.arange(57)
    expected = np.array([(i, x, y) for i in sorted(IMAGES) for y in steps for x in steps])
    assert (np.stack([image_ids, x, y], 1) == expected).all()


def test_the_index_lists_its_images(folder):
    with (folder / "index" / "images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["image_id"], r["width"], r["height"], r["bands"]) for r in rows] == [
        (str(i), "512", "512", "B04 B03 B02 B08") for i in sorted(IMAGES)
    ]


def test_patches_of_the_same_date_come_back_to_the_pixel(folder):
    submission, answers = _rows(folder / "submission.csv"), _rows(folder / "answers.csv")
    for patch in np.load(folder / "of-the-same-date.npy"):
        assert submission[patch] == answers[patch]


def test_every_patch_has_one_row_in_the_order_of_the_patches(folder):
    assert list(_rows(folder / "submission.csv")) == list(_rows(folder / "answers.csv"))


def test_the_score_follows_its_definition(folder):
    submission, answers = _rows(folder / "submission.csv"), _rows(folder / "answers.csv")
    right, credit = [], []
    for patch, result in answers.items():
        image, x, y = map(int, result.split())
        found_image, found_x, found_y = map(int, submission[patch].split())
        right.append(image == found_image)
        distance = ((x - found_x) ** 2 + (y - found_y) ** 2) ** 0.5
        credit.append(max(0.0, 1 - distance / (64 * 2**0.5)) if right[-1] else 0.0)
    expected = {"SC_img": np.mean(right), "SC_loc": np.mean(credit)}
    expected["SC"] = (expected["SC_img"] + expected["SC_loc"]) / 2
    table = dict(re.findall(r"^(SC\w*) +([0-9.]+)", (folder / "score.txt").read_text(), re.MULTILINE))
    assert {name: float(value) for name, value in table.items()} == pytest.approx(expected, abs=5e-5)
    assert expected["SC"] > 0.95  # clear skies, two summers: what is missed is a defect


def test_units_and_bands_are_printed(folder):
    stderr = (folder / "stderr.txt").read_text()
    assert "test_images.tfrecords: 2 images, scaled, B04 B03 B02 B08" in stderr
    assert "test_patches.tfrecords: 24 patches, scaled, B04 B03 B02 B08" in stderr
    assert "absl" not in stderr and "oneDNN" not in stderr
