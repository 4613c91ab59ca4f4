"""The benchmark of generated snow: the scene, its queries and answers, and the figures."""

import sys
from pathlib import Path

import numpy as np
import pytest

from retrieval.evaluation.submission import Submission
from tfrecords.read import read_images
from tfrecords.schema import BANDS, Image

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import snow  # noqa: E402

KINDS = {
    "forest": (np.s_[:30, :], (200, 300, 250, 2000)),
    "field": (np.s_[30:, :60], (1500, 1300, 1200, 3500)),
    "lake": (np.s_[30:, 60:], (500, 600, 700, 150)),
}
"""Pixels and mean DN of three kinds of ground."""


def summer(seed=0, size=120):
    """Three kinds of ground with texture, and nodata in a corner."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((size, size, 4))
    for where, level in KINDS.values():
        pixels[where] = level
    pixels *= np.exp(rng.normal(0, 0.1, pixels.shape))
    pixels[-9:, -9:] = 0
    return Image(0, np.rint(pixels).astype(np.uint16), "dn", BANDS, 0.0)


def test_snow_lies_on_open_ground_and_forest_stays_dark():
    scenes = np.array([snow.snow_scene(summer(), np.random.default_rng(n)) for n in range(8)], float)
    assert (scenes[:, -9:, -9:] == 0).all() and (scenes[:, :-9, :-9] > 0).all()
    forest, field = scenes[:, 4:26, 10:110].mean((1, 2)), scenes[:, 44:110, 10:50].mean((1, 2))
    assert (forest < 3000).all() and (field > 4000).all()
    texture = [np.log(s).std((1, 2)).mean() for s in (scenes[:, 4:26, 10:110], scenes[:, 44:110, 10:50])]
    assert texture[1] < texture[0]
    lake = scenes[:, 44:110, 70:110].mean((1, 2))
    assert (lake < 1000).any() and (lake > 4000).any()  # open water, or snow on ice
    again = snow.snow_scene(summer(), np.random.default_rng(3))
    np.testing.assert_array_equal(again, scenes[3])


def test_forest_casts_a_shadow_on_snow():
    forest = np.zeros((40, 40))
    forest[30:] = 1
    lit = snow._shade(forest, np.random.default_rng(0))
    assert lit[25, 20] < 0.6 and lit[5, 20] == 1  # to the north, at most 100 m


def test_a_field_moves_by_parts_of_a_pixel():
    y, x = np.mgrid[:9, :12].astype(float)
    moved = snow.moved(10 * y + x, 0.25, -0.5)
    np.testing.assert_allclose(moved[1:-1, 1:-1], (10 * (y + 0.25) + x - 0.5)[1:-1, 1:-1])


@pytest.fixture
def data(write_tif, tmp_path):
    for seed, place in enumerate(("val/forest/wood", "val/oscd/rome", "train/forest/fir")):
        for date in ("2019-09", "2020-09"):
            write_tif(f"{place}/{date}.tif", summer(seed).pixels, descriptions=BANDS, nodata=0)
    return tmp_path


def test_queries_lie_where_their_answers_say(data, tmp_path):
    snow.write_images(data, tmp_path / "images", 8)
    files = sorted((tmp_path / "images").iterdir())
    assert len(files) == 3 * 8
    patches, answers, folders = snow.draw(data, 20, 0, 8)
    assert patches.shape == (20, 64, 64, 1) and set(folders) == {"forest"}
    # A patch is the snow of its place in the summer image: forest and field have their border there.
    for patch, image_id, x, y in zip(patches, answers.image_ids, answers.x, answers.y, strict=True):
        image = next(iter(read_images(files[image_id])))
        there = image.pixels[y : y + 64, x : x + 64, 0]
        forest = np.zeros((120, 120), bool)
        forest[KINDS["forest"][0]] = True
        forest = forest[y : y + 64, x : x + 64]
        assert there.shape == (64, 64)
        if 8 < forest.sum() / 64 < 56:
            assert patch[forest].mean() < patch[~forest & (there > 2000)].mean()
    again = snow.draw(data, 20, 0, 8)
    np.testing.assert_array_equal(patches, again[0])
    assert (snow.draw(data, 20, 1, 8)[1].x != answers.x).any()


def test_figures_are_of_all_and_of_each_folder():
    n = np.arange(6)
    answers = Submission(n, n, n, n)
    given = Submission(n, np.where(n < 3, n, 99), n, n)
    one = snow.Answered("abc", given, np.where(n < 3, 0.9, 0.1), {})
    entry = snow.measured(one, answers, {"all": n >= 0, "forest": n < 3})
    assert entry["scores"]["all"]["SC"]["value"] == 0.5 and entry["scores"]["forest"]["SC"]["value"] == 1
    assert entry["right"] == 0.5 and entry["stated"] == pytest.approx(0.5)
