"""Models and maps of the first format version stay readable, give the same answers, and are written alike."""

from __future__ import annotations

import importlib.util
import tarfile
from pathlib import Path

import numpy as np
import pytest
import rasterio

pytest.importorskip("mercantile", reason="needs the extra `labels`")

from retrieval.labels.masks import classes_of, read_mask
from retrieval.tasks.segment import predict
from retrieval.tasks.segment.model import load_segmenter, save_segmenter
from tfrecords.artifacts import read_manifest

GOLDEN = Path(__file__).parent / "golden"


def load(name):
    """A script in the folder of golden files, as a module."""
    spec = importlib.util.spec_from_file_location(name, GOLDEN / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = load("make_maps")
trees = load("make_forest")


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """The folder of the unpacked golden files, and of the images."""
    folder = tmp_path_factory.mktemp("golden")
    for name in ("segmenter-v1", "probabilities-v1"):
        with tarfile.open(GOLDEN / f"{name}.tar.xz") as archive:
            archive.extractall(folder, filter="data")
    make.write_images(folder / "images")
    return folder


@pytest.fixture(scope="module")
def again(golden):
    """Maps and probabilities that the golden model gives today."""
    predict(golden / "images", golden / "segmenter-v1", golden / "maps", probabilities=golden / "tables")
    return golden


def test_the_model_opens_with_its_weights_and_description(golden):
    got, sent = load_segmenter(golden / "segmenter-v1"), make.segmenter()
    assert got.description == sent.description
    for old, new in zip(got.network.get_weights(), sent.network.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_model_is_written_as_then(golden, tmp_path):
    old = read_manifest(golden / "segmenter-v1", "segmenter")
    save_segmenter(load_segmenter(golden / "segmenter-v1"), tmp_path / "m", old.config, make.COUNTS)
    new = read_manifest(tmp_path / "m", "segmenter")
    assert (new.fingerprint, new.counts, new.extra, set(new.files)) == (
        old.fingerprint,
        old.counts,
        old.extra,
        set(old.files),
    )


def test_probabilities_and_classes_are_those_of_then(again):
    for name in ("a.tif", "b.tif"):
        paths = again / "probabilities-v1" / name, again / "tables" / name
        with rasterio.open(paths[0]) as old, rasterio.open(paths[1]) as new:
            np.testing.assert_allclose(new.read(), old.read(), atol=1e-4)
            assert (new.descriptions, new.dtypes, new.crs, new.transform) == (
                old.descriptions,
                old.dtypes,
                old.crs,
                old.transform,
            )
            assert np.isnan(old.nodata) and np.isnan(new.nodata)
            likely = np.sort(old.read(), axis=0)
        sure = likely[-1] - likely[-2] > 1e-3
        old_map, new_map = (read_mask(again / folder / name) for folder in ("masks-v1", "maps"))
        assert sure.mean() > 0.6 and (old_map == new_map)[sure].all()
        assert ((old_map == 255) == np.isnan(likely[0])).all() and len(np.unique(old_map)) >= 2
        assert classes_of(again / "masks-v1" / name).names == make.GROUND.names


@pytest.mark.parametrize(("kind", "name"), [("masks", "maps"), ("probabilities", "tables")])
def test_folders_of_maps_state_what_they_did(again, kind, name):
    old, new = read_manifest(again / f"{kind}-v1", kind), read_manifest(again / name, kind)
    assert (new.counts, new.extra, set(new.files)) == (old.counts, old.extra, set(old.files))
    assert set(new.config) == set(old.config) and new.config["images"] == old.config["images"]


def test_a_model_of_trees_opens_answers_and_is_written_as_then(tmp_path):
    with tarfile.open(GOLDEN / f"{trees.NAME}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    got, sent = load_segmenter(tmp_path / trees.NAME), trees.segmenter()
    assert got.description == sent.description
    for old, new in zip(got.network.get_weights(), sent.network.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    answers = np.load(tmp_path / trees.ANSWERS)
    np.testing.assert_allclose(got.map_probabilities(trees.pixels()[None]), answers, atol=1e-5)
    assert len(np.unique(answers.argmax(-1))) > 1 and np.ptp(answers, (0, 1)).min() > 0.1
    save_segmenter(got, tmp_path / "new", trees.CONFIG, trees.COUNTS)
    old, new = (read_manifest(tmp_path / name, "segmenter") for name in (trees.NAME, "new"))
    assert (new.fingerprint, new.counts, new.extra, set(new.files)) == (
        old.fingerprint,
        old.counts,
        old.extra,
        set(old.files),
    )
