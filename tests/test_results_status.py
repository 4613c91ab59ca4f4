"""Patches that find nothing, or that the budget keeps from exhaustive search: each output marks them."""

import csv
import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from engine import calibrated, digital, image_of, small_encoder, texture
from typer.testing import CliRunner

import retrieval
from retrieval.cli import app
from retrieval.config import IndexConfig, SearchConfig
from retrieval.errors import SearchBudgetWarning
from retrieval.index.builder import write_index
from retrieval.report.page import write_page
from retrieval.report.patch_results import judge, read_details
from retrieval.results.tables import write_table
from tfrecords.read import read_queries
from tfrecords.schema import BANDS, Patches

GROUND = [digital(texture(128, 136, seed=seed)) for seed in (1, 2)]
FLAT, NODATA = np.full((64, 64, 4), 900, np.uint16), np.zeros((64, 64, 4), np.uint16)


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], prog_name="retrieve")


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """An index of two images, by the training-free encoder."""
    out = tmp_path_factory.mktemp("status") / "index"
    return retrieval.build_index(np.stack(GROUND), out, encoder=calibrated(small_encoder()))


@pytest.fixture(scope="module")
def patches(index):
    """A copy of each image, and between them a flat patch, one without data, and one of both."""
    half = np.where(np.arange(64)[None, :, None] < 32, FLAT, NODATA)
    first, second = GROUND[0][5:69, 6:70], GROUND[1][30:94, 50:114]
    path = index.folder.path.parent / "patches.npy"
    np.save(path, np.stack([first, FLAT, NODATA, half, second]))
    return path


STATUS = ["found", "not_found", "not_found", "not_found", "found"]


def test_flat_and_empty_patches_are_not_found(index, patches):
    found = index.matches(patches)
    assert found.status.tolist() == STATUS
    details = found.details().groupby("patch_id").first()
    assert details.image_id.dropna().to_dict() == {0: 0, 4: 1}
    assert (details.confidence[[1, 2, 3]] == 0).all() and details.footprint.isna().all()


@pytest.mark.parametrize("size", [64, 100])
def test_chips_that_find_nothing(index, tmp_path, write_tif, size):
    nan = np.full((size, size, 4), np.nan, np.float32)
    one_band = GROUND[0][:size, :size].astype(np.float32)
    one_band[..., 2] = np.nan
    write_tif("a_ground.tif", GROUND[1][8 : 8 + size, 16 : 16 + size].astype(np.float32), nodata=np.nan)
    write_tif("b_empty.tif", nan, nodata=np.nan)
    write_tif("c_flat.tif", np.full_like(nan, 900.0), nodata=np.nan)
    write_tif("d_one_band.tif", one_band, nodata=np.nan)
    found = index.matches(tmp_path, units="dn")
    assert found.status.tolist() == ["found", "not_found", "not_found", "found"]
    frame = found.frame()
    assert frame[["image_id", "x", "y"]].to_numpy()[[0, 3]].tolist() == [[1, 16, 8], [0, 0, 0]]
    assert not np.isnan(frame.confidence).any() and (frame.confidence[1:3] == 0).all()


def test_a_filter_that_leaves_an_image_without_windows(tmp_path, patches):
    images = [
        image_of(GROUND[0], 0, date="2020-05-01"),
        image_of(np.vstack([NODATA] * 2), 1, date="2021-05-01"),
    ]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_index(images, tmp_path / "i", calibrated(small_encoder()), IndexConfig(), source="test")
    opened = retrieval.open_index(tmp_path / "i")
    assert opened.matches(patches, between="2020").status.tolist() == [*STATUS[:4], "found"]
    assert opened.matches(patches, between="2021").status.tolist() == ["not_found"] * 5


def test_the_budget_keeps_uncertain_patches_from_exhaustive_search(index, tmp_path):
    elsewhere = digital(texture(64, 64, seed=9))
    queries = Patches(np.arange(3), np.stack([GROUND[0][5:69, 6:70], elsewhere, FLAT]), "dn", BANDS, 0.0)
    with pytest.warns(SearchBudgetWarning):
        limited = index.matches(queries, search=SearchConfig(exhaustive_budget=1))
    assert limited.status.tolist() == ["found", "partly_searched", "not_found"]
    off = index.matches(queries, search=SearchConfig(exhaustive_budget=0))
    assert off.status.tolist() == ["found", "found", "not_found"]
    for name, value in vars(off.candidates).items():
        np.testing.assert_allclose(getattr(limited.candidates, name), value, atol=1e-5)
    assert index.matches(queries).status.tolist() == ["found", "found", "not_found"]


# --- the command, and its files -------------------------------------------------------------------


def test_the_command_marks_what_is_not_found(index, patches, tmp_path):
    out, details = tmp_path / "submission.csv", tmp_path / "matches.csv"
    query = ("query", patches, "--index", index.folder.path, "--out", out)
    done = run(*query, "--details", details, "--save-windows", tmp_path / "windows", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert (result["found"], result["partly_searched"], result["not_found"]) == (2, 0, 3)
    assert result["not_found_ids"] == [1, 2, 3]
    assert "warning: 3 of 5 patches are not found" in done.stderr and ": 1, 2, 3" in done.stderr
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [row["Patch ID"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert (rows[0]["Result"], rows[4]["Result"]) == ("0 6 5", "1 50 30")
    assert all(len(row["Result"].split()) == 3 for row in rows)
    names = sorted(path.name for path in (tmp_path / "windows").glob("*.tif"))
    assert names == ["patch_0.tif", "patch_4.tif"]
    table = pd.read_csv(details)
    assert table.groupby("patch_id").status.first().tolist() == STATUS
    assert table[table.status == "not_found"].image_id.isna().all()
    done = run(*query, "--overwrite", "--quiet")
    assert "5 patches" in done.stdout and "; 3 not found" in done.stdout


def test_unsure_patches_are_left_out_as_before(index, patches, tmp_path):
    out, details = tmp_path / "submission.csv", tmp_path / "matches.parquet"
    settings = ("--min-confidence", 0.5, "--drop-unsure", "--details", details)
    done = run("query", patches, "--index", index.folder.path, "--out", out, *settings, "--json", "--quiet")
    assert json.loads(done.stdout)["dropped"] == 3
    assert [row["Patch ID"] for row in csv.DictReader(out.read_text().splitlines())] == ["0", "4"]
    table = pd.read_parquet(details)
    assert table[table["rank"] == 0].unsure.tolist() == [False, True, True, True, False]


@pytest.mark.parametrize("ending", ["parquet", "csv", "geojson"])
def test_every_format_has_the_row_without_a_match(index, patches, tmp_path, ending):
    path = tmp_path / f"matches.{ending}"
    done = run("query", patches, "--index", index.folder.path, "--out", tmp_path / "s.csv", "--details", path)
    assert done.exit_code == 0, done.output
    if ending == "geojson":
        features = json.loads(path.read_text())["features"]
        rows = {f["properties"]["patch_id"]: f for f in features if f["properties"]["rank"] == 0}
        assert [rows[i]["properties"]["status"] for i in range(5)] == STATUS
        assert rows[1]["geometry"] is None and rows[1]["properties"]["image_id"] is None
        assert rows[4]["properties"]["image_id"] == 1 and isinstance(rows[4]["properties"]["x"], int)
        return
    table = read_details(path)
    assert table.patch_id.unique().tolist() == [0, 4] and table.image_id.dtype == np.int64
    stored = pd.read_parquet(path) if ending == "parquet" else pd.read_csv(path)
    best = stored[stored["rank"] == 0].set_index("patch_id")
    assert best.status.tolist() == STATUS
    for name in ("place", "image_id", "x", "y", "dx", "width", "similarity", "ncc", "hidden_share"):
        assert best[name].isna().tolist() == [False, True, True, True, False], name


def test_a_table_without_any_match_is_written_and_read(index, tmp_path):
    found = index.matches(Patches(np.array([4, 9]), np.stack([FLAT, NODATA]), "dn", BANDS, 0.0))
    for ending in ("parquet", "csv", "geojson"):
        write_table(found.details(), tmp_path / f"m.{ending}")
    for ending in ("parquet", "csv"):
        assert len(read_details(tmp_path / f"m.{ending}")) == 0
    judged = judge(read_details(tmp_path / "m.csv"), found.patch_ids, index.folder.images)
    assert judged.best.status.tolist() == ["not_found"] * 2


def test_the_report_says_what_is_not_found(index, patches, tmp_path):
    with pytest.warns(SearchBudgetWarning):
        elsewhere = digital(texture(64, 64, seed=9))
        queries = read_queries(np.stack([*np.load(patches), elsewhere]), units="dn")
        found = index.matches(queries, search=SearchConfig(exhaustive_budget=1))
    page = tmp_path / "page.html"
    write_page(page, index.folder, queries, found.details())
    text = Path(page).read_text()
    assert "; 3 not found; 1 partly searched" in text
    assert text.count("No match: nothing in the index agrees with it") == 3
    assert text.count("Partly searched: the budget") == 1
