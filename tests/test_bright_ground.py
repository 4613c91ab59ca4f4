"""Ground above 4095 DN (salt, snow, bright sand) keeps its texture, from the file to the answer."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
from engine import digital, image_of, located, patches_of, small_encoder, texture

from retrieval.config import IndexConfig, SearchConfig
from retrieval.index.folder import IndexFolder
from retrieval.index.update import add_images
from retrieval.matching.visible import VisiblePatches
from retrieval.models.registry import TRAINING_FREE
from retrieval.pipeline import build_index
from tfrecords.read import ImageSource, read_images, read_patches, read_queries
from tfrecords.schema import BANDS, SCALED_OF_DN, Chips, Image, Patches, to_scaled
from tfrecords.write import write_images

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
GOLDEN = Path(__file__).parent / "golden"
XY = [(0, 0), (126, 0), (0, 136), (126, 136), (126, 68), (63, 136), (17, 5), (42, 91)]
SALT = (7000 + 2222 * texture(200, 190, seed=3)).astype(np.uint16)
SNOW = (9000 + 4400 * texture(200, 190, seed=5)).astype(np.uint16)


def places_of(frame):
    return frame[["image_id", "x", "y"]].to_numpy().tolist()


def source(*images):
    return ImageSource("made by a test", len(images), lambda: iter(images), own_ids=True)


@pytest.fixture(scope="module", params=[TRAINING_FREE, "siamese"])
def index(request, tmp_path_factory):
    """An index of salt, ordinary ground and snow, by the training-free and by the default encoder."""
    images = [image_of(SALT, 0), image_of(digital(texture(200, 190, seed=4)), 1), image_of(SNOW, 2)]
    out = tmp_path_factory.mktemp("bright") / "index"
    return build_index(source(*images), out, encoder=request.param, config=IndexConfig())


def test_all_windows_of_bright_ground_are_indexed(index):
    assert SALT.min() >= 4700 and SALT.max() <= 9300 and SNOW.min() > 4500
    assert {image.windows for image in index.folder.images.values()} == {18 * 17}


@pytest.mark.parametrize(("image_id", "ground"), [(0, SALT), (2, SNOW)])
@pytest.mark.parametrize("light", [1.0, 0.9, 1.1])
def test_patches_are_found_at_their_pixel(index, rng, image_id, ground, light):
    noisy = (ground * light + rng.normal(0, 20, ground.shape)).astype(np.uint16)
    frame = index.locate(patches_of(noisy, XY))
    assert places_of(frame) == [[image_id, x, y] for x, y in XY]
    assert (frame.confidence > 0.9).all()


def test_reflectance_is_found_like_digital_numbers(index, write_tif):
    for number, (x, y) in enumerate(XY):
        write_tif(f"p{number}.tif", (SALT[y : y + 64, x : x + 64] / 1e4).astype(np.float32))
    patches = read_patches(write_tif("p0.tif", (SALT[:64, :64] / 1e4).astype(np.float32)).parent)
    assert patches.units == "reflectance"
    assert places_of(index.locate(patches)) == [[0, x, y] for x, y in XY]


def test_large_chips_are_found(index):
    cuts = [SALT[30:180, 11:170], SNOW[0:130, 60:190]]
    chips = Chips(
        np.arange(2),
        np.array([c.shape[:2] for c in cuts]),
        (BANDS, BANDS),
        lambda row: Image(row, cuts[row], "dn", BANDS, 0.0),
    )
    frame = index.locate(chips)
    assert places_of(frame) == [[0, 11, 30], [2, 60, 0]] and (frame.confidence > 0.9).all()


def test_half_of_a_patch_may_be_bright(tmp_path):
    shore = digital(texture(200, 190, seed=8))
    shore[:, 95:] = SALT[:, 95:]
    index = build_index(
        source(image_of(shore)), tmp_path / "i", encoder=small_encoder(), config=IndexConfig()
    )
    xy = [(x, 70) for x in (30, 63, 90, 126)]
    assert places_of(index.locate(patches_of(shore, xy))) == [[0, x, y] for x, y in xy]


def test_pixels_shown_and_compared_everywhere_keep_their_texture():
    patches = patches_of(SALT, XY)
    shown = VisiblePatches(patches, SearchConfig()).select(np.arange(len(XY))).scaled(slice(None))
    np.testing.assert_array_equal(shown, patches.scaled())
    assert shown.min() > 1


def test_saved_windows_hold_the_digital_numbers(index, tmp_path):
    located(index, patches_of(SNOW, XY[:1]), tmp_path / "s.csv", windows=tmp_path / "found")
    with rasterio.open(tmp_path / "found/patch_0.tif") as file:
        assert (np.moveaxis(file.read(), 0, -1) == SNOW[:64, :64]).all()


def test_the_expression_of_the_metadata_scales_as_the_reader_does():
    dn = np.arange(1, 65535, dtype=np.uint16).reshape(1, -1, 1)
    expected = to_scaled(dn, "dn", None, clipped=False)
    np.testing.assert_allclose(eval(SCALED_OF_DN, {"numpy": np, "dn": dn}), expected, atol=1e-6)


# ---------------------------------------------------------------- the challenge's own form


def test_records_keep_the_clip_of_the_challenge(tmp_path):
    path = tmp_path / "test_images.tfrecords"
    write_images([image_of(SALT)], path)
    (image,) = read_images(path)
    assert image.clipped and image.scaled().max() == 1
    np.testing.assert_allclose(image.scaled(), to_scaled(SALT, "dn", 0.0), atol=1e-3)


def test_queries_of_clipped_images_are_clipped(tmp_path, write_tif):
    """Digital numbers, half of them above 4095, are compared with records of the same ground."""
    ground = (4200 + 3000 * texture(200, 190, seed=9)).astype(np.uint16)
    path = tmp_path / "test_images.tfrecords"
    write_images([image_of(ground)], path)
    index = build_index(path, tmp_path / "i", encoder=TRAINING_FREE, config=IndexConfig())
    assert index.folder.images[0].clipped
    found = index.matches(patches_of(ground, XY))
    assert places_of(found.frame()) == [[0, x, y] for x, y in XY]
    assert (found.frame().ncc > 0.999).all()
    chip = write_tif("chip.tif", ground[20:150, 10:160])
    frame = index.locate(chip)
    assert places_of(frame) == [[0, 10, 20]] and (frame.ncc > 0.999).all()
    (again,) = IndexFolder(tmp_path / "i").images.values()
    assert again.clipped


def test_scaled_files_end_at_one(tmp_path, write_tif):
    """Half precision may round past 1."""
    scaled = texture(64, 64)
    scaled[3, 4] = 1.0005
    np.save(tmp_path / "chips.npy", scaled[None])
    path = write_tif("chip.tif", scaled)
    for patches in (read_patches(tmp_path / "chips.npy"), read_patches(path), read_queries(path)):
        assert patches.units == "scaled" and patches.scaled().max() == 1
    (image,) = read_images(path)
    assert image.scaled().max() == 1


# ---------------------------------------------------------------- version 1


def test_an_index_of_version_1_takes_bright_ground(tmp_path):
    """What it holds stays as it is, and the index has version 2 afterwards."""
    with tarfile.open(GOLDEN / "index-v1.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    folder = tmp_path / "index-v1"
    before = {i: IndexFolder(folder).scaled(i) for i in (3, 7)}
    added = add_images(source(image_of(SALT[..., :1], 9)), folder, source="more")
    assert added.added == (9,)
    store = IndexFolder(folder)
    assert json.loads((folder / "manifest.json").read_text())["version"] == 2
    assert store.images[9].windows == 18 * 17
    assert [image.clipped for _, image in sorted(store.images.items())] == [True, True, False]
    np.testing.assert_allclose(store.scaled(9), image_of(SALT[..., :1]).scaled(), atol=1e-6)
    for image_id, pixels in before.items():
        np.testing.assert_array_equal(store.scaled(image_id), pixels)


def test_patches_in_memory_may_be_scaled_above_one():
    scaled = image_of(SALT).scaled()[None, :64, :64]
    patches = Patches(np.arange(1), scaled, "scaled", BANDS, np.nan)
    np.testing.assert_array_equal(patches.scaled(), scaled)
