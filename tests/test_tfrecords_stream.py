"""Series streamed as pairs of crops: right pixels, repeatable, shared out, bounded."""

import itertools
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfrecords.errors import ArrayError, GridError, ManifestError, MissingInputError, RecordError
from tfrecords.grid import overlap
from tfrecords.read import CropPlan, cut_crops, naming_bad_records, stream_crops
from tfrecords.schema import BANDS, Series, encode_series, group_of
from tfrecords.write import write_records, write_series


def numbered(place, *, dates=3, height=100, width=130, bands=4, x0=0, y0=0, **more):
    """A series whose pixels say where they are: column + 1, row + 1, date + 1, place's number + 1."""
    y, x = np.mgrid[1 : height + 1, 1 : width + 1]
    pixels = np.empty((dates, height, width, 4), np.uint16)
    pixels[..., 0], pixels[..., 1], pixels[..., 3] = x, y, place + 1
    pixels[..., 2] = np.arange(1, dates + 1)[:, None, None]
    named = BANDS[:bands] if bands in (1, 3, 4) else None
    return Series(
        pixels[..., :bands], "dn", named, 0.0, tuple("abcdefghijkl"[:dates]), f"place{place}", x0, y0, **more
    )  # fmt: skip


def dn_of(scaled):
    return np.rint((scaled + 1) * 2047.5)


def keys(dataset):
    """What identifies each pair of a stream, in order."""
    return [
        (int(e["place_id"]), int(e["x"]), int(e["y"]), tuple(int(d) for d in e["dates"]))
        for e in dataset.as_numpy_iterator()
    ]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Seven series in shards of two."""
    folder = tmp_path_factory.mktemp("series") / "s"
    write_series(
        (numbered(i, x0=1000 * i, y0=5, overlap_group=i // 2) for i in range(7)), folder, per_shard=2
    )
    return folder


PLAN = CropPlan(crops_per_series=4, shuffle=16)

# --- cutting ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("jitter", [0, 5])
def test_both_crops_show_the_same_ground_on_two_dates(rng, jitter):
    series = numbered(3, x0=1000, y0=77)
    crops = cut_crops(series, CropPlan(jitter_px=jitter), rng)
    assert len(crops.x) > 5
    shifts = []
    for anchor, positive, x, y, dates in zip(*crops, strict=True):
        anchor, positive = dn_of(anchor), dn_of(positive)
        assert anchor[0, 0].tolist() == [x - 1000 + 1, y - 77 + 1, dates[0] + 1, 4]
        assert anchor[63, 9].tolist() == [x - 1000 + 10, y - 77 + 64, dates[0] + 1, 4]
        assert dates[0] != dates[1] and (positive[..., 2] == dates[1] + 1).all()
        shifts.append((positive - anchor)[0, 0, :2])
        assert (positive - anchor)[63, 63, :2].tolist() == shifts[-1].tolist()
    assert np.abs(shifts).max() == jitter if not jitter else 0 < np.abs(shifts).max() <= jitter


def test_crops_keep_their_distance(rng):
    crops = cut_crops(numbered(0, height=300, width=300), CropPlan(crops_per_series=40, min_gap_px=32), rng)
    pairs = itertools.combinations(zip(crops.x.tolist(), crops.y.tolist(), strict=True), 2)
    assert len(crops.x) > 15
    assert not any(overlap(*a, *b, size_px=32) for a, b in pairs)


def test_small_series_give_few_crops_and_smaller_ones_none(rng):
    assert len(cut_crops(numbered(0, height=64, width=64), CropPlan(jitter_px=3), rng).x) == 1
    assert len(cut_crops(numbered(0, height=64, width=90), CropPlan(), rng).x) in (1, 2)
    assert cut_crops(numbered(0, height=63, width=90), CropPlan(), rng).anchor.shape == (0, 64, 64, 4)


def test_every_pair_of_dates_and_every_place_occurs(rng):
    series = numbered(0, height=70, width=70)
    crops = [cut_crops(series, CropPlan(crops_per_series=1), rng) for _ in range(400)]
    assert {tuple(c.dates[0]) for c in crops} == set(itertools.permutations(range(3), 2))
    assert {(int(c.x[0]), int(c.y[0])) for c in crops} == {(x, y) for x in range(7) for y in range(7)}


@pytest.mark.parametrize("jitter", [0, 4])
def test_crops_keep_off_nodata(rng, jitter):
    series = numbered(0, height=200, width=200)
    series.pixels[0, :, :90] = 0
    series.pixels[1, 100:] = 0
    series.pixels[2, 40:60, 150:160] = 0
    plan = CropPlan(max_nodata=0.05, min_gap_px=4, crops_per_series=30, jitter_px=jitter)
    crops = cut_crops(series, plan, rng)
    assert len(crops.x) > 10
    for image in (*crops.anchor, *crops.positive):
        assert np.isnan(image).all(axis=-1).mean() <= 0.05
    assert any(np.isnan(image).any() for image in (*crops.anchor, *crops.positive))


def test_series_of_nodata_give_no_crops(rng):
    series = numbered(0)
    series.pixels[:] = 0
    assert len(cut_crops(series, CropPlan(), rng).x) == 0
    series = numbered(0, dates=2)
    series.pixels[:, ::3] = 0  # a third is missing everywhere: one crop all the same
    crops = cut_crops(series, CropPlan(), rng)
    assert len(crops.x) == 1 and 0.3 < np.isnan(crops.anchor).mean() < 0.36


@pytest.mark.parametrize("bands", [1, 3])
def test_missing_bands_are_nan(rng, bands):
    crops = cut_crops(numbered(0, bands=bands), CropPlan(), rng)
    assert not np.isnan(crops.anchor[..., :bands]).any()
    assert np.isnan(crops.anchor[..., bands:]).all() and np.isnan(crops.positive[..., bands:]).all()


def test_known_bands_are_kept_of_more_than_four(rng):
    names = ("B01", "B08", "B02", "B11", "B03", "B04", "B12")
    pixels = np.broadcast_to(np.arange(1, 8, dtype=np.uint16), (2, 64, 64, 7))
    crops = cut_crops(Series(pixels, "dn", names, 0.0, ("a", "b"), "p"), CropPlan(), rng)
    assert dn_of(crops.anchor[0, 0, 0]).tolist() == [6, 5, 3, 2]


@pytest.mark.parametrize(
    "wrong",
    [
        {"size_px": 0},
        {"jitter_px": -1},
        {"max_nodata": 1.5},
        {"shard_index": 2, "shard_count": 2},
        {"seed": -1},
    ],
)
def test_impossible_plans_are_refused(wrong):
    with pytest.raises(GridError, match=r"expected an index below|of 1 or more"):
        CropPlan(**wrong)


# --- streaming --------------------------------------------------------------------------------------


@pytest.mark.parametrize("jitter", [0, 3])
def test_stream_gives_place_and_dates_of_every_pair(places, jitter):
    elements = list(stream_crops(places, CropPlan(crops_per_series=4, jitter_px=jitter)).as_numpy_iterator())
    assert len(elements) == 28
    for e in elements:
        place = int(dn_of(e["anchor"])[0, 0, 3]) - 1
        column, row = e["x"] - 1000 * place + 1, e["y"] - 5 + 1
        assert e["place_id"] == group_of(f"place{place}") and e["overlap_group"] == place // 2
        assert dn_of(e["anchor"])[0, 0].tolist() == [column, row, e["dates"][0] + 1, place + 1]
        assert (np.abs(dn_of(e["positive"])[0, 0, :2] - [column, row]) <= jitter).all()
        assert dn_of(e["positive"])[5, 5, 2] == e["dates"][1] + 1
        expected = np.broadcast_to((column + np.arange(64)) / 2047.5 - 1, (64, 64))
        np.testing.assert_allclose(e["anchor"][..., 0], expected, atol=2e-5)
    spec = {k: (v.shape, v.dtype) for k, v in elements[0].items()}
    assert spec == {
        "anchor": ((64, 64, 4), np.float32),
        "positive": ((64, 64, 4), np.float32),
        "place_id": ((), np.int64),
        "overlap_group": ((), np.int64),
        "x": ((), np.int64),
        "y": ((), np.int64),
        "dates": ((2,), np.int64),
    }


def test_static_shapes_survive_for_batches(places):
    spec = stream_crops(places, PLAN).batch(8, drop_remainder=True).element_spec
    assert spec["anchor"].shape == (8, 64, 64, 4) and spec["dates"].shape == (8, 2)


def test_one_seed_one_sequence_whatever_else_was_seeded(places):
    first = keys(stream_crops(places, PLAN))
    tf.random.set_seed(99)
    dataset = stream_crops(places, PLAN)
    assert keys(dataset) == first == keys(dataset)
    assert keys(stream_crops(places, CropPlan(crops_per_series=4, shuffle=16, seed=1))) != first


def test_epochs_differ_and_repeat_goes_through_them(places):
    epochs = [keys(stream_crops(places, PLAN, epoch=n)) for n in range(3)]
    assert all(set(a) != set(b) for a, b in itertools.combinations(epochs, 2))
    endless = stream_crops(places, PLAN, epoch=1, repeat=True)
    assert keys(endless.take(56)) == epochs[1] + epochs[2]


def test_crops_of_different_series_are_mixed(places):
    order = [place for place, *_ in keys(stream_crops(places, CropPlan(crops_per_series=4, shuffle=28)))]
    runs = sum(a != b for a, b in itertools.pairwise(order))
    assert runs > 14


@pytest.mark.parametrize("count", [2, 3, 4, 7])  # 4 shards on disk: shared out by file, then by record
def test_workers_share_the_series_out(places, count):
    plans = [CropPlan(crops_per_series=4, shard_index=i, shard_count=count) for i in range(count)]
    shares = [{place for place, *_ in keys(stream_crops(places, plan))} for plan in plans]
    assert all(not a & b for a, b in itertools.combinations(shares, 2))
    assert set.union(*shares) == {group_of(f"place{i}") for i in range(7)}


def test_worker_without_series_gets_an_error(places):
    with pytest.raises(ArrayError, match="shard 7 of 8 has no window"):
        stream_crops(places, CropPlan(shard_index=7, shard_count=8))


def test_series_without_crops_are_skipped(tmp_path):
    empty = numbered(0)
    empty.pixels[:] = 0
    write_series([empty, numbered(1, height=40), numbered(2)], tmp_path / "s")
    assert {place for place, *_ in keys(stream_crops(tmp_path / "s", PLAN))} == {group_of("place2")}
    write_series([empty, numbered(1, height=40)], tmp_path / "none")
    with pytest.raises(ArrayError, match="too small or nodata"):
        stream_crops(tmp_path / "none", PLAN, repeat=True)


def test_byte_and_float_series_stream_too(tmp_path):
    byte = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3)).astype(np.uint8)
    scaled = np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 1)).astype(np.float32)
    write_series(
        [
            Series(byte, "byte", BANDS[:3], None, ("a", "b"), "byte"),
            Series(scaled, "scaled", ("unknown",), -1.0, ("a", "b"), "scaled"),
        ],
        tmp_path / "s",
    )
    for e in stream_crops(tmp_path / "s", PLAN).as_numpy_iterator():
        if e["place_id"] == group_of("byte"):
            np.testing.assert_allclose(e["anchor"][..., :3], byte[e["dates"][0]] / 127.5 - 1, atol=2e-5)
        else:
            np.testing.assert_allclose(e["positive"][..., :1], scaled[e["dates"][1]], atol=2e-5)


# --- what can be wrong ------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path):
    """Two files of two series, without a manifest."""
    paths = [tmp_path / "a.tfrecords", tmp_path / "b.tfrecords"]
    for number, path in enumerate(paths):
        first, second = numbered(2 * number), numbered(2 * number + 1)
        write_records(path, [encode_series(first, last=False), encode_series(second, last=True)])
    return paths


def stream_error(source, kind, match):
    with pytest.raises(kind, match=match), naming_bad_records(source):
        for _ in stream_crops(source, PLAN).batch(2).prefetch(1):
            pass


def test_damaged_records_are_named_while_streaming(two):
    content = two[1].read_bytes()
    half = len(content) // 2
    for position, record in ((half // 2, 0), (half + 100, 1), (len(content) - 1, 1)):
        damaged = bytearray(content)
        damaged[position] ^= 4
        two[1].write_bytes(damaged)
        stream_error(two, RecordError, rf"b\.tfrecords: record {record} .*bytes are damaged")
    for length, record in ((half + 5, 1), (half - 9, 0), (len(content) - 3, 1)):
        two[1].write_bytes(content[:length])
        stream_error(two, RecordError, rf"b\.tfrecords: record {record} .*truncated")
    two[1].write_bytes(content[:half])  # between two records
    stream_error(two, RecordError, r"b\.tfrecords: record 0 .*more records were written after it")


def test_malformed_records_are_named_while_streaming(two):
    good = encode_series(numbered(0))
    for bad, match in [
        (b"none", "not a tf.train.Example"),
        (tf.train.Example().SerializeToString(), "'time_series_raw' is missing"),
    ]:
        write_records(two[1], [good, bad])
        stream_error(two, RecordError, rf"b\.tfrecords: record 1 .*{match}")
    nan = Series(np.full((2, 64, 64, 1), np.nan, np.float32), "scaled", ("unknown",), -1.0, ("a", "b"), "p")
    write_records(two[1], [good, encode_series(nan)])
    stream_error(two, RecordError, r"b\.tfrecords: record 1 .*values are NaN")


def test_other_errors_are_not_changed(two):
    with pytest.raises(tf.errors.InvalidArgumentError), naming_bad_records(two):
        raise tf.errors.InvalidArgumentError(None, None, "of the model")
    with pytest.raises(ZeroDivisionError), naming_bad_records(two):
        raise ZeroDivisionError


def test_sources_are_checked_before_the_first_crop(places, tmp_path):
    with pytest.raises(MissingInputError):
        stream_crops(tmp_path, PLAN)
    (tmp_path / "s.partial").mkdir()
    with pytest.raises(ManifestError, match=r"no manifest\.json"):
        stream_crops(tmp_path / "s.partial", PLAN)


MEMORY = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
sys.path[:0] = [{root!r}]
from tfrecords.read import CropPlan, stream_crops
peaks = []
for count, _ in enumerate(stream_crops([{path!r}] * 60, CropPlan(shuffle=64)), start=1):
    if count % 160 == 0:
        # Not getrusage: its peak is inherited from the process that started this one.
        status = open("/proc/self/status").read().splitlines()
        peaks += [int(line.split()[1]) // 1024 for line in status if line.startswith("VmHWM")]
print(count, *peaks)
"""


def test_memory_does_not_grow_with_the_data(tmp_path):
    """Sixty full series, 1.5 GB, pass through; the peak is that of the first ten, far below 2 GB."""
    pixels = np.random.default_rng(0).integers(1, 2048, (12, 512, 512, 4), dtype=np.uint16)
    one = Series(pixels, "dn", BANDS, 0.0, tuple("abcdefghijkl"), "p")
    write_records(tmp_path / "one.tfrecords", [encode_series(one, challenge=True)])
    code = textwrap.dedent(MEMORY).format(
        root=str(Path(__file__).parents[1]), path=str(tmp_path / "one.tfrecords")
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, *peaks = map(int, run.stdout.split())
    assert count == 960 and len(peaks) == 6
    assert peaks[-1] - peaks[0] < 100 and peaks[-1] < 1500
