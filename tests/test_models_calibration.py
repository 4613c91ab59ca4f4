"""Confidence: a known logistic is recovered, probabilities stay probabilities, nothing found is 0."""

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from engine import SMALL, digital, image_of, patches_of, projection, texture
from hypothesis import given
from hypothesis import strategies as st

from retrieval.config import SearchConfig
from retrieval.errors import ConfigError, SubmissionError, UncalibratedWarning
from retrieval.evaluation.calibration_fit import (
    expected_calibration_error,
    fit_calibration,
    held_out_probability,
)
from retrieval.evaluation.submission import read_submission, write_submission
from retrieval.index.update import add_images
from retrieval.models.calibration import (
    CHIP_TERMS,
    TERMS,
    UNCALIBRATED,
    Calibration,
    calibration_features,
    calibration_of,
    is_confident,
    logit_margin,
)
from retrieval.models.encoder import FakeEncoder, load_encoder, save_encoder
from retrieval.models.networks import tensor_model
from retrieval.models.registry import encoder_names
from retrieval.pipeline import build_index, locate, open_index
from retrieval.results.calibrate import calibrate_from
from retrieval.results.outputs import QueryOutputs
from retrieval.types import RankedCandidates
from tfrecords.errors import OutputExistsError
from tfrecords.read import ImageSource
from tfrecords.schema import BANDS, Chips, Image

TRUTH = Calibration((9.0, 1.0, 4.0, 2.0), -3.0, "made up")


def drawn(n, seed=0):
    """Evidence, and whether each was right, as `TRUTH` says."""
    rng = np.random.default_rng(seed)
    ncc, similarity = rng.uniform(0.05, 1, n), rng.uniform(0, 1, n)
    x = np.stack([ncc * rng.random(n), similarity * rng.random(n), ncc, similarity], 1)
    return x, rng.random(n) < TRUTH.probability(x)


def refined(ncc, similarity, logit, image_ids=None):
    ncc, similarity, logit = (np.array(v, np.float32) for v in (ncc, similarity, logit))
    ids = np.zeros(ncc.shape, np.int64) if image_ids is None else np.array(image_ids)
    zero = np.zeros(ncc.shape)
    return RankedCandidates(
        ids, zero.astype(np.int64), zero.astype(np.int64), zero, zero, ncc, similarity, logit
    )


def test_a_known_logistic_is_recovered():
    x, right = drawn(40_000)
    fitted = fit_calibration(x, right, penalty=4e-4)
    np.testing.assert_allclose(fitted.weights, TRUTH.weights, atol=0.7)
    assert fitted.bias == pytest.approx(TRUTH.bias, abs=0.3)
    fresh, _ = drawn(2000, seed=1)
    assert np.abs(fitted.probability(fresh) - TRUTH.probability(fresh)).max() < 0.03


def test_a_fit_is_calibrated():
    x, right = drawn(6000)
    fitted = fit_calibration(x[:3000], right[:3000], fitted_on="drawn")
    assert expected_calibration_error(fitted.probability(x[3000:]), right[3000:]) < 0.04


def test_held_out_groups_are_judged_by_a_fit_to_the_others():
    x, right = drawn(600)
    groups = np.arange(600) % 3
    got = held_out_probability(x, right, groups)
    other = fit_calibration(x[groups != 1], right[groups != 1])
    np.testing.assert_array_equal(got[groups == 1], other.probability(x[groups == 1]))


def test_separable_evidence_can_be_fitted():
    x, _ = drawn(200)
    fitted = fit_calibration(x, x[:, 0] > 0.3, fitted_on="separable")
    assert np.isfinite([*fitted.weights, fitted.bias]).all()
    p = fitted.probability(x)
    assert p[x[:, 0] > 0.4].min() > 0.5 > p[x[:, 0] < 0.2].max()


def test_patches_without_candidates_are_left_out_of_the_fit():
    x, right = drawn(1000)
    with_none = np.concatenate([x, np.full((50, 4), -np.inf)])
    fitted = fit_calibration(with_none, np.concatenate([right, np.zeros(50, bool)]), fitted_on="")
    np.testing.assert_allclose(fitted.weights, fit_calibration(x, right, fitted_on="").weights)


@pytest.mark.parametrize("right", [np.ones(100, bool), np.zeros(100, bool), np.arange(19) < 5])
def test_nothing_to_fit(right):
    with pytest.raises(ConfigError, match="20 or more"):
        fit_calibration(np.random.default_rng(0).random((len(right), 4)), right, fitted_on="")


# ---------------------------------------------------------------- probabilities


numbers = st.floats(-50, 50) | st.sampled_from([0.0, -np.inf])


@given(
    st.lists(st.tuples(*[numbers] * 4), max_size=5),
    st.tuples(*[st.floats(-1e6, 1e6)] * 4),
    st.floats(-100, 100),
)
def test_probabilities_are_in_range_and_never_nan(rows, weights, bias):
    p = Calibration(weights, bias).probability(np.array(rows, float).reshape(-1, 4))
    assert p.shape == (len(rows),) and ((p >= 0) & (p <= 1)).all()


@given(
    st.tuples(*[st.floats(0, 30)] * 4),
    st.lists(st.floats(0.01, 1), min_size=4, max_size=4),
    st.integers(0, 3),
)
def test_more_evidence_is_no_less_probable(weights, row, term):
    more = np.array(row)
    more[term] += 0.3
    one = Calibration(weights, -5.0)
    assert one.probability(more[None]) >= one.probability(np.array(row)[None])


def test_no_candidate_and_no_correlation_are_probability_zero():
    for one in (calibration_of(load_encoder()), TRUTH, Calibration((1.0, -2.0, 3.0, -4.0), 50.0)):
        p = one.probability(np.array([[-np.inf] * 4, [0, 0, 0, 0], [1, 1, -0.2, 1], [0.9, 0.5, 0.8, 0.5]]))
        assert p[:3].tolist() == [0, 0, 0] and p[3] > 0


# ---------------------------------------------------------------- evidence


def test_the_margin_is_over_all_others_and_none():
    x = calibration_features(refined([[0.9, 0.2, 0.5]], [[0.4, 0.6, 0.1]], [[2.0, 1.0, -1.0]]))
    others = np.log(1 + np.e + 1 / np.e)  # none of them, and the two others
    np.testing.assert_allclose(x, [[2 - others, 2.0, 0.9, 0.4]], atol=1e-6)
    assert x.shape[1] == len(TERMS) and logit_margin(refined([[0.9]], [[0.4]], [[2.0]])) == 2.0


def test_unverified_and_missing_candidates_do_not_count():
    wanted = calibration_features(refined([[0.9]], [[0.4]], [[3.0]]))
    for found in (
        refined([[0.9, 0.7]], [[0.4, 0.3]], [[3.0, np.nan]]),
        refined([[0.9, 0.7]], [[0.4, 0.3]], [[3.0, 9.0]], [[3, -1]]),
    ):
        np.testing.assert_allclose(calibration_features(found), wanted, atol=1e-6)


def test_confident_needs_log_odds_and_ncc():
    odds = [[3.1, -9.0], [2.9, -9.0], [5.0, -9.0], [5.0, 4.0]]
    found = refined([[0.1, 0], [0.9, 0], [0.09, 0.9], [0.9, 0]], [[0.4] * 2] * 4, odds)
    assert is_confident(found, SearchConfig()).tolist() == [True, False, False, False]
    sure = SearchConfig(confident_odds=-100, confident_ncc=-1)
    assert is_confident(found, sure).all() and not is_confident(RankedCandidates.empty(3, 0), sure).any()


def test_no_candidates_at_all():
    for found in (
        refined([[0.0, 0.0]], [[-np.inf] * 2], [[np.nan] * 2], [[-1, -1]]),
        refined(*[np.zeros((1, 0))] * 3),
    ):
        assert np.isneginf(calibration_features(found)).all() and calibration_features(found).shape == (1, 4)
        assert TRUTH.probability(calibration_features(found)).tolist() == [0]
        assert np.isneginf(logit_margin(found)).all()


# ---------------------------------------------------------------- files


def test_saved_and_loaded(tmp_path):
    TRUTH.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json") == TRUTH


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"weights": [1, 2], "bias": 0, "fitted_on": ""}', '{"weights": 1, "bias": 0}', "\x00"],
)
def test_files_that_are_not_a_calibration_are_refused(tmp_path, text):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ConfigError):
        Calibration.load(tmp_path / "c.json")
    with pytest.raises(ConfigError, match="not a calibration"):
        Calibration.load(tmp_path / "none.json")


def test_every_shipped_encoder_has_a_calibration_of_its_own():
    for name in encoder_names():
        encoder = load_encoder(name)
        one = calibration_of(encoder)
        assert one.encoder == encoder.fingerprint and len(one.weights) == len(TERMS) and one.fitted_on
        assert calibration_of(encoder, CHIP_TERMS).is_fitted


def test_an_encoder_without_a_calibration_has_no_confidence():
    for terms in (TERMS, CHIP_TERMS):
        calibration = calibration_of(FakeEncoder(), terms)
        assert calibration.terms == terms and not calibration.is_fitted
        assert np.isnan(calibration.probability(np.zeros((3, 4)))).all()
    assert np.isnan(UNCALIBRATED.probability(np.full((1, 4), -np.inf))).all()


def test_a_calibration_of_another_encoder_is_not_used():
    encoder = FakeEncoder()
    encoder.calibrations = (replace(TRUTH, encoder="another"),)
    assert not calibration_of(encoder).is_fitted
    encoder.calibrations += (replace(TRUTH, encoder=encoder.fingerprint),)
    assert calibration_of(encoder).weights == TRUTH.weights


def test_a_changed_digit_is_refused(tmp_path):
    TRUTH.save(tmp_path / "c.json")
    text = (tmp_path / "c.json").read_text()
    (tmp_path / "c.json").write_text(text.replace("9.0", "9.5"))
    with pytest.raises(ConfigError, match="checksum"):
        Calibration.load(tmp_path / "c.json")
    with pytest.raises(OutputExistsError):
        TRUTH.save(tmp_path / "c.json")


def test_expected_calibration_error_by_hand():
    p, right = np.array([0.95, 0.95, 0.05, 1.0]), np.array([True, False, False, True])
    # the bin of 0.9 to 1: mean 0.9667, right 2/3, of 3/4 of all; the first: 0.05, of 1/4
    assert expected_calibration_error(p, right) == pytest.approx(0.75 * (2.9 / 3 - 2 / 3) + 0.25 * 0.05)


# ---------------------------------------------------------------- an encoder of one's own


GROUND = [digital(texture(200, 200, seed=s)) for s in range(3)]
ELSEWHERE = digital(texture(200, 200, seed=9))


def images_of(*numbers):
    return ImageSource("ground", len(numbers), lambda: iter([image_of(GROUND[i], i) for i in numbers]))


@pytest.fixture
def own(tmp_path):
    """The file of an encoder without a calibration, and an index that it made."""
    save_encoder(tensor_model(projection(SMALL.dim), SMALL), tmp_path / "own.keras")
    build_index(images_of(0, 1), tmp_path / "index", encoder=tmp_path / "own.keras")
    return tmp_path / "own.keras", tmp_path / "index"


def questions(folder):
    """Patches of two indexed images and of ground that is not indexed, and a file of answers."""
    xy = [(5 * i, 130 - 5 * i) for i in range(24)]
    patches = [patches_of(ground, xy).pixels for ground in (*GROUND[:2], ELSEWHERE)]
    image, at = np.r_[np.repeat([0, 1], 24), np.arange(24) % 2], np.array(xy * 3)
    write_submission(folder / "answers.csv", np.arange(72), image, at[:, 0], at[:, 1])
    return np.concatenate(patches), folder / "answers.csv"


def calibrate(index, patches, answers, out=None, **more):
    """Fit the confidence of an index, as `retrieve calibrate` does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UncalibratedWarning)
        matches = locate(index, patches)
    return calibrate_from(matches, read_submission(answers), out, **more)


def test_an_index_without_a_calibration_warns_and_has_no_confidence(own, tmp_path):
    index, (patches, _) = open_index(own[1]), questions(tmp_path)
    with pytest.warns(UncalibratedWarning, match="retrieve calibrate PATCHES ANSWERS --index"):
        found = locate(index, patches)
    QueryOutputs(tmp_path / "s.csv", tmp_path / "d.csv").write(found)
    details = pd.read_csv(tmp_path / "d.csv")
    assert details.confidence.isna().all() and not details.calibrated.any()
    with pytest.raises(ConfigError, match="needs a calibration"):
        found.unsure(0.5)
    assert not found.unsure(None).any()


def test_calibrate_stores_the_fit_in_the_index_and_beside_the_encoder(own, tmp_path):
    encoder, index = own
    patches, answers = questions(tmp_path)
    report = calibrate(open_index(index), patches, answers, encoder.with_suffix(".calibration.json"))
    assert report.answers == 72 and report.right == pytest.approx(2 / 3, abs=0.1)
    assert report.calibration_error is not None and report.calibration_error < 0.3
    found = open_index(index).matches(patches)  # without a warning
    assert found.calibrated.all() and found.confidence[:48].min() > found.confidence[48:].max()
    assert found.details().calibrated.all()
    add_images(images_of(2), index, source="more")
    build_index(images_of(1), tmp_path / "other", encoder=encoder)
    for path in (index, tmp_path / "other"):
        assert open_index(path).matches(patches).calibrated.all()
    with pytest.raises(OutputExistsError, match="--overwrite"):
        calibrate(open_index(index), patches, answers)
    calibrate(open_index(index), patches, answers, overwrite=True)


def test_answers_to_other_patches_are_refused(own, tmp_path):
    patches, answers = questions(tmp_path)
    with pytest.raises(SubmissionError, match="patch 71"):
        calibrate(open_index(own[1]), patches[:71], answers)
    with pytest.raises(ConfigError, match="some right and some wrong"):
        write_submission(tmp_path / "few.csv", [0], [0], [0], [130])
        calibrate(open_index(own[1]), patches, tmp_path / "few.csv")


def test_larger_chips_have_a_calibration_of_their_own(own, tmp_path):
    grounds = (*GROUND[:2], ELSEWHERE)
    chips = [
        Image(n, grounds[n % 3][y : y + 100, x : x + 110], "dn", BANDS, 0.0)
        for n, (x, y) in enumerate((3 * i, 95 - 3 * i) for i in range(30))
    ]
    sizes = np.tile([100, 110], (30, 1))
    asked = Chips(np.arange(30), sizes, tuple(c.bands for c in chips), chips.__getitem__)
    at = np.array([(3 * i, 95 - 3 * i) for i in range(30)])
    write_submission(
        tmp_path / "answers.csv", np.arange(30), np.where(np.arange(30) % 3 == 1, 1, 0), at[:, 0], at[:, 1]
    )
    report = calibrate(open_index(own[1]), asked, tmp_path / "answers.csv")
    assert report.calibration.terms == CHIP_TERMS and report.right == pytest.approx(2 / 3, abs=0.1)
    found = open_index(own[1]).matches(asked)
    wrong = np.arange(30) % 3 == 2
    assert found.calibrated.all() and found.confidence[~wrong].min() > found.confidence[wrong].max()
