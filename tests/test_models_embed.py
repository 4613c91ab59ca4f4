"""The dense embedding is that of its crops; nothing without ground is indexed."""

import numpy as np
import pytest
from engine import learned_encoder, small_encoder, texture
from hypothesis import given
from hypothesis import strategies as st

from retrieval.config import IndexConfig
from retrieval.errors import ConfigError
from retrieval.models.embed import embed_dense, embed_image, embed_patches, worth_indexing
from retrieval.models.encoder import FakeEncoder, load_encoder
from retrieval.models.registry import TRAINING_FREE
from tfrecords.schema import BANDS, Patches

ENCODERS = {
    "small": small_encoder,
    "learned": learned_encoder,
    "shipped": lambda: load_encoder(TRAINING_FREE),
}


def crops(encoder, scaled, stride):
    """Every window cut out and embedded by itself: the slow way."""
    rows, cols = ((n - 64) // stride + 1 for n in scaled.shape[:2])
    cut = [
        scaled[r * stride : r * stride + 64, c * stride : c * stride + 64]
        for r in range(rows)
        for c in range(cols)
    ]
    return encoder.embed(np.stack(cut)).reshape(rows, cols, encoder.dim)


def holed(scaled):
    """With nodata in all bands here and in one band there."""
    scaled = scaled.copy()
    scaled[20:50, 30:41] = np.nan
    scaled[:5, :, 0] = np.nan
    scaled[-1] = np.nan
    return scaled


# ---------------------------------------------------------------- dense is crops


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("stride", [4, 8, 16])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (79, 101), (96, 67)])
@pytest.mark.parametrize("holes", [False, True], ids=["whole", "holed"])
def test_dense_embedding_equals_crops(name, stride, height, width, holes):
    scaled = texture(height, width, seed=height)
    scaled = holed(scaled) if holes else scaled
    dense = embed_dense(ENCODERS[name](), scaled, stride)
    slow = crops(ENCODERS[name](), scaled, stride)
    assert dense.shape == slow.shape
    assert np.abs(dense - slow).max() < 1e-4


@pytest.mark.parametrize("name", ["small", "learned"])
@pytest.mark.parametrize("bands", [1, 3])
def test_dense_embedding_equals_crops_in_fewer_bands(name, bands):
    scaled = holed(texture(90, 83, bands=bands))
    dense = embed_dense(ENCODERS[name](), scaled, 8)
    assert np.abs(dense - crops(ENCODERS[name](), scaled, 8)).max() < 1e-4


@pytest.mark.parametrize("stride", [1, 2, 24, 64])
def test_other_strides(stride):
    encoder = FakeEncoder()
    scaled = texture(64 + 2 * stride, 64 + stride + 5, bands=1)
    dense = embed_dense(encoder, scaled, stride)
    np.testing.assert_allclose(dense, crops(encoder, scaled, stride), atol=1e-5)


@pytest.mark.parametrize("stride", [3, 12, 63])
def test_strides_that_do_not_fit_are_refused(stride):
    with pytest.raises(ConfigError, match="multiple or a divisor"):
        embed_dense(FakeEncoder(), texture(80, 80), stride)


@pytest.mark.parametrize("stride", [4, 8, 16])
@pytest.mark.parametrize("tile_px", [64, 100, 130])
def test_tiles_change_nothing(stride, tile_px):
    scaled = holed(texture(150, 201))
    whole = embed_dense(small_encoder(), scaled, stride)
    np.testing.assert_allclose(embed_dense(small_encoder(), scaled, stride, tile_px), whole, atol=1e-5)


# ---------------------------------------------------------------- what is indexed


def slow_worth(scaled, stride, min_visible):
    rows, cols = ((n - 64) // stride + 1 for n in scaled.shape[:2])
    out = np.zeros((rows, cols), bool)
    for r, c in np.ndindex(out.shape):
        window = scaled[r * stride : r * stride + 64, c * stride : c * stride + 64]
        right, below = np.abs(np.diff(window, axis=1)), np.abs(np.diff(window, axis=0))
        relief = (right[1:] > 0).any() or (below[:, 1:] > 0).any()
        out[r, c] = relief and (~np.isnan(window).all(-1)).mean() >= min_visible
    return out


@pytest.mark.parametrize("min_visible", [0.0, 0.5, 0.9, 1.0])
def test_worth_indexing_against_a_slow_restatement(min_visible, rng):
    scaled = np.full((150, 170, 2), 0.1, np.float32)
    scaled[40:90, 50:120] = texture(50, 70, bands=2)
    for _ in range(3):
        y, x = rng.integers(0, 120, 2)
        scaled[y : y + 45, x : x + 40] = np.nan
    config = IndexConfig(stride_px=8, min_visible=min_visible)
    worth = worth_indexing(scaled, config)
    np.testing.assert_array_equal(worth, slow_worth(scaled, 8, min_visible))
    assert 0 < worth.sum() < worth.size


def test_nodata_and_flat_ground_are_never_indexed():
    scaled = texture(160, 200)
    scaled[:, :72] = np.nan  # windows at x = 0, 8 see nodata only; those up to x = 32 more nodata than ground
    scaled[80:, 104:] = 0.2  # water: windows wholly in it are flat
    for encoder in (small_encoder(), learned_encoder()):
        found = embed_image(encoder, scaled, IndexConfig())
        x, y = found.xy.T
        assert found.windows == 13 * 18
        assert x.min() == 40  # half of it is seen
        assert not ((y >= 80) & (x >= 104)).any()
        assert {(104, 72), (96, 80)} <= set(map(tuple, found.xy.tolist()))
        np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-5)


def test_flat_ground_beside_nodata_is_not_indexed():
    """The edge of nodata is no relief."""
    scaled = np.full((80, 80, 4), 0.2, np.float32)
    scaled[:, :20] = np.nan
    assert not worth_indexing(scaled, IndexConfig()).any()
    for encoder in (FakeEncoder(), small_encoder(), learned_encoder()):
        assert len(embed_image(encoder, scaled, IndexConfig()).xy) == 0


def test_an_image_without_ground_gives_no_windows():
    for value in (np.nan, 0.5):
        found = embed_image(small_encoder(), np.full((70, 90, 3), value, np.float32), IndexConfig())
        assert found.xy.shape == (0, 2) and found.vectors.shape == (0, small_encoder().dim)


def test_windows_come_row_by_row_with_their_own_vectors():
    """On the stride, and along the right and lower edge where the stride leaves some pixels out."""
    scaled = texture(85, 99)
    found = embed_image(small_encoder(), scaled, IndexConfig(stride_px=16))
    assert found.xy.tolist() == [[x, y] for y in (0, 16, 21) for x in (0, 16, 32, 35)]
    assert found.windows == 12
    for (x, y), vector in zip(found.xy, found.vectors, strict=True):
        alone = small_encoder().embed(scaled[None, y : y + 64, x : x + 64])[0, 0, 0]
        np.testing.assert_allclose(vector, alone, atol=1e-4)


@given(st.integers(64, 120), st.integers(64, 120), st.sampled_from([1, 2, 4, 8, 16, 32, 64]))
def test_no_place_is_further_than_half_a_stride_from_a_window(height, width, stride):
    rng = np.random.default_rng(0)
    scaled = rng.uniform(-1, 1, (height, width, 1)).astype(np.float32)
    found = embed_image(Tops(), scaled, IndexConfig(stride_px=stride))
    assert found.windows == len(found.xy) == len({*map(tuple, found.xy.tolist())})
    np.testing.assert_array_equal(found.vectors[:, 0], scaled[found.xy[:, 1], found.xy[:, 0], 0])
    for length, at in ((width, found.xy[:, 0]), (height, found.xy[:, 1])):
        gap = np.abs(np.arange(length - 63)[:, None] - np.unique(at)).min(1)
        assert gap.max() <= stride // 2


class Tops:
    """An encoder that tells windows by their first pixel; its vectors are not of unit length."""

    name, dim, step_px, fingerprint = "tops", 1, 1, "tops"

    def embed(self, batch):
        return batch[:, : batch.shape[1] - 63, : batch.shape[2] - 63]


# ---------------------------------------------------------------- patches


def test_patches_are_embedded_batch_by_batch():
    patches = np.stack([texture(64, 64, seed=s) for s in range(8)])
    vectors = embed_patches(small_encoder(), patches, batch=3)
    np.testing.assert_allclose(vectors, small_encoder().embed(patches)[:, 0, 0], atol=1e-6)
    read, told = Patches(np.arange(8), patches, "scaled", BANDS, None), []
    again = embed_patches(small_encoder(), read, lambda *step: told.append(step), batch=3)
    np.testing.assert_array_equal(again, vectors)
    assert [done for _, done, _ in told] == [3, 6, 8]


def test_no_patches_give_no_vectors():
    none = np.zeros((0, 64, 64, 4), np.float32)
    assert embed_patches(small_encoder(), none).shape == (0, small_encoder().dim)
