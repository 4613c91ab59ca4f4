"""An index opened while patches are read: the same as one after the other, and errors of both."""

import numpy as np
import pytest
from engine import digital, image_of, small_encoder, texture
from test_pipeline import built

from retrieval.errors import IndexMismatchError
from retrieval.matching.session import open_index_and_queries
from retrieval.models.encoder import FakeEncoder
from retrieval.pipeline import Index
from tfrecords.errors import ArrayError, MissingInputError


@pytest.fixture
def folder(tmp_path):
    pixels = digital(texture(100, 100))
    built(tmp_path, image_of(pixels), encoder=small_encoder())
    np.save(tmp_path / "patches.npy", pixels[None, 9:73, 22:86])
    return tmp_path


def test_both_come_as_if_alone(folder):
    opened, asked = open_index_and_queries(folder / "index", folder / "patches.npy")
    assert Index(opened).locate(asked)[["image_id", "x", "y"]].to_numpy().tolist() == [[0, 22, 9]]
    _, named = open_index_and_queries(folder / "index", folder / "patches.npy", bands=("a", "b", "c", "d"))
    assert named.bands == ("a", "b", "c", "d")


def test_what_is_wrong_with_either_is_said(folder):
    with pytest.raises(ArrayError):
        open_index_and_queries(folder / "index", np.zeros((1, 9, 9, 4), np.uint16))
    with pytest.raises(IndexMismatchError):
        open_index_and_queries(folder / "index", folder / "patches.npy", encoder=FakeEncoder())


def test_a_missing_index_is_named_before_the_queries_are_read(folder):
    with pytest.raises(MissingInputError, match="no such folder"):
        open_index_and_queries(folder / "none", folder / "missing.npy")
