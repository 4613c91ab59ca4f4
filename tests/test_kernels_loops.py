"""Compiled loops, each against a slow restatement of what it says."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_matching_pyramid import slow_ncc

import retrieval.kernels
from retrieval.config import TensorConfig
from retrieval.kernels.correlation import (
    local_energy,
    masked_ncc_around,
    masked_templates,
    ncc_around,
    zero_mean,
)
from retrieval.kernels.tensors import downsample2, quantize_int16, tensors
from retrieval.kernels.windows import compare_windows
from retrieval.matching.ncc import FLAT, STEPS
from retrieval.matching.sites import Sites
from retrieval.matching.surfaces import correlate_sites
from retrieval.matching.tensor_cache import TensorCache
from retrieval.matching.tensors import Arrays, Templates, template_side
from retrieval.models.structure_tensor import structure_tensor
from tfrecords.schema import BANDS, Patches


def around(template, pictures, owner, which, corner, shifts, scale=1.0):
    """`ncc_around` of every position into a separate row, the last first."""
    box = template.shape[1]
    spread, rows = local_energy(pictures, box, scale), np.arange(len(owner))[::-1].copy()
    out = np.full((len(owner), shifts, shifts), np.nan, np.float32)
    both, pictures = zero_mean(template, shifts), pictures.reshape(*pictures.shape[:2], -1)
    ncc_around(*both, owner, pictures, spread, which, corner, scale, FLAT * box**2, STEPS, rows, out)
    return out[::-1]


@given(st.integers(0, 10**6), st.integers(2, 9), st.integers(1, 12), st.booleans())
def test_ncc_around_positions_against_a_slow_restatement(seed, box, shifts, quantize_int16):
    rng = np.random.default_rng(seed)
    size = box + shifts - 1
    template = rng.normal(size=(3, box, box, 3)).astype(np.float32) + 5
    pictures = rng.normal(size=(2, size + 3, size + 6, 3)) * 1000 + 300
    pictures = pictures.astype(np.int16 if quantize_int16 else np.float32)
    owner, which = rng.integers(0, 3, 5), rng.integers(0, 2, 5)
    corner = np.stack([rng.integers(0, 7, 5), rng.integers(0, 4, 5)], -1)
    got = around(template, pictures, owner, which, corner, shifts, 1e-3)
    for n, (x, y) in enumerate(corner):
        region = pictures[which[n], y : y + size, x : x + size].astype(np.float64) * 1e-3
        np.testing.assert_allclose(got[n], slow_ncc(template[owner[n]].astype(float), region), atol=2e-5)


def slow_masked_ncc(template, mask, region):
    """NCC over the visible pixels of a template (s, s, 3), shift by shift."""
    box = len(template)
    out, seen = np.zeros((len(region) - box + 1,) * 2), mask[..., 0]
    for dy, dx in np.ndindex(out.shape):
        a, b = template[seen], region[dy : dy + box, dx : dx + box][seen]
        a, b = a - a.mean(0), b - b.mean(0)
        out[dy, dx] = (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())
    return out


@given(st.integers(0, 10**6), st.integers(3, 9), st.integers(1, 12), st.booleans())
def test_masked_ncc_around_positions_against_a_slow_restatement(seed, box, shifts, quantize_int16):
    rng = np.random.default_rng(seed)
    size = box + shifts - 1
    template = rng.normal(size=(3, box, box, 3)).astype(np.float32) + 5
    mask = rng.random((3, box, box, 1)) < 0.6
    mask[:, 0, :3] = True
    template[~mask[..., 0]] = 99
    pictures = rng.normal(size=(2, size + 3, size + 6, 3)) * 1000 + 300
    pictures = pictures.astype(np.int16 if quantize_int16 else np.float32)
    owner, which = rng.integers(0, 3, 5), rng.integers(0, 2, 5)
    corner = np.stack([rng.integers(0, 7, 5), rng.integers(0, 4, 5)], -1)
    rows, got = np.arange(5), np.full((5, shifts, shifts), np.nan, np.float32)
    places = pictures.reshape(*pictures.shape[:2], -1), which, corner
    prepared = masked_templates(template, mask, shifts)
    masked_ncc_around(*prepared, owner, *places, 1e-3, FLAT, STEPS, rows, got)
    for n, (x, y) in enumerate(corner):
        region = pictures[which[n], y : y + size, x : x + size].astype(np.float64) * 1e-3
        slow = slow_masked_ncc(template[owner[n]].astype(float), mask[owner[n]], region)
        np.testing.assert_allclose(got[n], slow, atol=1e-4)


def test_hidden_and_flat_templates_are_zero():
    picture = np.random.default_rng(1).normal(size=(1, 9, 27)).astype(np.float32)
    one, corner, out = np.zeros(1, np.int64), np.zeros((1, 2), np.int64), np.ones((1, 3, 3), np.float32)
    busy, mask = picture[:, :7, :21].reshape(1, 7, 7, 3), np.zeros((1, 7, 7, 1), bool)
    half = np.arange(7)[None, :, None, None] < 3 + 0 * mask
    for template, seen in ((busy, mask), (np.where(half, 2.5, busy), half)):
        prepared = masked_templates(template.astype(np.float32), seen, 3)
        masked_ncc_around(*prepared, one, picture, one, corner, 1.0, FLAT, STEPS, one, out)
        assert not out.any()


@given(st.integers(0, 10**6), st.integers(1, 9), st.sampled_from([4, 8, 16]), st.sampled_from([32, 64]))
def test_windows_compared_in_place_against_gathered_ones(seed, count, shifts, kept):
    rng, dim, side, height, width = np.random.default_rng(seed), 32, 3, 7, 9
    numbers = rng.integers(-7, 8, (height * width, 2 * dim))
    scale, steps = rng.integers(0, 256, height * width), rng.random(2 * dim).astype(np.float32)
    scale[: 3 * width], scales = 0, np.linspace(0, 2, 256).astype(np.float32)  # first, ground without texture
    low, high = numbers[:, :dim] + 8, numbers[:, dim:] + 8
    parts = np.concatenate([low + 16 * high, scale[:, None]], 1).astype(np.uint8)
    patch = rng.normal(size=(shifts, side, side, kept)).astype(np.float32)
    y, x = rng.integers(0, height - side + 1, count), rng.integers(0, width - side + 1, count)
    best, shift = np.empty(count, np.float32), np.empty(count, np.int64)
    place = width * y + x, np.full(count, width)
    compare_windows(parts, scales, steps, *place, patch, 1e-3, best, shift)
    values = (numbers * steps * scales[scale][:, None])[:, : patch.shape[-1]]
    grid = values.reshape(height, width, -1).astype(np.float64)
    for n in range(count):
        window = grid[y[n] : y[n] + side, x[n] : x[n] + side].reshape(-1)
        cosine = patch.reshape(shifts, -1) @ window / np.sqrt((window**2).sum() + 1e-3)
        assert best[n] == pytest.approx(cosine.max(), abs=1e-5)
        assert cosine[shift[n]] == pytest.approx(cosine.max(), abs=1e-5)


def test_beyond_the_edge_the_last_pixels_are_repeated_and_inside_nothing_changes():
    rng = np.random.default_rng(0)
    pictures = rng.normal(size=(1, 12, 11, 3)).astype(np.float32)
    template = pictures[:, 2:9, 1:8].copy()
    wide = np.pad(pictures, ((0, 0), (3, 3), (3, 3), (0, 0)), mode="edge")
    for x, y in ((-3, -3), (-1, 0), (2, 3), (0, -2)):
        one, corner = np.zeros(1, np.int64), np.array([[x, y]])
        got = around(template, pictures, one, one, corner, 5)[0]
        whole = around(template, wide, one, one, corner + 3, 5)[0]
        inside = [(dy, dx) for dy, dx in np.ndindex(5, 5) if 0 <= y + dy <= 5 and 0 <= x + dx <= 4]
        assert inside
        for at in inside:
            assert got[at] == pytest.approx(whole[at], abs=1e-4)


def test_flat_templates_and_flat_ground_are_zero():
    rng = np.random.default_rng(1)
    busy, flat = rng.normal(size=(1, 9, 9, 3)).astype(np.float32), np.full((1, 9, 9, 3), 2.5, np.float32)
    one, corner = np.zeros(1, np.int64), np.zeros((1, 2), np.int64)
    for template, picture in ((flat, busy), (busy, flat), (flat, flat)):
        assert not around(template[:, :7, :7].copy(), picture, one, one, corner, 3).any()


def test_copies_of_a_picture_get_the_same_numbers_wherever_they_lie():
    rng = np.random.default_rng(2)
    pictures = rng.integers(-9000, 9000, (3, 40, 50, 3)).astype(np.int16)
    pictures[2, 5:30, 17:42] = pictures[0, 11:36, 2:27]
    template = rng.normal(size=(2, 15, 15, 3)).astype(np.float32)
    owner, which = np.array([0, 1, 0]), np.array([0, 1, 2])
    got = around(template, pictures, owner, which, np.array([[3, 12], [9, 9], [18, 6]]), 5)
    np.testing.assert_array_equal(got[0], got[2])
    np.testing.assert_array_equal(
        local_energy(pictures, 15, 0.5)[0, 12:20, 3:10],
        local_energy(pictures, 15, 0.5)[2, 6:14, 18:25],
    )


@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(0, 5), st.integers(0, 6), st.booleans())
def test_spreads_against_squares_one_by_one(seed, box, more_y, more_x, quantize_int16):
    rng = np.random.default_rng(seed)
    pictures = rng.normal(size=(2, box + more_y, box + more_x, 3)) * 3000 + 9000
    pictures = pictures.clip(-32000, 32000).astype(np.int16 if quantize_int16 else np.float32)
    got = local_energy(pictures, box, 1e-3)
    assert got.shape == (2, more_y + 1, more_x + 1)
    for p, y, x in np.ndindex(got.shape):
        under = pictures[p, y : y + box, x : x + box].astype(np.float64) * 1e-3
        assert got[p, y, x] == pytest.approx(((under - under.mean((0, 1))) ** 2).sum(), rel=1e-5, abs=1e-6)


@given(st.integers(0, 10**6), st.tuples(*[st.integers(3, 20)] * 2), st.integers(1, 5), st.floats(-3, 0))
def test_tensors_are_those_of_the_definition(seed, shape, bands, power):
    rng = np.random.default_rng(seed)
    scaled = (10**power * rng.normal(size=(2, *shape, bands))).astype(np.float32)
    scaled[rng.random(scaled.shape) < 0.1] = np.nan
    scaled[0, : shape[0] // 2] = 0.25  # flat
    got, seen = tensors(scaled, TensorConfig.noise)
    expected, visible = (np.asarray(v) for v in structure_tensor(scaled, TensorConfig.noise))
    np.testing.assert_allclose(got, expected, atol=5e-6)
    np.testing.assert_array_equal(seen, visible > 0)


@given(st.integers(0, 10**6), st.tuples(*[st.integers(2, 9)] * 2))
def test_halves_are_means_of_what_is_visible(seed, shape):
    rng = np.random.default_rng(seed)
    visible = rng.random((2, *shape, 1)) < 0.6
    tensor = np.where(visible, rng.normal(size=(2, *shape, 3)), 0).astype(np.float32)
    got, seen = downsample2(tensor, visible)
    assert got.shape[:3] == seen.shape[:3] == (2, shape[0] // 2, shape[1] // 2)
    for n, y, x in np.ndindex(got.shape[:3]):
        there = visible[n, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2, 0]
        part = tensor[n, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2][there]
        assert seen[n, y, x, 0] == (there.sum() >= 2)
        np.testing.assert_allclose(got[n, y, x], part.mean(0) if there.sum() >= 2 else 0, atol=1e-6)


def test_codes_are_the_nearest_whole_numbers_and_stay_in_range():
    tensor = np.array([[-9.0, 0.1, 1.00013], [9, -0.1, 0]], np.float32)
    assert quantize_int16(tensor, 4096.0).tolist() == [[-32767, 410, 4097], [32767, -410, 0]]


# ---------------------------------------------------------------- as refinement uses them


def ground_and_patches(hole):
    """Two images of one size, one of another, patches cut from them; with a hole in each if asked for."""
    rng = np.random.default_rng(3)
    shapes = (130, 150, 4), (130, 150, 4), (90, 100, 4)
    images = {i: rng.uniform(-0.5, 0.5, shape).astype(np.float32) for i, shape in enumerate(shapes)}
    pixels = np.stack([images[i][9:73, 17:81] for i in (0, 1, 2)]) + rng.normal(0, 0.1, (3, 64, 64, 4))
    if hole:
        images[1][20:60, 30:70] = np.nan
        pixels[0, 5:20, 8:30] = np.nan
    patches = Patches(np.arange(3), pixels.astype(np.float32), "scaled", BANDS, float("nan"))
    return TensorCache(Arrays(images, dict.fromkeys(images, BANDS))), patches


@pytest.mark.parametrize("hole", [False, True])
@pytest.mark.parametrize("level", [0, 1, 2])
def test_loops_and_tables_give_the_same(level, hole):
    ground, patches = ground_and_patches(hole)
    template, seen = Templates(patches, (0, 1, 2, 3)).take(np.arange(3), level)
    assert template.shape[1] == template_side(level)
    rng = np.random.default_rng(level)
    owner, ids = rng.integers(0, 3, 60), rng.integers(0, 3, 60)
    at = rng.integers(0, 26 >> level, (60, 2))
    owner[:3], ids[:3], at[:3] = np.arange(3), np.arange(3), np.array([17, 9]) >> level  # where they are
    sites, shown = Sites(ids, at, (0, 1, 2, 3), 2, level), []
    for in_loops in (True, False):
        shown.append(correlate_sites(template, seen, owner, ground, sites, in_loops=in_loops))
    most = np.array([[86, 66], [86, 66], [36, 26]])[ids] >> level  # beyond it no patch lies
    position = at[:, None] + np.arange(-2, 3)[None, :, None]
    inside = (position >= 0) & (position <= most[:, None])
    inside = inside[:, :, None, 1] & inside[:, None, :, 0]
    assert inside.any() and (shown[0][:3].max((1, 2)) > 0.25).all()
    np.testing.assert_allclose(shown[0][inside], shown[1][inside], atol=3e-4)


WORK = """
import numpy as np
from retrieval.kernels.tensors import quantize_int16
print(quantize_int16(np.ones((1, 1, 1, 3), np.float32), 5.0).tolist())
"""


@pytest.mark.parametrize("folder", ["cache", "a file"])
def test_what_is_compiled_is_kept_in_the_users_cache_and_nowhere_else(folder, tmp_path):
    (tmp_path / "a file").touch()
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / folder)}
    environment.pop("NUMBA_CACHE_DIR", None)
    before = set(Path(retrieval.kernels.__file__).parent.rglob("*.nb*"))
    command = [sys.executable, "-c", WORK]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[[[[5, 5, 5]]]]\n"
    kept = list((tmp_path / "cache" / "patch-retrieval").rglob("*.nbc"))
    assert bool(kept) == (folder == "cache")
    assert set(Path(retrieval.kernels.__file__).parent.rglob("*.nb*")) == before
