"""Matplotlib pictures: contrast stretch, texts, repeatability."""

import sys

import matplotlib as mpl
import numpy as np
import pytest

from retrieval.errors import ConfigError
from retrieval.report.pictures import stretch
from retrieval.report.plots import (
    AMBER,
    GREEN,
    QUIET,
    RED,
    MatchPicture,
    TrainingCurve,
    draw_curve,
    draw_matches,
    read_history,
)
from tfrecords.errors import OutputExistsError


@pytest.fixture
def ground():
    return np.random.default_rng(0).normal(0, 0.2, (64, 64, 4)).astype(np.float32)


def picture(ground, **changes):
    given = {"query": ground, "match": ground, "image_id": 3, "x": 10, "y": 20, "confidence": 0.9}
    answer = {"right": ground, "right_image_id": 3, "right_x": 10, "right_y": 20}
    return MatchPicture(7, **{**given, **answer, **changes})


# ---------------------------------------------------------------- the stretch


def test_stretch_sends_the_ends_to_black_and_white():
    ramp = np.linspace(100, 3000, 64 * 64).reshape(64, 64)[..., None].repeat(3, axis=2)
    rgba = stretch(ramp)
    assert rgba.shape == (64, 64, 4) and rgba.dtype == np.float32
    assert (rgba[..., :3] == 0).mean() == pytest.approx(0.02, abs=0.005)
    assert (rgba[..., :3] == 1).mean() == pytest.approx(0.02, abs=0.005)
    assert (rgba[..., 3] == 1).all()


def test_stretch_does_not_change_with_gain_and_offset(ground):
    np.testing.assert_allclose(stretch(ground * 1e4 + 500), stretch(ground), atol=1e-4)


def test_stretch_keeps_hue_but_not_the_blue_of_the_air(ground):
    green = ground[..., :1] * 0.1 + np.array([0.0, 0.5, 0.0])
    red, shown, blue = stretch(green)[..., :3].mean(axis=(0, 1))
    assert shown > red + 0.2 and shown > blue + 0.2
    hazy = stretch(ground[..., :3] + np.array([0.0, 0.1, 0.4]))[..., :3].mean(axis=(0, 1))
    assert hazy[2] - hazy[0] < 0.4 / 0.8


def test_missing_pixels_are_transparent_and_do_not_count(ground):
    holed = ground.copy()
    holed[:32, :32, 1] = np.nan
    holed[40, 40] = np.inf
    rgba = stretch(holed)
    assert (rgba[:32, :32, 3] == 0).all() and rgba[40, 40, 3] == 0
    assert rgba[..., 3].sum() == 64 * 64 - 32 * 32 - 1
    assert np.isfinite(rgba).all()
    assert not stretch(np.full((64, 64, 3), np.nan)).any()


@pytest.mark.parametrize("bands", [1, 2])
def test_few_bands_are_grey(ground, bands):
    rgba = stretch(ground[..., :bands])
    np.testing.assert_array_equal(rgba[..., 0], rgba[..., 2])


def test_an_empty_colour_leaves_the_first_band_that_holds_anything(ground):
    infrared = np.where(np.arange(4) == 3, ground, np.nan)
    np.testing.assert_array_equal(stretch(infrared), stretch(ground[..., 3:]))
    no_green = np.where(np.arange(4) == 1, np.nan, ground)
    np.testing.assert_array_equal(stretch(no_green), stretch(ground[..., :1]))


def test_a_flat_patch_is_mid_grey():
    for level in (0.0, -1.0, 4000.0):
        np.testing.assert_array_equal(stretch(np.full((64, 64, 3), level))[..., :3], 0.5)


# ---------------------------------------------------------------- the record


def test_verdicts_and_distances(ground):
    assert picture(ground).verdict == "right" and picture(ground).distance_px == 0
    near = picture(ground, x=13, y=24)
    assert (near.verdict, near.distance_px) == ("right", 5.0)
    assert picture(ground, x=16).verdict == "shifted"
    wrong = picture(ground, image_id=4)
    assert (wrong.verdict, wrong.distance_px) == ("wrong", None)
    unknown = picture(ground, right=None, right_image_id=None, right_x=None, right_y=None)
    assert (unknown.verdict, unknown.distance_px) == ("unknown", None)


def test_the_answer_is_shown_only_where_another_place_was_found(ground):
    right, wrong = picture(ground), picture(ground, image_id=4)
    assert [label for label, _, _ in right.panels] == ["patch", "match"]
    assert [label for label, _, _ in wrong.panels] == ["patch", "match", "answer"]
    assert wrong.panels[1][1] == "image 4, x 10, y 20"


def test_records_refuse_what_is_no_picture(ground):
    with pytest.raises(ConfigError, match=r"patch 7: match has the shape \(64, 64\). Expected \(h, w, b\)"):
        picture(ground, match=ground[..., 0])
    with pytest.raises(ConfigError, match="Give all three or none"):
        picture(ground, right_x=None)
    with pytest.raises(ConfigError, match="recall: received 2 values at 1 steps"):
        TrainingCurve([1], [1], [1], [0.1, 0.2])


# ---------------------------------------------------------------- the page


def test_right_and_wrong_are_told_by_more_than_colour(ground, tmp_path):
    rows = [picture(ground), picture(ground, x=40), picture(ground, image_id=5)]
    path = draw_matches(rows, tmp_path / "matches.svg", title="Cost: $5", note="SC 0.9")
    svg = path.read_text()
    for mark in (
        "✓",
        "≈",
        "✗",
        "right, 0.0 px off",
        "shifted, 30.0 px off",
        "wrong image",
        "Cost: $5",
        "SC 0.9",
    ):
        assert f"<!-- {mark}" in svg  # text is drawn as outlines, and named in comments
    assert len({GREEN, AMBER, RED, QUIET}) == 4
    assert all(colour in svg for colour in (GREEN, AMBER, RED))
    assert svg.count("stroke-dasharray") == 2 * 4  # the sides of the frames of what is shifted and wrong


@pytest.mark.parametrize(
    ("pixel_m", "size"), [(10.0, "64 × 64 px, 640 × 640 m, stretched"), (None, "64 × 64 px, stretched")]
)
def test_words_of_a_card_and_of_the_legend(ground, tmp_path, pixel_m, size):
    svg = draw_matches([picture(ground, x=13, y=24)], tmp_path / "m.svg", pixel_m=pixel_m).read_text()
    assert "<!-- right, 5.0 px off   confidence 0.90 -->" in svg
    assert f"<!-- Each image {size}" in svg and "<!-- image 3, x 13, y 24 -->" in svg


@pytest.mark.parametrize("count", [1, 3, 4])
def test_page_grows_with_its_rows(ground, tmp_path, count):
    path = draw_matches([picture(ground)] * count, tmp_path / "m.png")
    width, height = np.frombuffer(path.read_bytes()[16:24], ">u4")
    assert width == 1808
    assert height == 112 + 44 + (1 if count < 4 else 2) * 334 + 44


def test_patches_of_every_kind_are_drawn(ground, tmp_path):
    none = np.full_like(ground, np.nan)
    rows = [
        picture(ground, query=ground[..., :1], confidence=None),
        picture(none, image_id=9),
        picture(ground, query=np.zeros((64, 64, 3), np.uint8), right=None, image_id=9),
        picture(ground[:40], right=None, right_image_id=None, right_x=None, right_y=None),
    ]
    for ending in ("png", "pdf", "svg"):
        assert draw_matches(rows, tmp_path / f"m.{ending}").stat().st_size > 1000


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_drawing_repeats_and_leaves_no_trace(ground, tmp_path, ending):
    style = {"axes.facecolor": "black", "font.size": 30.0, "svg.hashsalt": "mine"}
    first = draw_matches([picture(ground)], tmp_path / f"a.{ending}").read_bytes()
    with mpl.rc_context(style):
        assert draw_matches([picture(ground)], tmp_path / f"b.{ending}").read_bytes() == first
        assert {key: mpl.rcParams[key] for key in style} == style
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_what_is_there_is_kept(ground, tmp_path):
    path = tmp_path / "m.png"
    path.write_text("mine")
    with pytest.raises(OutputExistsError):
        draw_matches([picture(ground)], path)
    assert path.read_text() == "mine"
    draw_matches([picture(ground)], path, overwrite=True)
    assert path.read_bytes()[1:4] == b"PNG"


def test_too_few_too_many_and_other_endings_are_refused(ground, tmp_path):
    with pytest.raises(ConfigError, match=r"0 matches to draw: out of range. Choose 1 to 60"):
        draw_matches([], tmp_path / "m.png")
    with pytest.raises(ConfigError, match="61 matches"):
        draw_matches([picture(ground)] * 61, tmp_path / "m.png")
    with pytest.raises(ConfigError, match=r"ending is '.gif'. Expected one of .png, .svg, .pdf"):
        draw_matches([picture(ground)], tmp_path / "m.gif")
    assert not list(tmp_path.iterdir())


def test_curves_of_every_length(tmp_path):
    steps = np.arange(200)
    noisy = np.where(steps == 50, np.nan, np.exp(-steps / 50))
    curves = {
        "long": TrainingCurve(steps, noisy, np.array([0, 100]), np.array([0.2, 0.9]), 0.7),
        "short": TrainingCurve([1, 2], [0.5, 0.4]),
        "none": TrainingCurve([], []),
    }
    for name, curve in curves.items():
        path = draw_curve(curve, tmp_path / f"{name}.svg", title="t")
        assert ("right place first" in path.read_text()) == (name == "long")
    assert "training-free 0.700" in (tmp_path / "long.svg").read_text()


def test_a_history_becomes_a_curve(tmp_path):
    path = tmp_path / "history.csv"
    head = "step,loss,learning_rate,seconds,recall_at_1,recall_at_20"
    path.write_text(f"{head}\n0,1.5,0,0,,\n50,0.5,0,0,0.75,1\n")
    curve = read_history(path, 0.25)
    assert (curve.steps, curve.loss) == ([0, 50], [1.5, 0.5])
    assert (curve.recall_steps, curve.recall, curve.baseline) == ([50], [0.75], 0.25)
