"""The spine, on arrays: what was cut from an image comes back to its pixel, whatever the image is like."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from engine import digital, image_of, learned_encoder, located, patches_of, small_encoder, texture
from golden import make_index

import retrieval
from retrieval.config import IndexConfig, RefineConfig, SearchConfig
from retrieval.errors import BandsWarning, DependencyError, UncalibratedWarning
from retrieval.index.device import resolve_device
from retrieval.kernels.executors import SerialExecutor, ThreadExecutor
from retrieval.matching.exhaustive import search_uncertain
from retrieval.matching.pyramid import refine_full_resolution
from retrieval.matching.rounds import search_in_rounds
from retrieval.matching.session import Session
from retrieval.models.encoder import FakeEncoder
from retrieval.models.registry import TRAINING_FREE
from retrieval.pipeline import build_index, evaluate, locate, open_index
from retrieval.results.matches import Matches
from tfrecords.errors import MissingInputError, OutputExistsError
from tfrecords.read import ImageSource
from tfrecords.schema import Patches

GOLDEN = Path(__file__).parent / "golden"


def source(*images):
    return ImageSource("made by a test", len(images), lambda: iter(images))


def built(tmp_path, *images, encoder=TRAINING_FREE, **knobs):
    return build_index(source(*images), tmp_path / "index", encoder=encoder, config=IndexConfig(**knobs))


def places_of(frame):
    return frame[["image_id", "x", "y"]].to_numpy().tolist()


# ---------------------------------------------------------------- self-query


def corners_and_between(height, width, rng):
    """Places on and off the grid: corners, edges, and any."""
    right, below = width - 64, height - 64
    fixed = [(0, 0), (right, 0), (0, below), (right, below), (right, below // 2), (right // 2, below)]
    return fixed + [(int(rng.integers(right + 1)), int(rng.integers(below + 1))) for _ in range(6)]


@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 71), (64, 131), (150, 103), (200, 190)])
@pytest.mark.parametrize("encoder", [TRAINING_FREE, "learned"])
def test_patches_come_back_to_their_pixel(tmp_path, rng, height, width, encoder):
    images = [digital(texture(height, width, seed=s)) for s in (1, 2)]
    used = learned_encoder() if encoder == "learned" else encoder
    index = built(tmp_path, image_of(images[0], 4), image_of(images[1], 7), encoder=used)
    xy = corners_and_between(height, width, rng)
    for image_id, pixels in zip((4, 7), images, strict=True):
        frame = index.locate(patches_of(pixels, xy))
        assert places_of(frame) == [[image_id, x, y] for x, y in xy]
        assert (frame.ncc > 0.999).all() and (frame.confidence > 0.9).all()
        assert np.abs(frame[["dx", "dy"]].to_numpy()).max() < 0.1


@pytest.mark.parametrize("stride", [4, 16, 32, 64])
def test_refinement_reaches_from_window_to_window(tmp_path, rng, stride):
    """A wide stride finds less, but what it finds is at its pixel; near a window nothing is lost."""
    pixels = digital(texture(200, 216, power=2.0))
    index = built(tmp_path, image_of(pixels), stride_px=stride)
    far = [(stride // 2, stride // 2), (stride + stride // 2 - 1, stride // 2 + 1)]
    near = [(stride + 3, 2), (2, stride - 3), (stride - 1, 2 * stride + 1)]
    frame = index.locate(patches_of(pixels, near + far))
    assert places_of(frame)[:3] == [[0, x, y] for x, y in near]
    assert places_of(frame) == [[0, x, y] for x, y in near + far]
    assert (frame.ncc > 0.999).all()


@pytest.mark.parametrize("bands", [1, 3, 4])
def test_any_bands(tmp_path, bands):
    pixels = digital(texture(120, 130, bands=bands))
    frame = built(tmp_path, image_of(pixels)).locate(patches_of(pixels, [(13, 40), (61, 3)]))
    assert places_of(frame) == [[0, 13, 40], [0, 61, 3]] and (frame.ncc > 0.999).all()


def test_another_light_another_contrast(tmp_path):
    """Gain, offset, and a band turned over: edges stay."""
    pixels = digital(texture(150, 150))
    index = built(tmp_path, image_of(pixels))
    changed = pixels.astype(np.float64) * 0.6 + 500
    changed[..., 1] = 4000 - changed[..., 1]
    frame = index.locate(patches_of(np.rint(changed).astype(np.uint16), [(13, 40), (61, 3), (86, 86)]))
    assert places_of(frame) == [[0, 13, 40], [0, 61, 3], [0, 86, 86]] and (frame.ncc > 0.97).all()


def test_arrays_of_every_units_from_python(tmp_path):
    """The README's call: arrays in, a pandas frame out."""
    scaled = np.stack([texture(90, 100, seed=s) for s in (1, 2)])
    index = retrieval.build_index(scaled, tmp_path / "a", encoder=small_encoder())
    frame = retrieval.open_index(tmp_path / "a").locate(scaled[1:, 9:73, 22:86])
    assert places_of(frame) == [[1, 22, 9]]
    in_bytes = np.rint((scaled[:1, 20:84, 5:69] + 1) * 127.5).astype(np.uint8)
    assert places_of(index.locate(in_bytes)) == [[0, 5, 20]]
    reflectance = ((scaled[:1, 20:84, 5:69] + 1) * 0.20475).astype(np.float32)
    assert places_of(index.locate(reflectance, units="reflectance")) == [[0, 5, 20]]
    columns = "patch_id image_id x y dx dy confidence similarity ncc longitude latitude"
    assert list(frame.columns) == columns.split()


# ---------------------------------------------------------------- flat, empty, nodata


def test_flat_and_empty_patches_have_a_row_and_no_confidence(tmp_path):
    pixels = digital(texture(100, 100))
    index = built(tmp_path, image_of(pixels, 3), image_of(pixels[::-1], 2))
    flat, nodata = np.full((64, 64, 4), 900, np.uint16), np.zeros((64, 64, 4), np.uint16)
    half = np.where(np.arange(64)[None, :, None] < 32, flat, nodata)
    asked = Patches(
        np.arange(4),
        np.stack([flat, nodata, half, pixels[5:69, 6:70]]),
        "dn",
        ("B04", "B03", "B02", "B08"),
        0,
    )
    frame = index.locate(asked)
    assert len(frame) == 4 and frame.image_id.isin([2, 3]).all()
    assert (frame.confidence[:3] == 0).all() and (frame.ncc[:3] == 0).all() and frame.confidence[3] > 0.9
    assert not frame.drop(columns=["longitude", "latitude"]).isna().any().any()


def test_flat_patches_are_unsure_with_a_learned_encoder_too(tmp_path):
    index = built(tmp_path, image_of(digital(texture(100, 100))), encoder=learned_encoder())
    frame = index.locate(
        Patches(np.array([0]), np.full((1, 64, 64, 4), 900, np.uint16), "dn", ("B04", "B03", "B02", "B08"), 0)
    )
    assert frame.confidence[0] == 0 and frame.similarity[0] == 0


def test_no_patches_give_an_empty_frame(tmp_path):
    index = built(tmp_path, image_of(digital(texture(80, 80))), encoder=small_encoder())
    none = Patches(
        np.zeros(0, np.int64), np.zeros((0, 64, 64, 4), np.uint16), "dn", ("B04", "B03", "B02", "B08"), 0.0
    )
    assert len(index.locate(none)) == 0
    with pytest.raises(MissingInputError):
        index.locate(np.zeros((0, 64, 64, 4), np.uint16))


def test_nodata_in_image_and_patch(tmp_path):
    pixels = digital(texture(150, 150))
    pixels[40:70, 30:90] = 0
    index = built(tmp_path, image_of(pixels))
    clouded = pixels[60:124, 20:84].copy()
    clouded[30:, 40:] = 0
    asked = Patches(
        np.arange(2), np.stack([pixels[50:114, 61:125], clouded]), "dn", ("B04", "B03", "B02", "B08"), 0.0
    )
    frame = index.locate(asked)
    assert places_of(frame) == [[0, 61, 50], [0, 20, 60]] and (frame.ncc > 0.95).all()


# ---------------------------------------------------------------- order, blocks, ties


def test_order_of_images_and_size_of_blocks_change_no_answer(tmp_path, rng):
    pixels = {i: digital(texture(110, 120, seed=i)) for i in (3, 8, 11)}
    pixels[20] = pixels[8]  # the same picture under another id: a tie
    xy = [(int(rng.integers(56)), int(rng.integers(46))) for _ in range(4)]
    stack = np.concatenate([patches_of(p, xy).pixels for p in pixels.values()])
    asked = Patches(np.arange(16), stack, "dn", ("B04", "B03", "B02", "B08"), 0.0)
    frames = []
    for name, order in (("a", (3, 8, 11, 20)), ("b", (20, 11, 3, 8))):
        (tmp_path / name).mkdir()
        index = built(tmp_path / name, *(image_of(pixels[i], i) for i in order))
        frames.append(index.locate(asked))
    session = Session.open(index.folder, asked)
    ranked = refine_full_resolution(session, search_in_rounds(session, block=5))
    frames.append(
        Matches.of_patches(index.folder, asked, search_uncertain(session, ranked).candidates).frame()
    )
    assert places_of(frames[0]) == places_of(frames[1])
    np.testing.assert_allclose(frames[0], frames[1], atol=1e-4)  # what is compiled rounds otherwise
    assert places_of(frames[0]) == places_of(frames[2])
    assert frames[0].image_id.tolist() == [3] * 4 + [8] * 4 + [11] * 4 + [8] * 4
    assert (frames[0].confidence > 0.99).all()  # a copy supports the answer; it is no rival


def test_serial_and_threaded_runs_give_the_same_bytes(tmp_path):
    pixels = [digital(texture(150, 160, seed=s)) for s in (1, 2)]
    index = built(tmp_path, *(image_of(p, i) for i, p in enumerate(pixels)))
    queries = patches_of(pixels[1], [(3, 5), (80, 70), (41, 22), (0, 0)])
    for _ in range(4):  # the first calls run uncompiled and round otherwise
        locate(index, queries)
    serial, threaded = (
        vars(locate(index, queries, executor=executor).candidates)
        for executor in (SerialExecutor(), ThreadExecutor(3))
    )
    assert all(serial[name].tobytes() == threaded[name].tobytes() for name in serial)


def test_other_kinds_answer_as_exact_does(tmp_path):
    pixels = [digital(texture(220, 230, seed=s)) for s in (1, 2)]
    asked = patches_of(pixels[1], [(3, 5), (80, 70), (41, 22)])
    for kind in ("exact", "fast", "ivf"):
        (tmp_path / kind).mkdir()
        index = built(tmp_path / kind, *(image_of(p, i) for i, p in enumerate(pixels)), kind=kind)
        assert index.folder.vectors.kind == kind
        assert places_of(index.locate(asked)) == [[1, 3, 5], [1, 80, 70], [1, 41, 22]]


def test_more_candidates_than_places(tmp_path):
    pixels = digital(texture(100, 100))
    index = built(tmp_path, image_of(pixels), encoder=small_encoder())
    found = index.matches(
        patches_of(pixels, [(9, 9)]),
        search=SearchConfig(
            top_k=2048, max_candidates=30, nms_radius_px=1, return_k=7, confident_odds=99, exhaustive_budget=0
        ),
        refinement=RefineConfig(verify_k=2),
    )
    assert found.candidates.image_ids.shape == (1, 7) and len(found.details()) == 7
    assert places_of(found.frame()) == [[0, 9, 9]]


# ---------------------------------------------------------------- bands of patches and images differ


def test_one_index_holds_images_of_different_bands(tmp_path):
    """Compared in the bands that are shared, in whatever order."""
    pixels = [digital(texture(120, 120, seed=s)) for s in (1, 2)]
    colour = image_of(pixels[0][..., [2, 1, 0]], 0, bands=("B02", "B03", "B04"))
    index = built(tmp_path, colour, image_of(pixels[1], 1))
    for image_id in (0, 1):
        frame = index.locate(patches_of(pixels[image_id], [(13, 30), (50, 41)]))
        assert places_of(frame) == [[image_id, 13, 30], [image_id, 50, 41]]
        assert (frame.ncc > 0.999).all()


def test_bands_that_are_not_shared_are_compared_merged_and_it_is_said(tmp_path):
    ground = digital(texture(120, 120, bands=1))
    index = built(tmp_path, image_of(ground, bands=("B11",)))
    with pytest.warns(BandsWarning, match="share no band.*B11.*B08"):
        frame = index.locate(patches_of(ground // 2 + 100, [(13, 30)], bands=("B08",)))
    assert places_of(frame) == [[0, 13, 30]]


# ---------------------------------------------------------------- files


def test_from_index_to_score(tmp_path):
    pixels = np.stack([digital(texture(100, 110, seed=s)) for s in range(3)])
    xy = [(5, 9), (40, 30), (46, 0)]
    np.save(tmp_path / "images.npy", pixels)
    np.save(
        tmp_path / "patches.npy",
        np.stack([p[y : y + 64, x : x + 64] for p, (x, y) in zip(pixels, xy, strict=True)]),
    )
    told = []
    build_index(
        tmp_path / "images.npy", tmp_path / "index", encoder=TRAINING_FREE, progress=lambda *a: told.append(a)
    )
    index, out = open_index(tmp_path / "index"), tmp_path / "submission.csv"
    located(index, tmp_path / "patches.npy", out, details=tmp_path / "m.parquet")
    locate(index, tmp_path / "patches.npy", progress=lambda *a: told.append(a))
    assert out.read_text() == "Patch ID,Result\n" + "".join(
        f"{i},{i} {x} {y}\n" for i, (x, y) in enumerate(xy)
    )
    assert evaluate(out, out).sc.value == 1
    before = out.read_bytes()
    with pytest.raises(OutputExistsError):
        located(index, tmp_path / "patches.npy", out)
    assert out.read_bytes() == before
    assert {"indexing images", "embedding patches", "searching", "refining at half resolution"} <= {
        t[0] for t in told
    }


def test_an_existing_output_is_refused_before_the_work(tmp_path):
    index = built(tmp_path, image_of(digital(texture(80, 80))), encoder=small_encoder())
    (tmp_path / "m.csv").write_text("existing")
    with pytest.raises(OutputExistsError, match=r"m\.csv"):
        located(index, np.ones((1, 64, 64, 4), np.uint16), tmp_path / "s.csv", details=tmp_path / "m.csv")
    assert not (tmp_path / "s.csv").exists()


def test_an_index_of_an_encoder_that_is_no_model(tmp_path):
    pixels = digital(texture(100, 100))
    built(tmp_path, image_of(pixels), encoder=FakeEncoder())
    index = open_index(tmp_path / "index", encoder=FakeEncoder())
    with pytest.warns(UncalibratedWarning):
        frame = index.locate(patches_of(pixels, [(17, 20)]))
    assert places_of(frame) == [[0, 17, 20]]


def test_devices(tmp_path):
    pixels = digital(texture(80, 80))
    built(tmp_path, image_of(pixels), encoder=small_encoder())
    index = open_index(tmp_path / "index", device="cpu")
    assert places_of(index.locate(patches_of(pixels, [(3, 4)]))) == [[0, 3, 4]]
    if resolve_device("auto") == "cpu":
        with pytest.raises(DependencyError):
            open_index(tmp_path / "index", device="gpu")


def test_names_of_the_package_are_loaded_when_used():
    assert retrieval.open_index is open_index and set(retrieval.__all__) <= {
        *dir(retrieval),
        *retrieval.__all__,
    }
    assert all(callable(getattr(retrieval, name)) for name in retrieval.__all__)
    with pytest.raises(AttributeError, match="open_index"):
        retrieval.no_such_name  # noqa: B018


# ---------------------------------------------------------------- what an earlier release wrote


@pytest.mark.parametrize("version", [1, 2])
def test_golden_index_gives_the_same_answers(tmp_path, version):
    with tarfile.open(GOLDEN / f"index-v{version}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    with pytest.warns(UncalibratedWarning):  # its encoder is none of ours
        got = make_index.answers(tmp_path / f"index-v{version}", version)
    kept = json.loads((GOLDEN / f"index-v{version}-answers.json").read_text())
    places = [list(place) for place in make_index.PLACES[version]]
    assert [[r["image_id"], r["x"], r["y"]] for r in got[: len(places)]] == places
    for row, wanted in zip(got, kept, strict=True):
        assert row == pytest.approx(wanted, abs=5e-3, nan_ok=True)
