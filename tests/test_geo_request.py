"""Bounding boxes, date spans and cloud limits, and the pixels that a box covers."""

from __future__ import annotations

import datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.errors import ConfigError
from retrieval.geo.pixel_window import PixelWindow, window_of_box
from retrieval.geo.request import BoundingBox, DateSpan, ImageFilter
from tfrecords.errors import GridError

DAY = datetime.date


def lonlat(x, y, epsg=32631):
    from rasterio.warp import transform

    longitude, latitude = transform(f"EPSG:{epsg}", "EPSG:4326", [x], [y])
    return longitude[0], latitude[0]


# --- boxes --------------------------------------------------------------------------------------


def test_boxes_are_parsed():
    assert BoundingBox.parse(" -1.5, 43, -1.25,44.5") == BoundingBox(-1.5, 43, -1.25, 44.5)
    assert BoundingBox.parse("[1 43 2 44]").as_tuple() == (1, 43, 2, 44)
    assert str(BoundingBox.parse("1.0,43,2,44.25")) == "1,43,2,44.25"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1,2,3", "not four numbers"),
        ("a,2,3,4", "not four numbers"),
        ("west", "not four numbers"),
        ("1,44,2,43", "south 44 is not below north 43"),
        ("1,43,1,44", "west 1 is not less than east 1"),
        ("0.6,44.2,0.5,44.3", "west 0.6 is not less than east 0.5"),
        ("-181,43,2,44", "off the globe"),
        ("1,43,2,91", "off the globe"),
        ("1,nan,2,44", "off the globe"),
        ("nan,44,1,45", "off the globe"),
    ],
)
def test_invalid_boxes_are_explained(text, problem):
    with pytest.raises(ConfigError, match=problem) as error:
        BoundingBox.parse(text)
    assert str(error.value).startswith("--bbox") and "Expected" in str(error.value)


@pytest.mark.parametrize(
    ("box", "halves", "width", "centre"),
    [
        ("1,43,2,44", [(1, 43, 2, 44)], 1, 1.5),
        ("179,-17,-178,-16", [(179, -17, 180, -16), (-180, -17, -178, -16)], 3, -179.5),
        ("170,-17,-175,-16", [(170, -17, 180, -16), (-180, -17, -175, -16)], 15, 177.5),
        ("180,-17,-178,-16", [(-180, -17, -178, -16)], 2, -179),
        ("178,-17,-180,-16", [(178, -17, 180, -16)], 2, 179),
        ("-180,-90,180,90", [(-180, -90, 180, 90)], 360, 0),
    ],
)
def test_boxes_across_the_antimeridian_are_split_there(box, halves, width, centre):
    parsed = BoundingBox.parse(box)
    assert list(parsed.split()) == halves and parsed.width == width
    assert parsed.centre_longitude == pytest.approx(centre)


# --- dates and cloud ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("2020-02/2021", DAY(2020, 2, 1), DAY(2021, 12, 31)),
        ("2020-02", DAY(2020, 2, 1), DAY(2020, 2, 29)),
        ("2020-02-03/2020-02-03", DAY(2020, 2, 3), DAY(2020, 2, 3)),
        ("2021/", DAY(2021, 1, 1), None),
        ("2021/..", DAY(2021, 1, 1), None),
        (" .. / 2020-06 ", None, DAY(2020, 6, 30)),
    ],
)
def test_spans_of_dates_are_parsed(text, first, last):
    assert DateSpan.parse(text) == DateSpan(first, last)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "..",
        "2019-13",
        "2020-02-30/2021",
        "yesterday/",
        "19/20",
        "2019/2020/2021",
        "2019-01-01T00/..",
    ],
)
def test_invalid_spans_are_explained(text):
    with pytest.raises(ConfigError, match=r"^--dates .*Expected FROM/TO"):
        DateSpan.parse(text)


@pytest.mark.parametrize("text", ["2021/2020", "2019-07-02/2019-07-01"])
def test_spans_in_the_wrong_order_are_explained(text):
    first, last = text.split("/")
    with pytest.raises(ConfigError, match=f"^--between {text}: FROM is after TO. Expected {last}/{first}$"):
        DateSpan.parse(text, "--between")


@pytest.mark.parametrize(
    ("text", "overlapping", "outside"),
    [
        ("2019-03/2019-09-15", ["2019-03-01", "2019-09-15", "2019"], ["2019-02-28", "2019-09-16", "2018"]),
        ("2021/", ["2021-01-01", "2099"], ["2020-12-31", "before"]),
        ("../2020-06", ["2020-06-30", "1999"], ["2020-07-01", "after"]),
        ("2019-07", ["2019-07-31", "2019-07"], ["2019-08-01", "2019-06"]),
    ],
)
def test_a_date_overlaps_a_span_with_one_of_its_days(text, overlapping, outside):
    span = DateSpan.parse(text)
    assert all(map(span.overlaps, overlapping)) and not any(map(span.overlaps, outside))


def test_a_span_contains_a_date_with_all_its_days():
    span = DateSpan.parse("2019-03/2019-09-15")
    assert span.contains("2019-03") and span.contains("2019-09-15")
    assert not (span.contains("2019") or span.contains("2019-09") or span.contains("before"))


@pytest.mark.parametrize("max_cloud", [-1, 100.5, float("nan")])
def test_a_cloud_limit_is_a_percentage(max_cloud):
    with pytest.raises(ConfigError, match=r"--max-cloud .*: not a percentage. Expected 0 to 100"):
        ImageFilter.parse(None, None, max_cloud)


def test_a_filter_says_why_it_skips():
    image_filter = ImageFilter.parse(None, "2022/", 20)
    assert image_filter.reason_to_skip("2021-07-06", 0) == "outside of the dates 2022-01-01/.."
    assert image_filter.reason_to_skip("2022-07-06", 20.5) == "more than 20 % cloud"
    assert image_filter.reason_to_skip("2022-07-06", None) == ""
    assert ImageFilter().takes_all and not image_filter.takes_all


# --- pixels of a box ----------------------------------------------------------------------------


@given(
    st.floats(-8, 16).map(lambda km: 302000 + 500 * km),
    st.floats(-8, 16).map(lambda km: 4898000 + 500 * km),
    st.floats(30, 3000),
    st.floats(30, 3000),
)
def test_a_box_covers_the_pixels_that_it_touches(x, y, width, height):
    west, south = lonlat(x, y)
    east, north = west + width / 80_000, south + height / 111_000
    box = BoundingBox(west, south, east, north)
    window = window_of_box(box, "EPSG:32631", (10, 0, 300000, 0, -10, 4900020), 300, 250, "it")
    cols, rows = np.meshgrid(np.arange(300) * 10 + 300005.0, 4900015.0 - 10 * np.arange(250))
    from rasterio.warp import transform

    lon, lat = map(np.array, transform("EPSG:32631", "EPSG:4326", cols.ravel(), rows.ravel()))
    inside = ((lon >= west) & (lon <= east) & (lat >= south) & (lat <= north)).reshape(250, 300)
    covered = np.zeros_like(inside)
    if window:
        assert window.x0 >= 0 and window.y0 >= 0
        assert window.x0 + window.width <= 300 and window.y0 + window.height <= 250
        covered[window.y0 : window.y0 + window.height, window.x0 : window.x0 + window.width] = True
    assert not (inside & ~covered).any()
    if inside.any():
        y, x = np.nonzero(inside)
        assert covered.sum() <= (np.ptp(y) + 4) * (np.ptp(x) + 4)


def test_a_box_cannot_be_located_at_a_pole_or_without_a_crs():
    polar = (10, 0, 1_999_000, 0, -10, 2_001_000)
    box = BoundingBox(0, 80, 10, 89)
    with pytest.raises(GridError, match="covers a pole, where --bbox is not supported"):
        window_of_box(box, "EPSG:32661", polar, 200, 200, "it")
    with pytest.raises(GridError, match="no CRS"):
        window_of_box(box, None, None, 200, 200, "it")
    assert window_of_box(None, None, None, 7, 5, "it") == PixelWindow(0, 0, 7, 5)


def test_windows_are_read_in_the_blocks_of_the_file():
    blocks = PixelWindow(1000, 30, 3000, 2000).blocks(1024, 1024)
    assert sum(block.width * block.height for block in blocks) == 6_000_000
    assert all(block.width <= 1024 and block.height <= 1024 for block in blocks)
    assert len({(block.x0 // 1024, block.y0 // 1024) for block in blocks}) == len(blocks)
