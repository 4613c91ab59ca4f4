"""Chips of any size and format: read as they are, or refused in one sentence."""

import numpy as np
import pytest

from tfrecords.errors import ArrayError, BandsError, MissingInputError
from tfrecords.read import read_images, read_patches, read_queries
from tfrecords.schema import Chips, Georeference, Patches, days_of

GROUND = {"crs": "EPSG:32631", "transform": (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_600_000.0)}


def dn(rng, *shape):
    return rng.integers(300, 3000, shape).astype(np.uint16)


def picture(path, pixels, mode=None, **options):
    """Write bytes with Pillow."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.squeeze(pixels), mode=mode).save(path, **options)
    return path


def grey(rng, *shape):
    return rng.integers(0, 256, shape).astype(np.uint8)


# --- GeoTIFFs and arrays --------------------------------------------------------------------------


def test_chips_differ_in_size_bands_and_dtype(rng, tmp_path, write_tif):
    first, second = dn(rng, 64, 90, 4), dn(rng, 70, 64, 1).astype(np.float32)
    write_tif("chips/a.tif", first, nodata=0, **GROUND)
    write_tif("chips/b.tif", second, descriptions=("B08",), nodata=np.nan)
    asked = read_queries(tmp_path / "chips")
    assert isinstance(asked, Chips) and len(asked) == 2
    assert asked.sizes.tolist() == [[64, 90], [70, 64]] and asked.patch_ids.tolist() == [0, 1]
    assert asked.bands == (("B04", "B03", "B02", "B08"), ("B08",))
    assert asked.georeferences == (Georeference(**GROUND), None)
    a, b = asked
    np.testing.assert_array_equal(a.pixels, first)
    np.testing.assert_array_equal(b.pixels, second)
    assert (a.nodata, a.units, a.image_id, b.image_id) == (0, "dn", 0, 1) and np.isnan(b.nodata)
    assert asked.read(1).path.endswith("b.tif") and "2 GeoTIFFs" in asked.note


def test_equal_chips_of_64_px_become_one_array(rng, tmp_path, write_tif):
    for name in "ab":
        write_tif(f"chips/{name}.tif", dn(rng, 64, 64, 4), **GROUND)
    asked = read_queries(tmp_path / "chips")
    assert isinstance(asked, Patches) and asked.georeferences == (Georeference(**GROUND),) * 2
    assert isinstance(read_queries(dn(rng, 3, 64, 64, 4)), Patches)


def test_arrays_of_any_size(rng, tmp_path):
    pixels = dn(rng, 3, 80, 70, 4)
    np.save(tmp_path / "chips.npy", pixels)
    for source in (pixels, tmp_path / "chips.npy"):
        asked = read_queries(source)
        assert isinstance(asked, Chips) and asked.sizes.tolist() == [[80, 70]] * 3
        np.testing.assert_array_equal(np.stack([chip.pixels for chip in asked]), pixels)


def test_date_comes_from_the_tag_else_from_the_name(rng, tmp_path, write_tif):
    import rasterio

    names = ("S2A_20190723T100031.tif", "2018-05.tif", "tile_2048.tif", "2017-01-01.tif")
    paths = [write_tif(f"scenes/{name}", dn(rng, 64, 64, 4), **GROUND) for name in names]
    tags = {"DATETIME": "2016-12-31T10:50:31Z", "SOURCE": "S2B", "BASELINE": "04.00", "CLOUD_COVER": "1.5"}
    with rasterio.open(paths[3], "r+") as file:
        file.update_tags(**tags)
    by_name = {image.path.rsplit("/")[-1]: image for image in read_images(tmp_path / "scenes")}
    assert [by_name[name].date for name in names] == ["2019-07-23", "2018-05", None, "2016-12-31"]
    assert by_name[names[3]].provenance.tags() == tags and by_name[names[0]].provenance.tags() == {}


@pytest.mark.parametrize(
    ("text", "east", "utc"),
    [
        ("2023-08-21T22:19:41Z", "2023-08-22", "2023-08-21"),
        ("2023-08-21T22:19:41", "2023-08-22", "2023-08-21"),
        ("2023-08-22T00:19:41+02:00", "2023-08-22", "2023-08-21"),
        ("2023-08-21T00:07:11.024Z", "2023-08-21", "2023-08-21"),
        ("2023-08-20T22:00:00-05:00", "2023-08-21", "2023-08-21"),
        ("2023:08:21 22:19:41", "2023-08-22", "2023-08-21"),
        ("2023-08-21", "2023-08-21", "2023-08-21"),
        ("2023-08", "2023-08", "2023-08"),
        ("yesterday", None, None),
    ],
)
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_the_acquisition_day_is_the_solar_day_else_that_of_utc(rng, tmp_path, write_tif, text, east, utc):
    import rasterio

    at_178_east = {"crs": "EPSG:32760", "transform": (10, 0, 604_000, 0, -10, 8_118_000)}
    for name, where, day in (("east.tif", at_178_east, east), ("local.tif", {}, utc)):
        path = write_tif(name, dn(rng, 64, 64, 4), **where)
        with rasterio.open(path, "r+") as file:
            file.update_tags(DATETIME=text)
        assert [image.date for image in read_images(path)] == [day]


@pytest.mark.parametrize(
    ("date", "days"),
    [
        ("2019", ("2019-01-01", "2019-12-31")),
        ("2020-02", ("2020-02-01", "2020-02-29")),
        ("2020-12", ("2020-12-01", "2020-12-31")),
        ("2020-12-05", ("2020-12-05", "2020-12-05")),
        ("2020-12-05T10:00:00Z", ("2020-12-05", "2020-12-05")),
        ("2020-13", None),
        ("2019-02-29", None),
        ("before", None),
        ("", None),
    ],
)
def test_days_of_a_date(date, days):
    assert days_of(date) == days


# --- pictures -------------------------------------------------------------------------------------


def test_png_is_read_bit_by_bit(rng, tmp_path):
    colour, one, deep = grey(rng, 64, 80, 3), grey(rng, 64, 64), dn(rng, 65, 64)
    picture(tmp_path / "p/a.png", colour)
    picture(tmp_path / "p/b.png", one)
    picture(tmp_path / "p/c.PNG", deep)
    asked = read_queries(tmp_path / "p")
    assert asked.bands == (("B04", "B03", "B02"), ("unknown",), ("unknown",))
    a, b, c = asked
    assert [chip.units for chip in (a, b, c)] == ["byte", "byte", "dn"]
    np.testing.assert_array_equal(a.pixels, colour)
    np.testing.assert_array_equal(b.pixels[..., 0], one)
    np.testing.assert_array_equal(c.pixels[..., 0], deep)
    assert asked.georeferences == (None,) * 3 and "3 files" in asked.note


def test_jpeg_has_three_bands_of_bytes(rng, tmp_path):
    smooth = np.repeat(np.repeat(grey(rng, 9, 12, 3), 8, 0), 8, 1)
    asked = read_queries(picture(tmp_path / "a.jpg", smooth, quality=95))
    (chip,) = asked
    assert (chip.bands, chip.units, chip.nodata) == (("B04", "B03", "B02"), "byte", None)
    assert np.abs(chip.pixels.astype(int) - smooth).mean() < 12


def test_picture_of_64_px_is_a_patch(rng, tmp_path):
    pixels = grey(rng, 64, 64, 3)
    np.testing.assert_array_equal(read_patches(picture(tmp_path / "a.png", pixels)).pixels[0], pixels)


def test_pictures_in_a_folder_of_geotiffs_are_skipped(rng, tmp_path, write_tif):
    write_tif("chips/b.tif", dn(rng, 64, 64, 4))
    picture(tmp_path / "chips/a.png", grey(rng, 64, 64, 3))
    assert [p.rsplit("/")[-1] for p in read_queries(tmp_path / "chips").paths] == ["b.tif"]


def test_pictures_are_refused_as_images(rng, tmp_path):
    path = picture(tmp_path / "p/a.png", grey(rng, 64, 64, 3))
    with pytest.raises(MissingInputError, match=r"cannot read \.png as images"):
        read_images(path)
    with pytest.raises(MissingInputError, match=r"no \.tif or \.tiff file"):
        read_images(tmp_path / "p")


@pytest.mark.parametrize(
    ("shape", "mode", "told"),
    [((64, 64, 4), "RGBA", "alpha"), ((64, 64, 2), "LA", "alpha"), ((64, 64), "P", "palette")],
)
def test_png_with_alpha_or_palette_is_refused_with_the_fix(rng, tmp_path, shape, mode, told):
    from PIL import Image

    image = (
        Image.fromarray(grey(rng, *shape)) if mode != "P" else Image.fromarray(grey(rng, *shape)).convert("P")
    )
    if mode == "P":
        image.putpalette(list(grey(rng, 768)))
    assert image.mode == mode
    image.save(tmp_path / "a.png")
    with pytest.raises(ArrayError, match=rf"a\.png: .*{told}.*convert\('RGB'\)"):
        read_queries(tmp_path / "a.png")


@pytest.mark.parametrize("ending", ["png", "jpg", "tif"])
def test_unreadable_file_is_named(tmp_path, ending):
    (tmp_path / f"a.{ending}").write_bytes(b"no picture")
    with pytest.raises(ArrayError, match=rf"a\.{ending} cannot be read as a (PNG|JPEG|GeoTIFF)"):
        read_queries(tmp_path / f"a.{ending}")


@pytest.mark.parametrize("ending", ["png", "jpg"])
@pytest.mark.parametrize("share", [0.01, 0.2, 0.9, 0.999])
def test_truncated_picture_is_named(rng, tmp_path, ending, share):
    path = picture(tmp_path / f"a.{ending}", grey(rng, 200, 200, 3))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ArrayError, match=r"a\.(png|jpg) cannot be read as a (PNG|JPEG)"):
        list(read_queries(path))


def test_png_with_a_flipped_byte_is_named(rng, tmp_path):
    path = picture(tmp_path / "a.png", grey(rng, 64, 64, 3))
    whole = path.read_bytes()
    for at in range(0, len(whole), len(whole) // 40):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        with pytest.raises(ArrayError, match=r"a\.png"):
            read_queries(path)


# --- what is refused ------------------------------------------------------------------------------


def test_chips_under_64_px_are_refused(rng, tmp_path, write_tif):
    with pytest.raises(ArrayError, match=r"63 x 90 .*at least 64 x 64"):
        read_queries(write_tif("a.tif", dn(rng, 63, 90, 4)))
    with pytest.raises(ArrayError, match="at least 64 x 64"):
        read_queries(dn(rng, 2, 64, 60, 4))
    with pytest.raises(ArrayError, match="at least 64 x 64"):
        read_queries(picture(tmp_path / "a.png", grey(rng, 30, 90, 3)))


def test_values_of_a_chip_are_checked_when_it_is_read(rng, tmp_path, write_tif):
    bad = rng.uniform(0, 1, (70, 64, 4)).astype(np.float32)
    write_tif("chips/a.tif", bad)
    bad[5, 6, 2] = np.inf
    write_tif("chips/b.tif", bad)
    asked = read_queries(tmp_path / "chips", units="reflectance")
    asked.read(0)
    with pytest.raises(ArrayError, match=r"b\.tif: 1 values are NaN or infinite"):
        asked.read(1)


def test_bands_without_names_are_refused(rng, write_tif):
    path = write_tif("a.tif", dn(rng, 70, 64, 2))
    with pytest.raises(BandsError):
        read_queries(path)
    assert read_queries(path, bands=("B04", "B08")).bands == (("B04", "B08"),)
