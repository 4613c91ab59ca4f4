"""The verifier: rotated tensors, batches, mining on generated series, training; and the shipped one."""

from dataclasses import replace

import numpy as np
import pytest
from engine import digital, texture
from lost_workers import Losing

from retrieval.config import VerifierConfig
from retrieval.distributed.executors import open_executor
from retrieval.errors import ConfigError, TrainingError
from retrieval.matching.tensors import Templates
from retrieval.models.structure_tensor import structure_tensor
from retrieval.models.verifier import SIDE, Verifier, shipped_verifier, verifier_model
from retrieval.training.augment import turned_alike
from retrieval.training.verifier import NEAR_PX, Pairs, draw, mine, train_verifier, turned_tensor
from tfrecords.errors import OutputExistsError
from tfrecords.schema import BANDS, Patches, Series
from tfrecords.write import write_series

TINY = VerifierConfig(
    width=4,
    rounds=2,
    queries=24,
    confusions=4,
    min_places=2,
    steps=12,
    batch=8,
    candidates=3,
    cloud_share=0.0,
)


def tensors(pixels):
    """Structure tensors at half resolution (n, 31, 31, 3) of patches (n, 64, 64, b)."""
    names = tuple(f"b{i}" for i in range(pixels.shape[-1]))
    patches = Patches(np.arange(len(pixels)), pixels.astype(np.float32), "scaled", names, np.nan)
    return Templates(patches, range(pixels.shape[-1])).take(np.arange(len(pixels)), 1)[0]


def places(count, dates=2, size=(128, 136), overlap=None):
    """Series of generated ground: each date another light and a little noise."""
    rng = np.random.default_rng(5)
    out = []
    for number in range(count):
        ground = texture(*size, seed=number, power=1.1)
        pixels = [
            digital(np.clip(0.8 * ground + 0.1 * t + rng.normal(0, 0.005, ground.shape), -1, 1))
            for t in range(dates)
        ]
        out.append(
            Series(
                place=f"place{number}",
                pixels=np.stack(pixels),
                units="dn",
                bands=BANDS,
                nodata=0.0,
                dates=tuple(f"2020-0{t + 1}-01" for t in range(dates)),
                overlap_group=number if overlap is None else overlap[number],
            )
        )
    return out


# ---------------------------------------------------------------- turning


@pytest.mark.parametrize("turn", range(8))
def test_rotated_tensors_are_the_tensors_of_rotated_pictures(turn):
    pixels = texture(64, 64, seed=turn)[None]
    tensor = np.asarray(structure_tensor(pixels, 10 / 2047.5)[0])
    of_turned = np.asarray(structure_tensor(np.ascontiguousarray(turned_alike(pixels, turn)), 10 / 2047.5)[0])
    np.testing.assert_allclose(turned_tensor(tensor, turn), of_turned, atol=1e-4)
    np.testing.assert_allclose(
        turned_tensor(tensors(pixels), turn), tensors(turned_alike(pixels, turn)), atol=5e-3
    )


def test_the_eight_turns_differ_and_keep_the_shape():
    pixels = texture(64, 64, seed=2)[None]
    turned = [turned_tensor(tensors(pixels), turn) for turn in range(8)]
    assert {t.shape for t in turned} == {(1, SIDE, SIDE, 3)}
    assert len({np.ascontiguousarray(t).tobytes() for t in turned}) == 8


# ---------------------------------------------------------------- batches


def pairs(n=30, confusions=5, usable=None):
    """Pairs whose pictures are their own numbers: patch i shows i, its candidate j shows i + j / 100."""
    picture = np.ones((1, 1, SIDE, SIDE, 3), np.float32)
    number = np.arange(n, dtype=np.float32)[:, None] + np.arange(confusions + 1) / 100
    region = (number[..., None, None, None] * picture).astype(np.float16)
    template = (np.arange(n)[:, None, None, None] * picture[0]).astype(np.float16)
    shown = np.ones((n, SIDE, SIDE, 1), bool)
    known = np.ones((n, confusions + 1, SIDE, SIDE, 1), bool)
    everything = np.ones((n, confusions + 1), bool)
    return Pairs(template, shown, region, known, everything if usable is None else usable)


def test_a_batch_shows_the_right_place_first_or_not_at_all():
    config = replace(TINY, batch=16, candidates=3, confusions=5, absent_share=0.4, swapped_share=0.0)
    made, rng = pairs(), np.random.default_rng(0)
    absent = []
    for _ in range(20):
        template, region, visible, label = draw(made, config, rng)
        assert template.shape == region.shape == (48, SIDE, SIDE, 3) and visible.shape == (48, SIDE, SIDE, 1)
        assert {v.dtype for v in (template, region, visible)} == {np.dtype(np.float32)}
        which = template[:, 0, 0, 0].reshape(16, 3)
        assert (which == which[:, :1]).all()  # three times the same patch
        candidate = np.rint((region[:, 0, 0, 0].reshape(16, 3) - which) * 100)
        assert (label[label == 0] == 0).all() and set(label.tolist()) <= {0, 3}
        assert ((candidate[:, 0] <= 0.5) == (label == 0))[which[:, 0] < 16].all()  # half precision above
        absent.append((label == 3).mean())
    assert 0.25 < np.mean(absent) < 0.55


def test_a_patch_whose_right_place_was_not_met_is_shown_without_it():
    usable = np.ones((30, 6), bool)
    usable[:, 0] = False
    config = replace(TINY, absent_share=0.0, confusions=5)
    for seed in range(3):
        assert (draw(pairs(usable=usable), config, np.random.default_rng(seed))[3] == config.candidates).all()


def test_one_seed_draws_one_batch():
    config = replace(TINY, confusions=5)
    a, b, c = (draw(pairs(), config, np.random.default_rng(s)) for s in (1, 1, 2))
    assert all((x == y).all() for x, y in zip(a, b, strict=True))
    assert any((x != y).any() for x, y in zip(a, c, strict=True))


# ---------------------------------------------------------------- mining


@pytest.fixture(scope="module")
def mined():
    return mine(places(3), 0, TINY)


def ncc_of(mine_):
    """NCC at the middle of the right place and of every confusion, (n, 1 + k)."""
    template, region = (v.astype(np.float64) for v in (mine_.template[:, None], mine_.region))
    template = template - template.mean((2, 3), keepdims=True)
    region = region - region.mean((2, 3), keepdims=True)
    both = (template * region).sum((2, 3, 4))
    return both / np.sqrt((template**2).sum((2, 3, 4)) * (region**2).sum((2, 3, 4)) + 1e-9)


def test_mined_pairs_have_their_right_place_and_wrong_ones(mined):
    n = len(mined.template)
    assert n == TINY.queries and mined.region.shape == (n, 1 + TINY.confusions, SIDE, SIDE, 3)
    assert mined.shown.shape == (n, SIDE, SIDE, 1) and mined.known.shape[:2] == mined.usable.shape
    assert mined.usable[:, 0].mean() > 0.9  # the ground did not change: NCC meets it
    correlation = np.where(mined.usable, ncc_of(mined), -1)
    right = correlation[mined.usable[:, 0], 0]
    # Half of the places lie between the pixels of half resolution, where fine texture agrees less.
    assert np.quantile(right, 0.9) > 0.9 and (correlation[mined.usable[:, 0], 1:].max(1) < right).mean() > 0.9


def test_the_worst_confusions_come_first(mined):
    correlation = np.where(mined.usable, ncc_of(mined), -1)[:, 1:]
    assert (correlation[:, 0] >= correlation[:, -1] - 0.05).mean() > 0.9
    assert mined.usable[:, 1:].any(1).all()


def test_a_confusion_is_never_of_the_same_ground():
    """Two series of one ground, which overlap: the other is no confusion, however alike it is."""
    one, other = places(2)
    twin = replace(one, place="twin", overlap_group=one.overlap_group)
    found = mine([one, twin, other], 0, TINY)
    correlation = np.where(found.usable, ncc_of(found), -1)[:, 1:]
    assert correlation.max() < 0.9  # the twin's copy of the place would have some 1.0
    apart = mine([one, replace(twin, overlap_group=99), other], 0, TINY)
    assert np.where(apart.usable, ncc_of(apart), -1)[:, 1:].max() > 0.9  # of other ground it is one
    assert NEAR_PX > 8  # a window of the stride beside the place is neither right nor wrong


def test_one_round_is_the_same_each_time_and_another_differs(mined):
    again, other = mine(places(3), 0, TINY), mine(places(3), 3, TINY)
    # To the rounding of half precision: what was compiled in between rounds otherwise.
    np.testing.assert_allclose(again.template, mined.template, atol=0.02)
    near = np.abs(again.region.astype(np.float32) - mined.region.astype(np.float32)) < 0.05
    assert near.mean() > 0.99
    assert (other.template[:10] != mined.template[:10]).any()


def test_ground_that_is_never_known_on_two_dates():
    series = places(2, size=(64, 64))
    hidden = [replace(s, pixels=np.stack([s.pixels[0], np.zeros_like(s.pixels[1])])) for s in series]
    with pytest.raises(TrainingError, match="known on two dates"):
        mine(hidden, 0, TINY)


# ---------------------------------------------------------------- training


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A few steps on three places: figures of two lengths, and the weights of two equal runs."""
    folder = tmp_path_factory.mktemp("verifier")
    write_series(places(3), folder / "series")
    stages = []
    figures = {
        name: train_verifier(
            folder / "series",
            folder / f"{name}.keras",
            replace(TINY, steps=steps),
            progress=stages.append,
        )
        for name, steps in (("short", 10), ("long", 120), ("again", 10))
    }
    return folder, figures, stages


def test_training_lowers_the_loss(trained):
    _, figures, stages = trained
    assert figures["long"]["loss"] < figures["short"]["loss"]
    assert 0 <= figures["long"]["right"] <= 1
    assert "mining confusions: round 2 of 2" in [stage.note for stage in stages]
    assert ("training the verifier", 120, 120) in [(s.stage, s.step, s.steps) for s in stages]


def test_the_same_seed_gives_the_same_weights(trained):
    folder, figures, _ = trained
    short, again, long = (weights(folder / f"{n}.keras") for n in ("short", "again", "long"))
    for a, b in zip(short, again, strict=True):
        np.testing.assert_array_equal(a, b)  # though other networks were built in between
    assert figures["short"]["loss"] == figures["again"]["loss"]
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(short, long, strict=True))


def weights(path):
    import keras

    return keras.saving.load_model(path, compile=False, safe_mode=True).get_weights()


def interrupted_at(step):
    def stop(progress):
        if progress.step == step and (step or "round 1" in progress.note):
            raise KeyboardInterrupt

    return stop


def test_an_interrupted_verifier_resumes_to_the_same_weights(trained, tmp_path):
    """Interrupted while it mines (0), in the middle, and after the last step."""
    series, config, out = trained[0] / "series", replace(TINY, steps=10), tmp_path / "v.keras"
    folder, seen = tmp_path / "v.keras.training", []

    def rounds():
        return sorted(folder.glob("round-*.npz"))

    def until(step):
        """Train, and note each step and when the first round was written; -1 for the whole training."""
        stop, steps = interrupted_at(step), []

        def show(progress):
            if rounds():
                seen.append(rounds()[0].stat().st_mtime_ns)
            steps.extend([progress.step] * (not progress.note))
            stop(progress)

        try:
            train_verifier(series, out, config, progress=show, checkpoint_s=0.0)
        except KeyboardInterrupt:
            assert step >= 0 and not out.exists()
        else:
            assert step == -1
        return steps

    assert until(0) == [] and len(rounds()) == 1
    assert until(5) == [1, 2, 3, 4, 5] and len(rounds()) == TINY.rounds
    with pytest.raises(TrainingError, match="steps was 10 and is 11"):
        train_verifier(series, out, replace(config, steps=11))
    assert until(10) == [5, 6, 7, 8, 9, 10]
    with pytest.raises(TrainingError, match="steps was 10 and is 11"):
        train_verifier(series, out, replace(config, steps=11))
    assert until(-1) == [10]
    assert len(set(seen)) == 1  # mined pairs are not mined again
    for a, b in zip(weights(out), weights(trained[0] / "short.keras"), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-3)
    assert not folder.exists()


def test_rounds_are_mined_on_a_cluster_that_loses_a_worker(tmp_path):
    """Questions are drawn alike; which confusions rank last may depend on what a process has compiled."""
    pytest.importorskip("distributed")
    write_series(places(3), tmp_path / "series")
    rounds = {}

    class MinedError(Exception):
        """Ends the training before its first step."""

    def stopping(stage):
        if "round 2 of 2" in stage.note:
            raise MinedError

    for name in ("serial", "dask:2"):
        out = tmp_path / f"{name[:4]}.keras"
        with open_executor(name) as executor, pytest.raises(MinedError):
            used = Losing(executor, tmp_path) if name == "dask:2" else executor
            train_verifier(tmp_path / "series", out, TINY, progress=stopping, executor=used)
        for file in sorted(out.with_name(f"{out.name}.training").glob("round-*.npz")):
            with np.load(file, allow_pickle=False) as pairs:
                rounds.setdefault(file.name[:9], []).append(dict(pairs))
    assert Losing(None, tmp_path).killed == {"round_task"}
    assert len(rounds) == TINY.rounds
    for here, there in rounds.values():
        assert np.array_equal(here["template"], there["template"])
        assert np.array_equal(here["shown"], there["shown"])
        assert here["region"].shape == there["region"].shape


def test_the_written_verifier_answers(trained):
    import keras

    model = keras.saving.load_model(trained[0] / "short.keras", compile=False, safe_mode=True)
    odds = Verifier(model)(*asked(5))
    assert odds.shape == (5,) and odds.dtype == np.float32 and np.isfinite(odds).all()


def test_an_existing_verifier_is_kept(trained):
    folder = trained[0]
    with pytest.raises(OutputExistsError):
        train_verifier(folder / "series", folder / "short.keras", TINY)


def test_too_few_places(tmp_path, trained):
    with pytest.raises(TrainingError, match="expected 9"):
        train_verifier(trained[0] / "series", tmp_path / "v.keras", replace(TINY, min_places=9))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "knob", [{"candidates": 1}, {"candidates": 9}, {"steps": 0}, {"absent_share": 1.5}, {"seed": -1}]
)
def test_settings_out_of_range_are_refused(knob):
    with pytest.raises(ConfigError):
        replace(TINY, **knob)


# ---------------------------------------------------------------- the shipped one


def asked(n, seed=0):
    """Template, region and visible of n unrelated pairs."""
    pictures = tensors(np.stack([texture(64, 64, seed=seed + i) for i in range(2 * n)]))
    return pictures[:n], pictures[n:], np.ones((n, SIDE, SIDE, 1), np.float32)


def test_a_copy_has_higher_odds_than_another_place():
    template, other, visible = asked(12)
    verifier = shipped_verifier()
    copy, wrong = verifier(template, template, visible), verifier(template, other, visible)
    assert (copy > 0).all() and copy.min() > wrong.max()


def test_another_light_and_noise_are_the_same_place():
    rng = np.random.default_rng(0)
    pixels = np.stack([texture(64, 64, seed=i, power=1.1) for i in range(8)])
    later = 0.6 * pixels - 0.1 + rng.normal(0, 0.01, pixels.shape)
    visible = np.ones((8, SIDE, SIDE, 1), np.float32)
    ours = shipped_verifier()(tensors(pixels), tensors(later), visible)
    others = shipped_verifier()(tensors(pixels), tensors(np.roll(later, 1, 0)), visible)
    assert (ours > others).all()


def test_half_of_a_copy_is_still_told_from_half_of_another_place():
    template, other, visible = asked(8)
    visible[:, :, SIDE // 2 :] = 0
    verifier = shipped_verifier()
    ours, others = (verifier(template * visible, r * visible, visible) for r in (template, other))
    assert (ours > others).all()


def test_nothing_visible_and_nothing_to_see_give_numbers():
    template, region, visible = asked(3)
    nothing = np.zeros_like(visible)
    flat = np.zeros_like(template)
    for pair in ((template, region, nothing), (flat, flat, visible), (flat, flat, nothing)):
        assert np.isfinite(shipped_verifier()(*pair)).all()
    # With nothing visible nothing but the strength of the gradients is left to tell pairs apart.
    dark = shipped_verifier()(flat, flat, nothing)
    assert np.ptp(dark) < 1e-5


def test_the_network_begins_as_what_ncc_says():
    import keras

    keras.utils.set_random_seed(0)
    blank = Verifier(verifier_model(8))
    template, other, visible = asked(6)
    assert (blank(template, template, visible) > blank(template, other, visible)).all()
