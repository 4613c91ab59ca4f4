"""Folders and files at URLs: an S3 server on the loopback, the cache and its limit, lost connections."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from s3_server import s3_server

from tfrecords import remote
from tfrecords.artifacts import check_free, read_manifest, writing_file, writing_folder
from tfrecords.errors import ManifestError, MissingInputError, OutputExistsError, RemoteError
from tfrecords.read import read_images
from tfrecords.remote import local_folder, published_folder, url_of


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("unused")) as url:
        yield url


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RETRIEVE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_folder(path, note="first", size=1000, **options):
    """A small folder with a manifest."""
    with writing_folder(path, kind="images", config={"note": note}, **options) as folder:
        for name in ("a.bin", "sub/b.bin"):
            with folder.part(name) as part:
                part.write_bytes(f"{note} {name}".encode() * size)


def publish(url, note="first", size=1000, overwrite=False):
    with published_folder(url, overwrite=overwrite) as folder:
        write_folder(folder, note, size)


def system_of(url):
    return remote.filesystem(url)


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("s3://bucket/a/", "s3://bucket/a"),
        (Path("s3://bucket/a"), "s3://bucket/a"),
        ("gs://b/c.tif", "gs://b/c.tif"),
        (Path("https://host/x.npy"), "https://host/x.npy"),
        ("file:///tmp/x", "file:///tmp/x"),
        ("C:/data", None),
        ("a/b:c/d", None),
        ("/tmp/x", None),
        (np.zeros(3), None),
    ],
)
def test_urls_and_paths(path, url):
    assert url_of(path) == url


def test_a_folder_goes_there_and_back(bucket, cache):
    url = f"{bucket}/there"
    publish(url)
    copy = local_folder(url)
    manifest = read_manifest(copy, "images")
    assert (copy / "sub" / "b.bin").read_bytes() == b"first sub/b.bin" * 1000
    assert set(manifest.files) == {"a.bin", "sub/b.bin"}
    with pytest.raises(OutputExistsError, match="exists and is kept"):
        publish(url)
    publish(url, "second", overwrite=True)
    other = local_folder(url)
    assert other != copy and (other / "a.bin").read_bytes().startswith(b"second")
    assert (copy / "a.bin").read_bytes().startswith(b"first"), "an opened copy stays"
    assert not list(cache.glob("upload-*"))


def test_a_copy_is_made_anew_elsewhere(bucket, monkeypatch, tmp_path):
    url = f"{bucket}/elsewhere"
    publish(url)
    monkeypatch.setenv("RETRIEVE_CACHE", str(tmp_path / "other"))
    copy = local_folder(url)
    assert copy.is_relative_to(tmp_path / "other") and read_manifest(copy, "images").counts == {}


def test_the_manifest_is_uploaded_last_and_an_upload_continues(bucket, monkeypatch):
    url, sent = f"{bucket}/last", []
    system, path = system_of(url)
    put = system.put_file

    def lost(local, goal, **more):
        if goal.endswith("manifest.json") and len(sent) < 5:
            sent.append("lost")
            raise ConnectionResetError("the line is cut")
        sent.append(goal.removeprefix(path + "/"))
        return put(local, goal, **more)

    monkeypatch.setattr(system, "put_file", lost)
    with pytest.raises(RemoteError, match=r"the line is cut.*run the command again"):
        publish(url)
    with pytest.raises(MissingInputError, match="Expected a finished folder"):
        local_folder(url)
    assert sorted(sent[:2]) == ["a.bin", "sub/b.bin"] and sent[2:] == ["lost"]
    put_now = []
    monkeypatch.setattr(system, "put_file", lambda a, b, **m: (put_now.append(b), put(a, b, **m))[1])
    with published_folder(url) as folder:
        assert (folder / "manifest.json").exists()  # the interrupted run wrote it here
    assert [name.rpartition("/")[2] for name in put_now] == ["manifest.json"]
    assert read_manifest(local_folder(url), "images")


def test_a_download_continues_after_a_lost_connection(bucket, monkeypatch, tmp_path):
    url = f"{bucket}/continue"
    publish(url)
    monkeypatch.setenv("RETRIEVE_CACHE", str(tmp_path / "fresh"))
    system, _ = system_of(url)
    get, got = system.get_file, []

    def lost(path, goal, **more):
        if "b.bin" in path and "lost" not in got:
            got.append("lost")
            Path(goal).write_bytes(b"half")
            raise TimeoutError("no answer")
        got.append(path.rpartition("/")[2])
        return get(path, goal, **more)

    monkeypatch.setattr(system, "get_file", lost)
    monkeypatch.setattr(remote, "CONNECTIONS", 1)
    with pytest.raises(RemoteError, match="no answer"):
        local_folder(url)
    (copy,) = (tmp_path / "fresh").glob("folder-*")
    assert not (copy / "manifest.json").exists() and (copy / "a.bin").exists()
    got.append("again")
    assert read_manifest(local_folder(url), "images")
    assert got[-2:] == ["again", "b.bin"]


def test_damage_at_the_server_is_noticed(bucket, monkeypatch, tmp_path):
    url = f"{bucket}/damage"
    publish(url)
    monkeypatch.setenv("RETRIEVE_CACHE", str(tmp_path / "fresh"))
    system, path = system_of(url)
    system.pipe_file(f"{path}/a.bin", b"x" * len(b"first a.bin" * 1000))
    with pytest.raises(ManifestError, match=r"a\.bin: it does not match its checksum"):
        local_folder(url)
    manifest = json.loads(system.cat_file(f"{path}/manifest.json"))
    for name in ("../../evil", "/evil"):
        bad = manifest | {"files": {name: {"bytes": 1, "sha256": "0"}}}
        system.pipe_file(f"{path}/manifest.json", json.dumps(bad).encode())
        with pytest.raises(ManifestError, match="outside of the folder"):
            local_folder(url)
    for text in (b"[]", b"{", b'{"files": [1]}', b"\xff"):
        system.pipe_file(f"{path}/manifest.json", text)
        with pytest.raises(ManifestError, match="damaged"):
            local_folder(url)


def test_the_cache_keeps_to_its_limit(bucket, cache, monkeypatch):
    urls = [f"{bucket}/limit{n}" for n in range(3)]
    for url in urls:
        publish(url, url, size=4000)
    monkeypatch.setenv("RETRIEVE_CACHE", str(cache.parent / "small"))
    monkeypatch.setenv("RETRIEVE_CACHE_GB", "0.0005")
    first = local_folder(urls[0])
    remote._release(first)  # as if its process had ended
    second = local_folder(urls[1])
    third = local_folder(urls[2])
    assert not first.exists() and second.exists() and third.exists()
    with pytest.raises(RemoteError, match="Set RETRIEVE_CACHE_GB to 1 or more"):
        local_folder(urls[0])
    monkeypatch.setenv("RETRIEVE_CACHE_GB", "much")
    with pytest.raises(RemoteError, match="Expected a number"):
        local_folder(urls[0])


def test_files_are_written_whole(bucket):
    url = f"{bucket}/out/answer.csv"
    with writing_file(Path(url)) as path:
        path.write_text("1")
    system, goal = system_of(url)
    assert system.cat_file(goal) == b"1"
    with pytest.raises(OutputExistsError), writing_file(url):
        pass
    with pytest.raises(RuntimeError), writing_file(url, overwrite=True) as path:
        path.write_text("2")
        raise RuntimeError
    assert system.cat_file(goal) == b"1"
    check_free(f"{bucket}/out/other.csv")


def test_a_server_that_is_not_there_is_one_sentence(monkeypatch):
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(RemoteError, match="cannot be reached"):
        local_folder("s3://none/index")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(RemoteError, match="cannot be reached"):
        local_folder("nonsense://none/index")


def test_images_are_read_where_they_are(bucket, cache, tmp_path):
    system, path = system_of(f"{bucket}/scenes")
    rng = np.random.default_rng(0)
    for number in range(2):
        file = tmp_path / f"{number}.tif"
        pixels = rng.integers(1, 4000, (4, 80, 90), dtype=np.uint16)
        profile = {"driver": "GTiff", "width": 90, "height": 80, "count": 4, "dtype": "uint16"}
        with rasterio.open(
            file, "w", crs="EPSG:32631", transform=rasterio.Affine(10, 0, 5e5, 0, -10, 5e6), **profile
        ) as data:
            data.write(pixels)
        system.put_file(str(file), f"{path}/{number}.tif")
    source, local = read_images(f"{bucket}/scenes"), read_images(tmp_path)
    for ours, theirs in zip(source, local, strict=True):
        np.testing.assert_array_equal(ours.pixels, theirs.pixels)
        assert ours.path == f"/vsis3/shards/scenes/{ours.image_id}.tif" and ours.crs == theirs.crs
    np.save(tmp_path / "x.npy", rng.integers(1, 4000, (2, 70, 70, 4), dtype=np.uint16))
    system.put_file(str(tmp_path / "x.npy"), f"{path.rpartition('/')[0]}/x.npy")
    assert len(read_images(f"{bucket}/x.npy")) == 2
    assert list(cache.glob("file-*"))
    with pytest.raises(MissingInputError):
        read_images(f"{bucket}/nothing")
