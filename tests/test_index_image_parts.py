"""Images that workers read and write themselves: the same index, in few bytes between processes."""

import pickle

import numpy as np
import pytest
from engine import digital, image_of, texture

from retrieval.config import IndexConfig
from retrieval.index.builder import write_index
from retrieval.index.image_parts import MAX_CHUNK, chunk_size
from retrieval.models.encoder import FakeEncoder
from tfrecords.errors import DuplicateIdError
from tfrecords.read import read_images
from tfrecords.write import write_images

FAKE, COUNT = FakeEncoder(), 11
SMALL = 20_000
"""Bytes of a task or result without pixels; an image of the tests has 100,000."""


class Elsewhere:
    """Runs tasks as another process would, which sees some paths, and notes the bytes that pass."""

    in_process = False

    def __init__(self, sees=lambda path: True, stop_at=None):
        self.sees, self.stop_at, self.passed = sees, stop_at, []

    def slots(self):
        return 1

    def map(self, function, tasks):
        for number, task in enumerate(tasks):
            if number == self.stop_at:
                raise KeyboardInterrupt
            sent = pickle.dumps(task)
            returned = pickle.dumps(function(pickle.loads(sent)))
            self.passed += [len(sent), len(returned)]
            yield pickle.loads(returned)


@pytest.fixture(scope="module")
def stack():
    return np.stack([digital(texture(104, 120, seed=s)) for s in range(COUNT)])


@pytest.fixture(scope="module")
def sources(stack, tmp_path_factory):
    """The same images as an array file, as records with other ids, and as GeoTIFFs."""
    import rasterio

    folder = tmp_path_factory.mktemp("sources")
    np.save(folder / "images.npy", stack)
    write_images([image_of(p, 3 * n % 11) for n, p in enumerate(stack)], folder / "images.tfrecords")
    (folder / "tifs").mkdir()
    size = {
        "height": stack.shape[1],
        "width": stack.shape[2],
        "count": 4,
        "dtype": "uint16",
        "crs": "EPSG:32631",
    }
    size["transform"] = rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000)
    for number, pixels in enumerate(stack):
        with rasterio.open(folder / "tifs" / f"{number:02d}.tif", "w", driver="GTiff", **size) as dataset:
            dataset.write(np.moveaxis(pixels, -1, 0))
    return {name: folder / name for name in ("images.npy", "images.tfrecords", "tifs")}


def written(source, out, executor=None, **settings):
    """Names and bytes of the files of an index, without the manifest, which holds the time."""
    images = read_images(source, bands=("B04", "B03", "B02", "B08"), units="dn")
    config = IndexConfig(stride_px=4, **settings)
    write_index(images, out, FAKE, config, source="", executor=executor)
    files = {f.relative_to(out).as_posix(): f for f in out.rglob("*") if f.is_file()}
    return {name: file.read_bytes() for name, file in files.items() if name != "manifest.json"}


@pytest.mark.parametrize("name", ["images.npy", "images.tfrecords", "tifs"])
def test_workers_read_images_and_write_parts_themselves(sources, tmp_path, name):
    here = written(sources[name], tmp_path / "here")
    workers = Elsewhere()
    assert written(sources[name], tmp_path / "workers", workers) == here
    assert len(workers.passed) > 2 and max(workers.passed) < SMALL
    apart = Elsewhere(sees=lambda path: path != sources[name] and path.suffix != ".tif")
    assert written(sources[name], tmp_path / "apart", apart) == here
    assert max(apart.passed) > SMALL  # pixels travel to workers that do not see the files


def test_vectors_become_half_precision_where_the_index_does(sources, tmp_path):
    """The first chunks are written before it is known that there are too many windows for an exact index."""
    settings = {"kind": "auto", "exact_below": 700, "fast_below": 10_000}
    here = written(sources["images.npy"], tmp_path / "here", **settings)
    assert written(sources["images.npy"], tmp_path / "workers", Elsewhere(), **settings) == here


def test_an_interrupted_run_resumes_and_leaves_nothing_of_the_workers(sources, tmp_path):
    here, out = written(sources["tifs"], tmp_path / "here"), tmp_path / "workers"
    with pytest.raises(KeyboardInterrupt):
        written(sources["tifs"], out, Elsewhere(stop_at=2))
    assert not out.exists()
    assert written(sources["tifs"], out, Elsewhere()) == here


def test_images_of_one_id_in_different_chunks_are_refused(stack, tmp_path):
    for name, number in (("a", 0), ("b", 1)):
        write_images([image_of(stack[number], 5)], tmp_path / f"{name}.tfrecords")
    with pytest.raises(DuplicateIdError, match="image id 5"):
        written(tmp_path, tmp_path / "index", Elsewhere())
    assert not (tmp_path / "index").exists()


def test_chunks_serve_all_workers_and_stay_small():
    assert chunk_size(3, 8) == 1 and chunk_size(10_000, 2) == MAX_CHUNK
    for images, slots in ((600, 2), (100, 8), (17, 1)):
        assert images / chunk_size(images, slots) >= 4 * slots or chunk_size(images, slots) == 1
