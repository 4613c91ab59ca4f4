"""Packed ids: they come back, and their order is the order of ties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.errors import ConfigError
from retrieval.models.encoder import FakeEncoder
from retrieval.types import (
    ID_LIMIT,
    XY_LIMIT,
    Candidates,
    Encoder,
    RankedCandidates,
    pack_ids,
    silent,
    unpack_ids,
)

place = st.tuples(st.integers(0, ID_LIMIT - 1), st.integers(0, XY_LIMIT - 1), st.integers(0, XY_LIMIT - 1))


@given(st.lists(place, max_size=20))
def test_packed_ids_come_back(places):
    image, x, y = np.array(places, np.int64).reshape(-1, 3).T
    packed = pack_ids(image, x, y)
    assert packed.dtype == np.int64 and (packed >= 0).all()
    for got, given_ in zip(unpack_ids(packed), (image, x, y), strict=True):
        np.testing.assert_array_equal(got, given_)


@given(place, place)
def test_order_is_by_image_then_row_then_column(a, b):
    pa, pb = (int(pack_ids(np.array(i), np.array(x), np.array(y))) for i, x, y in (a, b))
    assert (pa < pb) == ((a[0], a[2], a[1]) < (b[0], b[2], b[1]))


def test_nothing_found_stays_nothing():
    assert [
        v.tolist() for v in unpack_ids(np.array([[-1, pack_ids(np.array(4), np.array(5), np.array(6))]]))
    ] == [
        [[-1, 4]],
        [[-1, 5]],
        [[-1, 6]],
    ]


@pytest.mark.parametrize(
    ("image", "x", "y", "what"),
    [
        (-1, 0, 0, "image ids"),
        (2**31, 0, 0, "image ids"),
        (0, -1, 0, "^x: it spans"),
        (0, 0, 65536, "^y: it spans"),
    ],
)
def test_out_of_range(image, x, y, what):
    with pytest.raises(ConfigError, match=what):
        pack_ids(np.array([0, image]), np.array([0, x]), np.array([0, y]))


def test_lengths_of_records_are_the_number_of_patches():
    k = np.zeros((3, 7), np.int64)
    assert len(Candidates(k, k, k, k)) == len(RankedCandidates(k, k, k, k, k, k, k, k)) == 3


def test_the_fake_fits_the_protocol():
    fake: Encoder = FakeEncoder(cells=2)
    assert {"name", "dim", "step_px", "fingerprint", "embed"} <= set(dir(fake))
    assert FakeEncoder(2).fingerprint != FakeEncoder(4).fingerprint
    assert silent("stage", 1, None) is None
