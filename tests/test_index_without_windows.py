"""Images that give no window: each is named with its reason, and an index without any window is refused."""

import json
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
from engine import digital, image_of, small_encoder, texture
from typer.testing import CliRunner

import retrieval
from retrieval.cli import app
from retrieval.config import IndexConfig
from retrieval.errors import NoWindowsError, NoWindowsWarning
from retrieval.index.builder import write_index
from retrieval.index.folder import IndexFolder
from retrieval.models.encoder import FakeEncoder
from tfrecords.errors import MissingInputError, listed
from tfrecords.write import write_images

GROUND = digital(texture(96, 96, seed=1))
EMPTY = {
    "nodata": np.zeros_like(GROUND),
    "equal": np.full_like(GROUND, 900),
    "saturated": np.full_like(GROUND, 65535),
}


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], prog_name="retrieve")


@contextmanager
def warned():
    """Yield the texts of the warnings on images without a window; other warnings are as usual."""
    texts = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", NoWindowsWarning)
        yield texts
    texts += [str(w.message) for w in caught if w.category is NoWindowsWarning]


def corner(pixels, size):
    """Pixels that are nodata but for a square in the lower right corner."""
    out = np.zeros_like(pixels)
    out[-size:, -size:] = pixels[-size:, -size:]
    return out


def patchwork():
    """Squares of four values with nodata between them: a window sees one square."""
    out = np.zeros((256, 256, 4), np.uint16)
    for row in range(2):
        for column in range(2):
            out[row * 160 : row * 160 + 96, column * 160 : column * 160 + 96] = 500 + 100 * (2 * row + column)
    return out


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (EMPTY["nodata"], "all pixels are nodata"),
        (EMPTY["equal"], "all pixels are equal"),
        (EMPTY["saturated"], "all pixels are saturated"),
        (corner(GROUND, 40), "no window has data in 50% of its pixels"),
        (corner(EMPTY["equal"], 80), "all pixels are equal"),
        (patchwork(), "no window has texture"),
    ],
)
def test_each_image_has_its_reason(tmp_path, pixels, reason):
    images = [image_of(GROUND, 3), image_of(pixels, 5, path="a/empty.tif")]
    with warned() as texts:
        write_index(images, tmp_path / "i", FakeEncoder(), IndexConfig(), source="test")
    assert texts == [
        "1 of 2 images have no window in the index, so queries don't find them: a/empty.tif (" + reason + ")"
    ]
    folder = IndexFolder(tmp_path / "i", encoder=FakeEncoder())
    assert folder.without_windows == {5: reason} and folder.images[5].windows == 0
    assert folder.manifest.extra["images_without_windows"] == {"5": reason}


@pytest.mark.parametrize("units", ["dn", "reflectance", "scaled", "byte"])
def test_the_reason_does_not_depend_on_the_units(tmp_path, units):
    values = {"dn": 65535, "reflectance": 2.0, "scaled": 1.0, "byte": 255}
    kind = {"dn": np.uint16, "byte": np.uint8}.get(units, np.float32)
    scale = {"dn": GROUND, "reflectance": GROUND / 1e4, "scaled": GROUND / 2047.5 - 1, "byte": GROUND / 16.1}
    stack = np.stack([scale[units].astype(kind), np.full(GROUND.shape, values[units], kind)])
    with warned() as texts:
        retrieval.build_index(stack, tmp_path / "i", encoder=small_encoder(), units=units)
    assert len(texts) == 1 and texts[0].endswith("image 1 (all pixels are saturated)")


def test_ordinary_images_are_not_mentioned(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", NoWindowsWarning)
        write_index([image_of(GROUND)], tmp_path / "i", FakeEncoder(), IndexConfig(), source="test")
    folder = IndexFolder(tmp_path / "i", encoder=FakeEncoder())
    assert folder.without_windows == {} and "images_without_windows" not in folder.manifest.extra


# --- an index without any window ------------------------------------------------------------------


@pytest.fixture
def sources(tmp_path, write_tif):
    """The same three empty images as an array, a file of it, TFRecords and GeoTIFFs."""
    stack = np.stack(list(EMPTY.values()))
    np.save(tmp_path / "stack.npy", stack)
    write_images([image_of(pixels, n) for n, pixels in enumerate(stack)], tmp_path / "images.tfrecords")
    for name, pixels in EMPTY.items():
        write_tif(f"{name}.tif", pixels, folder=tmp_path / "scenes")
    return {
        "array": stack,
        "npy": tmp_path / "stack.npy",
        "tfrecords": tmp_path / "images.tfrecords",
        "tif": tmp_path / "scenes",
    }


@pytest.mark.parametrize("kind", ["array", "npy", "tfrecords", "tif"])
def test_an_index_without_windows_is_refused_whatever_is_read(tmp_path, sources, kind):
    out = tmp_path / "i"
    with pytest.raises(NoWindowsError, match="none of the 3 images has a window") as error:
        retrieval.build_index(sources[kind], out, encoder=small_encoder(), units="dn")
    assert all(f"(all pixels are {reason})" in str(error.value) for reason in EMPTY)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("i.") or path == out]


def test_the_former_index_stays_and_the_command_names_the_images(tmp_path, sources):
    out = tmp_path / "index"
    retrieval.build_index(GROUND[None], out, encoder=small_encoder())
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    done = run("index", sources["tif"], "--out", out, "--overwrite", "--quiet")
    assert done.exit_code == 1 and not done.stdout
    assert done.stderr.count("error:") == 1 and "Traceback" not in done.stderr
    assert "equal.tif (all pixels are equal)" in done.stderr and "nodata tag" in done.stderr
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert not list(tmp_path.glob("index.*"))


def test_json_holds_every_image_without_a_window(tmp_path, sources, write_tif):
    write_tif("ground.tif", GROUND, folder=sources["tif"])
    settings = ("--encoder", "structure-tensor", "--stride", 16, "--json")
    done = run("index", sources["tif"], "--out", tmp_path / "index", *settings)
    assert done.exit_code == 0 and "warning: 3 of 4 images have no window" in done.stderr
    listed_images = [
        {"image_id": 0, "path": f"{sources['tif']}/equal.tif", "reason": "all pixels are equal"},
        {"image_id": 2, "path": f"{sources['tif']}/nodata.tif", "reason": "all pixels are nodata"},
        {"image_id": 3, "path": f"{sources['tif']}/saturated.tif", "reason": "all pixels are saturated"},
    ]
    assert json.loads(done.stdout)["without_windows"] == listed_images


def test_names_of_many_images_are_counted():
    names = [f"{n}.tif" for n in range(23)]
    assert listed(names[:20]) == ", ".join(names[:20])
    assert listed(names) == ", ".join(names[:20]) + " and 3 more"
    assert listed(names, 1) == "0.tif and 22 more" and listed([]) == ""


# --- changes and resumed runs ---------------------------------------------------------------------


def test_add_names_new_images_only_and_keeps_the_reasons(tmp_path, sources):
    out = tmp_path / "i"
    with warned():
        retrieval.build_index(np.stack([GROUND, EMPTY["equal"]]), out, encoder=small_encoder())
    with warned() as texts:
        retrieval.add_to_index(EMPTY["nodata"][None], out, units="dn")
    assert len(texts) == 1 and "1 of 1 images" in texts[0] and "image 2 (all pixels are nodata)" in texts[0]
    reasons = {1: "all pixels are equal", 2: "all pixels are nodata"}
    assert retrieval.open_index(out).folder.without_windows == reasons
    retrieval.remove_from_index(out, [1])
    assert retrieval.open_index(out).folder.without_windows == {2: "all pixels are nodata"}
    with pytest.raises(MissingInputError, match="no window left"):
        retrieval.remove_from_index(out, [0])
    assert sorted(retrieval.open_index(out).folder.images) == [0, 2]


def test_a_resumed_run_knows_the_reasons(tmp_path):
    out, images = tmp_path / "i", [image_of(GROUND, 0), image_of(EMPTY["nodata"], 1), image_of(GROUND, 2)]

    def stopped():
        yield from images[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_index(stopped(), out, FakeEncoder(), IndexConfig(), source="test")
    assert (tmp_path / "i.partial").is_dir()
    with warned() as texts:
        write_index(images, out, FakeEncoder(), IndexConfig(), source="test")
    assert len(texts) == 1 and "image 1 (all pixels are nodata)" in texts[0]


def test_an_index_that_stored_no_reason_still_lists_its_images(tmp_path):
    with warned():
        write_index(
            [image_of(GROUND, 0), image_of(EMPTY["nodata"], 1)],
            tmp_path / "i",
            FakeEncoder(),
            IndexConfig(),
            source="test",
        )
    folder = IndexFolder(tmp_path / "i", encoder=FakeEncoder())
    folder.manifest.extra.pop("images_without_windows")
    assert folder.without_windows == {1: ""}
