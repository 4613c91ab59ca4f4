"""The representation: statistics against slow ones, both codes on generated series, resume, bad input."""

import signal

import keras
import numpy as np
import pytest
from engine import digital, texture

from retrieval import load_representation
from retrieval.config import RepresentationConfig
from retrieval.errors import EncoderError, TrainingError
from retrieval.models.light_statistics import count_of, light_statistics
from retrieval.models.registry import encoder_names, load_network, shipped_models
from retrieval.models.representation import placed_bands
from retrieval.training.light_batches import draw_sights, usable_series
from retrieval.training.representation import (
    Moments,
    exclusive_projection,
    shared_projection,
    train_representation,
)
from tfrecords.errors import OutputExistsError
from tfrecords.schema import BANDS, Series
from tfrecords.write import write_series

SMALL = RepresentationConfig(shared_dim=24, exclusive_dim=4, places=2, crops=8, steps=20, relight=0.3)


def place(number, side=160):
    """Return ground on two dates: the second is darker, flatter and of another tint in each band."""
    ground = 0.5 * texture(side, side, seed=number) - 0.4
    rng = np.random.default_rng(number)
    gain, offset = rng.uniform(0.6, 0.9, 4), rng.uniform(-0.2, 0.1, 4)
    dates = np.stack([digital(ground), digital(gain * (ground + 1) + offset - 0.8)])
    return Series(dates, "dn", BANDS, 0.0, ("2020-01-01", "2020-07-01"), f"p{number}", overlap_group=number)


@pytest.fixture(scope="module")
def records():
    return [place(number) for number in range(5)]


@pytest.fixture(scope="module")
def series(records, tmp_path_factory):
    folder = tmp_path_factory.mktemp("series") / "train"
    write_series(iter(records), folder)
    return folder


@pytest.fixture(scope="module")
def trained(series, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "a.keras"
    return train_representation(series, out, SMALL, progress=lambda progress: None), out


# --- statistics and batches -----------------------------------------------------------------------


def slow_statistics(crop):
    """Return the first statistics of each band and of the first pair, pixel by pixel."""
    light = [(band[~np.isnan(band)].astype(float) + 1) / 2 for band in np.moveaxis(crop, -1, 0)]
    means = [band.mean() for band in light]
    spreads = [np.log(np.sqrt(((band - band.mean()) ** 2).mean() + 1e-6)) for band in light]
    geometric = [np.log(np.maximum(band, 0) + 0.02).mean() for band in light]
    return np.array(means + spreads + geometric)


def test_statistics_equal_slow_ones_and_leave_nodata_out(rng):
    crops = rng.uniform(-1, 0.5, (3, 64, 64, 4)).astype("float32")
    crops[1, :20] = np.nan
    values, present = (np.asarray(v) for v in light_statistics(crops, 4))
    assert values.shape == present.shape == (3, count_of(4)) and present.all()
    for crop, found in zip(crops, values, strict=True):
        np.testing.assert_allclose(found[:12], slow_statistics(crop), atol=2e-4)


def test_a_missing_band_changes_no_other_statistic(rng):
    crops = rng.uniform(-1, 0.5, (1, 64, 64, 4)).astype("float32")
    whole, _ = (np.asarray(v)[0] for v in light_statistics(crops, 4))
    crops[..., 3] = np.nan
    part, present = (np.asarray(v)[0] for v in light_statistics(crops, 4))
    assert present.sum() == count_of(3) and not part[present == 0].any()
    np.testing.assert_allclose(part[present > 0], whole[present > 0], atol=1e-4)


def test_bands_go_to_their_places(rng):
    pixels = rng.uniform(-1, 1, (2, 5, 5, 3)).astype("float32")
    placed = placed_bands(pixels, ("B11", "B08", "B03"))
    np.testing.assert_array_equal(placed[..., [0, 3, 1]], pixels)
    assert np.isnan(placed[..., 2]).all()
    many = placed_bands(np.repeat(pixels, 2, -1), ("B02", "B05", "B03", "B06", "B04", "B08"))
    assert not np.isnan(many).any()


def test_a_batch_shows_one_image_a_date_and_follows_from_the_generator(records):
    usable = usable_series(records)
    first, again = (draw_sights(usable, SMALL, np.random.default_rng(3), relit=True) for _ in range(2))
    np.testing.assert_array_equal(first.crops, again.crops)
    assert first.crops.shape == (2, 2, 8, 64, 64, 4) and first.crops.dtype == np.float32
    plain = draw_sights(usable, SMALL, np.random.default_rng(3), relit=False).crops
    for place_crops, number in zip(plain, first.series, strict=True):
        dates = usable[number].pixels / 2047.5 - 1
        levels = np.sort(place_crops.mean((1, 2, 3, 4)))
        assert np.abs(levels - np.sort(dates.mean((1, 2, 3)))).max() < 0.2  # each date is of one image


# --- both codes -----------------------------------------------------------------------------------


def moments_of(z):
    moments = Moments(z.shape[-1], len(z))
    for part in np.array_split(z, 4):
        moments.add(part)
    return moments.covariances()


def test_moments_equal_slow_ones(rng):
    z = rng.normal(size=(12, 2, 6, 3)) + rng.normal(size=(12, 2, 1, 3)) + rng.normal(size=(12, 1, 6, 3))
    found = moments_of(z)
    images = z.reshape(24, 6, 3)
    within = np.mean([np.cov(image.T) for image in images], 0)
    across = np.mean([np.cov(a.T, b.T)[:3, 3:] for a, b in z], 0)
    np.testing.assert_allclose(found.within, within)
    np.testing.assert_allclose(found.across, (across + across.T) / 2)
    change = (z[:, 1].mean(1) - z[:, 0].mean(1)) / np.sqrt(2)
    np.testing.assert_allclose(found.changes, change)
    slow = [np.outer(d, d) / (1 + d @ np.linalg.solve(within, d)) for d in change]
    np.testing.assert_allclose(found.between(np.zeros((3, 3))), np.mean(slow, 0))
    np.testing.assert_allclose(found.total, np.cov(z.reshape(-1, 3).T, bias=True))


def test_the_shared_projection_keeps_the_place_and_drops_the_brightness(rng):
    n, c, d = 40, 20, 12
    ground, mixing = np.repeat(rng.normal(size=(n, 1, c, 3)), 2, 1), rng.normal(size=(d, d))
    bright = np.repeat(rng.normal(size=(n, 1, c, 1)) + rng.normal(size=(n, 1, 1, 1)), 2, 1)
    vectors = np.concatenate([ground, bright, rng.normal(size=(n, 2, c, d - 4))], -1) @ mixing
    covariances = moments_of(vectors)
    flat = vectors.reshape(-1, d) - vectors.mean((0, 1, 2))
    follows = flat.T @ (bright.ravel() - bright.mean())[:, None] / len(flat)
    projection, correlation = shared_projection(covariances, follows, 3)
    codes, true = flat @ projection, ground.reshape(-1, 3)
    fitted = codes @ np.linalg.lstsq(codes, true, rcond=None)[0]
    assert correlation > 0.95 and 1 - ((true - fitted) ** 2).mean() / true.var() > 0.95
    assert np.abs(np.corrcoef(codes.T, bright.ravel())[:3, 3]).max() < 0.02
    with pytest.raises(TrainingError, match="Lower shared_dim"):
        shared_projection(covariances, follows, 12)


def test_the_exclusive_projection_keeps_the_date_and_drops_the_place(rng):
    n, c, d = 60, 20, 10
    date, ground = rng.normal(size=(n, 2, 1, 2)), rng.normal(size=(n, 1, c, 4))
    parts = [np.broadcast_to(date, (n, 2, c, 2)), np.broadcast_to(ground, (n, 2, c, 4))]
    z = np.concatenate(parts, -1) @ rng.normal(size=(6, d)) + 0.3 * rng.normal(size=(n, 2, c, d))
    config = RepresentationConfig(exclusive_dim=2, ridge=1e-4)
    projection, ratio = exclusive_projection(moments_of(z), config)
    codes = z @ projection
    own = codes - codes.mean(2, keepdims=True)
    kept = [np.corrcoef(own[:, 0, :, i].ravel(), own[:, 1, :, i].ravel())[0, 1] for i in (0, 1)]
    assert ratio > 3 and np.abs(kept).max() < 0.3
    with pytest.raises(TrainingError, match="Lower exclusive_dim"):
        exclusive_projection(moments_of(z), RepresentationConfig(exclusive_dim=11))


def test_training_writes_a_model_whose_codes_are_apart(trained, records, tmp_path):
    figures, out = trained
    assert figures["correlation_of_shared"] > 0.5 and figures["ratio_of_exclusive"] > 1
    model = load_representation(out)
    assert (model.shared_dim, model.exclusive_dim) == (24, 4)
    record = place(17)
    corners = [(y, x) for y in (0, 32, 64, 96) for x in (0, 32, 64, 96)]
    crops = [np.stack([d[y : y + 64, x : x + 64] for y, x in corners]) for d in record.pixels / 2047.5 - 1]
    first, second = (model(c.astype("float32")) for c in crops)
    np.testing.assert_allclose(np.linalg.norm(first.shared, axis=1), 1, atol=1e-4)
    nearest = (first.shared @ second.shared.T).argmax(1)
    assert (nearest == np.arange(len(corners))).mean() > 0.9
    gap = np.abs(first.exclusive.mean(0) - second.exclusive.mean(0)) / first.exclusive.std(0)
    assert gap.max() > 1.5
    # Plain Keras opens the file, and a band less is no error.
    assert set(load_network(out).output) == {"shared", "exclusive"}
    assert np.isfinite(model(crops[0][..., :3].astype("float32"), BANDS[:3]).exclusive).all()
    with pytest.raises(EncoderError, match="name their bands"):
        model(crops[0][..., :3].astype("float32"))


def test_an_interrupted_run_resumes_to_the_same_weights(series, trained, tmp_path):
    out = tmp_path / "b.keras"

    def stop(progress):
        if progress.step == 8 and not progress.note:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="resume"):
        train_representation(series, out, SMALL, progress=stop)
    assert not out.exists()
    figures = train_representation(series, out, SMALL, progress=lambda progress: None)
    assert figures == pytest.approx(trained[0], rel=1e-3)
    for mine, theirs in zip(load_network(out).weights, load_network(trained[1]).weights, strict=True):
        np.testing.assert_allclose(np.asarray(mine), np.asarray(theirs), atol=1e-4)
    with pytest.raises(OutputExistsError):
        train_representation(series, out, SMALL)


def test_the_shipped_representation_tells_places_and_dates_apart():
    assert "representation" in [model.name for model in shipped_models()]
    assert "representation" not in encoder_names()
    model, record = load_representation(), place(23, side=256)
    corners = [(y, x) for y in range(0, 193, 64) for x in range(0, 193, 64)]
    first, second = (
        model(np.stack([d[y : y + 64, x : x + 64] for y, x in corners]).astype("float32"))
        for d in record.pixels / 2047.5 - 1
    )
    assert ((first.shared @ second.shared.T).argmax(1) == np.arange(16)).mean() >= 0.8
    away = np.linalg.norm(first.exclusive[:, None] - second.exclusive, axis=-1)
    near = np.linalg.norm(first.exclusive[:, None] - first.exclusive, axis=-1)
    assert near.mean() < 0.5 * away.mean()


def test_what_is_no_representation_is_refused(records, series, tmp_path):
    with pytest.raises(EncoderError, match="no such representation"):
        load_representation(tmp_path / "none.keras")
    other = tmp_path / "other.keras"
    keras.Sequential([keras.Input((64, 64, 4)), keras.layers.Flatten()]).save(other)
    with pytest.raises(EncoderError, match="no representation"):
        load_representation(other)
    with pytest.raises(TrainingError, match="Give larger series"):
        usable_series([place(1, side=72)])
    empty = [Series(np.zeros_like(r.pixels), "dn", BANDS, 0.0, r.dates, r.place) for r in records]
    with pytest.raises(TrainingError, match="less nodata"):
        draw_sights(empty, SMALL, np.random.default_rng(0), relit=False)
