"""STAC catalogues to places, with a catalogue and a file server on the loopback."""

from __future__ import annotations

import csv
import datetime
import json
import logging
import sys
import threading
import types
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from rangeserver import serving
from stac_ground import CORNERS, CRS, SIZE, Tiles, clear, ground_of, lonlat, place_of
from stac_server import cataloguing
from typer.testing import CliRunner

from retrieval.cli import app
from retrieval.errors import ConfigError
from retrieval.geo.request import BoundingBox, DateSpan
from retrieval.ingest.retry import RetryPolicy
from retrieval.ingest.run import ingest
from retrieval.ingest.stac.access import explain_final, signer
from retrieval.ingest.stac.days import select_dates
from retrieval.ingest.stac.journal import read_rows
from retrieval.ingest.stac.offset import UNKNOWN_PRODUCT, baseline_of, offset_of
from retrieval.ingest.stac.query import CATALOGUES, CatalogQuery
from retrieval.ingest.stac.run import ingest_stac
from retrieval.ingest.stac.scene import COMMON, scene_of
from retrieval.ingest.stac.window import crop_to_box
from tfrecords.errors import (
    BandsError,
    CatalogueError,
    GridError,
    ManifestError,
    MissingPackageError,
    OutputExistsError,
)
from tfrecords.read import describe_raster, read_images
from tfrecords.schema.records import Provenance

QUICK = RetryPolicy(attempts=3, pause_s=0.02)
ASKED = lonlat("31TCJ", 150, 160, 310, 290)
"""Some of the western tile; none of it is in the eastern one."""
DAY = datetime.date


@pytest.fixture
def files(tmp_path):
    (tmp_path / "files").mkdir()
    with serving(tmp_path / "files") as server:
        yield server


@pytest.fixture
def catalogue():
    with cataloguing() as server:
        yield server


@pytest.fixture
def tiles(files, catalogue):
    made = Tiles(files.folder, files.url)
    catalogue.items = made.items
    return made


@pytest.fixture
def out(tmp_path):
    return tmp_path / "places"


def query_of(api, bbox=ASKED, dates="2020/2023", **more):
    return CatalogQuery(api, BoundingBox(*bbox), DateSpan.parse(dates), **more)


def run(out, catalogue, **more):
    return ingest_stac(out, query_of(catalogue.url, **more), retry=QUICK)


def rows(out):
    return {row.item: row for row in read_rows(out)}


def truth(path, tile, ground):
    """What the ground looks like where a file lies."""
    with rasterio.open(path) as file:
        _, left, top = place_of(tile)
        x, y = (file.transform.c - left) / 10, (top - file.transform.f) / 10
        assert (x % 1, y % 1, file.transform.a, file.transform.e) == (0, 0, 10, -10)
        return ground[int(y) : int(y) + file.height, int(x) : int(x) + file.width]


def pixels(path):
    return next(iter(read_images(path))).pixels


# --- what is asked for --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"api": "earth.example"}, "--api 'earth.example': not the address"),
        ({"api": "http://[1/"}, "not the address"),
        ({"max_cloud": 101}, "--max-cloud 101: not a percentage. Expected 0 to 100"),
        ({"max_hidden": -1}, "--max-hidden -1: not a percentage"),
        ({"dates_per_place": 0}, "1 or more"),
        ({"sign": "mine"}, "planetary-computer"),
        ({"dates": "2021/.."}, "--dates 2021-01-01/..: the span is open. Expected a first and a last day"),
    ],
)
def test_invalid_queries_are_explained(more, message):
    with pytest.raises(ConfigError, match=message):
        query_of(**({"api": "http://x"} | more))


def test_catalogues_have_short_names():
    assert (
        query_of("earth-search").api
        == CATALOGUES["earth-search"]
        == "https://earth-search.aws.element84.com/v1"
    )


# --- offsets ------------------------------------------------------------------------------------

SCALED = {"scale": 0.0001, "offset": -0.1}


@pytest.mark.parametrize(
    ("properties", "raster", "day", "dn", "source"),
    [
        # applied already, whatever raster:bands still says
        (
            {"earthsearch:boa_offset_applied": True, "s2:processing_baseline": "04.00"},
            SCALED,
            DAY(2022, 3, 1),
            0,
            "earthsearch:boa_offset_applied",
        ),
        ({"sentinel:boa_offset_applied": True}, {}, DAY(2023, 1, 1), 0, "sentinel:boa_offset_applied"),
        # the band says it
        ({"earthsearch:boa_offset_applied": False}, SCALED, DAY(2023, 1, 1), -1000, "raster:bands"),
        (
            {"s2:processing_baseline": "05.00"},
            {"scale": 1e-4, "offset": 0},
            DAY(2023, 1, 1),
            0,
            "raster:bands",
        ),
        ({}, SCALED, DAY(2018, 1, 1), -1000, "raster:bands"),
        # no offset in raster:bands (Planetary Computer): the baseline
        ({"s2:processing_baseline": "04.00"}, {}, DAY(2022, 3, 1), -1000, "baseline 04.00"),
        ({"s2:processing_baseline": "03.01"}, {}, DAY(2022, 3, 1), 0, "baseline 03.01"),
        ({"s2:processing_baseline": "05.00"}, {"scale": 1e-4}, DAY(2016, 3, 1), -1000, "baseline 05.00"),
        ({"processing:version": "05.10"}, {}, DAY(2016, 3, 1), -1000, "baseline 05.10"),
        ({"s2:product_uri": "S2A_MSIL2A_X_N0213_R1"}, {}, DAY(2023, 3, 1), 0, "baseline 02.13"),
        (
            {"sentinel:product_id": "S2A_MSIL1C_X_N0214_R094_T31TCJ_Y"},
            {},
            DAY(2023, 3, 1),
            0,
            "baseline 02.14",
        ),
        ({"s2:granule_id": "S2A_OPER_MSI_L1C_TL_A_T31TCJ_N02.08"}, {}, DAY(2023, 3, 1), 0, "baseline 02.08"),
        (
            {"s2:granule_id": "S2A_OPER_MSI_L2A_TL_A_T31TCJ_N05.10"},
            {},
            DAY(2016, 3, 1),
            -1000,
            "baseline 05.10",
        ),
        # nothing at all: the day
        ({}, {}, DAY(2022, 1, 25), -1000, "the date, a guess"),
        ({}, {}, DAY(2022, 1, 24), 0, "the date, a guess"),
        ({"s2:processing_baseline": None}, {"offset": None}, DAY(2015, 1, 1), 0, "the date, a guess"),
    ],
)
def test_the_offset_comes_from_the_metadata(properties, raster, day, dn, source):
    offset = offset_of({"id": "S2A_31TCJ", "properties": properties}, raster, day)
    assert (offset.dn, offset.quantification, offset.source) == (dn, 10_000, source)


@pytest.mark.parametrize(
    ("item", "dn"),
    [
        ({"id": "Sentinel-2_mosaic_2023_Q1_31TCJ_0_0", "properties": {}}, 0),
        ({"id": "x", "collection": "sentinel-2-global-mosaics", "properties": {"processing:level": "L3"}}, 0),
        ({"id": "S2A_31TCJ_2023", "properties": {"product:type": "S2MSI_L3__MCQ"}}, 0),
        ({"id": "x", "collection": "sentinel-2-l2a", "properties": {}}, -1000),
        ({"id": "x", "properties": {"s2:product_type": "S2MSI1C"}}, -1000),
        ({"id": "x", "properties": {"processing:level": "L2A"}}, -1000),
        ({"id": "S2B_MSIL2A_20230301T105031_R051_T31TCJ_20230301T153000", "properties": {}}, -1000),
    ],
)
def test_the_date_suggests_an_offset_of_level_1c_and_2a_alone(item, dn):
    offset = offset_of(item, {}, DAY(2023, 3, 1))
    assert offset.dn == dn and offset.source == ("the date, a guess" if dn else UNKNOWN_PRODUCT)


def test_a_mosaic_without_an_offset_keeps_its_numbers_and_is_noted(tiles, catalogue, out):
    item = tiles.put(
        "31TCJ", "2023-03-01", stored_offset=0, style="planetary-computer", id_="mosaic_Q1_31TCJ"
    )
    item["properties"] |= {"s2:processing_baseline": None, "processing:level": "L3"}
    path = out / "31TCJ" / "2023-03-01.tif"
    report = run(out, catalogue)
    assert np.array_equal(pixels(path), truth(path, "31TCJ", ground_of("31TCJ")))
    assert any("1 of 1 items are neither Level-1C nor Level-2A" in note for note in report.notes)


def test_another_scale_is_another_quantification():
    offset = offset_of({"properties": {}}, {"scale": 0.001, "offset": -0.1}, DAY(2023, 1, 1))
    assert (offset.dn, offset.quantification) == (-100, 1000)


def test_baselines_are_read_from_any_property():
    assert baseline_of({"properties": {"s2:processing_baseline": "5.1"}}) == "05.10"
    assert baseline_of({"properties": {}, "id": "S2B_MSIL2A_20250302T095029_N0511_R079_T33UXP"}) == "05.11"
    assert baseline_of({"properties": {"processing:version": "latest"}, "id": "x"}) == ""


# --- bands, ground ------------------------------------------------------------------------------


def item_of(assets, **properties):
    known = {"datetime": "2023-05-01T10:50:31.024Z", "proj:code": CRS, "s2:mgrs_tile": "31TCJ"}
    return {"id": "x", "properties": known | properties, "assets": assets}


def asset(name, **more):
    return {"href": f"https://x.org/{name}.tif", **more}


def common(*names):
    return {"eo:bands": [{"name": name, "common_name": name} for name in names]}


def stac11(name, colour, pixel):
    bands = [{"name": name, "eo:common_name": colour}]
    return asset(f"{name}_{pixel}m", bands=bands, gsd=pixel, **{"raster:scale": 1e-4, "raster:offset": -0.1})


CATALOGUE_STYLES = {
    "earth-search": {
        "visual": asset("TCI", roles=["visual"], **common("red", "green", "blue")),
        **{f"{c}-jp2": asset(c, type="image/jp2", **common(c)) for c in ("red", "green", "blue", "nir")},
        **{c: asset(c, **common(c)) for c in ("nir08", "red", "green", "blue", "nir")},
        "scl": asset("SCL"),
    },
    "planetary-computer": {
        "visual": asset("TCI", **common("red", "green", "blue")),
        **{name: asset(name, **common(colour)) for name, colour in COMMON.items()},
        "SCL": asset("SCL"),
    },
    "copernicus": {
        **{f"B04_{p}m": stac11("B04", "red", p) for p in (60, 20, 10)},
        **{f"B03_{p}m": stac11("B03", "green", p) for p in (60, 20, 10)},
        **{f"B02_{p}m": stac11("B02", "blue", p) for p in (60, 20, 10)},
        "B08_10m": stac11("B08", "nir", 10),
        "SCL_20m": asset("SCL"),
    },
    "keys only": {name: asset(name) for name in ("B04", "B03", "B02", "B08", "SCL")},
    "names of bands": {
        key: asset(key, bands=[{"name": name}]) for key, name in zip("abcd", COMMON, strict=True)
    },
}


@pytest.mark.parametrize(
    ("style", "files"),
    [
        ("earth-search", "red green blue nir SCL"),
        ("planetary-computer", "B04 B03 B02 B08 SCL"),
        ("copernicus", "B04_10m B03_10m B02_10m B08_10m SCL"),
        ("keys only", "B04 B03 B02 B08 SCL"),
        ("names of bands", "a b c d"),
    ],
)
def test_bands_are_found_in_the_style_of_each_catalogue(style, files):
    bands = scene_of(item_of(CATALOGUE_STYLES[style])).bands
    assert list(bands) == ["B04", "B03", "B02", "B08", "SCL"][: len(bands)]
    assert [one.href for one in bands.values()] == [f"https://x.org/{name}.tif" for name in files.split()]


@pytest.mark.parametrize(
    "names",
    [
        ("nbart_red", "nbart_green", "nbart_blue", "nbart_nir_1"),
        ("red", "green", "blue", "nir08"),
        ("B04", "B03", "B02", "B8A"),
        ("sr_red", "sr_green", "sr_blue", "sr_nir"),
    ],
)
@pytest.mark.parametrize("described", [True, False])
def test_bands_have_the_names_of_other_archives(names, described):
    more = [{"eo:bands": [{"name": name}]} if described else {} for name in names]
    assets = {name: asset(name, **each) for name, each in zip(names, more, strict=True)}
    scene = scene_of(item_of(assets))
    assert [scene.bands[band].href.rsplit("/", 1)[-1].split(".")[0] for band in COMMON] == list(names)


def test_bands_of_one_file_are_numbered():
    bands = scene_of(item_of({"all": asset("all", **common("blue", "green", "red", "nir"))})).bands
    assert [one.number for one in bands.values()] == [3, 2, 1, 4]


def test_offsets_of_the_newer_standard_are_read():
    red = scene_of(item_of(CATALOGUE_STYLES["copernicus"])).bands["B04"]
    assert (red.offset.dn, red.offset.source) == (-1000, "raster:bands")


def test_an_item_without_a_date_says_so():
    with pytest.raises(CatalogueError, match="its date 'soon' is not an ISO 8601 time"):
        scene_of(item_of(CATALOGUE_STYLES["keys only"], datetime="soon"))
    interval = {"datetime": None, "start_datetime": "2023-05-01T12:00:00+02:00"}
    assert scene_of(item_of(CATALOGUE_STYLES["keys only"], **interval)).when.hour == 10


def test_a_missing_band_is_named_with_the_bands_present():
    assets = {key: value for key, value in CATALOGUE_STYLES["keys only"].items() if key not in ("B08", "B02")}
    with pytest.raises(BandsError, match=r"no blue \(B02\) and no nir \(B08\); it has B03, B04, SCL"):
        scene_of(item_of(assets))


@pytest.mark.parametrize("href", ["file:///etc/passwd", "/etc/passwd", "/vsizip/x.zip", "<VRTDataset/>"])
def test_a_catalogue_cannot_make_the_program_open_local_files(href):
    assets = CATALOGUE_STYLES["keys only"] | {"B04": {"href": href}}
    with pytest.raises(CatalogueError, match="no address on the network"):
        scene_of(item_of(assets))


def test_relative_addresses_start_at_the_item():
    item = item_of({name: {"href": f"./{name}.tif"} for name in ("B04", "B03", "B02", "B08")})
    item["links"] = [{"rel": "self", "href": "https://x.org/items/x.json"}]
    assert scene_of(item).bands["B08"].href == "https://x.org/items/B08.tif"


@pytest.mark.parametrize(
    ("properties", "id_", "place"),
    [
        ({"grid:code": "MGRS-1CCV"}, "x", "01CCV"),
        ({"s2:mgrs_tile": "31TCJ"}, "x", "31TCJ"),
        ({"mgrs:utm_zone": 31, "mgrs:latitude_band": "T", "mgrs:grid_square": "CJ"}, "x", "31TCJ"),
        ({}, "S2A_MSIL2A_20240301T105031_R051_T31TCJ_20240301T153000", "31TCJ"),
        ({}, "S2B_31TCJ_20240301_0_L2A", "31TCJ"),
        ({"proj:shape": [9, 9], "proj:transform": [10, 0, 0, 0, -10, 0]}, "scene-7", "epsg-32631"),
        ({}, "scene-7", ""),
    ],
)
def test_the_place_is_the_tile(properties, id_, place):
    item = item_of(CATALOGUE_STYLES["keys only"], **{"s2:mgrs_tile": "", **properties})
    assert scene_of(item | {"id": id_}).place == place


def test_the_window_holds_the_box_on_the_pixels_of_the_tile():
    from rasterio.warp import transform

    left, top = CORNERS["31TCJ"]
    grid = scene_of(
        item_of(
            CATALOGUE_STYLES["keys only"],
            **{"proj:shape": [SIZE, SIZE], "proj:transform": [10, 0, left, 0, -10, top, 0, 0, 1]},
        )
    ).grid
    window = crop_to_box([grid], BoundingBox(*ASKED))
    west, south, east, north = ASKED
    x, y = transform("EPSG:4326", CRS, [west, east, east, west], [south, south, north, north])
    wl, wb, wr, wt = window.bounds
    assert wl <= min(x) and wr >= max(x) and wb <= min(y) and wt >= max(y)
    assert min(x) - wl < 10 and wr - max(x) < 10 and ((wl - left) / 10) % 1 == 0
    whole = crop_to_box([grid], BoundingBox(-10, 40, 20, 50))
    assert (whole.height, whole.width, whole.transform) == (SIZE, SIZE, (10, 0, left, 0, -10, top))
    with pytest.raises(GridError, match="0 x 0 px"):
        crop_to_box([grid], BoundingBox(10, 40, 20, 50))
    with pytest.raises(GridError, match="expected at least 64 each way"):
        crop_to_box([grid], BoundingBox(*lonlat("31TCJ", 100, 100, 150, 300)))


# --- dates --------------------------------------------------------------------------------------

days = st.dictionaries(st.integers(0, 364), st.floats(0, 1), min_size=1, max_size=40)


@given(days, st.integers(1, 15))
def test_dates_are_spread_over_time_and_then_clear(shares, count):
    first = DAY(2021, 1, 1)
    hidden = {first + datetime.timedelta(day): share for day, share in shares.items()}
    chosen = select_dates(hidden, first, DAY(2021, 12, 31), count)
    assert len(chosen) == min(count, len(hidden)) and list(chosen) == sorted(set(chosen))
    assert chosen == select_dates(dict(reversed(hidden.items())), first, DAY(2021, 12, 31), count)
    if len(hidden) <= count:
        return
    for number in range(count):  # the clearest of each stretch is in
        stretch = [date for date in sorted(hidden) if (date - first).days * count // 365 == number]
        if stretch:
            assert min(stretch, key=lambda date: hidden[date]) in chosen


def test_empty_stretches_are_filled_with_the_farthest_dates():
    hidden = {DAY(2021, 1, d): 0.1 for d in range(1, 11)} | {DAY(2021, 1, 1): 0.0}
    chosen = select_dates(hidden, DAY(2021, 1, 1), DAY(2021, 12, 31), 3)
    assert chosen == (DAY(2021, 1, 1), DAY(2021, 1, 5), DAY(2021, 1, 10))


def test_existing_dates_are_kept():
    hidden = {DAY(2021, month, 1): 0.01 * month for month in range(1, 13)}
    kept = [DAY(2021, 3, 1), DAY(2021, 9, 1)]
    chosen = select_dates(hidden, DAY(2021, 1, 1), DAY(2021, 12, 31), 4, kept)
    assert set(kept) < set(chosen) and len(chosen) == 4
    assert select_dates(hidden, DAY(2021, 1, 1), DAY(2021, 12, 31), 1, kept) == tuple(kept)


# --- from a search to places --------------------------------------------------------------------


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


def test_addresses_are_signed_just_before_reading(tiles, catalogue, files, out, monkeypatch):
    tiles.put("31TCJ", "2022-05-01", scl=clear())
    with pytest.raises(MissingPackageError, match="pip install planetary-computer"):
        monkeypatch.setitem(sys.modules, "planetary_computer", None)
        run(out, catalogue, sign="planetary-computer")
    fake = types.ModuleType("planetary_computer")
    fake.sign = lambda href: href + "?sig=1"
    monkeypatch.setitem(sys.modules, "planetary_computer", fake)
    assert run(out, catalogue, sign="planetary-computer").dates == 1
    assert files.requests and all(path.endswith("?sig=1") for _, path, _ in files.requests)
    assert "sig=1" not in (out / "items.csv").read_text()


def signing(monkeypatch, sign):
    """Replace the package that signs."""
    fake = types.ModuleType("planetary_computer")
    fake.sign = sign
    monkeypatch.setitem(sys.modules, "planetary_computer", fake)
    return fake


def test_an_unreachable_signing_service_is_tried_four_times_and_explained(tiles, catalogue, out, monkeypatch):
    for day in ("2022-05-01", "2022-05-06", "2022-05-11"):
        tiles.put("31TCJ", day, scl=clear())
    calls, slept = [], []

    def sign(href):
        calls.append(href)
        raise ConnectionError("HTTPSConnectionPool: Max retries exceeded with url: /token?key=hush")

    signing(monkeypatch, sign)
    with pytest.raises(CatalogueError) as error:
        ingest_stac(
            out, query_of(catalogue.url, sign="planetary-computer"), retry=RetryPolicy(sleep=slept.append)
        )
    assert "the signing service cannot be reached, tried 4 times" in str(error.value)
    assert "hush" not in str(error.value)
    # One request serves all items, and is not repeated for each.
    assert (len(calls), slept) == (4, [1, 2, 4])


def test_a_signing_service_that_does_not_answer_is_left(tiles, catalogue, out, monkeypatch):
    tiles.put("31TCJ", "2022-05-01", scl=clear())
    signing(monkeypatch, lambda href: threading.Event().wait(30))
    retry = RetryPolicy(attempts=2, pause_s=0.01, timeout_s=0.2)
    with pytest.raises(CatalogueError, match=r"cannot be reached, tried 2 times .no answer in time"):
        ingest_stac(out, query_of(catalogue.url, sign="planetary-computer"), retry=retry)


def test_the_package_that_signs_does_not_repeat_requests_itself(monkeypatch):
    asked = []
    fake = signing(monkeypatch, lambda href: href + "?sig=1")
    fake.sas = types.SimpleNamespace(get_token=lambda *where, **how: asked.append((where, how)))
    sign = signer("planetary-computer", QUICK)
    assert sign("https://data.blob.core.windows.net/s2/a.tif") == (
        "https://data.blob.core.windows.net/s2/a.tif?sig=1"
    )
    assert asked == [(("data", "s2"), {"retry_total": 0})]


def test_a_signing_service_that_refuses_is_asked_once(tiles, catalogue, out, monkeypatch):
    tiles.put("31TCJ", "2022-05-01", scl=clear())
    calls = []

    def sign(href):
        calls.append(href)
        error = RuntimeError("404")
        error.response = types.SimpleNamespace(status_code=404)
        raise error

    signing(monkeypatch, sign)
    with pytest.raises(CatalogueError, match=r"the signing service refuses \(404\).*check --api"):
        run(out, catalogue, sign="planetary-computer")
    assert len(calls) == 1


@pytest.mark.parametrize("methods", [("GET",), ("POST",)])
def test_catalogues_are_searched_with_the_method_they_accept(tiles, catalogue, out, methods):
    catalogue.methods, catalogue.page = methods, 1
    for month in (1, 2, 3):
        tiles.put("31TCJ", f"2022-0{month}-01")
    tiles.put("31TCJ", "2022-04-01", cloud=99)
    assert run(out, catalogue, max_hidden=70).items == 3
    assert {method for method, path, _ in catalogue.requests if path == "/search"} == set(methods)


# --- what goes wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [429, 500, 503, "cut"])
def test_a_catalogue_that_fails_for_a_while_is_retried(tiles, catalogue, out, kind):
    tiles.put("31TCJ", "2022-05-01")
    catalogue.fail(kind, times=2)
    assert run(out, catalogue).dates == 1


@pytest.mark.parametrize(("asked", "pause"), [("7", 7), ("3600", 120)])
def test_a_pause_that_a_catalogue_asks_for_is_kept_up_to_two_minutes(tiles, catalogue, out, asked, pause):
    tiles.put("31TCJ", "2022-05-01")
    catalogue.fail(429, times=1, headers={"Retry-After": asked})
    slept = []
    retry = RetryPolicy(pause_s=0.02, sleep=slept.append)
    assert ingest_stac(out, query_of(catalogue.url), retry=retry).dates == 1
    assert slept == [pause]


@pytest.mark.parametrize(
    ("kind", "path", "message"),
    [
        (429, "/search", "too many requests (429)"),
        (500, "/search", "the server failed (500), also when retried"),
        (503, "/", "the server failed (503)"),
        (400, "/search", "the search was refused (400)"),
        (403, "/", "access refused (403)"),
        (404, "/", "no such page (404)"),
        ("html", "/", "does not answer as a STAC catalogue"),
        ("html", "/search", "does not answer as a STAC catalogue"),
        ("other", "/", "does not answer as a STAC catalogue"),
        ("cut", "/search", "the connection was cut"),
    ],
)
def test_a_failing_catalogue_is_explained_on_one_line(tiles, catalogue, out, kind, path, message):
    tiles.put("31TCJ", "2022-05-01")
    catalogue.fail(kind, path=path)
    with pytest.raises(CatalogueError) as error:
        run(out, catalogue)
    assert message in str(error.value) and catalogue.url in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 420
    assert not out.exists()


@pytest.mark.parametrize("conforms", [None, (), ("core",)])
@pytest.mark.parametrize("hidden", [(), ("data",)])
def test_a_root_with_a_search_link_is_searched_whatever_it_conforms_to(
    tiles, catalogue, out, conforms, hidden
):
    tiles.put("31TCJ", "2022-05-01", cloud=5)
    tiles.put("31TCJ", "2022-05-02", cloud=99)
    catalogue.conforms, catalogue.hidden_links = conforms, hidden
    assert run(out, catalogue).dates == 1
    message = "no item of" if hidden else "no collection 'sentinel-3'. It has sentinel-2-l2a"
    with pytest.raises(CatalogueError, match=message):
        run(out.with_name("other"), catalogue, collection="sentinel-3")


@pytest.mark.parametrize("conforms", [None, (), ("core", "collections")])
def test_a_root_without_a_search_link_is_refused_in_one_sentence(tiles, catalogue, out, conforms):
    tiles.put("31TCJ", "2022-05-01")
    catalogue.conforms, catalogue.hidden_links = conforms, ("search",)
    with pytest.raises(CatalogueError) as error:
        run(out, catalogue)
    assert str(error.value).startswith(
        f"{catalogue.url}: it cannot be searched, its root has no search link. Expected"
    )


def test_an_unreachable_catalogue_is_explained(out):
    with pytest.raises(CatalogueError, match=r"127.0.0.1:9/v1: it cannot be reached .connection refused"):
        ingest_stac(out, query_of("http://127.0.0.1:9/v1"), retry=QUICK)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"collection": "sentinel-3"}, "no collection 'sentinel-3'. It has sentinel-2-l2a"),
        ({"dates": "2001"}, "Check --bbox and --dates"),
        ({"bbox": (100.0, 10.0, 101.0, 11.0)}, "no item of sentinel-2-l2a for 100,10,101,11"),
        ({"max_cloud": 10}, "The clearest of 2 items has 20.0 %. Raise --max-cloud"),
    ],
)
@pytest.mark.parametrize("query", [True, False])
def test_a_search_without_results_is_explained(tiles, catalogue, out, more, message, query):
    tiles.put("31TCJ", "2022-05-01", cloud=20)
    tiles.put("31TCJ", "2022-05-02", cloud=30)
    if not query:
        catalogue.conforms = ("core", "search", "collections")
    with pytest.raises(CatalogueError) as error:
        run(out, catalogue, **more)
    assert message in str(error.value)
    assert not out.exists()


@pytest.mark.parametrize("kind", [503, 429, "html", "cut"])
def test_a_file_that_fails_for_a_while_is_retried(tiles, catalogue, files, out, kind):
    tiles.put("31TCJ", "2022-05-01", scl=clear())
    files.fail(kind, times=2, path="B03.tif")
    run(out, catalogue)
    path = out / "31TCJ" / "2022-05-01.tif"
    assert np.array_equal(pixels(path), truth(path, "31TCJ", ground_of("31TCJ")))


@pytest.mark.parametrize(
    ("kind", "path"), [(404, "B03.tif"), (500, "B08.tif"), (404, "SCL.tif"), ("html", "B02.tif")]
)
def test_an_unreadable_item_is_named_and_the_others_are_written(tiles, catalogue, files, out, kind, path):
    tiles.put("31TCJ", "2022-05-01", scl=clear())
    tiles.put("31TCJ", "2022-06-01", scl=clear())
    files.fail(kind, path=f"20220501_0_L2A/{path}")
    report = run(out, catalogue)
    assert (report.dates, [row.item for row in report.left_out]) == (1, ["S2A_31TCJ_20220501_0_L2A"])
    assert "cannot be read" in report.left_out[0].left_out
    assert report.notes == (f"skipped: S2A_31TCJ_20220501_0_L2A, {report.left_out[0].left_out}",)
    assert sorted(p.name for p in out.rglob("*.tif")) == ["2022-06-01.tif"]
    files.trouble, files.served = lambda _: None, 0
    again = run(out, catalogue)  # only what is missing
    assert (again.dates, again.new, again.left_out) == (2, 1, ())
    assert not [path for _, path, _ in files.requests[-20:] if "20220601" in path]


@pytest.mark.parametrize("status", [401, 403, 409])
@pytest.mark.parametrize("sign", [None, "planetary-computer"])
def test_refused_files_are_tried_once_and_the_remedy_is_named(
    tiles, catalogue, files, out, monkeypatch, status, sign
):
    tiles.put("31TCJ", "2022-05-01")
    signing(monkeypatch, lambda href: href + "?sig=hush")
    files.fail(status, path=".tif")
    slept = []
    with pytest.raises(CatalogueError) as error:
        ingest_stac(out, query_of(catalogue.url, sign=sign), retry=RetryPolicy(sleep=slept.append))
    remedy = "add --sign planetary-computer" if sign is None else "check that --sign fits the catalogue"
    assert f"access is refused (HTTP response code: {status}). " in str(error.value)
    assert remedy in str(error.value) and "hush" not in str(error.value) and not slept


@pytest.mark.parametrize(
    ("href", "message", "remedy"),
    [
        (
            "s3://b/a.tif",
            "AWS_SECRET_ACCESS_KEY and AWS_NO_SIGN_REQUEST configuration options not defined, and "
            "/root/.aws/credentials not filled",
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ),
        ("s3://b/a.tif", "Access Denied", "AWS_NO_SIGN_REQUEST=YES"),
        (
            "gs://b/a.tif",
            "GS_SECRET_ACCESS_KEY, or GS_NO_SIGN_REQUEST=YES configuration options not defined",
            "Set GOOGLE_APPLICATION_CREDENTIALS",
        ),
        (
            "az://b/a.tif",
            "CURL error: Could not resolve host: None.blob.core.windows.net",
            "Set AZURE_STORAGE_ACCOUNT",
        ),
        ("https://h/a.tif", "HTTP response code: 409", "add --sign planetary-computer"),
        ("https://h/a.tif", "HTTP response code: 404", "it cannot be read (HTTP response code: 404)"),
        ("https://h/a.tif", "HTTP response code: 422", "it cannot be read"),
        ("https://h/a.tif", "HTTP response code: 429", None),
        ("https://h/a.tif", "HTTP response code: 503", None),
        ("https://h:4043/403/a.tif", "CURL error: Failed to connect to h port 4043", None),
    ],
)
def test_failures_that_stay_have_a_remedy(href, message, remedy):
    reason = explain_final(message, href, signed=False)
    assert (remedy in reason) if remedy else reason == ""


def test_files_in_a_store_without_credentials_are_tried_once(tiles, catalogue, out, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_NO_SIGN_REQUEST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(out.parent))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("CPL_AWS_AUTODETECT_EC2", "NO")
    item = tiles.put("31TCJ", "2022-05-01")
    for asset_ in item["assets"].values():
        asset_["href"] = asset_["href"].replace(tiles.url, "s3://eodata")
    slept = []
    with pytest.raises(CatalogueError, match="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        ingest_stac(out, query_of(catalogue.url), retry=RetryPolicy(sleep=slept.append))
    assert not slept


@pytest.mark.parametrize("known", [True, False])
def test_files_without_a_georeference_are_named(tiles, catalogue, out, known):
    item = tiles.put("31TCJ", "2022-05-01")
    for path in tiles.folder.rglob("*.tif"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with rasterio.open(path) as file:
                pixels_ = file.read()
            profile = {"height": SIZE, "width": SIZE, "count": 1, "dtype": "uint16"}
            with rasterio.open(path, "w", driver="GTiff", **profile) as file:
                file.write(pixels_)
    if not known:
        for asset_ in item["assets"].values():
            asset_.pop("proj:transform", None)
    with pytest.raises(CatalogueError, match="georeference") as error:
        run(out, catalogue)
    assert "tried" not in str(error.value)


def test_notes_speak_of_dates_that_are_used(tiles, catalogue, out):
    tiles.put("31TCJ", "2022-05-01", scl=clear())
    hazy = tiles.put("31TCJ", "2022-05-02", cloud=50, style="planetary-computer")
    hazy["properties"]["s2:processing_baseline"] = None
    report = run(out, catalogue, dates_per_place=1)
    assert report.dates == 1 and not any("guessed" in n or "classification" in n for n in report.notes)


@pytest.mark.parametrize("kind", [404, 409, 500, "html", "cut"])
def test_a_signature_is_neither_printed_nor_written(
    tiles, catalogue, files, out, monkeypatch, caplog, capfd, kind
):
    caplog.set_level(logging.DEBUG)
    tiles.put("31TCJ", "2022-05-01", scl=clear())
    tiles.put("31TCJ", "2022-06-01", scl=clear())
    signing(monkeypatch, lambda href: href + "?st=1&sig=hush%2Fhush")
    files.fail(kind, path="20220501_0_L2A/B03")
    report = run(out, catalogue, sign="planetary-computer")
    assert report.dates == 1 and len(report.left_out) == 1
    logging.getLogger("odc").error("Aborting load of %s", "https://h/a.tif?sig=hush")
    texts = [*report.notes, report.left_out[0].left_out, caplog.text, *capfd.readouterr()]
    texts += [path.read_text() for path in (out / "items.csv", out / "search.json")]
    texts += [path.read_bytes().decode("latin-1") for path in out.rglob("*.tif")]
    assert "hush" not in "\n".join(texts) and "https://h/a.tif" in caplog.text


def test_a_key_in_the_address_of_the_catalogue_is_neither_printed_nor_written(tiles, catalogue, out):
    tiles.put("31TCJ", "2022-05-01", scl=clear())
    secret = catalogue.url.replace("://", "://user:hush@")
    assert "hush" not in json.dumps(query_of(secret + "?key=hush").to_json())
    with pytest.raises(CatalogueError) as error:
        ingest_stac(out, query_of(secret, dates="2001"), retry=QUICK)
    assert "hush" not in str(error.value)


def test_nothing_is_written_if_no_item_can_be_read(tiles, catalogue, files, out):
    tiles.put("31TCJ", "2022-05-01", scl=clear())
    files.fail(404, path=".tif")
    with pytest.raises(CatalogueError, match=r"nothing was written, all 1 items were skipped. 1 item: .*404"):
        run(out, catalogue)
    assert not list(out.rglob("*.tif"))


def test_an_interrupted_run_resumes(tiles, catalogue, files, out):
    for month in (1, 2, 3):
        tiles.put("31TCJ", f"2022-0{month}-01", scl=clear())

    def stop(stage, done, total):
        if (stage, done) == ("reading dates", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest_stac(out, query_of(catalogue.url), retry=QUICK, progress=stop)
    assert [path.stem for path in sorted(out.rglob("*.tif"))] == ["2022-01-01", "2022-02-01"]
    files.requests.clear()
    report = run(out, catalogue)
    assert (report.dates, report.new) == (3, 1)
    assert {path.split("/")[1] for _, path, _ in files.requests} == {"S2A_31TCJ_20220301_0_L2A"}


def test_a_folder_of_another_query_is_kept(tiles, catalogue, out):
    tiles.put("31TCJ", "2022-05-01")
    tiles.put("31TCJ", "2022-06-01")
    run(out, catalogue)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(OutputExistsError, match=r"holds the files of another query \(last 2023-12-31\)"):
        run(out, catalogue, dates="2020/2022-05")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    (out / "31TCJ" / "mine.tif").write_bytes(b"mine")
    report = ingest_stac(out, query_of(catalogue.url, dates="2020/2022-05"), overwrite=True, retry=QUICK)
    assert report.dates == 1
    assert sorted(path.name for path in out.rglob("*.tif")) == ["2022-05-01.tif", "mine.tif"]


def test_a_file_of_the_user_is_kept(tiles, catalogue, out, write_tif, rng):
    tiles.put("31TCJ", "2022-05-01")
    tiles.put("31TCJ", "2022-06-01")
    path = write_tif("31TCJ/2022-05-01.tif", rng.integers(1, 99, (64, 64, 4)).astype(np.uint16), folder=out)
    before = path.read_bytes()
    report = run(out, catalogue)
    assert report.dates == 1 and path.read_bytes() == before
    assert "did not write" in report.left_out[0].left_out


def test_a_damaged_journal_is_named(tiles, catalogue, out):
    tiles.put("31TCJ", "2022-05-01")
    run(out, catalogue)
    (out / "items.csv").write_text("item,place\nx,y\n")
    with pytest.raises(ManifestError, match=r"items.csv: damaged"):
        run(out, catalogue)
    (out / "search.json").write_text("{")
    with pytest.raises(ManifestError, match=r"search.json: damaged"):
        run(out, catalogue)


def test_the_missing_extra_is_named(out, monkeypatch):
    monkeypatch.setitem(sys.modules, "pystac_client", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'patch-retrieval\[stac\]'"):
        ingest_stac(out, query_of("earth-search"))


# --- the command --------------------------------------------------------------------------------


def call(*arguments):
    return CliRunner().invoke(app, ["ingest-stac", *map(str, arguments)], prog_name="retrieve")


def test_the_command(tiles, catalogue, out):
    tiles.put("31TCJ", "2022-05-01", scl=clear())
    tiles.put("31TCJ", "2022-06-01", cloud=30, scl=clear())
    asked = ("--api", catalogue.url, "--bbox", ",".join(map(str, ASKED)), "--dates", "2022", "--out", out)
    done = call(*asked)
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{out}: 2 dates of 1 places, 2 of them new; 0 of 2 items left out\n"
    assert "searching: 2" in done.stderr and "reading dates: 2" in done.stderr
    again = json.loads(call(*asked, "--json", "--quiet").stdout)
    assert (again["dates"], again["new"], again["left_out"]) == (2, 0, 0)
    refused = call(*asked, "--max-cloud", 20)
    assert refused.exit_code == 1 and "holds the files of another query (max_cloud 60.0)" in refused.stderr
    fewer = call(*asked, "--max-cloud", 20, "--overwrite", "--quiet")
    assert fewer.stdout == f"{out}: 1 dates of 1 places, 1 of them new; 0 of 1 items left out\n"
    with (out / "items.csv").open(newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == ["31TCJ/2022-05-01.tif"]


def test_a_box_across_the_antimeridian_is_searched_on_both_sides(tiles, catalogue, out):
    tiles.put("01KAB", "2022-05-01", scl=clear())
    box = lonlat("01KAB", 180, 200, 330, 300)
    assert box[0] > 179.9 and box[2] < -179.9
    done = call("--api", catalogue.url, "--bbox", ",".join(map(str, box)), "--dates", "2022", "--out", out)
    assert done.stdout == f"{out}: 1 dates of 1 places, 1 of them new; 0 of 1 items left out\n", done.output
    path = out / "01KAB" / "2022-05-01.tif"
    found = pixels(path)
    assert np.array_equal(found, truth(path, "01KAB", ground_of("01KAB")))
    assert 98 <= found.shape[0] <= 106 and 148 <= found.shape[1] <= 156
    asked = [query["bbox"] for _, where, query in catalogue.requests if where == "/search"]
    assert [(west, east) for west, _, east, _ in asked] == [(box[0], 180), (-180, box[2])]


def test_boxes_that_begin_with_a_minus_are_values(tmp_path):
    for box in (["--bbox", "-1.5,43,-1.2,42"], ["--bbox=-1.5,43,-1.2,42"]):
        done = call(*box, "--dates", "2022", "--out", tmp_path / "x")
        assert done.exit_code == 1 and "-1.5,43,-1.2,42: south 43 is not below north 42" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bbox", "1,2", "--dates", "2022"], "Expected west,south,east,north"),
        (["--bbox", "1,2,3,4", "--dates", "then"], "Expected FROM/TO"),
        (["--bbox", "1,2,3,4", "--dates", "2022", "--api", "there"], "not the address of a catalogue"),
        (["--bbox", "1,2,3,4", "--dates", "2022", "--api", "http://127.0.0.1:9"], "connection refused"),
    ],
)
def test_failures_of_the_command_are_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    done = call(*arguments, "--out", tmp_path / "x")
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_commands_in_the_how_to_parse():
    import typer

    page = (Path(__file__).parent.parent / "docs" / "how-to" / "stac.md").read_text(encoding="utf-8")
    commands = [line.split() for line in page.splitlines() if line.startswith("retrieve ")]
    assert len(commands) == 3
    for _, name, *arguments in commands:
        group = typer.main.get_command(app)
        group.get_command(typer.Context(group), name).make_context(name, arguments)
    assert all(address in page for address in CATALOGUES.values())


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    Path(tmp_path / "x").touch()
    done = call("--bbox", "1,2,3,4", "--dates", "2022", "--out", tmp_path / "x")
    assert done.exit_code == 1 and "x: a file" in done.stderr
