import csv
import datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.synthetic.light import Sky, cast_shadow, sense, sun_at
from retrieval.synthetic.noise import coarse_fractal, fft_length, fractal, line_distance
from retrieval.synthetic.parcels import divide, lattice
from retrieval.synthetic.plan import COUNTRIES
from retrieval.synthetic.scene import Scene, SceneConfig
from retrieval.synthetic.sets import make_challenge, make_series
from retrieval.synthetic.spectra import reflectance, season
from retrieval.synthetic.units import CROPS, HOLDS_SNOW, LONG_AGO, TEXTURE, Climate, Kind, Units
from tfrecords.artifacts import read_manifest
from tfrecords.errors import ArrayError, OutputExistsError, UnfinishedOutputError
from tfrecords.read import read_images, read_patches, read_series

CLEAR = Sky(cover=0, haze=0.02)
SMALL = {"images": 3, "patches": 10, "size_px": 96, "seed": 4}


def only(country, **more):
    return SceneConfig(**{name: float(name == country) for name in COUNTRIES}, **more)


def log_gradient(dn):
    scaled = np.clip(dn.astype(np.float32), 0, 4095) / 2047.5
    gx = scaled[1:-1, 2:] - scaled[1:-1, :-2]
    gy = scaled[2:, 1:-1] - scaled[:-2, 1:-1]
    return np.log1p(1e4 * (gx**2 + gy**2).sum(-1))


def correlation(a, b):
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def unit_table(kind, count=200, **values):
    rng = np.random.default_rng(0)
    traits = rng.random((count, 4), dtype=np.float32)
    for column, value in values.items():
        traits[:, int(column[1])] = value
    since = np.full(count, LONG_AGO, np.int16)
    return Units(np.full(count, kind, np.uint8), traits, since, np.arange(count, dtype=np.int32))


def look(kind, day, year=2018, latitude=45.0, dryness=0.1, since=None, **values):
    units = unit_table(kind, **values)
    if since is not None:
        units.since[:] = since
    climate = Climate(latitude, dryness, (1500, 1150, 850, 2050), 0.5)
    return reflectance(units, climate, day, year, np.random.default_rng(1), 7)


def test_the_same_seed_gives_the_same_ground_and_day_the_same_image():
    one, two = (Scene(5, 96, 128) for _ in "ab")
    first, again = one.observe(120, year=2017), two.observe(120, year=2017)
    assert first.dn.shape == (96, 128, 4) and first.dn.dtype == np.uint16 and first.dn.min() > 0
    assert np.array_equal(first.dn, again.dn) and np.array_equal(first.hidden, again.hidden)
    assert (first.shift_x_px, first.shift_y_px) == (again.shift_x_px, again.shift_y_px)
    assert np.array_equal(one.render(120, year=2017), first.dn)
    assert first.date == "2017-04-30"
    assert not np.array_equal(one.render(121, year=2017), first.dn)
    assert not np.array_equal(Scene(6, 96, 128).render(120, year=2017), first.dn)


@pytest.mark.parametrize("country", ["farmland", "town", "coast"])
def test_gradients_stay_over_the_seasons_and_differ_between_places(country):
    config = only(country)
    same, other = [], []
    for seed in range(3):
        scene = Scene(seed, 160, 160, config)
        spring = scene.observe(130, year=2017, sky=CLEAR, shift_xy_px=(0, 0)).dn
        autumn = scene.observe(265, year=2018, sky=CLEAR, shift_xy_px=(0, 0)).dn
        stranger = Scene(seed + 50, 160, 160, config).observe(265, year=2018, sky=CLEAR).dn
        same.append(correlation(log_gradient(spring), log_gradient(autumn)))
        other.append(correlation(log_gradient(spring), log_gradient(stranger)))
    assert 0.4 < np.median(same) < 0.97
    assert max(other) < min(same) and np.median(np.abs(other)) < 0.35  # a coast is a coast


def test_contrast_between_fields_turns_over_where_their_borders_stay():
    turned = []
    for seed in range(4):
        scene = Scene(seed, 192, 192, only("farmland"))
        early, late = (scene.observe(d, year=2018, sky=CLEAR, shift_xy_px=(0, 0)).dn for d in (125, 235))
        for y in range(0, 128, 32):
            for x in range(0, 128, 32):
                a, b = early[y : y + 64, x : x + 64], late[y : y + 64, x : x + 64]
                raw = correlation(a[..., 3].astype(float), b[..., 3].astype(float))
                turned.append((raw, correlation(log_gradient(a), log_gradient(b))))
    raw, edges = np.array(turned).T
    assert (raw < 0).mean() > 0.02
    assert np.median(edges) > 0.35 and (edges < 0).mean() < 0.05


@pytest.mark.parametrize("country", COUNTRIES)
def test_bands_have_the_values_of_real_imagery(country):
    dn = np.concatenate(
        [Scene(s, 96, 96, only(country)).observe(170, sky=CLEAR).dn.reshape(-1, 4) for s in range(5)]
    )
    red, _, blue, infrared = np.median(dn, axis=0)
    assert 300 < red < 4500 and 600 < blue < 4500 and 150 < infrared < 6000
    assert 300 < np.percentile(dn[:, 2], 1)  # the air itself is blue
    if country in ("farmland", "forest"):
        assert infrared > 1.5 * red


def test_crops_are_green_in_summer_and_bare_or_yellow_after_the_harvest():
    summer, autumn = look(Kind.CROP, 165), look(Kind.CROP, 320)
    ndvi = [((t[:, 3] - t[:, 0]) / (t[:, 3] + t[:, 0])).mean() for t in (summer, autumn)]
    assert ndvi[0] > ndvi[1] + 0.15
    assert look(Kind.CROP, 165).std(axis=0)[3] > 400  # not all crops are alike


def test_the_south_has_its_summer_in_january():
    assert season(20, 2018, -30)[0] == pytest.approx(203)
    assert season(200, 2018, -30) == (18.0, 2019)
    assert (
        look(Kind.STAND, 15, latitude=-40, t0=0.9)[:, 3].mean()
        > look(Kind.STAND, 200, latitude=-40, t0=0.9)[:, 3].mean()
    )


def test_water_is_dark_in_the_infrared_and_roads_are_grey():
    water, road = look(Kind.WATER, 150), look(Kind.ROAD, 150)
    assert water[:, 3].max() < 600
    assert (np.ptp(road, axis=1) < 700).all()


def test_houses_are_built_and_stands_felled_in_their_year():
    before, after = (look(Kind.LOT, 200, year=y, since=2018, t0=0.2, t1=0.1) for y in (2016, 2021))
    assert before[:, 3].mean() > 1.4 * after[:, 3].mean()
    wood, cleared = (look(Kind.STAND, 200, year=y, since=2018, t0=0.1) for y in (2017, 2018))
    assert cleared[:, 0].mean() > 1.5 * wood[:, 0].mean()


def test_halves_of_a_parcel_share_their_crop_in_some_years_only():
    units = unit_table(Kind.CROP, 400)
    partner = np.arange(400, dtype=np.int32) // 2 * 2
    units = Units(units.kind, np.repeat(units.traits[:200], 2, axis=0), units.since, partner)
    climate = Climate(45.0, 0.1, (1500, 1150, 850, 2050), 0.5)
    table = reflectance(units, climate, 170, 2018, np.random.default_rng(1), 7)
    alike = (table[::2] == table[1::2]).all(axis=1).mean()
    assert 0.2 < alike < 0.8


def test_tables_of_kinds_are_complete():
    assert len(TEXTURE) == len(HOLDS_SNOW) == len(Kind)
    assert sum(crop.share for crop in CROPS) == pytest.approx(1)
    for kind in Kind:
        table = look(kind, 100)
        assert np.isfinite(table).all() and (table >= 0).all() and (table < 9000).all()


def test_snow_lies_on_mountains_in_winter():
    winters = []
    for seed in range(4):
        scene = Scene(seed, 96, 96, only("hills"))
        cold, warm = (20, 200) if scene.plan.latitude_deg > 0 else (200, 20)
        winter, summer = (scene.observe(day, sky=CLEAR).dn[..., 2].mean() for day in (cold, warm))
        winters.append(winter / summer)
    assert max(winters) > 2


def test_misregistration_is_small_and_known():
    scene = Scene(3, 96, 96, only("town", shift_px=1.5))
    drawn = [scene.observe(day) for day in range(1, 12)]
    shifts = np.array([(one.shift_x_px, one.shift_y_px) for one in drawn])
    assert np.abs(shifts).max() <= 2 and len(np.unique(shifts)) > 10
    still = log_gradient(scene.observe(100, sky=CLEAR, shift_xy_px=(0, 0)).dn)
    moved = log_gradient(scene.observe(100, sky=CLEAR, shift_xy_px=(2, -1)).dn)
    score = {
        (dx, dy): correlation(still[4:-4, 4:-4], moved[4 + dy : dy - 4 or None, 4 + dx : dx - 4 or None])
        for dx in range(-3, 4)
        for dy in range(-3, 4)
    }
    assert max(score, key=score.get) == (2, -1)


@given(st.floats(-2, 2), st.floats(-2, 2))
def test_the_instrument_moves_the_ground_by_parts_of_a_pixel(dx, dy):
    y, x = np.mgrid[:56, :56].astype(np.float32) / 2
    seen = sense(np.stack([x, y]), 16, 16, margin_px=6, shift_xy_px=(dx, dy))
    rows, cols = np.mgrid[:16, :16]
    # A slope is seen unblurred: the middle of pixel 0 lies a quarter of a pixel behind fine pixel 0's.
    assert np.allclose(seen[0], cols + 6 - dx + 0.25, atol=1e-3)
    assert np.allclose(seen[1], rows + 6 - dy + 0.25, atol=1e-3)


def test_hidden_mask_matches_the_clouds():
    scene = Scene(8, 160, 160, only("farmland"))
    clear, cloudy = (scene.observe(150, sky=Sky(c, 0.0), shift_xy_px=(0, 0)) for c in (0.0, 0.3))
    assert not clear.hidden.any()
    assert 0.2 < cloudy.hidden.mean() < 0.8
    change = np.abs(cloudy.dn.astype(float) - clear.dn).mean(axis=-1)
    assert change[cloudy.hidden].mean() > 5 * change[~cloudy.hidden].mean()
    darker = cloudy.dn[..., 3].astype(float) < 0.85 * clear.dn[..., 3]
    assert darker[cloudy.hidden].mean() > 0.05  # shadows


def test_shadows_fall_away_from_the_sun():
    sun = sun_at(172, 50)
    assert sun.x > 0 and sun.y > 0 and sun.z > 0.5  # a summer's forenoon in the north: south-east
    height = np.zeros((21, 21), np.float32)
    height[10, 10] = 30
    dark = np.argwhere(cast_shadow(height, sun, 5.0))
    assert len(dark) and (dark[:, 0] <= 10).all() and (dark[:, 1] <= 10).all()
    assert sun_at(355, 64).z == pytest.approx(0.2)
    assert sun_at(172, -30).y < 0  # in the south the sun stands in the north


@pytest.mark.parametrize("shape", [(64, 64), (70, 101)])
def test_fields_have_zero_mean_and_unit_variance(rng, shape):
    for field in (
        fractal(rng, shape, beta=2, low_px=40, high_px=3, stretch=3),
        coarse_fractal(rng, shape, beta=3),
    ):
        assert field.shape == shape and field.dtype == np.float32
        assert abs(field.mean()) < 1e-4 and field.std() == pytest.approx(1, abs=1e-3)


@given(st.integers(1, 3000))
def test_lengths_for_the_transform_have_small_factors_only(side):
    length = fft_length(side)
    assert side <= length < side * 1.3 + 2
    for prime in (2, 3, 5, 7):
        while length % prime == 0:
            length //= prime
    assert length == 1


def test_distance_to_a_contour_is_in_pixels():
    x = np.tile(np.arange(50, dtype=np.float32) * 0.2 - 5, (20, 1))
    assert np.allclose(line_distance(x)[:, 20], 5, atol=1e-3)


def test_parcels_cover_the_whole_mask(rng):
    districts = divide(rng, (120, 140), 5, warp_px=4)
    assert set(np.unique(districts.index)) <= set(range(5)) and (districts.margin_px >= 0).all()
    mask = rng.random((120, 140)) < 0.7
    pitch, angle = np.full(5, 12.0), rng.uniform(0, np.pi, 5)
    cut = lattice(rng, districts, mask, width_px=pitch, length_px=2 * pitch, angle_rad=angle)
    assert len(cut.cell) == mask.sum() and 0 <= cut.cell.min() and cut.cell.max() < cut.count
    assert np.array_equal(cut.district[cut.cell], districts.index[mask])
    assert (cut.side_px >= 0).all() and (cut.end_px >= 0).all()
    _, sizes = np.unique(cut.cell, return_counts=True)
    assert 40 < np.median(sizes) < 400


def test_impossible_places_are_refused():
    with pytest.raises(ArrayError, match="64 x 64"):
        Scene(0, 63, 100)
    with pytest.raises(ArrayError, match="none below 0"):
        Scene(0, 64, 64, SceneConfig(town=-1)).country  # noqa: B018
    with pytest.raises(ArrayError, match="366"):
        Scene(0, 64, 64).observe(367)
    with pytest.raises(ArrayError, match="at most 2"):
        Scene(0, 64, 64).observe(1, shift_xy_px=(2.5, 0))


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def challenge(tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "challenge"
    return make_challenge(out, **SMALL)


def test_a_challenge_can_be_read_and_answered(challenge):
    images = {image.image_id: image for image in read_images(challenge.path / "test_images.tfrecords")}
    patches = read_patches(challenge.path / "test_patches.tfrecords")
    assert sorted(images) == [0, 1, 2] and sorted(patches.patch_ids) == list(range(10))
    assert challenge.images == 3 and challenge.patches == 10 and "%" in challenge.notes[0]
    answers = rows_of(challenge.path / "answers.csv")
    assert [int(row["Patch ID"]) for row in answers] == list(range(10))
    assert list(answers[0]) == ["Patch ID", "Result"]
    for row, truth in zip(answers, rows_of(challenge.path / "truth.csv"), strict=True):
        image_id, x, y = (int(part) for part in row["Result"].split())
        assert truth["Patch ID"] == row["Patch ID"] and (int(truth["x"]), int(truth["y"])) == (x, y)
        assert 0 <= x <= 32 and 0 <= y <= 32 and image_id in images
        assert abs(float(truth["true_x"]) - x) <= 4 and truth["date"][:4] != truth["image_date"][:4]
        assert images[image_id].date == truth["image_date"]
        datetime.date.fromisoformat(truth["date"])
    assert read_manifest(challenge.path, "challenge").counts == {"images": 3, "patches": 10}


def test_the_answer_is_where_the_patch_was_cut(tmp_path):
    config = only("town", cloudy=0, haze=0.01, shift_px=0.0)
    report = make_challenge(tmp_path / "c", images=1, patches=4, size_px=128, seed=2, config=config)
    image = next(iter(read_images(report.path / "test_images.tfrecords"))).pixels
    patches = read_patches(report.path / "test_patches.tfrecords")
    for row in rows_of(report.path / "answers.csv"):
        _, x, y = (int(part) for part in row["Result"].split())
        asked = log_gradient(patches.pixels[list(patches.patch_ids).index(int(row["Patch ID"]))])
        near = {
            (dx, dy): correlation(asked, log_gradient(image[y + dy : y + dy + 64, x + dx : x + dx + 64]))
            for dx in range(-min(3, x), min(3, 64 - x) + 1)
            for dy in range(-min(3, y), min(3, 64 - y) + 1)
        }
        assert max(near, key=near.get) == (0, 0)


def test_threads_change_nothing(challenge, tmp_path):
    make_challenge(tmp_path / "one", **SMALL, workers=1)
    for name in ("test_images.tfrecords", "test_patches.tfrecords", "answers.csv", "truth.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (challenge.path / name).read_bytes()


@pytest.fixture
def observed(monkeypatch):
    """Seeds of the scenes that are observed, in their order."""
    seeds, observe = [], Scene.observe

    def recorded(scene, *day, **options):
        if seeds[-1:] != [scene.seed]:
            seeds.append(scene.seed)
        return observe(scene, *day, **options)

    monkeypatch.setattr(Scene, "observe", recorded)
    return seeds


def test_interrupted_challenge_resumes(challenge, tmp_path, observed):
    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_challenge(tmp_path / "c", **SMALL, workers=1, chunk_bytes=1, progress=stop)
    assert not (tmp_path / "c").exists()
    _, second = observed
    observed.clear()
    with pytest.raises(UnfinishedOutputError):
        make_challenge(tmp_path / "c", **(SMALL | {"seed": 5}), chunk_bytes=1)
    calls = []
    progress = lambda done, total: calls.append((done, total))  # noqa: E731
    make_challenge(tmp_path / "c", **SMALL, workers=1, chunk_bytes=1, progress=progress)
    assert observed[0] == second and len(observed) == 2  # the first image is not made again
    assert calls == [(1, 3), (2, 3), (3, 3)]
    for name in ("test_images.tfrecords", "test_patches.tfrecords", "answers.csv", "truth.csv"):
        if name.endswith("csv"):
            assert (tmp_path / "c" / name).read_bytes() == (challenge.path / name).read_bytes()
    assert len(read_images(tmp_path / "c" / "test_images.tfrecords")) == 3
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == sorted(
        p.name for p in challenge.path.iterdir()
    )


def test_finished_challenge_is_kept(challenge):
    before = (challenge.path / "answers.csv").read_bytes()
    with pytest.raises(OutputExistsError):
        make_challenge(challenge.path, **SMALL)
    assert (challenge.path / "answers.csv").read_bytes() == before


def test_images_of_512_px_have_the_published_records(tmp_path):
    tf = pytest.importorskip("tensorflow")
    make_challenge(tmp_path / "c", images=1, patches=2, size_px=512)
    for name, features, length in (
        ("test_images", {"image_raw", "image_id"}, 512 * 512 * 4 * 2),
        ("test_patches", {"patch_raw", "patch_id"}, 64 * 64 * 4 * 2),
    ):
        raw = next(tf.data.TFRecordDataset(str(tmp_path / "c" / f"{name}.tfrecords")).as_numpy_iterator())
        found = tf.train.Example.FromString(raw).features.feature
        assert set(found) == features
        pixels = next(v for k, v in found.items() if k.endswith("_raw")).bytes_list.value[0]
        assert len(pixels) == length
        values = np.frombuffer(pixels, np.float16)
        assert -1 <= values.min() < values.max() <= 1


@pytest.mark.parametrize("wrong", [{"images": 0}, {"patches": 2}, {"size_px": 63}, {"seed": -1}])
def test_impossible_challenges_are_refused(tmp_path, wrong):
    with pytest.raises(ArrayError, match="expected"):
        make_challenge(tmp_path / "c", **(SMALL | wrong))
    assert not list(tmp_path.iterdir())


def test_series_show_different_places_in_order_of_time(tmp_path):
    calls = []
    report = make_series(
        tmp_path / "s",
        series=3,
        dates=4,
        size_px=64,
        per_shard=2,
        progress=lambda done, total: calls.append(done),
    )
    found = list(read_series(tmp_path / "s"))
    assert report.series == len(found) == 3 and calls == [1, 2, 3]
    for one in found:
        assert one.pixels.shape == (4, 64, 64, 4) and one.units == "dn"
        assert list(one.dates) == sorted(one.dates) and len(set(one.dates)) == 4
    assert len({one.place for one in found}) == len({one.overlap_group for one in found}) == 3
    with pytest.raises(ArrayError, match="two dates"):
        make_series(tmp_path / "t", dates=1)


def test_interrupted_series_keep_finished_shards(tmp_path, observed):
    def stop(done, total):
        if done == 2:
            raise RuntimeError("stop")

    options = {"series": 3, "dates": 2, "size_px": 64, "per_shard": 1, "workers": 1}
    with pytest.raises(RuntimeError):
        make_series(tmp_path / "s", **options, progress=stop)
    first = observed[0]
    observed.clear()
    make_series(tmp_path / "s", **options)
    assert first not in observed and len(list(read_series(tmp_path / "s"))) == 3
