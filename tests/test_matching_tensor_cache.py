"""Tensors of images: kept on shelves, given up as a whole, and the regions cut out of them."""

import numpy as np
import pytest
from engine import texture

from retrieval.kernels.executors import SerialExecutor
from retrieval.matching import tensor_cache
from retrieval.matching.pyramid import match_half_resolution
from retrieval.matching.session import Session
from retrieval.matching.sites import Sites
from retrieval.matching.tensor_cache import BYTES_PER_PIXEL, TensorCache
from retrieval.matching.tensors import (
    LEVELS,
    Arrays,
    crop_windows,
    full_resolution,
    pyramid,
    template_side,
    tensor_of,
)
from retrieval.types import Candidates
from tfrecords.schema import BANDS, Patches

COLUMNS = (0, 1, 2, 3)


def scene(seed, height=150, width=170, hidden=False):
    made = np.clip(0.5 * texture(height, width, seed=seed) - 0.5, -1, 1).astype(np.float32)
    if hidden:
        made[40:90, 30:80] = np.nan
    return made


@pytest.fixture
def images():
    """Three of one size, one of them partly hidden, and two of separate sizes."""
    made = {0: scene(0), 1: scene(1, hidden=True), 2: scene(2), 3: scene(3, 100, 90), 4: scene(4, 64, 300)}
    return Arrays(made, dict.fromkeys(made, BANDS))


def asked(images, level, count=200):
    """Positions in the level's pixels that a patch may have, in any order."""
    rng = np.random.default_rng(level)
    ids = rng.integers(0, 5, count)
    most = np.array([images.size(int(i)) for i in ids])[:, ::-1] - 64
    return ids, (rng.integers(0, most + 1) >> level).astype(np.int64)


def mean_of_blocks(tensor, visible):
    """A level from the one before it, pixel by pixel."""
    h, w = tensor.shape[0] // 2, tensor.shape[1] // 2
    out, seen = np.zeros((h, w, 3), np.float32), np.zeros((h, w, 1), bool)
    for y in range(h):
        for x in range(w):
            part, known = (
                tensor[2 * y : 2 * y + 2, 2 * x : 2 * x + 2],
                visible[2 * y : 2 * y + 2, 2 * x : 2 * x + 2],
            )
            if known.sum() >= 2:
                out[y, x], seen[y, x] = part[known[..., 0]].mean(0), True
    return out, seen


@pytest.mark.parametrize("image", [1, 3])
@pytest.mark.parametrize("tile", [512, 32])
def test_levels_are_means_of_the_visible_pixels(images, image, tile):
    scaled = images.scaled(image)
    tensor, known = full_resolution(scaled[None])
    tensor, known = tensor[0], np.ones((*tensor.shape[1:3], 1), bool) if known is None else known[0]
    layers = pyramid(scaled[None], tile)
    for level in LEVELS:
        tensor, known = mean_of_blocks(tensor, known)
        got = layers[level]
        np.testing.assert_allclose(tensor_of(got.codes[0]), tensor, atol=2e-4)
        assert known.all() if got.known is None else (got.known[0] == known).all()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("radius", [0, 2])
def test_regions_against_one_after_the_other(images, level, radius):
    ids, at = asked(images, level)
    got = TensorCache(images).regions(Sites(ids, at, COLUMNS, radius, level))
    size, known = template_side(level) + 2 * radius, np.ones((len(ids), 1, 1, 1), bool)
    known = np.broadcast_to(known, (*got.stored.shape[:3], 1)) if got.known is None else got.known
    assert got.stored.shape == (len(ids), size, size, 3) and not known.all()
    for n, (image, (x, y)) in enumerate(zip(ids, at, strict=True)):
        layer = pyramid(images.scaled(int(image))[None])[level]
        h, w = layer.codes.shape[1:3]
        rows, cols = (np.arange(v - radius, v - radius + size) for v in (y, x))
        inside = np.ix_((rows >= 0) & (rows < h), (cols >= 0) & (cols < w))
        from_image = layer.codes[0][np.ix_(rows[(rows >= 0) & (rows < h)], cols[(cols >= 0) & (cols < w)])]
        # Compiled and uncompiled code may round a code differently.
        np.testing.assert_allclose(got.stored[n][inside], from_image, atol=1)
        if layer.known is not None:
            seen = layer.known[0][np.ix_(rows[(rows >= 0) & (rows < h)], cols[(cols >= 0) & (cols < w)])]
            np.testing.assert_array_equal(known[n][inside], seen)


def test_the_spread_is_that_of_what_lies_under_the_template(images):
    ids, at = asked(images, 1, 30)
    got = TensorCache(images).regions(Sites(ids, at, COLUMNS, 0, 1))
    under = tensor_of(got.stored).astype(np.float64)
    centred = under - under.mean((1, 2), keepdims=True)
    np.testing.assert_allclose(got.energy[:, 0, 0], (centred**2).sum((1, 2, 3)), rtol=1e-4, atol=1e-3)


def test_slabs_that_are_dropped_change_nothing(images):
    ids, at = asked(images, 1)
    whole = TensorCache(images).regions(Sites(ids, at, COLUMNS, 2, 1))
    small = TensorCache(images, cache_bytes=1)
    for _ in range(2):
        part = small.regions(Sites(ids, at, COLUMNS, 2, 1))
        np.testing.assert_allclose(part.stored, whole.stored, atol=1)
        np.testing.assert_allclose(part.energy, whole.energy, rtol=1e-3)
        np.testing.assert_array_equal(part.known, whole.known)
    assert [count for _, count in small.slabs] == [1]


class CountingImages(Arrays):
    """Images that note which are read."""

    def scaled(self, image_id, window=None):
        return self.noted(image_id, super().scaled(image_id, window))

    def squares(self, image_id, corners, side):
        return self.noted(image_id, super().squares(image_id, corners, side))

    def noted(self, image_id, pixels):
        self.names.setdefault("read", []).append(image_id)
        self.names.setdefault("pixels", []).append(pixels[..., 0].size)
        return pixels


def test_images_of_one_size_share_slabs_and_none_is_read_twice():
    many = CountingImages({i: scene(i, 80, 80) for i in range(9)}, dict.fromkeys(range(9), BANDS))
    cache = TensorCache(many)
    ids = np.arange(9)
    for _ in range(2):
        cache.regions(Sites(ids, np.zeros((9, 2), np.int64), COLUMNS, 0, 2))
    assert sorted(many.names["read"]) == list(range(9))
    # Room for one block, then for twice as many as before.
    assert sorted(cache.slabs) == [(1, 1), (2, 2), (4, 4), (8, 2)]


@pytest.mark.parametrize(("level", "radius"), [(0, 1), (1, 0), (1, 2), (2, 0), (2, 3)])
def test_few_sites_have_the_tensors_of_whole_images(images, level, radius):
    """Sites of a large image are read alone, until half of its work is done."""
    made = {
        **images.arrays,
        0: scene(0, 300, 700),
        1: scene(1, 400, 300, hidden=True),
        4: scene(4, 2300, 300),
    }
    ids, at = np.repeat([0, 1, 2, 4], 12), np.random.default_rng(1).integers(0, 2300, (48, 2))
    at = at % [np.subtract(made[i].shape[1::-1], 63) for i in ids.tolist()] >> level
    sites, images = Sites(ids, at, COLUMNS, radius, level), Arrays(made, images.names)
    whole, alone = TensorCache(images).regions(sites), TensorCache(images)
    known = np.ones((*whole.stored.shape[:3], 1), bool) if whole.known is None else whole.known
    for row in range(len(ids)):
        one = alone.regions(sites.select(np.array([row])))
        np.testing.assert_array_equal(one.stored[0], whole.stored[row])
        np.testing.assert_array_equal(True if one.known is None else one.known[0], known[row])
        if level:
            np.testing.assert_array_equal(one.energy[0], whole.energy[row])


def test_sites_of_a_large_image_read_little_of_it_and_many_read_it_once():
    large = CountingImages({0: scene(0, 1000, 1000)}, {0: BANDS})
    cache = TensorCache(large)
    for x in range(0, 900, 9):
        cache.regions(Sites(np.zeros(1, np.int64), np.array([[x, x]]) >> 1, COLUMNS, 2, 1))
    read = large.names["pixels"]
    assert read[:3] == [72 * 72] * 3 and read[-1] == 1000 * 1000
    assert sum(read[:-1]) < 0.5 * 1000 * 1000 and len(read) > 50


def test_passes_begin_where_the_one_before_ended(monkeypatch):
    """With room for half of the images, alternate passes read fewer, and find the same."""
    pictures = {i: scene(i, 80, 80) for i in range(8)}
    monkeypatch.setattr(tensor_cache, "CACHE_BYTES", 4 * 2 * BYTES_PER_PIXEL * 80 * 80)
    monkeypatch.setattr(tensor_cache, "SLAB_BYTES", 1)  # a slab for each image
    ids, at = np.repeat(np.arange(8), 2)[None].repeat(3, 0), np.full((3, 16), 4)
    start = Candidates(ids, at, at, np.zeros((3, 16), np.float32))
    patches = np.stack([pictures[i][6:70, 3:67] for i in (1, 5, 7)])
    read, found = {}, {}
    for alternate in (False, True):
        images = CountingImages(dict(pictures), dict.fromkeys(pictures, BANDS))
        slab = TensorCache(images, 1)
        slab.regions(Sites(np.zeros(1, np.int64), np.zeros((1, 2), np.int64), COLUMNS, 0, 2))
        (held,) = slab._slabs
        images.names["read"].clear()
        cache = TensorCache(images, 4 * held.nbytes)
        if not alternate:
            monkeypatch.setattr(cache, "goes_backward", lambda: False)
        queries = Patches(np.arange(3), patches, "scaled", BANDS, float("nan"))
        of_group = {level: 3 * 8 for level in (2, 1)}
        session = Session(images, queries, tensors=cache, executor=SerialExecutor(), batch_pairs=of_group)
        found[alternate] = match_half_resolution(session, start, 16)
        read[alternate] = len(images.names["read"])
    assert read == {False: 16, True: 12}
    np.testing.assert_array_equal(found[True].ncc, found[False].ncc)
    assert found[True].image_ids[:, 0].tolist() == [1, 5, 7]


def test_squares_of_several_pictures():
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 1000, (3, 9, 11, 2)).astype(np.int16)
    which, at = rng.integers(0, 3, 40), np.stack([rng.integers(0, 11, 40), rng.integers(0, 9, 40)], -1)
    got = crop_windows(pictures, which, at, 4, 1)
    for n in range(40):
        rows, cols = (np.clip(at[n, k] - 1 + np.arange(4), 0, most) for k, most in ((1, 8), (0, 10)))
        np.testing.assert_array_equal(got[n], pictures[which[n]][np.ix_(rows, cols)])
