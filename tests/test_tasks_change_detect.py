"""Change without labels: planted change, season, shift, cloud, other grids and bad input."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
import rasterio

pytest.importorskip("geopandas", reason="needs the extra `labels`")

from changeground import BANDS, CLEAR, CRS, SIDE, TRANSFORM, built, read, run, save, town

from retrieval.errors import ExamplesError, LabelsError
from retrieval.labels.agreement import dilated
from retrieval.synthetic import Sky
from retrieval.tasks.change import detect
from retrieval.tasks.change.coregistration import Shift, cubic_weights, read_shifted
from retrieval.tasks.change.difference import change_score, fit_normalization
from retrieval.tasks.change.mapping import Options, without_specks
from retrieval.tasks.change.pairs import open_pair, squares
from tfrecords.errors import (
    ArrayError,
    BandsError,
    GridError,
    MissingInputError,
    OutputExistsError,
    UnitsError,
)

SQUARES = ((40, 50, 24), (150, 60, 18), (200, 190, 26), (60, 200, 20))
SHIFT = (1.3, -0.7)


@pytest.fixture(scope="module")
def days():
    """A town on two days of two years: before, after, after with new buildings, and where they are."""
    scene = town()
    before = scene.observe(180, year=2017, sky=CLEAR, shift_xy_px=(0.0, 0.0)).dn
    after = scene.observe(190, year=2018, sky=CLEAR, shift_xy_px=SHIFT).dn
    return before, after, *built(after, SQUARES)


@pytest.fixture(scope="module")
def place(days, tmp_path_factory):
    """The files of `days`, and the report of the map of change."""
    folder = tmp_path_factory.mktemp("place")
    before, after, changed, _ = days
    for name, pixels in (("before", before), ("after", after), ("changed", changed)):
        save(folder / f"{name}.tif", pixels)
    done = run(
        *("change", "detect", folder / "before.tif", folder / "changed.tif", "--out", folder / "change.tif"),
        *("--probabilities", folder / "p.tif", "--polygons", folder / "change.gpkg", "--json"),
    )
    assert done.exit_code == 0, done.output
    return folder, json.loads(done.stdout)


# --- what is found ------------------------------------------------------------------------------


def test_new_buildings_are_found_and_little_else(place, days):
    folder, report = place
    values, truth = read(folder / "change.tif"), np.roll(days[3], (1, -1), (0, 1))
    seen = values != 255
    found = (values == 1) & seen
    recall = (found & (truth == 1)).sum() / (seen & (truth == 1)).sum()
    false = (found & (truth == 0)).sum() / (seen & (truth == 0)).sum()
    assert recall > 0.8 and false < 0.05
    assert report["change_share"] == pytest.approx(found.sum() / seen.sum())


def test_season_and_light_alone_give_little(place, tmp_path):
    folder, _ = place
    report = detect(folder / "before.tif", folder / "after.tif", tmp_path / "c.tif")
    assert report.change_share < 0.05


def test_the_same_date_twice_gives_nothing(place, tmp_path):
    before = place[0] / "before.tif"
    report = detect(before, before, tmp_path / "c.tif")
    assert (report.dx, report.dy, report.change_share, report.hidden_share) == (0, 0, 0, 0)


def test_the_score_ignores_gain_and_offset(days, rng):
    first = rng.normal(0, 0.2, (80, 90, 3)).astype(np.float32)
    second = first + rng.normal(0, 0.02, first.shape).astype(np.float32)
    second[20:30, 40:50] += 0.5
    ground = np.ones(first.shape[:2], bool)
    scores = [
        change_score(first, other, ground, fit_normalization([(first, other, ground)]))
        for other in (second, second * np.float32([0.5, 1.5, 2]) + np.float32([0.1, -0.2, 0.3]))
    ]
    np.testing.assert_allclose(*scores, rtol=0.02, atol=0.02)
    assert scores[0][22:28, 42:48].min() > 5 * np.median(scores[0])


def slow_normalization(first, second):
    """Moments of unchanged pixels (m, b) by reweighting, with all bands and pixels at once."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    weight = np.ones(len(first))
    for _ in range(10):
        mean = [np.average(date, 0, weight) for date in (first, second)]
        deviation = [
            np.sqrt(np.average((d - m) ** 2, 0, weight)) for d, m in zip((first, second), mean, strict=True)
        ]
        gap = (second - mean[1]) / deviation[1] - (first - mean[0]) / deviation[0]
        spread = 1.4826 * np.median(np.abs(gap - np.median(gap, 0)), 0)
        weight = 1 / (1 + ((gap / spread) ** 2).mean(1))
    return mean, deviation


def test_the_normalization_equals_a_slow_one_in_little_memory(rng):
    """Each square more takes less than three times its pixels; there are 64 at most."""
    blocks = []
    for _ in range(9):
        first = rng.normal(0, 0.2, (256, 256, 4)).astype(np.float32)
        second = 1.1 * first + rng.normal(0.05, 0.02, first.shape).astype(np.float32)
        second[20:60, 40:90] += 0.5
        blocks.append((first, second, rng.random((256, 256)) > 0.1))
    peaks = []
    for count in (3, 9):
        tracemalloc.start()
        fitted = fit_normalization(blocks[:count])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 3 * sum(first.nbytes + second.nbytes for first, second, _ in blocks[3:])
    seen = [np.concatenate([block[date][block[2]] for block in blocks]) for date in (0, 1)]
    np.testing.assert_allclose(
        [fitted.means, fitted.deviations], slow_normalization(*seen), rtol=1e-6, atol=1e-9
    )


# --- coregistration -----------------------------------------------------------------------------


def test_a_shifted_date_is_moved_back_and_the_shift_is_told(place):
    folder, report = place
    assert report["shift_found"] and abs(report["dx"] - SHIFT[0]) < 0.1 and abs(report["dy"] - SHIFT[1]) < 0.1
    with rasterio.open(folder / "change.tif") as dataset:
        tags = dataset.tags()
    assert float(tags["SHIFT_DX"]) == report["dx"] and float(tags["SHIFT_DY"]) == report["dy"]


def test_a_whole_shift_is_undone_exactly(days, tmp_path):
    before = days[0]
    first = save(tmp_path / "a.tif", before[10:-10, 10:-10])
    second = save(
        tmp_path / "b.tif", before[14:-6, 7:-13]
    )  # ground of column x lies at x + 3, of row y at y - 4
    report = detect(first, second, tmp_path / "c.tif")
    assert report.dx == pytest.approx(3, abs=0.005) and report.dy == pytest.approx(-4, abs=0.005)
    values = read(tmp_path / "c.tif")
    assert not (values == 1).any() and (values[:, :-3][4:] == 0).all()


def test_without_coregistration_the_dates_stay(place, tmp_path):
    folder, _ = place
    arguments = ("change", "detect", folder / "before.tif", folder / "after.tif", "--out", tmp_path / "c.tif")
    done = run(*arguments, "--no-coregister", "--json")
    assert json.loads(done.stdout)["dx"] == 0


def test_ground_without_edges_has_no_shift(tmp_path, rng):
    noise = [rng.integers(900, 904, (200, 200, 4), np.uint16) for _ in range(2)]
    files = [save(tmp_path / f"{i}.tif", pixels) for i, pixels in enumerate(noise)]
    done = run("change", "detect", *files, "--out", tmp_path / "c.tif", "--json")
    assert not json.loads(done.stdout)["shift_found"] and "no shift fits" in done.stderr


@pytest.mark.parametrize("offset", [0, 0.2, 0.5, 0.77, 1])
def test_cubic_weights_interpolate_a_parabola_exactly(offset):
    at = np.arange(-1, 3)
    assert cubic_weights(offset) @ (2 * at**2 - at + 3) == pytest.approx(2 * offset**2 - offset + 3, abs=1e-5)


def test_a_moved_date_hides_only_what_its_nearest_pixel_lacks(days, tmp_path):
    """A hole in the second date stays as large, and two pixels off it nothing changes."""
    after = days[0].copy()
    after[40:60, 70:100] = 0
    paths = [save(tmp_path / f"{name}.tif", day) for name, day in zip("ab", (days[0], after), strict=True)]
    with open_pair(*paths).open() as holed, open_pair(paths[0], paths[0]).open() as whole:
        for dx, dy in ((0.3, -0.2), (-1.4, 2.0), (0.0, 0.6)):
            window = (20, 10, 100, 120, Shift(dx, dy, 1.0, 1))
            moved, wanted = read_shifted(holed, *window), read_shifted(whole, *window)
            nearest = np.isnan(holed.read(1, 20 + round(dx), 10 + round(dy), 100, 120))
            np.testing.assert_array_equal(np.isnan(moved), nearest)
            far = ~dilated(nearest.any(-1), 2)
            np.testing.assert_array_equal(moved[far], wanted[far])


# --- hidden ground ------------------------------------------------------------------------------


def test_nodata_of_either_date_is_255(days, tmp_path):
    before, after = days[0].copy(), days[0].copy()
    before[:20], after[:, -30:] = 0, 0
    files = save(tmp_path / "a.tif", before), save(tmp_path / "b.tif", after)
    detect(*files, tmp_path / "c.tif", probabilities=tmp_path / "p.tif")
    values = read(tmp_path / "c.tif")
    hidden = (before == 0).all(-1) | (after == 0).all(-1)
    np.testing.assert_array_equal(values == 255, hidden)
    np.testing.assert_array_equal(np.isnan(read(tmp_path / "p.tif")), hidden)


def test_cloud_is_255_and_no_change(days, tmp_path):
    day = town().observe(200, year=2018, sky=Sky(0.3, 0.02), shift_xy_px=(0.0, 0.0))
    files = save(tmp_path / "a.tif", days[0]), save(tmp_path / "b.tif", day.dn)
    report = detect(*files, tmp_path / "c.tif")
    values = read(tmp_path / "c.tif")
    assert day.hidden.mean() > 0.1 and report.cloud_share > 0.1
    assert (values[day.hidden] == 255).mean() > 0.5
    bare = detect(*files, tmp_path / "d.tif", options=Options(mask_clouds=False))
    assert bare.cloud_share == 0 and bare.hidden_share == 0


# --- grids --------------------------------------------------------------------------------------


def test_another_grid_is_warped_with_a_note(days, tmp_path):
    before, truth = days[0], days[3]
    changed = built(before, SQUARES)[0]
    coarse = changed.reshape(SIDE // 2, 2, SIDE // 2, 2, 4).mean((1, 3)).astype(np.uint16)
    a, b, c, d, e, f = TRANSFORM
    files = (
        save(tmp_path / "a.tif", before),
        save(tmp_path / "b.tif", coarse, CRS, (2 * a, b, c, d, 2 * e, f)),
    )
    done = run("change", "detect", *files, "--out", tmp_path / "c.tif", "--no-clouds", "--json")
    report = json.loads(done.stdout)
    assert "warped" in done.stderr and report["notes"] and report["height"] == SIDE
    values = read(tmp_path / "c.tif")
    assert (values[truth == 1] == 1).mean() > 0.7
    with rasterio.open(tmp_path / "a.tif") as first, rasterio.open(tmp_path / "c.tif") as map_:
        assert first.transform == map_.transform and first.crs == map_.crs


def test_strips_leave_no_seams(days, tmp_path, monkeypatch):
    from retrieval.tasks.change import mapping

    files = save(tmp_path / "a.tif", days[0]), save(tmp_path / "b.tif", days[2])
    detect(*files, tmp_path / "whole.tif", probabilities=tmp_path / "p0.tif")
    monkeypatch.setattr(mapping, "ROWS", 96)
    monkeypatch.setattr(mapping, "COLUMNS", 160)
    detect(*files, tmp_path / "strips.tif", probabilities=tmp_path / "p1.tif")
    np.testing.assert_array_equal(read(tmp_path / "whole.tif"), read(tmp_path / "strips.tif"))
    np.testing.assert_allclose(read(tmp_path / "p0.tif"), read(tmp_path / "p1.tif"), atol=1e-4)


def test_a_window_beyond_the_image_is_nodata(place):
    with open_pair(place[0] / "before.tif", place[0] / "after.tif").open() as pair:
        window = pair.read(0, -3, SIDE - 5, 9, 10)
        assert np.isnan(window[:, :3]).all() and np.isnan(window[5:]).all()
        np.testing.assert_array_equal(window[:5, 3:], pair.read(0, 0, SIDE - 5, 5, 7))
        assert np.isnan(pair.read(1, SIDE, 0, 4, 4)).all()


@pytest.mark.parametrize("shape", [(50, 70), (64, 64), (300, 700), (2000, 100)])
def test_squares_lie_inside_and_are_few(shape):
    corners = squares(*shape, 64, 20)
    assert 1 <= len(corners) <= 20 and len(set(corners)) == len(corners)
    for x, y in corners:
        assert 0 <= x <= max(shape[1] - 64, 0) and 0 <= y <= max(shape[0] - 64, 0)


# --- outputs ------------------------------------------------------------------------------------


def test_the_map_has_names_colours_and_overviews_of_a_cog(place):
    folder, report = place
    with rasterio.open(folder / "change.tif") as dataset:
        assert dataset.dtypes == ("uint8",) and dataset.nodata == 255
        assert json.loads(dataset.tags()["CLASSES"]) == ["background", "change"]
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG" and 1 in dataset.colormap(1)
    p = read(folder / "p.tif")
    values = read(folder / "change.tif")
    assert p.dtype == np.float32 and np.nanmin(p) >= 0 and np.nanmax(p) <= 1
    assert (values[p < report["threshold"]] == 1).mean() < 0.01  # holes of few pixels are filled


def test_polygons_cover_the_changed_pixels(place):
    import geopandas

    folder, report = place
    frame = geopandas.read_file(folder / "change.gpkg")
    assert len(frame) == report["areas"] > 0 and set(frame["class"]) == {"change"}
    assert frame.area.sum() == pytest.approx(100 * (read(folder / "change.tif") == 1).sum())


def test_specks_and_holes_below_the_smallest_area_go():
    values = np.zeros((40, 40), np.uint8)
    values[5:15, 5:15], values[8:10, 8:10], values[30, 30], values[0, 20:25] = 1, 0, 1, 255
    expected = values.copy()
    expected[8:10, 8:10], expected[30, 30] = 1, 0
    np.testing.assert_array_equal(without_specks(values, 5), expected)


def test_finished_outputs_are_kept(place):
    folder, _ = place
    stamp = (folder / "change.tif").stat().st_mtime_ns
    arguments = ("change", "detect", folder / "before.tif", folder / "after.tif", "--out")
    done = run(*arguments, folder / "change.tif")
    assert done.exit_code == 1 and "--overwrite" in done.stderr
    done = run(*arguments, folder / "new.tif", "--polygons", folder / "change.gpkg")
    assert done.exit_code == 1 and not (folder / "new.tif").exists()
    assert (folder / "change.tif").stat().st_mtime_ns == stamp


# --- bad input ----------------------------------------------------------------------------------


def bad_inputs(folder, days):
    """Yield a name, the two files, further arguments and the error that each must give."""
    before = days[0][:96, :96]
    first = save(folder / "a.tif", before)
    yield "missing", first, folder / "none.tif", {}, MissingInputError
    (folder / "broken.tif").write_bytes(first.read_bytes()[:300])
    yield "broken", first, folder / "broken.tif", {}, ArrayError
    other = save(folder / "b11.tif", before[..., :2], bands=("B11", "B12"))
    yield "no common band", first, other, {}, BandsError
    a, b, c, d, e, f = TRANSFORM
    far = save(folder / "far.tif", before, CRS, (a, b, c + 50_000, d, e, f))
    yield "no overlap", first, far, {}, GridError
    bare = save(folder / "bare.tif", before[:80], crs=None)
    yield "other size without CRS", first, bare, {}, GridError
    byte = save(folder / "byte.tif", (before // 16).astype(np.uint8), nodata=None)
    yield "other units", first, byte, {}, UnitsError
    empty = save(folder / "empty.tif", np.zeros_like(before))
    yield "all nodata", first, empty, {"units": "dn"}, ExamplesError
    plain = [save(folder / f"plain{i}.tif", before, crs=None) for i in (0, 1)]
    yield "polygons without CRS", *plain, {"polygons": folder / "c.gpkg"}, LabelsError
    yield "polygons of another format", first, first, {"polygons": folder / "c.txt"}, LabelsError
    yield "map of another format", first, first, {"out": folder / "c.png"}, LabelsError
    taken = folder / "taken.tif"
    taken.write_bytes(b"x")
    yield "an output exists", first, first, {"probabilities": taken}, OutputExistsError


def test_each_bad_input_gives_one_error_and_no_file(days, tmp_path):
    cases = list(bad_inputs(tmp_path, days))
    known = {path.name for path in tmp_path.iterdir()}
    for name, first, second, more, kind in cases:
        more = {"out": tmp_path / "change.tif"} | more
        with pytest.raises(kind) as raised:
            detect(first, second, **more)
        assert str(raised.value).count("\n") == 0, name
        assert {path.name for path in tmp_path.iterdir()} == known, name


def test_shared_bands_are_compared_with_a_note(days, tmp_path):
    first = save(tmp_path / "a.tif", days[0][:128, :128])
    second = save(tmp_path / "b.tif", days[0][:128, :128, :3], bands=BANDS[:3])
    report = detect(first, second, tmp_path / "c.tif")
    assert any("3 of 4 bands" in note for note in report.notes)
