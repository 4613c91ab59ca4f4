"""Readers and writers at the same time: a reader sees one version, and no change of a writer is lost."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from test_index_additions import OTHER
from test_index_update import FAKE, SCENES, add, assert_same, remove, write

from retrieval.errors import IndexMismatchError
from retrieval.index.folder import IndexFolder
from retrieval.index.update import add_images
from tfrecords.artifacts import writing_folder
from tfrecords.errors import ManifestError, UnfinishedOutputError
from tfrecords.read import ImageSource

LATER = [replace(image, image_id=SCENES[n].image_id) for n, image in enumerate(OTHER)]


def opened(out, read=()):
    store = IndexFolder(out, encoder=FAKE)
    for image_id in read:
        store.scaled(image_id)
    return store


@pytest.mark.parametrize("read", [(), (10, 13, 16)], ids=["unread", "read"])
@pytest.mark.parametrize("window", [None, (3, 5, 64, 66)], ids=["whole", "window"])
def test_reader_of_a_replaced_or_removed_image_is_refused(tmp_path, read, window):
    """Other images keep their pixels, which are links to the same files."""
    out = write(SCENES[:3], tmp_path / "i")
    store = opened(out, read)
    expected = {n: store.scaled(SCENES[n].image_id, window) for n in range(3)}
    assert add([OTHER[1]], out, own_ids=False).replaced == (13,)
    remove(out, 10)
    np.testing.assert_array_equal(store.scaled(16, window), expected[2])
    for image_id in (10, 13):
        with pytest.raises(IndexMismatchError, match="changed while it was in use"):
            store.scaled(image_id, window)
    assert not store.is_current() and opened(out).is_current()


def test_reader_of_an_overwritten_index_is_refused(tmp_path):
    out = write(SCENES[:3], tmp_path / "i")
    store = opened(out, (10, 13, 16))
    shutil.rmtree(out)
    write([*LATER[:2], SCENES[2]], out)
    with pytest.raises(IndexMismatchError, match="changed while it was in use"):
        store.scaled(10)
    # The same pixels in another file are the same pixels.
    np.testing.assert_array_equal(store.scaled(16), opened(out).scaled(16))


def test_damaged_pixels_are_still_called_damaged(tmp_path):
    out = write(SCENES[:2], tmp_path / "i")
    store = opened(out, (10,))
    path = out / "pixels" / "10.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ManifestError, match="sha256 differs"):
        store.scaled(10)
    path.unlink()
    with pytest.raises(ManifestError, match="is missing"):
        store.scaled(10)


def between(images, act):
    """A source that does something before its first image, when the index is already open."""

    def begin():
        act()
        yield from images

    return ImageSource("made by a test", len(images), begin, own_ids=True)


@pytest.mark.parametrize("other", ["add", "remove", "replace"])
def test_change_of_another_writer_is_not_lost(tmp_path, other):
    out = write(SCENES[:3], tmp_path / "i")
    act, images = {
        "add": (lambda: add([SCENES[4]], out), [*SCENES[:3], SCENES[4]]),
        "remove": (lambda: remove(out, 13), [SCENES[0], SCENES[2]]),
        "replace": (lambda: add([LATER[1]], out), [SCENES[0], LATER[1], SCENES[2]]),
    }[other]
    with pytest.raises(IndexMismatchError, match=r"changed by another process.*Run the command again"):
        add_images(between([SCENES[5]], act), out, source="more", encoder=FAKE)
    assert_same(out, write(images, tmp_path / "fresh"))
    assert add([SCENES[5]], out).added == (25,)


def test_second_writer_is_refused_while_the_first_one_works(tmp_path):
    out = write(SCENES[:3], tmp_path / "i")

    def begin():
        yield SCENES[3]
        with pytest.raises(UnfinishedOutputError, match="being written by another process"):
            add([SCENES[5]], out)
        yield SCENES[4]

    add_images(ImageSource("made by a test", 2, begin, own_ids=True), out, source="more", encoder=FAKE)
    assert_same(out, write(SCENES[:5], tmp_path / "fresh"))


def test_writers_of_other_folders_beside_it_do_not_wait(tmp_path):
    with (
        writing_folder(tmp_path / "a", kind="index", config={}) as one,
        writing_folder(tmp_path / "b", kind="index", config={}) as other,
    ):
        for folder in (one, other):
            with folder.part("x.bin") as partial:
                partial.write_bytes(b"1")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
