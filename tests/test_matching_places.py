"""Places: other dates, copies and overlapping tiles of the same ground support an answer."""

from dataclasses import replace

import numpy as np
import pytest
from engine import digital, image_of, refined, small_encoder, texture
from realdata import real_data

from retrieval.matching.large_chips import Placements, chip_features
from retrieval.matching.places import decided_patches, number_places, with_places
from retrieval.matching.session import Session
from retrieval.matching.tensors import Arrays
from retrieval.models.calibration import is_confident, logit_margin
from retrieval.pipeline import build_index
from retrieval.types import StoredImage
from tfrecords.read import ImageSource
from tfrecords.schema import BANDS, Chips, Image, Patches

GROUND = texture(192, 192, seed=1)
HERE = {"crs": "EPSG:32631", "transform": (10.0, 0.0, 500000.0, 0.0, -10.0, 5000000.0)}
ELSEWHERE = {"crs": "EPSG:32631", "transform": (10.0, 0.0, 600000.0, 0.0, -10.0, 5000000.0)}
AT = [(10, 20), (77, 51), (120, 3), (64, 128)]


def date(number, ground=GROUND):
    """The ground on a date: its brightness, contrast and details change."""
    changed = (0.9 - 0.1 * number) * ground + 0.12 * texture(*ground.shape[:2], seed=100 + number)
    return digital(np.clip(changed - 0.05 * number, -0.99, 0.99))


def others(georeference=None):
    return [(digital(texture(192, 192, seed=s)), georeference) for s in (7, 8, 9)]


def index_of(folder, *images):
    records = [image_of(p, i, **(georeference or {})) for i, (p, georeference) in enumerate(images)]
    source = ImageSource("made by a test", len(records), lambda: iter(records))
    return build_index(source, folder / f"{len(list(folder.iterdir()))}.index", encoder=small_encoder())


def patches():
    ground = date(5)
    pixels = np.stack([ground[y : y + 64, x : x + 64] for x, y in AT])
    return Patches(np.arange(len(AT)), pixels, "dn", BANDS, 0.0)


def chips():
    ground = date(5)
    images = tuple(Image(i, ground[y : y + 130, x : x + 120], "dn", BANDS, 0.0) for i, (x, y) in CHIPS)
    sizes = np.array([image.pixels.shape[:2] for image in images])
    return Chips(np.arange(len(images)), sizes, (BANDS,) * len(images), images.__getitem__)


CHIPS = [(0, (10, 20)), (1, (50, 33))]


@pytest.mark.parametrize("georeference", [HERE, None])
@pytest.mark.parametrize("dates", [(0, 1), (0, 1, 2), (0, 0), (0, *range(1, 12))])
def test_more_dates_of_a_place_support_it(tmp_path, georeference, dates):
    alone = index_of(tmp_path, (date(0), georeference), *others(georeference and ELSEWHERE))
    several = index_of(
        tmp_path, *((date(d), georeference) for d in dates), *others(georeference and ELSEWHERE)
    )
    one, found = alone.matches(patches()), several.matches(patches())
    assert (one.confidence > 0.5).all()
    assert (found.confidence >= one.confidence - 0.01).all()
    assert found.confidence.mean() >= one.confidence.mean() - 1e-3
    image, x, y = found.best()
    assert (image < len(dates)).all()
    assert np.abs(np.stack([x, y], -1) - AT).max() <= 1
    details = found.details()
    same = details.image_id < len(dates)
    truth = np.array(AT)[details.patch_id]
    same &= np.abs(details[["x", "y"]].to_numpy() - truth).max(1) <= 5
    assert (details.place[same] == 0).all() and (details.place[~same] > 0).all()
    assert details[same].groupby("patch_id").size().min() >= 2
    assert (details.confidence.notna() == (details["rank"] == 0)).all()


@pytest.mark.parametrize("dates", [1, 2, 3, 9, 12])
def test_a_twin_at_another_place_of_the_map_is_a_rival_of_all_dates(tmp_path, dates):
    here = [(date(0), HERE)] * dates
    found = index_of(tmp_path, *here, (date(0), ELSEWHERE), *others(HERE)).matches(patches())
    assert (found.confidence < 0.6).all()
    twin = (found.candidates.image_ids == dates) & (found.candidates.logit > 0)
    assert twin.any(1).all() and (found.place_numbers()[twin] == 1).all()


def test_a_copy_without_its_georeference_is_recognised_by_its_pixels(tmp_path):
    found = index_of(tmp_path, (date(0), HERE), (date(0), None), *others(ELSEWHERE)).matches(patches())
    assert (found.confidence > 0.9).all() and (found.place_numbers()[:, :2] == 0).all()


@pytest.mark.parametrize("georeference", [HERE, None])
def test_tiles_that_overlap_are_one_place(tmp_path, georeference):
    right = georeference and {**HERE, "transform": (10.0, 0.0, 500400.0, 0.0, -10.0, 5000000.0)}
    tiles = index_of(tmp_path, (date(0), georeference), (date(1)[:, 40:], right), *others(ELSEWHERE))
    found = tiles.matches(patches())
    assert (found.confidence > 0.9).all()
    details = found.details()
    best = details[details.place == 0]
    assert (best.groupby("patch_id").image_id.nunique()[1:] == 2).all()  # the first lies in one tile only


@pytest.mark.parametrize("georeference", [HERE, None])
def test_chips_of_a_place_with_several_dates(tmp_path, georeference):
    alone = index_of(tmp_path, (date(0), georeference), *others(georeference and ELSEWHERE))
    several = index_of(
        tmp_path, *((date(d), georeference) for d in (0, 1, 0)), *others(georeference and ELSEWHERE)
    )
    one, found = alone.matches(chips()), several.matches(chips())
    assert (found.confidence >= one.confidence - 1e-6).all()
    assert (found.place_numbers()[:, :3] == 0).all()


def test_decided_patches_are_those_that_all_places_decide(tmp_path, rng):
    index = index_of(tmp_path, (date(0), None), (date(1), None), *others(), (date(0)[::-1], None))
    session = Session.open(index.folder, patches())
    search, found = session.search, index.matches(patches()).candidates
    outcomes = set()
    for _ in range(40):
        logit = rng.uniform(-6, 12, found.logit.shape).astype(np.float32)
        drawn = replace(found, logit=logit, ncc=np.ones_like(found.ncc), place=None)
        expected = is_confident(with_places(session, drawn), search)
        np.testing.assert_array_equal(decided_patches(session, drawn), expected)
        outcomes |= set(zip(is_confident(drawn, search).tolist(), expected.tolist(), strict=True))
    assert outcomes == {(False, False), (False, True), (True, True)}


def test_places_are_compared_once(tmp_path):
    index = index_of(tmp_path, (date(0), None), (date(1), None), *others())
    found = index.matches(patches()).candidates
    assert (found.place[found.image_ids >= 0] >= 0).all() and (found.place[:, :2] == 0).any()
    without_images = Session(None, patches(), search=Session.open(index.folder, patches()).search)
    np.testing.assert_array_equal(with_places(without_images, found).place, found.place)
    np.testing.assert_array_equal(
        decided_patches(without_images, found), is_confident(found, without_images.search)
    )


def test_the_lead_of_a_chip_is_over_other_places():
    score = np.array([0.8, 0.75, 0.3])
    placements = Placements(np.arange(3), *np.zeros((2, 3)), score, score, score, np.array([4, 4, 2]))
    assert chip_features(placements, 4)[1] == pytest.approx(0.05)
    assert chip_features(placements, 4, np.array([0, 0, 1]))[1] == pytest.approx(0.5)
    assert chip_features(placements, 4, np.array([0, 0, 0]))[1] == pytest.approx(0.8)


def test_a_place_counts_once_with_its_largest_log_odds():
    found = refined([[0, 1, 2, 3]], [[0] * 4], [[0] * 4], [[2.0, 3.0, 1.0, 0.5]], [[0.9] * 4])
    rivals = np.log(1 + np.exp(1.0))  # none of the places, and the other place
    assert logit_margin(replace(found, place=np.array([[0, 0, 1, 1]]))) == pytest.approx(3 - rivals)
    apart = logit_margin(replace(found, place=np.arange(4)[None]))
    np.testing.assert_array_equal(apart, logit_margin(found))


def table(crs, transform):
    return StoredImage(0, "", 200, 200, BANDS, crs, transform, None, 1)


@pytest.mark.parametrize(
    ("a", "b", "shift", "same"),
    [
        (HERE, HERE, (3, -4), True),
        (HERE, HERE, (3, 9), False),
        ({"crs": "EPSG:4326", "transform": (1e-4, 0, 3, 0, -1e-4, 45)}, None, (4, 4), True),
        ({"crs": "EPSG:4326", "transform": (1e-4, 0, 3, 0, -5e-5, 45)}, None, (4, 7), False),
        ({"crs": "EPSG:4326", "transform": (1e-4, 0, 179.999, 0, -1e-4, 0)}, None, (4, 4), True),
    ],
)
def test_windows_coincide_on_the_map_within_five_pixels(a, b, shift, same):
    b = b or a
    pixels = Arrays({i: texture(200, 200, seed=i) for i in (0, 1)}, {0: BANDS, 1: BANDS})
    session = Session(pixels, patches(), table={0: table(**a), 1: table(**b)})
    found = refined([[0, 1]], [[30, 30 + shift[0]]], [[40, 40 + shift[1]]], [[2.0, 1.0]], [[0.9, 0.9]])
    assert number_places(session, found).tolist() == [[0, 0 if same else 1]]


@pytest.mark.parametrize("at", [(64, 64), (0, 64), (64, 0), (128, 128)])
def test_windows_that_look_alike_in_other_surroundings_are_two_places(at):
    a, b = texture(192, 192, seed=1), texture(192, 192, seed=2)
    x, y = at
    b[y : y + 64, x : x + 64] = a[y : y + 64, x : x + 64]
    same = texture(192, 192, seed=1) * 0.7 + 0.1 * texture(192, 192, seed=3)
    session = Session(Arrays({0: a, 1: b, 2: same}, dict.fromkeys(range(3), BANDS)), patches())
    found = refined([[0, 1, 2]], [[x] * 3], [[y] * 3], [[3.0, 2.0, 1.0]], [[0.9] * 3])
    assert number_places(session, found).tolist() == [[0, 1, 0]]


def test_windows_without_surroundings_are_compared_themselves():
    a, other = texture(64, 64, seed=1), texture(64, 64, seed=2)
    date_b = 0.7 * a + 0.1 * texture(64, 64, seed=3)
    session = Session(Arrays({0: a, 1: other, 2: date_b}, dict.fromkeys(range(3), BANDS)), patches())
    found = refined([[0, 1, 2]], [[0] * 3], [[0] * 3], [[3.0, 2.0, 1.0]], [[0.9] * 3])
    assert number_places(session, found).tolist() == [[0, 1, 0]]


def test_tiles_of_neighbouring_zones_coincide_on_the_map():
    from rasterio.warp import transform

    (east,), (north,) = transform("EPSG:32631", "EPSG:32632", [730000.0], [5000000.0])
    a = {"crs": "EPSG:32631", "transform": (10.0, 0, 730000.0 - 620, 0, -10.0, 5000000.0 + 720)}
    b = {"crs": "EPSG:32632", "transform": (10.0, 0, east - 520, 0, -10.0, north + 920)}
    pixels = Arrays({i: texture(200, 200, seed=i) for i in (0, 1)}, {0: BANDS, 1: BANDS})
    session = Session(pixels, patches(), table={0: table(**a), 1: table(**b)})
    found = refined([[0, 1, 1]], [[30, 20, 40]], [[40, 60, 60]], [[2.0, 1.0, 1.0]], [[0.9] * 3])
    assert number_places(session, found).tolist() == [[0, 0, 1]]


@pytest.mark.data
def test_dates_of_venice_support_each_other(tmp_path):
    folder = real_data("s2", "val", "venice", "venice")
    dates = [pixels_of(file) for file in sorted(folder.glob("*.tif"))]
    height, width = dates[0].shape[:2]
    corners = [
        (int(x * (width - 64)), int(y * (height - 64))) for x, y in ((0.3, 0.4), (0.5, 0.5), (0.6, 0.3))
    ]
    pixels = np.stack([dates[-1][y : y + 64, x : x + 64] for x, y in corners])
    queries = Patches(np.arange(len(corners)), pixels, "byte", BANDS[:3], 0.0)
    confidence = {}
    for count in (1, 3):
        records = [Image(i, d, "byte", BANDS[:3], 0.0) for i, d in enumerate(dates[:count])]
        source = ImageSource("venice", count, records.__iter__)
        found = build_index(source, tmp_path / f"{count}.index").matches(queries)
        confidence[count] = found.confidence
        if count > 1:
            assert (found.place_numbers()[:, :2] == 0).all()
    assert (confidence[3] >= confidence[1] - 0.02).all()


def pixels_of(file):
    import rasterio

    with rasterio.open(file) as dataset:
        return np.moveaxis(dataset.read(), 0, -1)
