"""An index opened while patches are read: the same as one after the other, and errors of both."""

import numpy as np
import pytest
from engine import digital, image_of, small_encoder, texture
from test_pipeline import built

import retrieval.pipeline as opening
from retrieval.errors import IndexMismatchError
from retrieval.models.encoder import FakeEncoder
from retrieval.pipeline import open_and_read
from tfrecords.errors import ArrayError, MissingInputError


@pytest.fixture
def folder(tmp_path):
    pixels = digital(texture(100, 100))
    built(tmp_path, image_of(pixels), encoder=small_encoder())
    np.save(tmp_path / "patches.npy", pixels[None, 9:73, 22:86])
    return tmp_path


def test_both_come_as_if_alone(folder):
    index, asked = open_and_read(folder / "index", folder / "patches.npy")
    assert index.locate(asked)[["image_id", "x", "y"]].to_numpy().tolist() == [[0, 22, 9]]
    _, named = open_and_read(folder / "index", folder / "patches.npy", bands=("a", "b", "c", "d"))
    assert named.bands == ("a", "b", "c", "d")


def test_what_is_wrong_with_either_is_said(folder):
    with pytest.raises(ArrayError):
        open_and_read(folder / "index", np.zeros((1, 9, 9, 4), np.uint16))
    with pytest.raises(IndexMismatchError):
        open_and_read(folder / "index", folder / "patches.npy", encoder=FakeEncoder())


def test_where_no_index_is_no_patch_is_read(folder, monkeypatch):
    monkeypatch.setattr(opening, "read_queries", lambda *a, **k: pytest.fail("read first"))
    with pytest.raises(MissingInputError, match="no such folder"):
        open_and_read(folder / "none", folder / "patches.npy")
