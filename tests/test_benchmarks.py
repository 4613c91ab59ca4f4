"""The benchmarks on generated places: protocol of accuracy, exhaustive NCC, variants, whole runs."""

import json
import pickle
import subprocess
import sys
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from engine import texture
from realdata import real_data

from retrieval.config import TrainConfig
from retrieval.evaluation.submission import Submission
from retrieval.training.recipes import read_recipe
from retrieval.types import Candidates
from tfrecords.schema import BANDS

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import chart  # noqa: E402
import dates  # noqa: E402
import exhaustive  # noqa: E402
import parts  # noqa: E402
import protocol  # noqa: E402
import subpixel  # noqa: E402
import tables  # noqa: E402
import tried  # noqa: E402

CITIES = protocol.GROUPS["cities"]


def ground(seed, size=(90, 100), bands=4):
    return np.rint(1500 + 1400 * texture(*size, bands, seed, power=1.1)).astype(np.uint16)


@pytest.fixture
def data(write_tif, tmp_path):
    """Three places of `val` and two of `train`, two dates each; one place has three bands only."""
    kept = [
        ("val/oscd/paris", 4),
        ("val/oscd/rome", 4),
        ("val/venice/venice", 3),
        ("train/oscd/oslo", 4),
        ("train/forest/wood", 4),
    ]
    for seed, (place, bands) in enumerate(kept):
        for date in ("2016-01-01", "2018-01-01"):
            pixels = ground(seed, bands=bands) + (100 if date < "2017" else 0)
            write_tif(f"{place}/{date}.tif", pixels.astype(np.uint16), descriptions=BANDS[:bands], nodata=0)
    return tmp_path


def group(**form):
    return protocol.Group(("oscd",), form.pop("bands", BANDS), **form)


# ---------------------------------------------------------------- splits and queries


def test_splits_are_by_place_and_image_numbers_equal_in_every_database(data):
    four, three = (protocol.database_of(data, group(bands=BANDS[:n])) for n in (4, 3))
    names = {rank: file.parent.name for rank, file in three.files}
    assert names == {0: "paris", 1: "rome", 2: "venice", 3: "wood", 4: "oslo"}
    assert {rank: file.parent.name for rank, file in four.files} == {
        r: n for r, n in names.items() if n != "venice"
    }
    assert len({file.parent for _, file in three.files}) == len(three.files)  # one date of a place


def test_no_query_has_the_date_of_its_target(data):
    question = protocol.ask(data, CITIES, 20, 0)
    database = dict(protocol.database_of(data, CITIES).files)
    assert len(question.patches) == 20 and set(question.places) == {"paris", "rome"}
    for image_id, date in zip(question.answers.image_ids, question.dates, strict=True):
        assert image_id % protocol.TURNS == 0
        target = database[image_id // protocol.TURNS]
        assert (data / "val" / date).parent == target.parent and (data / "val" / date) != target


def test_the_first_date_of_venice_is_the_target(data):
    assert protocol.target_date(data / "val/venice/venice").stem == "2016-01-01"
    assert protocol.target_date(data / "val/oscd/paris").stem == "2018-01-01"
    question = protocol.ask(data, protocol.GROUPS["venice"], 4, 0)
    assert {d.split("/")[-1] for d in question.dates.tolist()} == {"2018-01-01.tif"}


def test_answers_are_the_positions_of_the_patches(data):
    question = protocol.ask(data, CITIES, 12, 3)
    images = {i.image_id: i for i in protocol.database_of(data, CITIES).images()}
    answers = question.answers
    for row in range(12):
        x, y = answers.x[row], answers.y[row]
        right = images[int(answers.image_ids[row])].pixels[y : y + 64, x : x + 64]
        assert (question.patches.pixels[row].astype(int) - right == 100).all()  # the other date's offset


def test_the_same_seed_gives_the_same_queries_in_every_variant(data):
    plain = protocol.ask(data, CITIES, 12, 5)
    for form in (
        group(bands=BANDS[:3]),
        group(bands=("B08",)),
        group(eight_bit=True),
        group(clouds=True),
        group(bands=BANDS[:3], index_bands=BANDS),
    ):
        other = protocol.ask(data, form, 12, 5)
        for name in ("image_ids", "x", "y"):
            np.testing.assert_array_equal(getattr(other.answers, name), getattr(plain.answers, name))
        assert other.patches.bands == form.bands
    assert (protocol.ask(data, CITIES, 12, 6).answers.x != plain.answers.x).any()


def test_patches_near_nodata_are_no_queries(write_tif, tmp_path):
    pixels = ground(0)
    holed = pixels.copy()
    holed[:, 70:] = 0
    for name, one in (("2016-01-01", holed), ("2018-01-01", pixels)):
        write_tif(f"val/oscd/paris/{name}.tif", one, descriptions=BANDS, nodata=0)
    (tmp_path / "train").mkdir()
    assert protocol.ask(tmp_path, CITIES, 30, 0).answers.x.max() <= 7  # 1 of 64 columns is under 2 %


# ---------------------------------------------------------------- several dates of a place


def test_dates_that_are_asked_are_not_in_the_index(data, write_tif):
    for date in ("2014-01-01", "2015-01-01", "2019-01-01"):
        write_tif(f"val/oscd/rome/{date}.tif", ground(1), descriptions=BANDS, nodata=0)
    write_tif("val/oscd/paris/2015-01-01.tif", ground(0), descriptions=BANDS, nodata=0)
    question = dates.held_out_queries(data, group(), 1, 12, 0)
    assert set(question.dates) <= {"oscd/rome/2019-01-01.tif", "oscd/paris/2018-01-01.tif"}
    for count, expected in ((1, [0, 100]), (2, [0, 1, 100, 101]), (9, [0, 1, 100, 101, 102, 103])):
        assert [i.image_id for i in dates.images(data, group(), count, 1)] == expected
    assert set(question.answers.image_ids) <= {0, 100}


def test_confidence_is_compared_on_the_same_queries():
    answers = Submission(np.arange(4), np.zeros(4, int), np.array([0, 300, 600, 900]), np.zeros(4, int))
    right = np.array([True, True, True, False])
    one = dates.Answers(np.array([0.9, 0.8, 0.5, 0.2]), right, right)
    more = dates.Answers(np.array([1.0, 0.6, 0.1, 0.4]), right, np.array([True, True, False, False]))
    figures = dates.figures(more, one, answers)
    assert figures["place"]["value"] == 0.75 and figures["right"]["value"] == 0.5
    assert figures["confidence_right"]["value"] == pytest.approx(0.8)
    assert figures["confidence_wrong"]["value"] == pytest.approx(0.25)
    minus = figures["minus_first"]
    assert minus["confidence_right_in_both"]["value"] == pytest.approx(-0.05)
    assert minus["confidence_right_in_both"]["number"] == 2
    assert minus["lower_by_a_tenth"] == 1 and minus["higher_by_a_tenth"] == 0
    assert minus["right"]["value"] == -0.25 and minus["right"]["low"] <= -0.25 <= minus["right"]["high"]


# ---------------------------------------------------------------- copies and renderings


def test_the_database_holds_every_image_eight_times(data):
    database = protocol.database_of(data, CITIES)
    source = database.images()
    images = {i.image_id: i.pixels for i in source}
    assert len(images) == len(source) == 8 * len(database.files)
    for rank, image in database.upright():
        copies = [images[8 * rank + turn] for turn in range(8)]
        assert copies[0].shape == image.pixels.shape and (copies[0] == image.pixels).all()
        assert len({c.tobytes() for c in copies}) == 8
        assert all((np.sort(c, axis=None) == np.sort(image.pixels, axis=None)).all() for c in copies)


def test_rescaled_copies_enlarge_the_database_under_numbers_of_their_own(data):
    places = protocol.database_of(data, CITIES)
    larger = protocol.database_of(data, replace(CITIES, scales=(0.1, 0.5, 1.25)))
    source, of_places = larger.images(), {image.image_id: image for image in places.images()}
    images = {image.image_id: image for image in source}
    small = [rank for rank, image in places.upright() if min(image.pixels.shape[:2]) * 0.5 >= 64]
    assert len(images) == len(source) == 8 * (2 * len(places.files) + len(small))  # 0.1 holds no patch
    assert all((images[i].pixels == image.pixels).all() for i, image in of_places.items())
    for rank, image in places.upright():
        copy = images[8 * (3 * protocol.RESCALED_FROM + rank)].pixels
        assert copy.shape[:2] == tuple(round(1.25 * side) for side in image.pixels.shape[:2])
        hidden = (copy == 0).all(-1)
        assert abs(hidden.mean() - (image.pixels == 0).all(-1).mean()) < 0.01
        np.testing.assert_allclose(
            copy[~hidden].mean(0), image.pixels[image.pixels.any(-1)].mean(0), rtol=0.02
        )


def test_images_that_are_turned_when_read_are_those_copies(data):
    database = protocol.database_of(data, CITIES)
    lazy = parts.TurnedImages(database)
    for image in database.images():
        assert lazy.size(image.image_id) == image.pixels.shape[:2]
        scaled = lazy.scaled(image.image_id)
        assert np.array_equal(scaled, image.scaled(), equal_nan=True)
        assert np.array_equal(lazy.scaled(image.image_id, (3, 5, 20, 9)), scaled[5:14, 3:23])
    assert lazy.ids == [image.image_id for image in database.images()]


def test_designs_of_a_search_by_parts_are_measured(data, tmp_path):
    out = tmp_path / "out"
    parts.main(
        [
            str(data),
            "--out",
            str(out),
            "--queries",
            "6",
            "--upright",
            "--designs",
            "windows",
            "votes",
            "--rank",
        ]
    )
    measured = json.loads((out / "parts-0.json").read_text())["designs"]
    assert {name.split(",")[0].split(" of ")[0] for name in measured} == {"windows", "votes"}
    for design in measured.values():
        recall = [design["recall"][str(k)]["value"] for k in parts.RECALLED]
        assert recall == sorted(recall) and recall[0] >= 0.5  # the same ground in another year's light


def test_renderings_are_bytes_and_only_nodata_is_zero(write_tif):
    pixels = ground(1)
    pixels[:5] = 0
    file = write_tif("one.tif", pixels, descriptions=BANDS, nodata=0)
    image = protocol.opened(file, BANDS, eight_bit=True)
    assert image.units == "byte" and image.pixels.dtype == np.uint8
    assert (image.pixels[:5] == 0).all() and image.pixels[5:].min() == 1 and image.pixels.max() == 255
    clipped = (image.pixels[5:] == 255).mean()
    assert 0.015 < clipped < 0.025
    assert protocol.rendered(image) is image


# ---------------------------------------------------------------- kinds of ground


def test_share_of_edges_by_hand():
    flat = np.zeros((1, 64, 64, 4), np.float32)
    steps = flat.copy()
    steps[:, :, 32:] = 400 / 2047.5  # a step of 400 DN: two columns of 62 see it
    ramp = flat + (np.arange(64, dtype=np.float32) * 50 / 2047.5)[:, None]  # 4 bands, 100 DN over 2 px each
    shares = [protocol.edge_share(p)[0] for p in (flat, steps, ramp, ramp[..., :1])]
    assert shares == pytest.approx([0, 2 / 62, 1, 0])  # 100 DN in one band is none, sqrt(4) times that is


def test_kinds_of_ground_partition_the_queries():
    edges = np.array([0.0, 0.129, 0.13, 0.5, 0.7, 1.0])
    places = np.array(["a", "a", "a", "b", "b", "b"])
    question = protocol.Question(None, None, places, places, edges)
    kinds = {name: rows.tolist() for name, rows in question.kinds().items()}
    assert kinds["featureless"] == [True, True] + [False] * 4
    assert kinds["texture-poor"] == [False, False, True, True, False, False]
    assert kinds["texture-rich"] == [False] * 4 + [True] * 2
    assert kinds["with features"] == [False, False] + [True] * 4 and sum(kinds["a"]) == 3


# ---------------------------------------------------------------- arithmetic


def submission(image_ids, x, y):
    return Submission(np.arange(len(x)), *(np.array(v, np.int64) for v in (image_ids, x, y)), source="s")


def test_recall_follows_the_order_of_the_search():
    answers = submission([8, 8], [100, 100], [50, 50])
    found = Candidates(
        np.array([[0, 8, 8], [8, 8, 0]]),
        np.array([[100, 112, 100], [113, 300, 100]]),  # 12 px off is near, 13 is not
        np.array([[50, 50, 50]] * 2),
        np.array([[0.9, 0.8, 0.7]] * 2, np.float32),
    )
    assert [protocol.recalled(found, answers, k).tolist() for k in (1, 2, 3)] == [
        [False, False],
        [True, False],
        [True, False],
    ]


def test_corrected_and_broken_answers():
    first, last = (np.array(v, bool) for v in ([1, 1, 0, 0, 0], [1, 0, 1, 1, 0]))
    counts = protocol.reranking(first, last)
    assert counts == {"kept_right": 1, "mended": 2, "broken": 1, "kept_wrong": 1}
    assert counts["kept_right"] + counts["mended"] == last.sum()
    assert counts["kept_right"] + counts["broken"] == first.sum()


def test_right_is_within_five_pixels_of_the_right_image():
    answers = submission([8] * 4, [10] * 4, [10] * 4)
    right = protocol.is_right(np.array([8, 8, 8, 9]), np.array([13, 14, 10, 10]), np.full(4, 14), answers)
    assert right.tolist() == [True, False, True, False]  # 5, 5.7, 4 px; another image


def test_figures_agree_with_each_other():
    rng = np.random.default_rng(0)
    n = 40
    answers = submission(rng.integers(3, size=n) * 8, rng.integers(800, size=n), rng.integers(800, size=n))
    given = submission(np.where(rng.random(n) < 0.3, 99, answers.image_ids), answers.x + 3, answers.y)
    found = Candidates(
        *(v[:, None] for v in (answers.image_ids, answers.x, answers.y)), np.ones((n, 1), np.float32)
    )
    question = protocol.Question(None, answers, np.array(["p"] * n), np.array(["d"] * n), rng.random(n))
    first = {k: protocol.recalled(found, answers, k) for k in protocol.RECALLED}
    all_of_them = protocol.figures(question, given, first, found)["scores"]["all"]
    assert all_of_them["recall_after"].keys() == {"1"} and all_of_them["recall_after"]["1"]["value"] == 1
    assert all_of_them["recall"]["1"]["value"] == 1
    assert all_of_them["right"]["value"] == all_of_them["within_5px"]["value"]
    assert all_of_them["right"] == all_of_them["within_5px"]  # and so is its interval
    assert all_of_them["reranking"]["broken"] == (given.image_ids == 99).sum()


def test_differences_of_shares_are_paired():
    answers = submission([0] * 8, 300 * np.arange(8), [0] * 8)
    a, b = np.array([1, 1, 1, 0, 0, 1, 1, 1], bool), np.array([1, 1, 0, 0, 1, 0, 0, 1], bool)
    less = protocol.share_less(a, b, answers)
    assert less["value"] == (a.sum() - b.sum()) / 8 and less["low"] < less["value"] < less["high"]
    assert protocol.share_less(a, a, answers) == {"value": 0, "low": 0, "high": 0}


# ---------------------------------------------------------------- exhaustive NCC


def test_exhaustive_ncc_searches_every_pixel_of_every_copy(data):
    pytest.importorskip("cv2")
    database = protocol.database_of(data, CITIES)
    question = protocol.ask(data, CITIES, 4, 1)
    best, seconds = exhaustive.search(database, question.patches)
    assert seconds > 0
    for name in ("image_ids", "x", "y"):
        np.testing.assert_array_equal(getattr(best, name), getattr(question.answers, name))
    for turn in (1, 5):  # a patch of a turned copy is found in that copy
        image = next(i for i in database.images() if i.image_id == 8 + turn)
        pixels = image.pixels[None, 7:71, 3:67]
        asked = type(question.patches)(np.arange(1), pixels, "dn", BANDS, 0.0)
        assert exhaustive.search(database, asked)[0].image_ids.tolist() == [8 + turn]


def test_flat_patches_and_flat_ground_score_zero(data):
    pytest.importorskip("cv2")
    database = protocol.database_of(data, CITIES)
    flat = np.full((1, 64, 64, 4), 700, np.uint16)
    asked = protocol.Patches(np.arange(1), flat, "dn", BANDS, 0.0)
    assert exhaustive.search(database, asked)[0].image_ids.tolist() == [0]
    strength = np.zeros((100, 100), np.float32)
    strength[20:36, 20:36] = texture(16, 16, 1)[..., 0]
    varied = exhaustive.variance(strength) > exhaustive.FLAT
    assert varied[0, 0] and not varied[-1, -1]
    windows = np.lib.stride_tricks.sliding_window_view(strength, (62, 62))
    np.testing.assert_allclose(exhaustive.variance(strength), windows.var((2, 3)), atol=1e-6)


# ---------------------------------------------------------------- below the pixel


@pytest.mark.parametrize("shift", [(1, 0), (0, -1), (2, 1)])
def test_ground_moved_by_whole_pixels_equals_a_shifted_cut(shift):
    cut = texture(88, 88, power=2.0)
    dx, dy = shift
    beside = cut[12 - dy : 76 - dy, 12 - dx : 76 - dx]
    np.testing.assert_allclose(subpixel.moved(cut, dx, dy), beside, atol=0.02)
    np.testing.assert_allclose(subpixel.moved(cut, 0, 0), cut[12:76, 12:76], atol=1e-5)


def test_refinement_follows_known_shifts_of_the_same_date(data):
    rng = np.random.default_rng(0)
    error, edges = subpixel.errors(subpixel.draw(data, CITIES, 10, rng), rng)
    assert len(error) == len(edges) == 10
    assert np.median(error) < 0.3 and subpixel.summary(error)["beyond_5"] == 0


# ---------------------------------------------------------------- what was tried


def test_every_variant_is_a_different_recipe():
    keys = [v.key for v in tried.VARIANTS]
    assert len(set(keys)) == len(keys) == len({tried.encoder_file(v, Path()) for v in tried.VARIANTS})
    assert tried.VARIANTS[0] == tried.BASE and len({v.question for v in tried.VARIANTS}) == 12
    base = tried.recipe_of(tried.BASE, 7)
    shipped = read_recipe(tried.RECIPE)
    assert base.steps == 7 and base.keep == "last" and base.augment.clouds == shipped["augment"]["clouds"]
    for variant in tried.VARIANTS[1:]:
        changed = tried.recipe_of(variant, 7) != base
        assert changed == (not variant.shipped and not variant.generated and variant.stride == 8)


def test_the_plain_recipe_is_valid():
    plain = TrainConfig.from_mapping(read_recipe(BENCHMARKS / "plain.json"))
    assert (plain.arch, plain.loss, plain.mining) == ("plain", "triplet", "semi-hard")


def test_search_by_a_part_of_the_vectors(rng):
    vectors = tried.unit(rng.normal(size=(300, 12)).astype(np.float32))
    ids = tried.pack_ids(np.arange(300), np.zeros(300, int), np.zeros(300, int))
    queries = np.concatenate([vectors[[7, 200]], np.zeros((1, 12), np.float32)])
    queries[0, :8] = vectors[90, :8]  # the first part is another window's
    windows = tried.Windows(ids, vectors)
    assert windows.nearest(queries, slice(8, None)).image_ids[:, 0].tolist() == [7, 200, -1]
    assert windows.nearest(queries, slice(0, 8)).image_ids[:, 0].tolist() == [90, 200, -1]
    right = rng.random(37) < 0.5
    assert (tried.unpacked(tried.packed(right), 37) == right).all()


def test_variants_are_trained_once_and_measured(data, tmp_path, monkeypatch, capsys):
    from retrieval.synthetic.sets import make_series

    make_series(tmp_path / "series", series=3, dates=2, size_px=160)
    small = {"batch": 8, "learned": {"width": 4, "dim": 8}, "projection_crops": 640, "crops_per_series": 16}
    small |= {"tensor": {"dim": 12}, "shuffle": 16, "pool": 16, "compile": False, "held_out": 0.3}
    monkeypatch.setattr(tried, "SHORT", tried.SHORT | small)
    monkeypatch.setattr(tried, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(
        tried, "DEEP", tried.SearchConfig(top_k=64, max_candidates=20, round2_max_candidates=20)
    )
    file = tmp_path / "tried.json"
    arguments = ["tried.py", str(data), str(tmp_path / "series"), "--out", str(tmp_path / "out")]
    arguments += ["--json", str(file), "--steps", "2", "--queries", "4", "--copies", "1"]
    only = ["--only", tried.BASE.key, "stem: raw bands, no training-free half", "triplet, semi-hard"]
    monkeypatch.setattr(sys, "argv", arguments + only[:2])
    monkeypatch.setattr(tried, "MEASURED", ("cities", "venice"))
    tried.main()
    first = json.loads(file.read_text())["variants"]
    monkeypatch.setattr(sys, "argv", arguments + only)
    tried.main()
    made = json.loads(file.read_text())
    assert made["variants"][tried.BASE.key] == first[tried.BASE.key] and len(made["variants"]) == 3
    assert capsys.readouterr().out.count("recipe: as shipped, short") == 1
    base, triplet, plain = made["variants"].values()
    assert set(base["halves"]) == {"indexed", "learned"} and set(plain["halves"]) == {"indexed"}
    assert "minus" not in base["halves"]["indexed"]
    assert triplet["halves"]["learned"]["minus"].keys() >= {"value", "low", "high"}
    assert (
        base["dim"] == 20
        and plain["dim"] == 8
        and set(plain["halves"]["indexed"]["venice"]) == {"1", "20", "500"}
    )
    text = tables.tried_table(made)
    assert text.splitlines()[2].startswith("| recipe | as shipped, short |") and "| – |" in text
    assert "3 variants" in tables.tried_note(made) and "1 of its seven" in tables.tried_note(made)
    monkeypatch.setattr(sys, "argv", [*arguments, "--steps", "3"])
    with pytest.raises(SystemExit, match="asked otherwise"):
        tried.main()


# ---------------------------------------------------------------- the whole of it


class Here:
    """An executor in this process that packs what goes in and comes out, as another process would."""

    def __init__(self, workers, mp_context):
        assert workers == 1 and mp_context.get_start_method() == "spawn"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def submit(self, function, *arguments):
        function, arguments = pickle.loads(pickle.dumps((function, arguments)))
        done = Future()
        done.set_result(pickle.loads(pickle.dumps(function(*arguments))))
        return done


def test_a_run_writes_table_json_evidence_and_page(data, tmp_path, monkeypatch, capfd):
    """Nothing learned, the training-free encoder, and one for four bands, left out where there are three."""
    import accuracy
    import keras
    from keras import ops

    pytest.importorskip("cv2")
    scaled = keras.Input((None, None, 4))
    y = keras.layers.Conv2D(8, 64, strides=8, use_bias=False)(ops.where(ops.isnan(scaled), 0.0, scaled))
    four = keras.Model(scaled, y * ops.rsqrt(ops.sum(y * y, -1, keepdims=True) + 1e-12))
    four.save(tmp_path / "four.keras")
    out = tmp_path / "out"
    groups = ["cities", "cities, RGB in an index of four bands", "cities, eight-bit renderings"]
    arguments = [str(data), "--out", str(out), "--queries", "8", "--exhaustive", "2"]
    arguments += [a for g in groups for a in ("--group", g)]
    arguments += [a for e in ("structure-tensor", str(tmp_path / "four.keras")) for a in ("--encoder", e)]
    monkeypatch.setattr(accuracy, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(sys, "argv", ["accuracy.py", *arguments])
    accuracy.main()
    said = capfd.readouterr()
    assert "four is left out" in said.err and "exhaustive NCC SC 1.000" in said.out
    result = json.loads((out / "accuracy.json").read_text())
    assert list(result["groups"]) == [g for g in protocol.GROUPS if g in groups]
    cities, three, bits = (result["groups"][g] for g in groups)
    assert list(cities["encoders"]) == ["structure-tensor", "four"] == list(bits["encoders"])
    assert list(three["encoders"]) == ["structure-tensor"]
    one = cities["encoders"]["structure-tensor"]
    assert one["counts"]["images"] == 32 and one["scores"]["all"]["SC"]["value"] == 1
    assert list(cities["encoders"]["four"]["minus"]) == ["structure-tensor"]
    less = cities["encoders"]["four"]["minus"]["structure-tensor"]["recall"]["1"]["value"]
    first = [e["scores"]["all"]["recall"]["1"]["value"] for e in (cities["encoders"]["four"], one)]
    assert less == pytest.approx(first[0] - first[1], abs=1e-5)
    assert bits["encoders"]["four"]["form"]["cities"]["n"] == 8
    arguments[-4:-4] = ["--encoder", "training-free"]
    monkeypatch.setattr(sys, "argv", ["accuracy.py", *arguments, "--keep", str(out)])
    accuracy.main()  # one encoder more; and one of the groups lacks one, which can't take it: tried again
    said = capfd.readouterr()
    assert said.out.count("training-free      ") == 3 and "structure-tensor   " not in said.out
    again = json.loads((out / "accuracy.json").read_text())
    more = again["groups"]["cities"]["encoders"]
    assert list(more) == ["training-free", "structure-tensor", "four"]
    assert more["structure-tensor"]["scores"] == one["scores"]
    # Both search alike, and what is found in generated places needs nothing learned.
    assert more["training-free"]["scores"]["all"]["recall"] == one["scores"]["all"]["recall"]
    assert more["training-free"]["scores"]["all"]["SC"]["value"] > 0.9
    assert list(more["structure-tensor"]["minus"]) == ["training-free"]
    assert list(more["four"]["minus"]) == ["training-free", "structure-tensor"]
    assert (
        more["four"]["minus"]["structure-tensor"] == cities["encoders"]["four"]["minus"]["structure-tensor"]
    )
    assert set(again["groups"]["cities"]["exhaustive"]["encoders"]) == set(more)
    assert "training-free" not in (out / "failures.html").read_text()
    form = again["groups"][groups[1]]["encoders"]["structure-tensor"]["form"]
    assert form == three["encoders"]["structure-tensor"]["form"]
    assert len(list(out.glob("evidence-*.npz"))) == 8 and not list(out.glob("index*"))
    assert (out / "failures.html").read_text().startswith("<!doctype html>")
    page = tables.filled((BENCHMARKS.parent / "docs/accuracy.md").read_text(), out)
    assert "| cities | structure-tensor | 1.000 |" in page
    assert "nan" not in page.split("## Design choices")[0].lower().split()


def test_the_chart_shows_every_group_and_names_missing_measurements(tmp_path):
    accuracy = json.loads((BENCHMARKS / "results/accuracy.json").read_text())
    chart.draw(accuracy, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    for name, group in accuracy["groups"].items():
        assert f"<!-- {name} -->" in text
        for encoder in ("training-free", "siamese"):
            assert f"<!-- {group['encoders'][encoder]['scores']['all']['SC']['value']:.3f} -->" in text
    del accuracy["groups"]["venice"]["encoders"]["training-free"]
    with pytest.raises(SystemExit, match="venice: not measured with training-free and siamese"):
        chart.draw(accuracy, tmp_path / "b.svg")
    assert not (tmp_path / "b.svg").exists()


# ---------------------------------------------------------------- floors on real imagery

FLOORS = {"cities": 0.95, "fields and forest": 0.75}
"""Lower limits of SC over the queries with features, of 24; well below the figures of docs/accuracy.md."""


@pytest.mark.data
@pytest.mark.parametrize("name", list(FLOORS))
def test_the_shipped_encoder_reaches_its_floor(name, tmp_path):
    folder = real_data("s2")
    from retrieval.pipeline import build_index

    where, asked = folder, protocol.GROUPS[name]
    question = protocol.ask(where, asked, 24, 0)
    index = build_index(protocol.database_of(where, asked).images(), tmp_path / "index")
    found = index.matches(question.patches)
    given = Submission(found.patch_ids, *found.best(), source="answer")
    rows = ~question.featureless
    sc = protocol.part(given, rows), protocol.part(question.answers, rows)
    from retrieval.evaluation.scoring import score

    assert score(*sc).sc.value >= FLOORS[name]


def test_the_whole_job_is_measured_by_stage(tmp_path):
    """The parts are functions of the engine that the script names, so a moved function fails here."""
    out = tmp_path / "figures.json"
    sizes = ["--images", "2", "--patches", "24", "--size", "128"]
    command = [sys.executable, str(BENCHMARKS / "challenge.py"), *sizes, "--out", str(tmp_path / "challenge")]
    subprocess.run([*command, "--json", str(out)], check=True, capture_output=True, text=True)
    stages = json.loads(out.read_text())["stages"]
    assert list(stages) == ["generate", "index", "query", "score"]
    parts = {
        "opening the index, reading patches",
        "embedding patches",
        "searching",
        "correlating and verifying",
        "full resolution",
    }
    assert parts <= set(stages["query"]["parts"])
    assert {"embedding images, threads together", "building the vector index"} <= set(
        stages["index"]["parts"]
    )
    assert 0 <= stages["score"]["result"]["all"]["SC"]["value"] <= 1
