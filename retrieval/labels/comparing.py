"""A class map against labels: which features lack support, which the labels lack, and where most is wrong.

The quality-of-data score of a tile is 100 (1 - E / U). U is the number of pixels of a class in the map or the
labels. E is the number of pixels that only one of them shows, beyond the tolerance of `agreement`. Both are
summed over the classes. A tile without any class has 100.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import LabelsError
from retrieval.labels.agreement import Block, Tolerance, differences, support
from retrieval.labels.areas import Areas
from retrieval.labels.classes import IGNORED, Classes, read_classes
from retrieval.labels.comparison_page import compared_tiles
from retrieval.labels.evidence import Evidence
from retrieval.labels.files import RASTER_ENDINGS
from retrieval.labels.grids import Piece, open_grid
from retrieval.labels.masks import classes_of, read_mask
from retrieval.labels.metres import areas_m2
from retrieval.labels.rasterizing import class_chooser, class_values
from retrieval.labels.vectorizing import (
    Lattice,
    check_vector_output,
    joined,
    lattices,
    polygonize,
    write_vectors,
)
from retrieval.labels.vectors import Shapes, VectorFile
from retrieval.report.comparison import ComparisonSummary, check_comparison, write_comparison
from retrieval.types import Progress, silent
from tfrecords.storage import check_free, writing_file

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

TILE_PX = 512
"""Side of the tiles in which a raster is judged."""
CACHED_PIECES = 256
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
    rows: GeoDataFrame
    """One row per feature and area; see `docs/formats.md`."""
    tiles: GeoDataFrame
    """One row per tile, most disagreement first."""
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class _LabelSource:
    """Where label features come from."""

    path: Path
    """A vector file, or a mask or folder of masks."""
    classes: Classes
    """The classes of the map."""
    attribute: str | None
    """Attribute that holds the class of a label."""
    as_class: str | None
    """Class of all labels."""
    layer: str | None
    """Layer of the vector file."""
    zoom: int | None
    """Zoom of the masks, if they are XYZ tiles."""


@dataclass(frozen=True)
class _Labels:
    """Label features on a lattice."""

    shapes: Shapes
    """(n,) geometries in pixels of the lattice."""
    values: NDArray[np.int64]
    """(n,) classes."""
    rows: NDArray[np.int64]
    """(n,) numbers of the features in their file."""
    mask: _Mosaic | None
    """The mask that the features come from; None for a vector file."""


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
    source, totals = _LabelSource(Path(labels), known, attribute, as_class, layer, zoom), Totals(known)
    grid = open_grid(predicted, zoom, "mask", TILE_PX)
    evidence = _evidence(probabilities, least_probability, grid.pieces, known, progress)
    parts = []
    for lattice in lattices(grid):
        features = _read_labels(source, lattice, notes)
        parts.append(LatticeComparison(lattice, features, known, tolerance, totals, evidence))
        parts[-1].add_tiles(progress)
    if not any(part.features for part in parts):
        raise LabelsError(
            f"{labels}: no label on the ground of {predicted}. Expected labels of the same ground."
        )
    frame = joined([part.rows(least_probability) for part in parts])
    tile_frame, order = _ranked(joined([part.tiles() for part in parts]))
    if table is not None:
        write_vectors(frame, Path(table), overwrite=overwrite)
    if tiles is not None:
        _write_tiles(tile_frame, Path(tiles), overwrite)
    kinds = (SUPPORTED, UNSUPPORTED, UNSEEN, MISSING, CONFLICT)
    counts = {kind: int((frame["kind"] == kind).sum()) for kind in kinds}
    worst = tuple(tile_frame["name"][tile_frame["disagreement"] > 0][:10])
    if page is not None:
        title = f"{Path(predicted).name} and {Path(labels).name}"
        summary = _summary(title, counts, totals, len(tile_frame), tolerance)
        shown = _shown(parts, order[:most])
        notes += _write_page(Path(page), summary, shown, tile_frame, known, tolerance, images, overwrite)
    unique = tuple(dict.fromkeys(notes))
    return Comparison(counts, totals.iou(), totals.quality(), worst, frame, tile_frame, unique)


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


# --- labels and maps on a lattice ---------------------------------------------------------------


def _read_labels(source: _LabelSource, lattice: Lattice, notes: list[str]) -> _Labels:
    """Return the label features that meet the pieces of a lattice; append notes on the file."""
    import shapely

    outline, attribute = lattice.outline(), source.attribute
    if source.path.is_dir() or source.path.suffix.lower() in RASTER_ENDINGS:
        shapes, values, rows, mask = _mask_labels(source, lattice)
    else:
        file = VectorFile.open(source.path, source.layer)
        if attribute is not None:
            file.check_column(attribute)
        choose = class_chooser(source.classes, attribute, source.as_class)
        box = lattice.to_map(np.array([outline.envelope], object))[0].bounds
        batches = list(file.batches(lattice.crs.to_wkt(), [attribute] if attribute else [], box))
        parts = [np.array([], object), *(batch.shapes for batch in batches)]
        shapes = lattice.to_pixels(np.concatenate(parts))
        chosen = [class_values(batch, attribute, choose)[0] for batch in batches]
        values = np.concatenate([np.array([], np.int64), *chosen])
        rows = np.concatenate([np.array([], np.int64), *(batch.rows for batch in batches)])
        mask = None
        notes += file.notes()
    shapely.prepare(outline)
    kept = np.flatnonzero(shapely.intersects(outline, shapes) & (values >= 0) & (values != IGNORED))
    return _Labels(shapes[kept], values[kept], rows[kept], mask)


def _mask_labels(
    source: _LabelSource, lattice: Lattice
) -> tuple[Shapes, NDArray[np.int64], NDArray[np.int64], _Mosaic]:
    """Return the connected areas of masks on the pixels of a lattice."""
    grid = open_grid(source.path, source.zoom, "mask", TILE_PX)
    for other in lattices(grid):
        corner = lattice.corner_of(other.pieces[0])
        if corner is not None:
            corners = tuple((x + corner[0], y + corner[1]) for x, y in other.corners)
            moved = Lattice(lattice.crs, lattice.transform, other.pieces, corners)
            shapes, values = polygonize(moved, source.classes)
            return shapes, values, np.arange(len(shapes)), _Mosaic(moved, source.classes)
    raise LabelsError(
        f"{source.path}: masks on other pixels than the map. Expected the same grid, or a vector file."
    )


class _Mosaic:
    """Any rectangle of the masks of a lattice."""

    def __init__(
        self, lattice: Lattice, classes: Classes, read: Callable[[Piece], NDArray[np.uint8]] | None = None
    ) -> None:
        """Take the masks of a lattice, or what `read` returns for a piece."""
        import shapely

        self._boxes = lattice.boxes()
        self._tree = shapely.STRtree(shapely.box(*self._boxes.T))
        self.lattice, self._classes, self._read = lattice, classes, read or self._mask
        self._cache: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()

    def read(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Return a rectangle, 255 where there is no mask."""
        import shapely

        out = np.full((height, width), IGNORED, np.uint8)
        for number in self._tree.query(shapely.box(x, y, x + width, y + height)):
            west, north, east, south = (int(v) for v in self._boxes[number])
            left, right, top, bottom = (
                max(x, west),
                min(x + width, east),
                max(y, north),
                min(y + height, south),
            )
            if left < right and top < bottom:
                part = self._piece(int(number))[top - north : bottom - north, left - west : right - west]
                out[top - y : bottom - y, left - x : right - x] = part
        return out

    def _piece(self, number: int) -> NDArray[np.uint8]:
        if number not in self._cache:
            self._cache[number] = self._read(self.lattice.pieces[number])
            if len(self._cache) > CACHED_PIECES:
                self._cache.popitem(last=False)
        self._cache.move_to_end(number)
        return self._cache[number]

    def _mask(self, piece: Piece) -> NDArray[np.uint8]:
        assert piece.path is not None
        return read_mask(piece.path, self._classes, piece.window)


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
        labels: _Labels,
        classes: Classes,
        tolerance: Tolerance,
        totals: Totals,
        evidence: Evidence | None,
    ) -> None:
        import shapely

        self.lattice, self._labels, self._classes, self._tolerance = lattice, labels, classes, tolerance
        self._totals, self._map, self._evidence = totals, _Mosaic(lattice, classes), evidence
        self._shown_map = _Mosaic(lattice, classes, evidence.shown) if evidence else self._map
        self._tree = shapely.STRtree(labels.shapes)
        shifts = (2 * tolerance.shift_px + 1) ** 2
        self._visible = np.zeros(len(labels.shapes), np.int64)
        self._shown = np.zeros((len(labels.shapes), shifts), np.int64)
        self._likely = np.zeros(len(labels.shapes))
        self._areas = Areas()
        self._tiles: list[dict[str, Any]] = []

    @property
    def features(self) -> int:
        """Number of label features on the pieces."""
        return len(self._labels.shapes)

    def add_tiles(self, progress: Progress) -> None:
        """Compare all pieces; `progress` is called after each."""
        for number in range(len(self.lattice.pieces)):
            self._add_tile(number)
            progress("comparing tiles", number + 1, len(self.lattice.pieces))

    def _add_tile(self, number: int) -> None:
        """Compare one piece."""
        piece, corner = self.lattice.pieces[number], self.lattice.corners[number]
        block = self.block(number)
        numbers, visible, shown = support(block, self._tolerance)
        self._visible[numbers] += visible
        self._shown[numbers] += shown
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
        import shapely
        from rasterio import Affine
        from rasterio.features import rasterize

        piece, corner = self.lattice.pieces[number], self.lattice.corners[number]
        halo = self._tolerance.halo_px
        x, y = corner[0] - halo, corner[1] - halo
        width, height = piece.width + 2 * halo, piece.height + 2 * halo
        features = np.full((height, width), -1, np.int32)
        near = np.sort(self._tree.query(shapely.box(x, y, x + width, y + height)))
        if len(near):
            pairs = [(self._labels.shapes[number], int(number)) for number in near]
            rasterize(pairs, out=features, transform=Affine.translation(x, y))
        table = np.append(self._labels.values, self._classes.unlabelled).astype(np.uint8)
        labels = table[features]
        unlabelled = self._classes.unlabelled
        if self._labels.mask is not None:  # in a mask 255 means that the label is unknown
            labels, unlabelled = self._labels.mask.read(x, y, width, height), -1
        predicted = self._map.read(x, y, width, height)
        shown = self._shown_map.read(x, y, width, height) if self._evidence else predicted
        return Block(predicted, labels, features, unlabelled, halo, shown)

    def _add_probabilities(self, table: NDArray[np.float32] | None, block: Block) -> None:
        """Add the probabilities (h, w, k) of the classes of features to their sums."""
        if table is None:
            return
        core = slice(block.halo, -block.halo) if block.halo else slice(None)
        features, predicted = block.features[core, core], block.predicted[core, core]
        rows, columns = np.nonzero((features >= 0) & (predicted != IGNORED))
        numbers = features[rows, columns]
        own = table[rows, columns, self._labels.values[numbers]]
        self._likely += np.bincount(numbers, np.nan_to_num(own), len(self._likely))

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

    def rows(self, least_probability: float) -> GeoDataFrame:
        """Return one row per label feature, missing area and area in conflict; the likeliest areas first."""
        from geopandas import GeoDataFrame

        labels, names, seen = self._labels, np.array(self._classes.names), self._visible > 0
        best = self._shown.max(axis=1, initial=0) / np.maximum(self._visible, 1)
        kind = np.where(best >= self._tolerance.support, SUPPORTED, UNSUPPORTED)
        kind = np.where(seen, kind, UNSEEN)
        likely = self._likely / np.maximum(self._visible, 1)
        areas = self._areas.merged(self._tolerance.size_px**2, least_probability)
        shapes = np.append(labels.shapes, np.array([*(area.shape for area in areas), None], object)[:-1])
        geometry, count = self.lattice.to_map(shapes), len(areas)
        columns = {
            "kind": [*kind, *((MISSING, CONFLICT)[area.conflict] for area in areas)],
            "class": [*names[labels.values], *(names[area.value] for area in areas)],
            "feature": [*labels.rows.tolist(), *[-1] * count],
            "support": np.append(np.where(seen, best, np.nan), np.zeros(count)),
            "probability": np.append(
                np.where(seen & (self._evidence is not None), likely, np.nan), [a.probability for a in areas]
            ),
            "iou": np.append(self._ious(), np.zeros(count)),
            "area_m2": np.round(areas_m2(geometry, self.lattice.crs), 2),
            "pixels": np.append(self._visible, [area.pixels for area in areas]).astype(np.int64),
        }
        return GeoDataFrame(columns, geometry=geometry, crs=self.lattice.crs.to_wkt())

    def _ious(self) -> NDArray[np.float64]:
        """Return the IoU of each label feature with the connected area of its class that overlaps it best."""
        import shapely

        labels = self._labels
        shapes, values = polygonize(self.lattice, self._classes)
        found = np.zeros(len(labels.shapes))
        if not len(shapes) or not len(labels.shapes):
            return found
        ground = self.lattice.outline()
        shapely.prepare(ground)
        seen = labels.shapes.copy()
        beyond = ~shapely.covers(ground, seen)
        seen[beyond] = shapely.intersection(seen[beyond], ground)
        one, two = shapely.STRtree(shapes).query(seen, predicate="intersects")
        same = labels.values[one] == values[two]
        one, two = one[same], two[same]
        both = shapely.area(shapely.intersection(seen[one], shapes[two]))
        either = shapely.area(seen)[one] + shapely.area(shapes)[two] - both
        np.maximum.at(found, one, np.divide(both, either, out=np.zeros(len(both)), where=either > 0))
        return found

    def tiles(self) -> GeoDataFrame:
        """Return one row per tile."""
        import shapely
        from geopandas import GeoDataFrame

        geometry = self.lattice.to_map(shapely.box(*self.lattice.boxes().T))
        return GeoDataFrame(self._tiles, geometry=geometry, crs=self.lattice.crs.to_wkt())


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
