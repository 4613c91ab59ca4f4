"""An index at a URL is copied without its pixels; an image is copied when a query reads it first."""

import numpy as np
import pytest
from engine import digital, small_encoder, texture
from s3_server import s3_server

import retrieval
from retrieval.errors import IndexMismatchError
from retrieval.index.folder import is_pixels
from tfrecords import remote
from tfrecords.errors import ManifestError, RemoteError
from tfrecords.remote import ORIGIN, local_folder


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("unused")) as url:
        yield url


@pytest.fixture(scope="module")
def images():
    return np.stack([digital(texture(104, 120, seed=s)) for s in range(4)])


@pytest.fixture(params=[None, 2])
def index(request, bucket, images, tmp_path, monkeypatch):
    """The URL of an index, in one folder or in two shards, and an empty cache."""
    url = f"{bucket}/index-{request.param}"
    monkeypatch.setenv("RETRIEVE_CACHE", str(tmp_path / "builder"))
    more = {"encoder": small_encoder(), "shards": request.param}
    retrieval.build_index(images, url, **more, overwrite=True)
    monkeypatch.setenv("RETRIEVE_CACHE", str(tmp_path / "cache"))
    return url


def pixel_files(folder):
    return sorted(path.name for path in folder.glob("cache/**/pixels/*.npy"))


def test_pixels_are_copied_when_they_are_read(index, images, tmp_path):
    opened = retrieval.open_index(index, device="cpu")
    assert pixel_files(tmp_path) == []
    for _ in range(2):
        assert opened.folder.scaled(2, (0, 0, 8, 8)).shape == (8, 8, 4)
        assert opened.folder.stored_codes(2).shape == (104, 120, 4)
    assert pixel_files(tmp_path) == ["2.npy"]
    patches = images[:, 20:84, 30:94]
    frame = opened.locate(patches)
    assert frame[["image_id", "x", "y"]].to_numpy().tolist() == [[n, 30, 20] for n in range(4)]
    copy = local_folder(index)
    assert len(pixel_files(tmp_path)) == 4 and not (copy / ORIGIN).exists()


def test_a_lost_connection_and_damage_are_named_and_the_next_read_continues(index, tmp_path, monkeypatch):
    opened = retrieval.open_index(index, device="cpu")
    copy = remote._copy

    def lost(*_):
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(remote, "_copy", lost)
    with pytest.raises(RemoteError, match="cannot be reached"):
        opened.folder.scaled(1)
    monkeypatch.setattr(remote, "_copy", lambda *a: (copy(*a), a[2].write_bytes(b"other")))
    with pytest.raises(ManifestError, match="does not match its checksum"):
        opened.folder.scaled(1)
    assert pixel_files(tmp_path) == []
    monkeypatch.setattr(remote, "_copy", copy)
    assert opened.folder.scaled(1).shape == (104, 120, 4)


def test_pixels_that_left_the_server_mean_another_index(index, tmp_path):
    opened = retrieval.open_index(index, device="cpu")
    system, path = remote.filesystem(index)
    for file in [f for f in system.find(path) if is_pixels(f)]:
        system.rm_file(file)
    system.invalidate_cache()
    with pytest.raises(IndexMismatchError, match="was changed"):
        opened.folder.scaled(0)


def test_no_folder_outside_of_the_cache_names_a_server(index, tmp_path):
    """A folder from a stranger must not make this process connect to an address."""
    copy = local_folder(index)
    strange = copy.rename(tmp_path / "strange")
    (strange / ORIGIN).write_text(index)
    for file in strange.glob("**/pixels/1.npy"):
        file.unlink()
    with pytest.raises(ManifestError, match=r"1\.npy"):
        retrieval.open_index(strange, device="cpu")
