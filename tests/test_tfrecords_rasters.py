"""GeoTIFFs: ranks, bands, units, nodata, tags, and notes; what is missing or truncated is named."""

import numpy as np
import pytest

from tfrecords.errors import (
    ArrayError,
    GridError,
    MissingInputError,
    UnitsError,
)
from tfrecords.read import (
    read_images,
    read_patches,
    read_queries,
)
from tfrecords.schema import (
    to_scaled,
)

TILE = (10.0, 0.0, 600000.0, 0.0, -10.0, 5700000.0)


def dn(rng, *shape):
    return rng.integers(300, 4000, shape).astype(np.uint16)


def test_ids_are_ranks_among_the_tifs(tmp_path, rng, write_tif):
    order = ["B.TIF", "a/z.tiff", "a.tif", "b/c/d.TiFF"]
    for number, name in enumerate(order):
        write_tif(name, np.full((64, 80, 1), number + 1000, np.uint16))
    for name in ("notes.txt", "a/._z.tif", ".cache/x.tif", "b.tif.aux.xml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
    got = list(read_images(tmp_path))
    expected = sorted(order)  # POSIX paths: capitals first, "a.tif" before "a/z.tiff"
    assert [i.image_id for i in got] == [0, 1, 2, 3]
    assert [i.path for i in got] == [(tmp_path / n).as_posix() for n in expected]
    assert [int(i.pixels[0, 0, 0]) - 1000 for i in got] == [order.index(n) for n in expected]


def test_globs_and_single_files(tmp_path, write_tif):
    for name in ("b1.tif", "b2.tif", "c.tif"):
        write_tif(name, np.full((64, 64, 1), 5, np.uint8))
    assert [i.path[-6:] for i in read_images(f"{tmp_path}/b*")] == ["b1.tif", "b2.tif"]
    assert [(i.image_id, i.units) for i in read_images(tmp_path / "c.tif")] == [(0, "byte")]


def test_bands_come_from_descriptions_and_masks_from_nodata(write_tif, rng):
    pixels = dn(rng, 70, 66, 4)
    pixels[:5] = 7
    path = write_tif(
        "a.tif",
        pixels,
        descriptions=["B11", "nir", "Red", "b3"],
        nodata=7,
        crs="EPSG:32631",
        transform=TILE,
        photometric="RGB",  # GDAL calls the fourth band alpha then
    )
    (image,) = read_images(path)
    assert image.bands == ("B11", "B08", "B04", "B03") and image.nodata == 7
    assert image.crs == "EPSG:32631" and image.transform == TILE
    np.testing.assert_array_equal(image.pixels, pixels)
    assert np.isnan(image.scaled()[:5]).all() and not np.isnan(image.scaled()[5:]).any()
    (image,) = read_images(path, bands=["a", "b", "c", "d"])
    assert image.bands == ("a", "b", "c", "d")


def test_bytes_without_a_tag_have_no_nodata(write_tif):
    (image,) = read_images(write_tif("a.tif", np.zeros((64, 64, 3), np.uint8)))
    assert image.nodata is None and image.crs is None and image.transform is None
    assert not np.isnan(image.scaled()).any()
    (image,) = read_images(write_tif("b.tif", np.zeros((64, 64, 3), np.uint16)))
    assert image.nodata == 0 and np.isnan(image.scaled()).all()


def test_nan_is_nodata_if_it_is_the_tag(write_tif):
    pixels = np.full((64, 64, 4), 0.25, np.float32)
    pixels[0, 0] = np.nan
    (image,) = read_images(write_tif("tagged.tif", pixels, nodata=np.nan))
    assert np.isnan(image.scaled()).all(axis=-1).sum() == 1
    with pytest.raises(ArrayError, match=r"plain\.tif: 4 values are NaN"):
        list(read_images(write_tif("plain.tif", pixels)))


def test_a_folder_may_mix_dtypes_bands_and_sizes(tmp_path, rng, write_tif):
    write_tif("a.tif", dn(rng, 64, 64, 4))
    write_tif("b.tif", np.full((65, 90, 3), 5, np.uint8))
    write_tif("c.tif", np.full((64, 64, 1), 0.5, np.float32) * -1)
    write_tif("d.tif", np.full((64, 64, 1), -0.5, np.float32))
    images = read_images(tmp_path)
    assert [i.units for i in images] == ["dn", "byte", "scaled", "scaled"]
    assert (
        "byte, B04 B03 B02 (1 files); dn, B04 B03 B02 B08 (1 files); scaled, unknown (2 files)" in images.note
    )


def test_each_file_of_a_folder_has_its_units(tmp_path, rng, write_tif):
    ground = [dn(rng, 64, 64, 4).astype(np.float32) for _ in range(4)]
    write_tif("a.tif", ground[0])
    write_tif("b.tif", ground[1] / 10000)
    glint = ground[2] / 10000
    glint[30, 31, :3] = 2.41
    write_tif("c/glint.tif", glint)
    write_tif("d.tif", ground[3])
    write_tif("e.tif", np.zeros((64, 64, 4), np.float32))
    for images in (read_images(tmp_path), read_queries(tmp_path)):
        assert [i.units for i in images] == ["dn", "reflectance", "reflectance", "dn", "dn"]
        for image, pixels in zip(images, ground, strict=False):
            expected = to_scaled(pixels, "dn", 0)
            different = np.abs(np.nan_to_num(image.scaled()) - np.nan_to_num(expected)) > 1e-5
            assert different.sum() <= 3
        note = images.note
        assert "units differ from dn in" in note and "b.tif (reflectance), " in note
        assert note.endswith("glint.tif (reflectance)") and "a.tif" not in note
    with pytest.raises(UnitsError, match=r"b\.tif looks like reflectance; .*a\.tif like dn"):
        read_patches(tmp_path)


PLACE = {"crs": "EPSG:32631", "transform": TILE}


def tag(path, scale, offset):
    import rasterio

    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = scale, offset
    return path


@pytest.mark.parametrize(
    ("scale", "offset", "dtype", "nodata"),
    [
        (2e-5, -0.2, np.uint16, 0),  # Landsat collection 2
        (2.75e-5, -0.2, np.uint16, None),  # without a tag 0 is nodata
        (1e-4, 0, np.int16, -9999),
        (1e-4, -0.1, np.uint16, 65535),  # Sentinel-2 from baseline 04.00 on
        (0.5, 0, np.float32, np.nan),
        (1 / 255, 0, np.uint8, 255),
    ],
)
def test_tags_scale_and_offset_are_applied(rng, write_tif, scale, offset, dtype, nodata):
    reflectance = rng.uniform(0.0 if dtype == np.uint8 else -0.05, 0.4, (90, 70, 4))
    stored = (reflectance - offset) / scale
    stored = (stored if dtype == np.float32 else stored.round()).astype(dtype)
    stored[5, 6] = 0 if nodata is None else nodata
    path = tag(write_tif("a.tif", stored, nodata=nodata, **PLACE), (scale,) * 4, (offset,) * 4)
    for images in (read_images(path), read_queries(path)):
        assert f"tags SCALE and OFFSET are applied to 1 files (e.g. {path}: scale {scale:g}" in images.note
        (image,) = images
        assert image.units == "reflectance" and "reflectance (a guess" not in images.note
        nothing = np.isnan(image.scaled()).all(-1)
        assert nothing[5, 6] and nothing.sum() == 1
        error = np.abs(image.pixels - reflectance)[~nothing]
        assert error.max() < (1e-6 if dtype == np.float32 else 0.51 * scale)


def test_each_band_has_its_scale_and_zero_is_refused(rng, write_tif):
    stored = dn(rng, 64, 64, 2)
    path = tag(write_tif("a.tif", stored, descriptions=("B04", "B08"), **PLACE), (1e-4, 2e-4), (0, -0.1))
    (image,) = read_images(path)
    np.testing.assert_allclose(image.pixels, stored * [1e-4, 2e-4] + [0, -0.1], rtol=1e-6, atol=1e-7)
    digital = tag(write_tif("b.tif", stored, descriptions=("B04", "B08"), **PLACE), (1, 1), (-1000, -1000))
    (image,) = read_images(digital)
    assert image.units == "dn" and image.pixels.max() == stored.max() - 1000
    with pytest.raises(ArrayError, match=r"c\.tif: its tags are SCALE \(0\.0, 1\.0\)"):
        read_images(tag(write_tif("c.tif", stored, descriptions=("B04", "B08"), **PLACE), (0, 1), (0, 0)))


def test_reflectance_next_to_scaled_files_is_ambiguous(tmp_path, rng, write_tif):
    pixels = dn(rng, 64, 64, 4).astype(np.float32)
    write_tif("a.tif", to_scaled(pixels, "dn", 0))
    write_tif("b.tif", pixels / 10000)
    with pytest.raises(UnitsError, match=r"b\.tif: .* reflectance and scaled alike, and .*a\.tif is scaled"):
        read_images(tmp_path)


def test_an_array_that_mixes_units_is_refused(rng):
    pixels = dn(rng, 40, 64, 64, 4).astype(np.float32)
    pixels[1] /= 10000
    with pytest.raises(UnitsError, match=r"image 1: values up to .* look like reflectance"):
        list(read_images(pixels))
    with pytest.raises(UnitsError, match=r"patch 1: values up to .* look like reflectance"):
        read_patches(pixels)
    whole = pixels[2:4] * 0 + 1  # dark water
    assert read_patches(np.concatenate([pixels[5:9], whole])).units == "dn"
    reflectance = np.delete(pixels, 1, axis=0) / 10000
    reflectance[7, 5:7, 5] = 2.41  # glint
    assert [i.units for i in read_images(reflectance)] == ["reflectance"] * 39
    reflectance[1] *= 10000
    with pytest.raises(UnitsError, match=r"patch 1: .* values .* are outside the range of units"):
        read_patches(reflectance)


def test_note_names_other_resolutions(write_tif, rng):
    note = read_images(
        write_tif("a.tif", dn(rng, 64, 64, 4), crs="EPSG:32631", transform=(20, 0, 5e5, 0, -20, 5e6))
    ).note
    assert "1 have pixels of another size than 10 m (e.g." in note and "20 x 20 m)" in note
    for latitude, text in ((0, "11.1 x 11.1 m)"), (60, "5.58 x 11.1 m)")):
        degrees = write_tif(
            "b.tif", dn(rng, 64, 64, 4), crs="EPSG:4326", transform=(1e-4, 0, 0, 0, -1e-4, latitude)
        )
        assert text in read_images(degrees).note


def test_missing_inputs_are_named(tmp_path, write_tif):
    for source in (tmp_path, tmp_path / "x.npy", f"{tmp_path}/*.tif", tmp_path / "none"):
        with pytest.raises(MissingInputError, match="expected images as"):
            read_images(source)
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(MissingInputError, match=r"cannot read \.png as images"):
        read_images(tmp_path / "a.png")
    (tmp_path / "a.tif").write_bytes(b"II*\0 damaged")
    with pytest.raises(ArrayError, match=r"a\.tif cannot be read as a GeoTIFF"):
        read_images(tmp_path / "a.tif")
    with pytest.raises(GridError, match=r"small\.tif has 63 x 64 pixels"):
        read_images(write_tif("small.tif", np.zeros((63, 64, 1), np.uint8)))


def test_truncated_geotiff_is_named(tmp_path, rng, write_tif):
    path = write_tif("a.tif", dn(rng, 128, 128, 4))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ArrayError, match=r"a\.tif cannot be read"):
        list(read_images(path))
