"""`retrieve index`, `query` and `score`, as a user types them."""

from __future__ import annotations

import csv
import io
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from small_job import lines, make_ground, run

from tfrecords.errors import RetrieveError, RetrieveWarning


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    """A folder with the small job."""
    folder = tmp_path_factory.mktemp("ground")
    make_ground(folder)
    return folder


def test_index_query_score(ground, here):
    query = ("query", ground / "patches.npy", "--index", ground / "index", "--details", "matches.csv")
    done = run(*query, "--min-confidence", 0.5, "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert (result["patches"], result["unsure"], result["dropped"]) == (5, 1, 0)
    assert "5 patches, dn" in done.stderr  # the reader's note
    assert "refining at full resolution" in done.stderr
    table = np.genfromtxt("matches.csv", delimiter=",", names=True, dtype=None, encoding="utf-8")
    assert set(table["patch_id"][~table["unsure"]]) == {0, 1, 2, 3}
    assert sorted(table["rank"][table["patch_id"] == 0]) == list(range((table["patch_id"] == 0).sum()))
    rows = Path("submission.csv").read_text().splitlines()
    answers = (ground / "answers.csv").read_text().splitlines()
    assert rows[:5] == answers and len(rows) == 6  # the flat patch has a row too


def test_drop_unsure_leaves_unsure_matches_out(ground, here):
    query = ("query", ground / "patches.npy", "--index", ground / "index")
    done = run(*query, "--min-confidence", 0.5, "--drop-unsure")
    assert done.exit_code == 0
    assert Path("submission.csv").read_text() == (ground / "answers.csv").read_text()
    assert "1 unsure, below 0.5, left out" in done.stdout
    score = run("score", "submission.csv", ground / "answers.csv", "--json")
    assert json.loads(score.stdout)["SC"]["value"] == 1.0
    assert not score.stderr


def test_a_missing_patch_prints_a_warning_and_counts_as_wrong(ground, here):
    text = (ground / "answers.csv").read_text().splitlines()
    Path("submission.csv").write_text("\n".join(text[:-1]) + "\n")
    done = run("score", "submission.csv", ground / "answers.csv")
    assert done.exit_code == 0
    assert lines(done.stderr)[0].startswith("warning: 1 of the 4 patches") and len(lines(done.stderr)) == 1
    assert "SC_img       0.7500" in done.stdout


def test_quiet_prints_only_the_result(ground, here):
    done = run("index", ground / "images.npy", "--quiet")
    assert (done.exit_code, done.stderr) == (0, "")
    assert lines(done.stdout) == ["index: 2 images, 180 windows, exact search, encoder siamese"]


def test_units_and_bands_in_use_are_printed(ground, here):
    done = run("index", ground / "images.npy", "--units", "dn", "--bands", "B08 B04 B03 B02", "--json")
    assert done.exit_code == 0
    assert "dn (as stated), B08 B04 B03 B02" in done.stderr
    assert json.loads(done.stdout)["index"] == "index"


def test_patches_from_files_get_a_patch_table_and_coordinates(ground, here, write_tif):
    from rasterio.warp import transform

    image = np.load(ground / "images.npy")[0]
    for name, pixels, east, north in (
        ("scenes/a.tif", image, 500000, 5600000),
        ("chips/b.tif", image[40:104, 20:84], 500200, 5599600),
        ("chips/a.TIF", image[3:67, 50:114], 500500, 5599970),
    ):
        write_tif(name, pixels, crs="EPSG:32631", transform=(10, 0, east, 0, -10, north))
    (here / "out").mkdir()
    assert run("index", "scenes/*.tif", "--quiet").exit_code == 0
    query = ("query", "chips", "--out", "out/submission.csv", "--details", "out/matches.csv")
    assert run(*query, "--quiet").exit_code == 0
    assert Path("out/patches.csv").read_text() == "Patch ID,path\n0,chips/a.TIF\n1,chips/b.tif\n"
    assert Path("out/submission.csv").read_text() == "Patch ID,Result\n0,0 50 3\n1,0 20 40\n"
    best = next(csv.DictReader(io.StringIO(Path("out/matches.csv").read_text())))
    (longitude,), (latitude,) = transform("EPSG:32631", "EPSG:4326", [500000 + 820], [5600000 - 350])
    found = float(best["longitude"]), float(best["latitude"])
    assert found == pytest.approx([longitude, latitude], abs=2e-5)  # 0.2 px
    assert float(best["off_m"]) < 2 and best["image_path"] == "scenes/a.tif"


def warnings_of(done) -> list[str]:
    return [line for line in lines(done.stderr) if line.startswith("warning: ")]


def test_patches_without_a_shared_band_print_a_warning(ground, here):
    np.save("one.npy", np.load(ground / "patches.npy")[..., 3:])
    done = run("query", "one.npy", "--index", ground / "index", "--bands", "B11", "--quiet")
    assert done.exit_code == 0
    assert "share no band with the patches" in warnings_of(done)[0]


def test_an_exhausted_search_budget_prints_a_warning(ground, here):
    Path("retrieve.toml").write_text("[search]\nexhaustive_budget = 1\nconfident_odds = 100\n")
    np.save("noise.npy", np.random.default_rng(0).integers(100, 4000, (8, 64, 64, 4)).astype(np.uint16))
    done = run("query", "noise.npy", "--index", ground / "index", "--quiet")
    assert done.exit_code == 0
    assert "8 patches" in warnings_of(done)[0] and len(warnings_of(done)) == 1


def test_the_budget_and_what_it_leaves_out_are_told(ground, here):
    Path("retrieve.toml").write_text("[search]\nconfident_odds = 100\n")
    np.save("noise.npy", np.random.default_rng(0).integers(100, 4000, (8, 64, 64, 4)).astype(np.uint16))
    query = ("query", "noise.npy", "--index", ground / "index", "--json", "--overwrite")
    done = run(*query)
    assert json.loads(done.stdout)["uncertain"] == {"everywhere": 8, "in_parts": 0, "left_out": 0}
    assert "8 uncertain patches: 8 compared with every place" in done.stderr
    done = run(*query, "--budget", "0")
    result = json.loads(done.stdout)
    assert result["uncertain"]["left_out"] == result["partly_searched"] == 8
    assert "8 patches are uncertain" in warnings_of(done)[0]
    done = run(*query, "--budget", "soon")
    assert done.exit_code == 2 and "Expected auto or seconds" in " ".join(done.stderr.split())


@pytest.mark.parametrize("category", RetrieveWarning.__subclasses__())
def test_every_warning_of_the_product_is_printed_once_without_verbose(here, monkeypatch, category):
    def warn(*_):
        for _ in range(2):
            warnings.warn("7 patches are unsure", category, stacklevel=1)
        warnings.warn("a library's concern", UserWarning, stacklevel=1)
        raise ScoreError

    class ScoreError(RetrieveError):
        pass

    monkeypatch.setattr("retrieval.pipeline.evaluate", warn)
    assert lines(run("score").stderr)[:-1] == ["warning: 7 patches are unsure"]


def test_query_with_filters_details_and_saved_windows(ground, here, write_tif):
    images = np.load(ground / "images.npy")
    for number, (image, day) in enumerate(zip(images, ("2018-06-01", "2019-06-01"), strict=True)):
        place = {"crs": "EPSG:32631", "transform": (10, 0, 500000 + 9000 * number, 0, -10, 5600000)}
        write_tif(f"scenes/{day}.tif", image, **place)
        write_tif(f"chips/{number}.tif", image[9:109, 20:130], **place)
    assert run("index", "scenes", "--quiet").exit_code == 0
    query = ("query", "chips", "--out", "out/s.csv", "--details", "out/m.geojson")
    more = ("--save-windows", "out/windows", "--min-confidence", 0.5, "--drop-unsure", "--json")
    done = run(*query, "--between", "2019", *more)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    written = [result[name] for name in ("submission", "patch_table", "details", "windows")]
    assert written == ["out/s.csv", "out/patches.csv", "out/m.geojson", "out/windows"]
    assert result["images"] == 1 and "--between 2019: 1 of 2 images" in done.stderr
    assert Path("out/s.csv").read_text() == "Patch ID,Result\n1,1 20 9\n"
    features = json.loads(Path("out/m.geojson").read_text())["features"]
    assert {f["properties"]["image_id"] for f in features} == {1}
    assert sorted(p.name for p in Path("out/windows").iterdir()) == ["manifest.json", "patch_1.tif"]
    answer = next(f["properties"] for f in features if f["properties"]["patch_id"] == 1)
    assert answer["off_east_m"] == pytest.approx(200, abs=5) and answer["image_date"] == "2019-06-01"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--between", "2021/2019"], "FROM is after TO"),
        (["--between", "2021"], "no image is left"),
        (["--within", "none.geojson"], "none.geojson"),
        (["--within", "list.geojson"], "not GeoJSON"),
        (["--save-windows", "there"], "there exists"),
        (["--details", "new/m.csv", "--save-windows", "new"], "is replaced as a whole"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_filters_and_outputs_print_one_line_and_write_nothing(ground, here, arguments, message):
    (here / "there").mkdir()
    (here / "there" / "existing").touch()
    (here / "list.geojson").write_text("[]")
    before = sorted(here.rglob("*"))
    done = run("query", ground / "patches.npy", "--index", ground / "index", *arguments, "--quiet")
    assert done.exit_code == 1 and not done.stdout
    assert len(lines(done.stderr)) == 1 and message in done.stderr
    assert sorted(here.rglob("*")) == before
