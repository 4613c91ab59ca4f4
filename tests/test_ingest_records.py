"""Places to training series and challenges: pixels, bands, units, grids, and invalid input."""

import csv
import json

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st

from retrieval.errors import ConfigError
from retrieval.geo.request import ImageFilter
from retrieval.ingest.places import find_places
from retrieval.ingest.run import ingest
from retrieval.ingest.survey import starts
from tfrecords.errors import (
    ArrayError,
    BandsError,
    GridError,
    MissingInputError,
    OutputExistsError,
    UnfinishedOutputError,
    UnitsError,
)
from tfrecords.read import read_images, read_patches, read_series
from tfrecords.schema import is_nodata
from tfrecords.schema.dates import date_of

BANDS = ("B04", "B03", "B02", "B08")
UTM = "EPSG:32631"


def at(x=500000.0, y=5000000.0, pixel=10.0):
    return (pixel, 0.0, x, 0.0, -pixel, y)


def ground(rng, height, width, bands=4):
    return rng.integers(300, 5000, (height, width, bands)).astype(np.uint16)


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


@pytest.fixture
def put(write_tif, source):
    """Write one date of a place: described bands, nodata 0, georeferenced by default."""

    def write(name, pixels, **how):
        defaults = {"descriptions": BANDS[: pixels.shape[-1]], "nodata": 0, "crs": UTM, "transform": at()}
        return write_tif(name, pixels, folder=source, **(defaults | how))

    return write


def series_of(source, tmp_path, **how):
    report = ingest(source, tmp_path / "out", **how)
    return report, list(read_series(tmp_path / "out"))


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("name", "date"),
    [
        ("2015-08-20", "2015-08-20"),
        ("S2A_MSIL1C_20180723T100031_N0206", "2018-07-23"),
        ("t33uuu_2016_05_29_b02", "2016-05-29"),
        ("2019-09", "2019-09"),
        ("scene_2018", "2018"),
        ("before", "before"),
        ("site07_AFTER", "after"),
        ("post-fire", "after"),
        ("pre", "before"),
        ("2015-02-30", "2015-02"),
        ("201807", None),
        ("tile12345678", None),
        ("aftermath", None),
        ("", None),
    ],
)
def test_dates_are_read_from_names(name, date):
    assert date_of(name) == date


def test_every_folder_that_holds_geotiffs_is_a_place(source):
    for name in (
        "b/paris/2016-01-01.tif",
        "b/paris/2015.TIFF",
        "a/2018-01.tif",
        "a/.hidden.tif",
        ".git/2018.tif",
    ):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).touch()
    (source / "a" / "notes.txt").touch()
    places = find_places(source)
    assert [place.name for place in places] == ["a", "b/paris"]
    assert [one.date for one in places[1].files] == ["2015", "2016-01-01"]
    (source / "2018.tif").touch()
    assert [place.name for place in find_places(source)] == ["a", "b/paris", "source"]


def test_before_sorts_first_and_after_sorts_last(source):
    for name in ("after", "before", "2018"):
        (source / f"{name}.tif").touch()
    assert [one.date for one in find_places(source)[0].files] == ["before", "2018", "after"]


def test_invalid_folders_are_explained(source):
    with pytest.raises(MissingInputError, match="no such folder"):
        find_places(source / "nowhere")
    with pytest.raises(MissingInputError, match=r"paris/2015-08-20\.tif"):
        find_places(source)
    (source / "first.tif").touch()
    with pytest.raises(MissingInputError, match=r"first\.tif: no date in its name"):
        find_places(source)
    (source / "first.tif").rename(source / "2018-01-01_a.tif")
    (source / "2018-01-01_b.tif").touch()
    with pytest.raises(MissingInputError, match=r"both of 2018-01-01\. Expected one file per date"):
        find_places(source)


@given(st.integers(64, 3000), st.integers(64, 700))
def test_squares_cover_a_place_and_stay_inside(length, size):
    first = starts(length, size)
    covered = np.zeros(length, bool)
    for start in first:
        covered[start : start + size] = True
        assert start >= 0 and (start + size <= length or first == [0])
    assert covered.all() and first == sorted(set(first))


def test_places_become_series_with_the_same_pixels(put, source, tmp_path, rng):
    one, two = ground(rng, 70, 90), ground(rng, 70, 90)
    put("group/paris/2018-03-01.tif", two)
    put("group/paris/2015-08-20.tif", one)
    put("rome/after.tif", two[:66], crs=None, transform=None)
    put("rome/before.tif", one[:66], crs=None, transform=None)
    report, found = series_of(source, tmp_path)
    assert (report.places, report.records, report.patches) == (2, 2, 0)
    assert [one.place for one in found] == ["group/paris", "rome"]
    assert found[0].dates == ("2015-08-20", "2018-03-01") and found[1].dates == ("before", "after")
    assert found[0].bands == BANDS and found[0].units == "dn" and found[0].nodata == 0
    assert found[0].pixels.dtype == np.uint16
    assert np.array_equal(found[0].pixels, np.stack([one, two]))
    assert np.array_equal(found[1].pixels, np.stack([one[:66], two[:66]]))
    assert any("4 files of 2 places: dn, B04 B03 B02 B08" in note for note in report.notes)


def test_large_places_are_cut_and_the_last_squares_are_moved_inside(put, source, tmp_path, rng):
    dates = [ground(rng, 150, 130) for _ in range(2)]
    for year, pixels in zip((2017, 2018), dates, strict=True):
        put(f"p/{year}.tif", pixels)
    calls = []
    _, found = series_of(source, tmp_path, size_px=100, progress=lambda *call: calls.append(call))
    assert [(one.x0, one.y0) for one in found] == [(0, 0), (30, 0), (0, 50), (30, 50)]
    for one in found:
        window = np.s_[one.y0 : one.y0 + 100, one.x0 : one.x0 + 100]
        assert np.array_equal(one.pixels, np.stack([pixels[window] for pixels in dates]))
    assert calls[-1] == ("writing series", 4, 4)
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)


def tag(path, **tags):
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(**tags)


@pytest.mark.parametrize("as_", ["series", "challenge"])
@pytest.mark.parametrize("part", [False, True])
def test_dates_of_records_are_acquisition_days(put, source, tmp_path, rng, as_, part):
    """At 3 degrees east 23:55 UTC is in the next solar day; a tag far from the name's date is ignored."""
    times = {"2023-08-21": "2023-08-21T23:55:00Z", "2024": "2024-05-06", "2020-01-01": "2021-07-07"}
    for name in (*times, "2023-08"):
        path = put(f"a/{name}.tif", ground(rng, 80, 90))
        if name in times:
            tag(path, DATETIME=times[name])
    # Without a filter the folder is read as it is; a filter that takes all dates goes by way of places.
    more = {"image_filter": ImageFilter.parse(None, "2019-01-01/2025-01-01", None)} if part else {}
    ingest(source, tmp_path / "out", as_=as_, **more)
    if as_ == "series":
        (one,) = read_series(tmp_path / "out")
        assert one.dates == ("2020-01-01", "2023-08", "2023-08-22", "2024-05-06")
    else:
        truth = rows_of(tmp_path / "out/truth.csv")
        assert {row["image_date"] for row in truth} == {"2024-05-06"}
        assert {row["date"] for row in truth} <= {"2020-01-01", "2023-08", "2023-08-22"}


def test_two_files_of_one_acquisition_day_are_refused(put, source, tmp_path, rng):
    for name in ("2023-08-21", "2023-08-22"):
        tag(put(f"a/{name}.tif", ground(rng, 80, 90)), DATETIME="2023-08-21T23:55:00Z")
    with pytest.raises(MissingInputError, match="both of 2023-08-22, the solar day"):
        ingest(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_dates_without_ground_are_left_out_of_a_square(put, source, tmp_path, rng):
    dates = [ground(rng, 64, 128) for _ in range(3)]
    dates[0][:, :64] = 0
    dates[1][:, 64:] = 0
    dates[2][:, 64:] = 0
    for year, pixels in zip((2016, 2017, 2018), dates, strict=True):
        put(f"p/{year}.tif", pixels)
    _, found = series_of(source, tmp_path, size_px=64)
    assert [(one.x0, one.dates) for one in found] == [(0, ("2017", "2018"))]


def test_places_without_a_series_are_named(put, source, tmp_path, rng):
    put("lonely/2018.tif", ground(rng, 80, 80))
    put("small/2017.tif", ground(rng, 63, 80))
    put("small/2018.tif", ground(rng, 63, 80))
    put("empty/2017.tif", np.zeros((70, 70, 4), np.uint16))
    put("empty/2018.tif", ground(rng, 70, 70))
    with pytest.raises(MissingInputError, match=r"nothing to write.*lonely"):
        ingest(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    put("good/2017.tif", ground(rng, 70, 70))
    put("good/2018.tif", ground(rng, 70, 70))
    report, found = series_of(source, tmp_path)
    assert len(found) == 1
    text = " ".join(report.notes)
    assert "skipped: 1 places have one date only: lonely" in text
    assert "are smaller than 64 x 64 px: small" in text
    assert "have no ground seen on two dates: empty" in text


def test_places_may_differ_in_bands_and_units(put, source, tmp_path, rng):
    for year in (2017, 2018):
        put(f"rgb/{year}.tif", (ground(rng, 64, 64, 3) // 20).astype(np.uint8), nodata=None)
        put(f"swir/{year}.tif", (ground(rng, 64, 64, 2) // 20).astype(np.uint8), descriptions=("B11", "B08"))
        put(f"one/{year}.tif", ground(rng, 64, 64, 1), descriptions=())
        put(f"refl/{year}.tif", (ground(rng, 64, 64) / 10000).astype(np.float32), nodata=np.nan)
    report, found = series_of(source, tmp_path)
    by_place = {one.place: (one.units, one.bands, one.nodata) for one in found}
    assert by_place["rgb"] == ("byte", BANDS[:3], None)
    assert by_place["swir"] == ("byte", ("B11", "B08"), 0)
    assert by_place["one"] == ("dn", ("unknown",), 0)
    assert by_place["refl"][:2] == ("reflectance", BANDS) and np.isnan(by_place["refl"][2])
    assert any("guess" in note and "refl" in note for note in report.notes)


def test_bands_that_all_dates_have_are_kept_in_the_order_of_the_first(put, source, tmp_path, rng):
    one, two = ground(rng, 64, 64, 3), ground(rng, 64, 64, 4)
    put("p/2017.tif", one, descriptions=("B08", "B04", "B12"))
    put("p/2018.tif", two, descriptions=("B02", "B03", "B04", "B08"))
    _, (found,) = series_of(source, tmp_path)
    assert found.bands == ("B08", "B04")
    assert np.array_equal(found.pixels, np.stack([one[..., :2], two[..., [3, 2]]]))
    put("p/2019.tif", ground(rng, 64, 64, 1), descriptions=("B11",))
    with pytest.raises(BandsError, match="no band in common"):
        ingest(source, tmp_path / "other")


def test_unnamed_bands_need_the_option(put, source, tmp_path, rng):
    for year in (2017, 2018):
        put(f"p/{year}.tif", ground(rng, 64, 64, 2), descriptions=())
    with pytest.raises(BandsError, match=r"2017\.tif.*--bands"):
        ingest(source, tmp_path / "out")
    _, (found,) = series_of(source, tmp_path, bands=("B03", "B8A"))
    assert found.bands == ("B03", "B8A")


def test_dates_of_different_units_are_refused_unless_stated(put, source, tmp_path, rng):
    put("p/2017.tif", ground(rng, 64, 64))
    put("p/2018.tif", (ground(rng, 64, 64) // 20).astype(np.uint8))
    with pytest.raises(UnitsError, match=r"2018\.tif looks like byte.*--units"):
        ingest(source, tmp_path / "out")
    _, (found,) = series_of(source, tmp_path, units="dn")
    assert found.units == "dn" and found.pixels.dtype == np.uint16


def test_tags_scale_and_offset_are_applied(put, source, tmp_path, rng):
    import rasterio

    kept = []
    for date, shift in (("2019-01-01", 0.0), ("2019-07-01", 3.0)):  # the second is warped onto the first
        pixels = ground(rng, 70, 70)
        path = put(f"a/{date}.tif", pixels, transform=at(500000.0 + shift))
        kept.append(pixels * 1e-4 - 0.1)
        with rasterio.open(path, "r+") as file:
            file.scales, file.offsets = (1e-4,) * 4, (-0.1,) * 4
    report = ingest(source, tmp_path / "out")
    (series,) = read_series(tmp_path / "out")
    assert series.units == "reflectance" and np.isnan(series.nodata)
    np.testing.assert_allclose(series.pixels[0], kept[0], atol=1e-6)
    inside = series.pixels[1][1:-1, 1:-1]
    assert inside.min() >= kept[1].min() - 1e-6 and inside.max() <= kept[1].max() + 1e-6
    assert any("tags SCALE and OFFSET are applied to 2 files" in note for note in report.notes)


def test_a_date_that_is_all_nodata_does_not_decide_the_units(put, source, tmp_path, rng):
    put("p/2017.tif", np.zeros((64, 64, 4), np.float32))
    for year in (2018, 2019):
        put(f"p/{year}.tif", ground(rng, 64, 64).astype(np.float32))
    _, (found,) = series_of(source, tmp_path)
    assert found.units == "dn" and found.dates == ("2018", "2019")


def test_units_are_inferred_where_only_a_corner_has_ground(put, source, tmp_path, rng):
    for year in (2017, 2018):
        pixels = np.zeros((700, 700, 1), np.uint16)
        pixels[200:264, 200:264] = ground(rng, 64, 64, 1)
        put(f"p/{year}.tif", pixels)
    _, (found,) = series_of(source, tmp_path, size_px=350, max_nodata=0.99)
    assert found.units == "dn" and (found.x0, found.y0) == (0, 0)


def test_nodata_tags_of_the_files_become_one(put, source, tmp_path, rng):
    one, two = ground(rng, 64, 64), ground(rng, 64, 64)
    one[:5], two[-5:] = 65535, 0
    put("p/2017.tif", one, nodata=65535)
    put("p/2018.tif", two, nodata=0)
    _, (found,) = series_of(source, tmp_path)
    gone = is_nodata(found.pixels, found.nodata)
    assert gone[0, :5].all() and not gone[0, 5:].any() and gone[1, -5:].all() and not gone[1, :-5].any()
    assert np.array_equal(found.pixels[1, :-5], two[:-5])


def test_nan_that_is_not_nodata_is_an_error(put, source, tmp_path, rng):
    pixels = ground(rng, 64, 64).astype(np.float32)
    pixels[3, 4, 1] = np.nan
    put("p/2017.tif", pixels)
    put("p/2018.tif", ground(rng, 64, 64).astype(np.float32))
    with pytest.raises(ArrayError, match=r"2017\.tif: 1 values are NaN"):
        ingest(source, tmp_path / "out")


def ramp(height, width, x0=0.0, y0=0.0, step=1.0):
    """A slope that bilinear interpolation gives back exactly; two bands, of x and of y."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return np.stack([1000 + 10 * (x0 + step * x), 2000 + 10 * (y0 + step * y)], axis=-1)


def test_another_grid_is_warped_onto_the_first(put, source, tmp_path):
    names = {"descriptions": ("B04", "B08"), "nodata": -9.0}
    put("p/2017.tif", ramp(100, 120), **names)
    put("p/2018.tif", ramp(100, 120, 23.5, -10.25), transform=at(500235.0, 5000102.5), **names)
    put("p/2019.tif", ramp(60, 60, 0.5, 0.5, step=2.0), transform=at(pixel=20.0), **names)
    report, (found,) = series_of(source, tmp_path)
    assert found.pixels.shape == (3, 100, 120, 2) and found.nodata == -9
    gone = is_nodata(found.pixels, found.nodata)
    inside = np.zeros((100, 120), bool)
    inside[:88, 25:] = True
    assert not gone[1][inside].any() and gone[1, :, :23].all() and gone[1, 91:].all()
    assert np.abs(found.pixels[1][inside] - found.pixels[0][inside]).max() < 0.05
    assert np.abs(found.pixels[2][2:-2, 2:-2] - found.pixels[0][2:-2, 2:-2]).max() < 0.05
    assert any("other grids" in note and "p" in note for note in report.notes)


def test_another_crs_is_warped_too(put, source, tmp_path):
    from rasterio.warp import transform_bounds

    left, bottom, right, top = transform_bounds(UTM, "EPSG:4326", 499000, 4998000, 503000, 5001000)
    y, x = np.mgrid[:400, :500]
    wave = (3000 + 1500 * np.sin(x / 40) * np.cos(y / 30)).astype(np.uint16)[..., None]
    lonlat = ((right - left) / 500, 0.0, left, 0.0, (bottom - top) / 400, top)
    put("p/2017.tif", wave[:80, :80])
    put("p/2018.tif", wave, crs="EPSG:4326", transform=lonlat)
    _, (found,) = series_of(source, tmp_path)
    from rasterio.warp import transform

    lon, lat = transform(UTM, "EPSG:4326", [500405.0], [4999695.0])  # the middle of pixel (40, 30)
    col, row = (lon[0] - left) / lonlat[0] - 0.5, (lat[0] - top) / lonlat[4] - 0.5
    expected = 3000 + 1500 * np.sin(col / 40) * np.cos(row / 30)
    assert found.pixels[1, 30, 40, 0] == pytest.approx(expected, abs=8)


def test_the_warp_does_not_mistake_a_dark_band_for_nodata(put, source, tmp_path, rng):
    one, two = ground(rng, 80, 80), ground(rng, 80, 80)
    two[..., 3] = 0  # water: the infrared is black, the rest is not
    put("p/2017.tif", one)
    put("p/2018.tif", two, transform=at(500005.0))
    _, (found,) = series_of(source, tmp_path)
    assert not is_nodata(found.pixels[1], 0)[:, 2:].any()
    assert (found.pixels[1, :, 2:, 3] <= 1).all() and (found.pixels[1, :, 2:, 0] > 200).all()


def test_a_warped_file_without_a_tag_gets_nodata_outside(put, source, tmp_path, rng):
    pixels = (ground(rng, 80, 80, 3) // 20 + 1).astype(np.uint8)
    put("p/2017.tif", pixels, nodata=None)
    put("p/2018.tif", pixels, nodata=None, transform=at(500300.0))
    _, (found,) = series_of(source, tmp_path)
    gone = is_nodata(found.pixels, found.nodata)
    assert not gone[0].any() and gone[1, :, :30].all() and not gone[1, :, 31:].any()
    assert np.array_equal(found.pixels[1, :, 30:], pixels[:, :50])


def test_rounded_coordinates_are_the_same_grid(put, source, tmp_path, rng):
    one, two = ground(rng, 80, 80), ground(rng, 80, 80)
    put("p/2017.tif", one)
    put("p/2018.tif", two, transform=at(500000.02, 4999999.99))
    report, (found,) = series_of(source, tmp_path)
    assert np.array_equal(found.pixels[1], two) and not any("grids" in note for note in report.notes)


def test_grids_that_cannot_be_warped_are_refused(put, source, tmp_path, rng):
    put("p/2017.tif", ground(rng, 80, 80))
    far = put("p/2018.tif", ground(rng, 80, 80), transform=at(600000.0))
    with pytest.raises(GridError, match=r"2018\.tif does not overlap .*2017\.tif.*600000"):
        ingest(source, tmp_path / "out")
    far.unlink()
    put("p/2018.tif", ground(rng, 80, 90), crs=None, transform=None)
    with pytest.raises(GridError, match=r"80 x 90 px.*georeference"):
        ingest(source, tmp_path / "out")
    put("p/2017.tif", ground(rng, 80, 90), crs=None)
    put("p/2018.tif", ground(rng, 80, 90), crs=None, transform=at(500400.0))
    with pytest.raises(GridError, match="one has no georeference"):
        ingest(source, tmp_path / "out")
    put("p/2018.tif", ground(rng, 80, 90), crs=None)
    assert ingest(source, tmp_path / "out").records == 1
    assert not (tmp_path / "out.partial").exists()


def test_places_that_share_ground_share_a_group(put, source, tmp_path, rng):
    pixels = ground(rng, 70, 70)
    where = {"a": 500000.0, "b": 500500.0, "c": 501000.0, "d": 503000.0}
    for name, x in where.items():
        for year in (2017, 2018):
            put(f"{name}/{year}.tif", pixels, transform=at(x))
    for year in (2017, 2018):
        put(f"e/{year}.tif", pixels, crs=None, transform=None)
    report, found = series_of(source, tmp_path)
    group = {one.place: one.overlap_group for one in found}
    assert group["a"] == group["b"] == group["c"]  # c touches b only, and yet is no negative of a
    assert len({group["a"], group["d"], group["e"]}) == 3
    assert any("a, b, c overlap on the ground" in note for note in report.notes)


def test_a_local_crs_is_accepted(put, source, tmp_path, rng):
    local = 'LOCAL_CS["yard",UNIT["metre",1]]'
    for year in (2017, 2018):
        put(f"p/{year}.tif", ground(rng, 64, 64), crs=local)
    assert ingest(source, tmp_path / "out").records == 1
    put("p/2018.tif", ground(rng, 64, 70))
    with pytest.raises(GridError, match=r"PROJ cannot transform"):
        ingest(source, tmp_path / "other")


def test_pixels_of_another_size_are_noted(put, source, tmp_path, rng):
    for year in (2017, 2018):
        put(f"p/{year}.tif", ground(rng, 64, 64), transform=at(pixel=20.0))
    report, _ = series_of(source, tmp_path)
    assert any("another size than 10 m: p" in note for note in report.notes)


def test_a_damaged_file_is_named(put, source, tmp_path, rng):
    put("p/2017.tif", ground(rng, 200, 200), compress="deflate")
    broken = put("p/2018.tif", ground(rng, 200, 200), compress="deflate")
    raw = broken.read_bytes()
    broken.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ArrayError, match=r"2018\.tif"):
        ingest(source, tmp_path / "out")
    broken.write_bytes(b"no tiff")
    with pytest.raises(ArrayError, match=r"2018\.tif"):
        ingest(source, tmp_path / "out")


@pytest.mark.parametrize(
    "wrong",
    [
        {"size_px": 63},
        {"max_nodata": 1.5},
        {"patches_per_image": 0},
        {"as_": "pictures"},
        {"seed": -1},
        {"series_per_shard": 0},
    ],
)
def test_options_out_of_range_are_refused(source, tmp_path, wrong):
    with pytest.raises(ConfigError, match="Expected"):
        ingest(source, tmp_path / "out", **wrong)


def test_a_finished_output_is_kept_and_can_be_replaced(put, source, tmp_path, rng):
    for year in (2017, 2018):
        put(f"p/{year}.tif", ground(rng, 64, 64))
    ingest(source, tmp_path / "out")
    with pytest.raises(OutputExistsError, match="overwrite"):
        ingest(source, tmp_path / "out", size_px=100)
    put("q/2017.tif", ground(rng, 64, 64))
    put("q/2018.tif", ground(rng, 64, 64))
    assert len(series_of(source, tmp_path, overwrite=True)[1]) == 2


def test_an_interrupted_run_resumes_unless_the_input_changed(put, source, tmp_path, rng):
    for name in ("p", "q"):
        for year in (2017, 2018):
            put(f"{name}/{year}.tif", ground(rng, 64, 64))

    def stop(stage, done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(source, tmp_path / "out", series_per_shard=1, progress=stop)
    assert not (tmp_path / "out").exists()
    first = tmp_path / "out.partial" / "series-00000.tfrecords"
    before = first.stat().st_mtime_ns
    put("r/2017.tif", ground(rng, 64, 64))
    with pytest.raises(UnfinishedOutputError, match="inputs"):
        ingest(source, tmp_path / "out", series_per_shard=1)
    (source / "r" / "2017.tif").unlink()
    _, found = series_of(source, tmp_path, series_per_shard=1)
    assert len(found) == 2
    assert (tmp_path / "out" / "series-00000.tfrecords").stat().st_mtime_ns == before
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [one["place"] for one in manifest["extra"]["files"]] == ["p", "q"]


def test_patches_are_cut_where_the_answers_say(put, source, tmp_path, rng):
    dates = [ground(rng, 100, 180) for _ in range(3)]
    dates[0][:40, :90] = 0
    dates[2][60:, 150:] = 0
    for year, pixels in zip((2016, 2017, 2018), dates, strict=True):
        put(f"p/{year}-01-01.tif", pixels)
    report = ingest(source, tmp_path / "c", as_="challenge", size_px=128, patches_per_image=20, seed=3)
    images = {image.image_id: image for image in read_images(tmp_path / "c" / "test_images.tfrecords")}
    patches = read_patches(tmp_path / "c" / "test_patches.tfrecords")
    truth = rows_of(tmp_path / "c" / "truth.csv")
    assert (report.places, report.records, report.patches) == (1, 2, 40) == (1, len(images), len(patches))
    assert len({(row["date"], row["image_id"], row["x"], row["y"]) for row in truth}) == 40
    assert {row["date"] for row in truth} == {"2016-01-01", "2017-01-01"}
    for answer, row in zip(rows_of(tmp_path / "c" / "answers.csv"), truth, strict=True):
        image_id, x, y = (int(part) for part in answer["Result"].split())
        assert answer["Patch ID"] == row["Patch ID"] and row["image_date"] == "2018-01-01"
        x0, y0 = int(row["image_x0"]), int(row["image_y0"])
        date = {"2016": 0, "2017": 1}[row["date"][:4]]
        window = np.s_[y0 + y : y0 + y + 64, x0 + x : x0 + x + 64]
        assert np.array_equal(patches.pixels[int(answer["Patch ID"])], dates[date][window])
        image = images[image_id]
        assert np.array_equal(image.pixels, dates[2][y0 : y0 + 128, x0 : x0 + 128])
        for pixels in (dates[date], dates[2]):
            assert (pixels[window] == 0).all(axis=-1).mean() < 0.02
        assert not (x0 + x >= 52 and x0 + x + 64 <= 128)  # it would be in both images
        assert image.transform == at(500000.0 + 10 * x0) and image.crs == UTM and image.date == "2018-01-01"


def test_the_same_seed_gives_the_same_challenge(put, source, tmp_path, rng):
    for year in (2017, 2018):
        put(f"p/{year}.tif", ground(rng, 90, 90))
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        ingest(source, tmp_path / out, as_="challenge", patches_per_image=5, seed=seed)
    a, b, c = ((tmp_path / out / "answers.csv").read_text() for out in "abc")
    assert a == b != c


def test_small_images_give_as_many_patches_as_fit(put, source, tmp_path, rng):
    for year in (2016, 2017, 2018):
        put(f"p/{year}.tif", ground(rng, 64, 65))
    report = ingest(source, tmp_path / "c", as_="challenge")
    assert report.patches == 4  # two dates, two windows


def test_a_challenge_has_one_kind_of_pixel(put, source, tmp_path, rng):
    for year in (2017, 2018):
        put(f"a/{year}.tif", ground(rng, 70, 70))
        put(f"b/{year}.tif", (ground(rng, 70, 70) // 20).astype(np.uint8), descriptions=BANDS[::-1])
    report = ingest(source, tmp_path / "c", as_="challenge", patches_per_image=3)
    assert any("scaled" in note for note in report.notes)
    patches = read_patches(tmp_path / "c" / "test_patches.tfrecords")
    assert patches.units == "scaled" and patches.bands == BANDS
    assert [image.units for image in read_images(tmp_path / "c" / "test_images.tfrecords")] == ["scaled"] * 2
    for year in (2017, 2018):
        put(f"c/{year}.tif", ground(rng, 70, 70, 3))
    with pytest.raises(BandsError, match=r"c has the bands B04 B03 B02, a B04 B03 B02 B08"):
        ingest(source, tmp_path / "d", as_="challenge")


def test_squares_without_a_patch_are_skipped(put, source, tmp_path, rng):
    for year in (2017, 2018):
        pixels = ground(rng, 80, 200)
        pixels[::4, 100:] = 0
        put(f"p/{year}.tif", pixels)
    report = ingest(source, tmp_path / "c", as_="challenge", size_px=100, patches_per_image=2)
    assert report.records == 1 and any("skipped: 1 squares" in note for note in report.notes)
    for year in (2017, 2018):
        put(f"p/{year}.tif", pixels[:, 100:])
    with pytest.raises(GridError, match="nodata on two dates"):
        ingest(source, tmp_path / "d", as_="challenge", size_px=100)
