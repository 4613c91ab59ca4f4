"""Chips: windows are chosen well, votes are counted right, and a chip comes back to its pixel as one."""

import numpy as np
import pytest
from engine import digital, image_of, small_encoder, texture
from hypothesis import given
from hypothesis import strategies as st

from retrieval.config import ChipConfig, IndexConfig
from retrieval.errors import ConfigError
from retrieval.matching.large_chips import (
    Placements,
    chip_features,
    count_agreement,
    cut_windows,
    locate_chips,
    starts,
    vote,
)
from retrieval.matching.session import Session
from retrieval.models.calibration import CHIP_TERMS, Calibration, calibration_of
from retrieval.models.encoder import load_encoder
from retrieval.pipeline import build_index
from retrieval.results.matches import Matches
from retrieval.types import RankedCandidates
from tfrecords.read import ImageSource
from tfrecords.schema import BANDS, Chips, Image

# --- windows --------------------------------------------------------------------------------------


@given(st.integers(64, 5000))
def test_windows_cover_a_side_from_end_to_end(length):
    got = starts(length).tolist()
    assert got == sorted(got) and 0 <= got[0] and got[-1] <= length - 64
    if length < 96:
        assert len(got) == 1
        return
    assert got[0] == 0 and got[-1] == length - 64
    steps = np.diff(got)
    assert steps.min() >= 32 and steps.max() <= 96 and np.ptp(steps) <= 1


def test_windows_are_cut_where_they_say(rng):
    chip = texture(150, 200)
    windows = cut_windows(chip, BANDS, ChipConfig())
    assert windows.bands == BANDS and len(windows) == 6
    for (x, y), pixels in zip(windows.offsets, windows.pixels, strict=True):
        np.testing.assert_array_equal(pixels, chip[y : y + 64, x : x + 64])


def test_what_is_flat_or_hidden_is_not_looked_for():
    chip = texture(192, 192)
    chip[:64], chip[64:128] = np.nan, 0.25
    assert cut_windows(chip, BANDS, ChipConfig()).offsets.tolist() == [[0, 128], [64, 128], [128, 128]]
    chip[:] = np.nan
    assert cut_windows(chip, BANDS, ChipConfig()).offsets.tolist() == [[64, 64]]


@given(st.integers(1, 30), st.integers(64, 900), st.integers(64, 900))
def test_of_many_windows_some_are_chosen_far_from_each_other(most, height, width):
    chip = np.broadcast_to(np.arange(width, dtype=np.float32)[None, :, None] % 2, (height, width, 1))
    windows = cut_windows(chip, BANDS[:1], ChipConfig(max_windows=most))
    every = len(starts(height)) * len(starts(width))
    assert len(windows) == min(most, every)
    assert len(np.unique(windows.offsets, axis=0)) == len(windows)
    if most >= 4 and every > most and min(height, width) >= 96:
        assert np.ptp(windows.offsets[:, 0]) >= (width - 64) / 2


# --- votes ----------------------------------------------------------------------------------------


def refined(rng, windows, k, spread=20, images=2):
    """Random candidates of a chip's windows near a few corners, and where the windows begin."""
    offsets = rng.integers(0, 200, (windows, 2))
    ids = rng.integers(-1, images, (windows, k))
    at = rng.integers(-spread, spread, (2, windows, k)) + offsets.T[..., None]
    rest = rng.uniform(-0.5, 0.5, (2, windows, k)).astype(np.float32)
    ncc, similarity = rng.uniform(-0.2, 1, (2, windows, k)).astype(np.float32)
    logit = np.full_like(ncc, np.nan)
    return RankedCandidates(ids, at[0], at[1], *rest, ncc, similarity, logit), offsets


def slow_score(found, offsets, image, x, y, tolerance):
    """Sum over the windows of the best squared NCC among their candidates near a corner."""
    total = 0.0
    for w, (ox, oy) in enumerate(offsets.tolist()):
        best = 0.0
        for j in range(found.image_ids.shape[1]):
            dx = float(found.x[w, j]) + float(found.dx[w, j]) - ox - x
            dy = float(found.y[w, j]) + float(found.dy[w, j]) - oy - y
            if found.image_ids[w, j] == image and max(abs(dx), abs(dy)) <= tolerance:
                best = max(best, max(float(found.ncc[w, j]), 0) ** 2)
        total += best
    return total


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 6))
def test_votes_against_a_slow_restatement(seed, windows, k):
    rng = np.random.default_rng(seed)
    found, offsets = refined(rng, windows, k)
    config = ChipConfig(max_placements=3)
    got = vote(found, offsets, config)
    corners = [
        (int(found.image_ids[w, j]), float(found.x[w, j]) + float(found.dx[w, j]) - offsets[w, 0],
         float(found.y[w, j]) + float(found.dy[w, j]) - offsets[w, 1])
        for w in range(windows) for j in range(k) if found.image_ids[w, j] >= 0
    ]  # fmt: skip
    scores = [slow_score(found, offsets, *corner, config.tolerance_px) for corner in corners]
    if not scores or max(scores) <= 0:
        assert len(got) == 0
        return
    assert got.score[0] * windows == pytest.approx(max(scores), abs=1e-9)
    assert len(got) <= 3 and (np.diff(got.score) <= 1e-12).all()
    best = corners[int(np.argmax(scores))]
    assert got.image_ids[0] in {c[0] for c, s in zip(corners, scores, strict=True) if s >= max(scores) - 1e-9}
    if np.isclose(scores, max(scores)).sum() == 1:
        assert (
            abs(got.x[0] - best[1]) <= config.tolerance_px and abs(got.y[0] - best[2]) <= config.tolerance_px
        )


def at_places(x, y, offsets, ncc):
    """Peaks of windows that all see corners at (x, y)."""
    w, m = len(offsets), len(x)
    px, py = (np.asarray(v)[None] + offsets[:, i, None] for i, v in enumerate((x, y)))
    zero = np.zeros((w, m), np.float32)
    found = zero, zero.copy(), np.float32(ncc) + zero, zero, np.full_like(zero, np.nan)
    return RankedCandidates(np.zeros((w, m), np.int64), px, py, *found)


def origins(x, y):
    zero = np.zeros(len(x))
    ids = np.zeros(len(x), np.int64)
    return Placements(ids, np.asarray(x, float), np.asarray(y, float), zero, zero, zero, ids)


def test_the_place_at_which_most_windows_agree_is_the_best():
    offsets = np.array([[0, 0], [64, 0], [0, 64], [64, 64]])
    peaks = at_places([100, 300], [50, 70], offsets, 0.5)
    peaks.x[1:, 0] += 9  # three windows see the first place elsewhere
    peaks.image_ids[3, 1] = -1  # one lies outside of the image at the second
    peaks.dx[:, 1] = 0.25
    got = count_agreement(origins([100, 300], [50, 70]), peaks, offsets, ChipConfig())
    assert got.agree.tolist() == [3, 1] and got.x.tolist() == [300.25, 100] and got.y.tolist() == [70, 50]
    assert got.score == pytest.approx([0.375, 0.125]) and got.ncc == pytest.approx([0.5, 0.5])
    assert chip_features(got, 4) == pytest.approx([0.5, 0.25, 0.75, np.log2(3)])
    peaks.ncc[:] = -1
    assert len(count_agreement(origins([100, 300], [50, 70]), peaks, offsets, ChipConfig())) == 0
    assert not chip_features(got.take(np.zeros(0, int)), 4).any()


# --- confidence -----------------------------------------------------------------------------------


def test_more_agreement_is_surer_with_the_shipped_weights():
    shipped = calibration_of(load_encoder(), CHIP_TERMS)
    weak = np.array([0.2, 0.02, 0.3, 1.0])
    for term in range(4):
        strong = weak + 0.4 * np.eye(4)[term]
        assert shipped.probability(strong[None])[0] > shipped.probability(weak[None])[0]
    assert shipped.probability(np.zeros((1, 4)))[0] == 0
    assert shipped.probability(np.array([[0.7, 0.6, 1.0, 3.0]]))[0] > 0.95 and "chips" in shipped.fitted_on


def test_weights_come_back_and_others_are_refused(tmp_path):
    made = Calibration((1.0, 2.0, 3.0, 4.0), -1.0, "a test", "somebody's", CHIP_TERMS)
    path = tmp_path / "w.json"
    made.save(path)
    assert Calibration.load(path) == made
    for text in ("{", "{}", path.read_text().replace("lead", "other")):
        path.write_text(text)
        with pytest.raises(ConfigError, match="not a calibration"):
            Calibration.load(path)


# --- located --------------------------------------------------------------------------------------


def chips_of(*chips, bands=None):
    """Chips of digital numbers."""
    images = [
        Image(i, c, "dn", (bands or [BANDS[: c.shape[-1]]] * len(chips))[i], 0.0) for i, c in enumerate(chips)
    ]
    sizes = np.array([c.shape[:2] for c in chips])
    return Chips(np.arange(len(chips)), sizes, tuple(i.bands for i in images), images.__getitem__)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two images and their index."""
    pixels = [digital(texture(260, 300, seed=s)) for s in (1, 2)]
    images = [image_of(p, 5 + i) for i, p in enumerate(pixels)]
    source = ImageSource("made by a test", 2, lambda: iter(images))
    out = tmp_path_factory.mktemp("chips") / "index"
    return build_index(source, out, encoder=small_encoder(), config=IndexConfig()), pixels


def places_of(frame):
    return frame[["image_id", "x", "y"]].to_numpy().tolist()


def test_chips_of_any_size_come_back_to_their_pixel(world, rng):
    index, pixels = world
    chips, truth = [], []
    for height, width in ((64, 64), (64, 80), (95, 64), (96, 96), (130, 101), (200, 96), (260, 300)):
        y, x, which = rng.integers(260 - height + 1), rng.integers(300 - width + 1), rng.integers(2)
        # Another light: what was dark is bright.
        chips.append((4200 - pixels[which][y : y + height, x : x + width]).astype(np.uint16))
        truth.append([5 + which, x, y])
    found = index.matches(chips_of(*chips))
    frame = found.frame()
    assert places_of(frame) == truth and (frame.confidence > 0.9).all()
    assert np.abs(frame[["dx", "dy"]].to_numpy()).max() < 0.1
    details = found.details()
    best = details[details["rank"] == 0]
    assert best.windows.tolist() == best.agree.tolist() == [1, 1, 1, 4, 4, 6, 16]
    assert best[["height", "width"]].to_numpy().tolist() == [list(c.shape[:2]) for c in chips]


def test_chips_may_differ_in_bands_and_hide_a_part(world):
    index, pixels = world
    three, one = pixels[0][20:150, 40:200, :3].copy(), pixels[1][30:170, 10:130, 3:]
    three[:70] = 0
    found = index.matches(chips_of(three, one, bands=[BANDS[:3], BANDS[3:]]))
    assert places_of(found.frame()) == [[5, 40, 20], [6, 10, 30]]


def test_a_chip_may_stick_out_of_its_image(world):
    """Other ground around the image, as at the border between two tiles."""
    index, pixels = world
    around = digital(texture(400, 440, seed=77))
    around[70:330, 70:370] = pixels[0]
    chips = chips_of(around[:200, :210], around[200:, 230:])
    found = index.matches(chips)
    assert places_of(found.frame()) == [[5, -70, -70], [5, 160, 130]]
    best = found.details().query("rank == 0")
    assert (best.agree < best.windows).all() and (best.agree >= 4).all()
    inside = [130 * 140, 130 * 140]
    assert best.hidden_share.to_numpy() == pytest.approx(
        [1 - inside[0] / (200 * 210), 1 - inside[1] / (200 * 210)], abs=0.06
    )


def test_flat_and_strange_chips_have_a_row_and_little_confidence(world):
    index, _ = world
    flat, strange = np.full((128, 128, 4), 900, np.uint16), digital(texture(128, 128, seed=99))
    frame = index.locate(chips_of(flat, np.zeros_like(flat), strange))
    assert frame.confidence[:2].tolist() == [0, 0] and frame.confidence[2] < 0.5 and len(frame) == 3


def test_a_chip_is_found_where_most_of_its_windows_are_clouded(world, rng):
    index, pixels = world
    chip = pixels[1][10:250, 20:280].copy()
    cloud = digital(texture(240, 260, seed=55))
    chip[:150] = cloud[:150]
    assert places_of(index.locate(chips_of(chip))) == [[6, 20, 10]]


def test_blocks_and_company_change_nothing(world):
    index, pixels = world
    cuts = [(0, 0, 100, 130), (1, 40, 150, 96), (0, 7, 64, 200), (1, 90, 128, 128)]
    chips = [pixels[i][a : a + h, a : a + w] for i, a, h, w in cuts]
    together = index.locate(chips_of(*chips))
    queries = chips_of(*chips)
    session = Session.open(index.folder, queries)
    apart = Matches.of_chips(index.folder, queries, locate_chips(session, queries, block=3)).frame()
    for name in ("image_id", "x", "y", "dx", "dy", "ncc", "confidence"):
        np.testing.assert_allclose(apart[name], together[name], atol=1e-4)
    alone = index.locate(chips_of(chips[1]))
    assert places_of(alone)[0] == places_of(together)[1]


def test_fewer_windows_are_enough_where_they_are_clear(world):
    index, pixels = world
    asked = chips_of(pixels[0][30:250, 20:280])
    found = index.matches(asked, chips=ChipConfig(max_windows=3))
    assert places_of(found.frame()) == [[5, 20, 30]] and found.windows.tolist() == [3]


def test_no_chips(world):
    index, _ = world
    none = Chips(np.zeros(0, np.int64), np.zeros((0, 2), np.int64), (), lambda row: None)
    assert len(index.locate(none)) == 0


def test_a_single_window_answers_as_a_patch_does(world):
    """A chip of 64 x 70 is its middle patch, moved."""
    index, pixels = world
    chip = pixels[0][50:114, 60:130]
    as_chip = index.locate(chips_of(chip))
    as_patch = index.locate(chip[None, :, 3:67])
    assert as_chip.x[0] == as_patch.x[0] - 3 and as_chip.confidence[0] == pytest.approx(
        as_patch.confidence[0]
    )
