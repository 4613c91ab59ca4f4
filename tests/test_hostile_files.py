"""Files from a stranger that lead elsewhere or run code are refused: rasters, labels, manifests, networks."""

import json
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import rasterio
from loopback import Handler, listening

from retrieval.errors import EncoderError, LabelsError
from retrieval.models.encoder import load_encoder
from retrieval.models.registry import WEIGHTS
from retrieval.tasks.sources import read_images as read_pictures
from tfrecords.artifacts import MANIFEST, read_manifest, writing_folder
from tfrecords.artifacts.manifest import fingerprint
from tfrecords.errors import ArrayError, ManifestError
from tfrecords.geotiff import driver_of, silent_georeference
from tfrecords.read import read_images, read_queries

BAND = """<VRTRasterBand dataType="UInt16" band="{band}"><SimpleSource>
<SourceFilename relativeToVRT="0">{source}</SourceFilename><SourceBand>{band}</SourceBand>
</SimpleSource></VRTRasterBand>"""


@pytest.fixture
def server():
    """A server on the loopback, and the paths that it was asked for."""
    asked = []

    class Noting(Handler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

    with listening(Noting, str) as url:
        yield url, asked


def virtual(source):
    """The text of a raster of four bands that lie in another file."""
    bands = "".join(BAND.format(band=band, source=source) for band in range(1, 5))
    return f'<VRTDataset rasterXSize="80" rasterYSize="72">{bands}</VRTDataset>'


@pytest.fixture
def secret(tmp_path, rng):
    """A raster that no other file may lead to."""
    path = tmp_path / "secret.tif"
    shape = dict(driver="GTiff", height=72, width=80, count=4, dtype="uint16")
    with silent_georeference(), rasterio.open(path, "w", **shape) as dataset:
        dataset.write(rng.integers(300, 4000, (4, 72, 80)).astype(np.uint16))
    return path


def pixels_of(path):
    return [image.scaled() for image in read_images(str(path))]


def mask_of(path):
    from retrieval.labels.masks import read_mask

    return read_mask(path)


def queries_of(path):
    return read_queries(str(path))


def pictures_of(path):
    return read_pictures(path.parent)


@pytest.mark.parametrize(
    ("read", "ending"),
    [
        (pixels_of, ".tif"),
        *((read, e) for read in (mask_of, queries_of, pictures_of) for e in (".tif", ".png")),
    ],
)
def test_a_raster_that_lists_other_files_is_refused(tmp_path, secret, server, read, ending):
    url, asked = server
    path = tmp_path / "scenes" / f"a{ending}"
    path.parent.mkdir()
    for source in (secret, f"/vsicurl/{url}/x.tif"):
        path.write_text(virtual(source))
        with pytest.raises((ArrayError, LabelsError)):
            read(path)
    assert asked == []


def test_the_name_of_a_virtual_raster_says_that_it_is_one(tmp_path, secret):
    (tmp_path / "scenes").mkdir()
    path = tmp_path / "scenes" / "a.vrt"
    path.write_text(virtual(secret))
    np.testing.assert_array_equal(pixels_of(path), pixels_of(secret))


def test_a_wrong_ending_of_a_picture_does_not_matter(tmp_path, secret):
    assert driver_of(secret.rename(tmp_path / "a.png")) == "GTiff"
    assert driver_of("/vsis3/bucket/a.JP2") == "JP2OpenJPEG"
    assert driver_of("/vsis3/bucket/a.tif") == "GTiff"


# --- labels -----------------------------------------------------------------------------------------------

AREA = {
    "type": "Feature",
    "properties": {"crs": {"type": "road"}},
    "geometry": {"type": "Polygon", "coordinates": [[[3, 45], [3.1, 45], [3.1, 45.1], [3, 45]]]},
}


def opened(path):
    pytest.importorskip("geopandas", reason="needs the extra `labels`")
    from retrieval.labels.vectors import VectorFile

    return [len(batch.shapes) for batch in VectorFile.open(path).batches("EPSG:4326")]


@pytest.mark.parametrize(
    "crs",
    [
        '"crs": {"type": "url", "properties": {"url": "URL/crs"}}',
        '"crs": {"properties": {"href": "URL/crs", "type": "proj4"}, "type": "link"}',
        '"\\u0063rs": {"type": "\\u006cink", "properties": {"href": "URL/crs"}}',
    ],
)
def test_a_crs_at_an_address_is_refused(tmp_path, server, crs):
    url, asked = server
    content = json.dumps({"type": "FeatureCollection", "features": [AREA]})
    (tmp_path / "a.geojson").write_text("{" + crs.replace("URL", url) + ", " + content[1:])
    with pytest.raises(LabelsError, match="its CRS is an address"):
        opened(tmp_path / "a.geojson")
    assert asked == []


def test_a_crs_by_name_and_attributes_called_crs_are_read(tmp_path):
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}}
    content = {"type": "FeatureCollection", "crs": crs, "features": [AREA]}
    (tmp_path / "a.geojson").write_text(json.dumps(content))
    assert opened(tmp_path / "a.geojson") == [1]


@pytest.mark.parametrize("ending", ["gpkg", "geojson", "vrt"])
def test_a_vector_file_that_names_other_files_is_refused(tmp_path, server, ending):
    url, asked = server
    layer = f'<OGRVRTLayer name="a"><SrcDataSource>/vsicurl/{url}/x.geojson</SrcDataSource></OGRVRTLayer>'
    (tmp_path / f"a.{ending}").write_text(f"<OGRVRTDataSource>{layer}</OGRVRTDataSource>")
    with pytest.raises(LabelsError, match="names other files"):
        opened(tmp_path / f"a.{ending}")
    assert asked == []


# --- folders and networks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../other.bin", "/etc/passwd", "sub/../../other.bin", "sub\\..\\x", ""])
def test_a_manifest_that_names_files_outside_of_its_folder_is_refused(tmp_path, name):
    (tmp_path / "other.bin").write_bytes(b"content")
    with writing_folder(tmp_path / "made", kind="images", config={}) as folder:
        with folder.part("a.bin") as part:
            part.write_bytes(b"content")
    path = tmp_path / "made" / MANIFEST
    content = json.loads(path.read_text())
    del content["checksum"]
    content["files"][name] = content["files"]["a.bin"]
    path.write_text(json.dumps(content | {"checksum": fingerprint(content)}))
    for verify in (True, False):
        with pytest.raises(ManifestError, match="outside of the folder"):
            read_manifest(tmp_path / "made", "images", verify=verify)


def changed_network(path, config=None, more=()):
    """A copy of a shipped network with another configuration, and with further members."""
    shipped = str(WEIGHTS / "structure-tensor.keras")
    with zipfile.ZipFile(shipped) as source, zipfile.ZipFile(path, "w") as goal:
        for name in source.namelist():
            replaced = config is not None and name == "config.json"
            goal.writestr(name, json.dumps(config) if replaced else source.read(name))
        for name in more:
            goal.writestr(name, b"content")
    return path


@pytest.mark.parametrize(
    "config",
    [
        {"module": "os", "class_name": "system", "config": {"command": "touch ran"}},
        {"module": "builtins", "class_name": "eval", "config": "open('ran', 'w')"},
        {
            "module": "keras",
            "class_name": "Sequential",
            "config": {
                "layers": [
                    {
                        "module": "keras.layers",
                        "class_name": "Lambda",
                        "config": {
                            "function": {
                                "class_name": "__lambda__",
                                "config": {"code": "4wAAAAA=", "defaults": None, "closure": None},
                            }
                        },
                    }
                ]
            },
        },
    ],
)
def test_a_network_that_would_run_code_is_refused(tmp_path, monkeypatch, config):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EncoderError, match="safe mode"):
        load_encoder(changed_network(tmp_path / "a.keras", config))
    assert not Path("ran").exists()


def test_members_of_a_network_stay_in_its_file(tmp_path):
    (tmp_path / "sub").mkdir()
    absolute = tmp_path / "absolute.txt"
    names = ("../evil.txt", "assets/../../../evil.txt", str(absolute))
    with suppress(EncoderError):  # Keras refuses some of these names
        load_encoder(changed_network(tmp_path / "sub" / "a.keras", more=names))
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.keras", "sub"]
