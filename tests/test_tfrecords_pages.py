"""TIFFs whose bands are pages are one image; overviews and masks are no pages; other pages are refused."""

import numpy as np
import pytest
import rasterio
from engine import digital, located, small_encoder, texture
from PIL import Image as Picture
from PIL import TiffImagePlugin

from retrieval.ingest import ingest
from retrieval.pipeline import build_index
from tfrecords.errors import ArrayError, BandsError, GridError
from tfrecords.read import read_images, read_patches, read_queries, read_series
from tfrecords.schema import BANDS

CRS = "EPSG:32631"
UP = rasterio.Affine(10.0, 0.0, 500_000.0, 0.0, -10.0, 5_600_000.0)


def ground(rng, *size, bands=4):
    return rng.integers(300, 4000, (*(size or (70, 80)), bands)).astype(np.uint16)


def save_plain(path, pages, texts=()):
    """Write pages without a georeference, as imaging libraries do; texts are their ImageDescription."""
    with TiffImagePlugin.AppendingTiffWriter(path, True) as file:
        for number, page in enumerate(pages):
            tags = TiffImagePlugin.ImageFileDirectory_v2()
            if texts:
                tags[270] = texts[number]
            Picture.fromarray(page).save(file, format="TIFF", tiffinfo=tags)
            file.newFrame()


def save_placed(path, pages, *, descriptions=None, transforms=None, **profile):
    """Write pages that GDAL appends to a GeoTIFF, each (h, w) or (b, h, w)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for number, page in enumerate(pages):
        page = page[None] if page.ndim == 2 else page
        count, height, width = page.shape
        place = {"crs": CRS, "transform": transforms[number] if transforms else UP}
        shape = {"count": count, "height": height, "width": width, "dtype": page.dtype}
        options = {"APPEND_SUBDATASET": "YES" if number else "NO", **place, **shape, **profile}
        with rasterio.open(path, "w", driver="GTiff", **options) as dataset:
            dataset.write(page)
            if descriptions:
                dataset.set_band_description(1, descriptions[number])


@pytest.mark.parametrize("save", [save_plain, save_placed])
def test_pages_of_one_band_are_bands_by_count(tmp_path, rng, save):
    pixels = ground(rng)
    save(tmp_path / "a.tif", np.moveaxis(pixels, -1, 0))
    images = read_images(tmp_path)
    (image,) = images
    np.testing.assert_array_equal(image.pixels, pixels)
    assert image.bands == BANDS and "1 GeoTIFFs, dn, B04 B03 B02 B08" in images.note
    assert (image.crs, image.transform) == ((CRS, UP[:6]) if save is save_placed else (None, None))
    (chip,) = read_queries(tmp_path / "a.tif")
    np.testing.assert_array_equal(chip.pixels, pixels)


def test_patches_may_have_pages(tmp_path, rng):
    pixels = ground(rng, 64, 64, bands=3)
    save_plain(tmp_path / "a.tif", np.moveaxis(pixels, -1, 0))
    patches = read_patches(tmp_path)
    np.testing.assert_array_equal(patches.pixels, pixels[None])
    assert patches.bands == BANDS[:3]


@pytest.mark.parametrize(
    ("names", "bands"),
    [
        (["B02", "B03", "B04", "B08"], ("B02", "B03", "B04", "B08")),
        (["blue", "green", "red", "swir16"], ("B02", "B03", "B04", "B11")),
        (["page one", "page two", "page three", "page four"], BANDS),  # no bands: by count
        (["B02", "B03", "B04", "?"], BANDS),
    ],
)
@pytest.mark.parametrize("kind", ["description", "ImageDescription"])
def test_pages_have_the_names_of_their_descriptions(tmp_path, rng, names, bands, kind):
    pages = np.moveaxis(ground(rng), -1, 0)
    if kind == "description":
        save_placed(tmp_path / "a.tif", pages, descriptions=names)
    else:
        save_plain(tmp_path / "a.tif", pages, names)
    (image,) = read_images(tmp_path)
    assert image.bands == bands
    (image,) = read_images(tmp_path, bands=["B01", "B05", "B06", "B07"])
    assert image.bands == ("B01", "B05", "B06", "B07")


def test_many_pages_need_names(tmp_path, rng):
    save_plain(tmp_path / "a.tif", np.moveaxis(ground(rng, bands=6), -1, 0))
    with pytest.raises(BandsError, match=r"6 bands have no names.*--bands"):
        read_images(tmp_path)
    assert next(iter(read_images(tmp_path, bands=[f"B0{n}" for n in range(1, 7)]))).pixels.shape[-1] == 6


@pytest.mark.parametrize("pages", [1, 4])
@pytest.mark.parametrize("extra", ["overviews", "mask", "both"])
def test_overviews_and_masks_are_no_pages(tmp_path, rng, write_tif, pages, extra):
    pixels = ground(rng, 256, 256)
    path = tmp_path / "a.tif"
    if pages == 1:
        write_tif("a.tif", pixels, crs=CRS, transform=UP, tiled=True, blockxsize=64, blockysize=64)
    else:
        save_placed(path, np.moveaxis(pixels, -1, 0))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
        if extra != "overviews":
            dataset.write_mask(np.full((256, 256), 255, np.uint8))
        if extra != "mask":
            dataset.build_overviews([2, 4], rasterio.enums.Resampling.nearest)
    (image,) = read_images(path)
    np.testing.assert_array_equal(image.pixels, pixels)


def test_a_cloud_optimized_geotiff_is_one_page(tmp_path, rng, write_tif):
    import rasterio.shutil

    pixels = ground(rng, 600, 700)
    tif = write_tif("one/a.tif", pixels, crs=CRS, transform=UP)
    rasterio.shutil.copy(tif, tmp_path / "cog.tif", driver="COG", blocksize=128)
    (image,) = read_images(tmp_path / "cog.tif")
    np.testing.assert_array_equal(image.pixels, pixels)


@pytest.mark.parametrize(
    ("pages", "error", "message"),
    [
        ([(70, 80), (35, 40)], GridError, "page 2 has 35 x 40 pixels, page 1 70 x 80"),
        ([(70, 80), (70, 80), (70, 81)], GridError, "page 3 has 70 x 81 pixels"),
        ([(4, 70, 80), (4, 70, 80)], ArrayError, "2 pages, page 1 has 4 bands"),
        ([(70, 80), (3, 70, 80)], ArrayError, "2 pages, page 2 has 3 bands"),
        ([(4, 70, 80), (35, 40)], ArrayError, "2 pages, page 1 has 4 bands"),
    ],
)
@pytest.mark.parametrize("read", [read_images, read_patches, read_queries])
def test_other_pages_are_refused_with_the_reason(tmp_path, rng, pages, error, message, read):
    save_placed(tmp_path / "a.tif", [rng.integers(300, 4000, size).astype(np.uint16) for size in pages])
    with pytest.raises(error, match=rf"a\.tif: {message}.*gdal_translate GTIFF_DIR:\d:.*a.tif page"):
        read(tmp_path)


def test_pages_of_other_dtype_or_place_are_refused(tmp_path, rng):
    pixels = ground(rng, bands=2)
    save_placed(tmp_path / "a.tif", [pixels[..., 0], pixels[..., 1].astype(np.float32)])
    with pytest.raises(ArrayError, match="page 2 has dtype float32"):
        read_images(tmp_path)
    moved = UP @ rasterio.Affine.translation(3, 0)
    save_placed(tmp_path / "a.tif", np.moveaxis(pixels, -1, 0), transforms=[UP, moved])
    with pytest.raises(GridError, match="page 2 lies on another grid than page 1"):
        read_images(tmp_path)


def test_nodata_and_units_of_pages(tmp_path, rng):
    pixels = (ground(rng) / 1e4).astype(np.float32)
    pixels[:9, :9] = -1
    save_placed(tmp_path / "a.tif", np.moveaxis(pixels, -1, 0), nodata=-1)
    images = read_images(tmp_path)
    (image,) = images
    assert (image.units, image.nodata) == ("reflectance", -1)
    np.testing.assert_array_equal(image.pixels, pixels)


def test_pages_that_lie_turned_are_read_north_up(tmp_path, rng):
    pixels = ground(rng)
    south = rasterio.Affine(10.0, 0.0, UP.c, 0.0, 10.0, UP.f - 700)
    save_placed(tmp_path / "a.tif", np.moveaxis(pixels[::-1], -1, 0), transforms=[south] * 4)
    (image,) = read_images(tmp_path)
    np.testing.assert_array_equal(image.pixels, pixels)


def test_ingest_reads_pages(tmp_path, rng):
    dates = {"2019": ground(rng), "2020": ground(rng)}
    for date, pixels in dates.items():
        save_placed(tmp_path / "src" / "p" / f"{date}.tif", np.moveaxis(pixels, -1, 0))
    ingest(tmp_path / "src", tmp_path / "places", as_="images")
    for image, pixels in zip(read_images(tmp_path / "places"), dates.values(), strict=True):
        np.testing.assert_array_equal(image.pixels, pixels)
    ingest(tmp_path / "src", tmp_path / "series")
    (series,) = read_series(tmp_path / "series")
    np.testing.assert_array_equal(series.pixels, np.stack(list(dates.values())))


def test_an_index_of_pages_finds_its_patches(tmp_path):
    pixels = digital(texture(128, 128))
    save_placed(tmp_path / "a.tif", np.moveaxis(pixels, -1, 0))
    index = build_index(tmp_path / "a.tif", tmp_path / "index", encoder=small_encoder())
    matches = located(index, pixels[None, 20:84, 30:94], tmp_path / "submission.csv")
    assert [column.tolist() for column in matches.best()] == [[0], [30], [20]]
