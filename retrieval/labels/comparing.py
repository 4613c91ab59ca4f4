"""A class map against labels: which features lack support, which the labels lack, and where most is wrong.

The quality-of-data score of a tile is 100 (1 - E / U). U is the number of pixels of a class in the map or the
labels. E is the number of pixels that only one of them shows, beyond the tolerance of `agreement`. Both are
summed over the classes. A tile without any class has 100.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import LabelsError
from retrieval.labels.agreement import Block, Tolerance, differences, support
from retrieval.labels.areas import Area, Areas
from retrieval.labels.classes import IGNORED, Classes, read_classes
from retrieval.labels.compared_rows import BATCH_ROWS, ComparedRows
from retrieval.labels.comparison_page import compared_tiles
from retrieval.labels.evidence import Evidence
from retrieval.labels.grids import Piece, open_grid
from retrieval.labels.label_features import SQUARE_PX, LabelFeatures, LabelSource, Mosaic
from retrieval.labels.masks import classes_of
from retrieval.labels.metres import areas_m2
from retrieval.labels.stored_shapes import StoredShapes
from retrieval.labels.vectorizing import (
    WGS84,
    Lattice,
    check_vector_output,
    joined,
    lattices,
    polygons_of,
    write_vectors,
)
from retrieval.labels.vectors import Shapes
from retrieval.report.comparison import ComparisonSummary, check_comparison, write_comparison
from retrieval.types import Progress, silent
from tfrecords.storage import check_free, writing_file

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

SHOWN_TILES = 60
"""Tiles on a page by default; each takes about 60 kB."""
SUPPORTED, UNSUPPORTED, UNSEEN = "supported", "unsupported", "unseen"
"""Kinds of label features: shown by the map, not shown, and outside of its data."""
MISSING, CONFLICT = "missing", "conflict"
"""Kinds of areas of the map: without a label, and with a label of another class."""


@dataclass(frozen=True)
class Comparison:
    """Result of `compare`."""

    features: Mapping[str, int]
    """Number of rows by kind: supported, unsupported, unseen, missing and conflict."""
    iou: Mapping[str, float]
    """Intersection over union of each class, over all pixels."""
    quality: float
    """Quality-of-data score over all pixels, 0 to 100."""
    worst: tuple[str, ...]
    """Names of the ten tiles with most disagreement."""
    tiles: GeoDataFrame
    """One row per tile, most disagreement first."""
    stored_rows: ComparedRows
    """What `rows` reads."""
    notes: tuple[str, ...] = field(default=())

    @cached_property
    def rows(self) -> GeoDataFrame:
        """One row per feature and area; see `docs/formats.md`. The first use reads them from the disk."""
        return self.stored_rows.frame()


def compare(
    predicted: str | Path,
    labels: str | Path,
    *,
    table: str | Path | None = None,
    tiles: str | Path | None = None,
    page: str | Path | None = None,
    images: str | Path | None = None,
    most: int = SHOWN_TILES,
    classes: str | Path | Classes | None = None,
    attribute: str | None = None,
    as_class: str | None = None,
    layer: str | None = None,
    zoom: int | None = None,
    tolerance: Tolerance | None = None,
    probabilities: str | Path | None = None,
    least_probability: float = 0.0,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Comparison:
    """Compare a class map with labels.

    Args:
        predicted: a class map with a CRS, or a folder of class maps or XYZ masks.
        labels: a vector file, or a mask or folder of masks on the same pixels.
        table: vector file to write with one row per feature and area.
        tiles: vector file or .csv to write with one row per tile, ranked by disagreement.
        page: HTML page to write, with the tiles of most disagreement.
        images: image or folder of images of the same names and pixels, for the page.
        most: largest number of tiles on the page, 1 to 500.
        classes: the classes of the map, or their file; None takes the names from the map.
        attribute: attribute that holds the class of a label.
        as_class: class of all labels.
        layer: layer of the vector file.
        zoom: only the XYZ tiles of this zoom.
        tolerance: differences that are no disagreement; None for 2 pixels.
        probabilities: of the map's classes, which `segment predict --probabilities` wrote. Then features are
            judged by the evidence, see `evidence`, and areas are ranked by their probability.
        least_probability: mean probability below which an area is left out, 0 to 1.
        overwrite: replace existing files.
        progress: called after each tile.

    Returns:
        Numbers, and both tables.

    Raises:
        LabelsError: no label on the map, another grid, a map without a CRS, or an unknown class.
        MissingInputError: no such file.
        OutputExistsError: a file exists and `overwrite` is not set.
    """
    _check_outputs(table, tiles, page, most, overwrite)
    known = _classes(predicted, classes, attribute, as_class, Path(labels))
    tolerance = tolerance or Tolerance()
    notes: list[str] = []
    totals, source = Totals(known), LabelSource(Path(labels), attribute, as_class, layer, zoom)
    grid = open_grid(predicted, zoom, "mask", SQUARE_PX)
    evidence = _evidence(probabilities, least_probability, grid.pieces, known, progress)
    parts = []
    for lattice in lattices(grid):
        features, remarks = source.read(lattice, known, tolerance.halo_px)
        notes += remarks
        parts.append(LatticeComparison(lattice, features, known, tolerance, totals, evidence))
        parts[-1].add_tiles(progress)
    if not any(part.features for part in parts):
        raise LabelsError(
            f"{labels}: no label on the ground of {predicted}. Expected labels of the same ground."
        )
    rows = ComparedRows(_rows(parts, least_probability))
    tile_frame, order = _ranked(joined([part.tiles() for part in parts]))
    if table is not None:
        rows.write(Path(table), overwrite=overwrite)
    if tiles is not None:
        _write_tiles(tile_frame, Path(tiles), overwrite)
    kinds = (SUPPORTED, UNSUPPORTED, UNSEEN, MISSING, CONFLICT)
    counts = {kind: rows.kinds[kind] for kind in kinds}
    worst = tuple(tile_frame["name"][tile_frame["disagreement"] > 0][:10])
    if page is not None:
        title = f"{Path(predicted).name} and {Path(labels).name}"
        summary = _summary(title, counts, totals, len(tile_frame), tolerance)
        shown = _shown(parts, order[:most])
        notes += _write_page(Path(page), summary, shown, tile_frame, known, tolerance, images, overwrite)
    unique = tuple(dict.fromkeys(notes))
    return Comparison(counts, totals.iou(), totals.quality(), worst, tile_frame, rows, unique)


def _rows(parts: Sequence[LatticeComparison], least_probability: float) -> Iterator[GeoDataFrame]:
    """Yield the rows of all lattices, in WGS 84 where their CRSs differ."""
    from pyproj import CRS

    several = len({CRS.from_user_input(part.lattice.crs.to_wkt()) for part in parts}) > 1
    for part in parts:
        for frame in part.rows(least_probability):
            yield frame.to_crs(WGS84) if several else frame


def _evidence(
    source: str | Path | None, least: float, pieces: Sequence[Piece], classes: Classes, progress: Progress
) -> Evidence | None:
    """Open the probabilities, if there are any."""
    if not 0 <= least <= 1 or (least and source is None):
        raise LabelsError(
            f"least probability {least:g}: unsuitable. Expected 0 to 1, with --probabilities of the map."
        )
    return Evidence.open(source, pieces, classes, progress) if source is not None else None


def _shown(parts: list[LatticeComparison], places: list[int]) -> list[tuple[Piece, Block]]:
    """Return the pieces at places in the order of all parts, with their maps."""
    pieces = [(part, number) for part in parts for number in range(len(part.lattice.pieces))]
    chosen = [pieces[place] for place in places]
    return [(part.lattice.pieces[number], part.block(number)) for part, number in chosen]


def _write_page(
    page: Path,
    summary: ComparisonSummary,
    shown: list[tuple[Piece, Block]],
    tiles: GeoDataFrame,
    classes: Classes,
    tolerance: Tolerance,
    images: str | Path | None,
    overwrite: bool,
) -> list[str]:
    """Write the page; return notes."""
    views, without = compared_tiles(shown, tiles, classes, tolerance, images)
    write_comparison(page, views, summary, classes.colour_table(), classes.background, overwrite=overwrite)
    missing = f"{without} of {len(views)} tiles on the page have no image of their name and shape"
    return [missing] if images is not None and without else []


def _check_outputs(
    table: str | Path | None, tiles: str | Path | None, page: str | Path | None, most: int, overwrite: bool
) -> None:
    """Refuse outputs of unknown endings, and existing ones."""
    if table is not None:
        check_vector_output(Path(table), overwrite)
    if tiles is not None and Path(tiles).suffix.lower() == ".csv":
        check_free(tiles, overwrite=overwrite)
    elif tiles is not None:
        check_vector_output(Path(tiles), overwrite)
    if page is not None:
        check_comparison(Path(page), overwrite, most)


def _summary(
    title: str, counts: Mapping[str, int], totals: Totals, tiles: int, tolerance: Tolerance
) -> ComparisonSummary:
    """Return the numbers at the head of the page."""
    words = (
        f"Shifts up to {tolerance.shift_px} px, and areas without a square of {tolerance.size_px} px, are no "
        "disagreement. An area without a label is a feature that the labels lack, or an error of the map; "
        "the image tells which."
    )
    return ComparisonSummary(title, totals.quality(), counts, totals.iou(), tiles, words)


def _classes(
    predicted: str | Path,
    classes: str | Path | Classes | None,
    attribute: str | None,
    as_class: str | None,
    labels: Path,
) -> Classes:
    if isinstance(classes, str | Path):
        classes = read_classes(classes)
    first = open_grid(predicted, None, "mask").pieces[0].path
    classes = classes or (classes_of(first) if first else None)
    if classes is None and attribute is not None:
        raise LabelsError(f"{predicted}: its masks name no classes. Name them with --classes.")
    return classes or Classes.binary(as_class or labels.stem.lower() or "label")


# --- the comparison -----------------------------------------------------------------------------


class Totals:
    """Pixels over all tiles."""

    def __init__(self, classes: Classes) -> None:
        self._names = classes.names
        self.both, self.either, self.wrong = (np.zeros(256, np.int64) for _ in range(3))

    def iou(self) -> dict[str, float]:
        """Return the IoU of each class that occurs."""
        present = [i for i in range(len(self._names)) if self.either[i]]
        return {self._names[i]: float(self.both[i] / self.either[i]) for i in present}

    def quality(self) -> float:
        """Return the score over all tiles."""
        return quality(int(self.wrong.sum()), int(self.either.sum()))


def quality(wrong_px: int, either_px: int) -> float:
    """Return the quality-of-data score, 0 to 100."""
    return 100.0 * (1 - wrong_px / either_px) if either_px else 100.0


class LatticeComparison:
    """Collects what the tiles of one lattice show."""

    def __init__(
        self,
        lattice: Lattice,
        labels: LabelFeatures,
        classes: Classes,
        tolerance: Tolerance,
        totals: Totals,
        evidence: Evidence | None,
    ) -> None:
        self.lattice, self._labels, self._classes, self._tolerance = lattice, labels, classes, tolerance
        self._totals, self._map, self._evidence = totals, Mosaic(lattice, classes), evidence
        self._shown_map = Mosaic(lattice, classes, evidence.shown) if evidence else self._map
        self._first_tile, self._tiles_left = labels.shapes.tiles_met()
        self._visible = np.zeros(len(labels.shapes), np.int64)
        self._most_shown = np.zeros(len(labels.shapes), np.int64)
        self._open: dict[int, NDArray[np.int64]] = {}
        self._likely = np.zeros(len(labels.shapes))
        self._areas = Areas()
        self._tiles: list[dict[str, Any]] = []

    @property
    def features(self) -> int:
        """Number of label features on the pieces."""
        return len(self._labels.shapes)

    def add_tiles(self, progress: Progress = silent) -> None:
        """Compare all pieces."""
        for number in range(len(self.lattice.pieces)):
            self._add_tile(number)
            progress("comparing tiles", number + 1, len(self.lattice.pieces))

    def _add_tile(self, number: int) -> None:
        piece, corner = self.lattice.pieces[number], self.lattice.corners[number]
        block = self.block(number)
        self._add_support(number, block)
        table = self._evidence.read(piece) if self._evidence else None
        self._add_probabilities(table, block)
        row: dict[str, Any] = {"name": piece.name, "x_px": piece.x, "y_px": piece.y}
        wrong, either, missing, extra, ious = 0, 0, 0, 0, []
        for one in differences(block, self._classes.labels, self._tolerance):
            only = int(one.only_predicted.sum()), int(one.only_labels.sum())
            self._totals.both[one.value] += one.both
            self._totals.either[one.value] += one.either
            self._totals.wrong[one.value] += sum(only)
            missing, extra = missing + only[0], extra + only[1]
            wrong, either = wrong + sum(only), either + one.either
            if one.either:
                ious.append(one.both / one.either)
            if only[0]:
                self._keep_areas(one.only_predicted, one.value, block, corner, table)
        row |= {"iou": float(np.mean(ious)) if ious else np.nan, "quality": quality(wrong, either)}
        row |= {"disagreement": wrong / (piece.width * piece.height)}
        row |= {"only_predicted_px": missing, "only_labels_px": extra}
        self._tiles.append(row)

    def block(self, number: int) -> Block:
        """Return both maps of a piece with their margin."""
        from rasterio import Affine
        from rasterio.features import rasterize

        piece, corner = self.lattice.pieces[number], self.lattice.corners[number]
        halo = self._tolerance.halo_px
        x, y = corner[0] - halo, corner[1] - halo
        width, height = piece.width + 2 * halo, piece.height + 2 * halo
        near = self._labels.shapes.of_tiles(np.array([number]))
        places = np.full((height, width), -1, np.int32)
        if len(near):
            pairs = list(zip(self._labels.shapes.read(near), range(len(near)), strict=True))
            rasterize(pairs, out=places, transform=Affine.translation(x, y))
        features = np.append(near, -1).astype(np.int32)[places]
        unlabelled = self._classes.unlabelled
        labels = np.append(self._labels.values[near], unlabelled).astype(np.uint8)[places]
        if self._labels.mask is not None:  # in a mask 255 means that the label is unknown
            labels, unlabelled = self._labels.mask.read(x, y, width, height), -1
        predicted = self._map.read(x, y, width, height)
        shown = self._shown_map.read(x, y, width, height) if self._evidence else predicted
        return Block(predicted, labels, features, unlabelled, halo, shown)

    def _add_support(self, number: int, block: Block) -> None:
        """Add the pixels of features that the map shows at each shift; keep the most of a whole feature."""
        numbers, visible, shown = support(block, self._tolerance)
        self._visible[numbers] += visible
        for feature, counts in zip(numbers.tolist(), shown, strict=True):
            self._open[feature] = self._open.get(feature, 0) + counts
        near = self._labels.shapes.of_tiles(np.array([number]))
        self._tiles_left[near] -= 1
        for feature in near[self._tiles_left[near] == 0].tolist():
            if feature in self._open:
                self._most_shown[feature] = self._open.pop(feature).max()

    def _add_probabilities(self, table: NDArray[np.float32] | None, block: Block) -> None:
        """Add the probabilities (h, w, k) of the classes of features to their sums."""
        if table is None:
            return
        core = slice(block.halo, -block.halo) if block.halo else slice(None)
        features, predicted = block.features[core, core], block.predicted[core, core]
        rows, columns = np.nonzero((features >= 0) & (predicted != IGNORED))
        numbers, local = np.unique(features[rows, columns], return_inverse=True)
        own = table[rows, columns, self._labels.values[numbers][local]]
        self._likely[numbers] += np.bincount(local, np.nan_to_num(own), len(numbers))

    def _keep_areas(
        self,
        only: NDArray[np.bool_],
        value: int,
        block: Block,
        corner: tuple[int, int],
        table: NDArray[np.float32] | None,
    ) -> None:
        """Keep the areas of a class that the labels lack, apart by whether another class is labelled."""
        halo = block.halo
        labels = block.labels[halo:-halo, halo:-halo]
        other = (labels != self._classes.unlabelled) & (labels != value)
        likely = None if table is None else np.nan_to_num(table[..., value])
        for conflict in (False, True):
            self._areas.add(value, conflict, only & (other == conflict), corner, likely)

    def rows(self, least_probability: float) -> Iterator[GeoDataFrame]:
        """Yield one row per label feature, missing area and area in conflict; the likeliest areas first."""
        ious = self._ious()
        for start in range(0, self.features, BATCH_ROWS):
            yield self._feature_rows(np.arange(start, min(start + BATCH_ROWS, self.features)), ious)
        areas = self._areas.merged(self._tolerance.size_px**2, least_probability)
        for start in range(0, len(areas), BATCH_ROWS):
            yield self._area_rows(areas[start : start + BATCH_ROWS])

    def _feature_rows(self, numbers: NDArray[np.int64], ious: NDArray[np.float64]) -> GeoDataFrame:
        """Return the rows of label features."""
        labels, pixels = self._labels, self._visible[numbers]
        seen, best = pixels > 0, self._most_shown[numbers] / np.maximum(pixels, 1)
        kind = np.where(best >= self._tolerance.support, SUPPORTED, UNSUPPORTED)
        likely = self._likely[numbers] / np.maximum(pixels, 1)
        columns = {
            "kind": np.where(seen, kind, UNSEEN).tolist(),
            "class": [self._classes.names[value] for value in labels.values[numbers]],
            "feature": labels.rows[numbers],
            "support": np.where(seen, best, np.nan),
            "probability": np.where(seen & (self._evidence is not None), likely, np.nan),
            "iou": ious[numbers],
        }
        return self._frame(columns, labels.shapes.read(numbers), pixels)

    def _area_rows(self, areas: Sequence[Area]) -> GeoDataFrame:
        """Return the rows of areas that the labels lack."""
        shapes, zeros = np.full(len(areas), None, object), np.zeros(len(areas))
        shapes[:] = [area.shape for area in areas]
        columns = {
            "kind": [(MISSING, CONFLICT)[area.conflict] for area in areas],
            "class": [self._classes.names[area.value] for area in areas],
            "feature": np.full(len(areas), -1, np.int64),
            "support": zeros,
            "probability": np.array([area.probability for area in areas]),
            "iou": zeros,
        }
        return self._frame(columns, shapes, np.array([area.pixels for area in areas], np.int64))

    def _frame(self, columns: Mapping[str, Any], shapes: Shapes, pixels: NDArray[np.int64]) -> GeoDataFrame:
        from geopandas import GeoDataFrame

        geometry = self.lattice.to_map(shapes)
        area = np.round(areas_m2(geometry, self.lattice.crs), 2)
        columns = {**columns, "area_m2": area, "pixels": pixels}
        return GeoDataFrame(columns, geometry=geometry, crs=self.lattice.crs.to_wkt())

    def _ious(self) -> NDArray[np.float64]:
        """Return the IoU of each label feature with the connected area of its class that overlaps it best.

        A feature is compared when its first tile comes, with the areas of all tiles that it meets.
        """
        import shapely

        if not self.features:
            return np.zeros(0)
        stored, kinds = StoredShapes(self.lattice.boxes()), [np.array([], np.uint8)]
        for shapes, numbers in polygons_of(self.lattice, self._classes):
            stored.add(shapes)
            kinds.append(numbers.astype(np.uint8))
        values, found = np.concatenate(kinds), np.zeros(self.features)
        ground = self.lattice.outline()
        shapely.prepare(ground)
        order = np.argsort(self._first_tile, kind="stable")
        tiles = self._first_tile[order]
        for mine in np.split(order, np.flatnonzero(tiles[1:] != tiles[:-1]) + 1):
            seen = self._labels.shapes.read(mine)
            beyond = ~shapely.covers(ground, seen)
            seen[beyond] = shapely.intersection(seen[beyond], ground)
            near = stored.of_tiles(stored.tiles_of(seen))
            found[mine] = _best_ious(seen, self._labels.values[mine], stored.read(near), values[near])
        return found

    def tiles(self) -> GeoDataFrame:
        """Return one row per tile."""
        import shapely
        from geopandas import GeoDataFrame

        geometry = self.lattice.to_map(shapely.box(*self.lattice.boxes().T))
        return GeoDataFrame(self._tiles, geometry=geometry, crs=self.lattice.crs.to_wkt())


def _best_ious(
    features: Shapes, values: NDArray[np.uint8], areas: Shapes, classes: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """Return the largest IoU of each feature with an area of its class."""
    import shapely

    found = np.zeros(len(features))
    one, two = shapely.STRtree(areas).query(features, predicate="intersects")
    same = values[one] == classes[two]
    one, two = one[same], two[same]
    both = shapely.area(shapely.intersection(features[one], areas[two]))
    either = shapely.area(features)[one] + shapely.area(areas)[two] - both
    np.maximum.at(found, one, np.divide(both, either, out=np.zeros(len(both)), where=either > 0))
    return found


def _ranked(tiles: GeoDataFrame) -> tuple[GeoDataFrame, list[int]]:
    """Return tiles with most disagreement first, with z, x and y of XYZ tiles, and their former rows."""
    from retrieval.labels.files import tile_of

    tiles = tiles.sort_values(["disagreement", "name", "y_px", "x_px"], ascending=[False, True, True, True])
    order = tiles.index.tolist()
    tiles = tiles.reset_index(drop=True)
    places = [tile_of(name) for name in tiles["name"]]
    if all(places):
        for axis in "yxz":
            tiles.insert(1, axis, [getattr(place, axis) for place in places])
    return tiles, order


def _write_tiles(tiles: GeoDataFrame, path: Path, overwrite: bool) -> None:
    if path.suffix.lower() != ".csv":
        write_vectors(tiles, path, overwrite=overwrite)
        return
    with writing_file(path, overwrite=overwrite) as partial:
        tiles.drop(columns="geometry").to_csv(partial, index=False, float_format="%.6g", lineterminator="\n")
