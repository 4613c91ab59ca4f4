"""NCC against a slow restatement and OpenCV; the pixel, the offset below it, and the new ranking."""

import numpy as np
import pytest
from engine import texture
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.config import RefineConfig
from retrieval.errors import BandsWarning
from retrieval.matching.ncc import FLAT, ncc
from retrieval.matching.pyramid import FIRST_VERIFY_K, match_and_verify, refine_full_resolution
from retrieval.matching.session import Session
from retrieval.matching.tensors import Arrays
from retrieval.types import Candidates
from tfrecords.schema import BANDS


def correlate(template, region, weight=None):
    """`ncc` of single pictures."""
    weight = None if weight is None else weight[None].astype(np.float32)
    return np.asarray(ncc(template[None].astype(np.float32), region[None].astype(np.float32), weight))[0]


def each(numbers):
    """Numbers as an array that multiplies pictures (n, h, w, c)."""
    return np.array(numbers, np.float32)[:, None, None, None]


def slow_ncc(template, region, weight=None):
    """One shift after the other, in float64."""
    h, w, _ = template.shape
    weight = np.ones((h, w, 1)) if weight is None else weight.astype(np.float64)
    count = max(weight.sum(), 1.0)
    t = (template - (template * weight).sum((0, 1)) / count) * weight
    out = np.zeros((region.shape[0] - h + 1, region.shape[1] - w + 1))
    for dy, dx in np.ndindex(out.shape):
        under = region[dy : dy + h, dx : dx + w]
        r = (under - (under * weight).sum((0, 1)) / count) * weight
        energy, spread = (t * t).sum(), (r * r).sum()
        if min(energy, spread) > FLAT * count:
            out[dy, dx] = (t * r).sum() / np.sqrt(energy * spread)
    return out


# ---------------------------------------------------------------- the correlation


# The time of `ncc` is that of its steps, so each example has several pictures of a shape.
@settings(max_examples=16)
@given(
    st.integers(0, 10**6),
    st.tuples(
        st.integers(3, 12), st.integers(3, 12), st.integers(0, 9), st.integers(0, 9), st.integers(1, 4)
    ),
    st.lists(st.floats(0.1, 10), min_size=4, max_size=4),
    st.lists(st.floats(-20, 20), min_size=4, max_size=4),
    st.booleans(),
)
def test_ncc_against_a_slow_restatement(seed, shape, gains, offsets, weighted):
    h, w, more_y, more_x, channels = shape
    rng, gain, offset = np.random.default_rng(seed), each(gains), each(offsets)
    template = rng.normal(size=(4, h, w, channels)).astype(np.float32)
    region = (gain * rng.normal(size=(4, h + more_y, w + more_x, channels)) + offset).astype(np.float32)
    weight = (rng.random((4, h, w, 1)) < 0.7).astype(np.float32) if weighted else None
    got = np.asarray(ncc(template, region, weight))
    assert got.shape == (4, more_y + 1, more_x + 1) and (np.abs(got) <= 1).all()
    for n in range(4):
        slow = slow_ncc(template[n].astype(float), region[n].astype(float), weight[n] if weighted else None)
        np.testing.assert_allclose(got[n], slow, atol=1e-3)


def test_ncc_on_tensors_as_large_as_the_engine_uses():
    rng = np.random.default_rng(0)
    region = np.abs(rng.normal(size=(86, 86, 3))).astype(np.float32) * 3
    region[:50, :40] = 0.01 * rng.normal(size=(50, 40, 3))  # water beside town: small beside large sums
    weight = rng.random((62, 62, 1)) < 0.8
    template = region[10:72, 7:69] + rng.normal(size=(62, 62, 3)).astype(np.float32)
    for w in (None, weight):
        np.testing.assert_allclose(
            correlate(template, region, w),
            slow_ncc(template.astype(float), region.astype(float), w),
            atol=1e-3,
        )


@pytest.mark.parametrize("weighted", [False, True])
def test_copy_is_plus_one_at_its_place_and_the_negative_minus_one(weighted):
    region = texture(40, 50, bands=3, power=1.0)
    weight = np.random.default_rng(1).random((20, 24, 1)) < 0.7 if weighted else None
    template = region[7:27, 11:35]
    surface = correlate(template, region, weight)
    assert np.unravel_index(surface.argmax(), surface.shape) == (7, 11)  # [dy, dx]
    assert surface[7, 11] == pytest.approx(1, abs=1e-4)
    assert correlate(-template, region, weight)[7, 11] == pytest.approx(-1, abs=1e-4)


@settings(max_examples=3)
@given(
    st.integers(0, 10**6),
    st.lists(st.floats(0.2, 30), min_size=20, max_size=20),
    st.lists(st.lists(st.floats(-30, 30), min_size=3, max_size=3), min_size=20, max_size=20),
)
def test_gain_and_offset_of_either_side_change_nothing(seed, gains, offsets):
    rng, gain = np.random.default_rng(seed), each(gains)
    offset = np.array(offsets, np.float32)[:, None, None]
    template, region = (rng.normal(size=(20, *s, 3)).astype(np.float32) for s in ((12, 13), (20, 19)))
    plain = np.asarray(ncc(template, region))
    np.testing.assert_allclose(ncc(gain * template + offset, region), plain, atol=2e-3)
    np.testing.assert_allclose(ncc(template, gain * region + offset), plain, atol=2e-3)


@pytest.mark.parametrize("weighted", [False, True])
def test_flat_is_zero_and_never_nan(weighted):
    weight = np.ones((8, 8, 1)) if weighted else None
    busy, flat = texture(20, 20, bands=2), np.full((20, 20, 2), 3.0)
    for template, region in ((flat[:8, :8], busy), (busy[:8, :8], flat), (flat[:8, :8], flat)):
        assert not correlate(template, region, weight).any()
    half = np.concatenate([busy, flat], 1)
    surface = correlate(busy[:8, :8], half, weight)
    assert np.isfinite(surface).all() and not surface[:, 20:].any() and surface[0, 0] > 0.999


def test_a_template_that_is_wholly_hidden_is_zero():
    assert not correlate(texture(8, 8), texture(20, 20), np.zeros((8, 8, 1))).any()


def test_hidden_pixels_of_the_template_do_not_count():
    region = texture(30, 30, bands=3)
    template, weight = region[5:25, 4:24].copy(), np.ones((20, 20, 1))
    weight[:9, 6:] = 0
    plain = correlate(template, region, weight)
    template[:9, 6:] = 1000.0
    np.testing.assert_allclose(correlate(template, region, weight), plain, atol=2e-3)
    assert plain[5, 4] == pytest.approx(1, abs=1e-4)


def test_agrees_with_opencv():
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(3)
    region = (rng.normal(size=(60, 70)) + np.linspace(0, 5, 70)).astype(np.float32)
    template = region[20:52, 9:40] + 0.5 * rng.normal(size=(32, 31)).astype(np.float32)
    theirs = cv2.matchTemplate(region, template, cv2.TM_CCOEFF_NORMED)
    np.testing.assert_allclose(correlate(template[..., None], region[..., None]), theirs, atol=1e-3)


def test_the_same_inside_a_data_set():
    import tensorflow as tf

    region = texture(30, 31, bands=3)[None]
    template = region[:, 3:23, 4:20]
    mapped = tf.data.Dataset.from_tensors((template, region)).map(lambda t, r: ncc(t, r))
    np.testing.assert_allclose(next(iter(mapped)), ncc(template, region), atol=1e-5)


# ---------------------------------------------------------------- around candidates


def asked(patches, bands=None):
    """Scaled patches as refinement reads them."""
    patches = np.asarray(patches, np.float32)

    class Asked:
        def __len__(self):
            return len(patches)

        def scaled(self, rows):
            return patches[rows]

    one = Asked()
    one.bands = bands or BANDS[: patches.shape[-1]]
    return one


def refine(candidates, patches, images, refinement, **more):
    """Match, verify and refine."""
    session = Session(images, patches, refinement=refinement, **more)
    return refine_full_resolution(session, match_and_verify(session, candidates))


def found(rows):
    """Candidates from rows of (image, x, y, similarity)."""
    table = np.array(rows, np.float64)
    image, x, y = (table[..., i].astype(np.int64) for i in range(3))
    return Candidates(image, x, y, table[..., 3].astype(np.float32))


def arrays(*images, bands=None):
    names = {i: (bands[i] if bands else BANDS[: image.shape[-1]]) for i, image in enumerate(images)}
    return Arrays(dict(enumerate(images)), names)


def cut(image, x, y):
    return image[y : y + 64, x : x + 64]


CORNERS = [(0, 0), (87, 0), (0, 66), (87, 66), (86, 65), (1, 1), (33, 47), (50, 3), (41, 40)]
"""Places of patches in an image of 151 x 130 pixels."""


@pytest.mark.parametrize("off", [(0, 0), (-7, 5), (4, -4), (11, 11)])
def test_copies_are_found_at_their_pixel_from_a_candidate_beside_it(off):
    image = texture(130, 151)
    start = [[(0, np.clip(x + off[0], 0, 87), np.clip(y + off[1], 0, 66), 0.5)] for x, y in CORNERS]
    patches = asked([cut(image, x, y) for x, y in CORNERS])
    got = refine(found(start), patches, arrays(image), RefineConfig(radius_px=12))
    assert list(zip(got.x[:, 0], got.y[:, 0], strict=True)) == CORNERS
    assert (got.ncc > 0.999).all()
    assert np.abs(np.stack([got.dx, got.dy])).max() < 0.05


def test_an_image_as_small_as_a_patch():
    image = texture(64, 64)
    got = refine(found([[(0, 0, 0, 1.0)]]), asked([image]), arrays(image), RefineConfig())
    assert (got.x[0, 0], got.y[0, 0]) == (0, 0) and got.ncc[0, 0] > 0.999


def test_places_out_of_reach_are_not_found():
    image = texture(130, 151)
    got = refine(
        found([[(0, 0, 0, 0.5)]]), asked([cut(image, 30, 0)]), arrays(image), RefineConfig(radius_px=12)
    )
    assert got.x[0, 0] <= 12 + 2 * 2 + 3 and got.ncc[0, 0] < 0.6


def waves(x, y, bands=3, seed=0):
    """Smooth ground that is known between the pixels: sums of waves at (x, y)."""
    rng = np.random.default_rng(seed)
    out = np.zeros((*x.shape, bands))
    for _ in range(40):
        length, turn, phase = rng.uniform(9, 40), rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi)
        wave = np.sin(2 * np.pi / length * (x * np.cos(turn) + y * np.sin(turn)) + phase)
        out += wave[..., None] * rng.normal(size=bands)
    return (out / 25).astype(np.float32)


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (0.25, -0.4), (0.49, 0.49), (-0.33, 0.1), (-0.1, -0.2)])
def test_offset_below_the_pixel(dx, dy):
    y, x = np.mgrid[:128, :128].astype(float)
    image = waves(x, y)
    places = [(20, 30), (41, 7), (0, 64)]
    patches = [waves(px + dx + x[:64, :64], py + dy + y[:64, :64]) for px, py in places]
    start = [[(0, px + 3, max(py - 2, 0), 0.5)] for px, py in places]
    got = refine(found(start), asked(patches), arrays(image), RefineConfig())
    for (px, py), gx, gy in zip(places, (got.x + got.dx)[:, 0], (got.y + got.dy)[:, 0], strict=True):
        assert abs(gx - px - dx) < 0.2 or px in (0, 64)  # a neighbour outside the image is no help
        assert abs(gy - py - dy) < 0.2 or py in (0, 64)
    assert np.abs(got.dx).max() <= 0.5 and np.abs(got.dy).max() <= 0.5


def test_the_right_image_wins_over_more_similar_ones():
    images = [texture(100, 100, seed=s) for s in range(3)]
    start = [[(2, 16, 16, 0.9), (1, 8, 8, 0.7), (0, 24, 0, 0.6)]]
    got = refine(found(start), asked([cut(images[0], 20, 3)]), arrays(*images), RefineConfig(verify_k=3))
    assert (got.image_ids[0, 0], got.x[0, 0], got.y[0, 0]) == (0, 20, 3)
    assert sorted(got.image_ids[0]) == [0, 1, 2]
    assert got.similarity[0, 0] == np.float32(0.6)


def test_finalists_are_refined_the_rest_keeps_its_place_below():
    images = [texture(100, 100, seed=s) for s in range(6)]
    start = [[(i, 16, 16, 0.5) for i in range(6)]]
    got = refine(found(start), asked([cut(images[4], 21, 19)]), arrays(*images), RefineConfig(verify_k=2))
    assert (got.image_ids[0, 0], got.x[0, 0], got.y[0, 0]) == (4, 21, 19)
    assert not got.dx[0, 2:].any() and not got.dy[0, 2:].any()
    assert (np.diff(got.ncc[0, 2:]) <= 0).all()


def test_order_of_candidates_decides_nothing_and_ties_go_to_the_smaller_id():
    image = texture(100, 100)
    images = arrays(image, image, image)
    rows = [(i, x, 16, 0.5) for i in (2, 0, 1) for x in (8, 24)]
    patch = asked([cut(image, 20, 16)])
    config = RefineConfig(verify_k=6)
    got = refine(found([rows]), patch, images, config)
    other = refine(found([rows[::-1]]), patch, images, config)
    for name in ("image_ids", "x", "y", "ncc"):
        np.testing.assert_array_equal(getattr(got, name), getattr(other, name))
    assert got.image_ids[0, 0] == 0 and (got.x[0, 0], got.y[0, 0]) == (20, 16)


def test_a_flat_patch_keeps_the_candidates_place_with_ncc_zero():
    image = texture(100, 100)
    flat, empty = np.full((64, 64, 4), 0.1), np.full((64, 64, 4), np.nan)
    got = refine(found([[(0, 16, 24, 0.0)]] * 2), asked([flat, empty]), arrays(image), RefineConfig())
    assert got.x.tolist() == [[16]] * 2 and got.y.tolist() == [[24]] * 2
    assert not got.ncc.any() and not got.dx.any() and not got.dy.any()


def test_no_candidates_and_no_patches():
    image = texture(80, 80)
    got = refine(
        found([[(-1, -1, -1, -np.inf)] * 2]), asked([image[:64, :64]]), arrays(image), RefineConfig()
    )
    assert (got.image_ids == -1).all() and np.isneginf(got.similarity).all() and not got.ncc.any()
    none = Candidates(*(np.zeros((0, 5), t) for t in (np.int64, np.int64, np.int64, np.float32)))
    assert len(refine(none, asked(np.zeros((0, 64, 64, 4))), arrays(image), RefineConfig())) == 0


def test_hidden_pixels_of_a_patch_do_not_hinder():
    image = texture(120, 120)
    patch = cut(image, 30, 21).copy()
    patch[:30, 20:] = np.nan
    got = refine(found([[(0, 24, 24, 0.3)]]), asked([patch]), arrays(image), RefineConfig())
    assert (got.x[0, 0], got.y[0, 0]) == (30, 21) and got.ncc[0, 0] > 0.97


def test_nodata_in_both_is_found_as_itself():
    image = texture(120, 120)
    image[:50, :60] = np.nan
    got = refine(found([[(0, 24, 24, 0.3)]]), asked([cut(image, 30, 21)]), arrays(image), RefineConfig())
    assert (got.x[0, 0], got.y[0, 0]) == (30, 21) and got.ncc[0, 0] > 0.99


def test_batches_change_nothing():
    images = [texture(100, 110, seed=s) for s in range(2)]
    rng = np.random.default_rng(0)
    patches = asked([cut(images[i % 2], *rng.integers(0, 36, 2)) for i in range(7)])
    start = found([[(i % 2, 16, 16, 0.5), (1 - i % 2, 8, 0, 0.4), (-1, -1, -1, -np.inf)] for i in range(7)])
    whole = refine(start, patches, arrays(*images), RefineConfig())
    small = {0: 2, 1: 2, 2: 2}
    parts = refine(start, patches, arrays(*images), RefineConfig(), batch_pairs=small)
    np.testing.assert_array_equal(parts.x, whole.x)
    np.testing.assert_allclose(parts.ncc, whole.ncc, atol=1e-5)


# ---------------------------------------------------------------- bands


def test_compared_in_the_bands_that_are_shared():
    image = texture(100, 100)
    patch = cut(image, 20, 11).copy()
    patch[..., 3] = texture(64, 64, bands=1, seed=9)[..., 0]  # a band that the image has no match for
    start = found([[(0, 16, 8, 0.5)]])
    stored = arrays(image[..., [2, 0, 1]], bands=[("B02", "B04", "B03")])
    got = refine(start, asked([patch], BANDS), stored, RefineConfig())
    assert (got.x[0, 0], got.y[0, 0]) == (20, 11) and got.ncc[0, 0] > 0.999


def test_without_a_shared_band_the_edges_are_compared_and_it_is_said():
    ground = texture(100, 100, bands=1)
    stored = arrays(ground, ground, bands=[("B11",), ("B04",)])
    patch = asked([-0.5 * cut(ground, 20, 11)], ("B04",))
    start = found([[(0, 16, 8, 0.5), (1, 16, 8, 0.4)]])
    with pytest.warns(BandsWarning, match="1 of 2 images share no band with the patches .*B11.*B04"):
        got = refine(start, patch, stored, RefineConfig())
    assert (got.x[0, 0], got.y[0, 0]) == (20, 11) and got.ncc[0, 0] > 0.9
    assert abs(got.x[0, 1] - 20) <= 1 and abs(got.y[0, 1] - 11) <= 1  # half resolution


def test_progress_counts_pairs():
    image = texture(100, 100)
    told = []
    start = found([[(0, 16, 8, 0.5), (1, 0, 0, 0.4)]] * 3)
    refine(
        start,
        asked([cut(image, 20, 11)] * 3),
        arrays(image, image),
        RefineConfig(verify_k=1),
        progress=lambda *a: told.append(a),
    )
    half = [t for t in told if "half" in t[0]]
    assert [t[1:] for t in half] == [(6, 6)]
    assert told[-1][1:] == (3, 3)


# ---------------------------------------------------------------- some first, the others in doubt


class Told:
    """A verifier that is sure of one picture, and counts what it is asked."""

    def __init__(self):
        self.asked = 0

    def __call__(self, template, region, visible):
        self.asked += len(template)
        return np.asarray(10 * ncc(template, region)[:, 0, 0] - 5, np.float32)


def crowded():
    """Three patches, and for each the right place among thirty, its similarity the lowest."""
    images = [texture(300, 300, seed=s) for s in range(3)]
    at = [(40, 60), (120, 33), (200, 180)]
    patches = asked([cut(image, *xy) for image, xy in zip(images, at, strict=True)])
    rng = np.random.default_rng(0)
    wrong = [[(i, *rng.integers(0, 29, 2) * 8, 0.5) for _ in range(29)] for i in range(3)]
    return (
        images,
        at,
        patches,
        found([[*w, (i, *xy, 0.1)] for i, (w, xy) in enumerate(zip(wrong, at, strict=True))]),
    )


def ranked_by(verifier, certain, **knobs):
    images, at, patches, start = crowded()
    config = RefineConfig(half_res_k=30, verify_k=10, verify_margin=1000.0, **knobs)
    session = Session(arrays(*images), patches, refinement=config, verifier=verifier)
    got = match_and_verify(session, start, certain)
    np.testing.assert_array_equal(np.stack([got.x[:, 0], got.y[:, 0]], -1), at)
    return got


def test_what_the_first_decide_is_not_looked_at_further():
    every, some, none = Told(), Told(), Told()
    whole = ranked_by(every, None)
    assert every.asked == 30
    doubted = ranked_by(none, lambda found: np.zeros(3, bool))
    assert none.asked == 30
    np.testing.assert_array_equal(doubted.x, whole.x)
    np.testing.assert_allclose(doubted.logit, whole.logit, atol=1e-4)
    decided = ranked_by(some, lambda found: np.array([True, False, True]))
    assert some.asked == 10 + 2 * FIRST_VERIFY_K
    assert (~np.isnan(decided.logit)).sum(1).tolist() == [FIRST_VERIFY_K, 10, FIRST_VERIFY_K]
    np.testing.assert_array_equal(decided.x[1], whole.x[1])


def test_several_are_found_at_full_resolution_as_each_is_alone():
    images, _, patches, start = crowded()
    session = Session(arrays(*images), patches, refinement=RefineConfig(half_res_k=6), verifier=Told())
    ranked = match_and_verify(session, start)
    both = refine_full_resolution(session, ranked, 2)
    for n in range(2):
        one = ranked.map(lambda v, n=n: v[:, n : n + 1])
        alone = refine_full_resolution(session, one, 5)
        for name in ("x", "y", "dx", "dy", "ncc"):
            np.testing.assert_allclose(getattr(both, name)[:, n], getattr(alone, name)[:, 0], atol=1e-5)
    np.testing.assert_array_equal(both.ncc[:, 2:], ranked.ncc[:, 2:])


def test_candidates_far_behind_the_best_are_not_verified_and_copies_are():
    images, at, _, _ = crowded()
    copies = arrays(images[0], images[0])
    both = found([[(0, *at[0], 0.4), (1, *at[0], 0.4), (0, 8, 200, 0.4)]])
    verifier = Told()
    patches = asked([cut(images[0], *at[0])])
    session = Session(copies, patches, refinement=RefineConfig(verify_k=3), verifier=verifier)
    got = match_and_verify(session, both)
    assert verifier.asked == 2 and got.image_ids[0].tolist() == [0, 1, 0]
    assert got.logit[0, 0] == got.logit[0, 1] and np.isnan(got.logit[0, 2])


@pytest.mark.parametrize("dates", [1, 2, 5])
def test_the_next_place_is_verified_behind_dates_of_one_place(dates):
    images, at, _, _ = crowded()
    places = [(i, *at[0], 0.4) for i in range(dates)] + [(dates, 8, 200, 0.4), (dates, 100, 8, 0.4)]
    verifier = Told()
    patches = asked([cut(images[0], *at[0])])
    config = RefineConfig(verify_k=2, half_res_k=3, verify_margin=1000.0)
    session = Session(arrays(*[images[0]] * dates, images[1]), patches, refinement=config, verifier=verifier)
    got = match_and_verify(session, found([places]))
    assert verifier.asked == (2 if dates == 1 else 3)
    assert got.image_ids[0, 0] < dates and dates in got.image_ids[0, ~np.isnan(got.logit[0])]
