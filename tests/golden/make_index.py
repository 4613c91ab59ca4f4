"""Write `index-v2.tar.xz`, a tiny index folder, and what it answers. Run once; the files are committed.

    python tests/golden/make_index.py
    python tests/golden/make_index.py shards    # shards-v1.tar.xz, the same images in two shards

A later release must open the folder and give the same answers, or say in its changelog that it
doesn't and raise the format version. Run it again only for a new version, and keep the old files.
"""

import json
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

import numpy as np  # noqa: E402
from engine import digital, projection, texture  # noqa: E402

from retrieval.config import IndexConfig, TensorConfig  # noqa: E402
from retrieval.distributed.shard_builder import write_shards  # noqa: E402
from retrieval.index.builder import write_index  # noqa: E402
from retrieval.models.encoder import KerasEncoder  # noqa: E402
from retrieval.models.networks import tensor_model  # noqa: E402
from retrieval.pipeline import open_index  # noqa: E402
from tfrecords.artifacts import FORMAT_VERSION  # noqa: E402
from tfrecords.read import ImageSource  # noqa: E402
from tfrecords.schema import Image, Patches  # noqa: E402

VERSION = FORMAT_VERSION["index"]
ORDINARY = ((3, 0, 0), (3, 13, 9), (3, 24, 16), (7, 5, 2), (7, 8, 11))
PLACES = {1: ORDINARY, 2: (*ORDINARY, (9, 4, 6))}
"""Image, x and y of the patches that are asked for, by version of the index."""
COLUMNS = ("image_id", "x", "y", "dx", "dy", "similarity", "ncc", "longitude", "latitude")


def images(version=VERSION):
    """Two images, one with a CRS, one with nodata and fewer bands; from version 2 on one of bright ground."""
    first, second = digital(texture(80, 88, bands=2, seed=1)), digital(texture(75, 72, bands=1, seed=2))
    second[:30, 60:] = 0
    utm = (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_000_000.0)
    yield Image(3, first, "dn", ("B04", "B08"), 0.0, "a/first.tif", "EPSG:32631", utm, "2019-07-01")
    yield Image(7, second, "dn", ("B04",), 0.0, "b/second.tif")
    if version > 1:
        salt = (7000 + 2222 * texture(80, 76, bands=1, seed=3)).astype(np.uint16)
        yield Image(9, salt, "dn", ("B04",), 0.0, "c/salt.tif")


def patches(version=VERSION):
    """Copies out of all images, under another light, and one flat patch; in the one band that all have."""
    pixels = {image.image_id: image.pixels for image in images(version)}
    cut = [pixels[i][y : y + 64, x : x + 64, :1] for i, x, y in PLACES[version]]
    cut = [np.where(c == 0, 0, c // 2 + 300).astype(np.uint16) for c in cut]
    stack = np.stack([*cut, np.full((64, 64, 1), 700, np.uint16)])
    return Patches(np.arange(len(stack)) + 100, stack, "dn", ("B04",), 0.0)


def answers(folder, version=VERSION):
    """What the folder answers, as plain values; NaN as None."""
    frame = open_index(folder, device="cpu").locate(patches(version))
    rows = frame[list(COLUMNS)].astype(float).round(5).to_dict("records")
    return [{k: None if v != v else v for k, v in row.items()} for row in rows]


def make_shards():
    """Write `shards-v1.tar.xz`, the same images in two shards, which give the same answers."""
    name = f"shards-v{FORMAT_VERSION['shards']}"
    encoder = KerasEncoder(tensor_model(projection(8), TensorConfig(dim=8)), "tiny")
    source = ImageSource("make_index.py", 3, images)
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / name
        write_shards(source, folder, encoder, IndexConfig(stride_px=8), 2, device="cpu")
        with tarfile.open(HERE / f"{name}.tar.xz", "w:xz") as archive:
            archive.add(folder, name)


def main():
    """Write both, in place of what was there."""
    name = f"index-v{VERSION}"
    encoder = KerasEncoder(tensor_model(projection(8), TensorConfig(dim=8)), "tiny")
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / name
        write_index(images(), folder, encoder, IndexConfig(stride_px=8), source="make_index.py", device="cpu")
        with tarfile.open(HERE / f"{name}.tar.xz", "w:xz") as archive:
            archive.add(folder, name)
        text = json.dumps(answers(folder), indent=1)
    (HERE / f"{name}-answers.json").write_text(text + "\n")


if __name__ == "__main__":
    make_shards() if sys.argv[1:] == ["shards"] else main()
