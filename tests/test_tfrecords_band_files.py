"""Files of one band each are one image, and whole images stay apart, whatever their names."""

from pathlib import Path

import numpy as np
import pytest
from engine import digital, located, small_encoder, texture

from retrieval.ingest import find_places, ingest
from retrieval.pipeline import build_index
from tfrecords.errors import ArrayError, BandsError, GridError, RetrieveError
from tfrecords.read import read_images, read_patches, read_queries
from tfrecords.schema import BANDS, Chips, Patches

CRS = "EPSG:32631"
UP = (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_600_000.0)
SCENE = "T31TCJ_20190707T105621"


@pytest.fixture
def write_bands(write_tif):
    """A function that writes each band (h, w) into a separate file."""

    def write(pixels, names, *, crs=CRS, transform=UP, **more):
        for band, name in zip(np.moveaxis(pixels, -1, 0), names, strict=True):
            write_tif(name, band[..., None], crs=crs, transform=transform, **more)

    return write


def ground(rng, *size, bands=4):
    return rng.integers(300, 4000, (*(size or (70, 80)), bands)).astype(np.uint16)


def bands_of(image, names=BANDS):
    return image.pixels[..., [image.bands.index(name) for name in names]]


@pytest.mark.parametrize(
    ("names", "bands"),
    [
        ([f"{SCENE}_{b}.tif" for b in BANDS], BANDS),
        ([f"{SCENE}_{b}_10m.TIF" for b in BANDS], BANDS),
        ([f"{SCENE}/{b}.tif" for b in BANDS], BANDS),
        ([f"a.{b.lower()}.tiff" for b in BANDS], BANDS),
        (["x_B4.tif", "x_B3.tif", "x_B2.tif", "x_B8A.tif"], ("B04", "B03", "B02", "B8A")),
        (["red.tif", "green.tif", "blue.tif", "nir.tif"], BANDS),
        ([f"ga_s2_2019-07-07_nbart_{b}.tif" for b in ("red", "green", "blue", "nir_1")], BANDS),
        ([f"S2_{b}.tif" for b in ("red", "green", "blue", "rededge1")], ("B04", "B03", "B02", "B05")),
        (
            [f"LC08_L2SP_198024_20200707_20200913_02_T1_SR_B{n}.TIF" for n in (4, 3, 2, 5)],
            ("B04", "B03", "B02", "B8A"),
        ),
        ([f"LT05_L1TP_198024_19900707_T1_B{n}.TIF" for n in (3, 2, 1, 7)], ("B04", "B03", "B02", "B12")),
        (
            [f"LE07_L2SP_198024_20010707_02_T1_SR_B{n}.TIF" for n in (3, 2, 1, 5)],
            ("B04", "B03", "B02", "B11"),
        ),
        (
            [f"HLS.L30.T17SLU.2020209T160531.v2.0.B{n}.tif" for n in ("04", "03", "02", "06")],
            (*BANDS[:3], "B11"),
        ),
        (
            [f"HLS.S30.T17SLU.2020209T160531.v2.0.B{n}.tif" for n in ("04", "03", "02", "06")],
            (*BANDS[:3], "B06"),
        ),
    ],
)
def test_files_of_one_scene_are_one_image(tmp_path, rng, write_bands, names, bands):
    pixels = ground(rng)
    write_bands(pixels, names)
    images = read_images(tmp_path)
    (image,) = images
    np.testing.assert_array_equal(bands_of(image, bands), pixels)
    assert image.path == min((tmp_path / name).as_posix() for name in names)
    assert (image.crs, image.transform, image.units) == (CRS, UP, "dn")
    assert "1 images, dn" in images.note and "4 files of one band each are 1 images" in images.note
    (chip,) = read_queries(tmp_path)
    np.testing.assert_array_equal(bands_of(chip, bands), pixels)


def test_scenes_count_once_under_their_first_file(tmp_path, rng, write_bands, write_tif):
    whole = ground(rng)
    write_tif("2018-05-06.tif", whole, crs=CRS, transform=UP)
    for day in ("2019-01-02", "2020-03-04"):
        write_bands(ground(rng), [f"s/{day}_{b}.tif" for b in BANDS])
    write_tif("z.tif", ground(rng), crs=CRS, transform=UP)
    images = list(read_images(tmp_path))
    assert [image.image_id for image in images] == [0, 1, 2, 3]
    assert [Path(image.path).name for image in images] == [
        "2018-05-06.tif",
        "2019-01-02_B02.tif",
        "2020-03-04_B02.tif",
        "z.tif",
    ]
    assert [image.date for image in images] == ["2018-05-06", "2019-01-02", "2020-03-04", None]
    np.testing.assert_array_equal(images[0].pixels, whole)


def test_globs_choose_bands(tmp_path, rng, write_bands):
    pixels = ground(rng)
    write_bands(pixels, [f"{SCENE}_{b}.tif" for b in BANDS])
    (image,) = read_images(str(tmp_path / "*_B0[234].tif"))
    assert image.bands == ("B02", "B03", "B04")
    (image,) = read_images(str(tmp_path / "*_B08.tif"))  # one file alone is a whole image
    assert image.bands == ("unknown",)


@pytest.mark.parametrize(
    ("extra", "count"),
    [
        (f"{SCENE}_TCI.tif", 3),
        (f"{SCENE}_TCI_10m.tif", 3),
        (f"{SCENE}_AOT_10m.tif", 1),
        (f"{SCENE}_SCL_20m.tif", 1),
        (f"{SCENE}_QA_PIXEL.tif", 1),
    ],
)
def test_previews_and_masks_beside_bands_are_left_out(tmp_path, rng, write_bands, write_tif, extra, count):
    write_bands(ground(rng), [f"{SCENE}_{b}.tif" for b in BANDS])
    write_tif(extra, ground(rng, bands=count), crs=CRS, transform=UP)
    images = read_images(tmp_path)
    assert (
        len(images) == 1
        and f"1 files next to them hold no band and are left out ({tmp_path / extra})" in images.note
    )


def test_heat_of_landsat_is_left_out(tmp_path, rng, write_bands):
    stem = "LC09_L2SP_198024_20220707_02_T1"
    names = [f"{stem}_SR_B2.TIF", f"{stem}_SR_B3.TIF", f"{stem}_ST_B10.TIF", f"{stem}_SR_QA_AEROSOL.TIF"]
    write_bands(ground(rng), names)
    images = read_images(tmp_path)
    assert [image.bands for image in images] == [("B02", "B03")] and "2 files next to them" in images.note


def test_a_missing_band_is_named(tmp_path, rng, write_bands):
    write_bands(ground(rng), [f"a_{b}.tif" for b in BANDS])
    write_bands(ground(rng, bands=3), [f"b_{b}.tif" for b in BANDS[:3]])
    write_bands(ground(rng, bands=1), ["c_B04.tif"])
    images = read_images(tmp_path)
    assert [image.bands for image in images] == [
        ("B02", "B03", "B04", "B08"),
        ("B02", "B03", "B04"),
        ("B04",),
    ]
    assert (
        f"{tmp_path / 'b_B02.tif'} has no B08, {tmp_path / 'c_B04.tif'} has no B02, B03, B08" in images.note
    )


@pytest.mark.parametrize(
    ("size", "transform", "message"),
    [
        ((35, 40), (20.0, 0.0, UP[2], 0.0, -20.0, UP[5]), r"_B11.tif has 35 x 40 pixels, .*_B02.tif 70 x 80"),
        ((70, 80), (10.0, 0.0, UP[2] + 5, 0.0, -10.0, UP[5]), r"_B11.tif lies on another grid than"),
        ((71, 80), (10.0, 0.0, UP[2], 0.0, -10.0, UP[5]), r"has 71 x 80 pixels"),
        ((140, 160), (5.0, 0.0, UP[2] + 2.5, 0.0, -5.0, UP[5]), r"has 140 x 160 pixels"),
        ((35, 40), None, r"has 35 x 40 pixels"),
    ],
)
@pytest.mark.parametrize("read", [read_images, read_queries, find_places])
def test_bands_of_other_grids_are_refused_by_name(
    tmp_path, rng, write_bands, write_tif, read, size, transform, message
):
    crs = CRS if transform else None
    write_bands(ground(rng), [f"{SCENE}_{b}.tif" for b in BANDS], crs=crs, transform=UP if crs else None)
    write_tif(f"{SCENE}_B11.tif", ground(rng, *size, bands=1), crs=crs, transform=transform)
    with pytest.raises(GridError, match=message + r".*\*B0\[234\]\.tif"):
        read(tmp_path)


@pytest.mark.parametrize("more", [{"nodata": 0}, {"dtype": np.float32}])
def test_bands_of_other_dtype_or_nodata_are_refused_by_name(tmp_path, rng, write_bands, write_tif, more):
    write_bands(ground(rng), [f"{SCENE}_{b}.tif" for b in BANDS])
    band = ground(rng, bands=1).astype(more.pop("dtype", np.uint16))
    write_tif(f"{SCENE}_B11.tif", band, crs=CRS, transform=UP, **more)
    with pytest.raises(ArrayError, match=r"_B11.tif has dtype .*_B02.tif"):
        read_images(tmp_path)


def test_two_files_of_a_band_are_refused_by_name(tmp_path, rng, write_bands):
    write_bands(ground(rng, bands=3), ["x_B03.tif", "x_B04.tif", "x_red.tif"])
    with pytest.raises(BandsError, match=r"x_red.tif and .*x_B04.tif are both B04 of one image"):
        read_images(tmp_path)


@pytest.mark.parametrize(
    ("names", "bands", "shift"),
    [
        (["site_b1.tif", "site_b2.tif"], 4, 0),  # whole images, whatever their names
        (["site_b1.tif", "site_b2.tif"], 1, 10_000),  # other ground
        (["web01.tif", "web02.tif"], 1, 0),  # no band, but a word
        (["x_b13.tif", "x_b14.tif"], 1, 0),  # no band of any sensor
        (["a_B02.tif", "b_B03.tif"], 1, 0),  # two stems
        (["p/x_B02.tif", "q/x_B03.tif"], 1, 0),  # two folders
        (["x_B02_10m.tif", "x_B03_20m.tif"], 1, 0),  # two pixel sizes
        (["x_B02.tif", "x_B03.tiff"], 1, 0),  # two suffixes
        (["hundred.tif", "evergreen.tif"], 1, 0),
        (["2019_before.tif", "2019_after.tif"], 1, 0),
    ],
)
def test_whole_images_stay_apart(tmp_path, rng, write_tif, names, bands, shift):
    pixels = [ground(rng, bands=bands) for _ in names]
    for number, (name, one) in enumerate(zip(names, pixels, strict=True)):
        write_tif(name, one, crs=CRS, transform=(10.0, 0.0, UP[2] + number * shift, 0.0, -10.0, UP[5]))
    images = list(read_images(tmp_path))
    assert [image.path for image in images] == sorted((tmp_path / name).as_posix() for name in names)
    for image in images:
        at = names.index(Path(image.path).relative_to(tmp_path).as_posix())
        np.testing.assert_array_equal(image.pixels, pixels[at])
        assert image.bands == (BANDS if bands == 4 else ("unknown",))


@pytest.mark.parametrize(
    "names", [["b1.tif", "b2.tif"], ["x_B2.tif", "x_B3.tif"], ["chip_b01.tif", "chip_b02.tif"]]
)
def test_numbered_files_without_a_georeference_stay_apart(tmp_path, rng, write_tif, names):
    for name in names:
        write_tif(name, ground(rng, 64, 64, bands=1))
    assert [Path(image.path).name for image in read_images(tmp_path)] == names
    assert len(read_queries(tmp_path)) == 2


def test_the_users_names_do_not_mix_up_bands(tmp_path, rng, write_bands):
    pixels = ground(rng)
    write_bands(pixels, [f"{SCENE}_{b}.tif" for b in BANDS])
    (image,) = read_images(tmp_path, bands=BANDS)  # the same bands in another order than the files
    np.testing.assert_array_equal(bands_of(image), pixels)
    (image,) = read_images(tmp_path, bands=["B01", "B02", "B03", "B8A"])  # other names, in the files' order
    np.testing.assert_array_equal(image.pixels[..., 0], pixels[..., BANDS.index("B02")])
    assert image.bands == ("B01", "B02", "B03", "B8A")
    with pytest.raises(BandsError, match="2 names"):
        read_images(tmp_path, bands=["B04", "B03"])


def test_nodata_scale_and_offset_are_those_of_each_band(tmp_path, rng, write_bands):
    import rasterio

    pixels = ground(rng)
    pixels[:9, :9] = 0  # nodata in all bands
    pixels[20, 20, 0] = 0  # in one: ground
    write_bands(pixels, [f"{SCENE}_{b}.tif" for b in BANDS], nodata=0)
    for number, band in enumerate(BANDS):
        with rasterio.open(tmp_path / f"{SCENE}_{band}.tif", "r+") as dataset:
            dataset.scales, dataset.offsets = (1e-4 * (number + 1),), (0.1 * number,)
    (image,) = read_images(tmp_path, units="reflectance")
    found = bands_of(image)
    expected = pixels * (1e-4 * np.arange(1, 5)) + 0.1 * np.arange(4)
    assert np.isnan(found[:9, :9]).all() and np.isfinite(found[20, 20]).all()
    np.testing.assert_allclose(found[9:], expected[9:], atol=1e-6)


def test_bands_that_lie_south_up_are_read_north_up(tmp_path, rng, write_bands):
    pixels = ground(rng)
    south = (10.0, 0.0, UP[2], 0.0, 10.0, UP[5] - 700)
    write_bands(pixels[::-1], [f"{SCENE}_{b}.tif" for b in BANDS], transform=south)
    (image,) = read_images(tmp_path)
    np.testing.assert_array_equal(bands_of(image), pixels)
    assert image.transform == pytest.approx(UP)


def test_chips_of_one_file_per_band(tmp_path, rng, write_bands):
    chips = [ground(rng, 64, 64) for _ in range(3)]
    for number, pixels in enumerate(chips):
        write_bands(pixels, [f"chip{number}_{b}.tif" for b in BANDS], crs=None, transform=None)
    for read in (read_patches, read_queries):
        patches = read(tmp_path)
        assert isinstance(patches, Patches) and patches.patch_ids.tolist() == [0, 1, 2]
        assert [Path(path).name for path in patches.paths] == [f"chip{n}_B02.tif" for n in range(3)]
        order = [patches.bands.index(b) for b in BANDS]
        np.testing.assert_array_equal(np.asarray(patches.pixels)[..., order], np.stack(chips))
    write_bands(ground(rng, 80, 90), [f"large_{b}.tif" for b in BANDS], crs=None, transform=None)
    assert isinstance(read_queries(tmp_path), Chips) and len(read_queries(tmp_path)) == 4


def test_pictures_of_one_band_each(tmp_path, rng):
    from PIL import Image

    pixels = rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)
    for number, band in enumerate(BANDS[:3]):
        Image.fromarray(pixels[..., number]).save(tmp_path / f"q_{band}.png")
    patches = read_queries(tmp_path)
    order = [patches.bands.index(b) for b in BANDS[:3]]
    np.testing.assert_array_equal(np.asarray(patches.pixels)[..., order], pixels[None])


def test_jpeg_2000_of_sentinel_2(tmp_path, rng, write_tif):
    import rasterio.shutil

    pixels = ground(rng)
    (tmp_path / "R10m").mkdir()
    for band in (*BANDS, "AOT", "WVP", "TCI"):
        layer = pixels[..., [BANDS.index(band)]] if band in BANDS else pixels[..., :1]
        tif = write_tif("one.tif", layer, crs=CRS, transform=UP)
        name = tmp_path / "R10m" / f"{SCENE}_{band}_10m.jp2"
        rasterio.shutil.copy(tif, name, driver="JP2OpenJPEG", QUALITY=100, REVERSIBLE="YES")
        tif.unlink()
    images = read_images(tmp_path)
    (image,) = images
    np.testing.assert_array_equal(bands_of(image), pixels)
    assert image.crs == CRS and "3 files next to them" in images.note
    assert len(read_queries(str(tmp_path / "R10m" / "*_B0*.jp2"))) == 1


def test_a_vrt_over_band_files_is_read_where_it_is_named(tmp_path, rng, write_bands):
    pixels = ground(rng)
    write_bands(pixels, [f"{SCENE}_{b}.tif" for b in BANDS])
    sources = "".join(
        f'<VRTRasterBand dataType="UInt16" band="{number}"><SimpleSource><SourceFilename relativeToVRT="1">'
        f"{SCENE}_{band}.tif</SourceFilename></SimpleSource></VRTRasterBand>"
        for number, band in enumerate(BANDS, 1)
    )
    text = f'<VRTDataset rasterXSize="80" rasterYSize="70"><SRS>{CRS}</SRS>{sources}</VRTDataset>'
    (tmp_path / "scene.vrt").write_text(text)
    for read in (read_images, read_queries):
        (image,) = read(tmp_path / "scene.vrt")
        assert image.bands == BANDS
        np.testing.assert_array_equal(image.pixels, pixels)
    assert len(read_images(tmp_path)) == 1  # in the folder, the files themselves


def test_ingest_reads_dates_of_one_file_per_band(tmp_path, rng, write_bands, write_tif):
    dates = {"2019-07-07": ground(rng), "2020-07-07": ground(rng), "2021-07-07": ground(rng)}
    write_bands(dates["2019-07-07"], [f"src/p/S2_20190707_{b}.tif" for b in BANDS])
    write_bands(dates["2020-07-07"], [f"src/p/S2_2020-07-07/{b}.tif" for b in BANDS])
    write_tif("src/p/2021-07-07.tif", dates["2021-07-07"], crs=CRS, transform=UP)
    (place,) = find_places(tmp_path / "src")
    assert place.name == "p" and [file.date for file in place.files] == list(dates)
    report = ingest(tmp_path / "src", tmp_path / "out", as_="images")
    assert report.records == 3 and any("4 files of one band each" in note for note in report.notes)
    for image in read_images(tmp_path / "out"):
        np.testing.assert_array_equal(bands_of(image), dates[image.date])
    report = ingest(tmp_path / "src", tmp_path / "series")
    assert report.records == 1 and any("4 files of one band each" in note for note in report.notes)
    from tfrecords.read import read_series

    (series,) = read_series(tmp_path / "series")
    order = [series.bands.index(b) for b in BANDS]
    np.testing.assert_array_equal(series.pixels[..., order], np.stack(list(dates.values())))


def test_bands_on_another_grid_are_warped_like_whole_images(tmp_path, rng, write_bands, write_tif):
    smooth = np.kron(rng.integers(500, 3000, (10, 10, 4)), np.ones((10, 10, 1))).astype(np.uint16)
    moved = (10.0, 0.0, UP[2] + 50, 0.0, -10.0, UP[5])
    for folder, split in (("whole", False), ("split", True)):
        write_tif(f"{folder}/p/2019.tif", smooth, crs=CRS, transform=UP, nodata=0)
        if split:
            write_bands(smooth, [f"{folder}/p/2020_{b}.tif" for b in BANDS], transform=moved, nodata=0)
        else:
            write_tif(f"{folder}/p/2020.tif", smooth, crs=CRS, transform=moved, nodata=0)
        ingest(tmp_path / folder, tmp_path / f"{folder}_series")
    from tfrecords.read import read_series

    (whole,), (split) = (list(read_series(tmp_path / f"{name}_series")) for name in ("whole", "split"))
    order = [split[0].bands.index(b) for b in whole.bands]
    np.testing.assert_array_equal(split[0].pixels[..., order], whole.pixels)


def test_an_index_of_band_files_answers_like_one_of_whole_images(tmp_path, write_bands, write_tif):
    scenes = [digital(texture(128, 128, seed=seed)) for seed in range(2)]
    for number, pixels in enumerate(scenes):
        write_tif(f"whole/{number}.tif", pixels, crs=CRS, transform=UP)
        write_bands(pixels, [f"split/{number}_{b}.tif" for b in BANDS])
    patches = np.stack([pixels[20:84, 30:94] for pixels in scenes])
    answers = []
    for name in ("whole", "split"):
        index = build_index(tmp_path / name, tmp_path / f"{name}_index", encoder=small_encoder())
        located(index, patches, tmp_path / f"{name}.csv")
        answers.append((tmp_path / f"{name}.csv").read_text())
    assert answers[0] == answers[1] == "Patch ID,Result\n0,0 30 20\n1,1 30 20\n"


def test_a_damaged_band_is_named(tmp_path, rng, write_bands):
    write_bands(ground(rng), [f"{SCENE}_{b}.tif" for b in BANDS])
    (tmp_path / f"{SCENE}_B03.tif").write_bytes(b"II*\0 no image")
    with pytest.raises(RetrieveError, match=r"_B03.tif cannot be read as a GeoTIFF"):
        read_images(tmp_path)
