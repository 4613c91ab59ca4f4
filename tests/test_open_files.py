"""The number of open files does not grow with the number of images, shards and vectors.

One process with few descriptors does the whole job on more files than it has descriptors.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from engine import digital, small_encoder, texture

resource = pytest.importorskip("resource", reason="limits of descriptors need POSIX")

DESCRIPTORS = 40
IMAGES = 45
ADDED = 10
REMOVED = 3


def write_scenes(folder: Path, numbers) -> None:
    import rasterio

    folder.mkdir(parents=True)
    for number in numbers:
        profile = {"driver": "GTiff", "height": 72, "width": 80, "count": 4, "dtype": "uint16"}
        place = rasterio.Affine(10, 0, 5e5 + 2000 * number, 0, -10, 5e6)
        with rasterio.open(folder / f"{number:03}.tif", "w", crs=32632, transform=place, **profile) as file:
            file.write(np.moveaxis(digital(texture(72, 80, seed=number)), -1, 0))


def write_shards(folder: Path, numbers) -> None:
    """One patch a file."""
    from tfrecords.schema import BANDS, Patches
    from tfrecords.write import write_patches

    folder.mkdir()
    for number in numbers:
        pixels = digital(texture(72, 80, seed=number))[None, 4:68, 8:72]
        patches = Patches(np.array([number]), pixels, "dn", BANDS, 0.0)
        write_patches(patches, folder / f"{number:03}.tfrecords")


def limited_job(folder: Path) -> None:
    """Build, query, change, export and report an index with few descriptors; runs in its own process."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, hard))
    from retrieval.config import IndexConfig
    from retrieval.distributed.shard_changes import add_to_index, remove_from_index
    from retrieval.export.geoparquet import export_vectors
    from retrieval.export.stac import export_stac
    from retrieval.pipeline import build_index, locate, open_index
    from retrieval.report.page import write_page
    from retrieval.results.window_tifs import write_window_tifs
    from tfrecords.read import read_patches

    out, encoder = folder / "index", small_encoder()
    build_index(folder / "first", folder / "exact", encoder=encoder, config=IndexConfig(kind="exact"))
    build_index(folder / "first", out, encoder=encoder, config=IndexConfig(kind="ivf", stride_px=4))
    add_to_index(folder / "more", out)
    remove_from_index(out, [f"{REMOVED:03}.tif"])
    index = open_index(out)
    assert index.folder.vectors.kind == "ivf" and len(index.folder.images) == IMAGES + ADDED - 1
    patches = read_patches(str(folder / "patches" / "*.tfrecords"))
    matches = locate(index, patches)
    found = matches.frame()
    np.savetxt(folder / "found.txt", found[["patch_id", "image_id", "x", "y"]].to_numpy(), fmt="%d")
    export_vectors(index.folder, folder / "vectors.parquet")
    export_stac(index.folder, folder / "catalogue")
    write_page(folder / "page.html", index.folder, patches, matches.details(), limit=2)
    write_window_tifs(matches, folder / "windows")
    held = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert not [name for name in held if ".tif" in name or "tfrecord" in name or "pixels" in name]


def test_job_on_more_files_than_descriptors(tmp_path):
    write_scenes(tmp_path / "first", range(IMAGES))
    write_scenes(tmp_path / "more", range(IMAGES, IMAGES + ADDED))
    queried = [number for number in range(IMAGES + ADDED) if number != REMOVED]
    write_shards(tmp_path / "patches", queried)
    code = f"import pathlib, test_open_files as t; t.limited_job(pathlib.Path({str(tmp_path)!r}))"
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": paths},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = np.loadtxt(tmp_path / "found.txt", dtype=np.int64)
    assert found.tolist() == [[number, number, 8, 4] for number in queried]
