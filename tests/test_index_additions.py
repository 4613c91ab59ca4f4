"""One scene, one entry: a rewritten file replaces its entry, an unchanged one is left alone, by any name."""

import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from engine import digital, image_of, texture
from golden import make_index
from hypothesis import given, settings
from hypothesis import strategies as st
from test_index_update import FAKE, SCENES, Counting, add, assert_same, remove, source, stopping, write

from retrieval.distributed.shard_changes import add_to_index
from retrieval.index.folder import IndexFolder
from retrieval.index.update import Change, add_images
from retrieval.pipeline import build_index
from tfrecords.artifacts import MANIFEST
from tfrecords.errors import DuplicateIdError
from tfrecords.read.folders import RepeatedFileWarning
from tfrecords.schema import BANDS, Image
from tfrecords.write import write_images

GOLDEN = Path(__file__).parent / "golden"
OTHER = [replace(image_of(digital(texture(96, 80, seed=40 + n))), path=s.path) for n, s in enumerate(SCENES)]
"""Later versions of the same files."""
LARGER = replace(image_of(digital(texture(120, 100, seed=50))), path=SCENES[0].path)


@pytest.fixture(autouse=True)
def _from_none(monkeypatch, tmp_path):
    monkeypatch.setattr(Counting, "calls", 0)
    monkeypatch.chdir(tmp_path)


# ---------------------------------------------------------------- as built from the new files


@settings(max_examples=15)
@given(st.integers(1, 5), st.sets(st.integers(0, 5), min_size=1), st.permutations(range(6)))
def test_replaced_scenes_give_the_same_as_an_index_of_the_new_files(tmp_path_factory, held, rewritten, order):
    folder = tmp_path_factory.mktemp("replace")
    files = [OTHER[n] if n in rewritten else SCENES[n] for n in range(6)]
    out = write([replace(s, image_id=n) for n, s in enumerate(SCENES[:held])], folder / "i")
    given_order = [*sorted(range(held), key=order.index), *range(held, 6)]
    change = add([files[n] for n in given_order], out, own_ids=False)
    replaced = tuple(sorted(n for n in rewritten if n < held))
    assert change == Change(tuple(range(held, 6)), (), held - len(replaced), replaced)
    assert_same(out, write([replace(s, image_id=n) for n, s in enumerate(files)], folder / "fresh"))


@pytest.mark.parametrize("kind", ["fast", "ivf"])
def test_replaced_scene_of_a_trained_kind(tmp_path, kind):
    images = [
        replace(image_of(digital(texture(150, 160, seed=s))), path=f"{s}.tif", image_id=s) for s in range(4)
    ]
    later = replace(image_of(digital(texture(150, 180, seed=9))), path="1.tif", image_id=1)
    out = write(images, tmp_path / "i", kind, stride=4)
    assert add([later], out, own_ids=False).replaced == (1,)
    fresh = write([images[0], later, *images[2:]], tmp_path / "fresh", kind, stride=4)
    store, other = (IndexFolder(path, encoder=FAKE) for path in (out, fresh))
    assert store.manifest.counts == other.manifest.counts and store.vectors.kind == kind
    ids, vectors = store.vectors.vectors()
    np.testing.assert_array_equal(ids, other.vectors.ids())
    np.testing.assert_array_equal(vectors, other.vectors.vectors()[1])
    np.testing.assert_array_equal(store.scaled(1), later.scaled())
    recall = [folder.manifest.extra["recall"]["recall_at_20"] for folder in (store, other)]
    assert recall[0] >= recall[1] - 0.05


def test_former_pixels_and_size_are_gone(tmp_path):
    out = write(SCENES[:2], tmp_path / "i")
    assert add([OTHER[0], SCENES[1]], out, own_ids=False, encoder=Counting()).replaced == (10,)
    assert Counting.calls == 1
    assert add([LARGER], out, own_ids=False).replaced == (10,)
    assert sorted(p.name for p in (out / "pixels").iterdir()) == ["10.npy", "13.npy"]
    store = IndexFolder(out, encoder=FAKE)
    assert store.size(10) == (120, 100) and store.images[10].path == SCENES[0].path
    assert add([LARGER], out, own_ids=False) == Change((), (), 1)
    assert remove(out, "scenes/0.tif").removed == (10,)


@pytest.mark.parametrize(
    "more",
    [
        {"crs": "EPSG:32632"},
        {"transform": (10.0, 0.0, 5e5, 0.0, -10.0, 5e6)},
        {"date": "2021-06-01"},
        {"bands": ("B02", "B03", "B04", "B08")},
        {"orientation": 3},
    ],
    ids=lambda more: next(iter(more)),
)
def test_another_georeference_date_or_band_order_replaces_the_entry(tmp_path, more):
    out = write(SCENES[:2], tmp_path / "i")
    change = add([replace(SCENES[1], **more)], out, own_ids=False)
    assert change.replaced == (13,)
    assert_same(out, write([SCENES[0], replace(SCENES[1], **more)], tmp_path / "fresh"))


def test_unchanged_table_cells_survive_the_table(tmp_path):
    """Each value that a table stores as text is recognised when it is read back."""
    from tfrecords.schema import Provenance

    known = replace(
        SCENES[0],
        crs="EPSG:32632",
        transform=(10.0, 0.1, 399960.123456789, 0.1, -10.0, 5e6 / 3),
        date="2021-06",
        bands=("B04", "B 03", "a%20b", "B08"),
        provenance=Provenance("S2A, a\nb", "2021-06-01T10:00:00Z", "05.00", 12.345678901),
    )
    out = write([known], tmp_path / "i")
    assert add([known], out, own_ids=False) == Change((), (), 1)


# ---------------------------------------------------------------- which paths are one file


def scene_files(write_tif, folder, seeds):
    for seed in seeds:
        write_tif(f"{seed}.tif", digital(texture(72, 80, seed=seed)), folder=folder)
    return folder


def paths_of(out):
    return [row.path for row in IndexFolder(out, encoder=FAKE).images.values()]


def spellings(root):
    """Return ways to name the folder `root/scenes`."""
    (root / "link").symlink_to("scenes")
    (root / "other").mkdir()
    return {
        "relative": "scenes",
        "dots": "./other/../scenes/",
        "absolute": str(root / "scenes"),
        "link": "link",
        "link in dots": str(root / "other" / ".." / "link"),
    }


@pytest.mark.parametrize("built", ["relative", "absolute", "link"])
@pytest.mark.parametrize("added", ["relative", "dots", "absolute", "link", "link in dots"])
def test_every_spelling_of_a_path_is_the_same_scene(tmp_path, write_tif, built, added):
    scene_files(write_tif, tmp_path / "scenes", (0, 1))
    names = spellings(tmp_path)
    build_index(names[built], "index", encoder=FAKE)
    former = paths_of(Path("index"))
    assert add_to_index(names[added], "index", encoder=FAKE) == Change((), (), 2)
    scene_files(write_tif, tmp_path / "scenes", (1,))
    write_tif("1.tif", digital(texture(72, 80, seed=7)), folder=tmp_path / "scenes")
    write_tif("2.tif", digital(texture(72, 80, seed=2)), folder=tmp_path / "scenes")
    change = add_to_index(names[added], "index", encoder=FAKE)
    assert change == Change((2,), (), 1, (1,))
    assert paths_of(Path("index"))[:2] == former
    build_index(names[built], "fresh", encoder=FAKE)
    stores = [IndexFolder(Path(name), encoder=FAKE) for name in ("index", "fresh")]
    for image_id in range(3):
        np.testing.assert_array_equal(*(store.scaled(image_id) for store in stores))
    assert Path("index/vectors.faiss").read_bytes() == Path("fresh/vectors.faiss").read_bytes()


def test_relative_paths_start_at_the_folder_of_the_first_run(tmp_path, write_tif, monkeypatch):
    """The same relative name below another working folder is another scene."""
    scene_files(write_tif, tmp_path / "one" / "scenes", (0, 1))
    scene_files(write_tif, tmp_path / "two" / "scenes", (5,))
    (tmp_path / "two" / "scenes" / "5.tif").rename(tmp_path / "two" / "scenes" / "1.tif")
    monkeypatch.chdir(tmp_path / "one")
    build_index("scenes", "index", encoder=FAKE)
    monkeypatch.chdir(tmp_path / "two")
    assert add_to_index("scenes", "../one/index", encoder=FAKE).added == (2,)
    assert add_to_index("scenes", "../one/index", encoder=FAKE) == Change((), (), 1)
    assert add_to_index("../one/scenes", "../one/index", encoder=FAKE) == Change((), (), 2)
    index = tmp_path / "one" / "index"
    assert paths_of(index) == ["scenes/0.tif", "scenes/1.tif", (tmp_path / "two/scenes/1.tif").as_posix()]
    (tmp_path / "one").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved" / "scenes")
    assert add_to_index(".", "../index", encoder=FAKE) == Change((), (), 2)


def test_link_that_points_elsewhere_now_is_compared_by_its_file(tmp_path, write_tif):
    scene_files(write_tif, tmp_path / "scenes", (0, 1))
    Path("latest.tif").symlink_to("scenes/0.tif")
    build_index("latest.tif", "index", encoder=FAKE)
    Path("latest.tif").unlink()
    Path("latest.tif").symlink_to("scenes/1.tif")
    assert add_to_index("latest.tif", "index", encoder=FAKE).replaced == (0,)
    assert add_to_index("scenes/1.tif", "index", encoder=FAKE) == Change((), (), 1)


def test_upper_and_lower_case_are_two_files(tmp_path, write_tif):
    write_tif("a.tif", digital(texture(72, 80, seed=1)), folder=tmp_path)
    write_tif("A.tif", digital(texture(72, 80, seed=2)), folder=tmp_path)
    if len(list(tmp_path.glob("*.tif"))) < 2:
        pytest.skip("the file system ignores case")
    build_index("a.tif", "index", encoder=FAKE)
    assert add_to_index("A.tif", "index", encoder=FAKE).added == (1,)


def test_hard_link_and_copy_are_other_files(tmp_path, write_tif):
    scene_files(write_tif, tmp_path, (0,))
    build_index("0.tif", "index", encoder=FAKE)
    os.link("0.tif", "hard.tif")
    assert add_to_index("hard.tif", "index", encoder=FAKE).added == (1,)


def test_link_beside_its_file_counts_once_and_is_named(tmp_path, write_tif):
    scene_files(write_tif, tmp_path / "scenes", (0,))
    build_index("scenes", "index", encoder=FAKE)
    scene_files(write_tif, tmp_path / "more", (3, 4))
    (tmp_path / "more" / "a.tif").symlink_to("3.tif")
    with pytest.warns(RepeatedFileWarning, match=r"more/a\.tif is more/3\.tif"):
        change = add_to_index("more", "index", encoder=FAKE)
    assert change == Change((1, 2), (), 0)
    assert paths_of(Path("index")) == ["scenes/0.tif", "more/3.tif", "more/4.tif"]


def test_removal_knows_every_spelling(tmp_path, write_tif):
    scene_files(write_tif, tmp_path / "scenes", (0, 1))
    build_index("scenes", "index", encoder=FAKE)
    (tmp_path / "link").symlink_to("scenes")
    from retrieval.distributed.shard_changes import remove_from_index

    assert remove_from_index("index", [str(tmp_path / "link" / "1.tif")], encoder=FAKE).removed == (1,)


# ---------------------------------------------------------------- arrays and records


def test_rows_of_a_rewritten_array_replace_their_own_entries(tmp_path):
    pixels = np.stack([digital(texture(72, 80, seed=s)) for s in range(4)])
    np.save("a.npy", pixels[:3])
    build_index("a.npy", "index", encoder=FAKE)
    rewritten = np.stack([pixels[0], pixels[3], pixels[2], pixels[1]])
    np.save("a.npy", rewritten)
    assert add_to_index(str(tmp_path / "a.npy"), "index", encoder=FAKE) == Change((3,), (), 2, (1,))
    build_index("a.npy", "fresh", encoder=FAKE)
    assert_same(Path("index"), Path("fresh"))
    np.save("a.npy", pixels[:1])
    assert add_to_index("a.npy", "index", encoder=FAKE) == Change((), (), 1, outdated=(1, 2, 3))
    assert_same(Path("index"), Path("fresh"))


def test_arrays_in_memory_are_never_the_same_scene(tmp_path):
    pixels = digital(texture(72, 80))[None]
    build_index(pixels, "index", encoder=FAKE)
    assert add_to_index(pixels, "index", encoder=FAKE).added == (1,)


def records(path, seeds, ids, **more):
    images = [
        Image(i, digital(texture(72, 80, seed=s)), "dn", BANDS, 0.0) for s, i in zip(seeds, ids, strict=True)
    ]
    write_images(images, path, overwrite=True, **more)
    return path


def test_records_are_the_same_scene_by_file_and_id(tmp_path):
    records("a.tfrecords", (0, 1, 2), (7, 3, 5))
    build_index("a.tfrecords", "index", encoder=FAKE)
    Path("link.tfrecords").symlink_to("a.tfrecords")
    for name in (str(tmp_path / "a.tfrecords"), "link.tfrecords", "./a.tfrecords"):
        assert add_to_index(name, "index", encoder=FAKE) == Change((), (), 3)
    records("a.tfrecords", (0, 8, 2, 9), (7, 3, 5, 1))
    assert add_to_index(str(tmp_path / "a.tfrecords"), "index", encoder=FAKE) == Change((1,), (), 2, (3,))
    build_index("a.tfrecords", "fresh", encoder=FAKE)
    assert Path("index/vectors.faiss").read_bytes() == Path("fresh/vectors.faiss").read_bytes()
    records("b.tfrecords", (4,), (7,))
    with pytest.raises(DuplicateIdError, match=r"id 7 of b.tfrecords belongs to a.tfrecords"):
        add_to_index("b.tfrecords", "index", encoder=FAKE)


@pytest.mark.parametrize("order", [(1, 1), (0, 1), (1, 0)])
def test_record_that_comes_twice_is_refused(tmp_path, order):
    out = write(SCENES[:2], tmp_path / "i")
    before = (out / MANIFEST).read_bytes()
    versions = [SCENES[1], replace(OTHER[1], image_id=13)]
    with pytest.raises(DuplicateIdError, match="id 13 comes twice"):
        add([versions[n] for n in order], out)
    assert (out / MANIFEST).read_bytes() == before


# ---------------------------------------------------------------- stop and go on


@pytest.mark.parametrize("after", [0, 1, 2])
def test_interrupted_replacement_keeps_the_former_index_and_resumes(tmp_path, after):
    out = write(SCENES[:3], tmp_path / "i")
    before = {p: p.read_bytes() for p in out.rglob("*.*")}
    later = [replace(OTHER[n], image_id=SCENES[n].image_id) for n in range(3)]
    with pytest.raises(KeyboardInterrupt):
        add_images(stopping(later, after), out, source="more", encoder=FAKE)
    assert {p: p.read_bytes() for p in out.rglob("*.*")} == before
    IndexFolder(out, encoder=FAKE)
    add(later, out, encoder=Counting())
    assert Counting.calls == 3 - after
    assert_same(out, write(later, tmp_path / "fresh"))


def test_file_that_changes_between_stop_and_resumption(tmp_path):
    """What the interrupted run embedded of a file is used for these pixels only."""
    out = write(SCENES[:3], tmp_path / "i")
    later = [replace(OTHER[n], image_id=SCENES[n].image_id) for n in range(3)]
    with pytest.raises(KeyboardInterrupt):
        add_images(stopping(later, 2), out, source="more", encoder=FAKE)
    now = [SCENES[0], replace(LARGER, path=SCENES[1].path, image_id=13), later[2]]
    assert add_images(source(now), out, source="more", encoder=FAKE).replaced == (13, 16)
    assert_same(out, write(now, tmp_path / "fresh"))


def test_index_with_a_doubled_scene_of_an_earlier_version(tmp_path):
    """An index that holds two versions of a file, as earlier releases wrote it, names the second."""
    twice = [SCENES[0], replace(OTHER[0], image_id=11)]
    out = write(twice, tmp_path / "i")
    assert add([OTHER[0]], out, own_ids=False) == Change((), (), 0, (10,), outdated=(11,))
    assert remove(out, 11).removed == (11,)
    assert_same(out, write([replace(OTHER[0], image_id=10)], tmp_path / "fresh"))


def test_files_of_an_index_of_version_1_are_compared_as_it_stored_them(tmp_path):
    """It clipped at 4095 DN, which its other columns do not say."""
    with tarfile.open(GOLDEN / "index-v1.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    files = list(make_index.images(1))
    assert add_images(source(files, False), Path("index-v1"), source="more") == Change((), (), 2)
    brighter = replace(files[0], pixels=np.where(files[0].pixels > 3500, 9000, files[0].pixels))
    change = add_images(source([brighter, files[1]], False), Path("index-v1"), source="more")
    assert change == Change((), (), 1, (3,))
    np.testing.assert_allclose(IndexFolder(Path("index-v1")).scaled(3), brighter.scaled(), atol=1e-3)


def test_manifest_of_arrays_and_absolute_paths_names_no_folder(tmp_path, write_tif):
    scene_files(write_tif, tmp_path / "scenes", (0,))
    build_index(digital(texture(72, 80))[None], "memory", encoder=FAKE)
    build_index(tmp_path / "scenes", "absolute", encoder=FAKE)
    build_index("scenes", "relative", encoder=FAKE)
    entries = [
        json.loads((Path(name) / MANIFEST).read_text())["extra"].get("paths_from")
        for name in ("memory", "absolute", "relative")
    ]
    assert entries == [None, None, "."]
