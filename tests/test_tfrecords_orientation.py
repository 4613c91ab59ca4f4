"""Files that lie mirrored or turned are read north-up, and windows are mapped back to their pixels."""

import numpy as np
import pytest
import rasterio
from engine import digital, located, small_encoder, texture
from PIL import Image as Picture
from rasterio.errors import NotGeoreferencedWarning

from retrieval.pipeline import build_index
from tfrecords.errors import GridError
from tfrecords.grid import pixel_to_map
from tfrecords.read import read_images, read_queries
from tfrecords.read.exif import orientation_tag
from tfrecords.read.orientation import file_windows, turn_upright, upright_windows

CRS = "EPSG:32631"
UP = (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_600_000.0)
LIES = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, 1),
    7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
    8: lambda p: np.rot90(p, -1),
}
"""Upright pixels to pixels as they lie in the file, by EXIF number."""


def lying(number, pixels, transform=UP):
    """Return pixels that lie by an EXIF number, and the transform that says so."""
    height, width = pixels.shape[:2]
    where = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1)
    laid = LIES[number](where)
    origin, right, below = (
        np.array(pixel_to_map(transform, *(laid[at] + 0.5))) for at in ((0, 0), (0, 1), (1, 0))
    )
    (a, d), (b, e) = right - origin, below - origin
    c, f = origin - (right - origin) / 2 - (below - origin) / 2
    return np.ascontiguousarray(LIES[number](pixels)), (a, b, c, d, e, f)


@pytest.mark.parametrize("number", LIES)
@pytest.mark.parametrize("degrees", [False, True])
def test_images_and_chips_are_north_up(rng, write_tif, number, degrees):
    up = (1e-4, 0.0, 3.0, 0.0, -6e-5, 50.0) if degrees else UP
    pixels = rng.integers(300, 3000, (70, 90, 4)).astype(np.uint16)
    stored, transform = lying(number, pixels, up)
    path = write_tif("a.tif", stored, crs="EPSG:4326" if degrees else CRS, transform=transform)
    (image,) = read_images(path)
    np.testing.assert_array_equal(image.pixels, pixels)
    assert ("read north-up" in read_images(path).note) == (number != 1)
    assert image.transform == pytest.approx(up) and image.orientation == number
    (chip,) = read_queries(path)
    np.testing.assert_array_equal(chip.pixels, pixels)
    assert read_queries(path).georeferences[0].transform == pytest.approx(up)
    assert read_queries(path).sizes.tolist() == [[70, 90]]


@pytest.mark.parametrize("number", LIES)
def test_patches_are_north_up(rng, write_tif, number):
    pixels = rng.integers(300, 3000, (64, 64, 4)).astype(np.uint16)
    stored, transform = lying(number, pixels)
    patches = read_queries(write_tif("a.tif", stored, crs=CRS, transform=transform))
    np.testing.assert_array_equal(patches.pixels[0], pixels)


@pytest.mark.parametrize("number", LIES)
@pytest.mark.parametrize("ending", ["jpg", "jpeg"])
def test_exif_turns_pictures(rng, tmp_path, number, ending):
    from PIL import Image

    smooth = np.kron(rng.integers(60, 200, (8, 10, 1)), np.ones((10, 10, 3))).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = number
    path = tmp_path / f"chip.{ending}"
    Image.fromarray(np.ascontiguousarray(LIES[number](smooth))).save(path, exif=exif, quality=98)
    (chip,) = read_queries(path)
    assert chip.pixels.shape == smooth.shape
    assert np.abs(chip.pixels.astype(int) - smooth).mean() < 3


def save_tagged(path, pixels, number):
    """Write pixels as they lie, with the tag Orientation."""
    exif = Picture.Exif()
    exif[0x0112] = number
    tags = {"tiffinfo": {274: number}} if path.suffix == ".tif" else {"exif": exif}
    options = {"big_tiff": True} if path.stem == "big" else {}
    Picture.fromarray(np.ascontiguousarray(LIES[number](pixels))).save(path, **tags, **options)


@pytest.mark.parametrize("number", LIES)
@pytest.mark.parametrize("name", ["chip.png", "chip.tif", "big.tif"])
def test_the_tag_orientation_turns_pngs_and_tiffs(rng, tmp_path, name, number):
    pixels = rng.integers(0, 256, (70, 90, 3)).astype(np.uint8)
    path = tmp_path / name
    save_tagged(path, pixels, number)
    chips = read_queries(path)
    (chip,) = chips
    np.testing.assert_array_equal(chip.pixels, pixels)
    assert chip.orientation == number and chips.sizes.tolist() == [[70, 90]]
    assert ("read north-up" in chips.note) == (number != 1)


@pytest.mark.parametrize("number", [6, 3])
def test_the_transform_outweighs_the_tag_orientation(rng, tmp_path, number):
    pixels = rng.integers(0, 256, (70, 90, 3)).astype(np.uint8)
    path = tmp_path / "a.tif"
    save_tagged(path, LIES[{6: 8}.get(number, number)](pixels), number)  # stored as pixels
    with pytest.warns(NotGeoreferencedWarning), rasterio.open(path, "r+") as dataset:
        dataset.transform, dataset.crs = rasterio.Affine(*UP), CRS
    (image,) = read_images(path)
    np.testing.assert_array_equal(image.pixels, pixels)
    assert image.orientation == 1


def test_answers_are_in_the_pixels_of_a_tagged_file(tmp_path):
    scene = np.clip(texture(150, 190, bands=3, seed=5) * 140 + 128, 1, 255).astype(np.uint8)
    (tmp_path / "images").mkdir()
    save_tagged(tmp_path / "images" / "a.tif", scene, 6)
    index = build_index(tmp_path / "images", tmp_path / "index", encoder=small_encoder())
    x, y = 100, 40
    found = located(index, scene[None, y : y + 64, x : x + 64], tmp_path / "s.csv")
    expected = [v.tolist() for v in file_windows(6, (150, 190), [x], [y], [64], [64])[:2]]
    assert [column.tolist() for column in found.best()[1:]] == expected


@pytest.mark.parametrize("tag", [0, 9, 65535])
def test_other_numbers_of_the_tag_count_as_upright(rng, tmp_path, tag):
    pixels = rng.integers(0, 256, (70, 90, 3)).astype(np.uint8)
    Picture.fromarray(pixels).save(tmp_path / "a.tif", tiffinfo={274: tag})
    (image,) = read_images(tmp_path / "a.tif")
    np.testing.assert_array_equal(image.pixels, pixels)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"II",
        b"II*\0\xff\xff\xff\xff",
        b"MM\0*\0\0\0\x08\xff\xff\x01",
        b"II+\0\x08\0\0\0" + b"\xff" * 8,
        *(b"II+\0\x08\0\0\0" + (1 << bits).to_bytes(8, "little") for bits in range(0, 64, 7)),
        b"\x89PNG\r\n\x1a\n\xff\xff\xff\xffeXIfII*\0",
        b"\x89PNG\r\n\x1a\n\0",
    ],
)
def test_damaged_tags_count_as_upright(tmp_path, data):
    (tmp_path / "a").write_bytes(data)
    assert orientation_tag(tmp_path / "a") == 1


@pytest.mark.parametrize(
    "transform",
    [
        (7.0, 7.0, 5e5, 7.0, -7.0, 5.6e6),
        (9.8, 1.7, 5e5, 1.7, -9.8, 5.6e6),
        (10.0, 3.0, 5e5, 0.0, -10.0, 5.6e6),
        (-9.0, -4.3, 5e5, -4.3, 9.0, 5.6e6),
    ],
)
@pytest.mark.parametrize("read", [read_images, read_queries])
def test_other_angles_are_refused_with_the_remedy(rng, write_tif, transform, read):
    pixels = rng.integers(300, 3000, (70, 90, 4)).astype(np.uint16)
    path = write_tif("turned.tif", pixels, crs=CRS, transform=transform)
    with pytest.raises(GridError, match=r"turned\.tif.*gdalwarp"):
        read(path)


def test_pixels_counted_from_another_origin_keep_their_order(rng, write_tif):
    pixels = rng.integers(300, 3000, (70, 90, 4)).astype(np.uint16)
    (image,) = read_images(write_tif("a.tif", pixels, transform=(1, 0, 200, 0, 1, 300)))
    np.testing.assert_array_equal(image.pixels, pixels)


@pytest.mark.parametrize("number", LIES)
def test_windows_of_the_file_are_those_of_the_upright_pixels(rng, number):
    pixels = rng.integers(0, 9999, (50, 70, 1))
    stored = LIES[number](pixels)
    x, y, width, height = (int(v[0]) for v in file_windows(number, (50, 70), [11], [5], [20], [9]))
    window = stored[y : y + height, x : x + width]
    np.testing.assert_array_equal(turn_upright(window, number), pixels[5:14, 11:31])
    back = upright_windows(number, (50, 70), [x], [y], [width], [height])
    assert [int(v[0]) for v in back] == [11, 5, 20, 9]


@pytest.mark.parametrize("number", [4, 6, 2, 7])
def test_answers_are_in_the_pixels_of_the_file(tmp_path, write_tif, number):
    """Chips that lie in another way than the image come back to their pixel in the image's file."""
    scene = digital(texture(150, 190, seed=5))
    stored, transform = lying(number, scene)
    write_tif("images/a.tif", stored, crs=CRS, transform=transform)
    xy = [(13, 40), (100, 7)]
    for n, (x, y) in enumerate(xy):
        a, b, c, d, e, f = UP
        chip = scene[y : y + 66, x : x + 80]
        turned, at = lying(8 - n, chip, (a, b, c + x * a, d, e, f + y * e))
        write_tif(f"chips/{n}.tif", turned, crs=CRS, transform=at)
    index = build_index(tmp_path / "images", tmp_path / "index", encoder=small_encoder())
    found = located(index, tmp_path / "chips", tmp_path / "s.csv", details=tmp_path / "d.csv")
    expected = [[int(v[0]) for v in file_windows(number, (150, 190), [x], [y], [80], [66])] for x, y in xy]
    frame, details = found.frame(), found.details()
    assert frame[["x", "y"]].to_numpy().tolist() == [place[:2] for place in expected]
    best = details[details["rank"] == 0]
    assert best[["x", "y", "width", "height"]].to_numpy().tolist() == expected
    assert (best.off_m < 10).all()
