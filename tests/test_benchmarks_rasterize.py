"""Masks from files of many features, whose memory does not follow the file, and their comparison."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("mercantile", reason="needs the extra `labels`")
pytest.importorskip("pyogrio", reason="needs the extra `labels`")

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import compared
import rasterize
from context import stage

FEW, MANY = 20_000, 80_000
"""Features; the smaller file is one batch."""


def test_four_times_the_features_need_the_same_memory(tmp_path):
    rasterize.write_cover(tmp_path / "cover.csv", 4)
    peaks_mb = []
    for count in (FEW, MANY):
        labels, out = tmp_path / f"{count}.gpkg", tmp_path / f"masks-{count}"
        rasterize.write_buildings(labels, count, 4)
        done = stage(
            "burn", rasterize.burn, labels, tmp_path / "cover.csv", out, imports=("pyogrio", "pyarrow")
        )
        assert done.result["features"] == count
        assert len(list(out.rglob("*.png"))) == 16
        peaks_mb.append(done.peak_mb)
    assert peaks_mb[1] - peaks_mb[0] < 30  # all features at one time take 60 MB more


def test_a_map_of_the_labels_supports_each(tmp_path):
    labels, cover = tmp_path / "buildings.gpkg", tmp_path / "cover.csv"
    rasterize.write_cover(cover, 2)
    rasterize.write_buildings(labels, 50, 2)
    rasterize.burn(labels, cover, tmp_path / "maps")
    assert compared.judge(tmp_path / "maps", labels)["features"] == 50
