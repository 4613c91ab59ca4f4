"""GeoTIFFs by path and by address: parts of them, server failures, and lists."""

from __future__ import annotations

import os

import numpy as np
import pytest
from rangeserver import serving
from typer.testing import CliRunner

from retrieval.cli import app
from retrieval.errors import ConfigError
from retrieval.geo.request import ImageFilter
from retrieval.ingest.cogs import find_cogs
from retrieval.ingest.dated_image import write_date
from retrieval.ingest.retry import RetryPolicy
from retrieval.ingest.run import ingest
from tfrecords.errors import ArrayError, MissingInputError, RemoteError, StorageError
from tfrecords.read import describe_raster, read_raster, read_series
from tfrecords.schema.records import Provenance

BANDS = ("B04", "B03", "B02", "B08")
CORNER = (300000.0, 4900020.0)


QUICK = RetryPolicy(pause_s=0.01)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    """No proxy between the tests and the loopback."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("web")


@pytest.fixture
def web(folder):
    with serving(folder) as server:
        yield server


@pytest.fixture(scope="module")
def big(folder):
    """Two dates of a place of 1500 x 1500 px; their pixels by date."""
    found = {}
    rng = np.random.default_rng(1)
    for date in ("2022-07-06", "2023-07-06"):
        found[date] = rng.integers(1, 9000, (1500, 1500, 4)).astype(np.uint16)
        path = folder / "31TCJ" / f"{date}.tif"
        place = (10, 0, CORNER[0], 0, -10, CORNER[1])
        write_date(path, found[date], BANDS, "EPSG:32631", place, Provenance("S2A_X", "t", "05.09", 3.0))
    return found


@pytest.fixture
def listed(web, tmp_path, big):
    """A list of both addresses."""
    path = tmp_path / "list.txt"
    path.write_text("# two dates\n\n" + "\n".join(web.of(f"31TCJ/{date}.tif") for date in big))
    return path


def box_of(x0, y0, width, height):
    """A box within these pixels, and less than 3 px smaller on each side."""
    from rasterio.warp import transform

    x = [CORNER[0] + 10 * (x0 + 3), CORNER[0] + 10 * (x0 + width - 3)]
    y = [CORNER[1] - 10 * (y0 + height - 3), CORNER[1] - 10 * (y0 + 3)]
    lon, lat = transform("EPSG:32631", "EPSG:4326", x, y)
    return f"{lon[0]},{lat[0]},{lon[1]},{lat[1]}"


def filter_of(bbox=None, dates=None, max_cloud=None):
    return ImageFilter.parse(bbox, dates, max_cloud)


def images_of(source, out, retry=QUICK, **how):
    return ingest(source, out, as_="images", retry=retry, image_filter=filter_of(**how))


def test_only_the_requested_windows_are_read(web, listed, big, tmp_path):
    whole = sum(path.stat().st_size for path in web.folder.rglob("*.tif"))
    report = images_of(listed, tmp_path / "out", bbox=box_of(600, 700, 130, 120))
    assert (report.places, report.records) == (1, 2)
    assert 0 < web.served < whole / 4
    for date, pixels in big.items():
        path = tmp_path / "out" / "31TCJ" / f"{date}.tif"
        raster = describe_raster(path)
        x0, y0 = round((raster.transform[2] - CORNER[0]) / 10), round((CORNER[1] - raster.transform[5]) / 10)
        assert 595 < x0 < 605 and 695 < y0 < 705 and raster.width < 140 and raster.height < 130
        part = pixels[y0 : y0 + raster.height, x0 : x0 + raster.width]
        assert np.array_equal(read_raster(path)[0], part) and raster.descriptions == BANDS
        assert raster.nodata == 0 and raster.crs == "EPSG:32631"
    before = web.served
    images_of(listed, tmp_path / "out", bbox=box_of(600, 700, 130, 120))
    assert web.served - before < 200_000  # looked at, not read again


def test_addresses_become_series_in_one_go(listed, big, tmp_path):
    report = ingest(listed, tmp_path / "s", image_filter=filter_of(bbox=box_of(0, 0, 100, 100)))
    series = next(iter(read_series(tmp_path / "s")))
    assert report.records == 1 and series.dates == tuple(big) and series.place == "31TCJ"
    height, width = series.pixels.shape[1:3]
    parts = (big["2023-07-06"][y : y + height, x : x + width] for y in range(5) for x in range(5))
    assert any(np.array_equal(series.pixels[1], part) for part in parts)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["list.txt", "s"]


def test_a_signature_is_written_nowhere(web, big, tmp_path):
    images_of(web.of("31TCJ/2023-07-06.tif?sig=SECRET"), tmp_path / "out")
    path = tmp_path / "out" / "31TCJ" / "2023-07-06.tif"
    assert np.array_equal(read_raster(path)[0], big["2023-07-06"])
    assert b"SECRET" not in path.read_bytes()
    web.fail(403)
    with pytest.raises(RemoteError) as caught:
        images_of(web.of("31TCJ/2022-07-06.tif?sig=SECRET"), tmp_path / "out")
    assert "SECRET" not in str(caught.value) and "not allowed" in str(caught.value)


@pytest.mark.parametrize("trouble", [429, 500, 503, "cut"])
def test_failures_that_pass_are_retried(web, listed, big, tmp_path, trouble):
    web.fail(trouble, times=3 if trouble != "cut" else 4, path="2023")
    report = images_of(listed, tmp_path / "out", bbox=box_of(0, 0, 200, 200))
    assert report.records == 2 and report.notes == ()


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (404, "there is no such file"),
        (401, "asks for a login"),
        (403, "not allowed"),
        (418, "status 418"),
        (429, "too many requests"),
        (500, "status 500"),
        ("html", "a web page instead of a GeoTIFF"),
        ("whole", "does not serve parts"),
        ("cut", "cannot be read"),
    ],
)
def test_failures_that_stay_are_explained(web, listed, big, tmp_path, trouble, message):
    web.fail(trouble)
    with pytest.raises(RemoteError) as caught:
        images_of(web.of("31TCJ/2023-07-06.tif"), tmp_path / "out")
    assert message in str(caught.value) and "2023-07-06.tif" in str(caught.value)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
    web.fail(trouble, path="2023")
    report = images_of(listed, tmp_path / "out", bbox=box_of(0, 0, 100, 100))
    assert report.records == 1 and any("skipped: " in n and message in n for n in report.notes)
    assert not list((tmp_path / "out").rglob(".*"))


def test_a_cut_connection_leaves_no_partial_file(web, big, tmp_path):
    address = web.of("31TCJ/2023-07-06.tif")
    begun = []

    def trouble(path):
        begun.append(path)
        return "cut" if len(begun) > 6 else None

    web.trouble = trouble
    with pytest.raises(RemoteError, match="tried 4 times"):
        images_of(address, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pause_that_a_server_asks_for_is_kept_if_it_is_short(web, big, tmp_path):
    slept = []
    retry = RetryPolicy(sleep=slept.append)
    web.headers = {"Retry-After": "7"}
    web.fail(429, times=1)
    images_of(web.of("31TCJ/2023-07-06.tif"), tmp_path / "out", retry, bbox=box_of(0, 0, 100, 100))
    assert slept == [7.0]
    web.headers = {"Retry-After": "3600"}
    web.fail(429)
    with pytest.raises(RemoteError, match="tried 1 times"):
        images_of(web.of("31TCJ/2022-07-06.tif"), tmp_path / "out", retry)


def test_unreachable_servers_and_other_files_are_explained(web, tmp_path):
    with pytest.raises(RemoteError, match="cannot be reached"):
        images_of("http://127.0.0.1:9/p/2023-07-06.tif", tmp_path / "out")
    (web.folder / "2023-07-06.tif").write_bytes(b"PK" + bytes(100))
    with pytest.raises(RemoteError, match="not a GeoTIFF"):
        images_of(web.of("2023-07-06.tif"), tmp_path / "out")
    (web.folder / "2023-07-06.tif").write_bytes(b"")
    with pytest.raises(StorageError, match=r"2023-07-06\.tif"):
        images_of(web.of("2023-07-06.tif"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_parts_of_local_places_keep_their_pixel_type(write_tif, tmp_path, rng):
    folder = tmp_path / "places"
    pixels = rng.random((200, 220, 2)).astype(np.float32)
    pixels[:5] = np.nan
    place = {"crs": "EPSG:32631", "transform": (10, 0, *CORNER[:1], 0, -10, CORNER[1]), "nodata": np.nan}
    for year in (2018, 2019):
        write_tif(f"a/b/{year}.tif", pixels, folder=folder, descriptions=("B8A", "B11"), **place)
    report = images_of(folder, tmp_path / "out", bbox=box_of(10, 0, 100, 100), dates="2019")
    raster = describe_raster(tmp_path / "out/a/b/2019.tif")
    assert report.records == 1 and raster.dtype == np.float32 and raster.descriptions == ("B8A", "B11")
    x0 = round((raster.transform[2] - CORNER[0]) / 10)
    found = read_raster(tmp_path / "out/a/b/2019.tif")[0]
    assert np.array_equal(found, pixels[: raster.height, x0 : x0 + raster.width], equal_nan=True)
    source = Provenance.from_tags(tags_of(tmp_path / "out/a/b/2019.tif")).source
    assert source.endswith("a/b/2019.tif")
    with pytest.raises(ConfigError, match="do not mark snow"):
        ingest(folder, tmp_path / "other", image_filter=ImageFilter(hide_snow=True))
    assert ingest(folder, tmp_path / "s", image_filter=filter_of(bbox=box_of(0, 0, 70, 70))).records == 1


def tags_of(path):
    import rasterio

    with rasterio.open(path) as dataset:
        return dataset.tags()


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_overwrite_replaces_a_date_whose_file_changed(write_tif, tmp_path, rng):
    first, second = rng.integers(1, 255, (2, 70, 80, 4)).astype(np.uint8)
    source, out = tmp_path / "places", tmp_path / "out"
    path = write_tif("places/a/2020-01-01.tif", first, descriptions=BANDS)
    ingest(source, out, as_="images")
    kept = (out / "a/2020-01-01.tif").stat()
    ingest(source, out, as_="images", overwrite=True)
    assert (out / "a/2020-01-01.tif").stat().st_mtime_ns == kept.st_mtime_ns
    write_tif("places/a/2020-01-01.tif", second, descriptions=BANDS)
    os.utime(path, (kept.st_mtime + 1, kept.st_mtime + 1))
    for overwrite, pixels in ((False, first), (True, second)):
        ingest(source, out, as_="images", overwrite=overwrite)
        np.testing.assert_array_equal(read_raster(out / "a/2020-01-01.tif")[0], pixels)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_the_day_in_a_name_is_corrected_by_the_time_in_the_tags(tmp_path, rng):
    pixels = rng.integers(1, 9000, (80, 80, 4)).astype(np.uint16)
    at = (10, 0, 604_000, 0, -10, 8_118_000)  # 178 degrees east

    def write(name, when, crs="EPSG:32760"):
        write_date(tmp_path / "in" / name, pixels, BANDS, crs, at if crs else None, Provenance(datetime=when))

    write("fiji/2023-08-21.tif", "2023-08-21T22:19:41Z")
    write("fiji/2023-09.tif", "2023-09-11T11:19:41+12:00")
    write("fiji/2023-10-01.tif", "2020-01-01T11:00:00Z")  # contradicts the name, which counts
    write("local/2023-08-21.tif", "2023-08-22T00:19:41+02:00", crs=None)
    images_of(tmp_path / "in", tmp_path / "out")
    written = sorted(
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.tif")
    )
    assert written == [
        "fiji/2023-08-22.tif",
        "fiji/2023-09-11.tif",
        "fiji/2023-10-01.tif",
        "local/2023-08-21.tif",
    ]
    write("fiji/2023-08-22.tif", "2023-08-22T00:19:41Z")
    with pytest.raises(MissingInputError, match=r"both fiji of 2023-08-22. Expected one file per date"):
        images_of(tmp_path / "in", tmp_path / "two")


def test_images_without_a_crs(write_tif, tmp_path, rng):
    pixels = rng.integers(1, 255, (70, 70, 3)).astype(np.uint8)
    for year in (2018, 2019):
        write_tif(f"places/p/{year}.tif", pixels)
    assert images_of(tmp_path / "places", tmp_path / "out").records == 2
    assert np.array_equal(read_raster(tmp_path / "out/p/2018.tif")[0], pixels)
    with pytest.raises(MissingInputError, match="no CRS"):
        images_of(tmp_path / "places", tmp_path / "other", bbox="1,44,2,45")


def test_other_zips_next_to_geotiffs_are_ignored(write_tif, tmp_path, rng):
    for year in (2018, 2019):
        write_tif(f"places/p/{year}.tif", rng.integers(300, 5000, (70, 70, 4)).astype(np.uint16))
    (tmp_path / "places" / "notes.zip").write_bytes(b"none")
    assert ingest(tmp_path / "places", tmp_path / "s").records == 1


@pytest.mark.parametrize(
    ("name", "place", "date"),
    [
        ("https://host/data/paris/2019-07-23.tif", "paris", "2019-07-23"),
        ("https://host/S2A_31TCJ_20230706_0_L2A/stack.tif?sig=x", "31TCJ", "2023-07-06"),
        ("https://host/all/T31TCJ_20230706T105621_10m.TIF", "31TCJ", "2023-07-06"),
        ("https://host.org/2019-07.tif", "host.org", "2019-07"),
        ("http://host/s%C3%A3o%20paulo/2019.tiff", "são_paulo", "2019"),
        ("http://host/%2e%2e/2019.tif", "place", "2019"),
        ("rome/before.tif", "rome", "before"),
    ],
)
def test_places_and_dates_are_read_from_addresses(tmp_path, name, place, date):
    path = tmp_path / "list.txt"
    path.write_text(name)
    (cog,) = find_cogs(str(path))
    assert (cog.place, cog.date) == (place, date)


def test_a_list_can_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "list.txt").write_text("http://h/31TCJ/2020-01-01.tif\n", encoding="utf-8-sig")
    assert [cog.address for cog in find_cogs(str(tmp_path / "list.txt"))] == ["http://h/31TCJ/2020-01-01.tif"]


def test_invalid_lists_are_explained(tmp_path):
    path = tmp_path / "list.txt"
    with pytest.raises(MissingInputError, match="no such file"):
        find_cogs(str(path))
    path.write_text("# nothing\n")
    with pytest.raises(MissingInputError, match="empty"):
        find_cogs(str(path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MissingInputError, match="not a text file"):
        find_cogs(str(path))
    path.write_text("https://host/p/first.tif")
    with pytest.raises(MissingInputError, match="no date in its name"):
        find_cogs(str(path))
    path.write_text("https://host/p/2019-01-01_a.tif\nhttps://host/p/2019-01-01_b.tif")
    with pytest.raises(MissingInputError, match="are both p of 2019-01-01"):
        find_cogs(str(path))


def test_the_command_takes_addresses(web, big, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    address = web.of("31TCJ/2023-07-06.tif")
    how = ["--as", "images", "--out", "p", "--bbox", box_of(0, 0, 100, 100)]
    done = CliRunner().invoke(app, ["ingest", address, *how])
    assert done.exit_code == 0 and done.stdout == "p: 1 dates of 1 places\n"
    done = CliRunner().invoke(app, ["ingest", address.replace("2023", "2024"), *how])
    assert done.exit_code == 1 and "there is no such file" in done.stderr


def test_damaged_local_files_are_explained(tmp_path):
    with pytest.raises(ArrayError, match=r"2019\.tif: no such file|cannot be read"):
        (tmp_path / "2019.tif").write_bytes(b"no")
        images_of(tmp_path / "2019.tif", tmp_path / "out")
    with pytest.raises(ConfigError, match="--bbox"):
        images_of(tmp_path / "2019.tif", tmp_path / "out", bbox="1,2")
