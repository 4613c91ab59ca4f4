"""Labelled and unlabelled images: every form that is read, and every input that is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from labelled import CLASSES, pictures, write_class_folders, write_npz, write_numbered
from PIL import Image
from realdata import real_data

from retrieval.errors import ExamplesError
from retrieval.tasks.images import check_apart, check_fits, without
from retrieval.tasks.sources import file_ids, read_images, read_labelled, read_unlabelled
from tfrecords.errors import (
    ArrayError,
    BandsError,
    DuplicateIdError,
    MissingInputError,
    RetrieveError,
    UnitsError,
)
from tfrecords.schema import BANDS, Series
from tfrecords.write import write_series

ROOT = Path(__file__).parents[1]


@pytest.fixture
def images():
    return pictures(12)


def names_of(labels):
    return [CLASSES[label] for label in labels]


# --- forms that are read ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form", ["npz of numbers", "npz of names", "npz of bytes", "folders", "csv", "paths"]
)
def test_every_form_of_labels_gives_the_same_set(tmp_path, images, form):
    pixels, labels = images
    names = names_of(labels)
    if form == "npz of numbers":
        source = write_npz(tmp_path / "a.npz", pixels, labels.astype(np.uint8))
    elif form == "npz of names":
        source = write_npz(tmp_path / "a.npz", pixels, np.array(names))
    elif form == "npz of bytes":
        source = write_npz(tmp_path / "a.npz", pixels, np.array(names, "S"))
    elif form == "folders":
        source = write_class_folders(tmp_path / "a", pixels, names)
    elif form == "csv":
        source = write_numbered(tmp_path / "a.csv", pixels, names)
    else:
        source = write_numbered(tmp_path / "a.csv", pixels, names)
        rows = [f"a/{row:04d}.png,{name}" for row, name in enumerate(names)]
        source.write_text("\n".join(["Id,Category", *rows]))
    read = read_labelled(source, classes=CLASSES)
    assert read.classes == CLASSES and read.images.bands == ("B04", "B03", "B02")
    assert read.images.form == "byte" and read.images.size == (32, 32)
    order = np.argsort(labels, kind="stable") if form == "folders" else np.arange(len(labels))
    np.testing.assert_array_equal(read.images.pixels, pixels[order])
    np.testing.assert_array_equal(read.labels, labels[order])


def test_classes_are_the_sorted_labels_without_a_list(tmp_path, images):
    pixels, labels = images
    numbers = read_labelled(write_npz(tmp_path / "a.npz", pixels, labels * 10))
    assert numbers.classes == ("0", "10", "20")
    np.testing.assert_array_equal(numbers.labels, labels)
    words = read_labelled(write_npz(tmp_path / "b.npz", pixels, np.array(list("cab"))[labels]))
    assert words.classes == ("a", "b", "c")
    np.testing.assert_array_equal(words.labels, np.array([2, 0, 1])[labels])


def test_labels_are_found_among_keys_of_the_same_length(tmp_path, images):
    pixels, labels = images
    read = read_labelled(write_npz(tmp_path / "a.npz", pixels, labels[:, None], day=np.arange(12)))
    np.testing.assert_array_equal(read.labels, labels)


@pytest.mark.parametrize(
    ("units", "factor", "dtype"),
    [("dn", 1, np.uint16), ("dn", 1, np.int64), ("reflectance", 1e-4, np.float32)],
)
def test_measurements_become_digital_numbers(tmp_path, rng, units, factor, dtype):
    dn = rng.integers(1, 9000, (6, 16, 16, 4))
    path = write_npz(tmp_path / "a.npz", (dn * factor).astype(dtype), np.arange(6) % 2)
    read = read_labelled(path, units=units)
    assert read.images.form == "dn" and read.images.bands == BANDS
    assert read.images.pixels.dtype == np.uint16
    np.testing.assert_array_equal(read.images.pixels, dn)


def test_ids_are_rows_numbers_or_stems(tmp_path, images):
    pixels, labels = images
    assert read_images(write_npz(tmp_path / "a.npz", pixels, labels)).ids == tuple(map(str, range(12)))
    write_numbered(tmp_path / "b.csv", pixels, names_of(labels))
    assert read_images(tmp_path / "b").ids == tuple(map(str, range(12)))
    assert read_images(tmp_path / "b.csv").ids == tuple(map(str, range(12)))
    (tmp_path / "b" / "0003.png").rename(tmp_path / "b" / "x3.png")
    assert read_images(tmp_path / "b").ids[:3] == ("0000", "0001", "0002")
    assert file_ids([tmp_path / "0007.jpg", tmp_path / "12.jpg"]) == ["7", "12"]


# --- images without labels --------------------------------------------------------------------------


def test_unlabelled_images_come_from_arrays_and_folders(tmp_path, images):
    pixels, labels = images
    like = read_labelled(write_npz(tmp_path / "a.npz", pixels, labels)).images
    np.save(tmp_path / "u.npy", pixels[::-1])
    np.testing.assert_array_equal(read_unlabelled(tmp_path / "u.npy", like).pixels, pixels[::-1])
    write_numbered(tmp_path / "u.csv", pixels, names_of(labels))
    np.testing.assert_array_equal(read_unlabelled(tmp_path / "u", like).pixels, pixels)


def test_larger_geotiffs_are_cut_into_tiles_without_nodata(tmp_path, rng, write_tif):
    dn = rng.integers(100, 4000, (70, 50, 4)).astype(np.uint16)
    dn[0, 0] = 0
    names = ("B08", "B02", "B03", "B04")
    path = write_tif("scene.tif", dn, descriptions=names, nodata=0)
    like = read_labelled(
        write_npz(tmp_path / "a.npz", rng.integers(1, 4000, (4, 16, 16, 3)).astype(np.uint16), [0, 0, 1, 1])
    ).images
    tiles = read_unlabelled(path, like).pixels
    rgb = dn[..., [3, 2, 1]]
    expected = [rgb[y : y + 16, x : x + 16] for y in range(0, 64, 16) for x in range(0, 48, 16)][1:]
    np.testing.assert_array_equal(tiles, np.stack(expected))


def test_series_are_cut_into_tiles_of_every_date(tmp_path, rng):
    dn = rng.integers(100, 2000, (3, 64, 64, 4)).astype(np.uint16)
    dates = ("2020-01-01", "2020-02-01", "2020-03-01")
    series = Series(pixels=dn, units="dn", bands=BANDS, nodata=0.0, dates=dates, place="p")
    write_series([series], tmp_path / "series")
    labelled = rng.integers(1, 4000, (4, 32, 32, 4)).astype(np.uint16)
    like = read_labelled(write_npz(tmp_path / "a.npz", labelled, [0, 0, 1, 1])).images
    tiles = read_unlabelled(tmp_path / "series", like).pixels
    assert tiles.shape == (12, 32, 32, 4)
    np.testing.assert_array_equal(tiles[0], dn[0, :32, :32])
    np.testing.assert_array_equal(tiles[-1], dn[2, 32:, 32:])


# --- inputs that are refused ------------------------------------------------------------------------


def refused(kind, match, call, *arguments, **options):
    with pytest.raises(kind, match=match) as caught:
        call(*arguments, **options)
    assert issubclass(kind, RetrieveError) and len(str(caught.value).split(". ")) <= 3


def test_a_class_with_no_or_one_example_is_named(tmp_path, images):
    pixels, labels = images
    path = write_npz(tmp_path / "a.npz", pixels, np.array(names_of(labels)))
    refused(ExamplesError, "no image of class Snow", read_labelled, path, classes=(*CLASSES, "Snow"))
    labels[labels == 2] = 1
    labels[0] = 2
    refused(
        ExamplesError, "one image of class 2", read_labelled, write_npz(tmp_path / "b.npz", pixels, labels)
    )
    assert len(read_labelled(tmp_path / "b.npz", complete=False)) == 12
    refused(ExamplesError, "one class", read_labelled, write_npz(tmp_path / "c.npz", pixels, labels * 0))
    write_class_folders(tmp_path / "d", pixels, names_of(labels))
    (tmp_path / "d" / "Snow").mkdir()
    refused(ExamplesError, "no image of class Snow", read_labelled, tmp_path / "d")


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (["Field"] * 11 + ["Fild"], "'Fild' of image 11"),
        (["Field"] * 11 + [" "], "image 11 has an empty label"),
        ([0] * 11 + [3], "label 3 of image 11"),
        ([0] * 11 + [-1], "label -1 of image 11"),
        ([0.0] * 11 + [0.5], "no whole number"),
        ([0.0] * 11 + [np.nan], "no whole number"),
        (np.eye(12), "no keys could be the labels"),
        ([0] * 11, "no keys could be the labels"),
        (np.zeros(12, complex), "dtype complex128"),
        (np.array([b"\xff"] * 12), "no UTF-8"),
    ],
)
def test_a_label_outside_of_the_list_is_named(tmp_path, images, labels, match):
    path = write_npz(tmp_path / "a.npz", images[0], np.array(labels))
    refused(ExamplesError, match, read_labelled, path, classes=CLASSES)


def test_pickled_objects_are_refused_and_never_loaded(tmp_path, images):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").mkdir, ())

    pixels, labels = images
    write_npz(tmp_path / "a.npz", pixels, labels, more=np.array([Trap()], dtype=object))
    refused(ArrayError, "pickled Python objects", read_labelled, tmp_path / "a.npz")
    np.save(tmp_path / "b.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    refused(ArrayError, "pickle", read_images, tmp_path / "b.npy")
    (tmp_path / "c.npz").write_bytes(b"PK\x03\x04 no archive")
    refused(ArrayError, "cannot be read as .npz", read_labelled, tmp_path / "c.npz")
    assert not (tmp_path / "sprung").exists()


def test_an_npz_without_one_stack_of_images_is_refused(tmp_path, images):
    pixels, labels = images
    np.savez(tmp_path / "a.npz", labels=labels)
    refused(ArrayError, "no arrays of shape", read_labelled, tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", a=pixels, b=pixels, labels=labels)
    refused(ArrayError, "2 arrays of shape", read_labelled, tmp_path / "b.npz")


def test_images_of_mixed_sizes_bands_and_dtypes_are_named(tmp_path, images, write_tif):
    pixels, labels = images
    folder = write_class_folders(tmp_path / "a", pixels, names_of(labels))
    Image.fromarray(pixels[0][:20]).save(folder / "Water" / "small.png")
    refused(ArrayError, r"small.png has 20 x 32", read_labelled, folder)
    Image.fromarray(pixels[0][..., 0]).save(folder / "Water" / "small.png")
    refused(BandsError, r"small.png: bands unknown", read_labelled, folder)
    (folder / "Water" / "small.png").unlink()
    write_tif("Water/x.tif", pixels[0].astype(np.uint16) + 300, folder=folder)
    refused(UnitsError, r"one dtype", read_labelled, folder)


def test_not_a_number_is_named(tmp_path, rng, write_tif):
    pixels = rng.uniform(0, 0.4, (4, 16, 16, 3)).astype(np.float32)
    pixels[2, 3, 4, 1] = np.nan
    refused(
        ArrayError, "image 2 holds NaN", read_labelled, write_npz(tmp_path / "a.npz", pixels, [0, 0, 1, 1])
    )
    for row, image in enumerate(pixels):
        write_tif(f"c{row % 2}/{row}.tif", image, folder=tmp_path / "tifs")
    refused(ArrayError, r"2.tif holds NaN", read_labelled, tmp_path / "tifs")


def test_faults_of_a_csv_are_named(tmp_path, images):
    pixels, labels = images
    path = write_numbered(tmp_path / "a.csv", pixels, names_of(labels))
    good = path.read_text()
    for text, kind, match in (
        (good + "3,Water\n", DuplicateIdError, "Id 3 occurs twice, in lines 5 and 14"),
        (good + "a/0003.png,Water\n", DuplicateIdError, "lines 5 and 14"),
        (good + "99,Water\n", MissingInputError, "line 14: no file of number 99"),
        (good + "\n\n99,Water\n", MissingInputError, "line 16: no file of number 99"),
        (good + "x" * 999 + ",Water\n", MissingInputError, "line 14: no file"),
        (good + "b.png,Water\n", MissingInputError, "line 14: no file"),
        (good.replace("Category", "Class"), ExamplesError, "columns are Id,Class"),
        (good + "5,\n", ExamplesError, "line 14"),
        (good + "5\n", ExamplesError, "line 14"),
        ("Id,Category\n", MissingInputError, "no row"),
        ("", ExamplesError, "columns are missing"),
    ):
        path.write_text(text)
        refused(kind, match, read_labelled, path)
    path.write_text(good)
    Image.fromarray(pixels[0]).save(tmp_path / "a" / "3.png")
    refused(DuplicateIdError, "the same number", read_labelled, path)
    refused(DuplicateIdError, "Id 3 occurs twice", read_images, tmp_path / "a")


def test_sources_that_do_not_exist_or_hold_nothing_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("x")
    for source in ("none.npz", "none.csv", "none", "empty"):
        refused(MissingInputError, source, read_labelled, tmp_path / source)
        refused(MissingInputError, source, read_images, tmp_path / source)
    refused(ExamplesError, "cannot be read from .txt", read_labelled, tmp_path / "a.txt")
    refused(ArrayError, "no image", read_images, tmp_path / "a.txt")


def test_a_validation_image_of_the_training_set_is_named(tmp_path, images):
    pixels, labels = images
    training = read_labelled(write_npz(tmp_path / "t.npz", pixels, labels))
    other, names = pictures(6, seed=9)
    other[4] = pixels[7]
    validation = read_labelled(write_npz(tmp_path / "v.npz", other, names))
    refused(ExamplesError, "image 4 is image 7 of", check_apart, validation, training)
    check_apart(validation.select(np.arange(4)), training)
    left = without(validation.images, [training.images])
    assert left.ids == ("0", "1", "2", "3", "5")


def test_images_of_another_kind_are_refused(tmp_path, rng, images):
    like = read_labelled(write_npz(tmp_path / "a.npz", *images)).images
    for pixels, kind, match in (
        (rng.integers(0, 255, (3, 32, 32, 4)).astype(np.uint8), BandsError, "bands B04 B03 B02 B08"),
        (rng.integers(0, 255, (3, 40, 32, 3)).astype(np.uint8), ArrayError, "40 x 32 pixels"),
        (rng.integers(300, 9000, (3, 32, 32, 3)).astype(np.uint16), UnitsError, "digital numbers"),
    ):
        np.savez(tmp_path / "b.npz", x=pixels)
        refused(kind, match, read_unlabelled, tmp_path / "b.npz", like)
        other = read_images(tmp_path / "b.npz")
        refused(kind, match, check_fits, other, like.bands, like.size, like.form, "the model")
    np.savez(tmp_path / "c.npz", x=images[0][:, :8, :8])
    refused(ArrayError, "at least 16 x 16", read_images, tmp_path / "c.npz")


# --- real images ------------------------------------------------------------------------------------


@pytest.mark.data
def test_the_hackathons_images_are_read_and_no_validation_image_is_trained_on():
    folder = real_data("eurosat")
    training = read_labelled(folder / "train.csv")
    validation = read_labelled(folder / "valid.csv", classes=training.classes, complete=False)
    assert training.counts().tolist() == [50] * 10 and validation.counts().tolist() == [150] * 10
    assert training.classes[0] == "AnnualCrop" and training.images.pixels.shape == (500, 64, 64, 3)
    assert training.images.form == "byte" and training.images.bands == ("B04", "B03", "B02")
    check_apart(validation, training)
