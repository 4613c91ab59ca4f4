"""Maps against labels: known errors are found, shifts are forgiven, and the figures are what they say."""

import json

import pytest

pytest.importorskip("mercantile", reason="needs the extra `labels`")
pytest.importorskip("geopandas", reason="needs the extra `labels`")

import geopandas
import numpy as np
import shapely
from geopandas.testing import assert_geodataframe_equal
from hypothesis import given, settings
from hypothesis import strategies as st
from labelground import CORNER, polygon, run, square, write_geojson

from retrieval.errors import LabelsError
from retrieval.labels import compare, compared_rows, comparing
from retrieval.labels.agreement import Tolerance, dilated, opened
from retrieval.labels.classes import Classes
from retrieval.labels.masks import write_png
from tfrecords.errors import MissingInputError

UTM = "EPSG:32631"
STEP, WEST, NORTH = 10.0, 500_000.0, 5_000_000.0
GRID = (STEP, 0.0, WEST, 0.0, -STEP, NORTH)
LAND = Classes(("background", "town", "forest", "water"))
SPECTRA = np.array(
    [[900, 1000, 700, 2600], [1500, 1400, 1300, 2000], [400, 500, 300, 2200], [300, 400, 500, 200]]
)
"""Digital numbers of field, town, forest and water in four bands."""


def outline(x, y, w, h):
    """A box in pixels of the raster."""
    return shapely.box(WEST + STEP * x, NORTH - STEP * (y + h), WEST + STEP * (x + w), NORTH - STEP * y)


def places(rng, count, size, taken):
    """Boxes of 10 to 40 pixels that do not overlap one another."""
    found = []
    while len(found) < count:
        w, h = rng.integers(10, 41, 2)
        x, y = rng.integers(4, size - 45, 2)
        if not taken[y : y + h, x : x + w].any():
            taken[y : y + h, x : x + w] = True
            found.append((int(x), int(y), int(w), int(h)))
    return found


def imagery(rng, truth):
    """Four bands of a scene: the spectra of the classes, with texture and noise."""
    pixels = SPECTRA[truth] * rng.normal(1, 0.08, truth.shape)[..., None]
    return pixels + rng.normal(0, 60, pixels.shape)


def classified(pixels, spectra):
    """The class with the nearest spectrum, of means of 3 x 3 pixels: a map out of imagery."""
    padded = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    h, w = pixels.shape[:2]
    means = sum(padded[dy : dy + h, dx : dx + w] for dy in range(3) for dx in range(3)) / 9
    distance = np.linalg.norm(means[:, :, None] - spectra, axis=-1)
    return distance.argmin(-1).astype(np.uint8)


def scene(seed, size=900):
    """A map out of imagery, and labels with known errors: 10 % missing, 5 % invented, the rest shifted."""
    rng = np.random.default_rng(seed)
    taken = np.zeros((size, size), bool)
    truth = np.zeros((size, size), np.uint8)
    boxes = places(rng, 300, size, taken)
    kinds = rng.integers(1, 4, len(boxes))
    for (x, y, w, h), kind in zip(boxes, kinds, strict=True):
        truth[y : y + h, x : x + w] = kind
    rows = []
    for number, ((x, y, w, h), kind) in enumerate(zip(boxes, kinds, strict=True)):
        dx, dy = rng.integers(-2, 3, 2)
        state = "missing" if number < 30 else "correct"
        rows.append(
            (state, LAND.names[kind], outline(x + dx, y + dy, w, h) if number >= 30 else outline(x, y, w, h))
        )
    invented = places(rng, 15, size, taken)
    rows += [("invented", LAND.names[rng.integers(1, 4)], outline(*box)) for box in invented]
    frame = geopandas.GeoDataFrame(
        {"state": [r[0] for r in rows], "kind": [r[1] for r in rows]}, geometry=[r[2] for r in rows], crs=UTM
    )
    # The spectra are learned from the labels with all their errors.
    pixels = imagery(rng, truth)
    from rasterio import Affine
    from rasterio.features import rasterize

    given_labels = frame[frame.state != "missing"]
    burnt = rasterize(
        [(s, LAND.names.index(k)) for s, k in zip(given_labels.geometry, given_labels.kind, strict=True)],
        (size, size), transform=Affine(*GRID), dtype="uint8",
    )  # fmt: skip
    learned = np.array([np.median(pixels[burnt == index], axis=0) for index in range(4)])
    return classified(pixels, learned), frame


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_known_errors_of_town_forest_and_water_are_found(tmp_path, write_tif, seed):
    predicted, frame = scene(seed)
    path = write_tif("map.tif", predicted[..., None], crs=UTM, transform=GRID)
    labels = frame[frame.state != "missing"].reset_index(drop=True)
    labels.to_file(tmp_path / "labels.gpkg")
    result = compare(path, tmp_path / "labels.gpkg", classes=LAND, attribute="kind")
    rows = result.rows
    features = rows[rows.feature >= 0].set_index("feature").sort_index()
    flagged = features["kind"] == "unsupported"
    invented = (labels.state == "invented").to_numpy()
    assert flagged[invented].mean() >= 0.95
    assert flagged[~invented].mean() <= 0.02
    areas = rows[rows["kind"].isin(["missing", "conflict"])]
    missing = frame[frame.state == "missing"]
    hit = [
        any(
            areas["class"][i] == kind and areas.geometry[i].intersection(shape).area > 0.3 * shape.area
            for i in areas.index
        )
        for shape, kind in zip(missing.geometry, missing.kind, strict=True)
    ]
    assert np.mean(hit) >= 0.95
    correct = shapely.union_all(frame[frame.state != "invented"].buffer(30).to_numpy())
    assert all(shapely.intersects(correct, areas.geometry))  # no area where there is nothing


def slow_opened(mask, size):
    out = np.zeros_like(mask)
    for y in range(mask.shape[0] - size + 1):
        for x in range(mask.shape[1] - size + 1):
            if mask[y : y + size, x : x + size].all():
                out[y : y + size, x : x + size] = True
    return out


def slow_dilated(mask, radius):
    out = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        out[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1] = True
    return out


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.floats(0.5, 0.99))
def test_opening_and_dilation_equal_slow_ones(seed, size, share):
    mask = np.random.default_rng(seed).random((14, 11)) < share
    assert np.array_equal(opened(mask, size), slow_opened(mask, size))
    assert np.array_equal(dilated(~mask, size - 1), slow_dilated(~mask, size - 1))


@pytest.fixture
def simple(tmp_path, write_tif):
    """A map of two houses, and labels of the first, shifted, of one that is not there, and of one outside."""
    values = np.zeros((600, 600), np.uint8)
    values[100:120, 100:120] = values[505:525, 500:530] = 1  # the second lies across tiles of 512
    path = write_tif("map.tif", values[..., None], crs=UTM, transform=GRID)
    shapes = [
        outline(102, 99, 20, 20),
        outline(300, 300, 20, 20),
        outline(900, 900, 9, 9),
        outline(590, 10, 30, 20),
    ]
    geopandas.GeoDataFrame(geometry=shapes, crs=UTM).to_file(tmp_path / "house.gpkg")
    return path


def test_figures_of_a_small_case(tmp_path, simple):
    result = compare(simple, tmp_path / "house.gpkg", table=tmp_path / "t.parquet", tiles=tmp_path / "t.csv")
    rows = geopandas.read_parquet(tmp_path / "t.parquet")
    assert rows["kind"].tolist() == ["supported", "unsupported", "unsupported", "missing"]
    assert rows["feature"].tolist() == [1, 2, 4, -1] and rows["class"].tolist() == ["house"] * 4
    assert rows["support"].tolist() == [1, 0, 0, 0]
    both = 18 * 19
    assert rows["iou"].tolist() == pytest.approx([both / (800 - both), 0, 0, 0])
    assert rows["pixels"].tolist() == [400, 400, 200, 600]
    assert rows.geometry[3].equals(outline(500, 505, 30, 20))  # one area across two tiles
    wrong = 400 + 200 + 600
    either = 800 - both + wrong
    assert result.iou == {"house": pytest.approx(both / either)}
    assert result.quality == pytest.approx(100 * (1 - wrong / either))
    assert result.features == {"supported": 1, "unsupported": 2, "unseen": 0, "missing": 1, "conflict": 0}
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert lines[0].startswith("name,x_px,y_px,iou,quality,disagreement") and len(lines) == 5
    assert result.tiles["disagreement"].is_monotonic_decreasing


def test_rows_in_batches_are_the_rows(tmp_path, simple, monkeypatch):
    whole = compare(simple, tmp_path / "house.gpkg", table=tmp_path / "whole.gpkg")
    monkeypatch.setattr(comparing, "BATCH_ROWS", 2)
    monkeypatch.setattr(compared_rows, "BATCH_ROWS", 2)
    parts = compare(simple, tmp_path / "house.gpkg", table=tmp_path / "parts.gpkg")
    assert_geodataframe_equal(parts.rows, whole.rows)
    assert parts.features == whole.features
    tables = [geopandas.read_file(tmp_path / f"{name}.gpkg") for name in ("parts", "whole")]
    assert_geodataframe_equal(*tables)


def test_a_shift_within_the_tolerance_is_no_error(tmp_path, write_tif):
    values = np.zeros((100, 100), np.uint8)
    values[40:50, 40:50] = 1
    path = write_tif("map.tif", values[..., None], crs=UTM, transform=GRID)
    for shift, kind in ((2, "supported"), (12, "unsupported")):
        geopandas.GeoDataFrame(geometry=[outline(40 + shift, 40 - shift, 10, 10)], crs=UTM).to_file(
            tmp_path / "house.gpkg"
        )
        result = compare(path, tmp_path / "house.gpkg")
        assert result.features[kind] == 1 and result.features["missing"] == (kind == "unsupported")
        assert result.quality == (100 if kind == "supported" else pytest.approx(0))
    wide = compare(path, tmp_path / "house.gpkg", tolerance=Tolerance(shift_px=12))
    assert wide.features["supported"] == 1


def test_another_class_is_a_conflict(tmp_path, write_tif):
    values = np.zeros((100, 100), np.uint8)
    values[40:60, 40:60] = 2
    path = write_tif("map.tif", values[..., None], crs=UTM, transform=GRID)
    geopandas.GeoDataFrame({"kind": ["town"]}, geometry=[outline(40, 40, 20, 10)], crs=UTM).to_file(
        tmp_path / "a.gpkg"
    )
    rows = compare(path, tmp_path / "a.gpkg", classes=LAND, attribute="kind").rows
    assert list(zip(rows["kind"], rows["class"], rows["pixels"], strict=True)) == [
        ("unsupported", "town", 200),
        ("missing", "forest", 200),
        ("conflict", "forest", 200),
    ]


def test_tiles_are_ranked_and_named_by_their_place(tmp_path):
    house = Classes.binary("house")
    for dx in range(3):
        values = np.zeros((256, 256), np.uint8)
        values[50:90, 50:90] = dx > 0
        path = tmp_path / "tiles" / f"20/{CORNER.x + dx}/{CORNER.y}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(path, values, house)
    features = [polygon(square(CORNER, 50 + 256 * dx, 50, 40)) for dx in (0, 1)] + [
        polygon(square(CORNER, 120, 120, 60))
    ]
    labels = write_geojson(tmp_path / "house.geojson", features)
    outputs = ("--table", tmp_path / "t.geojson", "--tiles", tmp_path / "w.csv")
    done = run("labels", "compare", tmp_path / "tiles", labels, *outputs, "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    names = [f"20/{CORNER.x + dx}/{CORNER.y}" for dx in (0, 2, 1)]
    assert result["worst"] == names[:2]
    assert result["features"] == {"supported": 1, "unsupported": 2, "unseen": 0, "missing": 1, "conflict": 0}
    kinds = [f["properties"]["kind"] for f in json.loads((tmp_path / "t.geojson").read_text())["features"]]
    assert sorted(kinds) == ["missing", "supported", "unsupported", "unsupported"]
    (tmp_path / "worst.csv").write_text("\n".join((tmp_path / "w.csv").read_text().splitlines()[:2]) + "\n")
    chosen = run(
        "labels", "subset", tmp_path / "tiles", "--cover", tmp_path / "worst.csv", "--out", tmp_path / "s"
    )
    assert chosen.exit_code == 0 and (tmp_path / "s" / f"{names[0]}.png").exists()


def test_masks_are_labels_too_and_255_is_not_judged(tmp_path, write_tif):
    values = np.zeros((100, 100), np.uint8)
    values[10:30, 10:30] = values[60:80, 60:80] = 1
    labels = np.zeros_like(values)
    labels[11:31, 11:31] = 1
    labels[50:, 50:] = 255
    path = write_tif("map.tif", values[..., None], crs=UTM, transform=GRID)
    mask = write_tif("mask.tif", labels[..., None], crs=UTM, transform=GRID)
    result = compare(path, mask)
    assert result.features == {"supported": 1, "unsupported": 0, "unseen": 0, "missing": 0, "conflict": 0}
    assert result.quality == 100
    moved = write_tif("moved.tif", labels[..., None], crs=UTM, transform=(STEP, 0, WEST + 4, 0, -STEP, NORTH))
    with pytest.raises(LabelsError, match="other pixels"):
        compare(path, moved)


def test_bad_requests_write_nothing(tmp_path, simple, write_tif):
    geopandas.GeoDataFrame(geometry=[shapely.box(0, 0, 9, 9)], crs=UTM).to_file(tmp_path / "far.gpkg")
    plain = write_tif("plain.tif", np.zeros((9, 9, 1), np.uint8))
    for arguments, options, message in (
        ((simple, tmp_path / "far.gpkg"), {}, "no label on the ground"),
        ((plain, tmp_path / "house.gpkg"), {}, "no CRS"),
        ((simple, tmp_path / "house.gpkg"), {"attribute": "kind"}, "--classes"),
        ((simple, tmp_path / "house.gpkg"), {"table": tmp_path / "t.xlsx"}, "Expected .gpkg"),
    ):
        with pytest.raises(LabelsError, match=message):
            compare(*arguments, **options)
    for wrong in ({"shift_px": 99}, {"size_px": 0}, {"support": 0.0}):
        with pytest.raises(LabelsError, match="out of range"):
            Tolerance(**wrong)
    assert not list(tmp_path.glob("t*"))


# --- evidence -----------------------------------------------------------------------------------------


@pytest.fixture
def likely(tmp_path, write_tif):
    """A map of a tenth of forest with its probabilities; see `test_evidence_counts_without_frequencies`."""
    rng = np.random.default_rng(1)
    table = np.full((600, 600, 4), 0.01, np.float32)
    table[..., 2] = 0.05
    table[60:80, 60:80, 2] = 0.95  # forest without a label
    table[300:306, 300:306, 2] = 0.55  # a small doubtful one
    table[100:120, 100:120, 2] = 0.3  # a labelled forest that the map takes for background
    table[500:530, 505:525, 2] = 0.4  # another, across tiles of 512
    table[..., 2] += rng.uniform(0, 0.01, (600, 600))
    table[..., 0] = 1 - table[..., 1:].sum(-1)
    table[:, 590:] = np.nan
    values = np.where(np.isnan(table[..., 0]), 255, np.nan_to_num(table).argmax(-1)).astype(np.uint8)
    path = write_tif("map.tif", values[..., None], crs=UTM, transform=GRID, nodata=255)
    write_tif("p.tif", table, crs=UTM, transform=GRID, nodata=float("nan"), descriptions=LAND.names)
    shapes = [outline(100, 100, 20, 20), outline(505, 500, 20, 30), outline(400, 400, 20, 20)]
    frame = geopandas.GeoDataFrame({"kind": ["forest"] * 3}, geometry=shapes, crs=UTM)
    frame.to_file(tmp_path / "labels.gpkg")
    return path, table


def test_evidence_counts_without_frequencies(tmp_path, likely):
    """A feature is supported where its class is likelier than elsewhere, even if another class leads."""
    path, table = likely
    how = {"classes": LAND, "attribute": "kind"}
    plain = compare(path, tmp_path / "labels.gpkg", **how)
    assert plain.features["unsupported"] == 3 and np.isnan(plain.rows["probability"]).all()
    rows = compare(path, tmp_path / "labels.gpkg", probabilities=tmp_path / "p.tif", **how).rows
    assert rows["kind"].tolist() == ["supported", "supported", "unsupported", "missing", "missing"]
    means = [
        table[y : y + h, x : x + w, 2].mean()
        for x, y, w, h in (
            (100, 100, 20, 20), (505, 500, 20, 30), (400, 400, 20, 20), (60, 60, 20, 20), (300, 300, 6, 6)
        )
    ]  # fmt: skip
    assert rows["probability"].tolist() == pytest.approx(means, abs=1e-5)  # the likeliest area comes first
    out = tmp_path / "t.parquet"
    words = ("--classes", _classes_file(tmp_path), "--attribute", "kind", "--table", out)
    more = ("--probabilities", tmp_path / "p.tif", "--min-probability", 0.8, "--json")
    done = run("labels", "compare", path, tmp_path / "labels.gpkg", *words, *more)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["features"]["missing"] == 1
    assert geopandas.read_parquet(out)["kind"].tolist() == rows["kind"].tolist()[:4]


def _classes_file(folder):
    path = folder / "classes.csv"
    path.write_text("name\n" + "\n".join(LAND.names) + "\n")
    return path


def test_probabilities_of_another_map_are_refused(tmp_path, likely, write_tif):
    path, table = likely
    how = {"classes": LAND, "attribute": "kind"}
    wrong = (
        (write_tif("a.tif", table[:100], crs=UTM, transform=GRID), "600 x 100 pixels"),
        (write_tif("b.tif", table[..., :3], crs=UTM, transform=GRID), "a band for each of background"),
        (
            write_tif("c.tif", table, crs=UTM, transform=GRID, descriptions=LAND.names[::-1]),
            "bands water, forest",
        ),
        (path, "pixels of uint8"),
    )
    for other, message in wrong:
        with pytest.raises(LabelsError, match=message):
            compare(path, tmp_path / "labels.gpkg", probabilities=other, table=tmp_path / "t.parquet", **how)
    (tmp_path / "maps").mkdir()
    write_tif("maps/other.tif", table, crs=UTM, transform=GRID)
    with pytest.raises(MissingInputError, match="no probabilities of map"):
        compare(path, tmp_path / "labels.gpkg", probabilities=tmp_path / "maps", **how)
    with pytest.raises(LabelsError, match="with --probabilities"):
        compare(path, tmp_path / "labels.gpkg", least_probability=0.5, **how)
    assert not (tmp_path / "t.parquet").exists()
