"""The exploration of labelled and unlabelled images: its page, and the command that writes it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from labelled import CLASSES, pictures, write_npz
from pages import EVIL, Outline
from typer.testing import CliRunner

from retrieval.cli import app
from retrieval.evaluation.exploration import Split, explore
from retrieval.report.exploration_page import write_exploration_page


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], prog_name="retrieve")


@pytest.fixture
def sources(tmp_path):
    """Labelled, unlabelled and validation images; one validation image is also labelled."""
    for name, count, seed in (("train", 24, 0), ("unsup", 30, 1), ("valid", 12, 2)):
        pixels, labels = pictures(count, seed=seed)
        if name == "valid":
            pixels[5] = pictures(24, seed=0)[0][8]
        if name == "unsup":
            pixels = pixels // 2
        write_npz(tmp_path / f"{name}.npz", pixels, np.array(CLASSES)[labels])
    return tmp_path


def test_the_command_writes_one_page_with_every_section(sources):
    out = sources / "explore.html"
    explored = ["classify", "explore", sources / "train.npz", "--unlabelled", sources / "unsup.npz"]
    explored += ["--validation", sources / "valid.npz", "--out", out, "--json"]
    done = run(*explored)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["images"] == {"labelled": 24, "unlabelled": 30, "validation": 12}
    assert result["classes"] == {"Field": 8, "Forest": 8, "Water": 8}
    assert (result["near_duplicates"], result["across_splits"]) == (1, 1)
    html = out.read_text(encoding="utf-8")
    assert Outline(html).problems == []
    for section in ("balance", "examples", "spectra", "shift", "plane", "duplicates"):
        assert f'id="{section}"' in html
    for text in (
        "about equally frequent",
        "unlabelled: the light differs",
        "labelled 8 (Water), validation 5 (Water), copy",
        "Mean spectra by class",
        "Histogram of B02 by split",
    ):
        assert text in html
    again = run(*explored)
    assert again.exit_code == 1 and "--overwrite" in again.stderr


def test_labelled_images_alone_have_a_page(sources):
    done = run("classify", "explore", sources / "train.npz", "--out", sources / "page.html")
    assert done.exit_code == 0, done.output
    html = (sources / "page.html").read_text()
    assert "only one split" in html and "No two images show the same." in html


def test_a_rare_class_is_named(sources):
    with np.load(sources / "train.npz") as arrays:
        keep = [*np.flatnonzero(arrays["labels"] != "Water").tolist(), 2, 5]
        write_npz(sources / "rare.npz", arrays["pixels"][keep], arrays["labels"][keep])
    done = run("classify", "explore", sources / "rare.npz", "--out", sources / "page.html")
    assert done.exit_code == 0, done.output
    text = "Field has 4.0 times as many labelled images as Water"
    assert text in (sources / "page.html").read_text()


def test_names_out_of_files_and_other_bands_cannot_break_the_page(tmp_path, rng):
    pixels = rng.integers(0, 9000, (6, 16, 16, 2)).astype(np.uint16)
    split = Split("labelled", pixels, (EVIL, *"12345"), np.array([0, 1] * 3))
    found = explore([split], (EVIL, "b"), ("B08", EVIL), 10_000)
    write_exploration_page(tmp_path / "p.html", found, title=EVIL)
    html = (tmp_path / "p.html").read_text()
    assert Outline(html).problems == [] and "<script" not in html


def test_images_of_another_kind_are_refused_before_a_page_is_written(sources):
    np.savez(sources / "small.npz", x=np.zeros((3, 16, 16, 3), np.uint8))
    out = sources / "page.html"
    done = run(
        "classify", "explore", sources / "train.npz", "--unlabelled", sources / "small.npz", "--out", out
    )
    assert done.exit_code == 1 and "16 x 16 pixels" in done.stderr and not out.exists()
