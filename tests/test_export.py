"""Exports: other tools read the vectors of the index."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import shapely
from engine import digital, image_of, learned_encoder, small_encoder, texture

from retrieval.config import IndexConfig
from retrieval.errors import ConfigError, EncoderError
from retrieval.export.geoparquet import export_parts, export_vectors
from retrieval.export.onnx import HANDLERS, export_onnx
from retrieval.export.stac import export_stac
from retrieval.geo.footprints import footprints
from retrieval.models.encoder import FakeEncoder
from retrieval.pipeline import build_index
from retrieval.types import unpack_ids
from tfrecords.artifacts import read_manifest
from tfrecords.errors import OutputExistsError
from tfrecords.read import ImageSource
from tfrecords.schema import Provenance

pq = pytest.importorskip("pyarrow.parquet")

UTM = (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_600_000.0)


def images():
    """Three images: with CRS and date, with CRS alone, with neither."""
    pixels = [digital(texture(96, 128, seed=s)) for s in range(3)]
    here = {"crs": "EPSG:32631", "transform": UTM}
    yield image_of(pixels[0], 2, path="a.tif", date="2020-07-01", **here)
    yield image_of(pixels[1], 5, path="b c.tif", **here)
    yield image_of(pixels[2], 9)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    built = build_index(ImageSource("dn", 3, images), folder / "index", encoder=small_encoder())
    return built.folder


@pytest.fixture(scope="module", params=["fast", "ivf"])
def halved(request, tmp_path_factory):
    """An index that keeps its vectors in half precision."""
    folder = tmp_path_factory.mktemp("export")
    config = IndexConfig(kind=request.param, stride_px=2)
    return build_index(
        ImageSource("dn", 3, images), folder / "index", encoder=FakeEncoder(), config=config
    ).folder


def read(path):
    """Columns of a Parquet file; vectors as an array."""
    table = pq.read_table(path)
    columns = {name: table[name].to_pylist() for name in table.column_names if name != "vector"}
    flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return columns, flat.reshape(len(table), -1)


# --- GeoParquet ---------------------------------------------------------------------------------


def test_the_file_holds_every_window_of_the_index(index, tmp_path):
    report = export_vectors(index, tmp_path / "vectors.parquet")
    columns, vectors = read(report.path)
    ids, expected = index.vectors.vectors()
    image_ids, x, y = unpack_ids(ids)
    assert (report.rows, len(vectors)) == (len(ids), len(ids)) and len(set(image_ids)) == 3
    assert np.array_equal(vectors, expected)
    for name, values in (("image_id", image_ids), ("x", x), ("y", y)):
        assert columns[name] == values.tolist()
    by_id = dict(zip(columns["image_id"], columns["date"], strict=True))
    assert str(by_id[2]) == "2020-07-01" and by_id[5] is by_id[9] is None
    assert report.notes == ("1 of 3 images have no CRS: their geometry is empty",)


def test_the_file_is_geoparquet(index, tmp_path):
    export_vectors(index, tmp_path / "vectors.parquet")
    file = pq.ParquetFile(tmp_path / "vectors.parquet")
    geo = json.loads(file.metadata.metadata[b"geo"])
    column = geo["columns"][geo["primary_column"]]
    assert (geo["version"], column["encoding"], column["geometry_types"]) == ("1.1.0", "WKB", ["Polygon"])
    assert "crs" not in column  # longitude and latitude on WGS 84
    columns, _ = read(tmp_path / "vectors.parquet")
    west, south, east, north = column["bbox"]
    for image_id, x, y, raw, box in zip(
        *(columns[n] for n in ("image_id", "x", "y", "geometry", "bbox")), strict=True
    ):
        if image_id == 9:
            assert raw is None and box is None
            continue
        shape = shapely.from_wkb(raw)
        (expected,) = footprints(index.images, *(np.array([v]) for v in (image_id, x, y)), 64, 64)
        assert shape.exterior.is_ccw and shapely.equals_identical(shape, expected)
        assert (box["xmin"], box["ymin"], box["xmax"], box["ymax"]) == shape.bounds
        assert west <= box["xmin"] <= box["xmax"] <= east and south <= box["ymin"] <= box["ymax"] <= north
    about = json.loads(file.schema_arrow.metadata[b"retrieve"])
    assert about["encoder_fingerprint"] == index.encoder.fingerprint
    assert (about["stride_px"], about["quantization"]["method"]) == (8, "none")


def parts_by_the_format(path):
    """Numbers of the parts that show something, by image, x and y, read as the page of formats says."""
    raw = path.read_bytes()
    _, _, channels, dim, _, count, parts = struct.unpack_from("<8sIIIII4xq24x", raw)
    steps = struct.unpack_from(f"<{dim}f", raw, 64 + 4 * 4 * channels * dim)
    start = 64 + 4 * dim * (4 * channels + 1)
    table = struct.unpack_from(f"<{3 * count}q", raw, start + 33 * parts)
    at, found = start, {}
    for image_id, rows, columns in zip(table[::3], table[1::3], table[2::3], strict=True):
        for number in range(rows * columns):
            part, at = raw[at : at + 33], at + 33
            halves = [b & 15 for b in part[:32]] + [b >> 4 for b in part[:32]]
            scale = 2.0 ** ((part[32] - 128) / 8) if part[32] else 0.0
            numbers = [(half - 8) * step * scale for half, step in zip(halves, steps, strict=True)]
            if any(numbers):
                found[image_id, 8 * (number % columns), 8 * (number // columns)] = numbers
    return found


def test_the_file_of_parts_holds_every_part_that_shows_something(tmp_path):
    config = IndexConfig(parts="always")
    made = build_index(ImageSource("dn", 3, images), tmp_path / "i", encoder=small_encoder(), config=config)
    report = export_parts(made.folder, tmp_path / "parts.parquet")
    columns, vectors = read(report.path)
    expected = parts_by_the_format(tmp_path / "i" / "parts.bin")
    keys = list(zip(columns["image_id"], columns["x"], columns["y"], strict=True))
    assert len(keys) == report.rows == len(expected) and set(keys) == set(expected)
    assert keys == sorted(keys, key=lambda key: (key[0], key[2], key[1]))
    np.testing.assert_allclose(vectors, [expected[key] for key in keys], rtol=1e-5)
    shape = shapely.from_wkb(columns["geometry"][0])
    assert shape.equals(footprints(made.folder.images, *(np.array([v]) for v in keys[0]), 24, 24)[0])
    about = json.loads(pq.read_metadata(report.path).metadata[b"retrieve"])
    assert (about["kind"], about["dimensions"], about["stride_px"]) == ("parts", 64, 8)


def test_parts_that_do_not_exist_or_do_not_fit_are_not_exported(index, tmp_path):
    with pytest.raises(ConfigError, match="holds no parts"):
        export_parts(index, tmp_path / "parts.parquet")
    config = IndexConfig(parts="always")
    made = build_index(
        ImageSource("dn", 3, images), tmp_path / "s", encoder=small_encoder(), config=config, shards=2
    )
    with pytest.raises(ConfigError, match="has 2 shards"):
        export_parts(made.folder, tmp_path / "parts.parquet")
    assert not (tmp_path / "parts.parquet").exists()


def test_pandas_reads_it(index, tmp_path):
    import pandas as pd

    export_vectors(index, tmp_path / "vectors.parquet")
    frame = pd.read_parquet(tmp_path / "vectors.parquet")
    assert len(frame) == len(index.vectors) and frame.vector[0].shape == (index.vectors.dim,)


def test_other_readers_of_geoparquet_read_it(index, tmp_path):
    geopandas = pytest.importorskip("geopandas")
    export_vectors(index, tmp_path / "vectors.parquet")
    frame = geopandas.read_parquet(tmp_path / "vectors.parquet")
    assert frame.crs == "OGC:CRS84" and frame.geometry.notna().sum() == (frame.image_id != 9).sum()
    assert frame.geometry[0].is_valid and frame.geometry[0].exterior.is_ccw


def test_a_database_reads_it(index, tmp_path):
    duckdb = pytest.importorskip("duckdb")
    export_vectors(index, tmp_path / "vectors.parquet")
    ask = f"select image_id, x, y, len(vector) from '{tmp_path / 'vectors.parquet'}' order by image_id, y, x"
    assert duckdb.sql(ask).fetchall()[0] == (2, 0, 0, index.vectors.dim)


def test_half_precision_halves_the_vectors(index, tmp_path):
    report = export_vectors(index, tmp_path / "vectors.parquet", floats="float16")
    _, vectors = read(report.path)
    assert vectors.dtype == np.float16
    assert np.abs(vectors - index.vectors.vectors()[1]).max() < 1e-3


def test_vectors_in_half_precision_are_said_to_be(halved, tmp_path):
    report = export_vectors(halved, tmp_path / "vectors.parquet")
    columns, vectors = read(report.path)
    assert halved.vectors.kind in report.notes[0] and "half precision" in report.notes[0]
    keys = list(zip(columns["image_id"], columns["y"], columns["x"], strict=True))
    assert keys == sorted(set(keys)) and len(keys) == len(halved.vectors)
    for image_id in (2, 9):
        scaled = halved.scaled(image_id)
        for row in [n for n, key in enumerate(keys) if key[0] == image_id][::97]:
            _, y, x = keys[row]
            expected = FakeEncoder().embed(scaled[None, y : y + 64, x : x + 64])[0, 0, 0]
            assert np.abs(vectors[row] - expected).max() < 1e-3
    about = json.loads(pq.read_schema(report.path).metadata[b"retrieve"])
    assert about["quantization"]["quantized_dtype"] == "float16"


def test_row_groups_are_of_one_size_and_bound_the_memory(halved, tmp_path):
    export_vectors(halved, tmp_path / "vectors.parquet", row_group=64)
    about = pq.ParquetFile(tmp_path / "vectors.parquet").metadata
    sizes = [about.row_group(n).num_rows for n in range(about.num_row_groups)]
    assert sum(sizes) == len(halved.vectors) and all(64 <= size < 128 for size in sizes[:-1])


def test_without_a_crs_it_is_plain_parquet(tmp_path):
    built = build_index(np.stack([digital(texture(80, 80))]), tmp_path / "index", encoder=small_encoder())
    report = export_vectors(built.folder, tmp_path / "vectors.parquet")
    schema = pq.read_schema(report.path)
    assert schema.names == ["image_id", "x", "y", "path", "date", "vector"]
    assert b"geo" not in pq.read_metadata(report.path).metadata
    assert report.notes == ("no image has a CRS: there is no geometry",)


def test_files_are_left_alone_and_endings_checked(index, tmp_path):
    (tmp_path / "vectors.parquet").write_text("mine")
    with pytest.raises(OutputExistsError):
        export_vectors(index, tmp_path / "vectors.parquet")
    with pytest.raises(ConfigError, match=r"Expected \.parquet"):
        export_vectors(index, tmp_path / "vectors.csv")
    assert [p.name for p in tmp_path.iterdir()] == ["vectors.parquet"]


# --- STAC ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def catalogue(index, tmp_path_factory):
    out = tmp_path_factory.mktemp("stac") / "catalogue"
    report = export_stac(index, out, license="CC-BY-4.0")
    assert (report.items, report.rows) == (3, len(index.vectors))
    assert any("2 of 3 images have no date" in note for note in report.notes)
    return out


def page(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def test_every_link_and_asset_of_the_catalogue_is_there(catalogue, tmp_path):
    moved = shutil.copytree(catalogue, tmp_path / "elsewhere")
    pages = [p for p in moved.rglob("*.json") if p.name != "manifest.json"]
    assert len(pages) == 5
    for path in pages:
        content = page(path)
        found = content["links"] + list(content.get("assets", {}).values())
        for link in found:
            assert link["href"].startswith("."), link
            assert (path.parent / link["href"]).is_file(), link
    read_manifest(moved, "stac", verify="all")


def test_an_item_says_what_and_where_its_vectors_are(catalogue, index):
    item = page(catalogue / "windows/2/2.json")
    properties = item["properties"]
    assert (item["id"], item["collection"], item["type"]) == ("windows-2", "windows", "Feature")
    assert properties["datetime"] == "2020-07-01T00:00:00Z"
    assert properties["proj:code"] == "EPSG:32631" and properties["proj:shape"] == [96, 128]
    assert properties["proj:transform"] == list(UTM)
    assert properties["emb:runtime_parameters"]["bands"] == ["B04", "B03", "B02", "B08"]
    assert properties["emb:quantization"] == {"method": "none", "original_dtype": "float32"}
    west, south, east, north = item["bbox"]
    assert west == pytest.approx(3, abs=1e-6) and east > west and north > south
    columns, vectors = read(catalogue / "windows/2/2.parquet")
    ids, expected = index.vectors.vectors()
    assert set(columns["image_id"]) == {2} and len(vectors) == properties["emb:runtime_parameters"]["windows"]
    assert np.array_equal(vectors, expected[ids >> 32 == 2])


SIDES = {
    "square": ("EPSG:32631", UTM, 10.0),
    "high": ("EPSG:32631", (10.0, 0.0, 5e5, 0.0, -20.0, 5.6e6), 15.0),
    "wide, turned": ("EPSG:32631", (0.0, 30.0, 5e5, -10.0, 0.0, 5.6e6), 20.0),
    "feet": ("EPSG:2263", (32.808333, 0.0, 980_000.0, 0.0, -32.808333, 200_000.0), 10.0),
    "degrees": ("EPSG:4326", (1e-4, 0.0, 2.35, 0.0, -1e-4, 60.0), (5.582 + 11.14) / 2),
    "Web Mercator": ("EPSG:3857", (10.0, 0.0, 0.0, 0.0, -10.0, 8_399_738.0), 5.02),
    "local": ('LOCAL_CS["site",UNIT["metre",1]]', UTM, None),
}


@pytest.mark.parametrize("case", SIDES)
def test_the_pixel_of_an_item_has_two_sides_on_the_ground(case, tmp_path):
    crs, transform, expected = SIDES[case]
    image = image_of(digital(texture(70, 80)), crs=crs, transform=transform)
    source = ImageSource("dn", 1, lambda: iter([image]))
    folder = build_index(source, tmp_path / "index", encoder=FakeEncoder()).folder
    export_stac(folder, tmp_path / "out")
    properties = page(tmp_path / "out/windows/0/0.json")["properties"]
    found = page(tmp_path / "out/windows/collection.json").get("gsd"), properties.get("gsd")
    assert found == (pytest.approx(expected, rel=3e-3) if expected else None,) * 2
    if case in ("square", "high"):
        assert properties["gsd"] == expected


TIMES = {
    "2023-08-21T22:19:41.024Z": "2023-08-21T22:19:41.024000Z",
    "2023-08-22T00:19:41+02:00": "2023-08-21T22:19:41Z",
    "2023-08-21T22:19:41": "2023-08-21T22:19:41Z",
    "2023:08:21 22:19:41": "2023-08-21T22:19:41Z",
    "2023-08-22": "2023-08-22T00:00:00Z",
    "": "2023-08-22T00:00:00Z",
}


@pytest.mark.parametrize("time", TIMES)
def test_the_time_of_an_item_is_that_of_the_acquisition(time, tmp_path):
    """At 178 degrees east the solar day is the next one; without a time the item has that day."""
    image = image_of(digital(texture(70, 80)), date="2023-08-22", provenance=Provenance(datetime=time))
    source = ImageSource("dn", 1, lambda: iter([image]))
    folder = build_index(source, tmp_path / "index", encoder=FakeEncoder()).folder
    export_stac(folder, tmp_path / "out")
    properties = page(tmp_path / "out/windows/0/0.json")["properties"]
    assert properties["datetime"] == TIMES[time]
    last = "2023-08-22T23:59:59Z" if TIMES[time].startswith("2023-08-22") else TIMES[time]
    assert (properties["start_datetime"], properties["end_datetime"]) == (TIMES[time], last)
    extent = page(tmp_path / "out/windows/collection.json")["extent"]["temporal"]["interval"]
    assert extent == [[TIMES[time], last]]


def test_an_item_without_crs_or_date_is_still_an_item(catalogue):
    item = page(catalogue / "windows/9/9.json")
    assert item["geometry"] is None and "bbox" not in item and item["properties"]["proj:code"] is None
    assert (
        item["properties"]["datetime"] is None
        and item["properties"]["start_datetime"] == "2015-06-23T00:00:00Z"
    )
    assert b"geo" not in pq.read_metadata(catalogue / "windows/9/9.parquet").metadata


def test_the_collection_has_what_the_embedding_extension_asks_for(catalogue, index):
    collection = page(catalogue / "windows/collection.json")
    assert collection["stac_version"] == "1.0.0" and collection["license"] == "CC-BY-4.0"
    assert any("embeddings/v0.0.1" in extension for extension in collection["stac_extensions"])
    assert (collection["emb:type"], collection["emb:dimensions"]) == ("chip", index.vectors.dim)
    assert collection["emb:chip_layout"] == {
        "layout_type": "regular_grid",
        "chip_size": [64, 64],
        "stride": [8, 8],
    }
    rels = [link["rel"] for link in collection["links"]]
    assert {"emb:model", "emb:source-data", "root", "parent"} <= set(rels) and rels.count("item") == 3
    # The proposal allows no further names with its prefix.
    allowed = {"emb:type", "emb:dimensions", "emb:chip_layout", "emb:temporal_resolution", "emb:fit_for_use"}
    assert {key for key in collection if key.startswith("emb:")} <= allowed
    of_items = {"emb:runtime_parameters", "emb:preprocessing", "emb:postprocessing", "emb:quantization"}
    for path in catalogue.glob("windows/*/*.json"):
        assert {k for k in page(path)["properties"] if k.startswith("emb:")} == of_items
        assert "embeddings" in page(path)["assets"]


def test_pystac_opens_it_and_finds_it_valid(catalogue):
    pystac = pytest.importorskip("pystac")
    pytest.importorskip("jsonschema")
    from pystac.validation.stac_validator import JsonSchemaSTACValidator

    root = pystac.Catalog.from_file(str(catalogue / "catalog.json"))
    (collection,) = root.get_children()
    items = sorted(root.get_items(recursive=True), key=lambda item: item.id)
    assert [item.id for item in items] == ["windows-2", "windows-5", "windows-9"]
    assert Path(items[0].assets["embeddings"].get_absolute_href()).is_file()
    # The core's schemas come with pystac; those of extensions are on the network.
    check = JsonSchemaSTACValidator().validate_core
    kinds = pystac.STACObjectType
    check(root.to_dict(), kinds.CATALOG, pystac.get_stac_version())
    check(collection.to_dict(), kinds.COLLECTION, pystac.get_stac_version())
    for item in items:
        check(item.to_dict(), kinds.ITEM, pystac.get_stac_version())
        assert item.ext.proj.shape == [96, 128]


def test_items_link_to_images_whose_place_is_given(index, tmp_path):
    export_stac(index, tmp_path / "out", name="mine", source_url="https://example.org/scenes/")
    (link,) = [x for x in page(tmp_path / "out/mine/5/5.json")["links"] if x["rel"] == "emb:source-data"]
    assert link["href"] == "https://example.org/scenes/b%20c.tif"


def test_an_interrupted_export_resumes_and_a_finished_one_is_kept(index, tmp_path):
    written = []

    def stop_at_the_second_image(stage, done, total):
        written.append((tmp_path / "out.partial/windows/2/2.parquet").stat().st_mtime_ns)
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_stac(index, tmp_path / "out", progress=stop_at_the_second_image)
    assert not (tmp_path / "out").exists()
    assert export_stac(index, tmp_path / "out").rows == len(index.vectors)
    kept = (tmp_path / "out/windows/2/2.parquet").stat().st_mtime_ns
    assert written == [kept, kept]
    with pytest.raises(OutputExistsError):
        export_stac(index, tmp_path / "out")


def test_a_collection_needs_a_name_that_a_folder_can_have(index, tmp_path):
    with pytest.raises(ConfigError, match="collection"):
        export_stac(index, tmp_path / "out", name="../elsewhere")


# --- ONNX ---------------------------------------------------------------------------------------

SHAPES = [(1, 64, 64, 4), (3, 64, 64, 3), (2, 130, 97, 1), (1, 96, 200, 7)]


def pictures(shape, rng):
    """Yield difficult pictures: strong and weak noise, nodata, a missing band, a flat part."""
    for strength in (1.0, 0.01):
        x = (rng.uniform(-1, 1, shape) * strength).astype(np.float32)
        yield x.copy()
        x[:, :20, :30] = np.nan
        x[0, 40:50, :, 0] = np.nan
        x[-1, :, :40] = 0.25
        yield x


@pytest.mark.parametrize("name", ["siamese", "structure-tensor", "learned"])
def test_onnxruntime_gives_the_same_vectors(name, tmp_path, rng):
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("tf2onnx")
    from retrieval.models.encoder import load_encoder

    encoder = learned_encoder() if name == "learned" else load_encoder(name)
    report = export_onnx(encoder, tmp_path / "encoder.onnx")
    assert report.largest_difference < 1e-4
    session = ort.InferenceSession(report.path, providers=["CPUExecutionProvider"])
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape) == ("scaled", ["batch", "height", "width", "bands"])
    assert (made.name, made.shape[-1]) == ("vectors", encoder.dim)
    for shape in SHAPES:
        for picture in pictures(shape, rng):
            (vectors,) = session.run(None, {"scaled": picture})
            expected = encoder.embed(picture)
            assert vectors.shape == expected.shape
            assert np.abs(vectors - expected).max() < 1e-4
    about = session.get_modelmeta().custom_metadata_map
    assert about["fingerprint"] == encoder.fingerprint and int(about["step_px"]) == encoder.step_px


def test_what_is_no_keras_model_is_no_onnx(tmp_path):
    with pytest.raises(EncoderError, match="not a Keras model"):
        export_onnx(FakeEncoder(), tmp_path / "encoder.onnx")
    with pytest.raises(ConfigError, match=r"Expected \.onnx"):
        export_onnx(small_encoder(), tmp_path / "encoder.pb")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("missing", "message"), [("SelectV2", "differ"), ("Log1p", "no operation for Log1p")]
)
def test_vectors_that_differ_are_not_written(tmp_path, missing, message):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("tf2onnx")
    handlers = {name: handler for name, handler in HANDLERS.items() if name != missing}
    with pytest.raises(EncoderError, match=message):
        export_onnx(small_encoder(), tmp_path / "encoder.onnx", handlers=handlers)
    assert not list(tmp_path.iterdir())
