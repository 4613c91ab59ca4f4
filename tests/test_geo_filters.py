"""Search filters: no match lies outside of the dates and the area, and nothing inside is lost."""

import json

import numpy as np
import pytest
import shapely
from engine import digital, image_of, small_encoder, texture
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.config import IndexConfig
from retrieval.errors import ConfigError
from retrieval.geo.coordinates import lonlat
from retrieval.geo.filters import read_area, read_filter
from retrieval.pipeline import build_index
from retrieval.types import StoredImage, unpack_ids
from tfrecords.errors import MissingInputError
from tfrecords.read import ImageSource
from tfrecords.schema import Chips, Image, Patches

EAST, NORTH = 500_000.0, 5_000_000.0


def stored(image_id, date=None, crs="EPSG:32631", east=EAST, size=200):
    transform = (10.0, 0.0, east, 0.0, -10.0, NORTH) if crs else None
    return StoredImage(image_id, "", size, size, ("B04",), crs, transform, date, 1)


def table(*images):
    return {image.image_id: image for image in images}


def degrees(x, y, east=EAST):
    """Longitude and latitude of a pixel of such an image."""
    lon, lat = lonlat({0: stored(0, east=east)}, np.array([0]), np.array([x - 32.0]), np.array([y - 32.0]))
    return float(lon[0]), float(lat[0])


def polygon_of(*pixels, east=EAST):
    ring = [degrees(x, y, east) for x, y in pixels]
    return {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}


def written(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


# --- dates ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("between", "left"),
    [
        ("2019-01/2021-12", [1, 2]),
        ("2019-07-23/2019-07-23", [1]),
        ("2019-07-24/..", [2, 3]),
        ("2019-07-24/", [2, 3]),
        ("../2019", [1]),
        ("/2021", [1, 2]),
        ("2019", [1]),
        ("2021-06/2021-06", [2]),
        ("2021-06-02/2022", [3]),  # some day of that June may be before
    ],
)
def test_images_of_the_dates_remain(between, left):
    images = table(stored(1, "2019-07-23"), stored(2, "2021-06"), stored(3, "2022-01-01"), stored(4))
    scope = read_filter(images, between)
    assert sorted(scope.images) == left and scope.area is None
    assert "of 4 images (1 without a date left out)" in scope.note


def test_no_option_is_no_filter():
    assert read_filter(table(stored(1))) is None


@pytest.mark.parametrize(
    ("between", "problem"),
    [
        ("2021/2019", "FROM is after TO. Expected 2019/2021"),
        ("2019-13/..", "'2019-13' is not a date"),
        ("../then", "'then' is not a date"),
        ("..", "not a span of dates"),
        ("/", "not a span of dates"),
        ("", "not a span of dates"),
        ("2019/2020/2021", "not a span of dates"),
        ("2030/..", "no image is left"),
    ],
)
def test_invalid_dates_are_explained(between, problem):
    with pytest.raises(ConfigError, match=problem):
        read_filter(table(stored(1, "2019-07-23")), between)


# --- areas ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_geojson_can_begin_with_a_byte_order_mark(tmp_path, encoding):
    square = {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]]}
    (tmp_path / "a.geojson").write_text(json.dumps(square), encoding=encoding)
    assert read_area(tmp_path / "a.geojson").area == 1


@pytest.mark.parametrize("wrap", ["bare", "feature", "collection", "geometries", "multi"])
def test_polygons_are_found_wherever_geojson_has_them(tmp_path, wrap):
    square = polygon_of((50, 50), (120, 50), (120, 120), (50, 120))
    feature = {"type": "Feature", "properties": None, "geometry": square}
    point = {"type": "Feature", "properties": {}, "geometry": {"type": "Point", "coordinates": [0, 0]}}
    content = {
        "bare": square,
        "feature": feature,
        "collection": {"type": "FeatureCollection", "features": [point, feature, feature]},
        "geometries": {"type": "GeometryCollection", "geometries": [square]},
        "multi": {"type": "MultiPolygon", "coordinates": [square["coordinates"]]},
    }[wrap]
    area = read_area(written(tmp_path / "a.geojson", content))
    assert shapely.equals(area, shapely.Polygon(square["coordinates"][0]))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("not json", "not JSON"),
        ("[1, 2]", "without a type"),
        ({"a": 1}, "without a type"),
        ({"type": "FeatureCollection", "features": []}, "no polygon"),
        ({"type": "Point", "coordinates": [1, 2]}, "no polygon"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}, "cannot be read"),
        ({"type": "Polygon", "coordinates": "here"}, "cannot be read"),
        ({"type": "Polygon"}, "cannot be read"),
        (
            {"type": "Polygon", "coordinates": [[[48, 110], [49, 110], [49, 111], [48, 110]]]},
            "longitude .-180 to 180. before latitude",
        ),
        ({"type": "Polygon", "coordinates": [[[5e5, 5e6], [6e5, 5e6], [6e5, 6e6], [5e5, 5e6]]]}, "EPSG:4326"),
        (
            {
                "type": "Polygon",
                "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32631"}},
                "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]],
            },
            "its crs is",
        ),
    ],
)
def test_invalid_areas_are_explained(tmp_path, content, problem):
    with pytest.raises(ConfigError, match=problem):
        read_area(written(tmp_path / "a.geojson", content))


def test_a_missing_file_and_an_area_without_images(tmp_path):
    with pytest.raises(MissingInputError, match=r"none\.geojson"):
        read_area(tmp_path / "none.geojson")
    far = {"type": "Polygon", "coordinates": [[[45, 3], [46, 3], [46, 4], [45, 3]]]}
    with pytest.raises(
        ConfigError, match=r"0 of 2 images \(1 without a CRS left out\): no.* longitude before"
    ):
        read_filter(table(stored(1), stored(2, crs=None)), within=written(tmp_path / "a.geojson", far))


def test_an_area_across_the_antimeridian(tmp_path):
    """Cut in two, as RFC 7946 has it; an image lies on both."""
    around = StoredImage(
        1, "", 200, 200, ("B04",), "EPSG:3832", (10.0, 0, 3_338_000.0, 0, -10.0, 1000.0), None, 1
    )
    halves = [
        [[179, -1], [180, -1], [180, 1], [179, 1], [179, -1]],
        [[-180, -1], [-179, -1], [-179, 1], [-180, 1], [-180, -1]],
    ]
    area = {"type": "MultiPolygon", "coordinates": [[ring] for ring in halves]}
    scope = read_filter(table(around), within=written(tmp_path / "a.geojson", area))
    x = np.array([0.0, 136.0])
    assert scope.contains(np.array([1, 1]), x, np.array([60.0, 60.0])).all()
    assert len(scope.windows(8, 12)) > 0


corner = st.integers(-80, 280)


@given(st.lists(st.tuples(corner, corner), min_size=3, max_size=6), st.integers(1, 64), st.integers(0, 30))
def test_windows_near_the_area_are_searched_and_no_others(tmp_path, pixels, stride, reach):
    """Against a slow restatement: the distance of each window's centre to the area, in pixels."""
    own = shapely.make_valid(shapely.Polygon(pixels))
    path = written(tmp_path / "a.geojson", polygon_of(*pixels))
    image = table(stored(3))
    try:
        scope = read_filter(image, within=path)
    except ConfigError:
        assert shapely.intersection(own, shapely.box(1, 1, 199, 199)).area < 1e-3
        return
    _, x, y = unpack_ids(scope.windows(stride, reach))
    got = set(zip(x.tolist(), y.tolist(), strict=True))
    last = 200 - 64
    starts = sorted({*range(0, last + 1, stride), last})
    gap = {(a, b): shapely.distance(own, shapely.Point(a + 32, b + 32)) for a in starts for b in starts}
    assert {at for at, d in gap.items() if d <= reach} <= got
    assert all(gap[at] <= (reach + 3) * 1.5 for at in got)


# --- answers --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """The same ground three times, on other days and elsewhere: only the scope tells which is meant."""
    pixels = digital(texture(200, 200))
    days = ("2018-06-01", "2019-06-01", None)
    images = [
        image_of(pixels, i, crs="EPSG:32631", transform=(10.0, 0, EAST + 5000 * i, 0, -10.0, NORTH), date=day)
        for i, day in enumerate(days)
    ]
    images.append(image_of(pixels, 9, date="2019-01-01"))
    source = ImageSource("made by a test", 4, lambda: iter(images))
    out = tmp_path_factory.mktemp("scope") / "index"
    return build_index(source, out, encoder=small_encoder(), config=IndexConfig()), pixels


def test_dates_decide_between_twins(index):
    made, pixels = index
    patch = pixels[None, 31:95, 52:116]
    assert made.locate(patch).image_id.tolist() == [0]
    assert made.locate(patch, between="2019-02/..").image_id.tolist() == [1]
    assert made.locate(patch, between="2019-01/2019-05").image_id.tolist() == [9]


@given(st.lists(st.tuples(corner, corner), min_size=3, max_size=5), st.integers(0, 2), st.booleans())
@settings(max_examples=12)
def test_no_match_lies_outside_of_the_area(index, tmp_path, pixels, which, large):
    made, ground = index
    path = written(tmp_path / "a.geojson", polygon_of(*pixels, east=EAST + 5000 * which))
    side = 100 if large else 64
    xy = [(0, 0), (40, 77), (100, 13)]
    stack = np.stack([ground[y : y + side, x : x + side] for x, y in xy])
    try:
        found = made.matches(stack, within=path)
    except ConfigError:
        return
    details = found.details()
    details = details[details.status != "not_found"]
    area = read_area(path)
    assert shapely.intersects_xy(area, details.longitude.to_numpy(), details.latitude.to_numpy()).all()
    inside = [
        area.contains(shapely.Point(degrees(x + side / 2, y + side / 2, EAST + 5000 * which))) for x, y in xy
    ]
    best = found.frame()
    for row, (x, y) in enumerate(xy):
        deep = (
            shapely.Point(degrees(x + side / 2, y + side / 2, EAST + 5000 * which)).buffer(2e-4).within(area)
        )
        if inside[row] and deep:  # a place that is well inside is found: nothing is lost to the grid
            assert best.loc[row, ["image_id", "x", "y"]].tolist() == [which, x, y]
    assert found.windows is None or (found.windows == 4).all()


def test_a_patch_without_a_match_has_a_row_with_confidence_zero(index, tmp_path):
    made, pixels = index
    tiny = polygon_of((100, 100), (100.2, 100), (100.2, 100.2), (100, 100.2))
    path = written(tmp_path / "a.geojson", tiny)
    for chip in (pixels[None, :64, :64], pixels[None, :100, :100]):
        frame = made.locate(chip, within=path)
        assert frame.confidence.tolist() == [0] and len(frame) == 1


def test_every_kind_of_query_is_filtered_alike(index, tmp_path):
    made, pixels = index
    path = written(
        tmp_path / "a.geojson", polygon_of((0, 0), (200, 0), (200, 200), (0, 200), east=EAST + 5000)
    )
    one = Image(4, pixels[20:120, 30:130], "dn", ("B04", "B03", "B02", "B08"), 0)
    chips = Chips(np.array([4]), np.array([[100, 100]]), (one.bands,), lambda row: one)
    patches = Patches(np.array([4]), one.pixels[None, 18:82, 18:82], "dn", one.bands, 0)
    for asked, place in ((chips, (30, 20)), (patches, (48, 38))):
        frame = made.locate(asked, within=path, between="2019")
        assert frame[["patch_id", "image_id", "x", "y"]].to_numpy().tolist() == [[4, 1, *place]]
