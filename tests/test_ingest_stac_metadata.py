"""What the metadata of STAC catalogues say: offsets, bands, places and dates."""

from __future__ import annotations

import datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stac_ground import CORNERS, CRS, SIZE, ground_of, lonlat
from stac_job import ASKED, DAY, pixels, query_of, run, truth

from retrieval.errors import ConfigError
from retrieval.geo.request import BoundingBox
from retrieval.ingest.stac.days import select_dates
from retrieval.ingest.stac.offset import UNKNOWN_PRODUCT, baseline_of, offset_of
from retrieval.ingest.stac.query import CATALOGUES
from retrieval.ingest.stac.scene import COMMON, scene_of
from retrieval.ingest.stac.window import crop_to_box
from tfrecords.errors import (
    BandsError,
    CatalogueError,
    GridError,
)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "places"


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
