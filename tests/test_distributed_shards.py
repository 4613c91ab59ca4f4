"""An index in shards answers as a single index does: bytes, kinds, resume, kills, damage, golden folder."""

import json
import pickle
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import faiss
import numpy as np
import pytest
from engine import digital, image_of, located, patches_of, small_encoder, texture
from golden.make_index import answers, images
from small_job import lines, make_ground, run

import retrieval
from retrieval.config import IndexConfig
from retrieval.distributed import shard_builder
from retrieval.distributed.executors import open_executor
from retrieval.distributed.merged_vectors import merge_vectors
from retrieval.distributed.shards import open_folder
from retrieval.errors import (
    ConfigError,
    IndexMismatchError,
    NoWindowsError,
    NoWindowsWarning,
    UncalibratedWarning,
)
from retrieval.index import parts_builder
from retrieval.index.builder import RECALL_QUERIES
from retrieval.index.faiss_index import VectorIndex, train_codes
from retrieval.index.folder import IndexFolder
from retrieval.index.recall import exact_search
from retrieval.kernels.executors import SerialExecutor, ThreadExecutor
from retrieval.matching import parts_search
from retrieval.matching.session import Session
from retrieval.models.encoder import COMPILED_AFTER, FakeEncoder
from retrieval.types import pack_ids
from tfrecords.errors import (
    DuplicateIdError,
    FormatVersionError,
    ManifestError,
    MissingInputError,
    OutputExistsError,
    UnfinishedOutputError,
)
from tfrecords.read import ImageSource, read_images

FAKE = FakeEncoder()
GOLDEN = Path(__file__).parent / "golden"
COUNT = 7


@pytest.fixture(scope="module")
def pixels():
    return [digital(texture(104, 120, seed=s)) for s in range(COUNT)]


def records(pixels, first=0):
    """Images whose ids do not ascend, as the ids of records."""
    return [image_of(p, (5 * (i + first)) % 11, path=f"{i}.tif") for i, p in enumerate(pixels)]


def source_of(images, note="made by a test"):
    return ImageSource(note, len(images), lambda: iter(images), own_ids=True)


def built(images, out, shards=None, encoder=None, **more):
    encoder = encoder or small_encoder()
    return retrieval.build_index(source_of(images), out, encoder=encoder, shards=shards, **more)


def shards_in(folder):
    return sorted(p for p in folder.iterdir() if p.is_dir())


def submitted(index, queries, out):
    """The bytes of submission and details."""
    located(index, queries, out / "submission.csv", details=out / "details.csv")
    return {name: (out / name).read_bytes() for name in ("submission.csv", "details.csv")}


# ---------------------------------------------------------------- the same answers


def test_exact_shards_give_the_bytes_of_a_single_index(pixels, tmp_path):
    images = records(pixels)
    stack = np.concatenate([patches_of(p, [(n, 9), (50, 30)]).pixels for n, p in enumerate(pixels)])
    queries = replace(patches_of(pixels[0], [(0, 0)] * len(stack)), pixels=stack)
    for _ in range(COMPILED_AFTER + 1):  # what is called often is compiled, and rounds otherwise from then on
        small_encoder().embed(images[0].scaled()[None])
    single = built(images, tmp_path / "0")
    for number, executor in enumerate((None, SerialExecutor(), ThreadExecutor(2))):
        sharded = built(images, tmp_path / f"s{number}", 3, executor=executor)
        assert len(sharded.folder.shards) == 3 and sharded.folder.vectors.kind == "exact"
        assert list(sharded.folder.images.values()) == list(single.folder.images.values())
        every = zip(sharded.folder.vectors.vectors(), single.folder.vectors.vectors(), strict=True)
        for ours, theirs in every:
            np.testing.assert_array_equal(ours, theirs)
    for _ in range(4):
        single.locate(queries)
    folders, outs = (tmp_path / "0", tmp_path / "s0", shards_in(tmp_path / "s1")), []
    for number, folder in enumerate(folders):
        index = retrieval.open_index(folder, encoder=single.folder.encoder)
        (tmp_path / f"out{number}").mkdir()
        outs.append(submitted(index, queries, tmp_path / f"out{number}"))
    assert outs[0] == outs[1] == outs[2]
    assert outs[0]["submission.csv"].count(b"\n") == 1 + len(stack)


def unit_vectors(count, dim, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("kind", ["exact", "fast", "ivf"])
def test_merged_vectors_keep_the_order_of_one_index(kind):
    """Ties across shards go to the smaller id; recall is at least that of one index with the same codes."""
    vectors = unit_vectors(4000, 16)
    vectors[2000:2400] = vectors[:400]  # ties
    ids = pack_ids(np.arange(4000) // 100 * 7 % 41, np.arange(4000) % 100, np.zeros(4000, int))
    order = np.argsort(ids)
    ids, vectors = ids[order], vectors[order]
    owner = (ids >> 32) % 3
    config = IndexConfig(kind=kind, rerank_k=40)

    def block(rows):
        return lambda: iter([(ids[rows], vectors[rows])])

    every = np.ones(4000, bool)
    codes = None if kind == "exact" else train_codes(kind, (block(every), 4000), 16, 4000)
    trained = None if codes is None else VectorIndex.of_codes(codes, kind)
    one = VectorIndex.build(block(every), 16, config, trained=trained)
    members = [VectorIndex.build(block(owner == n), 16, config, trained=trained) for n in range(3)]
    merged = merge_vectors(members, "cpu")
    np.testing.assert_array_equal(merged.ids(), ids)
    np.testing.assert_array_equal(merged.ids(1234, 1300), ids[1234:1300])
    for (i, v), (j, w) in zip(merged.blocks(700), one.blocks(700), strict=True):
        np.testing.assert_array_equal(i, j)
        np.testing.assert_array_equal(v, w)
    queries = np.concatenate([vectors[::50], unit_vectors(30, 16, 5), np.zeros((1, 16), np.float32)])
    (s, i), (t, j) = merged.search(queries, 25), one.search(queries, 25)
    assert (np.diff(s, axis=1) <= 0).all()
    assert ((np.diff(i, axis=1) > 0) | (np.diff(s, axis=1) < 0)).all()
    if kind == "exact":
        np.testing.assert_array_equal(s, t)
        np.testing.assert_array_equal(i, j)
    truth = exact_search(block(every), queries, 10)
    recalls = [np.mean([np.isin(a, b).mean() for a, b in zip(truth, found, strict=True)]) for found in (i, j)]
    assert recalls[0] >= recalls[1] - 1e-9
    some = ids[::3]
    assert np.isin(merged.restricted(some).search(queries, 9)[1], [*some, -1]).all()


def test_shards_with_codes_share_them(pixels, tmp_path):
    config = IndexConfig(kind="fast", stride_px=2)
    index = built(records(pixels), tmp_path / "s", 3, config=config)
    single = built(records(pixels), tmp_path / "one", config=config)
    assert index.folder.vectors.kind == "fast" == single.folder.vectors.kind
    assert len({shard.manifest.extra["codes"] for shard in index.folder.shards}) == 1
    recalls = [i.folder.manifest.extra["recall"] for i in (index, single)]
    assert recalls[0]["queries"] == recalls[1]["queries"]
    assert all(recalls[0][k] >= recalls[1][k] - 0.01 for k in ("recall_at_1", "recall_at_20"))
    queries = patches_of(pixels[4], [(7, 9), (30, 37)])
    frames = [i.locate(queries) for i in (index, single)]
    for name in ("image_id", "x", "y"):
        assert frames[0][name].tolist() == frames[1][name].tolist()


def test_shards_share_the_kind_and_the_codes_of_all_windows(pixels, tmp_path):
    config = IndexConfig(kind="auto", exact_below=700, fast_below=2000, stride_px=2)
    index = built(records(pixels), tmp_path / "s", 3, config=config)
    codes = set()
    for shard in index.folder.shards:
        assert shard.manifest.extra["kind"] == "ivf" == shard.vectors.kind
        assert shard.manifest.counts["windows"] < config.fast_below  # alone it would be "fast"
        whole = faiss.read_index(str(shard.path / "vectors.faiss"))  # FAISS frees what nobody holds
        stored = faiss.downcast_index(whole.index).base_index
        stored.reset()
        codes.add(faiss.serialize_index(stored).tobytes())
    assert len(codes) == 1


class FakeDescriptors:
    """Descriptors of images by their last pixel, and of patches by their number."""

    def __init__(self):
        self.patches = np.zeros((0, 23, 23, 24), np.float32)

    def field(self, scaled):
        """Smooth noise every 2 px."""
        rng, (h, w) = np.random.default_rng(int(1e4 * abs(scaled[-1, -1, 0]))), scaled.shape[:2]
        noise = rng.normal(size=(h // 2 + 3, w // 2 + 3, 24)).astype(np.float32)
        rows = sum(noise[i : i + h // 2 - 1] for i in range(5))
        return sum(rows[:, i : i + w // 2 - 1] for i in range(5)) / 25

    def describe_image(self, scaled, strip=128):
        return self.field(scaled)[::2, ::2]

    def describe_all_pixels(self, rows):
        return self.patches[rows]


def test_parts_of_all_shards_are_searched(pixels, tmp_path, monkeypatch):
    fake = FakeDescriptors()
    for room in (parts_builder, parts_search):
        monkeypatch.setattr(room, "shipped_descriptors", lambda: fake)
    monkeypatch.setattr(parts_search, "Templates", lambda *_: SimpleNamespace(take=lambda rows, _: (rows,)))
    config, images = IndexConfig(parts="always"), records(pixels)
    folders = [built(images, tmp_path / str(n), n, FAKE, config=config).folder for n in (None, 3)]
    assert len(folders[1].parts) == len(folders[0].parts) and len(folders[1].parts.members) == 3
    cut = [(0, 8, 12), (3, 16, 4), (6, 20, 8)]
    fake.patches = np.stack([fake.field(images[i].scaled())[y : y + 23, x : x + 23] for i, x, y in cut])
    fake.patches[1, :9] = 0
    queries = patches_of(pixels[0], [(0, 0)] * len(cut))
    for folder in folders:
        found = parts_search.find_places(folder.parts, Session.open(folder, queries), count=10)
        assert found.image_ids[:, 0].tolist() == [images[i].image_id for i, _, _ in cut]
        assert found.x[:, 0].tolist() == [2 * x for _, x, _ in cut]
        assert found.y[:, 0].tolist() == [2 * y for _, _, y in cut]


def test_a_cluster_builds_and_queries_shards(pixels, tmp_path):
    pytest.importorskip("distributed")
    images, queries = records(pixels), patches_of(pixels[2], [(8, 16), (24, 31)])
    np.save(tmp_path / "x.npy", np.stack(pixels))
    with open_executor("dask:2") as dask:
        index = built(images, tmp_path / "s", 3, executor=dask)
        answer = index.locate(queries, executor=dask)
        file = retrieval.build_index(
            tmp_path / "x.npy", tmp_path / "f", encoder=small_encoder(), shards=4, executor=dask
        )
    assert answer.image_id.tolist() == [10, 10] and answer.x.tolist() == [8, 24]
    assert file.folder.manifest.counts["images"] == COUNT and len(file.folder.shards) == 4
    here = built(images, tmp_path / "h", 3)
    np.testing.assert_array_equal(index.folder.vectors.ids(), here.folder.vectors.ids())
    vectors = [i.folder.vectors.vectors()[1] for i in (index, here)]
    np.testing.assert_allclose(*vectors, atol=1e-5)  # here the encoder is compiled


# ---------------------------------------------------------------- interrupted and repeated


def failing(images, at):
    def begin():
        for number, image in enumerate(images):
            if number == at:
                raise RuntimeError("the power fails")
            yield image

    return ImageSource("made by a test", len(images), begin, own_ids=True)


class Counting(FakeEncoder):
    """Counts the images that it embeds."""

    count = 0

    def embed(self, batch):
        Counting.count += len(batch)
        return super().embed(batch)


@pytest.mark.parametrize("kind", ["exact", "fast"])
def test_a_rerun_continues_with_the_unfinished_shards(pixels, tmp_path, kind, monkeypatch):
    images, config = records(pixels), IndexConfig(kind=kind, stride_px=4)
    whole = built(images, tmp_path / "whole", 3, FAKE, config=config)
    out, more = tmp_path / "s", {"config": config, "executor": SerialExecutor(), "encoder": Counting()}
    Counting.count = 0
    with pytest.raises(RuntimeError, match="power"):
        retrieval.build_index(failing(images, 5), out, shards=3, **more)
    with pytest.raises(ManifestError):
        retrieval.open_index(out, encoder=FAKE)
    finish, seen = shard_builder.finish_shard, []

    def killed(task):
        if len(seen) == 1:
            raise RuntimeError("the power fails again")
        seen.append(task)
        finish(task)

    monkeypatch.setattr(shard_builder, "finish_shard", killed)
    with pytest.raises(RuntimeError, match="again"):
        built(images, out, 3, **more)
    monkeypatch.undo()
    # Windows for the recall of each shard with codes are embedded, too; of the images, each one only once.
    embedded, unfinished = Counting.count, 2
    index = built(images, out, 3, **more)
    for_recall = 0 if kind == "exact" else unfinished * RECALL_QUERIES
    assert Counting.count == embedded + for_recall and embedded >= COUNT
    assert [p.name for p in shards_in(out)] == [p.name for p in shards_in(tmp_path / "whole")]
    assert {p.suffix for p in out.iterdir()} == {"", ".json"}
    for ours, theirs in zip(index.folder.vectors.vectors(), whole.folder.vectors.vectors(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert index.folder.manifest.counts == whole.folder.manifest.counts
    assert index.folder.manifest.extra == whole.folder.manifest.extra


def test_finished_shards_of_other_pixels_are_made_again(pixels, tmp_path, monkeypatch):
    images = records(pixels)
    monkeypatch.setattr(shard_builder, "_join", lambda *_: (_ for _ in ()).throw(RuntimeError("stop")))
    with pytest.raises(RuntimeError, match="stop"):
        built(images, tmp_path / "s", 3, FAKE, config=IndexConfig(kind="fast", stride_px=4))
    monkeypatch.undo()
    changed = [*images[:-1], replace(images[-1], pixels=images[-1].pixels[::-1].copy())]
    config = IndexConfig(kind="fast", stride_px=4)
    again = built(changed, tmp_path / "s", 3, FAKE, config=config)
    fresh = built(changed, tmp_path / "fresh", 3, FAKE, config=config)
    for ours, theirs in zip(again.folder.vectors.vectors(), fresh.folder.vectors.vectors(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert again.folder.manifest.extra == fresh.folder.manifest.extra


def test_the_former_index_stays_until_the_new_one_is_whole(pixels, tmp_path):
    images, out = records(pixels), tmp_path / "s"
    former = built(images, out, 2, FAKE)
    names = [p.name for p in shards_in(out)]
    with pytest.raises(OutputExistsError, match="--overwrite"):
        built(images, out, 2, FAKE)
    with pytest.raises(RuntimeError):
        retrieval.build_index(failing(images, 5), out, encoder=FAKE, shards=2, overwrite=True)
    assert len(retrieval.open_index(out, encoder=FAKE).folder.images) == COUNT
    new = built(images[1:], out, 2, FAKE, overwrite=True)
    assert len(new.folder.images) == COUNT - 1
    built(images[1:], out, 2, FAKE, overwrite=True)
    assert len(shards_in(out)) == 2 and not {p.name for p in shards_in(out)} & set(names)
    with pytest.raises((IndexMismatchError, ManifestError)):
        former.folder.scaled(images[0].image_id)
        former.folder.scaled(images[-1].image_id)


def test_other_outputs_are_kept(pixels, tmp_path):
    images = records(pixels[:2])
    built(images, tmp_path / "one", None, FAKE)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for name in ("one", "mine"):
        with pytest.raises(OutputExistsError, match="is not an index in shards"):
            built(images, tmp_path / name, 2, FAKE, overwrite=True)
    built(images, tmp_path / "s", 2, FAKE)
    with pytest.raises(OutputExistsError):
        built(images, tmp_path / "s", None, FAKE, overwrite=True)


def test_two_writers_exclude_each_other(pixels, tmp_path):
    images, out = records(pixels[:3]), tmp_path / "s"

    def begin():
        with pytest.raises(UnfinishedOutputError, match="another process"):
            built(images, out, 2, FAKE)
        yield from images

    retrieval.build_index(ImageSource("made by a test", 3, begin), out, encoder=FAKE, shards=2)
    assert len(retrieval.open_index(out, encoder=FAKE).folder.images) == 3


# ---------------------------------------------------------------- what is refused


def test_images_without_windows_may_fill_a_shard(pixels, tmp_path):
    flat = [image_of(np.full((80, 80, 4), 700, np.uint16), 20 + i) for i in range(3)]
    with pytest.warns(NoWindowsWarning, match="3 of 6 images"):
        index = built([*records(pixels[:3]), *flat], tmp_path / "s", 2, FAKE)
    assert sorted(index.folder.without_windows) == [20, 21, 22]
    assert len(index.folder.images) == 6
    with pytest.raises(NoWindowsError, match="none of the 3 images"):
        built(flat, tmp_path / "none", 2, FAKE)
    assert not list((tmp_path / "none").iterdir())


def test_settings_that_do_not_fit(pixels, tmp_path):
    images = records(pixels[:2])
    for shards in (0, 3):
        with pytest.raises(ConfigError, match="Expected 1 to 2"):
            built(images, tmp_path / "s", shards, FAKE)
    assert not (tmp_path / "s").exists()
    twice = [images[0], images[1], replace(images[0], path="again.tif")]
    with pytest.raises(DuplicateIdError, match=r"comes twice \(again in again.tif\)"):
        built(twice, tmp_path / "s", 3, FAKE)


def test_folders_that_do_not_fit_together(pixels, tmp_path):
    images = records(pixels[:4])
    built(images[:2], tmp_path / "a", None, FAKE)
    built(images[2:], tmp_path / "b", 2, FAKE)
    joined = retrieval.open_index([tmp_path / "a", tmp_path / "b"], encoder=FAKE)
    assert len(joined.folder.images) == 4 and joined.folder.path == tmp_path / "a"
    assert joined.folder.manifest.counts["images"] == 4
    built(images[1:], tmp_path / "same-id", None, FAKE)
    built(images[2:], tmp_path / "stride", None, FAKE, config=IndexConfig(stride_px=4))
    built(images[2:], tmp_path / "encoder")
    for other, error, text in (
        ("same-id", DuplicateIdError, "image id 5 is in"),
        ("stride", IndexMismatchError, "a stride of 4 px"),
        ("encoder", IndexMismatchError, "was made with encoder"),
        ("nothing", MissingInputError, "no such folder"),
    ):
        with pytest.raises(error, match=text):
            open_folder([tmp_path / "a", tmp_path / other], encoder=FAKE)


def test_damage_of_any_byte_is_noticed(pixels, tmp_path):
    images = records(pixels[:2])
    built(images, tmp_path / "s", 2, FAKE)
    joined = tmp_path / "s" / "shards.json"
    good = joined.read_bytes()
    for place in range(0, len(good) - 1, 37):
        joined.write_bytes(good[:place])
        with pytest.raises(ManifestError):
            open_folder(tmp_path / "s", encoder=FAKE)
        joined.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(ManifestError):
            open_folder(tmp_path / "s", encoder=FAKE)
    newer = json.loads(good) | {"version": 99}
    joined.write_text(json.dumps(newer))
    with pytest.raises(FormatVersionError, match="format version 99"):
        open_folder(tmp_path / "s", encoder=FAKE)
    joined.write_bytes(good)
    first, second = shards_in(tmp_path / "s")
    manifest = second / "manifest.json"
    manifest.write_bytes((first / "manifest.json").read_bytes())
    with pytest.raises(ManifestError):
        open_folder(tmp_path / "s", encoder=FAKE)
    shutil.rmtree(second)
    with pytest.raises(ManifestError, match="is missing"):
        open_folder(tmp_path / "s", encoder=FAKE)


def test_opened_shards_travel_as_their_paths(pixels, tmp_path):
    index = built(records(pixels[:4]), tmp_path / "s", 2)
    packed = pickle.dumps(index.folder)
    assert len(packed) < 2000
    other = pickle.loads(packed)
    assert other.images == index.folder.images and pickle.loads(packed) is other
    new = built(records(pixels[:3]), tmp_path / "s", 2, overwrite=True)
    assert len(pickle.loads(pickle.dumps(new.folder)).images) == 3
    with pytest.raises(IndexMismatchError, match="was changed"):
        pickle.loads(packed)


# ---------------------------------------------------------------- parts of a source, and the command line


def test_parts_of_a_source_are_its_images(pixels, tmp_path):
    from tfrecords.write import write_images

    stack = np.stack(pixels)
    np.save(tmp_path / "x.npy", stack)
    (tmp_path / "records").mkdir()
    for file, start in ((0, 0), (1, 4)):
        some = [image_of(p, 3 * i) for i, p in enumerate(stack)][start : start + 4]
        write_images(some, tmp_path / "records" / f"{file}.tfrecords")
    sources = [read_images(s) for s in (stack, tmp_path / "x.npy", tmp_path / "records")]
    for source in (*sources, source_of(records(pixels))):
        every = list(source)
        for start, stop in ((0, COUNT), (2, 5), (5, COUNT), (3, 3)):
            part = source.part(start, stop)
            assert len(part) == stop - start
            part = pickle.loads(pickle.dumps(part)) if source.portable else part
            for ours, theirs in zip(part, every[start:stop], strict=True):
                assert ours.image_id == theirs.image_id and ours.path == theirs.path
                np.testing.assert_array_equal(ours.pixels, theirs.pixels)


def test_the_command_line_joins_shards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_ground(tmp_path)
    done = run("index", "images.npy", "--out", "s", "--shards", 2, "--json", "--quiet")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["shards"] == 2
    for name in ("index", "s"):
        done = run("query", "patches.npy", "--index", name, "--out", f"{name}.csv", "--quiet")
        assert done.exit_code == 0, done.output
    assert Path("index.csv").read_bytes() == Path("s.csv").read_bytes()
    for number, one in enumerate(np.load("images.npy")):
        retrieval.build_index(source_of([image_of(one, number)]), f"of-{number}")
    done = run("query", "patches.npy", "-i", "of-1", "-i", "of-0", "--out", "list.csv", "--quiet")
    assert done.exit_code == 0, done.output
    assert Path("list.csv").read_bytes() == Path("index.csv").read_bytes()
    done = run("query", "patches.npy", "-i", "of-1", "-i", "index", "--out", "list.csv", "--overwrite")
    assert done.exit_code == 1 and "image id 1 is in" in " ".join(lines(done.stderr))
    done = run("index", "images.npy", "--out", "s", "--add", "--quiet", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["present"] == 2


def test_the_golden_folder_of_shards_opens(tmp_path):
    with tarfile.open(GOLDEN / "shards-v1.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    folder = tmp_path / "shards-v1"
    assert sorted(open_folder(folder).images) == [i.image_id for i in images()]
    expected = json.loads((GOLDEN / "index-v2-answers.json").read_text())
    with pytest.warns(UncalibratedWarning):  # its encoder is none of ours
        found = answers(folder)
    assert [row["image_id"] for row in found] == [row["image_id"] for row in expected]
    for ours, theirs in zip(found, expected, strict=True):
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, abs=1e-3), name
    assert all(isinstance(s, IndexFolder) for s in open_folder(folder).shards)
