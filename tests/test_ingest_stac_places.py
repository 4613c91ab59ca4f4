"""A STAC search becomes places, with a catalogue and a file server on the loopback."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import rasterio
from stac_ground import CORNERS, CRS, Tiles, clear, ground_of, lonlat
from stac_job import pixels, rows, run, truth

from retrieval.ingest.run import ingest
from tfrecords.read import describe_raster, read_images
from tfrecords.schema.records import Provenance


@pytest.fixture
def out(tmp_path):
    return tmp_path / "places"


def test_all_baselines_give_the_same_ground(tiles, catalogue, out):
    tiles.put("31TCJ", "2021-05-01", baseline="03.00", stored_offset=0, scl=clear())
    tiles.put("31TCJ", "2022-05-01", baseline="04.00", scl=clear())
    tiles.put("31TCJ", "2023-05-01", baseline="05.09", style="planetary-computer", scl=clear())
    tiles.put("31TCJ", "2023-06-01", baseline="04.00", stored_offset=0, scl=clear())
    tiles.items[-1]["properties"]["earthsearch:boa_offset_applied"] = True
    report = run(out, catalogue)
    assert (report.places, report.dates, report.new, report.items) == (1, 4, 4, 4)
    assert report.notes == () and report.left_out == ()
    for name in ("2021-05-01", "2022-05-01", "2023-05-01", "2023-06-01"):
        path = out / "31TCJ" / f"{name}.tif"
        expected = truth(path, "31TCJ", ground_of("31TCJ"))
        assert np.array_equal(pixels(path), expected)
        assert min(expected.shape[:2]) > 120 and max(expected.shape[:2]) < 180
    image = next(iter(read_images(out / "31TCJ" / "2022-05-01.tif")))
    assert (image.bands, image.nodata, image.crs) == (("B04", "B03", "B02", "B08"), 0, CRS)
    with rasterio.open(out / "31TCJ" / "2022-05-01.tif") as file:
        provenance = Provenance.from_tags(file.tags())
    assert provenance == Provenance("S2A_31TCJ_20220501_0_L2A", "2022-05-01T10:50:31Z", "04.00", 5.0)
    assert {name: (row.offset, row.offset_from) for name, row in rows(out).items()} == {
        "S2A_31TCJ_20210501_0_L2A": (0, "raster:bands"),
        "S2A_31TCJ_20220501_0_L2A": (-1000, "raster:bands"),
        "S2A_31TCJ_20230501_0_L2A": (-1000, "baseline 05.09"),
        "S2A_31TCJ_20230601_0_L2A": (0, "earthsearch:boa_offset_applied"),
    }
    assert len([path for _, path, _ in catalogue.requests if path == "/search"]) == 2  # pages of three


def test_only_the_window_is_fetched_and_nothing_twice(tiles, catalogue, files, out):
    tiles.put("31TCJ", "2022-05-01", scl=clear())
    tiles.put("31TCJ", "2022-07-01", scl=clear())
    whole = sum(path.stat().st_size for path in files.folder.rglob("*.tif"))
    run(out, catalogue, bbox=lonlat("31TCJ", 135, 135, 245, 245))  # inside one block of 128
    assert 0 < files.served < whole / 4
    files.served = 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.tif")}
    again = run(out, catalogue, bbox=lonlat("31TCJ", 135, 135, 245, 245))
    assert (again.dates, again.new, files.served) == (2, 0, 0)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.tif")} == before


def test_each_tile_is_a_place_on_its_own_grid(tiles, catalogue, out, tmp_path):
    for tile in CORNERS:
        for date in ("2022-05-01", "2022-07-01"):
            tiles.put(tile, date, scl=clear())
    box = lonlat("31TCJ", 100, 100, 800, 300)  # goes on over the eastern tile
    report = run(out, catalogue, bbox=box)
    assert (report.places, report.dates) == (2, 4)
    for tile in CORNERS:
        path = out / tile / "2022-05-01.tif"
        assert np.array_equal(pixels(path), truth(path, tile, ground_of(tile)))
    made = ingest(out, tmp_path / "series")
    assert made.places == 2 and any("overlap on the ground" in note for note in made.notes)


def test_a_tile_that_only_repeats_ground_is_skipped(tiles, catalogue, out):
    for tile in CORNERS:
        tiles.put(tile, "2022-05-01", scl=clear())
    report = run(out, catalogue, bbox=lonlat("31TCJ", 405, 100, 505, 300))
    assert [row.item for row in report.left_out] == ["S2A_31TDJ_20220501_0_L2A"]
    assert report.places == 1 and "its ground is also in 31TCJ" in report.notes[0]


@pytest.mark.parametrize("by", ["metadata", "classification"])
def test_the_dates_of_both_tiles_count_before_a_tile_is_chosen(tiles, catalogue, out, by):
    cloudy = np.full_like(clear(), 9)
    # The western tile holds slightly more of the box, and has one clear date of three.
    for number, month in enumerate("123"):
        hidden = number < 2
        cloud = 70 if hidden and by == "metadata" else 10
        scl = cloudy if hidden and by == "classification" else clear()
        tiles.put("31TCJ", f"2022-0{month}-01", cloud=cloud, scl=scl)
        tiles.put("31TDJ", f"2022-0{month}-01", cloud=20, scl=clear())
    box = lonlat("31TCJ", 405, 100, 505, 300)  # in both tiles
    report = run(out, catalogue, bbox=box)
    assert (report.places, report.dates) == (1, 3)
    assert sorted(path.parent.name for path in out.rglob("*.tif")) == ["31TDJ"] * 3
    assert any("31TCJ, its ground is also in 31TDJ" in note for note in report.notes)
    again = run(out, catalogue, bbox=box)
    assert (again.places, again.dates, again.new) == (1, 3, 0)


def test_of_tiles_with_as_many_dates_the_one_with_more_ground_is_kept(tiles, catalogue, out):
    for month in "12":
        for tile in ("31TCJ", "31TDJ"):
            tiles.put(tile, f"2022-0{month}-01", scl=clear())
    report = run(out, catalogue, bbox=lonlat("31TCJ", 405, 100, 600, 300))  # 405 to 512 are in both
    assert (report.places, report.dates) == (1, 2)
    assert {path.parent.name for path in out.rglob("*.tif")} == {"31TDJ"}


def test_items_of_one_day_are_merged_on_one_grid(tiles, catalogue, out):
    ground = ground_of("31TCJ")
    west, east = ground.copy(), ground.copy()
    west[:, 220:], east[:, 200:] = 0, ground[:, 200:]
    east[:, :200] = 0
    seen = [np.where(np.arange(256) < 110, 4, 0), np.where(np.arange(256) < 100, 0, 4)]
    halves = [np.tile(row.astype(np.uint8), (256, 1)) for row in seen]
    tiles.put("31TCJ", "2022-05-01", ground=west, scl=halves[0], id_="A_31TCJ", cloud=1)
    tiles.put(
        "31TCJ", "2022-05-01", ground=east, scl=halves[1], id_="B_31TCJ", cloud=2, time="10:50:46",
        style="planetary-computer", baseline="03.00", stored_offset=0,
    )  # fmt: skip
    report = run(out, catalogue)
    path = out / "31TCJ" / "2022-05-01.tif"
    assert report.dates == 1 and {row.file for row in rows(out).values()} == {"31TCJ/2022-05-01.tif"}
    assert np.array_equal(pixels(path), truth(path, "31TCJ", ground))
    with rasterio.open(path) as file:
        assert file.tags()["SOURCE"] == "A_31TCJ B_31TCJ"
    assert rows(out)["A_31TCJ"].hidden == 0


def test_a_pass_at_midnight_utc_is_one_day(tiles, catalogue, out):
    far = Tiles(tiles.folder, tiles.url, tiles.items)
    far.put("31TCJ", "2022-05-01", time="23:59:50", id_="A_31TCJ", scl=clear())
    far.put("31TCJ", "2022-05-02", time="00:00:04", id_="B_31TCJ", scl=clear())
    assert run(out, catalogue).dates == 1
    assert (out / "31TCJ" / "2022-05-02.tif").exists()  # at 1.7 degrees east the sun is seven minutes on


def test_dates_are_solar_days(tiles, catalogue, out):
    tiles.put("60KXF", "2023-08-21", time="00:07:11", id_="A_60KXF", scl=clear())
    tiles.put("60KXF", "2023-08-21", time="22:19:41", id_="B_60KXF", scl=clear())
    tiles.put("60KXF", "2023-08-22", time="22:19:41", id_="C_60KXF", scl=clear())
    box = lonlat("60KXF", 100, 100, 300, 300)
    assert run(out, catalogue, bbox=box, dates="2023-08-21/2023-08-22").items == 2
    assert {row.item: row.file for row in rows(out).values()} == {
        "A_60KXF": "60KXF/2023-08-21.tif",
        "B_60KXF": "60KXF/2023-08-22.tif",
    }
    with rasterio.open(out / "60KXF/2023-08-22.tif") as file:
        assert file.tags()["DATETIME"] == "2023-08-21T22:19:41Z"
    assert describe_raster(out / "60KXF/2023-08-22.tif").date == "2023-08-22"


def test_the_latest_processing_of_a_pass_is_used(tiles, catalogue, out):
    tiles.put("31TCJ", "2020-05-01", id_="OLD_31TCJ", baseline="02.14", stored_offset=0, scl=clear())
    tiles.put("31TCJ", "2020-05-01", id_="NEW_31TCJ", baseline="05.00", scl=clear())
    report = run(out, catalogue)
    assert report.dates == 1 and "later processing" in rows(out)["OLD_31TCJ"].left_out
    assert rows(out)["NEW_31TCJ"].file


@pytest.mark.parametrize(("first", "second"), [("44.999", "45.000"), ("45.000", "45.004"), ("45.1", "45.1")])
@pytest.mark.parametrize("newer", ["baseline", "time"])
def test_two_processings_of_a_pass_differ_by_milliseconds(tiles, catalogue, out, first, second, newer):
    old, new = ({"s2:generation_time": f"202{year}-01-01T00:00:00Z"} for year in (1, 2))
    baseline = "03.00" if newer == "baseline" else "05.00"
    put = partial(tiles.put, "31TCJ", "2020-05-01", scl=clear())
    put(time=f"10:50:{first}", id_="OLD_31TCJ", baseline=baseline, properties=old)
    put(time=f"10:50:{second}", id_="NEW_31TCJ", baseline="05.00", properties=new)
    assert run(out, catalogue).dates == 1
    assert rows(out)["NEW_31TCJ"].file and rows(out)["OLD_31TCJ"].left_out == "a later processing exists"


def test_items_of_one_second_can_be_two_granules(tiles, catalogue, out):
    for part, cover in (("1", 1), ("8", 2)):
        tiles.put(
            "31TCJ", "2020-05-01", time=f"10:50:45.{part}", id_=f"{part}_31TCJ", cloud=cover, scl=clear()
        )
    run(out, catalogue)
    assert all(row.file == "31TCJ/2020-05-01.tif" for row in rows(out).values())


def test_cloud_over_the_box_counts_and_not_over_the_tile(tiles, catalogue, out):
    cloudy = clear()
    cloudy[70:150, 70:160] = 9  # just where we look
    tiles.put("31TCJ", "2022-05-01", cloud=3, scl=cloudy)
    elsewhere = np.full_like(cloudy, 8)
    elsewhere[70:150, 70:160] = 5
    tiles.put("31TCJ", "2022-05-06", cloud=55, scl=elsewhere)
    tiles.put("31TCJ", "2022-05-11", cloud=61, scl=clear())
    tiles.put("31TCJ", "2022-05-16", cloud=5, scl=clear(), properties={"eo:cloud_cover": None})
    catalogue.conforms = ("core", "search", "collections")  # it can't leave the third out itself
    report = run(out, catalogue, bbox=lonlat("31TCJ", 150, 150, 300, 280))
    assert report.dates == 2
    reasons = {row.item[10:18]: row.left_out for row in rows(out).values()}
    assert reasons["20220501"] == "more than 50 % hidden" and reasons["20220511"] == "more than 60 % cloud"
    assert not reasons["20220506"] and not reasons["20220516"]
    assert rows(out)["S2A_31TCJ_20220501_0_L2A"].hidden > 99
    assert any("skipped: 1 days with more than 50 % hidden" in note for note in report.notes)


def test_dates_are_selected_by_the_visible_ground(tiles, catalogue, files, out):
    for month in range(1, 7):
        scl = clear()
        scl[: 90 + 3 * (month % 2), :] = 3
        tiles.put("31TCJ", f"2022-0{month}-01", scl=scl)
    files.served = 0
    report = run(out, catalogue, dates="2022-01/2022-06", dates_per_place=3)
    kept = sorted(path.stem for path in (out / "31TCJ").glob("*.tif"))
    assert kept == ["2022-02-01", "2022-04-01", "2022-06-01"]  # of each two months the clearer
    assert len(report.left_out) == 3 and "skipped: 3 days" in report.notes[0]
    asked = {path.split("/")[1] for _, path, _ in files.requests if path.endswith("B08.tif")}
    assert asked == {row.item for row in rows(out).values() if row.file}


@pytest.mark.parametrize(("snow", "hidden"), [(False, [2, 4, 5, 6, 7, 11]), (True, [2, 4, 5, 6, 7])])
def test_hidden_classes_are_zero(tiles, catalogue, out, snow, hidden):
    classes = np.arange(256).reshape(16, 16) % 12
    scl = np.kron(classes, np.ones((16, 16))).astype(np.uint8)
    tiles.put("31TCJ", "2022-05-01", scl=scl)
    run(out, catalogue, hide_snow=snow, max_hidden=90)
    path = out / "31TCJ" / "2022-05-01.tif"
    fine = truth(path, "31TCJ", scl.repeat(2, 0).repeat(2, 1))
    seen = np.isin(fine, hidden)
    expected = np.where(seen[..., None], truth(path, "31TCJ", ground_of("31TCJ")), 0)
    assert np.array_equal(pixels(path), expected)
    assert next(iter(rows(out).values())).hidden == pytest.approx(100 * (~seen).mean(), abs=1e-3)


def test_the_mask_changes_what_is_indexed(tiles, catalogue, out, tmp_path):
    from retrieval.models.encoder import FakeEncoder
    from retrieval.pipeline import build_index

    cloud = clear()
    cloud[75:110, 75:110] = 9
    counts = []
    for name, scl in (("clear", clear()), ("cloud", cloud)):
        tiles.put("31TCJ", "2022-05-01", id_=f"{name}_31TCJ", scl=scl, properties={"name": name})
        catalogue.items = [tiles.items[-1]]
        run(out / name, catalogue)
        built = build_index(out / name, tmp_path / f"{name}.index", encoder=FakeEncoder())
        counts.append(built.folder.manifest.counts["windows"])
    assert 0 < counts[1] < counts[0]


def test_a_suspect_offset_gives_a_warning_and_changes_nothing(tiles, catalogue, out):
    for month in (1, 2, 3):
        tiles.put("31TCJ", f"2022-0{month}-01", scl=clear())
    wrong = tiles.put("31TCJ", "2022-04-01", scl=clear())  # the files have the offset, the item denies it
    wrong["properties"]["earthsearch:boa_offset_applied"] = True
    twice = tiles.put("31TCJ", "2022-05-01", stored_offset=0, scl=clear())  # and the other way round
    for name in ("red", "green", "blue", "nir"):
        twice["assets"][name]["raster:bands"][0]["offset"] = -0.1
    report = run(out, catalogue)
    below, suspect = sorted(report.notes, reverse=True)
    assert (
        "S2A_31TCJ_20220501_0_L2A: the offset (-1000, from raster:bands) makes many pixels negative" in below
    )
    assert "warning: 31TCJ: the darkest pixels of 2022-04-01 (+1000 DN) differ by about 1000 DN" in suspect
    path = out / "31TCJ" / "2022-04-01.tif"
    assert np.array_equal(pixels(path), truth(path, "31TCJ", ground_of("31TCJ")) + 1000)
    assert "2022-04-01 (+1000 DN) differ by about 1000 DN" in " ".join(
        run(out, catalogue).notes
    )  # also when all is there


def test_missing_metadata_are_read_from_the_files(tiles, catalogue, out):
    item = tiles.put("31TCJ", "2023-05-01", id_="scene-7", style="planetary-computer")
    for key in ("proj:epsg", "s2:mgrs_tile", "s2:processing_baseline"):
        del item["properties"][key]
    for one in item["assets"].values():
        del one["proj:shape"], one["proj:transform"]
    report = run(out, catalogue)
    path = out / "epsg-32631" / "2023-05-01.tif"
    assert np.array_equal(pixels(path), truth(path, "31TCJ", ground_of("31TCJ")))
    assert "guessed from the date" in report.notes[0] and "no scene classification" in report.notes[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda item: item.update(assets={}), "no red (B04)"),
        (lambda item: item.update(assets=None), "do not describe an image"),
        (lambda item: item["assets"]["red"].update({"proj:shape": [1]}), "do not describe an image"),
        (lambda item: item["properties"].update({"proj:code": "EPSG:1"}), "PROJ cannot transform its CRS"),
        (
            lambda item: item["assets"]["red"].update({"proj:transform": [20, 0, 0, 0, -20, 0]}),
            "expected 10 m",
        ),
    ],
)
def test_items_with_invalid_metadata_are_skipped(tiles, catalogue, out, change, message):
    change(tiles.put("31TCJ", "2022-05-01"))
    tiles.put("31TDJ", "2022-06-01")
    report = run(out, catalogue, bbox=lonlat("31TCJ", 100, 100, 800, 300))
    assert report.places == 1 and message in report.left_out[0].left_out


@pytest.mark.parametrize("methods", [("GET",), ("POST",)])
def test_catalogues_are_searched_with_the_method_they_accept(tiles, catalogue, out, methods):
    catalogue.methods, catalogue.page = methods, 1
    for month in (1, 2, 3):
        tiles.put("31TCJ", f"2022-0{month}-01")
    tiles.put("31TCJ", "2022-04-01", cloud=99)
    assert run(out, catalogue, max_hidden=70).items == 3
    assert {method for method, path, _ in catalogue.requests if path == "/search"} == set(methods)
