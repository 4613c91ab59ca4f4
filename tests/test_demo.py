"""The demo: its files, its scores, and how it resumes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from retrieval.config import DemoConfig
from retrieval.demo import PICTURED, SUBMISSION, choose_rows, run_demo
from retrieval.errors import ConfigError
from tfrecords.artifacts import read_manifest
from tfrecords.errors import OutputExistsError, UnfinishedOutputError

TINY = DemoConfig(images=3, patches=24, size_px=160, seed=3)
FILES = {
    "answers.csv",
    "index",
    "manifest.json",
    "matches.csv",
    "matches.parquet",
    "matches.png",
    "report.html",
    "score.json",
    "submission.csv",
    "test_images.tfrecords",
    "test_patches.tfrecords",
    "truth.csv",
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A tiny demo: its report and its folder."""
    stages = []
    out = tmp_path_factory.mktemp("demo") / "demo"
    return run_demo(out, TINY, progress=lambda stage, *_: stages.append(stage)), out, stages


def test_the_guide_names_the_files(ran):
    report, out, _ = ran
    assert {p.name for p in out.iterdir()} == FILES
    assert [p.name for p in out.parent.iterdir()] == ["demo"]
    guide = report.guide()
    for name in FILES - {"manifest.json", "test_images.tfrecords", "test_patches.tfrecords"}:
        assert name in guide


def test_its_folder_is_whole_and_checked(ran):
    _, out, _ = ran
    manifest = read_manifest(out, "demo")
    assert manifest.counts["patches"] == 24
    read_manifest(out / "index", "index")
    assert not any("partial" in line for line in (out / "index" / "images.csv").read_text().splitlines())


def test_the_matches_agree_with_the_submission_and_the_answers(ran):
    report, out, _ = ran
    table, details = pd.read_csv(out / "matches.csv"), pd.read_parquet(out / "matches.parquet")
    best = details[details["rank"] == 0].set_index("patch_id").loc[table.patch_id]
    assert (best[["image_id", "x", "y"]].to_numpy() == table[["image_id", "x", "y"]].to_numpy()).all()
    for name, columns in (("submission", "image_id x y"), ("answers", "right_image_id right_x right_y")):
        with (out / f"{name}.csv").open(newline="") as file:
            rows = {int(row["Patch ID"]): row["Result"] for row in csv.DictReader(file)}
        told = table[columns.split()].astype(str).agg(" ".join, axis=1)
        assert rows == dict(zip(table.patch_id, told, strict=True))
    assert (table.image_id == table.right_image_id).mean() == pytest.approx(report.score.sc_img.value)
    assert table.right.mean() == pytest.approx(report.score.within_5px.value)
    assert table.distance_px.isna().sum() == (table.image_id != table.right_image_id).sum()


def test_the_score_is_the_one_that_the_command_prints(ran):
    from retrieval.pipeline import evaluate

    report, out, _ = ran
    written = json.loads((out / "score.json").read_text())
    again = evaluate(out / "submission.csv", out / "answers.csv").to_dict()
    assert {name: written[name] for name in again} == again
    assert written["encoder"] == report.encoder and written["windows"] == report.windows
    assert 0.5 < again["SC_img"]["value"]


def test_the_picture_is_a_picture(ran):
    from matplotlib.image import imread

    _, out, _ = ran
    height, width, _ = imread(out / "matches.png").shape
    assert width > 1000 and height > 500


def test_the_picture_shows_some_patches_of_each_verdict_the_most_confident_first():
    rng = np.random.default_rng(0)
    right = rng.random(200) < 0.7
    table = pd.DataFrame(
        {"confidence": rng.random(200), "right": right, "distance_px": np.where(right, 0, np.nan)}
    )
    rows = choose_rows(table, seed=1)
    chosen = table.iloc[rows]
    assert (chosen.right.sum(), (~chosen.right).sum()) == (PICTURED["right"], PICTURED["wrong"])
    assert chosen.confidence.is_monotonic_decreasing and len(set(rows)) == len(rows)


def same_matches(one, other):
    """Compare two demos; compiled code may round the last digits differently."""
    a, b = (pd.read_csv(folder / "matches.csv") for folder in (one, other))
    exact = ["patch_id", "image_id", "x", "y"]
    pd.testing.assert_frame_equal(a[exact], b[exact])
    pd.testing.assert_frame_equal(a, b, check_exact=False, atol=1e-3, rtol=1e-3)


def test_the_same_seed_gives_the_same(ran, tmp_path):
    _, out, _ = ran
    run_demo(tmp_path / "again", TINY)
    for name in ("answers.csv", "submission.csv", "test_patches.tfrecords"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes(), name
    same_matches(tmp_path / "again", out)


def test_a_finished_demo_is_left_alone(ran):
    _, out, _ = ran
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    with pytest.raises(OutputExistsError, match="--overwrite"):
        run_demo(out, TINY)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before


def interrupt_at(stop, stages=None):
    """Return a progress function that interrupts the run in one of its stages, and lists the stages."""

    def progress(stage, *_):
        if stages is not None:
            stages.append(stage)
        if stage == stop:
            raise KeyboardInterrupt

    return progress


STOPS = ("generating places", "indexing images", "searching", "drawing")


def test_an_interrupted_demo_resumes(ran, tmp_path):
    """It is interrupted in each of its stages, and repeats none that is finished."""
    _, whole, _ = ran
    out, seen = tmp_path / "demo", []
    for stop in STOPS:
        seen.append([])
        with pytest.raises(KeyboardInterrupt):
            run_demo(out, TINY, progress=interrupt_at(stop, seen[-1]))
        assert not out.exists()  # an unfinished demo has another name
        if (partial := out.parent / "demo.partial").exists():  # what a kill would leave
            (partial / "challenge.partial" / "chunks").mkdir(parents=True, exist_ok=True)
    seen.append([])
    run_demo(out, TINY, progress=interrupt_at(None, seen[-1]))
    same_matches(out, whole)
    assert {p.name for p in out.iterdir()} == FILES
    assert ["generating places" in stages for stages in seen] == [True, True, False, False, False]
    assert ["indexing images" in stages for stages in seen] == [False, True, True, False, False]


def test_an_interrupted_demo_does_not_resume_with_another_size(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_demo(tmp_path / "demo", TINY, progress=interrupt_at("indexing images"))
    with pytest.raises(UnfinishedOutputError, match="patches was 24 and is 12"):
        run_demo(tmp_path / "demo", DemoConfig(images=3, patches=12, size_px=160, seed=3))


def test_an_interrupted_overwriting_demo_keeps_the_former_one(ran):
    _, out, _ = ran
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    with pytest.raises(KeyboardInterrupt):
        run_demo(out, TINY, overwrite=True, progress=interrupt_at("searching"))
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before


def test_a_demo_without_enough_patches_is_refused():
    with pytest.raises(ConfigError, match="patches is 2"):
        DemoConfig(images=3, patches=2)


def test_the_shipped_sizes_are_those_of_the_records():
    assert DemoConfig().size_px == 512  # or the records are not the challenge's own
    assert Path(SUBMISSION).suffix == ".csv"
