"""The index folder: contents, interrupted runs, damaged files."""

import csv
import json
import pickle
import shutil
from dataclasses import replace

import faiss
import numpy as np
import pytest
from engine import digital, image_of, learned_encoder, small_encoder, texture
from hypothesis import given
from hypothesis import strategies as st

from retrieval.config import IndexConfig
from retrieval.errors import IndexMismatchError, NoWindowsError
from retrieval.index.builder import (
    RECALL_QUERIES,
    ImageIndexer,
    write_index,
)
from retrieval.index.faiss_index import VectorIndex
from retrieval.index.folder import IndexFolder, from_codes, read_index_manifest, to_codes
from retrieval.index.image_parts import EmbedTask, embed_task, load_vectors
from retrieval.kernels.executors import SerialExecutor
from retrieval.models.encoder import FakeEncoder
from retrieval.types import unpack_ids
from tfrecords.artifacts import MANIFEST, read_manifest, writing_folder
from tfrecords.errors import (
    DuplicateIdError,
    FormatVersionError,
    ManifestError,
    MissingInputError,
    OutputExistsError,
    RetrieveError,
    UnfinishedOutputError,
)
from tfrecords.schema import Image

FAKE = FakeEncoder()


def scenes(count=4, size=(96, 80), bands=4):
    return [image_of(digital(texture(*size, bands=bands, seed=s)), image_id=10 + 3 * s) for s in range(count)]


def write(images, out, encoder=FAKE, config=None, **more):
    write_index(images, out, encoder, config or IndexConfig(stride_px=16), source="test", **more)
    return out


def answers(path, encoder=FAKE):
    """Ids and similarities of the five nearest windows of each indexed window."""
    store = IndexFolder(path, encoder=encoder)
    _, vectors = store.vectors.vectors()
    return store.vectors.search(vectors, 5)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """An index of three images with an encoder in it; copy it to damage it."""
    return write(scenes(3), tmp_path_factory.mktemp("store") / "index", small_encoder())


# ---------------------------------------------------------------- codes


@given(st.integers(0, 10**6))
def test_codes_are_exact_for_digital_numbers(seed):
    rng = np.random.default_rng(seed)
    dn = rng.integers(0, 4096, (5, 6, 3)).astype(np.uint16)
    scaled = image_of(dn).scaled()
    codes = to_codes(scaled)
    nodata = (dn == 0).all(-1)
    assert (codes[~nodata] == dn[~nodata]).all() and (codes[nodata] == 65535).all()
    np.testing.assert_allclose(from_codes(codes), scaled, atol=1e-6)


def test_codes_of_bright_ground_are_exact():
    dn = np.arange(65535).astype(np.uint16).reshape(1, -1, 1)
    scaled = image_of(dn).scaled()
    codes = to_codes(scaled)
    assert codes[0, 0, 0] == 65535 and (codes[0, 1:] == dn[0, 1:]).all()
    np.testing.assert_allclose(from_codes(codes), scaled, atol=1e-6)


def test_codes_round_scaled_values_to_half_a_digital_number():
    scaled = np.random.default_rng(0).uniform(-1, 1, (50, 50, 4)).astype(np.float32)
    scaled[3, 4] = np.nan
    scaled[5, 6, 0] = np.nan  # one band only
    scaled[0, 0], scaled[0, 1] = -1, 1
    back = from_codes(to_codes(scaled))
    np.testing.assert_array_equal(np.isnan(back), np.isnan(scaled))
    assert np.nanmax(np.abs(back - scaled)) <= 0.51 / 2047.5


# ---------------------------------------------------------------- what is in the folder


def test_images_are_stored_with_all_their_fields(tmp_path):
    pixels = digital(texture(90, 100, bands=2))
    pixels[:20, :30] = 0
    transform = (np.float64(10.0), 0.0, np.float64(399960.125), 0.0, -10.0, 5e6 + 1 / 3)
    one = image_of(
        pixels,
        image_id=2**31 - 1,
        bands=("Red edge 1", "B8A, 865 nm/%"),  # descriptions of GeoTIFFs are free text
        path='säure, "a b"/x\ny.tif',
        crs='PROJCS["WGS 84 / UTM zone 31N",\n GEOGCS["WGS 84"]]',
        transform=transform,
        date="2019-07-01",
    )
    other = image_of(digital(texture(64, 64, bands=1)), image_id=0)
    store = IndexFolder(write([one, other], tmp_path / "i"), encoder=FAKE)
    row, plain = store.images[2**31 - 1], store.images[0]
    assert (row.path, row.crs, row.transform, row.date) == (one.path, one.crs, transform, "2019-07-01")
    assert store.bands(row.image_id) == row.bands == one.bands and (row.width, row.height) == (100, 90)
    assert (plain.crs, plain.transform, plain.date, plain.path) == (None, None, None, "")
    np.testing.assert_allclose(store.scaled(row.image_id), one.scaled(), atol=1e-6)
    assert row.windows + plain.windows == len(store.vectors) == store.manifest.counts["windows"]
    assert list(store.images) == [0, 2**31 - 1]


def test_table_of_plain_images(written):
    with (written / "images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["image_id"] for r in rows] == ["10", "13", "16"]
    assert rows[0] | {"windows": ""} == dict(
        image_id="10",
        path="",
        width="80",
        height="96",
        bands="B04 B03 B02 B08",
        crs="",
        transform="",
        date="",
        windows="",
        source="",
        datetime="",
        baseline="",
        cloud_cover="",
        orientation="1",
        clipped="False",
    )


def test_folder_is_self_contained(written):
    store = IndexFolder(written)
    assert (store.encoder.name, store.encoder.fingerprint) == ("small", small_encoder().fingerprint)
    names = {p.relative_to(written).as_posix() for p in written.rglob("*") if p.is_file()}
    pixels = {f"pixels/{i}.npy" for i in (10, 13, 16)}
    encoder = {"encoder.keras", "encoder.calibration.json", "encoder.chips.calibration.json"}
    assert names == {MANIFEST, "images.csv", "vectors.faiss"} | encoder | pixels
    assert set(store.manifest.files) == names - {MANIFEST}
    assert store.manifest.config["index"]["stride_px"] == 16 and store.manifest.extra["kind"] == "exact"
    assert faiss.read_index(str(written / "vectors.faiss")).ntotal == store.manifest.counts["windows"]


def test_ids_are_image_row_and_column(written):
    store = IndexFolder(written)
    image, x, y = unpack_ids(store.vectors.vectors()[0])
    places = set(zip(image.tolist(), x.tolist(), y.tolist(), strict=True))
    assert places == {(i, x, y) for i in (10, 13, 16) for x in (0, 16) for y in (0, 16, 32)}


def test_order_of_images_does_not_change_the_index(tmp_path, written):
    turned = write(scenes(3)[::-1], tmp_path / "turned", small_encoder())
    for name in ("vectors.faiss", "images.csv"):
        assert (turned / name).read_bytes() == (written / name).read_bytes()


def test_nodata_is_not_indexed(tmp_path):
    pixels = digital(texture(64, 200))
    pixels[:, 60:] = 0
    store = IndexFolder(
        write([image_of(pixels)], tmp_path / "i", config=IndexConfig(stride_px=8)), encoder=FAKE
    )
    assert unpack_ids(store.vectors.vectors()[0])[1].max() == 24  # 36 columns of ground: more than half


@pytest.mark.parametrize("pixels", [np.zeros((70, 80, 4), np.uint16), np.full((64, 64, 1), 900, np.uint16)])
@pytest.mark.parametrize("kind", ["exact", "ivf", "auto"])
def test_an_index_without_windows_is_refused(tmp_path, pixels, kind):
    with pytest.raises(NoWindowsError, match="no window to index"):
        write([image_of(pixels)], tmp_path / "i", config=IndexConfig(kind=kind))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["fast", "ivf"])
def test_fast_and_ivf_open_with_their_settings(tmp_path, kind):
    config = IndexConfig(stride_px=4, kind=kind, nprobe=3, rerank_k=77)
    images = [image_of(digital(texture(160, 170, seed=s)), image_id=s) for s in range(2)]
    store = IndexFolder(write(images, tmp_path / "i", config=config), encoder=FAKE)
    assert store.vectors.kind == kind == store.manifest.extra["kind"]
    assert (store.vectors.nprobe, store.vectors.rerank_k) == (3 if kind == "ivf" else 0, 77)


# ---------------------------------------------------------------- overwrite, stop, go on


def test_doubled_image_ids_are_refused(tmp_path):
    with pytest.raises(DuplicateIdError, match="image id 10 comes twice"):
        write([*scenes(2), scenes(1)[0]], tmp_path / "i")
    assert not (tmp_path / "i").exists()


def test_finished_index_is_kept_without_overwrite(tmp_path):
    path = write(scenes(2), tmp_path / "i")
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    with pytest.raises(OutputExistsError, match="--overwrite"):
        write(scenes(3), path)
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == before
    write(scenes(3), path, overwrite=True)
    assert len(IndexFolder(path, encoder=FAKE).images) == 3


def stopping(images, after, error=KeyboardInterrupt):
    """Images, until somebody stops it."""
    for number, image in enumerate(images):
        if number == after:
            raise error
        yield image


class Counting(FakeEncoder):
    """Counts what it is given."""

    calls = 0

    def embed(self, batch):
        Counting.calls += 1
        return super().embed(batch)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_interrupted_build_resumes_and_gives_the_same(tmp_path, after, monkeypatch):
    monkeypatch.setattr(Counting, "calls", 0)
    whole, out = write(scenes(), tmp_path / "whole"), tmp_path / "i"
    with pytest.raises(KeyboardInterrupt):
        write(stopping(scenes(), after), out)
    assert not out.exists()
    write(scenes(), out, Counting())
    assert Counting.calls == 4 - after  # what was done is not done again
    assert not out.with_name("i.partial").exists()
    for name in ("vectors.faiss", "images.csv", *(f"pixels/{i}.npy" for i in (10, 13, 16, 19))):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    for a, b in zip(answers(out), answers(whole), strict=True):
        np.testing.assert_array_equal(a, b)


def test_interrupted_writing_of_vectors_resumes(tmp_path, monkeypatch):
    whole, out = write(scenes(2), tmp_path / "whole"), tmp_path / "i"
    with monkeypatch.context() as patched:
        patched.setattr(VectorIndex, "save", lambda self, path: path.write_bytes(b"half") and 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write(scenes(2), out)
    write(scenes(2), out)
    assert (out / "vectors.faiss").read_bytes() == (whole / "vectors.faiss").read_bytes()


def test_former_index_stays_if_the_new_one_is_interrupted(tmp_path):
    path = write(scenes(2), tmp_path / "i")
    before = answers(path)
    with pytest.raises(KeyboardInterrupt):
        write(stopping(scenes(), 2), path, overwrite=True)
    for a, b in zip(answers(path), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_changed_pixels_are_embedded_again(tmp_path):
    first, others = scenes(4), [image_of(i.pixels[::-1], image_id=i.image_id) for i in scenes(4)]
    with pytest.raises(KeyboardInterrupt):
        write(stopping(first, 3), tmp_path / "i")
    write(others, tmp_path / "i")
    write(others, tmp_path / "fresh")
    assert (tmp_path / "i/vectors.faiss").read_bytes() == (tmp_path / "fresh/vectors.faiss").read_bytes()


@pytest.mark.parametrize(
    "other", [{"config": IndexConfig(stride_px=8)}, {"encoder": FakeEncoder(2)}], ids=["stride", "encoder"]
)
def test_unfinished_index_with_other_settings_is_refused_with_the_reason(tmp_path, other):
    with pytest.raises(KeyboardInterrupt):
        write(stopping(scenes(), 2), tmp_path / "i")
    with pytest.raises(UnfinishedOutputError, match=next(iter(other)).replace("config", "index")):
        write(scenes(), tmp_path / "i", **other)
    write(scenes(), tmp_path / "i", overwrite=True, **other)
    assert len(IndexFolder(tmp_path / "i", encoder=other.get("encoder", FAKE)).images) == 4


def test_damaged_part_is_made_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(stopping(scenes(), 2), tmp_path / "i")
    for part in (tmp_path / "i.partial").rglob("*.np?"):
        data = bytearray(part.read_bytes())
        data[-1] ^= 1
        part.write_bytes(bytes(data))
    write(scenes(), tmp_path / "i")
    write(scenes(), tmp_path / "whole")
    assert (tmp_path / "i/vectors.faiss").read_bytes() == (tmp_path / "whole/vectors.faiss").read_bytes()


def test_unfinished_vectors_of_an_earlier_release_are_made_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(stopping(scenes(), 2), tmp_path / "i")
    partial = tmp_path / "i.partial"
    for part in list((partial / "work").iterdir()):
        part.rename(part.with_suffix(".npz"))
    journal = (partial / "journal.jsonl").read_text().splitlines()
    journal = [line.replace(".npy", ".npz") if "work/" in line else line for line in journal]
    (partial / "journal.jsonl").write_text("\n".join(journal) + "\n")
    write(scenes(), tmp_path / "i")
    write(scenes(), tmp_path / "whole")
    assert (tmp_path / "i/vectors.faiss").read_bytes() == (tmp_path / "whole/vectors.faiss").read_bytes()
    assert not (tmp_path / "i/work").exists()


def many(count=4):
    return [image_of(digital(texture(96, 170, seed=s)), image_id=10 + 3 * s) for s in range(count)]


@pytest.mark.parametrize("kind", ["fast", "ivf"])
def test_vectors_wait_in_half_precision_unless_an_exact_index_needs_them(tmp_path, kind):
    config, up, down = IndexConfig(stride_px=4, kind=kind), tmp_path / "up", tmp_path / "down"
    for out, images in ((up, many()), (down, many()[::-1])):
        kinds = []

        def progress(stage, done, total, out=out, images=images, kinds=kinds):
            if stage == "building the vector index":
                parts = (out.with_name(f"{out.name}.partial") / f"work/{i.image_id}.npy" for i in images)
                kinds.extend(str(load_vectors(part)[1].dtype) for part in parts)

        write(images, out, config=config, progress=progress)
        assert kinds == ["float32", "float32", "float16", "float16"]
    # The result does not depend on which vectors waited in single precision.
    assert (up / "vectors.faiss").read_bytes() == (down / "vectors.faiss").read_bytes()


def test_half_precision_vectors_are_made_again_for_an_exact_index(tmp_path, monkeypatch):
    config = IndexConfig(stride_px=4, exact_below=700)
    with writing_folder(tmp_path / "i", kind="index", config={}) as folder:

        def made(device):
            monkeypatch.setattr(Counting, "calls", 0)
            list(ImageIndexer(folder, Counting(), config, device).add(many()))
            waiting = [load_vectors(folder.path / f"work/{i.image_id}.npy")[1].dtype for i in many()]
            return [str(d) for d in waiting], Counting.calls

        one = made("cpu")[1] // 4  # calls for an image
        assert made("cpu") == (["float32", "float32", "float16", "float16"], 0)
        assert made("gpu") == (["float32"] * 4, 2 * one)
        assert made("cpu") == (["float32"] * 4, 0)  # more than is needed is as good


def test_recall_is_measured_against_exact_search(tmp_path):
    config = IndexConfig(stride_px=4, kind="ivf", nprobe=4096, rerank_k=2000)
    extra = IndexFolder(write(many(), tmp_path / "i", config=config), encoder=FAKE).manifest.extra
    # All cells, and all ranked anew: but for what half precision turns round among windows this like.
    assert min(extra["recall"]["recall_at_1"], extra["recall"]["recall_at_20"]) > 0.98
    assert 0 < extra["recall"]["queries"] <= RECALL_QUERIES


def test_manifest_with_the_names_of_0_1_0_is_migrated(tmp_path):
    out = write(many(), tmp_path / "i", config=IndexConfig(stride_px=4, kind="fast"))
    manifest = read_manifest(out, "index")
    recall = manifest.extra["recall"]
    old = {"of_1": recall["recall_at_1"], "of_20": recall["recall_at_20"]}
    old |= {"queries": recall["queries"], "how": recall["source"]}
    config = manifest.config | {"index": manifest.config["index"] | {"fast_again": 77, "ivf_probes": 3}}
    for name in ("rerank_k", "nprobe"):
        del config["index"][name]
    former = replace(manifest, extra=manifest.extra | {"recall": old}, config=config)
    (out / MANIFEST).write_text(former.text())
    store = IndexFolder(out, encoder=FAKE)
    assert store.manifest.extra["recall"] == recall == read_index_manifest(out).extra["recall"]
    assert (store.config.rerank_k, store.config.nprobe) == (77, 3)


def copied(record):
    """The record as another process gets it."""
    return pickle.loads(pickle.dumps(record))


class PicklingExecutor:
    """Runs tasks as another process would: everything passes through pickle."""

    in_process = False

    def map(self, function, tasks):
        for task in tasks:
            yield copied(copied(function)(copied(task)))


def test_executors_give_the_same_index(tmp_path):
    paths = [write(scenes(3), tmp_path / "threads"), tmp_path / "serial", tmp_path / "pickled"]
    for path, executor in zip(paths[1:], (SerialExecutor(), PicklingExecutor()), strict=True):
        write(scenes(3), path, executor=executor)
    for name in ("vectors.faiss", "images.csv", "pixels/13.npy"):
        assert len({(path / name).read_bytes() for path in paths}) == 1


def test_unit_of_work_can_be_pickled_and_gives_the_same(tmp_path):
    image = scenes(1)[0]
    task = EmbedTask(image, FAKE, IndexConfig(stride_px=16))
    here, elsewhere = (
        embed_task(task),
        pickle.loads(pickle.dumps(embed_task(pickle.loads(pickle.dumps(task))))),
    )
    assert here.row == elsewhere.row and here.row.windows == len(here.vectors.xy) == 6
    np.testing.assert_array_equal(here.codes, elsewhere.codes)
    np.testing.assert_array_equal(here.vectors.vectors, elsewhere.vectors.vectors)
    np.save(tmp_path / "same.npy", here.codes)
    repeated = embed_task(replace(task, finished_pixels=tmp_path / "same.npy"))
    assert repeated.vectors is None and repeated.row.windows == 0


# ---------------------------------------------------------------- opening what is not right


def test_another_encoder_is_refused(written):
    with pytest.raises(IndexMismatchError, match=r"made with encoder 'small'.*not with 'learned'"):
        IndexFolder(written, encoder=learned_encoder())
    with pytest.raises(IndexMismatchError, match="build the index again"):
        IndexFolder(written, encoder=FAKE)


def test_encoder_must_be_given_if_the_folder_lacks_it(tmp_path):
    path = write(scenes(1), tmp_path / "i")
    with pytest.raises(IndexMismatchError, match="'fake', which it does not hold"):
        IndexFolder(path)
    with pytest.raises(IndexMismatchError):
        IndexFolder(path, encoder=FakeEncoder(2))


def test_missing_folder_and_folder_of_another_kind(tmp_path):
    with pytest.raises(MissingInputError, match="no such folder"):
        IndexFolder(tmp_path / "none")
    with pytest.raises(ManifestError, match="no manifest"):
        IndexFolder(tmp_path)


def test_unfinished_index_does_not_open(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(stopping(scenes(), 2), tmp_path / "i")
    with pytest.raises(MissingInputError, match="unfinished"):
        IndexFolder(tmp_path / "i", encoder=FAKE)
    with pytest.raises(ManifestError):
        IndexFolder(tmp_path / "i.partial", encoder=FAKE)


def test_error_of_another_format_version_names_the_fix(written, tmp_path):
    path = shutil.copytree(written, tmp_path / "i")
    page = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps(page | {"version": 99}))
    with pytest.raises(FormatVersionError, match=r"version 99.*make the folder again"):
        IndexFolder(path)


def everything(path, damaged):
    """Open an index and read all of it; its encoder too, where damage of a file may concern it."""
    store = IndexFolder(path, encoder=None if damaged in (MANIFEST, "encoder.keras") else small_encoder())
    return store.vectors.vectors(), [store.scaled(i) for i in store.images], store.images


FILES = [MANIFEST, "encoder.keras", "images.csv", "vectors.faiss", "pixels/13.npy"]


@pytest.mark.parametrize("name", FILES)
def test_flipped_bytes_give_a_named_error_or_the_same_result(written, tmp_path, name, rng):
    path = shutil.copytree(written, tmp_path / "i")
    whole = (path / name).read_bytes()
    (ids, vectors), pixels, images = everything(path, name)
    for at in [0, len(whole) - 1, *rng.integers(0, len(whole), 10).tolist()]:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(rng.integers(0, 8))
        (path / name).write_bytes(bytes(damaged))
        try:
            (got_ids, got_vectors), got_pixels, got_images = everything(path, name)
        except RetrieveError as error:
            assert name.rsplit("/", 1)[-1] in str(error) or str(path) in str(error)
        else:
            assert got_images == images
            np.testing.assert_array_equal(got_ids, ids)
            np.testing.assert_array_equal(got_vectors, vectors)
            np.testing.assert_array_equal(got_pixels, pixels)


@pytest.mark.parametrize("name", FILES)
def test_cut_and_missing_files_give_a_named_error(written, tmp_path, name, rng):
    path = shutil.copytree(written, tmp_path / "i")
    whole = (path / name).read_bytes()
    for length in [0, 1, len(whole) // 2, len(whole) - 1, *rng.integers(0, len(whole), 4).tolist()]:
        (path / name).write_bytes(whole[:length])
        if (name, length) == (MANIFEST, len(whole) - 1):
            continue  # but for its last line feed it is whole
        with pytest.raises(RetrieveError):
            everything(path, name)
    (path / name).unlink()
    with pytest.raises(ManifestError):
        everything(path, name)


def test_progress_is_called_for_each_image(tmp_path):
    calls = []
    write(scenes(2), tmp_path / "i", progress=lambda *a: calls.append(a))
    assert calls == [
        ("indexing images", 1, 2),
        ("indexing images", 2, 2),
        ("building the vector index", 0, None),
    ]


def test_progress_of_an_unknown_number_of_images(tmp_path):
    calls = []
    write(iter(scenes(2)), tmp_path / "i", progress=lambda *a: calls.append(a))
    assert calls[0] == ("indexing images", 1, None)


def test_scaled_and_byte_images_keep_their_pixels(tmp_path):
    scaled = texture(70, 70, bands=3)
    images = [
        Image(0, scaled, "scaled", ("B04", "B03", "B02"), None),
        Image(1, np.rint((scaled + 1) * 127.5).astype(np.uint8), "byte", ("B04", "B03", "B02"), None),
    ]
    store = IndexFolder(write(images, tmp_path / "i"), encoder=FAKE)
    for image in images:
        np.testing.assert_allclose(store.scaled(image.image_id), image.scaled(), atol=0.51 / 2047.5)
