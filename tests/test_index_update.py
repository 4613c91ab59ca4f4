"""Adding and removing images: the result equals a new index, and the index is whole at every moment."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from engine import digital, image_of, learned_encoder, texture
from hypothesis import given
from hypothesis import strategies as st

from retrieval.config import IndexConfig
from retrieval.errors import IndexMismatchError
from retrieval.index.builder import write_index
from retrieval.index.faiss_index import VectorIndex
from retrieval.index.folder import IndexFolder
from retrieval.index.update import Change, add_images, remove_images
from retrieval.models.encoder import FakeEncoder
from tfrecords.artifacts import MANIFEST
from tfrecords.errors import DuplicateIdError, MissingInputError, UnfinishedOutputError
from tfrecords.read import ImageSource

FAKE = FakeEncoder()
SCENES = [
    image_of(digital(texture(96, 80, seed=s)), image_id=10 + 3 * s, path=f"scenes/{s}.tif") for s in range(6)
]
SAME = ("vectors.faiss", "images.csv")


class Counting(FakeEncoder):
    """Counts the images that it is given."""

    calls = 0

    def embed(self, batch):
        Counting.calls += 1
        return super().embed(batch)


@pytest.fixture(autouse=True)
def _from_none(monkeypatch):
    monkeypatch.setattr(Counting, "calls", 0)


def source(images, own_ids=True):
    return ImageSource("made by a test", len(images), lambda: iter(images), own_ids=own_ids)


def write(images, out, kind="exact", stride=16):
    write_index(images, out, FAKE, IndexConfig(stride_px=stride, kind=kind), source="test")
    return out


def add(images, out, own_ids=True, encoder=FAKE, **more):
    return add_images(source(images, own_ids), out, source="more", encoder=encoder, **more)


def remove(out, *names, **more):
    return remove_images(out, names, encoder=FAKE, **more)


def assert_same(one, other):
    """Assert equal bytes of all that an answer depends on, equal counts, and no other folder."""
    pages = [json.loads((path / MANIFEST).read_text()) for path in (one, other)]
    assert pages[0]["counts"] == pages[1]["counts"]
    names = [{n for n in page["files"] if n in SAME or n.startswith("pixels/")} for page in pages]
    assert names[0] == names[1]
    for name in names[0]:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
        assert pages[0]["files"][name] == pages[1]["files"][name]
    assert set(pages[0]["files"]) == {p.relative_to(one).as_posix() for p in one.rglob("*.*")} - {MANIFEST}
    IndexFolder(one, encoder=FAKE)
    assert not [p for p in one.parent.iterdir() if p.name.startswith(one.name + ".")]


# ---------------------------------------------------------------- as built anew


@given(st.permutations(range(6)), st.integers(1, 5), st.sets(st.integers(0, 5), max_size=4))
def test_added_and_removed_images_give_the_same_as_a_new_index(tmp_path_factory, order, first, removed):
    folder = tmp_path_factory.mktemp("grow")
    images = [SCENES[i] for i in order]
    out = write(images[:first], folder / "i")
    if first < 6:
        change = add(images[first:], out)
        assert change == Change(tuple(sorted(i.image_id for i in images[first:])), (), 0)
    if removed:
        assert remove(out, *(SCENES[g].image_id for g in removed)).removed == tuple(
            10 + 3 * g for g in sorted(removed)
        )
    assert_same(out, write([s for n, s in enumerate(SCENES) if n not in removed], folder / "fresh"))
    shutil.rmtree(folder)


def test_only_new_images_are_embedded_and_pixels_are_links(tmp_path):
    out = write(SCENES[:3], tmp_path / "i")
    inodes = {p.name: p.stat().st_ino for p in (out / "pixels").iterdir()}
    add(SCENES[3:5], out, encoder=Counting())
    assert Counting.calls == 2
    remove_images(out, ["10"], encoder=Counting())
    assert Counting.calls == 2
    kept = {p.name: p.stat().st_ino for p in (out / "pixels").iterdir()}
    assert kept["13.npy"] == inodes["13.npy"] and len(kept) == 4


@pytest.mark.parametrize("kind", ["fast", "ivf"])
def test_fast_and_ivf_keep_their_recall_when_they_grow(tmp_path, kind):
    images = [replace(image_of(digital(texture(150, 160, seed=s))), image_id=s) for s in range(6)]
    out = write(images[:4], tmp_path / "i", kind, stride=4)
    add(images[4:], out)
    remove(out, 0)
    store, fresh = (
        IndexFolder(path, encoder=FAKE) for path in (out, write(images[1:], tmp_path / "a", kind, stride=4))
    )
    assert store.vectors.kind == kind and store.manifest.counts == fresh.manifest.counts
    ids, vectors = store.vectors.vectors()
    np.testing.assert_array_equal(ids, fresh.vectors.ids())
    np.testing.assert_array_equal(vectors, fresh.vectors.vectors()[1])
    recall = store.manifest.extra["recall"]
    assert 0 < recall["queries"] <= 256 and "random pixels" in recall["source"]
    assert recall["recall_at_20"] >= fresh.manifest.extra["recall"]["recall_at_20"] - 0.05
    found = store.vectors.search(vectors[::7], 1)[0][:, 0]
    np.testing.assert_allclose(found, 1, atol=2e-3)


def test_codes_are_trained_again_once_the_index_has_doubled(tmp_path):
    images = [replace(image_of(digital(texture(150, 160, seed=s))), image_id=s) for s in range(5)]
    out = write(images[:2], tmp_path / "i", "fast", stride=4)
    learned = IndexFolder(out, encoder=FAKE).manifest.counts["windows"]
    add(images[2:3], out)
    assert IndexFolder(out, encoder=FAKE).manifest.extra["learned_from"] == learned
    add(images[3:], out)
    manifest = IndexFolder(out, encoder=FAKE).manifest
    assert manifest.extra["learned_from"] == manifest.counts["windows"] > 2 * learned


def test_growing_index_changes_its_kind_and_shrinking_keeps_it(tmp_path):
    config = IndexConfig(stride_px=4, exact_below=1200)
    images = [replace(image_of(digital(texture(150, 160, seed=s))), image_id=s) for s in range(3)]
    write_index(images[:2], tmp_path / "i", FAKE, config, source="test")
    assert IndexFolder(tmp_path / "i", encoder=FAKE).vectors.kind == "exact"
    add(images[2:], tmp_path / "i")
    assert IndexFolder(tmp_path / "i", encoder=FAKE).vectors.kind == "fast"
    remove(tmp_path / "i", 1, 2)
    assert IndexFolder(tmp_path / "i", encoder=FAKE).vectors.kind == "fast"


# ---------------------------------------------------------------- ids and names


def test_images_without_ids_are_numbered_after_the_largest_id_ever_used(tmp_path):
    out = write(SCENES[:2], tmp_path / "i")
    ranked = [replace(image, image_id=n) for n, image in enumerate(SCENES[2:4])]
    assert add(ranked, out, own_ids=False).added == (14, 15)
    remove(out, 15)
    assert add([replace(SCENES[4], image_id=0)], out, own_ids=False).added == (16,)
    assert IndexFolder(out, encoder=FAKE).images[14].path == "scenes/2.tif"


def test_present_files_with_the_same_pixels_are_skipped(tmp_path):
    out = write(SCENES[:2], tmp_path / "i")
    before = (out / MANIFEST).read_bytes()
    assert add(SCENES[:2], out, own_ids=False) == Change((), (), 2)
    assert (out / MANIFEST).read_bytes() == before


def test_rows_of_an_array_are_identified_by_their_position(tmp_path):
    rows = [replace(image, path="a.npy", image_id=n) for n, image in enumerate(SCENES[:3])]
    out = write(rows[:2], tmp_path / "i")
    assert add(rows, out, own_ids=False) == Change((2,), (), 2)
    memory = [replace(image, path="") for image in SCENES[:2]]
    assert add(memory, out, own_ids=False).added == (3, 4)  # without a name nothing is known of them


def test_error_of_a_doubled_id_names_both_images_and_the_fix(tmp_path):
    out = write(SCENES[:3], tmp_path / "i")
    before = (out / MANIFEST).read_bytes()
    clash = [SCENES[3], replace(SCENES[4], image_id=13)]
    with pytest.raises(DuplicateIdError, match=r"id 13 of scenes/4.tif .* scenes/1.tif .*--remove 13"):
        add(clash, out)
    assert (out / MANIFEST).read_bytes() == before
    with pytest.raises(DuplicateIdError, match="comes twice"):
        add([SCENES[5], SCENES[5]], out, restart=True)


@pytest.mark.parametrize("name", ["13", 13, "scenes/1.tif", "1.tif"])
def test_image_is_found_by_id_path_or_file_name(tmp_path, name):
    out = write(SCENES[:3], tmp_path / "i")
    assert remove(out, name).removed == (13,)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("14", "none of 3"),
        ("9.tif", "none of 3"),
        (".tif", "none"),
        ("", "none"),
        ("same.tif", "2 images, 16, 99,"),
    ],
)
def test_names_of_no_image_or_several_are_refused(tmp_path, name, reason):
    twins = [replace(SCENES[2], path="a/same.tif"), replace(SCENES[2], path="b/same.tif", image_id=99)]
    out = write([SCENES[0], *twins], tmp_path / "i")
    with pytest.raises(MissingInputError, match=reason):
        remove(out, name)
    assert len(IndexFolder(out, encoder=FAKE).images) == 3


def test_last_image_cannot_be_removed(tmp_path):
    out = write(SCENES[:2], tmp_path / "i")
    with pytest.raises(MissingInputError, match="no image left"):
        remove(out, 10, 13)


# ---------------------------------------------------------------- stop, go on, refuse


def stopping(images, after):
    def begin():
        yield from images[:after]
        raise KeyboardInterrupt

    return ImageSource("made by a test", len(images), begin, own_ids=True)


@pytest.mark.parametrize("after", [0, 1, 2])
def test_interrupted_change_keeps_the_index_and_resumes(tmp_path, after):
    out = write(SCENES[:3], tmp_path / "i")
    before = {p: p.read_bytes() for p in out.rglob("*.*")}
    with pytest.raises(KeyboardInterrupt):
        add_images(stopping(SCENES[3:], after), out, source="more", encoder=FAKE)
    assert {p: p.read_bytes() for p in out.rglob("*.*")} == before
    IndexFolder(out, encoder=FAKE)
    add(SCENES[3:], out, encoder=Counting())
    assert Counting.calls == 3 - after
    assert_same(out, write(SCENES, tmp_path / "fresh"))


@pytest.mark.parametrize("step", ["save", "links"])
def test_change_interrupted_while_it_writes_resumes(tmp_path, monkeypatch, step):
    out = write(SCENES[:3], tmp_path / "i")
    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        if step == "save":
            patched.setattr(VectorIndex, "save", lambda self, path: 1 / 0)
        else:
            patched.setattr(Path, "hardlink_to", lambda *a: 1 / 0)
        remove(out, 13)
    assert len(IndexFolder(out, encoder=FAKE).images) == 3
    remove(out, 13)
    assert_same(out, write([SCENES[0], SCENES[2]], tmp_path / "fresh"))


def test_another_change_is_refused_after_an_interrupted_one(tmp_path):
    out = write(SCENES[:3], tmp_path / "i")
    with pytest.raises(KeyboardInterrupt):
        add_images(stopping(SCENES[3:], 1), out, source="more", encoder=FAKE)
    with pytest.raises(UnfinishedOutputError, match=r"added was 'more'.*--restart"):
        remove(out, 10)
    assert remove(out, 10, restart=True).removed == (10,)
    assert_same(out, write(SCENES[1:3], tmp_path / "fresh"))


def test_interrupted_change_of_another_state_of_the_index_is_refused(tmp_path):
    out = write(SCENES[:3], tmp_path / "i")
    with pytest.raises(KeyboardInterrupt):
        add_images(stopping(SCENES[3:], 1), out, source="more", encoder=FAKE)
    shutil.rmtree(out)
    waiting = out.with_name("i.partial").rename(out.with_name("aside"))
    write(SCENES[:2], out)
    waiting.rename(out.with_name("i.partial"))
    with pytest.raises(UnfinishedOutputError, match="former was"):
        add(SCENES[3:], out)


def test_settings_that_differ_from_the_index_are_refused(tmp_path):
    out = write(SCENES[:2], tmp_path / "i")
    with pytest.raises(IndexMismatchError, match=r"--stride 16, not 8: leave --stride out"):
        add(SCENES[2:], out, stride_px=8)
    with pytest.raises(IndexMismatchError, match=r"--kind exact, not ivf"):
        add(SCENES[2:], out, kind="ivf")
    with pytest.raises(IndexMismatchError, match="made with encoder 'fake'"):
        add(SCENES[2:], out, encoder=learned_encoder())
    with pytest.raises(MissingInputError, match="no such folder"):
        add(SCENES[2:], tmp_path / "none")
    assert add(SCENES[2:3], out, stride_px=16, kind="exact").added == (16,)


def test_an_index_keeps_its_encoder(tmp_path):
    out = tmp_path / "i"
    write_index(SCENES[:1], out, learned_encoder(), IndexConfig(stride_px=16), source="test")
    add_images(source(SCENES[1:2]), out, source="more")
    assert IndexFolder(out).encoder.fingerprint == learned_encoder().fingerprint
