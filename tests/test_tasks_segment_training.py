"""Segmentation: losses, crops, the network, and a training that resumes to the same weights."""

from __future__ import annotations

import csv
import json
import signal

import numpy as np
import pytest

pytest.importorskip("mercantile", reason="needs the extra `labels`")

import keras
from labelground import run
from segmentable import BUILDING, GROUND, LEARNS, TINY, blocks, pixels_of, scenes, write_pair, write_scene

from retrieval.config import SegmenterConfig
from retrieval.errors import ExamplesError, LabelsError, ModelError, TrainingError
from retrieval.evaluation.segmentation import class_figures, confusion_of, mean_iou
from retrieval.labels.classes import Classes
from retrieval.labels.masks import write_png
from retrieval.tasks.model_folder import MODEL
from retrieval.tasks.segment.calibrating import best_iou_threshold
from retrieval.tasks.segment.crops import CropSource, margin_side, mirrored, varied
from retrieval.tasks.segment.losses import cross_entropy, log_probabilities, lovasz
from retrieval.tasks.segment.model import load_segmenter
from retrieval.tasks.segment.scenes import Scene, SceneSet
from retrieval.tasks.segment.sources import read_scenes
from retrieval.tasks.segment.training import train, train_segmenter
from retrieval.training.recipes import read_recipe
from tfrecords.errors import ArrayError, BandsError, ManifestError, MissingInputError, OutputExistsError


def quiet(training, out, config=TINY, **more):
    return train_segmenter(training, out, config, progress=lambda _: None, **more)


def weights_of(out):
    return [np.array(w) for w in load_segmenter(out).network.get_weights()]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(weights_of(a), weights_of(b), strict=True))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "model"
    return out, quiet(scenes(3), out, validation=scenes(2, 5))


# --- losses -----------------------------------------------------------------------------------------


def a_batch(seed, m=60, k=3, ignored=0.2):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(m, k)).astype(np.float32)
    truth = np.eye(k, dtype=np.float32)[rng.integers(0, k, m)]
    truth[rng.random(m) < ignored] = 0
    return logits, truth


def set_loss(wrong, wanted):
    """Return 1 - IoU of a class whose wrong pixels are given: the set function that Lovász extends."""
    union = (wanted | wrong).sum()
    return wrong.sum() / union if union else 0.0


def slow_lovasz(p, truth, index):
    """Sum over pixels in falling order of error: error x growth of 1 - IoU when the pixel turns wrong."""
    known = truth.sum(1) > 0
    wanted = truth[known, index] > 0
    error = np.abs(wanted - p[known, index])
    wrong, loss = np.zeros(len(wanted), bool), 0.0
    for pixel in np.argsort(-error, kind="stable"):
        before = set_loss(wrong, wanted)
        wrong[pixel] = True
        loss += error[pixel] * (set_loss(wrong, wanted) - before)
    return loss


@pytest.mark.parametrize("seed", range(3))
def test_lovasz_extends_the_iou(seed):
    logits, truth = a_batch(seed)
    p = np.exp(np.array(log_probabilities(logits)))
    expected = np.mean([slow_lovasz(p, truth, index) for index in (0, 2)])
    assert float(lovasz(p, truth, (0, 2))) == pytest.approx(expected, abs=1e-5)


def test_lovasz_of_sure_answers_is_one_minus_the_iou():
    rng = np.random.default_rng(4)
    truth, answers = (np.eye(2, dtype=np.float32)[rng.integers(0, 2, 500)] for _ in range(2))
    confusion = confusion_of(truth.argmax(1), answers.argmax(1), 2)
    assert float(lovasz(answers, truth, (1,))) == pytest.approx(1 - class_figures(confusion)[0][1], abs=1e-5)


def test_cross_entropy_weighs_classes_and_leaves_ignored_pixels_out():
    logits, truth = a_batch(1)
    log_p, weights = np.array(log_probabilities(logits)), np.array([1.0, 3.0, 0.5], np.float32)
    known = truth.sum(1) > 0
    pixel = weights[truth[known].argmax(1)]
    of_truth = log_p[known][np.arange(known.sum()), truth[known].argmax(1)]
    plain = -(pixel * of_truth).sum() / pixel.sum()
    assert float(cross_entropy(log_p, truth, weights)) == pytest.approx(plain, rel=1e-5)
    focal = -(pixel * (1 - np.exp(of_truth)) ** 2 * of_truth).sum() / pixel.sum()
    assert float(cross_entropy(log_p, truth, weights, 2.0)) == pytest.approx(focal, rel=1e-5)
    assert float(cross_entropy(log_p, 0 * truth, weights)) == 0
    assert float(lovasz(np.exp(log_p), 0 * truth, (0, 1))) == 0


# --- crops ------------------------------------------------------------------------------------------


def test_crops_follow_from_their_step_and_prefer_rare_classes():
    mask = np.zeros((200, 240), np.uint8)
    mask[150:154, 30:34] = 1
    some = SceneSet((Scene("a", pixels_of(mask, 0)[None], mask),), "byte", ("B04", "B03", "B02"), BUILDING)
    shares = {}
    for rare in (0.0, 1.0):
        source = CropSource(
            some, SegmenterConfig(**TINY.to_dict() | {"rare": rare, "batch": 32}), np.zeros(3)
        )
        labels = np.concatenate([source.batch(step)[1] for step in range(4)])
        shares[rare] = (labels == 1).any((1, 2)).mean()
        again = source.batch(2)
        assert all(np.array_equal(a, b) for a, b in zip(again, source.batch(2), strict=True))
    assert shares[0.0] < 0.15 < 0.4 < shares[1.0]


def test_a_scene_of_weight_zero_is_never_drawn():
    some = scenes(2, height=64, width=64)
    marked = SceneSet(
        (some.scenes[0], Scene("b", np.full((1, 64, 64, 3), 255, np.uint8), some.scenes[1].mask, weight=0.0)),
        "byte",
        some.bands,
        BUILDING,
    )
    source = CropSource(marked, TINY, np.zeros(3))
    assert not any((source.batch(step)[0] == 255).all((1, 2, 3)).any() for step in range(10))


def test_mirrored_indices_are_those_of_a_symmetric_pad():
    wide = np.pad(np.arange(5), 12, mode="symmetric")
    assert mirrored(-7, 17, 5).tolist() == wide[5:22].tolist()


def test_a_varied_crop_keeps_pixels_and_labels_together():
    mask = blocks(3, 200, 200, 2)
    side = margin_side(TINY)
    pixels = np.repeat(mask[None, :side, :side, None].astype(np.float32), 4, 0)
    labels = np.repeat(mask[None, :side, :side], 4, 0)
    plain = SegmenterConfig(**TINY.to_dict() | {"colour": 0.0})
    shown, truth = (np.array(x) for x in varied(pixels, labels, np.array([0, 1], np.int32), plain, 1))
    assert shown.shape == (4, 32, 32, 1) and (truth != 255).all()
    assert ((shown[..., 0] > 0.5) == (truth == 1)).mean() > 0.97
    assert len({crop.tobytes() for crop in truth}) == 4


# --- training ---------------------------------------------------------------------------------------


def test_it_learns_classes_by_their_colours(tmp_path):
    quiet(scenes(4, k=3), tmp_path / "m", LEARNS)
    model, confusion = load_segmenter(tmp_path / "m"), np.zeros((3, 3), np.int64)
    for scene in scenes(2, 9, k=3).scenes:
        confusion += confusion_of(scene.mask, model.choose(model.map_probabilities(scene.pixels)), 3)
    assert mean_iou(confusion) > 0.8
    assert model.description.classes == GROUND.names


def test_two_dates_show_what_one_date_cannot(tmp_path):
    """The class is "the two dates differ": neither date alone tells it."""

    def changed(count, seed):
        some = []
        for n in range(count):
            first, second = (blocks(seed + 10 * n + date, 64, 64, 2) for date in range(2))
            views = np.stack([pixels_of(first, n), pixels_of(second, n + 1)])
            some.append(Scene(str(n), views, (first != second).astype(np.uint8)))
        return SceneSet(tuple(some), "byte", ("B04", "B03", "B02"), Classes.binary("change"))

    quiet(changed(4, 1), tmp_path / "m", SegmenterConfig(**LEARNS.to_dict() | {"steps": 90, "colour": 0.3}))
    model, confusion = load_segmenter(tmp_path / "m"), np.zeros((2, 2), np.int64)
    assert (model.description.dates, len(model.description.fill)) == (2, 6)
    for scene in changed(2, 77).scenes:
        confusion += confusion_of(scene.mask, model.choose(model.map_probabilities(scene.pixels)), 2)
    assert class_figures(confusion)[0][1] > 0.6


def test_report_history_and_manifest_agree_with_the_model(trained):
    out, report = trained
    model, k = load_segmenter(out), 2
    confusion = np.zeros((k, k), np.int64)
    at_half = model.calibrated(1.0, 0.5)
    for scene in scenes(2, 5).scenes:
        confusion += confusion_of(scene.mask, at_half.choose(at_half.map_probabilities(scene.pixels)), k)
    assert report.miou == pytest.approx(class_figures(confusion)[0][1])
    assert report.mcc == pytest.approx(class_figures(confusion)[4][1])
    rows = list(csv.DictReader(report.history.read_text().splitlines()))
    assert [row["step"] for row in rows] == ["2", "4"] and all(row["miou"] and row["mcc"] for row in rows)
    page = json.loads((out / "manifest.json").read_text())
    extra = page["extra"]
    assert (page["kind"], extra["classes"], extra["bands"]) == (
        "segmenter",
        ["background", "building"],
        ["B04", "B03", "B02"],
    )
    assert extra["temperature"] == report.temperature and extra["threshold"] == report.threshold
    assert extra["licence"] == "not stated" and extra["dates"] == 1


def test_plain_keras_opens_the_network_in_safe_mode(trained):
    network = keras.saving.load_model(trained[0] / MODEL, safe_mode=True, custom_objects={})
    assert network(np.zeros((1, 16, 24, 3), np.float32)).shape == (1, 16, 24, 2)


def test_another_seed_gives_other_weights(tmp_path, trained):
    quiet(scenes(3), tmp_path / "c", SegmenterConfig(**TINY.to_dict() | {"seed": 1}))
    assert not same(trained[0], tmp_path / "c")


def test_validation_labels_change_no_weight(tmp_path, trained):
    other = scenes(2, 5)
    flipped = SceneSet(
        tuple(Scene(s.name, s.pixels, 1 - s.mask) for s in other.scenes), "byte", other.bands, BUILDING
    )
    report = quiet(scenes(3), tmp_path / "b", validation=flipped)
    assert same(trained[0], tmp_path / "b") and report.miou != trained[1].miou


def test_an_interrupted_run_resumes_to_the_same_weights(tmp_path, trained):
    def interrupt(progress):
        if progress.step == 3 and not progress.note:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="stopped after step 3 of 4"):
        train_segmenter(scenes(3), tmp_path / "b", TINY, validation=scenes(2, 5), progress=interrupt)
    assert not (tmp_path / "b").exists()
    with pytest.raises(TrainingError, match="another training"):
        quiet(scenes(2), tmp_path / "b")
    quiet(scenes(3), tmp_path / "b")
    assert same(trained[0], tmp_path / "b")


def test_class_weights_change_the_weights(tmp_path, trained):
    quiet(scenes(3), tmp_path / "b", class_weight=[1.0, 50.0])
    assert not same(trained[0], tmp_path / "b")


def test_unlabelled_scenes_count_and_their_masks_and_validation_do_not(tmp_path, trained):
    """Unlabelled scenes change weights; their masks do not, and validation scenes among them are left out."""
    other, more = scenes(2, 5), scenes(2, 8)
    flipped = tuple(Scene(s.name, s.pixels, 1 - s.mask) for s in more.scenes)
    both = SceneSet((*flipped, *other.scenes), "byte", more.bands, BUILDING)
    quiet(scenes(3), tmp_path / "a", validation=other, unlabelled=more)
    quiet(scenes(3), tmp_path / "b", validation=other, unlabelled=both)
    assert same(tmp_path / "a", tmp_path / "b") and not same(tmp_path / "a", trained[0])


def test_nodata_pixels_never_change_a_weight(tmp_path):
    """What nodata pixels hold, and what their mask says, does not matter."""
    results = []
    for number, junk in enumerate((0, 200)):
        some = []
        for scene in scenes(2).scenes:
            known = np.ones(scene.mask.shape, bool)
            known[10:30, 20:50] = False
            pixels, mask = scene.pixels.copy(), scene.mask.copy()
            pixels[:, ~known], mask[~known] = junk, junk % 2
            some.append(Scene(scene.name, pixels, mask, known))
        quiet(SceneSet(tuple(some), "byte", ("B04", "B03", "B02"), BUILDING), tmp_path / str(number))
        results.append(tmp_path / str(number))
    assert same(*results)


def test_the_shipped_recipe_holds_known_settings():
    for recipe, stride in (("aerial", 4), ("land-cover", 2)):
        assert SegmenterConfig.from_mapping(read_recipe(recipe)).stride == stride


def test_the_threshold_is_the_one_with_the_largest_iou():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    probability = np.clip(0.25 + 0.3 * labels + rng.normal(0, 0.1, 400), 0, 1)
    found = best_iou_threshold(probability, labels)

    def iou(threshold):
        answers = probability >= threshold
        return (answers & (labels == 1)).sum() / (answers | (labels == 1)).sum()

    assert iou(found) == max(iou(t) for t in np.linspace(0.05, 0.95, 91)) > iou(0.5)


# --- refusals ---------------------------------------------------------------------------------------


def test_sets_that_do_not_fit_are_refused(tmp_path, trained):
    other = SceneSet(scenes(1, 5).scenes, "byte", ("B08", "B03", "B02"), BUILDING, "other")
    with pytest.raises(BandsError, match=r"other: bands B08 B03 B02; scenes has B04 B03 B02"):
        quiet(scenes(2), tmp_path / "m", validation=other)
    with pytest.raises(ArrayError, match="2 dates; scenes has 1"):
        quiet(scenes(2), tmp_path / "m", validation=scenes(1, 5, dates=2))
    with pytest.raises(ExamplesError, match="Give both the same classes"):
        quiet(scenes(2), tmp_path / "m", validation=scenes(1, 5, classes=Classes.binary("road")))
    with pytest.raises(ExamplesError, match="image scenes0 is image scenes0"):
        quiet(scenes(2), tmp_path / "m", validation=scenes(1))
    with pytest.raises(ExamplesError, match="labels of background alone"):
        empty = [Scene(s.name, s.pixels, 0 * s.mask) for s in scenes(2).scenes]
        quiet(SceneSet(tuple(empty), "byte", ("B04", "B03", "B02"), BUILDING), tmp_path / "m")
    with pytest.raises(ExamplesError, match="class value 2"):
        SceneSet(scenes(1, k=3).scenes, "byte", ("B04", "B03", "B02"), BUILDING)
    with pytest.raises(OutputExistsError):
        quiet(scenes(3), trained[0])
    assert not (tmp_path / "m").exists()


def test_a_changed_model_folder_is_refused(tmp_path, trained):
    import shutil

    copy = tmp_path / "m"
    shutil.copytree(trained[0], copy)
    (copy / MODEL).write_bytes((copy / MODEL).read_bytes()[:-1])
    with pytest.raises(ManifestError):
        load_segmenter(copy)
    with pytest.raises(MissingInputError, match="segment train"):
        load_segmenter(tmp_path / "none")
    shutil.rmtree(copy)
    shutil.copytree(trained[0], copy)
    page = json.loads((copy / "manifest.json").read_text())
    page["extra"] |= {"bands": ["B04"], "fill": [0.0]}
    (copy / "manifest.json").write_text(json.dumps(page))
    with pytest.raises((ModelError, ManifestError)):
        load_segmenter(copy)


# --- files ------------------------------------------------------------------------------------------


def test_pairs_of_any_size_with_and_without_alpha_become_scenes(tmp_path):
    for number, size in enumerate((64, 48, 96)):
        write_pair(tmp_path, f"t{number}", number, size, alpha=number == 1)
    (tmp_path / "images" / "alone.png").write_bytes((tmp_path / "images" / "t0.png").read_bytes())
    found = read_scenes(tmp_path / "images", tmp_path / "masks", classes=BUILDING)
    assert [s.mask.shape for s in found.scenes] == [(64, 64), (48, 48), (96, 96)]
    assert found.bands == ("B04", "B03", "B02") and found.form == "byte"
    assert found.notes == ("images without mask, left out: alone",)
    assert np.array_equal(found.scenes[2].mask, blocks(2, 96, 96, 2))


def test_zoom_keeps_the_tiles_of_one_zoom(tmp_path):
    for name in ("19/5/6", "20/10/12", "20/11/12"):
        write_pair(tmp_path, name)
    found = read_scenes(tmp_path / "images", tmp_path / "masks", classes=BUILDING, zoom=20)
    assert [s.name for s in found.scenes] == ["20/10/12", "20/11/12"]


def test_measurements_with_nodata_and_band_names(tmp_path):
    mask = blocks(1, 64, 64, 2)
    pixels = pixels_of(mask, 1, bands=4, dtype=np.uint16)
    pixels[:8] = 0
    write_scene(tmp_path / "images" / "a.tif", pixels, descriptions=("B04", "B03", "B02", "B08"))
    (tmp_path / "masks").mkdir()
    write_scene(tmp_path / "masks" / "a.tif", mask[..., None], nodata=255)
    found = read_scenes(tmp_path / "images", tmp_path / "masks")
    scene = found.scenes[0]
    assert (found.form, found.bands, found.dates) == ("dn", ("B04", "B03", "B02", "B08"), 1)
    assert (scene.labels[:8] == 255).all() and np.array_equal(scene.labels[8:], mask[8:])
    assert found.classes.names == ("background", "class 1")


@pytest.mark.parametrize(("dtype", "low", "step"), [(np.int16, -300, 900), (np.float32, -25, 12)])
def test_other_numbers_are_values(tmp_path, dtype, low, step):
    """Heights in metres and radar backscatter in decibels fit no units of light."""
    mask = blocks(1, 64, 64, 2)
    values = (mask[..., None] * float(step) + low + np.arange(64)[:, None, None] % 7).astype(dtype)
    write_scene(tmp_path / "images" / "a.tif", values, nodata=-9999, descriptions=("height",))
    write_scene(tmp_path / "masks" / "a.tif", mask[..., None])
    found = read_scenes(tmp_path / "images", tmp_path / "masks", classes=BUILDING)
    assert (found.form, found.bands) == ("value", ("height",))
    assert np.array_equal(found.scenes[0].pixels[0], values)


def test_masks_of_colours_need_their_classes(tmp_path):
    colours = GROUND.to_colours(blocks(1, 64, 64, 3))
    from PIL import Image

    write_pair(tmp_path, "a", classes=GROUND, k=3)
    Image.fromarray(colours).save(tmp_path / "masks" / "a.png")
    found = read_scenes(tmp_path / "images", tmp_path / "masks", classes=GROUND)
    assert np.array_equal(found.scenes[0].mask, blocks(1, 64, 64, 3))
    with pytest.raises(LabelsError, match="--classes"):
        read_scenes(tmp_path / "images", tmp_path / "masks")
    write_pair(tmp_path, "b", classes=GROUND, k=3)
    with pytest.raises(LabelsError, match=r"a\.png holds colours and .*b\.png class indices"):
        read_scenes(tmp_path / "images", tmp_path / "masks", classes=GROUND)


def test_bad_pairs_give_one_clear_error(tmp_path):
    image, mask = write_pair(tmp_path, "a")
    write_pair(tmp_path, "b", 1)
    folders = tmp_path / "images", tmp_path / "masks"
    write_png(mask, np.zeros((32, 32), np.uint8), BUILDING)
    with pytest.raises(LabelsError, match=r"a\.png: the image has 64x64 pixels and the mask 32x32"):
        read_scenes(*folders, classes=BUILDING)
    write_png(mask, np.full((64, 64), 7, np.uint8), BUILDING)
    with pytest.raises(LabelsError, match="class value 7"):
        read_scenes(*folders, classes=BUILDING)
    write_png(mask, np.zeros((64, 64), np.uint8), BUILDING)
    grey = pixels_of(blocks(1, 64, 64, 2), 1, bands=1)[..., 0]
    from PIL import Image

    Image.fromarray(grey).save(image)
    with pytest.raises(BandsError, match="alpha not counted"):
        read_scenes(*folders, classes=BUILDING)
    image.write_bytes(image.read_bytes()[:50])
    with pytest.raises((LabelsError, ArrayError), match=r"a\.png"):
        read_scenes(*folders, classes=BUILDING)


def test_the_command_trains_with_validation_and_weights(tmp_path):
    for number in range(3):
        write_pair(tmp_path, f"20/1/{number}", number)
        write_pair(tmp_path / "val", f"20/7/{number}", 50 + number)
    (tmp_path / "weights.csv").write_text("name,weight\n20/1/0,3\n")
    (tmp_path / "recipe.json").write_text(json.dumps(TINY.to_dict()))
    call = [
        "segment",
        "train",
        tmp_path / "images",
        tmp_path / "masks",
        "--out",
        tmp_path / "m",
        "--zoom",
        20,
    ]
    call += [
        "--validation",
        tmp_path / "val/images",
        tmp_path / "val/masks",
        "--recipe",
        tmp_path / "recipe.json",
    ]
    more = [
        "--tile-weights",
        tmp_path / "weights.csv",
        "--class-weights",
        "class 1=2",
        "--unlabelled",
        tmp_path / "val/images",
        "--json",
        "--steps",
        2,
    ]
    result = run(*call, *more)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["steps"], report["scenes"], report["validation"]) == (2, 3, 3)
    assert 0 <= report["miou"] <= 1 and -1 <= report["mcc"] <= 1
    again = run(*call)
    assert again.exit_code == 1 and "--overwrite" in again.stderr
    assert run(*call, "--class-weights", "roof=2", "--overwrite").exit_code == 2


def test_the_python_call_takes_folders(tmp_path):
    write_pair(tmp_path, "a")
    with pytest.raises(LabelsError, match="weight -1"):
        (tmp_path / "w.csv").write_text("name,weight\na,-1\n")
        train(tmp_path / "images", tmp_path / "masks", tmp_path / "m", tile_weights=tmp_path / "w.csv")
    report = train(
        tmp_path / "images",
        tmp_path / "masks",
        tmp_path / "m",
        TINY,
        classes=BUILDING,
        progress=lambda _: None,
    )
    assert report.classes == BUILDING.names and load_segmenter(tmp_path / "m").description.unit_px == 4
