"""Answers and their tables: a row for every patch, whatever was found."""

import csv
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from engine import digital, image_of, texture

from retrieval.config import IndexConfig
from retrieval.errors import ConfigError
from retrieval.index.builder import write_index
from retrieval.index.folder import IndexFolder
from retrieval.matching.exhaustive import UncertainSearch
from retrieval.models.encoder import FakeEncoder
from retrieval.results.matches import Matches
from retrieval.results.outputs import QueryOutputs, write_patch_table
from retrieval.results.tables import write_table
from retrieval.types import RankedCandidates
from tfrecords.errors import OutputExistsError
from tfrecords.schema import BANDS, Patches


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two images, 5 on the map and 9 not."""
    images = [
        image_of(
            digital(texture(80, 80, seed=1)), image_id=5, crs="EPSG:4326", transform=(0.1, 0, 20, 0, -0.1, 50)
        ),
        image_of(digital(texture(80, 80, seed=2)), image_id=9),
    ]
    out = tmp_path_factory.mktemp("matches") / "index"
    write_index(images, out, FakeEncoder(), IndexConfig(), source="test")
    return IndexFolder(out, encoder=FakeEncoder())


def matches(store, paths=()):
    """Three patches: found on the map with a second place, found off it, not found."""
    ids = np.array([[5, 9], [9, -1], [-1, -1]])
    x, y = np.array([[8, 16], [0, -1], [-1, -1]]), np.array([[0, 8], [16, -1], [-1, -1]])
    f32 = np.float32
    refined = RankedCandidates(
        ids,
        x,
        y,
        np.array([[0.5, 0], [0.25, 0], [0, 0]], f32),
        np.array([[-0.5, 0], [0, 0], [0, 0]], f32),
        np.array([[0.9, 0.3], [0.6, 0], [0, 0]], f32),
        np.array([[0.8, 0.7], [0.5, -np.inf], [-np.inf, -np.inf]], f32),
        np.array([[4.0, -1.0], [0.5, np.nan], [np.nan, np.nan]], f32),
    )
    patches = Patches(
        np.array([40, 2, 7]),
        np.ones((3, 64, 64, 4), np.uint16),
        "dn",
        ("B04", "B03", "B02", "B08"),
        0.0,
        paths,
    )
    return Matches(patches.patch_ids, refined, np.array([0.9, 0.4, 0.0]), store, patches)


def test_a_row_for_every_patch_in_order(store):
    frame = matches(store).frame()
    assert frame.patch_id.tolist() == [40, 2, 7]
    assert (
        frame.image_id.tolist() == [5, 9, 5]
        and frame.x.tolist() == [8, 0, 0]
        and frame.y.tolist() == [0, 16, 0]
    )
    assert frame.confidence.tolist() == [0.9, 0.4, 0.0] and frame.similarity.tolist()[2] == -1
    assert not frame.drop(columns=["longitude", "latitude"]).isna().any().any()
    assert (frame.longitude[0], frame.latitude[0]) == pytest.approx((20 + 0.1 * 40.5, 50 - 0.1 * 31.5))
    assert frame[["longitude", "latitude"]][1:].isna().all().all()  # no map, and nothing found


def test_details_hold_every_candidate(store):
    found = matches(store)
    details = found.details()
    assert details[["patch_id", "rank", "image_id", "x", "y"]].to_numpy().tolist() == [
        [40, 0, 5, 8, 0],
        [40, 1, 9, 16, 8],
        [2, 0, 9, 0, 16],
        [7, 0, pd.NA, pd.NA, pd.NA],
    ]
    assert details.confidence[0] == 0.9 and np.isnan(details.confidence[1])
    assert "unsure" not in details
    assert found.details(0.5).unsure.tolist() == [False, False, True, True]


def test_a_patch_that_finds_nothing_has_a_row_with_nulls(store):
    found = matches(store)
    assert found.status.tolist() == ["found", "found", "not_found"]
    searched = UncertainSearch(found.candidates, np.array([False, True, True]))
    left_out = replace(found, searched=searched)
    assert left_out.status.tolist() == ["found", "partly_searched", "not_found"]
    details = left_out.details()
    assert details.status.tolist() == ["found", "found", "partly_searched", "not_found"]
    known = details.iloc[3].dropna().to_dict()
    assert known == {
        "patch_id": 7,
        "rank": 0,
        "status": "not_found",
        "confidence": 0,
        "calibrated": True,
        "windows": 1,
        "agree": 0,
    }
    two = replace(
        found,
        patch_ids=found.patch_ids[:2],
        candidates=found.candidates.select(slice(2)),
        confidence=found.confidence[:2],
        patches=found.patches.select(slice(2)),
    ).details()
    assert [two[name].dtype for name in ("place", "image_id", "x", "y", "width", "height")] == [np.int64] * 6


def test_candidates_that_correlate_with_nothing_are_no_match(store):
    found = matches(store)
    flat = replace(found, candidates=replace(found.candidates, ncc=np.zeros((3, 2), np.float32)))
    assert flat.status.tolist() == ["not_found"] * 3
    assert flat.details().image_id.isna().all() and len(flat.details()) == 3
    assert flat.frame().image_id.tolist() == [5, 9, 5]  # the submission has a row for each
    some = np.array([[0, 0.2], [-0.1, 0], [0, 0]], np.float32)
    some = replace(found, candidates=replace(found.candidates, ncc=some))
    assert some.status.tolist() == ["found", "not_found", "not_found"]


def test_details_say_where_it_came_from_and_what_is_hidden(store):
    details = matches(store).details()
    assert details.windows.tolist() == [1, 1, 1, 1] and details.agree.tolist() == [1, 1, 1, 0]
    assert (
        details.footprint[0].startswith("POLYGON ((20.85 50.05, 20.85 43.65")
        and details.footprint[1:].isna().all()
    )
    assert details.hidden_share[:3].tolist() == [0, 0, 0] and details.off_m.isna().all()
    assert details[["image_path", "image_date", "source"]].isna().all().all()


def test_unsure_is_below_the_limit(store):
    found = matches(store)
    assert found.unsure(None).tolist() == [False] * 3
    assert found.unsure(0.4).tolist() == [False, False, True]
    for limit in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="0 to 1"):
            found.unsure(limit)


@pytest.mark.parametrize("ending", ["parquet", "csv", "CSV"])
def test_tables_come_back(store, tmp_path, ending):
    details, path = matches(store).details(), tmp_path / f"m.{ending}"
    write_table(details, path)
    back = pd.read_parquet(path) if ending == "parquet" else pd.read_csv(path)
    assert list(back.columns) == list(details.columns)
    numbers = details.select_dtypes("number").columns
    numeric = details[numbers].astype(float)
    pd.testing.assert_frame_equal(back[numbers].astype(float), numeric, check_dtype=False, atol=1e-6)
    with pytest.raises(OutputExistsError):
        write_table(details, path)
    write_table(details, path, overwrite=True)


def test_outputs_are_refused_before_the_work(tmp_path):
    one = Patches(np.arange(1), np.ones((1, 64, 64, 4), np.uint16), "dn", BANDS, 0.0)
    there, submission, windows = tmp_path / "there.csv", tmp_path / "a.csv", tmp_path / "found"
    there.write_text("x")
    QueryOutputs(submission, tmp_path / "b.parquet").check(one)
    QueryOutputs(there, overwrite=True).check(one)
    with pytest.raises(OutputExistsError, match="there"):
        QueryOutputs(there).check(one)
    with pytest.raises(ConfigError, match=r"'\.xls'"):
        QueryOutputs(submission, tmp_path / "b.xls").check(one)
    with pytest.raises(ConfigError, match="two outputs have this name"):
        QueryOutputs(submission, submission).check(one)
    windows.mkdir()
    QueryOutputs(submission, windows=windows).check(one)  # empty
    (windows / "patch_0.tif").touch()
    QueryOutputs(submission, windows=windows, overwrite=True).check(one)
    with pytest.raises(OutputExistsError, match="found exists"):
        QueryOutputs(submission, windows=windows).check(one)
    for inside in ("new", "new/a.csv"):
        with pytest.raises(ConfigError, match="replaced as a whole"):
            QueryOutputs(tmp_path / inside, windows=tmp_path / "new").check(one)


def test_patches_from_files_of_their_own_get_a_table_of_them(store, tmp_path):
    submission = tmp_path / "submission.csv"
    paths = ("a/1.tif", "a/2.TIFF", 'b,"3".png')
    found = matches(store, paths)
    assert QueryOutputs(submission).patch_table(found.patches) == tmp_path / "patches.csv"
    assert QueryOutputs(submission).patch_table(matches(store).patches) is None
    assert QueryOutputs(submission).patch_table(matches(store, ("all.npy",)).patches) is None
    write_patch_table(tmp_path / "patches.csv", found.patches)
    with (tmp_path / "patches.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["Patch ID", "path"], ["40", paths[0]], ["2", paths[1]], ["7", paths[2]]]
