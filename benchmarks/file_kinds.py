"""Kinds of files that we read: a small valid one of each, and a reader that touches all of it."""

from __future__ import annotations

import io
import json
import shutil
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

TESTS = Path(__file__).parents[1] / "tests"
GOLDEN = TESTS / "golden"
MODULES = (
    *("keras", "geopandas", "pyogrio", "retrieval.index.folder", "retrieval.labels.vectors"),
    *("retrieval.tasks.sources", "retrieval.labels.covers", "tfrecords.read", "tfrecords.write"),
)
"""What kinds need, imported and not used in the parent."""


@dataclass(frozen=True)
class Kind:
    """A kind of file."""

    make: Callable[[Path], Path]
    """Writes a valid one into a folder, and returns the file to damage."""
    read: Callable[[Path], object]
    """Reads what is in the folder."""
    has_checksum: bool = False
    """Whether every damage must be noticed: content that is read equals the original."""


def _pixels(bands: int = 4) -> Any:
    rng = np.random.default_rng(3)
    return rng.integers(300, 4000, (72, 80, bands)).astype(np.uint16)


def _image() -> Any:
    from tfrecords.schema import BANDS, Image

    return Image(3, _pixels(), "dn", BANDS, 0.0, crs="EPSG:32631", transform=(10.0, 0, 5e5, 0, -10.0, 5e6))


def _tif(path: Path, pixels: Any, driver: str = "GTiff", **more: Any) -> Path:
    import rasterio

    path.parent.mkdir(parents=True, exist_ok=True)
    height, width, count = pixels.shape
    profile = dict(driver=driver, height=height, width=width, count=count, dtype=pixels.dtype.name)
    with rasterio.open(path, "w", **profile, **more) as dataset:
        dataset.write(np.moveaxis(pixels, -1, 0))
    return path


def _text(name: str, content: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(content)
        return folder / name

    return make


def _tfrecord(folder: Path) -> Path:
    from tfrecords.write import write_images

    write_images([_image()], folder / "images.tfrecords")
    return folder / "images.tfrecords"


def _npy(folder: Path) -> Path:
    np.save(folder / "images.npy", _pixels()[None])
    return folder / "images.npy"


def _npz(folder: Path) -> Path:
    pixels = np.random.default_rng(1).integers(0, 255, (6, 16, 16, 3)).astype(np.uint8)
    np.savez(folder / "train.npz", x=pixels, y=np.array(["a", "b"] * 3))
    return folder / "train.npz"


def _series(folder: Path) -> Path:
    from tfrecords.schema import BANDS, Series
    from tfrecords.write import write_series

    one = Series(
        np.stack([_pixels(), _pixels()]), "dn", BANDS, 0.0, ("2020-01-01", "2020-06-01"), "here", 0, 0
    )
    write_series([one], folder / "series")
    return next((folder / "series").glob("*.tfrecords"))


def _picture(ending: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from PIL import Image

        content = io.BytesIO()
        pixels = (_pixels(3)[:64, :64] // 16).astype(np.uint8)
        Image.fromarray(pixels).save(content, format={"jpg": "jpeg"}.get(ending, ending))
        (folder / f"chip.{ending}").write_bytes(content.getvalue())
        return folder / f"chip.{ending}"

    return make


def _only(folder: Path) -> Path:
    """Return the file of a folder of one."""
    return next(path for path in sorted(folder.iterdir()) if path.is_file())


def _read_images(folder: Path) -> object:
    from tfrecords.read import read_images

    return [image.scaled().sum() for image in read_images(str(_only(folder)))]


def _read_series(folder: Path) -> object:
    from tfrecords.read import read_series

    return [one.pixels.sum() for one in read_series(folder / "series")]


def _read_chips(folder: Path) -> object:
    from tfrecords.read import read_queries

    queries = read_queries(str(_only(folder)))
    pixels = queries.read(0).pixels if hasattr(queries, "read") else queries.pixels  # a chip of another size
    return np.asarray(pixels).sum()


def _read_labelled(folder: Path) -> object:
    from retrieval.tasks.sources import read_labelled

    return read_labelled(_only(folder)).images.pixels.sum()


def _read_submission(folder: Path) -> object:
    from retrieval.evaluation.submission import read_submission

    return read_submission(_only(folder))


def _read_settings(folder: Path) -> object:
    from retrieval.config import ChipConfig, IndexConfig, RefineConfig, SearchConfig
    from retrieval.config.settings import read_settings

    settings = read_settings(_only(folder))
    return [settings.make(kind) for kind in (IndexConfig, SearchConfig, RefineConfig, ChipConfig)]


def _settings(folder: Path) -> Path:
    content = '[index]\nstride_px = 4\nkind = "fast"\n\n[search]\ntop_k = 64\n\n[chip]\n'
    return _text("retrieve.toml", content)(folder)


def _read_recipe(folder: Path) -> object:
    from retrieval.config import TrainConfig
    from retrieval.training.recipes import read_recipe

    return TrainConfig.from_mapping(read_recipe(_only(folder)))


def _read_manifest(folder: Path) -> object:
    from tfrecords.artifacts import read_manifest

    return read_manifest(folder / "series", "series")


def _manifest(folder: Path) -> Path:
    return _series(folder).parent / "manifest.json"


def _read_area(folder: Path) -> object:
    from retrieval.geo.filters import read_filter
    from retrieval.types import StoredImage

    row = StoredImage(3, "", 80, 72, ("B04",), "EPSG:32631", (10.0, 0, 5e5, 0, -10.0, 5e6), None, 4)
    return read_filter({3: row}, within=_only(folder))


AREA = json.dumps(
    {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "properties": {"class": "field"},
                "geometry": {
                    "type": "Polygon",
                    "coordinates": [[[3.0, 45.14], [3.02, 45.14], [3.02, 45.16], [3.0, 45.16], [3.0, 45.14]]],
                },
            }
        ],
    }
)


def _read_mask(folder: Path) -> object:
    from retrieval.labels.masks import read_mask

    return read_mask(_only(folder))


def _mask(folder: Path) -> Path:
    from retrieval.labels.classes import Classes
    from retrieval.labels.masks import write_png

    indices = np.random.default_rng(2).integers(0, 3, (40, 50)).astype(np.uint8)
    write_png(folder / "mask.png", indices, Classes(("a", "b", "c")))
    return folder / "mask.png"


def _read_cover(folder: Path) -> object:
    from retrieval.labels.covers import read_cover

    return read_cover(_only(folder))


def _read_classes(folder: Path) -> object:
    from retrieval.labels.classes import read_classes

    return read_classes(_only(folder))


def _read_journal(folder: Path) -> object:
    from retrieval.ingest.stac.journal import read_rows

    return read_rows(folder)


def _journal(folder: Path) -> Path:
    from retrieval.ingest.stac.journal import ItemRow

    row = {"item": "S2A", "date": "2020-01-05", "place": "31TCJ", "file": "31TCJ/2020-01-05.tif"}
    names = [one.name for one in fields(ItemRow)]
    lines = [",".join(names), ",".join(row.get(name, "") for name in names)]
    return _text("items.csv", "\n".join(lines) + "\n")(folder)


def _read_vectors(folder: Path) -> object:
    from retrieval.labels.vectors import VectorFile

    return [len(batch.shapes) for batch in VectorFile.open(_only(folder)).batches("EPSG:4326")]


def _parquet(folder: Path) -> Path:
    import geopandas
    from shapely.geometry import box

    frame = geopandas.GeoDataFrame({"class": ["field"]}, geometry=[box(3, 45, 3.1, 45.1)], crs="EPSG:4326")
    frame.to_parquet(folder / "areas.parquet")
    return folder / "areas.parquet"


def _golden(name: str, file: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with tarfile.open(GOLDEN / f"{name}.tar.xz") as archive:
            archive.extractall(folder, filter="data")
        return folder / name / file

    return make


def _read_index(folder: Path) -> object:
    from retrieval.index.folder import IndexFolder

    index = IndexFolder(next(path for path in folder.iterdir() if path.is_dir()), device="cpu")
    return [index.scaled(number).sum() for number in index.images]


def _read_network(folder: Path) -> object:
    from retrieval.models.encoder import load_encoder

    return load_encoder(_only(folder)).dim


def _network(folder: Path) -> Path:
    from retrieval.models.registry import WEIGHTS

    (folder / "encoder.keras").write_bytes((WEIGHTS / "structure-tensor.keras").read_bytes())
    return folder / "encoder.keras"


def _read_calibration(folder: Path) -> object:
    from retrieval.models.calibration import Calibration

    return Calibration.load(_only(folder))


def _calibration(folder: Path) -> Path:
    from retrieval.models.registry import WEIGHTS

    source = next(p for p in sorted(WEIGHTS.iterdir(), key=lambda p: p.name) if "calibration" in p.name)
    return _text(source.name, source.read_text())(folder)


def _product(folder: Path) -> Path:
    """Write a product in SAFE format and return its metadata."""
    sys.path.append(str(TESTS))
    from safetree import Spec, write_product

    return next(write_product(folder, Spec(_pixels())).glob("MTD_*.xml"))


def _zipped_product(folder: Path) -> Path:
    _product(folder / "unpacked")
    made = shutil.make_archive(str(folder / "product"), "zip", folder / "unpacked")
    shutil.rmtree(folder / "unpacked")
    return Path(made)


def _read_products(folder: Path) -> object:
    from retrieval.ingest.safe.metadata import read_product
    from retrieval.ingest.safe.tile import open_tile
    from retrieval.ingest.safe.tree import find_trees

    trees, errors = find_trees(folder)
    if errors:
        raise errors[0]
    read = []
    for tree in trees:
        product = read_product(tree)
        for granule in product.granules:
            with open_tile(product, granule) as tile:
                read.append(tile.grid)
    return read


_SERVING: list[Any] = []


def _stac_answer(folder: Path) -> Path:
    """Write the answer of a STAC catalogue, and serve what the file holds."""
    sys.path.append(str(TESTS))
    import stac_server
    from stac_ground import Tiles

    tiles = Tiles(folder / "tiles", "https://example.org")
    for day in ("2022-05-01", "2022-06-01"):
        tiles.put("31TCJ", day)
    path = folder / "answer.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": tiles.items, "links": []}))

    class Answering(stac_server._Handler):
        def reply(self, method: str, asked: Any) -> None:
            if not self.path.startswith("/search"):
                super().reply(method, asked)
            else:
                self.send(200, path.read_bytes(), "application/geo+json")

    serving = stac_server.listening(Answering, stac_server.Catalogue)
    (folder / "url.txt").write_text(serving.__enter__().url)
    _SERVING.append(serving)  # until the child ends
    return path


def _read_stac_answer(folder: Path) -> object:
    from stac_job import query_of

    from retrieval.ingest.retry import RetryPolicy
    from retrieval.ingest.stac.catalogue import find_items
    from retrieval.ingest.stac.scene import scene_of

    query = query_of((folder / "url.txt").read_text())
    return [scene_of(item).when for item in find_items(query, RetryPolicy(attempts=1))]


def _read_shards(folder: Path) -> object:
    from retrieval.distributed.shards import open_folder

    return sorted(open_folder(folder / "shards-v1", device="cpu").images)


def _read_forest(folder: Path) -> object:
    from retrieval.tasks.forest import load_forest

    return load_forest(folder / "segmenter-trees-v1" / "forest.npz").roots.tolist()


KINDS: dict[str, Kind] = {
    "TFRecord, images": Kind(_tfrecord, _read_images, True),
    "TFRecord, series": Kind(_series, _read_series, True),
    "npy": Kind(_npy, _read_images),
    "npz": Kind(_npz, _read_labelled),
    "GeoTIFF": Kind(lambda f: _tif(f / "a.tif", _pixels(), compress="deflate", nodata=0), _read_images),
    "JPEG 2000": Kind(lambda f: _tif(f / "a.jp2", _pixels(3), "JP2OpenJPEG", QUALITY="100"), _read_images),
    "PNG": Kind(_picture("png"), _read_chips),
    "JPEG": Kind(_picture("jpg"), _read_chips),
    "mask": Kind(_mask, _read_mask),
    "GeoJSON, area": Kind(_text("area.geojson", AREA), _read_area),
    "submission": Kind(_text("s.csv", "Patch ID,Result\n0,3 12 40\n1,17 8 9\n"), _read_submission),
    "settings": Kind(_settings, _read_settings),
    "recipe": Kind(_text("r.json", '{"steps": 100, "batch": 8, "seed": 3, "loss": "triplet"}'), _read_recipe),
    "manifest": Kind(_manifest, _read_manifest),
    "cover": Kind(_text("cover.csv", "z,x,y,split\n12,2100,1500,train\n12,2101,1500,val\n"), _read_cover),
    "classes": Kind(_text("c.csv", "name,value,colour\nwater,1,#0000ff\nfield,2,#00ff00\n"), _read_classes),
    "journal": Kind(_journal, _read_journal),
    "calibration": Kind(_calibration, _read_calibration, True),
    "GeoJSON, labels": Kind(_text("labels.geojson", AREA), _read_vectors),
    "GeoParquet, labels": Kind(_parquet, _read_vectors),
    "index, table": Kind(_golden("index-v2", "images.csv"), _read_index, True),
    "index, vectors": Kind(_golden("index-v2", "vectors.faiss"), _read_index, True),
    "keras": Kind(_network, _read_network),
    "SAFE, metadata": Kind(_product, _read_products),
    "SAFE, zip": Kind(_zipped_product, _read_products),
    "STAC, answer": Kind(_stac_answer, _read_stac_answer),
    "shards": Kind(_golden("shards-v1", "shards.json"), _read_shards, True),
    "forest": Kind(_golden("segmenter-trees-v1", "forest.npz"), _read_forest),
}
