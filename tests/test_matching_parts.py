"""The parts index: its files, its search against a slow oracle, masks, and patches of generated scenes."""

from __future__ import annotations

import shutil
import struct
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
from engine import digital, image_of, texture

import retrieval
from retrieval.config import IndexConfig, SearchConfig
from retrieval.errors import IndexFormatError, SearchBudgetWarning
from retrieval.index.builder import write_index
from retrieval.index.folder import IndexFolder
from retrieval.index.parts import PartsIndex, Projection, write_parts
from retrieval.matching.budget import WORK_PER_S, PartsBudget, expected_gain, search_cost
from retrieval.matching.exhaustive import search_uncertain, select_uncertain
from retrieval.matching.parts_search import find_places, nearest_places, windows_to_compare
from retrieval.matching.places import decided_patches
from retrieval.matching.session import Session
from retrieval.matching.tensors import Arrays
from retrieval.matching.visible import VisiblePatches, hidden_shares
from retrieval.models.encoder import FakeEncoder, load_encoder
from retrieval.models.local_descriptors import shipped_descriptors
from retrieval.training.weather import under_clouds
from retrieval.types import Candidates, RankedCandidates, unpack_ids
from tfrecords.errors import DuplicateIdError, FormatVersionError, ManifestError
from tfrecords.schema import BANDS, Image, Patches, to_scaled

CHANNELS = 24
IDS = np.array([3, 7, 8])


def smooth_field(seed: int, h: int, w: int) -> np.ndarray:
    """Return random descriptors every 2 px whose neighbours resemble each other, as in images."""
    noise = np.random.default_rng(seed).normal(size=(h + 4, w + 4, CHANNELS)).astype(np.float32)
    rows = sum(noise[i : i + h] for i in range(5))
    return np.asarray(sum(rows[:, i : i + w] for i in range(5)), np.float32) / 25


def written(folder: Path, fields: Iterable) -> PartsIndex:
    """Write and open a parts index, its projection fitted to its images."""
    described = list(fields)
    fitted = Projection.fit([f for _, f in described] or [smooth_field(0, 20, 20)])
    parts = ((i, fitted.parts(f)) for i, f in described)
    write_parts(folder / "parts.bin", folder / "parts.faiss", parts, fitted)
    return PartsIndex.open(folder)


@pytest.fixture(scope="module")
def fields() -> dict[int, np.ndarray]:
    """Descriptors of three images every 2 px; every second one is what an index holds."""
    sizes = zip(IDS, ((131, 117), (97, 151), (120, 120)), strict=True)
    return {int(i): smooth_field(int(i), *size) for i, size in sizes}


@pytest.fixture(scope="module")
def index(fields: dict[int, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> PartsIndex:
    folder = tmp_path_factory.mktemp("parts")
    return written(folder, ((i, f[::2, ::2]) for i, f in fields.items()))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A parts index of two images."""
    folder = tmp_path_factory.mktemp("small")
    written(folder, ((i, smooth_field(i, 30, 20 + i)) for i in (5, 2)))
    return folder


def cut(fields: dict[int, np.ndarray], seed: int, count: int, hidden: float) -> tuple[np.ndarray, list]:
    """Cut patches of 23 x 23 descriptors, with noise, a share of their rows hidden; and their places."""
    rng, patches, places = np.random.default_rng(seed), [], []
    for _ in range(count):
        image = int(rng.choice(IDS))
        h, w = fields[image].shape[:2]
        y, x = rng.integers(2, h - 24), rng.integers(2, w - 24)
        patch = fields[image][y : y + 23, x : x + 23].copy()
        patch += rng.normal(size=patch.shape) * 0.5 * patch.std()
        patch[: round(23 * hidden)] = 0
        patches.append(patch)
        places.append((image, 2 * x, 2 * y))
    return np.array(patches, np.float32), places


def slow_scores(field: np.ndarray, patch: np.ndarray) -> dict[tuple[int, int], float]:
    """Compare a patch with every window at every shift of 2 px, descriptor by descriptor.

    Args:
        field: descriptors of an image every 4 px.
        patch: (23, 23, c) descriptors of a patch every 2 px.

    Returns:
        The best cosine for each window, by its row and column in parts.
    """

    def part(of: np.ndarray, y: int, x: int, spacing: int) -> np.ndarray:
        return np.concatenate([of[y + a, x + b] for a in (0, spacing) for b in (0, spacing)])

    beyond = np.pad(patch, ((4, 4), (4, 4), (0, 0)))
    kernels = []
    for dy in range(-1, 3):
        for dx in range(-1, 3):
            kernel = np.zeros((6, 6, 4 * CHANNELS))
            for i in range(6):
                for j in range(6):
                    kernel[i, j] = part(beyond, 4 + dy + 4 * i, 4 + dx + 4 * j, 2)
            kernels.append(kernel)
    longest = max(np.sqrt((k**2).sum()) for k in kernels)
    scores = {}
    for row in range((field.shape[0] - 2) // 2 - 4):
        for column in range((field.shape[1] - 2) // 2 - 4):
            window = np.array(
                [[part(field, 2 * (row + i), 2 * (column + j), 1) for j in range(6)] for i in range(6)]
            )
            length = np.sqrt((window**2).sum() + 1e-3)
            scores[row, column] = max(float((k * window).sum()) for k in kernels) / longest / length
    return scores


@pytest.mark.parametrize("hidden", [0.0, 0.5])
def test_patches_are_found_by_what_shows(
    index: PartsIndex, fields: dict[int, np.ndarray], hidden: float
) -> None:
    patches, places = cut(fields, 1, 24, hidden)
    score, ids = nearest_places(index, patches, 256, IDS)
    best = np.take_along_axis(ids, score.argmax(1)[:, None], 1)[:, 0]
    image, x, y = unpack_ids(best)
    assert list(image) == [p[0] for p in places]
    assert np.abs(x - [p[1] for p in places]).max() <= 2
    assert np.abs(y - [p[2] for p in places]).max() <= 2


def test_search_agrees_with_comparing_every_window_slowly(
    index: PartsIndex, fields: dict[int, np.ndarray]
) -> None:
    patches, _ = cut(fields, 2, 3, 0.4)
    score, ids = nearest_places(index, patches, len(index), IDS)
    for number, patch in enumerate(patches):
        slow = {i: slow_scores(f[::2, ::2], patch) for i, f in fields.items()}
        assert (score[number] > -np.inf).sum() == sum(map(len, slow.values())) == len(index)
        best = [max(s.values()) for s in slow.values()]
        image, _, _ = unpack_ids(ids[number])
        for image_id, expected in zip(slow, best, strict=True):
            # 64 numbers of four bits for 96.
            assert score[number][image == image_id].max() == pytest.approx(expected, abs=0.06)


def test_codes_find_what_comparing_all_windows_finds(
    index: PartsIndex, fields: dict[int, np.ndarray]
) -> None:
    patches, _ = cut(fields, 3, 60, 0.5)
    few, few_ids = nearest_places(index, patches, 64, IDS)
    full, full_ids = nearest_places(index, patches, len(index), IDS)
    rows = np.arange(len(patches))
    same = few_ids[rows, few.argmax(1)] == full_ids[rows, full.argmax(1)]
    assert same.mean() >= 0.95


def test_a_rough_comparison_keeps_the_best_windows(index: PartsIndex, fields: dict[int, np.ndarray]) -> None:
    patches, _ = cut(fields, 5, 60, 0.5)
    few, few_ids = nearest_places(index, patches, len(index), IDS, compared=64)
    full, full_ids = nearest_places(index, patches, len(index), IDS)
    assert few.shape[1] == 64 < full.shape[1]
    rows = np.arange(len(patches))
    assert (few_ids[rows, few.argmax(1)] == full_ids[rows, full.argmax(1)]).mean() >= 0.95


def test_only_allowed_images_answer(index: PartsIndex, fields: dict[int, np.ndarray]) -> None:
    patches, _ = cut(fields, 4, 5, 0.0)
    score, ids = nearest_places(index, patches, 512, IDS[1:2])
    assert set(unpack_ids(ids[score > -np.inf])[0]) == {7}


def test_a_hidden_patch_agrees_with_nothing(index: PartsIndex) -> None:
    score, _ = nearest_places(index, np.zeros((2, 23, 23, CHANNELS), np.float32), 16, IDS)
    assert not (score > 0).any()


def test_an_image_of_the_reference_job_takes_at_most_a_quarter_of_a_megabyte(tmp_path: Path) -> None:
    sizes = []
    for count in (2, 4):
        folder = tmp_path / str(count)
        folder.mkdir()
        written(folder, ((i, smooth_field(i, 124, 124)) for i in range(count)))
        sizes.append(sum(f.stat().st_size for f in folder.iterdir()))
    assert (sizes[1] - sizes[0]) / 2 <= 256 * 1024


def test_the_layout_of_the_file_is_fixed(small: Path) -> None:
    data = (small / "parts.bin").read_bytes()
    magic, version, channels, part, window, images, parts = struct.unpack("<8sIIIII4xq", data[:40])
    assert (magic, version, channels, part, window, images) == (b"PATCHPRT", 2, 24, 64, 128, 2)
    assert parts == 15 * 12 + 15 * 11
    floats = np.frombuffer(data[64 : 64 + 4 * 97 * 64], "<f4").reshape(97, 64)
    axes, steps = floats[:96], floats[96]
    assert np.allclose(axes.T @ axes, np.eye(64), atol=1e-5)
    start = 64 + floats.nbytes
    stored = np.frombuffer(data[start : start + 33 * parts], np.uint8).reshape(parts, 33)[0]
    field = smooth_field(5, 30, 25)
    first = np.concatenate([field[y, x] for y in (0, 1) for x in (0, 1)])
    scale = steps * 2 ** ((int(stored[32]) - 128) / 8)
    numbers = np.concatenate([stored[:32] & 15, stored[:32] >> 4]).astype(float) - 8
    assert np.abs(numbers).max() == 7
    assert (np.abs(numbers * scale - first @ axes) <= 0.51 * scale).all()
    table = np.frombuffer(data[start + 33 * parts :][:48], "<i8").reshape(2, 3)
    assert table.tolist() == [[5, 15, 12], [2, 15, 11]]
    assert len(data) == start + 33 * parts + 48 + 4 * 36 * 32 * 128
    codes = faiss.read_index(str(small / "parts.faiss"))
    assert (codes.ntotal, codes.d) == (10 * 7 + 10 * 6, 128)


def test_ground_that_nothing_shows_of_is_stored_as_zero(tmp_path: Path) -> None:
    field = smooth_field(1, 40, 40)
    field[:20] = 0
    stored = written(tmp_path, [(1, field)]).stored
    assert not stored.parts.reshape(20, 20, -1)[:9, :, -1].any()
    assert stored.parts.reshape(20, 20, -1)[11:, :, -1].all()
    assert not stored.windows(np.arange(3)).any()


@pytest.mark.parametrize("length", [0, 40, 70, 20_000, -1])
def test_a_file_cut_short_is_named(small: Path, tmp_path: Path, length: int) -> None:
    (tmp_path / "parts.bin").write_bytes((small / "parts.bin").read_bytes()[:length])
    with pytest.raises(IndexFormatError, match=r"parts\.bin.*Build the index again"):
        PartsIndex.open(tmp_path)


def test_another_version_and_codes_of_other_windows_are_named(small: Path, tmp_path: Path) -> None:
    data = bytearray((small / "parts.bin").read_bytes())
    data[8] = 9
    (tmp_path / "parts.bin").write_bytes(data)
    with pytest.raises(FormatVersionError, match="version 9"):
        PartsIndex.open(tmp_path)
    written(tmp_path, [(0, smooth_field(0, 30, 40))])
    (tmp_path / "parts.bin").write_bytes((small / "parts.bin").read_bytes())
    with pytest.raises(IndexFormatError, match=r"parts\.faiss holds"):
        PartsIndex.open(tmp_path)


def test_images_are_distinct_and_may_be_small_or_absent(tmp_path: Path) -> None:
    with pytest.raises(DuplicateIdError):
        written(tmp_path, [(1, smooth_field(0, 20, 20)), (1, smooth_field(0, 20, 20))])
    assert len(written(tmp_path, [(1, smooth_field(0, 8, 40))])) == 0
    assert len(written(tmp_path, [])) == 0


def test_patches_of_scenes_are_found_with_a_part_of_them_hidden(tmp_path: Path) -> None:
    arrays = {i: texture(256, 256, seed=i) for i in range(2)}
    bands = ("B04", "B03", "B02", "B08")
    images = Arrays(arrays, dict.fromkeys(arrays, bands))
    describe = shipped_descriptors().describe_image
    index = written(tmp_path, ((i, describe(scaled)) for i, scaled in arrays.items()))
    rng, patches, places = np.random.default_rng(0), [], []
    for number in range(12):
        x, y = rng.integers(0, 193, 2)
        patch = -0.5 * arrays[number % 2][y : y + 64, x : x + 64]  # as between seasons
        patch += rng.normal(scale=0.002, size=patch.shape)
        patch[:32] = np.nan
        patches.append(patch)
        places.append((number % 2, x, y))
    queries = Patches(np.arange(12), np.array(patches, np.float32), "scaled", bands, float("nan"))
    session = Session(images, queries, search=SearchConfig(), image_ids=[0, 1])
    found = find_places(index, session)
    place = np.array(places)
    right = (found.image_ids == place[:, :1]) & (np.abs(found.x - place[:, 1:2]) <= 12)
    right &= np.abs(found.y - place[:, 2:]) <= 12
    assert right[:, :5].any(1).mean() >= 0.8
    assert (found.x[found.image_ids >= 0] <= 192).all()


def test_strips_of_an_image_are_described_as_the_whole() -> None:
    scaled, descriptors = texture(150, 90, seed=4), shipped_descriptors()
    scaled[40:70, 20:50] = np.nan
    whole = descriptors.describe_image(scaled)
    assert whole.shape == (33, 18, CHANNELS)
    assert np.allclose(descriptors.describe_image(scaled, strip=7), whole, atol=1e-5)


# --- in the index folder --------------------------------------------------------------------------


FAKE = FakeEncoder()
SCENES = [image_of(digital(texture(160, 150, seed=s)), image_id=10 + s) for s in range(4)]
WITH_PARTS = IndexConfig(stride_px=16, kind="exact", parts="always")


def indexed(images: list[Image], out: Path, config: IndexConfig = WITH_PARTS) -> IndexFolder:
    """Index images with their parts."""
    write_index(images, out, FAKE, config, source="test")
    return IndexFolder(out, encoder=FAKE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> IndexFolder:
    return indexed(SCENES, tmp_path_factory.mktemp("with parts") / "index")


def cloudy_queries(hidden_rows: int = 30) -> tuple[Patches, np.ndarray]:
    """Patches of other light, their first rows hidden, and where they come from."""
    rng, places, pixels = np.random.default_rng(5), [], []
    for number in range(8):
        scene = SCENES[number % 4]
        x, y = int(rng.integers(0, 87)), int(rng.integers(0, 97))
        patch = 0.2 - 0.6 * scene.scaled()[y : y + 64, x : x + 64]
        patch[:hidden_rows] = np.nan
        pixels.append(patch)
        places.append((scene.image_id, x, y))
    return Patches(np.arange(8), np.array(pixels, np.float32), "scaled", BANDS, float("nan")), np.array(
        places
    )


def test_uncertain_patches_search_the_parts_of_an_index(folder: IndexFolder) -> None:
    queries, places = cloudy_queries()
    session = Session.open(folder, queries, search=SearchConfig())
    assert session.parts is not None
    found = search_uncertain(session, RankedCandidates.empty(8, 20)).candidates
    best = np.stack([found.image_ids[:, 0], found.x[:, 0], found.y[:, 0]], 1)
    right = (best[:, 0] == places[:, 0]) & (np.abs(best[:, 1:] - places[:, 1:]).max(1) <= 1)
    assert right.mean() >= 0.85


def test_patches_at_the_edges_of_any_size_are_found(tmp_path: Path) -> None:
    sizes = {20 + more: (96 + more, 80 + (3 * more) % 8) for more in range(8)}
    scenes = [image_of(digital(texture(h, w, seed=i)), image_id=i) for i, (h, w) in sizes.items()]
    folder = indexed(scenes, tmp_path / "index")
    assert folder.parts is not None
    windows = folder.parts.stored.locate(np.arange(len(folder.parts)))
    places, pixels = [], []
    for scene, (h, w) in zip(scenes, sizes.values(), strict=True):
        of_image = windows.image_ids == scene.image_id
        for at, size in ((windows.y[of_image], h), (windows.x[of_image], w)):
            apart = 8 * at[:, None] - np.arange(size - 63)
            assert ((apart >= -3) & (apart <= 4)).any(0).all()
        for x, y in ((w - 64, h - 64), (0, h - 64), (w - 64, 0)):
            patch = 0.2 - 0.6 * scene.scaled()[y : y + 64, x : x + 64]
            patch[:30] = np.nan
            pixels.append(patch)
            places.append((scene.image_id, x, y))
    queries = Patches(np.arange(24), np.array(pixels, np.float32), "scaled", BANDS, float("nan"))
    found = find_places(folder.parts, Session.open(folder, queries, search=SearchConfig()), count=5)
    place = np.array(places)[:, :, None]
    near = np.maximum(np.abs(found.x - place[:, 1]), np.abs(found.y - place[:, 2])) <= 4
    assert ((found.image_ids == place[:, 0]) & near).any(1).all()


@pytest.mark.parametrize(
    ("search", "everywhere", "in_parts"),
    [
        (SearchConfig(), 0, 8),
        (SearchConfig(budget_s=60.0), 0, 8),
        (SearchConfig(exhaustive=True), 8, 0),
        (SearchConfig(exhaustive=True, budget_s=(search_cost(5, 0.096) + 0.5) / WORK_PER_S), 5, 3),
        (SearchConfig(exhaustive_budget=1, exhaustive=True), 8, 0),
        (SearchConfig(exhaustive_budget=0), 0, 0),
    ],
)
def test_parts_serve_all_patches_unless_the_search_is_exhaustive(
    folder: IndexFolder, search: SearchConfig, everywhere: int, in_parts: int
) -> None:
    session = Session.open(folder, cloudy_queries()[0], search=search)
    visible = VisiblePatches(session.queries, search)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        selected = select_uncertain(session, RankedCandidates.empty(8, 20), visible)
    assert (len(selected.rows), len(selected.in_parts), len(selected.left_out)) == (everywhere, in_parts, 0)
    assert len({*selected.rows, *selected.in_parts}) == everywhere + in_parts


def test_a_stated_time_bounds_the_search_of_parts(folder: IndexFolder) -> None:
    many = cloudy_queries()[0].select(np.arange(400) % 8)
    session = Session.open(folder, many, search=SearchConfig(budget_s=0.0))
    with pytest.warns(
        SearchBudgetWarning, match="^400 patches are uncertain, and the 0 with the most to gain"
    ):
        searched = search_uncertain(session, RankedCandidates.empty(400, 20))
    assert searched.counts == {"everywhere": 0, "in_parts": 0, "left_out": 400}
    assert searched.left_out.all()


def test_blocks_of_patches_end_with_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("retrieval.matching.budget.time.monotonic", lambda: clock[0])
    done = 0
    for block in PartsBudget(SearchConfig(budget_s=60.0), 100.0).blocks(10_000, 10_000):
        assert block.start == done and block.stop - block.start >= 16
        done, clock[0] = block.stop, clock[0] + 0.3 * (block.stop - block.start)  # twice the usual time
    assert 150 <= clock[0] <= 160 and done == round((clock[0] - 100) / 0.3)


@pytest.mark.parametrize(
    ("uncertain", "patches", "searched"),
    [(300, 300, 300), (2400, 2400, 2400), (9000, 9000, 4000), (400, 10_000, 400), (3000, 40_000, 400)],
)
def test_the_automatic_budget_grows_with_the_share_of_uncertain_patches(
    uncertain: int, patches: int, searched: int
) -> None:
    blocks = list(PartsBudget(SearchConfig(), 0.0).blocks(uncertain, patches))
    assert [b.start for b in blocks] == [0, *(b.stop for b in blocks[:-1])]
    assert blocks[-1].stop == searched
    assert max(b.stop - b.start for b in blocks) <= 1024


def test_patches_with_the_most_to_gain_come_first(folder: IndexFolder) -> None:
    queries, _ = cloudy_queries()
    session = Session.open(folder, queries, search=SearchConfig())
    ranked, texture_share = RankedCandidates.empty(8, 20), np.linspace(0.2, 0.9, 8)
    gain = expected_gain(session, ranked, np.arange(8), texture_share)
    np.testing.assert_allclose(gain, texture_share)
    ranked.image_ids[7], ranked.logit[7, 0], ranked.ncc[7], ranked.similarity[7] = 10, 20, 0.5, 0.9
    sure = replace(session, encoder=load_encoder("siamese"))
    gain = expected_gain(sure, ranked, np.arange(8), texture_share)
    assert gain[7] < 0.1 and gain[:7] == pytest.approx(texture_share[:7])


def test_parts_change_no_answer_of_an_exhaustive_search(folder: IndexFolder) -> None:
    queries, _ = cloudy_queries()
    session = Session.open(folder, queries, search=SearchConfig(exhaustive=True))
    without = replace(session, parts=None)
    found = [search_uncertain(s, RankedCandidates.empty(8, 20)).candidates for s in (session, without)]
    for name, value in vars(found[0]).items():
        np.testing.assert_allclose(value, getattr(found[1], name), atol=1e-5)


def test_clouded_patches_are_found_in_the_parts(tmp_path: Path) -> None:
    images = np.stack([digital(texture(320, 320, seed=s)) for s in range(4)])
    rng, places, patches = np.random.default_rng(2), [], []
    for image in range(4):
        for _ in range(4):
            x, y = rng.integers(0, 257, 2)
            places.append((image, x, y))
            patches.append(to_scaled(images[image][y : y + 64, x : x + 64], "dn", 0) * 0.8 - 0.05)
    clouded = under_clouds(np.array(patches, np.float32), np.full(16, 0.5), rng).pixels
    queries = Patches(np.arange(16), clouded.astype(np.float32), "scaled", BANDS, float("nan"))
    index = retrieval.build_index(images, tmp_path / "index", encoder="structure-tensor", config=WITH_PARTS)
    scores = {}
    for search in (SearchConfig(), SearchConfig(exhaustive_budget=0)):
        found = index.matches(queries, search=search)
        best = np.stack(found.best(), 1)
        right = (best[:, 0] == np.array(places)[:, 0]) & (np.abs(best - places)[:, 1:].max(1) <= 2)
        scores[bool(search.exhaustive_budget)] = right.mean()
        assert "partly_searched" not in found.status
    assert scores[True] >= scores[False] + 0.3, scores


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, np.ndarray]]:
    """Effort of each search in the parts, and the hidden shares of its patches."""
    noted: list[tuple[int, np.ndarray]] = []

    def note(index: PartsIndex, hidden: Session, effort: int = 1) -> Candidates:
        noted.append((effort, hidden_shares(hidden.queries)))
        return find_places(index, hidden, effort)

    monkeypatch.setattr("retrieval.matching.exhaustive.find_places", note)
    return noted


def test_ground_below_thin_cloud_counts_in_a_second_search(
    folder: IndexFolder, searches: list[tuple[int, np.ndarray]]
) -> None:
    plain, _ = cloudy_queries(0)
    weather = under_clouds(plain.scaled(slice(None)), np.full(8, 0.6), np.random.default_rng(1))
    queries = Patches(np.arange(8), weather.pixels, "scaled", BANDS, float("nan"))
    session = Session.open(folder, queries, search=SearchConfig(confident_odds=99))
    search_uncertain(session, RankedCandidates.empty(8, 20))
    (_, first), (_, second) = searches
    assert (second < first).all() and (first - second).mean() > 0.1


def test_patches_that_stay_uncertain_are_searched_with_more_effort(
    folder: IndexFolder, searches: list[tuple[int, np.ndarray]]
) -> None:
    queries, _ = cloudy_queries()
    session = Session.open(folder, queries, search=SearchConfig())
    found = search_uncertain(session, RankedCandidates.empty(8, 20)).candidates
    (effort, first), *more = searches
    assert effort == 1 and len(first) == 8 and all(effort > 1 and 0 < len(s) < 8 for effort, s in more)
    assert not more or (~decided_patches(session, found)).sum() <= len(more[0][1])


def test_auto_indexes_parts_of_large_sets_of_images(tmp_path: Path) -> None:
    config = IndexConfig(stride_px=16, kind="exact", parts_above=0)
    assert indexed(SCENES[:1], tmp_path / "large", config).parts is not None
    assert indexed(SCENES[:1], tmp_path / "small", replace(config, parts_above=1)).parts is None


def test_former_values_of_the_setting_are_read() -> None:
    assert IndexConfig.from_mapping({"parts": True}).parts == "always"
    assert IndexConfig.from_mapping({"parts": False}).parts == "never"


def test_an_index_has_parts_only_where_they_are_set(folder: IndexFolder, tmp_path: Path) -> None:
    assert {"parts.bin", "parts.faiss"} <= set(folder.manifest.files)
    plain = indexed(SCENES[:1], tmp_path / "index", replace(WITH_PARTS, parts="never"))
    assert plain.parts is None
    assert not {"parts.bin", "parts.faiss"} & set(plain.manifest.files)


def test_changed_parts_are_named(folder: IndexFolder, tmp_path: Path) -> None:
    copy = tmp_path / "index"
    shutil.copytree(folder.path, copy)
    data = bytearray((copy / "parts.bin").read_bytes())
    data[-1] ^= 1
    (copy / "parts.bin").write_bytes(data)
    with pytest.raises(ManifestError, match=r"parts\.bin"):
        IndexFolder(copy, encoder=FAKE)


def test_more_windows_are_compared_in_larger_indexes_and_with_more_effort():
    sizes = [0, 1000, 10**6, 5 * 10**6, 16 * 10**6, 10**9]
    for effort in (1, 4):
        counts = [windows_to_compare(size, effort) for size in sizes]
        assert counts == sorted(counts) and counts[-1] == windows_to_compare(10**10, effort)
    for size in sizes:
        (nearest, compared), (more, more_compared) = (windows_to_compare(size, effort) for effort in (1, 4))
        assert 2 * nearest <= more <= 4 * nearest and more_compared == 2 * compared
        assert compared <= nearest
