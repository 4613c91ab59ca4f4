"""Trees that map images: growth and answers against slow code, their file, and what sees them."""

from __future__ import annotations

import pickle
import zipfile
from collections import deque

import numpy as np
import pytest

pytest.importorskip("mercantile", reason="needs the extra `labels`")

from segmentable import scenes, write_scene
from typer.testing import CliRunner

from retrieval.cli import app
from retrieval.config import ForestConfig
from retrieval.errors import ModelError
from retrieval.kernels.trees import BETTER, LEAF, grow_tree
from retrieval.labels.masks import read_mask
from retrieval.tasks.forest import FOREST, enlarged, grow_forest, load_forest
from retrieval.tasks.neighbourhood import (
    Indices,
    block_means,
    feature_count,
    features,
    indices_of,
    square_means,
)
from retrieval.tasks.segment import predict
from retrieval.tasks.segment.model import load_segmenter
from retrieval.tasks.segment.trees import draw_sample, train_forest
from tfrecords.errors import ManifestError, OutputExistsError

SMALL = ForestConfig(trees=8, sample=3000, min_leaf=5, smallest=3, scales=2)


def purity(labels, weights):
    """Sum of the squared weights of the classes over their sum: high where one class prevails."""
    total = np.array([weights[c] * (labels == c).sum() for c in range(len(weights))])
    return (total**2).sum() / max(total.sum(), 1e-12)


def slow_tree(shown, labels, weights, draws, min_leaf):
    """Nodes of a tree by its definition: (feature, limit, first child, class weights)."""
    waiting, nodes = deque([np.arange(len(labels))]), []
    made = 1
    while waiting:
        pixels, number = waiting.popleft(), len(nodes)
        best = purity(labels[pixels], weights)
        kept = (LEAF, 0.0)
        if len(pixels) >= 2 * min_leaf:
            for a, b in draws[number]:
                feature = int(a * len(shown))
                limit = shown[feature, pixels[int(b * len(pixels))]]
                low = shown[feature, pixels] <= limit
                if min(low.sum(), (~low).sum()) < min_leaf:
                    continue
                score = sum(purity(labels[pixels[part]], weights) for part in (low, ~low))
                if score > best * BETTER:
                    best, kept = score, (feature, limit)
        total = [weights[c] * (labels[pixels] == c).sum() for c in range(len(weights))]
        nodes.append((*kept, made if kept[0] != LEAF else 0, total))
        if kept[0] != LEAF:
            made += 2
            first, last = 0, len(pixels) - 1
            order = pixels.copy()
            while first <= last:  # the order of the pixels decides what later draws mean
                if shown[kept[0], order[first]] <= kept[1]:
                    first += 1
                else:
                    order[first], order[last] = order[last], order[first]
                    last -= 1
            waiting += [order[:first], order[first:]]
    return nodes


@pytest.mark.parametrize(("seed", "k", "min_leaf"), [(0, 2, 1), (1, 3, 4), (2, 5, 10)])
def test_a_tree_grows_by_its_definition(seed, k, min_leaf):
    rng = np.random.default_rng(seed)
    shown = rng.integers(0, 12, (6, 90)).astype(np.float32)
    labels = (shown[seed % 6] // 5 + rng.integers(0, 2, 90)).astype(np.int64) % k
    weights, draws = rng.random(k) + 0.5, rng.random((2 * (90 // min_leaf) + 1, 3, 2))
    got = grow_tree(shown, labels, weights, draws, min_leaf)
    expected = slow_tree(shown, labels, weights, draws, min_leaf)
    assert len(got[0]) == len(expected) > 3
    for node, (feature, limit, child, total) in enumerate(expected):
        assert (got[0][node], got[2][node]) == (feature, child)
        assert feature == LEAF or got[1][node] == limit
        np.testing.assert_allclose(got[3][node], total)


def test_the_answer_is_the_mean_over_the_leaves():
    rng = np.random.default_rng(3)
    shown = rng.normal(size=(400, feature_count(2, 1, 2))).astype(np.float32)
    labels = (shown[:, 4] > 0).astype(int) + (shown[:, 9] > 1)
    config = ForestConfig(**SMALL.to_dict() | {"tries": 0.5})
    forest = grow_forest(shown, labels, 3, 2, config)
    for row in shown[:20]:
        reached = []
        for root in forest.roots:
            node = root
            while forest.feature[node] != LEAF:
                node = forest.child[node] + (row[forest.feature[node]] > forest.limit[node])
            reached.append(forest.share[node])
        np.testing.assert_allclose(forest.shares(row[None])[0], np.mean(reached, 0), atol=1e-6)
    assert (forest.shares(shown).argmax(1) == labels).mean() > 0.9
    again = grow_forest(shown, labels, 3, 2, config)
    for one, other in zip(forest.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_rare_classes_weigh_as_the_recipe_says():
    rng = np.random.default_rng(4)
    shown = rng.normal(size=(2000, feature_count(1, 1, 2))).astype(np.float32)
    labels = (rng.random(2000) < 0.1).astype(int)  # nothing shows the class
    for balance, mean in ((0.0, 0.1), (1.0, 0.5)):
        config = ForestConfig(**SMALL.to_dict() | {"balance": balance, "min_leaf": 200})
        found = grow_forest(shown, labels, 2, 1, config).shares(shown)[:, 1].mean()
        assert abs(found - mean) < 0.05


# --- features ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [1, 3, 9, 13, 41])
def test_means_of_squares_stay_inside_the_image(side):
    values = np.random.default_rng(side).normal(size=(11, 17, 2)).astype(np.float32)
    half, got = side // 2, square_means(values, side)
    for y in range(11):
        for x in range(17):
            part = values[max(y - half, 0) : y + half + 1, max(x - half, 0) : x + half + 1]
            np.testing.assert_allclose(got[y, x], part.mean((0, 1)), atol=1e-5)


@pytest.mark.parametrize("reduction", [1, 4])
def test_features_turn_with_the_image(reduction):
    pixels = np.random.default_rng(5).random((32, 48, 3)).astype(np.float32)
    shown = features(pixels, reduction, (3, 7))
    assert shown.shape == (32 // reduction, 48 // reduction, feature_count(3, reduction, 2))
    assert np.isfinite(shown).all()
    for turn in (np.rot90, np.flipud, lambda a: a.swapaxes(0, 1)):
        np.testing.assert_allclose(features(turn(pixels), reduction, (3, 7)), turn(shown), atol=2e-4)


def test_blocks_of_one_mean_differ_by_their_texture():
    y, x = np.mgrid[:16, :32]
    pixels = np.where(x < 16, 0.5, (x + y) % 2).astype(np.float32)[..., None]
    assert np.allclose(block_means(pixels, 8), 0.5)
    texture = features(pixels, 8, (3,))[..., 1:5]
    assert texture[0, 0].max() < 0.05 and texture[0, 3].max() > 0.4
    assert not features(np.zeros((16, 16, 1), np.float32), 8, (3,)).any()


@pytest.mark.parametrize("reduction", [1, 4])
def test_normalized_differences_are_those_of_the_means_and_know_no_brightness(reduction):
    pixels = np.random.default_rng(8).uniform(0.1, 1, (32, 48, 3)).astype(np.float32)
    pairs, plain = ((0, 1), (2, 1)), features(pixels, reduction, (3, 7))
    shown = features(pixels, reduction, (3, 7), Indices(pairs))
    assert shown.shape[-1] == feature_count(3, reduction, 2, len(pairs)) == plain.shape[-1] + 6
    np.testing.assert_array_equal(shown[..., :-6], plain)
    blocks = block_means(pixels, reduction)
    means = [blocks, *(square_means(blocks, side) for side in (3, 7))]
    wanted = [(m[..., i] - m[..., j]) / (m[..., i] + m[..., j]) for m in means for i, j in pairs]
    np.testing.assert_allclose(shown[..., -6:], np.stack(wanted, -1), atol=1e-5)
    np.testing.assert_allclose(
        features(2 * pixels, reduction, (3, 7), Indices(pairs))[..., -6:], shown[..., -6:], atol=1e-4
    )
    assert np.isfinite(features(0 * pixels, reduction, (3, 7), Indices(pairs))).all()


@pytest.mark.parametrize(("bands", "of_a_date"), [(1, 0), (3, 3), (6, 15), (13, 15)])
def test_indices_are_of_two_bands_of_one_date(bands, of_a_date):
    pairs = indices_of(bands, 2).pairs
    assert len(set(pairs)) == len(pairs) == 2 * of_a_date
    assert all(i // bands == j // bands < 2 and i < j for i, j in pairs)


def test_indices_of_dates_tell_how_the_last_differs_from_the_first():
    """Three dates of two bands, with two channels more: the gaps are of the third and the first date."""
    pixels = np.random.default_rng(9).uniform(0.1, 1, (24, 24, 8)).astype(np.float32)
    found, plain = indices_of(2, 3, 8), features(pixels, 1, (5,))
    assert len(found) == 6 and len(indices_of(2, 1).gaps) == 0
    shown = features(pixels, 1, (5,), found)[..., plain.shape[-1] :]
    for part, mean in zip(np.split(shown, 2, -1), (pixels, square_means(pixels, 5)), strict=True):
        normal = [(mean[..., i] - mean[..., i + 1]) / (mean[..., i] + mean[..., i + 1]) for i in (0, 2, 4)]
        gaps = [mean[..., 4] - mean[..., 0], mean[..., 5] - mean[..., 1], normal[2] - normal[0]]
        np.testing.assert_allclose(part, np.stack([*normal, *gaps], -1), atol=1e-5)


def test_enlargement_is_linear_between_the_middles():
    values = np.random.default_rng(6).random((5, 3, 1)).astype(np.float32)
    got = enlarged(values, 4)
    at = (np.arange(20) + 0.5) / 4 - 0.5
    down = np.stack([np.interp(at, np.arange(5), values[:, n, 0]) for n in range(3)], 1)
    expected = np.stack([np.interp(at[:12], np.arange(3), row) for row in down])
    np.testing.assert_allclose(got[..., 0], expected, atol=1e-6)
    np.testing.assert_array_equal(enlarged(values, 1), values)


# --- models -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of three classes and its report."""
    out = tmp_path_factory.mktemp("trees") / "model"
    return out, train_forest(scenes(3, k=3), out, SMALL, validation=scenes(1, seed=7, k=3))


def test_trees_learn_what_other_scenes_show(trained):
    out, report = trained
    assert report.miou > 0.8 and report.threshold is None and report.trees == 8
    model, other = load_segmenter(out), scenes(1, seed=9, k=3).scenes[0]
    answers = model.choose(model.map_probabilities(other.pixels))
    assert (answers == other.mask).mean() > 0.85
    travelled = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(
        travelled.map_probabilities(other.pixels), model.map_probabilities(other.pixels)
    )
    with pytest.raises(OutputExistsError):
        train_forest(scenes(3, k=3), out, SMALL)


def test_blocks_become_maps_of_full_size(tmp_path):
    config = ForestConfig(**SMALL.to_dict() | {"reduction": 4})
    train_forest(scenes(3, k=3), tmp_path / "m", config)
    other = scenes(1, seed=9, height=61, width=83, k=3).scenes[0]
    model = load_segmenter(tmp_path / "m")
    likely = model.map_probabilities(other.pixels)
    assert likely.shape == (61, 83, 3) and (model.choose(likely) == other.mask).mean() > 0.7
    np.testing.assert_allclose(likely.sum(-1), 1, atol=1e-5)


def test_windows_agree_with_the_whole_image(trained):
    model = load_segmenter(trained[0])
    pixels = scenes(1, seed=5, height=300, width=280, k=3).scenes[0].pixels
    whole = model.map_probabilities(pixels)
    np.testing.assert_allclose(model.map_probabilities(pixels, window_px=128), whole, atol=1e-4)


def test_trees_that_see_normalized_differences_ignore_the_light(tmp_path):
    taught, other = scenes(3, k=3), scenes(1, seed=9, k=3).scenes[0]
    train_forest(taught, tmp_path / "plain", SMALL)
    train_forest(taught, tmp_path / "pairs", ForestConfig(**SMALL.to_dict() | {"indices": True}))
    dark, right = (other.pixels * 0.5).astype(np.uint8), {}
    for name in ("plain", "pairs"):
        model = load_segmenter(tmp_path / name)
        right[name] = (model.choose(model.map_probabilities(dark)) == other.mask).mean()
        whole = model.map_probabilities(other.pixels)
        np.testing.assert_allclose(model.map_probabilities(other.pixels, window_px=48), whole, atol=1e-4)
    assert load_segmenter(tmp_path / "pairs").network.pairs == ((0, 1), (1, 2), (0, 2))
    assert right["pairs"] > right["plain"]


def test_the_threshold_comes_from_ground_that_was_left_out(tmp_path):
    taught = scenes(4, seed=3)
    report = train_forest(taught, tmp_path / "m", SMALL, groups=["a", "a", "b", "b"])
    assert 0.05 <= report.threshold <= 0.95
    alone = train_forest(taught, tmp_path / "one", SMALL, groups=["a"] * 4)
    assert alone.threshold == 0.5


def test_the_sample_holds_rare_classes_and_no_unlabelled_pixel():
    taught = scenes(2, seed=4)
    for scene in taught.scenes:
        scene.mask[:] = 0
        scene.mask[:4, :8] = 1
        scene.mask[20:, :] = 255
    sample = draw_sample(taught, ForestConfig(sample=300, smallest=3, scales=1))
    assert (sample.labels == 1).sum() == 64
    counts = np.bincount(sample.labels, sample.stands_for)
    np.testing.assert_allclose(counts, taught.counts())


def test_small_scenes_are_drawn_as_often_as_the_recipe_says():
    """A scene of a sixteenth of the labels: as many pixels as the other at 1, a quarter at a half."""
    taught = scenes(2, seed=4, height=128, width=128)
    taught.scenes[1].mask[32:] = 255
    taught.scenes[1].mask[:, 32:] = 255
    for even, share in ((0.0, 1 / 16), (0.5, 1 / 4), (1.0, 1.0)):
        sample = draw_sample(taught, ForestConfig(sample=1000, smallest=3, scales=1, even=even))
        found = np.bincount(sample.group)
        assert abs(found[1] / found[0] / share - 1) < 0.25
        counts = np.bincount(sample.labels, sample.stands_for)
        np.testing.assert_allclose(counts, taught.counts())
        assert abs(sample.stands_for[sample.group == 1].sum() / 1024 - 1) < 0.3


def test_tiles_show_what_whole_scenes_show(monkeypatch):
    taught = scenes(2, seed=6, height=96, width=130, k=3)
    taught.scenes[1].mask[:40] = 255
    for reduction in (1, 2):
        config = ForestConfig(sample=3000, smallest=3, scales=2, reduction=reduction)
        monkeypatch.setattr("retrieval.tasks.segment.trees.TILE", 512)
        whole = draw_sample(taught, config)
        monkeypatch.setattr("retrieval.tasks.segment.trees.TILE", 24)
        tiles = draw_sample(taught, config)
        np.testing.assert_allclose(tiles.shown, whole.shown, atol=1e-4)
        np.testing.assert_array_equal(tiles.labels, whole.labels)


def test_the_commands_take_trees(tmp_path):
    for n, scene in enumerate(scenes(3, k=2).scenes):
        write_scene(tmp_path / "images" / f"{n}.tif", scene.pixels[0])
        write_scene(tmp_path / "masks" / f"{n}.tif", scene.mask[..., None], nodata=255)
    (tmp_path / "recipe.json").write_text('{"trees": 5, "sample": 2000, "min_leaf": 5, "smallest": 3}')
    train = ("segment", "train", tmp_path / "images", tmp_path / "masks", "--out", tmp_path / "model")
    more = ("--method", "trees", "--recipe", tmp_path / "recipe.json", "--quiet", "--units", "byte")
    done = CliRunner().invoke(app, [str(a) for a in (*train, *more)])
    assert done.exit_code == 0 and "5 trees" in done.output, done.output
    predict(tmp_path / "images", tmp_path / "model", tmp_path / "maps", units="byte")
    found = read_mask(tmp_path / "maps" / "1.tif")
    assert (found == read_mask(tmp_path / "masks" / "1.tif")).mean() > 0.9
    refused = CliRunner().invoke(app, [str(a) for a in (*train, *more, "--steps", "9")])
    assert refused.exit_code == 2 and "--steps" in refused.output
    export = ("export", "--as", "onnx", "--model", tmp_path / "model", "--out", tmp_path / "model.onnx")
    refused = CliRunner().invoke(app, [str(a) for a in export])
    assert refused.exit_code == 1 and "trees" in refused.output and not (tmp_path / "model.onnx").exists()


# --- file -------------------------------------------------------------------------------------------------


def test_a_changed_file_is_refused(trained, tmp_path):
    file = trained[0] / FOREST
    with np.load(file) as stored:
        good = dict(stored)
    inner = np.flatnonzero(good["feature"] >= 0)[0]

    def changed(name, at, value):
        array = good[name].copy()
        array[at] = value
        return {name: array}

    endless = changed("child", inner, inner)
    outside = changed("child", inner, len(good["child"]) - 1)
    bad = [endless, outside, changed("child", inner, -5), changed("child", inner, 2**31 - 1)]
    bad += [changed("feature", inner, 10**6), changed("feature", inner, -2), changed("roots", 0, -1)]
    bad += [changed("roots", 0, len(good["child"])), changed("share", (0, 0), np.nan)]
    bad += [changed("limit", inner, np.inf), {"limit": good["limit"][:-1]}, {"roots": good["roots"][:0]}]
    bad += [{"share": good["share"].astype(np.float64)}, {"reduction": np.int32(0)}, {"more": good["roots"]}]
    bad += [{"sides": np.array([-1], np.int32)}, {"feature": np.array([{}], object)}]
    bad += [{"pairs": np.array(pairs, "<i4")} for pairs in ([[0, 3]], [[-1, 0]], [[0, 1, 2]], [0, 1])]
    bad += [{"pairs": np.array([[0, 1]], "<i8")}]
    for number, change in enumerate(bad):
        path = tmp_path / f"{number}.npz"
        np.savez(path, **good | change)
        with pytest.raises(ModelError, match="no forest can be read"):
            load_forest(path)
    content = file.read_bytes()
    for size in (0, 100, len(content) // 2):
        (tmp_path / "cut.npz").write_bytes(content[:size])
        with pytest.raises(ModelError):
            load_forest(tmp_path / "cut.npz")
    first = 30 + sum(int.from_bytes(content[at : at + 2], "little") for at in (26, 28))  # behind the name
    (tmp_path / "packed.npz").write_bytes(content[:first] + b"\xff" + content[first + 1 :])
    with pytest.raises(ModelError, match="invalid block type"):
        load_forest(tmp_path / "packed.npz")


def test_a_file_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("retrieval.tasks.forest.MAX_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "large.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("roots.npy", bytes((1 << 20) + 1))
    with pytest.raises(ModelError, match="more than"):
        load_forest(tmp_path / "large.npz")


def test_a_folder_with_another_forest_is_refused(trained, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in trained[0].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    content = bytearray((folder / FOREST).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / FOREST).write_bytes(content)
    with pytest.raises(ManifestError):
        load_segmenter(folder)
