r"""Count the known errors of polygons that `retrieve labels compare` finds, from training to comparison.

    python benchmarks/open_data.py --json benchmarks/results/open-data.json

Each scene is generated: fields at 10 m, with towns, forests and waters of `retrieval.synthetic` in polygons
of 10 px and more. Of the labels 10 % are missing, 5 % are invented, and the others lie two pixels off. The
scene is cut into tiles like a chessboard. The network learns from the labels of the white tiles with all
their errors. It maps the black ones, which are compared:

- a *missing* feature is found if areas of its class that the labels lack cover half of it;
- an *invented* one is found if it is unsupported;
- a *correct* one is flagged if it is unsupported, or if areas of another class cover half of it;
- an *area* is right if it touches a missing feature; areas are also counted from several probabilities on.

Features are judged by the probabilities of the map, and by the map alone for comparison. All steps are
commands of `retrieve`, so files lie between them. Intervals follow Wilson. WORK keeps maps and counts, so
that a stopped run resumes.
"""

from __future__ import annotations

import contextlib
import io
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from context import arguments, context, write_json
from numpy.typing import NDArray

from retrieval.synthetic import Scene, Sky
from retrieval.synthetic.plan import Plan

NAMES = ("background", "town", "forest", "water")
CLASSES = "name,colour\nbackground,#ebebeb\ntown,#e4572e\nforest,#2e7d32\nwater,#1e88e5\n"
PLAN = {
    "farmland": 1.0,
    "town": 0.0,
    "forest": 0.0,
    "relief_m": 10.0,
    "elevation_m": 100.0,
    "sea": 0.0,
    "lakes": 0.0,
    "rivers": 0.0,
    "dunes": 0.0,
    "pivots": 0.0,
    "field_m": 120.0,
    "latitude_deg": 48.0,
    "dryness": 0.1,
}
"""Fields without anything else; each class below fills its own scene."""
FILLED: tuple[dict[str, float], ...] = (
    {},
    {"farmland": 0.0, "town": 1.0},
    {"farmland": 0.0, "forest": 1.0},
    {"sea": 1.0},
)
CRS, PLACE = "EPSG:32631", Affine(10, 0, 500_000, 0, -10, 5_000_000)
SMALLEST, LARGEST = 10, 40
"""Sides of the features, pixels."""
MISSING, INVENTED, SHIFT_PX = 0.10, 0.05, 2
YEAR, DAY = 2003, 230
"""Before any stand of trees is cut, in August."""
RECIPE = {
    "width": 8,
    "stages": 2,
    "stride": 1,
    "crop": 64,
    "batch": 6,
    "steps": 500,
    "learning_rate": 0.01,
    "warmup_steps": 10,
    "average": 0.97,
    "colour": 0.3,
    "zoom": 0.2,
}
"""A small network, a minute of one core. The image that teaches is mapped, so light changes little."""
LEAST = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Mean probabilities from which areas are counted."""
GAP_PX = 3
"""Smallest distance of two features, pixels."""


# --- ground and labels ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ground:
    """A generated scene, cut into tiles, and its faulty labels."""

    pixels: NDArray[np.uint16]
    """(y, x, 4) digital numbers: B04, B03, B02, B08."""
    features: Any
    """Frame: kind, state (`correct`, `missing`, `invented`), part (`near`, `far`), outline of the label."""
    true: NDArray[np.object_]
    """(n,) outlines on the ground, also of invented features."""
    tiles: tuple[tuple[str, int, int], ...]
    """Part, first column and first row of each tile."""
    tile: int
    """Pixels of a side of a tile."""

    def of(self, part: str) -> Ground:
        """Return the features and tiles of one part."""
        mine = (self.features.part == part).to_numpy()
        tiles = tuple(tile for tile in self.tiles if tile[0] == part)
        return replace(self, features=self.features[mine], true=self.true[mine], tiles=tiles)


def make_ground(seed: int, tile: int, side: int, count: int) -> Ground:
    """Generate a scene.

    Args:
        seed: seed of the scene and the errors.
        tile: pixels of a side of a tile.
        side: tiles of a side of the scene.
        count: features on the ground of a tile.
    """
    import geopandas
    from rasterio.features import rasterize

    rng, size = np.random.default_rng(seed), tile * side
    tiles = tuple(
        (("near", "far")[(x + y) % 2], tile * x, tile * y) for y in range(side) for x in range(side)
    )
    shapes: list[Any] = []
    parts: list[str] = []
    states: list[str] = []
    for part in ("near", "far"):
        corners = [(x, y) for name, x, y in tiles if name == part]
        more_shapes, more_states = _features(rng, corners, tile, count)
        shapes, states = shapes + more_shapes, states + more_states
        parts += [part] * len(more_shapes)
    kinds = rng.integers(1, len(NAMES), len(shapes))
    there = [(s, kind) for s, kind, state in zip(shapes, kinds, states, strict=True) if state != "invented"]
    truth = rasterize(there, (size, size), dtype=np.uint8)
    pixels = np.choose(truth[..., None], _views(seed, size))
    outlines = _shifted(rng, shapes, states)
    label, true = (
        geopandas.GeoSeries(some).affine_transform(PLACE.to_shapely()).to_numpy()
        for some in (outlines, shapes)
    )
    columns = {"kind": [NAMES[kind] for kind in kinds], "state": states, "part": parts}
    return Ground(pixels, geopandas.GeoDataFrame(columns, geometry=label, crs=CRS), true, tiles, tile)


def _views(seed: int, size: int) -> list[NDArray[np.uint16]]:
    """Return the pixels of scenes that fields, town, forest and water fill, (y, x, 4) each."""
    views = []
    for value, filled in enumerate(FILLED):
        scene = Scene(10 * seed + value, size, size)
        scene.plan = Plan(**(PLAN | filled))
        views.append(scene.observe(DAY, year=YEAR, sky=Sky(0.0, 0.03), shift_xy_px=(0.0, 0.0)).dn)
    return views


def _features(
    rng: np.random.Generator, corners: list[tuple[int, int]], tile: int, count: int
) -> tuple[list[Any], list[str]]:
    """Return the outlines of the features of one part in pixels, and their states."""
    extra = round(count * len(corners) * INVENTED)
    shapes, states = [], []
    for number, corner in enumerate(corners):
        more = len(range(number, extra, len(corners)))
        shapes += _places(rng, count + more, tile, corner)
        states += ["correct"] * count + ["invented"] * more
    there = np.flatnonzero(np.array(states) == "correct")
    for number in rng.permutation(there)[: round(count * len(corners) * MISSING)]:
        states[number] = "missing"
    return shapes, states


def _places(rng: np.random.Generator, count: int, tile: int, corner: tuple[int, int]) -> list[Any]:
    """Return turned boxes in a tile, some without a corner, at a distance from each other, in pixels."""
    import shapely
    from shapely.affinity import rotate

    found: list[Any] = []
    ground = shapely.box(*corner, corner[0] + tile, corner[1] + tile).buffer(-SHIFT_PX - 1)
    for _ in range(1000 * count):
        width, height = rng.integers(SMALLEST, LARGEST + 1, 2)
        x, y = np.add(corner, rng.uniform(0, tile, 2))
        shape = shapely.box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        if min(width, height) >= 2 * SMALLEST and rng.random() < 0.5:
            shape = shape.difference(shapely.box(x, y, x + width, y + height))
        shape = rotate(shape, rng.uniform(0, 90), origin=(x, y))
        if ground.contains(shape) and all(shape.distance(other) >= GAP_PX for other in found):
            found.append(shape)
        if len(found) == count:
            return found
    raise ValueError(f"{count} features do not fit into {tile} x {tile} px")


def _shifted(rng: np.random.Generator, shapes: list[Any], states: list[str]) -> list[Any]:
    """Return the outlines of the labels: correct ones lie two pixels off along at least one axis."""
    from shapely.affinity import translate

    moved = list(shapes)
    for number, state in enumerate(states):
        if state == "correct":
            shift = rng.integers(-SHIFT_PX, SHIFT_PX + 1, 2)
            shift[rng.integers(2)] = rng.choice([-SHIFT_PX, SHIFT_PX])
            moved[number] = translate(shapes[number], *shift)
    return moved


def write_ground(ground: Ground, folder: Path) -> None:
    """Write the tiles to `near/` and `far/`, and the labels that are there to `near.gpkg` and `far.gpkg`."""
    import rasterio

    profile = {"crs": CRS, "nodata": 0, "dtype": "uint16", "count": 4}
    for part, x, y in ground.tiles:
        pixels = ground.pixels[y : y + ground.tile, x : x + ground.tile]
        path = folder / part / f"{x}-{y}.tif"
        path.parent.mkdir(exist_ok=True)
        place = PLACE @ rasterio.Affine.translation(x, y)
        size = {"width": ground.tile, "height": ground.tile, "transform": place}
        with rasterio.open(path, "w", "GTiff", **profile, **size) as file:
            file.write(np.moveaxis(pixels, -1, 0))
            file.descriptions = ("B04", "B03", "B02", "B08")
    for part in ("near", "far"):
        labels = ground.of(part).features
        labels[labels.state != "missing"][["kind", "geometry"]].to_file(folder / f"{part}.gpkg")
    (folder / "classes.csv").write_text(CLASSES)


# --- commands ---------------------------------------------------------------------------------------------


def retrieve(*words: Any) -> str:
    """Run a command of `retrieve`; return what it prints."""
    from retrieval.cli import app

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        app([str(word) for word in words] + ["--quiet"], standalone_mode=False)
    return printed.getvalue()


def learn(folder: Path, recipe: dict[str, Any]) -> None:
    """Train `FOLDER/model` on `near/` and the labels `near.gpkg`."""
    (folder / "recipe.json").write_text(json.dumps(recipe))
    classes = ("--classes", folder / "classes.csv", "--attribute", "kind")
    like = ("--like", folder / "near", "--out", folder / "masks")
    retrieve("labels", "rasterize", folder / "near.gpkg", *like, *classes, "--overwrite")
    data = (folder / "near", folder / "masks", "--classes", folder / "classes.csv")
    retrieve("segment", "train", *data, "--recipe", folder / "recipe.json", "--out", folder / "model")


def map_far(folder: Path) -> None:
    """Map `far/` to `maps/`, and write the probabilities to `likely/`."""
    out = ("--out", folder / "maps", "--probabilities", folder / "likely")
    retrieve("segment", "predict", folder / "far", "--model", folder / "model", *out)


def judge(folder: Path, by_probability: bool = True) -> dict[str, Any]:
    """Compare `maps/` with `far.gpkg`; write `rows.parquet` and return the command's figures."""
    options = ("--attribute", "kind", "--table", folder / "rows.parquet", "--json", "--overwrite")
    options += ("--probabilities", folder / "likely") if by_probability else ()
    return dict(json.loads(retrieve("labels", "compare", folder / "maps", folder / "far.gpkg", *options)))


# --- counts -----------------------------------------------------------------------------------------------


def count_found(ground: Ground, rows: Any) -> dict[str, list[int]]:
    """Count the errors found.

    Args:
        ground: the part that was judged, with its true errors.
        rows: the table that the comparison wrote.

    Returns:
        (found, all) of missing and invented features, (flagged, all) of correct ones, and (without a missing
        feature, all) of the areas that the labels lack.
    """
    import shapely

    features, labels = ground.features, ground.features[ground.features.state != "missing"]
    own = rows[rows["feature"] >= 0].sort_values("feature")
    unsupported = np.zeros(len(labels), bool)
    unsupported[own["feature"].to_numpy() - 1] = (own["kind"] == "unsupported").to_numpy()
    areas = rows[rows["kind"].isin(["missing", "conflict"])]
    otherwise = rows[rows["kind"] == "conflict"]
    invented = (labels.state == "invented").to_numpy()
    half_otherwise = _half_covered(labels.geometry.to_numpy(), otherwise.geometry.to_numpy())
    missing = (features.state == "missing").to_numpy()
    found = np.zeros(len(features), bool)
    for kind in NAMES[1:]:
        mine = missing & (features["kind"] == kind).to_numpy()
        found[mine] = _half_covered(ground.true[mine], areas.geometry[areas["class"] == kind].to_numpy())
    hit = shapely.STRtree(ground.true[missing]).query(areas.geometry.to_numpy(), predicate="intersects")[0]
    flagged = (unsupported | half_otherwise) & ~invented
    return {
        "missing": [int(found.sum()), int(missing.sum())],
        "invented": [int(unsupported[invented].sum()), int(invented.sum())],
        "correct": [int(flagged.sum()), int((~invented).sum())],
        "areas": [len(areas) - len(np.unique(hit)), len(areas)],
    }


def count_ranked(ground: Ground, rows: Any) -> dict[str, list[int]]:
    """Count the missing features and the areas from several probabilities on.

    Args:
        ground: see `count_found`.
        rows: the table of a comparison with probabilities.

    Returns:
        (missing features found, all, right areas, all areas) by the least probability.
    """
    import shapely

    missing = ground.true[(ground.features.state == "missing").to_numpy()]
    counts = {}
    for least in LEAST:
        kept = rows[(rows["feature"] >= 0) | (rows["probability"] >= least)]
        areas = kept[kept["feature"] < 0].geometry.to_numpy()
        right = np.unique(shapely.STRtree(missing).query(areas, predicate="intersects")[0])
        counts[f"{least:g}"] = [*count_found(ground, kept)["missing"], len(right), len(areas)]
    return counts


def _half_covered(shapes: NDArray[np.object_], areas: NDArray[np.object_]) -> NDArray[np.bool_]:
    """Return which shapes the areas cover by half or more."""
    import shapely

    covered = np.zeros(len(shapes))
    one, two = shapely.STRtree(areas).query(shapes, predicate="intersects")
    np.add.at(covered, one, shapely.area(shapely.intersection(shapes[one], areas[two])))
    return np.asarray(covered >= 0.5 * shapely.area(shapes))


def run(folder: Path, seed: int, size: tuple[int, int, int], recipe: dict[str, Any]) -> dict[str, Any]:
    """Learn on the near tiles of a scene, judge the far ones; return counts, figures and seconds.

    Args:
        folder: an empty folder, or one with the maps of a former run.
        seed: seed of the scene.
        size: pixels of a tile's side, tiles of the scene's side, features of a tile.
        recipe: settings of the network.
    """
    import geopandas

    start = time.process_time()
    ground = make_ground(seed, *size)
    if not (folder / "maps").exists():
        write_ground(ground, folder)
        if not (folder / "model").exists():
            learn(folder, recipe)
        map_far(folder)
        (folder / "cpu_s").write_text(f"{time.process_time() - start:.1f}")
    far, found = ground.of("far"), {"seed": seed, "cpu_s": float((folder / "cpu_s").read_text())}
    judge(folder, by_probability=False)
    found["map_alone"] = count_found(far, geopandas.read_parquet(folder / "rows.parquet"))
    figures = judge(folder)
    rows = geopandas.read_parquet(folder / "rows.parquet")
    found |= {"counts": count_found(far, rows), "ranked": count_ranked(far, rows)}
    return found | {"iou": figures["iou"], "quality": figures["quality"]}


def main() -> None:
    """Run all scenes, and print and write the pooled shares."""
    parser = arguments(__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/open-data"), help="folder of the maps")
    parser.add_argument("--tile", type=int, default=256, help="pixels of a side of a tile")
    parser.add_argument("--side", type=int, default=4, help="tiles of a side of a scene")
    parser.add_argument("--count", type=int, default=14, help="features on the ground of a tile")
    parser.add_argument("--scenes", type=int, default=5, help="number of scenes")
    parser.add_argument("--recipe", type=json.loads, default=RECIPE, help="settings of the network, as JSON")
    asked = parser.parse_args()
    runs = []
    for seed in range(asked.scenes):
        folder = asked.work / f"{asked.tile}-{asked.side}-{asked.count}-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        kept = folder / "result.json"
        if not kept.exists():
            kept.write_text(
                json.dumps(run(folder, seed, (asked.tile, asked.side, asked.count), asked.recipe))
            )
        runs.append(json.loads(kept.read_text()))
        print(json.dumps(runs[-1]), flush=True)
    shares = {how: pooled([one[how] for one in runs]) for how in ("counts", "map_alone")}
    ranked = {}
    for least in runs[0]["ranked"]:
        found, missing, right, areas = np.sum([one["ranked"][least] for one in runs], axis=0).tolist()
        ranked[least] = {"recall": share(found, missing), "precision": share(right, areas)}
    for name, one in (
        shares["counts"] | {f"map alone, {n}": s for n, s in shares["map_alone"].items()}
    ).items():
        print(f"{name:<22}{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}] of {one['n']}")
    print(json.dumps(ranked, indent=1))
    shapes = {"tile": asked.tile, "side": asked.side, "features": asked.count, "scenes": asked.scenes}
    results = {"shares": shares["counts"], "map_alone": shares["map_alone"], "ranked": ranked, "runs": runs}
    write_json(asked.json, context(**shapes) | {"recipe": asked.recipe} | results)


def pooled(counts: list[dict[str, list[int]]]) -> dict[str, dict[str, float]]:
    """Return the share of each count over all scenes."""
    return {name: share(*(sum(one[name][i] for one in counts) for i in (0, 1))) for name in counts[0]}


def share(part: int, whole: int) -> dict[str, float]:
    """Return a share with its interval by Wilson."""
    from retrieval.report.charts import wilson

    value = part / max(whole, 1)
    low, high = wilson(value, whole) if whole else (0.0, 1.0)
    return {"value": value, "low": low, "high": high, "n": whole}


if __name__ == "__main__":
    main()
