"""Class maps: blended windows equal one pass, files of any kind and size, votes, resuming, figures."""

from __future__ import annotations

import json
import shutil
import threading

import keras
import numpy as np
import pytest
import rasterio

pytest.importorskip("mercantile", reason="needs the extra `labels`")

from labelground import run
from PIL import Image
from segmentable import BUILDING, GROUND, TINY, blocks, pixels_of, scenes, write_pair, write_scene

from retrieval.config import SegmenterConfig
from retrieval.errors import ConfigError, LabelsError, ModelError
from retrieval.evaluation.segmentation import confusion_of, measure_maps
from retrieval.labels.classes import Classes
from retrieval.labels.masks import classes_of, read_mask, write_png
from retrieval.tasks.segment import evaluate, predict, train_segmenter
from retrieval.tasks.segment.model import Description, Segmenter, load_segmenter
from retrieval.tasks.segment.network import unet, unit_px, view_px, with_standardization
from retrieval.tasks.segment.windows import WINDOW_PX, Layout
from tfrecords.errors import ArrayError, BandsError, MissingInputError, OutputExistsError, UnitsError

WINDOW = 64


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    out = tmp_path_factory.mktemp("model") / "m"
    train_segmenter(scenes(2, k=3), out, TINY, progress=lambda _: None)
    return out


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    out = tmp_path_factory.mktemp("other") / "n"
    config = SegmenterConfig(**TINY.to_dict() | {"seed": 3, "steps": 2})
    train_segmenter(scenes(2, 4, k=3), out, config, progress=lambda _: None)
    return out


@pytest.fixture
def scene(tmp_path):
    """A scene of 150 x 210 pixels, whose upper left corner is nodata."""
    pixels = pixels_of(blocks(8, 150, 210, 3), 8)
    pixels[:40, :30] = 0
    return write_scene(tmp_path / "scene.tif", pixels, nodata=0)


# --- windows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", [0, 3, 8, 30])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 200), (150, 211), (40, 30), (333, 64)])
def test_windows_cover_a_scene_and_drop_what_lacks_context(height, width, view):
    """Weights of a pixel sum to 1, and no answer counts whose view leaves its window but not the scene."""
    layout = Layout.of(height, width, WINDOW, 4, view)
    assert all(start % 4 == 0 for start in (*layout.tops, *layout.lefts))
    numbers = np.arange(height * width, dtype=np.float32).reshape(height, width, 1)
    ones = np.ones_like(numbers)

    def answer(top, left):
        rows, columns = slice(top, top + layout.side), slice(left, left + layout.side)
        values = np.concatenate([ones, numbers], -1)[rows, columns].copy()
        if 2 * view <= WINDOW // 2:
            for axis, start, length in ((0, top, height), (1, left, width)):
                inner = np.moveaxis(values, axis, 0)
                if start:
                    inner[:view] = np.nan
                if start + layout.side < length:
                    inner[len(inner) - view :] = np.nan
        return values

    strips = list(layout.blended([answer(top, left) for left in layout.lefts] for top in layout.tops))
    assert [top for top, _ in strips] == list(np.cumsum([0] + [len(s) for _, s in strips])[:-1])
    for (top, strip), first in zip(strips, layout.tops, strict=True):
        assert first <= top and top + len(strip) <= first + layout.side
    whole = np.concatenate([strip for _, strip in strips])
    np.testing.assert_allclose(whole[..., 0], 1, atol=1e-6)
    np.testing.assert_allclose(whole[..., 1], numbers[..., 0], rtol=1e-5, atol=1e-3)


def standardized_network(config, pixels):
    """A network of random weights whose layers are standardized by the pixels, as after a training."""
    keras.utils.set_random_seed(0)
    network = unet(config, 3, 3)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    network(((pixels[None] / 255 - 0.4) / 0.2).astype(np.float32), training=True)
    whole = with_standardization(network, np.full(3, 0.4, np.float32), np.full(3, 0.04, np.float32))
    description = Description(
        GROUND.names, GROUND.colours, ("B04", "B03", "B02"), 1, "byte", unit_px(config), (102.0,) * 3
    )
    return Segmenter(whole, description, "random")


def test_blended_windows_equal_one_whole_pass(model):
    segmenter = load_segmenter(model)
    pixels = pixels_of(blocks(8, 540, 600, 3), 8)
    whole = segmenter.map_probabilities(pixels, window_px=600)
    blended = segmenter.map_probabilities(pixels, window_px=256)
    assert len(Layout.of(540, 600, 256, 4, segmenter.view_px).tops) == 3
    assert np.abs(whole - blended).max() < 1e-5


@pytest.mark.parametrize(("upright", "orientations"), [(True, 1), (False, 4)])
def test_windows_of_the_default_network_agree_with_one_whole_pass(upright, orientations):
    """Default width, stages, stride and window: probabilities agree to 1e-4, also after flips."""
    config, long = SegmenterConfig(), 2 * WINDOW_PX - 81
    mask = blocks(8, long, 64, 3) if upright else blocks(8, 64, long, 3)
    pixels = pixels_of(mask, 8)
    segmenter = standardized_network(config, pixels[:256, :256])
    assert len(Layout.of(long, 64, WINDOW_PX, unit_px(config), segmenter.view_px).tops) == 3
    once = segmenter.map_probabilities(pixels, window_px=2 * WINDOW_PX, orientations=orientations)
    windows = segmenter.map_probabilities(pixels, orientations=orientations)
    assert np.abs(once - windows).max() < 1e-4
    assert (once.argmax(-1) != windows.argmax(-1)).mean() < 1e-4


@pytest.mark.parametrize(
    ("stages", "stride", "view"), [(1, 1, None), (2, 1, None), (3, 2, None), (2, 4, None), (4, 2, 340)]
)
def test_a_network_sees_as_far_as_it_says(stages, stride, view):
    """Where pixels are no numbers, no answer is one that depends on them; their reach is right to a unit."""
    config = SegmenterConfig(width=4 if view is None else 24, stages=stages, stride=stride)
    network, unit = unet(config, 1, 2), unit_px(config)
    told = view_px(network)
    assert view in (None, told)
    reach = -(-told // unit) * unit
    pixels = np.random.default_rng(0).normal(size=(1, unit, 2 * reach + 3 * unit, 1)).astype(np.float32)
    pixels[:, :, reach + unit : reach + 2 * unit] = np.nan
    seen = np.flatnonzero(np.isnan(np.asarray(network(pixels))[0]).any((0, 2)))
    before, after = reach + unit - seen[0], seen[-1] - (reach + 2 * unit - 1)
    assert reach - unit < max(before, after) <= reach


def test_orientations_turn_back_to_the_image(model):
    segmenter = load_segmenter(model)
    square = pixels_of(blocks(8, 64, 64, 3), 8)[None]
    turned = segmenter.probabilities(np.ascontiguousarray(square.swapaxes(1, 2)), orientations=8)
    np.testing.assert_allclose(
        segmenter.probabilities(square, orientations=8), turned.swapaxes(1, 2), atol=1e-5
    )


# --- maps -------------------------------------------------------------------------------------------


def test_the_map_of_a_scene_is_a_cog_with_colours_names_and_nodata(tmp_path, model, scene):
    report = predict(scene, model, tmp_path / "map.tif", probabilities=tmp_path / "p.tif", window_px=WINDOW)
    with rasterio.open(tmp_path / "map.tif") as found, rasterio.open(scene) as source:
        values = found.read(1)
        assert (found.crs, found.transform, found.shape) == (source.crs, source.transform, source.shape)
        assert found.nodata == 255 and found.colormap(1)[1][:3] == GROUND.colours[1]
        assert found.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    assert classes_of(tmp_path / "map.tif").names == GROUND.names
    assert (values[:40, :30] == 255).all() and (values == 255).sum() == 40 * 30
    with rasterio.open(tmp_path / "p.tif") as table:
        likely = table.read()
        assert table.descriptions == GROUND.names and table.dtypes[0] == "float32"
    assert np.isnan(likely[:, :40, :30]).all()
    known = values != 255
    np.testing.assert_allclose(likely.sum(0)[known], 1, atol=1e-5)
    assert (likely.argmax(0)[known] == values[known]).all()
    assert report.nodata_share == pytest.approx(1200 / values.size) and sum(
        report.shares.values()
    ) == pytest.approx(1)


def test_several_models_give_the_mean_of_their_probabilities(tmp_path, model, other, scene):
    tables = []
    for name, models in (("a", model), ("b", [other]), ("both", [model, other])):
        predict(scene, models, tmp_path / f"{name}.tif", probabilities=tmp_path / f"{name}-p.tif")
        with rasterio.open(tmp_path / f"{name}-p.tif") as table:
            tables.append(table.read())
    np.testing.assert_allclose(tables[2], (tables[0] + tables[1]) / 2, atol=1e-5)
    with pytest.raises(ModelError, match="Expected models of the same classes"):
        train_segmenter(scenes(2), tmp_path / "two", TINY, progress=lambda _: None)
        predict(scene, [model, tmp_path / "two"], tmp_path / "x.tif")


def test_a_virtual_raster_and_bands_in_another_order(tmp_path, model, scene):
    """A VRT of a scene gives the scene's map, and so does a scene whose bands lie in another order."""
    predict(scene, model, tmp_path / "a.tif")
    with rasterio.open(scene) as dataset:
        pixels = np.moveaxis(dataset.read(), 0, -1)
    write_scene(tmp_path / "turned.tif", pixels[..., ::-1], nodata=0, descriptions=("B02", "B03", "B04"))
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{n}"><NoDataValue>0</NoDataValue><SimpleSource>'
        f'<SourceFilename relativeToVRT="1">scene.tif</SourceFilename><SourceBand>{n}</SourceBand>'
        "</SimpleSource></VRTRasterBand>"
        for n in (1, 2, 3)
    )
    (tmp_path / "v.vrt").write_text(f'<VRTDataset rasterXSize="210" rasterYSize="150">{bands}</VRTDataset>')
    expected = read_mask(tmp_path / "a.tif")
    for source in ("turned.tif", "v.vrt"):
        predict(tmp_path / source, model, tmp_path / "b.tif", overwrite=True)
        assert np.array_equal(read_mask(tmp_path / "b.tif"), expected)


def test_a_folder_of_tiles_becomes_a_folder_of_palette_pngs(tmp_path, model):
    for number in range(3):
        write_pair(tmp_path, f"20/5/{number}", number, classes=GROUND, k=3, alpha=number == 1)
    write_pair(tmp_path, "19/2/1", 9, classes=GROUND, k=3)
    hidden = tmp_path / "images/20/5/1.png"
    faded = np.array(Image.open(hidden))
    faded[:10, :, 3] = 0
    Image.fromarray(faded).save(hidden)
    report = predict(tmp_path / "images", model, tmp_path / "maps", zoom=20)
    found = sorted(p.relative_to(tmp_path / "maps").as_posix() for p in (tmp_path / "maps").rglob("*.png"))
    assert found == ["20/5/0.png", "20/5/1.png", "20/5/2.png"] and report.images == 3
    values = read_mask(tmp_path / "maps/20/5/1.png")
    assert (values[:10] == 255).all() and (values[10:] < 3).all()
    assert classes_of(tmp_path / "maps/20/5/0.png").names == GROUND.names
    assert report.nodata_share == pytest.approx(640 / (3 * 64 * 64))


def test_names_of_maps_follow_their_images(tmp_path, model):
    for name in ("a/855_sat.png", "b.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels_of(blocks(1, 48, 40, 3), 1)).save(tmp_path / "in" / name)
    predict(tmp_path / "in", model, tmp_path / "maps", probabilities=tmp_path / "p")
    for folder in ("maps", "p"):
        found = sorted(
            p.relative_to(tmp_path / folder).as_posix() for p in (tmp_path / folder).rglob("*.tif")
        )
        assert found == ["a/855.tif", "b.tif"]
    assert classes_of(tmp_path / "maps/a/855.tif").names == GROUND.names


def test_a_stopped_run_over_a_folder_resumes(tmp_path, model):
    for number in range(4):
        write_pair(tmp_path, f"20/5/{number}", number, classes=GROUND, k=3)

    def stop(stage, done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(tmp_path / "images", model, tmp_path / "maps", probabilities=tmp_path / "p", progress=stop)
    assert not (tmp_path / "maps").exists() and not (tmp_path / "p").exists()
    seen, how = [], {"probabilities": tmp_path / "p"}
    report = predict(
        tmp_path / "images", model, tmp_path / "maps", progress=lambda *p: seen.append(p[1]), **how
    )
    assert len(list((tmp_path / "p").rglob("*.tif"))) == 4
    assert seen == [3, 4] and sum(report.shares.values()) == pytest.approx(1)
    predict(tmp_path / "images", model, tmp_path / "again")
    for number in range(4):
        name = f"20/5/{number}.png"
        assert (tmp_path / "maps" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_memory_follows_the_width_of_a_scene(tmp_path, model, monkeypatch):
    """Of a tall scene no more than a few strips are read ahead of the strips that are written."""
    from retrieval.tasks.segment import prediction, sources

    write_scene(tmp_path / "tall.tif", pixels_of(blocks(2, 1200, 64, 3), 2))
    lock, ahead, written, read = threading.Lock(), [], [0], [0]
    real_read, real_choose = sources.ImageFile.read, prediction.Vote.choose

    def counted_read(self, dataset, columns, rows):
        with lock:
            read[0] = max(read[0], rows[1])
            ahead.append(read[0] - written[0])
        return real_read(self, dataset, columns, rows)

    def counted_choose(self, probabilities, known):
        with lock:
            written[0] += len(known)
        return real_choose(self, probabilities, known)

    monkeypatch.setattr(sources.ImageFile, "read", counted_read)
    monkeypatch.setattr(prediction.Vote, "choose", counted_choose)
    predict(tmp_path / "tall.tif", model, tmp_path / "map.tif", window_px=WINDOW)
    assert written[0] == 1200 and max(ahead) <= 5 * WINDOW


# --- refusals ---------------------------------------------------------------------------------------


def test_unsuitable_images_and_outputs_are_refused_before_anything_is_written(tmp_path, model, scene):
    with pytest.raises(BandsError, match="model m also needs B03 B02"):
        predict(scene, model, tmp_path / "x.tif", bands=("B04", "B08", "B11"))
    with pytest.raises(UnitsError, match="dn pixels; model m takes byte"):
        numbers = pixels_of(blocks(1, 64, 64, 3), 1, dtype=np.uint16)
        predict(write_scene(tmp_path / "dn.tif", numbers), model, tmp_path / "x.tif")
    with pytest.raises(ConfigError, match=r"Expected \.tif"):
        predict(scene, model, tmp_path / "x.png")
    with pytest.raises(MissingInputError):
        predict(tmp_path / "none.tif", model, tmp_path / "x.tif")
    with pytest.raises((LabelsError, ArrayError), match=r"cut\.tif"):
        (tmp_path / "cut.tif").write_bytes(scene.read_bytes()[:400])
        predict(tmp_path / "cut.tif", model, tmp_path / "x.tif")
    assert not list(tmp_path.glob("x*")) and not list(tmp_path.glob(".*"))
    predict(scene, model, tmp_path / "y.tif")
    before = (tmp_path / "y.tif").read_bytes()
    with pytest.raises(OutputExistsError):
        predict(scene, model, tmp_path / "y.tif")
    assert (tmp_path / "y.tif").read_bytes() == before


def test_a_model_of_two_dates_maps_no_single_scene(tmp_path, scene):
    train_segmenter(scenes(2, dates=2), tmp_path / "m", TINY, progress=lambda _: None)
    with pytest.raises(ModelError, match="takes 2 dates"):
        predict(scene, tmp_path / "m", tmp_path / "x.tif")


# --- figures ----------------------------------------------------------------------------------------


def by_hand(labels, answers, index):
    """Return IoU, F1, precision, recall and MCC of a class from its four counts."""
    yes, said = labels == index, answers == index
    tp, fp = float((yes & said).sum()), float((~yes & said).sum())
    fn, tn = float((yes & ~said).sum()), float((~yes & ~said).sum())
    mcc = (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return {
        "iou": tp / (tp + fp + fn),
        "f1": 2 * tp / (2 * tp + fp + fn),
        "precision": tp / (tp + fp),
        "recall": tp / (tp + fn),
        "mcc": mcc,
    }


def test_figures_agree_with_counts_by_hand():
    rng = np.random.default_rng(0)
    labels, answers = rng.integers(0, 3, (2, 6, 500))
    answers = np.where(rng.random(labels.shape) < 0.5, labels, answers)
    labels[0, :40] = 255
    tables = [confusion_of(a, b, 3) for a, b in zip(labels, answers, strict=True)]
    page = measure_maps(np.array(tables), GROUND.names).to_dict()
    keep = labels != 255
    for index, name in enumerate(GROUND.names):
        for figure, value in by_hand(labels[keep], answers[keep], index).items():
            measured = page["classes"][name][figure]
            assert measured["value"] == pytest.approx(value, abs=1e-6) and measured["n"] == 6
            assert measured["low"] <= measured["value"] <= measured["high"]
        assert page["classes"][name]["support"] == (labels[keep] == index).sum()
    assert page["accuracy"]["value"] == pytest.approx((labels == answers)[keep].mean(), abs=1e-6)
    ious = [page["classes"][name]["iou"]["value"] for name in GROUND.names]
    assert page["miou"]["value"] == pytest.approx(np.mean(ious), abs=1e-6)
    assert np.array(page["confusion"]).sum() == keep.sum()


def test_one_scene_says_nothing_about_others():
    figure = measure_maps(np.array([[[5, 1], [1, 3]]]), BUILDING.names).by_class["building"]
    assert (figure.iou.low, figure.iou.high, figure.mcc.low, figure.mcc.high) == (0, 1, -1, 1)


def test_evaluate_pairs_by_name_and_reports_what_has_no_partner(tmp_path):
    for number in range(4):
        _, mask = write_pair(tmp_path, f"20/{number}/5", number)
        wrong = read_mask(mask).copy()
        wrong[:4] = 1 - wrong[:4]
        goal = tmp_path / "maps" / mask.relative_to(tmp_path / "masks")
        goal.parent.mkdir(parents=True, exist_ok=True)
        write_png(goal, wrong, BUILDING)
    shutil.copytree(tmp_path / "maps/20/3", tmp_path / "maps/20/9")
    result = evaluate(tmp_path / "maps", tmp_path / "masks", classes=BUILDING)
    assert result.pairs == 4 and result.notes == ("maps without mask, left out: 20/9/5",)
    assert result.figures.accuracy.value == pytest.approx(1 - 4 / 64)
    grouped = evaluate(tmp_path / "maps", tmp_path / "masks", classes=BUILDING, group_zoom=19)
    assert (result.figures.units, grouped.figures.units) == (4, 2)
    printed = run("segment", "evaluate", tmp_path / "maps", tmp_path / "masks", "--json", "--zoom", 20)
    assert json.loads(printed.stdout)["accuracy"]["value"] == pytest.approx(1 - 4 / 64)
    shown = run("segment", "evaluate", tmp_path / "maps", tmp_path / "masks")
    assert "4 maps" in shown.stdout and "left out" in shown.stderr
    with pytest.raises(MissingInputError, match="no mask has the name of a map"):
        evaluate(tmp_path / "maps/20/0", tmp_path / "masks/20", classes=BUILDING)


def test_maps_and_masks_of_other_sizes_or_classes_are_refused(tmp_path):
    write_pair(tmp_path, "a")
    (tmp_path / "maps").mkdir()
    write_png(tmp_path / "maps/a.png", np.zeros((32, 32), np.uint8), BUILDING)
    with pytest.raises(LabelsError, match="the map has 32x32 pixels and the mask 64x64"):
        evaluate(tmp_path / "maps", tmp_path / "masks", classes=BUILDING)
    write_png(tmp_path / "maps/a.png", np.full((64, 64), 5, np.uint8), BUILDING)
    with pytest.raises(LabelsError, match="class value 5"):
        evaluate(tmp_path / "maps", tmp_path / "masks", classes=BUILDING)


def test_maps_of_indices_meet_masks_of_colours(tmp_path):
    values = blocks(3, 64, 64, 3)
    for name in ("maps", "masks"):
        (tmp_path / name).mkdir()
    write_png(tmp_path / "maps/a.png", values, GROUND)
    Image.fromarray(GROUND.to_colours(values)).save(tmp_path / "masks/a_mask.png")
    (tmp_path / "c.csv").write_text(
        "name,colour\n"
        + "".join(
            f"{n},#{r:02x}{g:02x}{b:02x}\n" for n, (r, g, b) in zip(GROUND.names, GROUND.colours, strict=True)
        )
    )
    found = evaluate(tmp_path / "maps", tmp_path / "masks", classes=tmp_path / "c.csv")
    assert found.figures.accuracy.value == 1 and found.figures.classes == GROUND.names


def test_the_command_maps_and_its_map_becomes_polygons(tmp_path, model, scene):
    out = tmp_path / "map.tif"
    result = run("segment", "predict", scene, "--model", model, "--model", model, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    page = json.loads(result.stdout)
    assert page["images"] == 1 and set(page["shares"]) == set(GROUND.names)
    polygons = run("labels", "vectorize", out, "--out", tmp_path / "p.geojson")
    assert polygons.exit_code == 0, polygons.output
    again = run("segment", "predict", scene, "--model", model, "--out", out)
    assert again.exit_code == 1 and "--overwrite" in again.stderr
    assert Classes(GROUND.names).names == classes_of(out).names


def test_a_model_as_onnx_gives_the_same_logits(tmp_path, model):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")
    pytest.importorskip("tf2onnx", reason="needs the extra `onnx`")
    out = tmp_path / "m.onnx"
    done = run("export", "--as", "onnx", "--model", model, "--out", out, "--json")
    assert done.exit_code == 0, done.output
    segmenter = load_segmenter(model)
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    for count, height, width in ((1, 64, 64), (2, 40, 72)):
        mask = blocks(8, height, width, 3)
        pixels = np.stack([pixels_of(mask, seed) for seed in range(count)])
        (logits,) = session.run(["logits"], {"pixels": pixels.astype(np.float32) / 255})
        np.testing.assert_allclose(logits, segmenter.logits(pixels), atol=1e-4)
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["classes"]) == list(GROUND.names) and facts["full_scale"] == "255.0"
    assert facts["unit_px"] == "4" and done.stdout.count("unit_px") == 1
    assert run("export", "--as", "stac", "--model", model, "--out", tmp_path / "x").exit_code == 2
