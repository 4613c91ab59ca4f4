"""Predictions on each executor: the same bytes, also where a worker is killed with its task."""

from dataclasses import replace

import keras
import numpy as np
import pytest

pytest.importorskip("distributed")
pytest.importorskip("mercantile", reason="needs the extra `labels`")

from labelled import CLASSES
from lost_workers import Losing
from PIL import Image
from segmentable import GROUND, blocks, pixels_of, write_scene

from retrieval.distributed.executors import open_executor
from retrieval.tasks.change import detect
from retrieval.tasks.change.learned import input_names
from retrieval.tasks.change.mapping import Options, rows_task
from retrieval.tasks.classifier import Classifier, logits_task, save_classifier
from retrieval.tasks.classifier import Description as ImageDescription
from retrieval.tasks.images import image_set
from retrieval.tasks.scene_map import classify_scene, strip_task
from retrieval.tasks.segment import predict
from retrieval.tasks.segment.drawing import map_task, window_task
from retrieval.tasks.segment.model import Description, Segmenter, save_segmenter

HERE = ("serial", "threads:2")
BANDS = ("B04", "B03", "B02")


@pytest.fixture(scope="module")
def dask():
    with open_executor("dask:2") as executor:
        yield executor


@pytest.fixture(scope="module")
def segmenter():
    """A network of random weights: two convolutions give the logits of three classes."""
    keras.utils.set_random_seed(3)
    pixels = keras.Input((None, None, 3))
    y = keras.layers.Conv2D(6, 5, padding="same", activation="relu")(pixels)
    network = keras.Model(pixels, keras.layers.Conv2D(3, 3, padding="same")(y))
    described = Description(GROUND.names, GROUND.colours, BANDS, 1, "byte", 4, (90.0,) * 3)
    return Segmenter(network, described, "random")


@pytest.fixture(scope="module")
def classifier():
    """A network of random weights for images of 16 x 16 pixels."""
    keras.utils.set_random_seed(4)
    pixels = keras.Input((16, 16, 3))
    y = keras.layers.Conv2D(8, 3, activation="relu")(pixels)
    logits = keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(y))
    return Classifier(keras.Model(pixels, logits), ImageDescription(CLASSES, BANDS, (16, 16), "byte"), "r")


def content(folder):
    """The bytes of all files of a folder by their paths, without manifests, which hold a date."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "manifest.json"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def on_each(dask, folder, job, step, here=HERE):
    """Run a job without an executor and on each; the cluster loses a worker in one step."""
    (folder / "none").mkdir()
    expected = job(folder / "none", None)
    for name in here:
        (folder / name).mkdir()
        with open_executor(name) as executor:
            assert job(folder / name, executor) == expected, name
    (folder / "dask").mkdir()
    losing = Losing(dask, folder)
    assert job(folder / "dask", losing) == expected
    assert losing.killed == {step.__name__}
    return expected


def test_the_windows_of_a_scene_are_tasks(tmp_path, dask, segmenter):
    pixels = pixels_of(blocks(8, 150, 210, 3), 8)
    pixels[:70, :90] = 0
    scene = write_scene(tmp_path / "scene.tif", pixels, nodata=0)

    def job(folder, executor):
        out, table = folder / "map.tif", folder / "p.tif"
        report = predict(
            scene, segmenter, out, probabilities=table, window_px=64, orientations=2, executor=executor
        )
        return report.shares, report.nodata_share, content(folder)

    shares, nodata, files = on_each(dask, tmp_path, job, window_task)
    assert set(files) == {"map.tif", "map.tif.aux.xml", "p.tif"}
    assert nodata == 70 * 90 / (150 * 210) and sum(shares.values()) == pytest.approx(1)


def test_the_images_of_a_folder_are_tasks(tmp_path, dask, segmenter):
    for number in range(3):
        tile = tmp_path / "in" / "20" / "5" / f"{number}.png"
        tile.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels_of(blocks(number, 64, 64, 3), number)).save(tile)
    write_scene(tmp_path / "in" / "scene.tif", pixels_of(blocks(8, 80, 100, 3), 8))

    def job(folder, executor):
        out, tables = folder / "maps", folder / "tables"
        predict(tmp_path / "in", segmenter, out, probabilities=tables, window_px=64, executor=executor)
        return content(folder)

    names = {path.rpartition("/")[0] for path in on_each(dask, tmp_path, job, map_task)}
    assert names == {"maps", "maps/20/5", "tables", "tables/20/5"}


def test_batches_of_images_are_tasks(tmp_path, dask, classifier, rng):
    images = image_set(
        rng.integers(0, 255, (600, 16, 16, 3), np.uint8), "byte", BANDS, [str(n) for n in range(600)], "made"
    )

    def job(_, executor):
        return classifier.probabilities(images, executor=executor).tobytes()

    on_each(dask, tmp_path, job, logits_task)


def test_rows_of_windows_are_tasks(tmp_path, dask, classifier):
    pixels = pixels_of(blocks(8, 100, 90, 3), 8)
    pixels[30:60, :40] = 0
    scene = write_scene(tmp_path / "scene.tif", pixels, nodata=0)

    def job(folder, executor):
        report = classify_scene(scene, classifier, folder / "map.tif", stride=6, executor=executor)
        return report.shares, content(folder)

    on_each(dask, tmp_path, job, strip_task)


def test_strips_of_a_pair_are_tasks(tmp_path, dask, rng):
    before = np.kron(rng.uniform(400, 3000, (34, 15, 4)), np.ones((9, 9, 1))) + rng.normal(
        0, 30, (306, 135, 4)
    )
    after = 1.2 * before + rng.normal(0, 30, before.shape)
    after[40:70, 30:60] = after[200:230, 80:110]
    after[200:220, :20] = 0
    for name, pixels in (("before", before), ("after", after)):
        write_scene(tmp_path / f"{name}.tif", np.clip(pixels, 0, 9000).astype(np.uint16), nodata=0)
    network = keras.Sequential([keras.Input((None, None, 12)), keras.layers.Conv2D(2, 3, padding="same")])
    names, colours = ("background", "change"), ((0, 0, 0), (255, 0, 0))
    described = Description(
        names, colours, input_names(("B04", "B03", "B02", "B08")), 1, "value", 4, (0.0,) * 12
    )
    save_segmenter(Segmenter(network, replace(described, threshold=0.5), "m"), tmp_path / "model", {}, {})
    for model in (None, tmp_path / "model"):
        work = tmp_path / f"by-{model and model.name}"
        work.mkdir()

        def job(folder, executor, model=model):
            found = detect(
                tmp_path / "before.tif",
                tmp_path / "after.tif",
                folder / "change.tif",
                probabilities=folder / "p.tif",
                model=model,
                options=Options(coregister=False),
                executor=executor,
            )
            return replace(found, path=None, probabilities=None), content(folder)

        report, _ = on_each(dask, work, job, rows_task, ("threads:2",))
        assert 0 < report.hidden_share < 0.2


def test_a_stopped_prediction_continues_on_another_executor(tmp_path, dask, segmenter):
    for number in range(4):
        write_scene(tmp_path / "in" / f"{number}.tif", pixels_of(blocks(number, 64, 70, 3), number))

    class Stopping:
        in_process = False

        def map(self, function, tasks):
            for number, result in enumerate(dask.map(function, tasks)):
                if number == 2:
                    raise KeyboardInterrupt
                yield result

    predict(tmp_path / "in", segmenter, tmp_path / "whole", window_px=64)
    with pytest.raises(KeyboardInterrupt):
        predict(tmp_path / "in", segmenter, tmp_path / "maps", window_px=64, executor=Stopping())
    assert not (tmp_path / "maps").exists()
    drawn = []
    with open_executor("threads:2") as threads:

        class Counting:
            in_process = True

            def map(self, function, tasks):
                return threads.map(lambda task: drawn.append(1) or function(task), tasks)

        predict(tmp_path / "in", segmenter, tmp_path / "maps", window_px=64, executor=Counting())
    assert len(drawn) == 2
    for path in (tmp_path / "whole").glob("*.tif"):
        assert (tmp_path / "maps" / path.name).read_bytes() == path.read_bytes()


def test_models_travel_whole_and_without_code(classifier, segmenter, tmp_path):
    import pickle

    for model in (classifier, segmenter):
        first, again = pickle.loads(pickle.dumps(model)), pickle.loads(pickle.dumps(model))
        assert first is again and first.description == model.description
        for ours, theirs in zip(model.network.get_weights(), first.network.get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    save_classifier(classifier, tmp_path / "kept", {}, {})
    assert (tmp_path / "kept" / "manifest.json").is_file()
