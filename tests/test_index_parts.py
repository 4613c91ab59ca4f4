"""The life of a parts index: changes, interruptions, masks, bounded memory and measured recall."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from engine import digital, image_of, texture

from retrieval.config import IndexConfig
from retrieval.index import parts_builder
from retrieval.index.builder import write_index
from retrieval.index.folder import IndexFolder, from_codes, to_codes
from retrieval.index.parts import joined
from retrieval.index.parts_builder import describe_file
from retrieval.index.update import add_images, remove_images
from retrieval.models.cloud_mask import shipped_cloud_mask
from retrieval.models.encoder import FakeEncoder
from retrieval.models.local_descriptors import shipped_descriptors
from retrieval.training.weather import paste_clouds
from tfrecords.read import ImageSource
from tfrecords.schema import Image

FAKE = FakeEncoder()
SCENES = [image_of(digital(texture(100, 96 + 8 * s, seed=s)), image_id=10 + s) for s in range(4)]
"""So small that codes of windows need no training, which takes most of the time."""
CONFIG = IndexConfig(stride_px=16, kind="exact", parts="always")
FILES = ("parts.bin", "parts.faiss")


def indexed(images: list[Image], out: Path, config: IndexConfig = CONFIG) -> Path:
    """Index images with their parts."""
    write_index(images, out, FAKE, config, source="test")
    return out


def added(images: list[Image], out: Path) -> None:
    """Add images to an index."""
    more = ImageSource("made by a test", len(images), lambda: iter(images), own_ids=True)
    add_images(more, out, source="more", encoder=FAKE)


def content(index: Path) -> list[bytes]:
    """Read the files of the parts."""
    return [(index / name).read_bytes() for name in FILES]


@pytest.fixture
def described(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images that were described, in order."""
    ids: list[int] = []

    def note(pixels: Path, *more: int) -> np.ndarray:
        ids.append(int(pixels.stem))
        return describe_file(pixels, *more)

    monkeypatch.setattr(parts_builder, "describe_file", note)
    return ids


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return indexed(SCENES, tmp_path_factory.mktemp("whole") / "index")


@pytest.fixture
def first_image_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit projections to the first image of an index alone."""
    monkeypatch.setattr(parts_builder, "FIT_PARTS", 100)


@pytest.mark.usefixtures("first_image_fits")
def test_a_changed_index_has_the_parts_of_a_new_one_byte_for_byte(
    tmp_path: Path, described: list[int]
) -> None:
    changed = indexed([SCENES[0], SCENES[2]], tmp_path / "changed")
    described.clear()
    added([SCENES[1], SCENES[3]], changed)
    assert sorted(described) == [11, 13]
    assert content(changed) == content(indexed(SCENES, tmp_path / "whole"))
    described.clear()
    remove_images(changed, [12], encoder=FAKE)
    assert described == []
    assert content(changed) == content(indexed([SCENES[i] for i in (0, 1, 3)], tmp_path / "fresh"))


def test_without_the_images_that_fitted_its_projection_an_index_keeps_it(whole: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(whole, changed)
    remove_images(changed, [10], encoder=FAKE)
    one, two = (IndexFolder(p, encoder=FAKE).parts for p in (changed, indexed(SCENES[1:], tmp_path / "new")))
    assert one is not None and two is not None and one.image_ids == two.image_ids == {11, 12, 13}
    windows = [p.stored.windows(np.arange(len(one))) for p in (one, two)]
    assert np.allclose(*(w @ w.T for w in windows), atol=0.05)


@pytest.mark.usefixtures("first_image_fits")
def test_a_replaced_image_is_described_again(tmp_path: Path, described: list[int]) -> None:
    scenes = [image_of(digital(texture(100, 96, seed=s)), image_id=s, path=f"{s}.tif") for s in range(3)]
    index = indexed(scenes, tmp_path / "index")
    other = image_of(digital(texture(100, 96, seed=9)), image_id=1, path="1.tif")
    described.clear()
    added([other], index)
    assert described == [1]
    assert content(index) == content(indexed([scenes[0], other, scenes[2]], tmp_path / "fresh"))


def test_an_index_without_parts_gets_them_when_it_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, described: list[int]
) -> None:
    index = indexed(SCENES[:2], tmp_path / "index", IndexConfig(stride_px=16, kind="exact"))
    assert not (index / "parts.bin").exists() and described == []
    monkeypatch.setattr("retrieval.index.builder.has_parts", lambda *_: True)  # as from 200 megapixels on
    added(SCENES[2:], index)
    parts = IndexFolder(index, encoder=FAKE).parts
    assert parts is not None and parts.image_ids == {10, 11, 12, 13}
    monkeypatch.undo()
    remove_images(index, [11], encoder=FAKE)
    assert not (index / "parts.bin").exists()


@pytest.mark.usefixtures("first_image_fits")
def test_an_interrupted_index_resumes_after_the_images_that_are_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, described: list[int]
) -> None:
    note: Callable[..., np.ndarray] = parts_builder.describe_file

    def stop(pixels: Path, *more: int) -> np.ndarray:
        if pixels.stem == "12":
            raise KeyboardInterrupt
        return note(pixels, *more)

    monkeypatch.setattr(parts_builder, "describe_file", stop)
    with pytest.raises(KeyboardInterrupt):
        indexed(SCENES, tmp_path / "index")
    first = set(described)
    assert {10, 11} <= first and 12 not in first
    monkeypatch.setattr(parts_builder, "describe_file", note)
    described.clear()
    resumed = indexed(SCENES, tmp_path / "index")
    assert set(described) <= {12, 13}  # neither the projection nor the first images again
    assert content(resumed) == content(indexed(SCENES, tmp_path / "whole"))


def test_the_manifest_holds_checksums_and_measured_recall(whole: Path) -> None:
    opened = IndexFolder(whole, encoder=FAKE)
    assert opened.parts is not None
    manifest = opened.manifest
    assert set(FILES) <= set(manifest.files)
    recall = manifest.extra["parts_recall"]
    assert recall["queries"] == min(256, len(opened.parts)) > 50 and "half" in recall["source"]
    assert recall["recall_at_1"] >= 0.9 and recall["recall_at_2048"] == 1


def test_an_image_is_described_in_strips_of_bounded_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes, rows = to_codes(texture(400, 90, seed=3) * 0.3 - 0.6), []
    np.save(tmp_path / "7.npy", codes)

    def read(part: np.ndarray) -> np.ndarray:
        rows.append(len(part))
        return from_codes(part)

    monkeypatch.setattr(parts_builder, "from_codes", read)
    parts = describe_file(tmp_path / "7.npy", 16)
    assert max(rows) <= 4 * 15 + 20 + 80
    expected = shipped_descriptors().describe_image(from_codes(codes))
    assert parts.shape == expected.shape and np.allclose(parts, expected, atol=1e-5)


def test_nodata_and_cloud_are_not_described_as_ground(tmp_path: Path) -> None:
    scaled = np.clip(0.35 * texture(320, 320, seed=5) - 0.6, -1, 1).astype(np.float32)
    clouded, _ = paste_clouds(scaled[None], np.array([0.4]), np.random.default_rng(1), seed=1)
    pictures = {"clear": scaled, "cloud": clouded[0], "nodata": scaled.copy()}
    pictures["nodata"][:160] = np.nan
    parts = {}
    for name, picture in pictures.items():
        np.save(tmp_path / f"{name}.npy", to_codes(picture))
        parts[name] = joined(describe_file(tmp_path / f"{name}.npy")).any(-1)
    assert parts["clear"].mean() > 0.95
    # A part begins 8 px after the one before and sees 24 px.
    assert not parts["nodata"][:17].any() and parts["nodata"][20:].mean() > 0.95
    hidden = shipped_cloud_mask().of_image(clouded[0])
    assert 0.2 < hidden.mean() < 0.7 and not shipped_cloud_mask().of_image(scaled).mean() > 0.02
    height, width = parts["cloud"].shape
    under = [
        [hidden[8 * y : 8 * y + 24, 8 * x : 8 * x + 24].all() for x in range(width)] for y in range(height)
    ]
    assert np.any(under) and not parts["cloud"][np.array(under)].any()
    beside = [
        [not hidden[8 * y : 8 * y + 24, 8 * x : 8 * x + 24].any() for x in range(width)]
        for y in range(height)
    ]
    assert parts["cloud"][np.array(beside)].mean() > 0.95
