"""Known errors of land-use polygons, from training to comparison: found, and little else flagged."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("mercantile", reason="needs the extra `labels`")
pytest.importorskip("geopandas", reason="needs the extra `labels`")

import geopandas
import shapely

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import open_data

SMALL = (128, 4, 5)
"""Pixels of a tile's side, tiles of the scene's side, features of a tile."""


def test_a_network_taught_by_faulty_polygons_finds_their_errors(tmp_path):
    """It finds 95 % of the missing and the invented ones, and flags 2 % of those that lie two pixels off."""
    recipe = open_data.RECIPE | {"steps": 300, "average": 0.95, "colour": 1.0, "zoom": 0.4}
    counts = open_data.run(tmp_path, 0, SMALL, recipe)["counts"]
    shares = {name: part / whole for name, (part, whole) in counts.items()}
    assert [counts[name][1] for name in ("missing", "invented", "correct")] == [4, 2, 36]
    assert shares["missing"] >= 0.95 and shares["invented"] >= 0.95 and shares["correct"] <= 0.02


def test_the_ground_has_the_errors_that_it_states():
    ground = open_data.make_ground(3, 128, 2, 10)
    for part in ("near", "far"):
        mine = ground.of(part)
        states = mine.features.state
        assert states.value_counts().to_dict() == {"correct": 18, "missing": 2, "invented": 1}
        off = [
            max(abs(one - other) for one, other in zip(label.bounds, true.bounds, strict=True)) / 10
            for label, true in zip(mine.features.geometry, mine.true, strict=True)
        ]
        assert [round(px, 6) for px in off] == [2.0 if state == "correct" else 0.0 for state in states]
        assert all(shapely.minimum_rotated_rectangle(true).area >= 100 * 100 for true in mine.true)
        tiles = [shapely.box(x, y, x + 128, y + 128) for _, x, y in mine.tiles]
        ground_px = shapely.transform(mine.true, lambda xy: (xy - (500_000, 5_000_000)) * (0.1, -0.1))
        assert shapely.contains(shapely.union_all(tiles), ground_px).all()


def test_found_errors_are_counted_by_hand():
    def box(x, side=10):
        return shapely.box(x, 0, x + side, 10)

    features = geopandas.GeoDataFrame(
        {"kind": ["town"] * 5, "state": ["missing", "missing", "invented", "correct", "correct"]},
        geometry=[box(0), box(20), box(40), box(60), box(80)],
    )
    ground = open_data.Ground(None, features, features.geometry.to_numpy(), (), 0)
    rows = geopandas.GeoDataFrame(
        {
            "feature": [1, 2, 3, -1, -1, -1, -1],
            "kind": ["unsupported", "supported", "unsupported", "missing", "missing", "missing", "conflict"],
            "class": ["town"] * 5 + ["water"] * 2,
        },
        geometry=[box(40), box(60), box(80), box(0, 6), box(20, 4), box(100), box(60, 6)],
    )
    found = open_data.count_found(ground, rows)
    rows["probability"] = [0.9, 0.9, 0.1, 0.9, 0.65, 0.8, 0.5]
    ranked = open_data.count_ranked(ground, rows)
    assert [ranked[least] for least in ("0", "0.6", "0.8", "0.9")] == [
        [1, 2, 2, 4], [1, 2, 2, 3], [1, 2, 1, 2], [1, 2, 1, 1]
    ]  # fmt: skip
    assert found == {"missing": [1, 2], "invented": [1, 1], "correct": [2, 2], "areas": [2, 4]}
