"""Matched windows as GeoTIFFs: pixels, georeference, tags; the folder is written as a whole."""

import numpy as np
import pytest
import rasterio
from engine import digital, image_of, located, small_encoder, texture

from retrieval.config import IndexConfig
from retrieval.pipeline import build_index
from retrieval.results.window_tifs import window_codes, write_window_tifs
from tfrecords.errors import DiskFullError, OutputExistsError
from tfrecords.read import ImageSource, read_images
from tfrecords.schema import Chips, Image

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An image on the map with a hole, one without, and their index."""
    pixels = [digital(texture(150, 160, seed=s)) for s in (1, 2)]
    pixels[0][20:30, 40:60] = 0
    utm = (10.0, 0, 500_000.0, 0, -10.0, 5_000_000.0)
    images = [
        image_of(pixels[0], 3, crs="EPSG:32631", transform=utm, path="a/b.tif", date="2019-07-23"),
        image_of(pixels[1], 8),
    ]
    source = ImageSource("made by a test", 2, lambda: iter(images))
    out = tmp_path_factory.mktemp("cutouts") / "index"
    return build_index(source, out, encoder=small_encoder(), config=IndexConfig()), pixels


def test_a_file_for_each_answer(world, tmp_path):
    index, pixels = world
    flat = np.full((64, 64, 4), 700, np.uint16)
    stack = np.stack([pixels[0][10:74, 20:84], pixels[1][30:94, 5:69], flat])
    found = located(
        index, stack, tmp_path / "s.csv", windows=tmp_path / "found", min_confidence=0.5, drop_unsure=True
    )
    names = sorted(p.name for p in (tmp_path / "found").glob("*.tif"))
    assert names == ["patch_0.tif", "patch_1.tif"]  # the flat one is unsure
    with rasterio.open(tmp_path / "found/patch_0.tif") as file:
        codes = np.moveaxis(file.read(), 0, -1)
        assert file.crs.to_epsg() == 32631 and file.transform[:6] == (10, 0, 500_200, 0, -10, 4_999_900)
        assert file.descriptions == ("B04", "B03", "B02", "B08") and file.nodata == 65535
        tags = file.tags()
        assert (tags["PATCH_ID"], tags["IMAGE_ID"], tags["IMAGE"], tags["DATE"]) == (
            "0",
            "3",
            "a/b.tif",
            "2019-07-23",
        )
        assert float(tags["CONFIDENCE"]) == pytest.approx(found.confidence[0], abs=1e-4)
    hidden = (stack[0] == 0).all(-1)
    assert (codes[hidden] == 65535).all() and (codes[~hidden] == stack[0][~hidden]).all()
    with rasterio.open(tmp_path / "found/patch_1.tif") as file:
        assert file.crs is None
    (back, _) = read_images(tmp_path / "found", units="dn")
    assert (np.isnan(back.scaled()).all(-1) == hidden).all()


def test_the_folder_is_written_as_a_whole(world, tmp_path):
    index, pixels = world
    stack = np.stack([p[30:94, 5:69] for p in pixels])
    found = index.matches(stack)

    def full(stage, done, total):
        raise OSError(28, "No space left on device")

    with pytest.raises(DiskFullError, match="disk is full"):
        write_window_tifs(found, tmp_path / "found", progress=full)
    assert not (tmp_path / "found").exists()
    write_window_tifs(found, tmp_path / "found")
    with pytest.raises(OutputExistsError):
        write_window_tifs(found, tmp_path / "found")
    write_window_tifs(found, tmp_path / "found", np.array([False, True]), overwrite=True)
    assert [p.name for p in (tmp_path / "found").glob("*.tif")] == ["patch_1.tif"]
    with pytest.raises(OutputExistsError, match="found"):
        located(index, stack, tmp_path / "s.csv", windows=tmp_path / "found")
    assert not (tmp_path / "s.csv").exists()


def test_a_chip_that_sticks_out_is_hidden_there(world, tmp_path):
    index, pixels = world
    around = digital(texture(200, 200, seed=70))
    around[40:190, 30:190] = pixels[0]
    one = Image(0, around[:170, :180], "dn", ("B04", "B03", "B02", "B08"), 0.0)
    chips = Chips(np.array([0]), np.array([[170, 180]]), (one.bands,), lambda row: one)
    found = located(index, chips, tmp_path / "s.csv", windows=tmp_path / "found")
    assert found.frame()[["image_id", "x", "y"]].to_numpy().tolist() == [[3, -30, -40]]
    assert (tmp_path / "s.csv").read_text() == "Patch ID,Result\n0,3 0 0\n"
    with rasterio.open(tmp_path / "found/patch_0.tif") as file:
        codes = np.moveaxis(file.read(), 0, -1)
        assert file.transform[:6] == (10, 0, 499_700, 0, -10, 5_000_400)
    assert codes.shape == (170, 180, 4) and (codes[:40] == 65535).all() and (codes[:, :30] == 65535).all()
    assert (codes[80:, 100:] == pixels[0][40:130, 70:150]).all()


@pytest.mark.parametrize(("x", "y"), [(-100, 0), (0, 500), (500, -9)])
def test_a_window_wholly_outside_is_all_hidden(x, y):
    assert (window_codes(np.zeros((70, 80, 2), np.float32), x, y, 64, 64) == 65535).all()
