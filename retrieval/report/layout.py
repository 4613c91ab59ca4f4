"""The layout of the map: which images form a place, and where they lie on its sheets.

Images near each other form one place, drawn to scale on sheets. Images that overlap, such as two dates of
one area, go on separate sheets. An image without a CRS is a separate place.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from retrieval.types import StoredImage

NEAR = 0.5
"""Largest gap between images of one place, as a share of the larger image's side."""
OVERLAP = 0.2
"""Largest overlap of images on one sheet, as a share of the smaller image's area."""
DEGREE_M = 111_320.0
"""Approximate metres in a degree of latitude, for the scale bar."""

Affine = tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class Placed:
    """An image on a sheet."""

    image: StoredImage
    """The image."""
    label: str
    """Name of the image."""
    affine: Affine
    """(a, b, c, d, e, f) from pixels to the sheet: X = a x + b y + c, Y = d x + e y + f, Y downwards."""

    def box(self) -> tuple[float, float, float, float]:
        """Return left, top, right, bottom on the sheet."""
        a, b, c, d, e, f = self.affine
        w, h = self.image.width, self.image.height
        xs, ys = [c, c + a * w, c + b * h, c + a * w + b * h], [f, f + d * w, f + e * h, f + d * w + e * h]
        return min(xs), min(ys), max(xs), max(ys)


@dataclass(frozen=True)
class Sheet:
    """A part of the map: images that do not overlap."""

    images: tuple[Placed, ...]
    """Its images."""
    place: int
    """Number of the place, from 0."""
    name: str
    """Name of the sheet."""
    unit_m: float | None
    """Metres per unit of the sheet; None for a pixel of unknown size."""

    def box(self) -> tuple[float, float, float, float]:
        """Return left, top, right, bottom."""
        boxes = np.array([placed.box() for placed in self.images])
        left, top = boxes[:, :2].min(axis=0)
        right, bottom = boxes[:, 2:].max(axis=0)
        return float(left), float(top), float(right), float(bottom)


@dataclass(frozen=True)
class Layout:
    """The sheets of all images."""

    sheets: tuple[Sheet, ...]
    """In the order of their places."""
    places: tuple[str, ...]
    """Names of the places."""
    labels: dict[int, str]
    """Name of each image, by its id."""
    place_of: dict[int, int]
    """Number of each image's place, by the image's id."""


def lay_out(images: Sequence[StoredImage]) -> Layout:
    """Place images on sheets.

    Args:
        images: rows of the index's image table.
    """
    labels = _labels(images)
    groups = _groups(images)
    sheets: list[Sheet] = []
    names = []
    for number, (members, unit_m) in enumerate(groups):
        placed = [Placed(image, labels[image.image_id], affine) for image, affine in members]
        names.append(_place_name([item.label for item in placed]))
        layers = _layers(placed)
        sheets += [
            Sheet(tuple(layer), number, _sheet_name(names[-1], layer, len(layers)), unit_m)
            for layer in layers
        ]
    place_of = {image.image_id: number for number, (members, _) in enumerate(groups) for image, _ in members}
    return Layout(tuple(sheets), tuple(names), labels, place_of)


# --- names ----------------------------------------------------------------------------------------


def _labels(images: Sequence[StoredImage]) -> dict[int, str]:
    """Name images by their path without the folders that all share; by id where a file holds several."""
    times = Counter(image.path for image in images)
    paths = {i.image_id: PurePosixPath(i.path) for i in images if i.path and times[i.path] == 1}
    parents = [path.parent.parts for path in paths.values()]
    common = 0
    while parents and all(len(p) > common and p[common] == parents[0][common] for p in parents):
        common += 1
    named = {i: "/".join(p.with_suffix("").parts[common:]) for i, p in paths.items()}
    return {image.image_id: named.get(image.image_id) or f"image {image.image_id}" for image in images}


def _place_name(labels: Sequence[str]) -> str:
    """Name a place by the folder of its images, or by its first image."""
    if len(labels) == 1:
        return labels[0]
    folders = {label.rpartition("/")[0] for label in labels}
    if len(folders) == 1 and (folder := folders.pop()):
        return folder
    return f"{labels[0]} and {len(labels) - 1} near it"


def _sheet_name(place: str, layer: Sequence[Placed], layers: int) -> str:
    """Name a sheet by its place, and by its date or image where the place has several sheets."""
    if layers == 1:
        return place
    dates = sorted({item.image.date for item in layer if item.image.date})
    period = f"{dates[0]} to {dates[-1]}" if len(dates) > 1 else "".join(dates)
    if period and period not in place:
        return f"{place}, {period}"
    return _place_name([item.label for item in layer])


# --- positions ------------------------------------------------------------------------------------


def _groups(images: Sequence[StoredImage]) -> list[tuple[list[tuple[StoredImage, Affine]], float | None]]:
    """Return the images of each place with their position on its sheets, and the size of a unit."""
    by_crs: dict[str, list[StoredImage]] = defaultdict(list)
    groups: list[tuple[list[tuple[StoredImage, Affine]], float | None]] = []
    for image in images:
        if image.crs and image.transform:
            by_crs[image.crs].append(image)
        else:
            groups.append(([(image, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0))], None))
    for crs, members in by_crs.items():
        unit_m, geographic = _unit(crs)
        corners = np.array([_map_box(image) for image in members])
        for rows in _connected(corners):
            affines = [_on_sheet(members[row], corners[rows], geographic) for row in rows]
            group = [(members[row], affine) for row, affine in zip(rows, affines, strict=True)]
            groups.append((group, unit_m))
    return sorted(groups, key=lambda group: min(image.image_id for image, _ in group[0]))


def _unit(crs: str) -> tuple[float | None, bool]:
    """Return the metres per unit of a CRS, and whether the unit is a degree."""
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:
        known = CRS.from_string(crs)
        return (DEGREE_M, True) if known.is_geographic else (float(known.linear_units_factor[1]), False)
    except (CRSError, ValueError):
        return None, False


def _map_box(image: StoredImage) -> tuple[float, float, float, float]:
    """Return the smallest and largest map coordinates: left, low, right, high."""
    assert image.transform is not None
    a, b, c, d, e, f = image.transform
    x, y = np.array([0, image.width, 0, image.width]), np.array([0, 0, image.height, image.height])
    east, north = a * x + b * y + c, d * x + e * y + f
    return float(east.min()), float(north.min()), float(east.max()), float(north.max())


def _connected(boxes: NDArray[np.float64]) -> list[list[int]]:
    """Group rows of boxes (n, 4) that are near each other, directly or through others."""
    remaining = set(range(len(boxes)))
    groups = []
    side = np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    while remaining:
        group: list[int] = []
        queue = [min(remaining)]
        remaining.discard(queue[0])
        while queue:
            row = queue.pop()
            group.append(row)
            reach = NEAR * np.maximum(side, side[row])
            gap = np.maximum(boxes[:, :2] - boxes[row, 2:], boxes[row, :2] - boxes[:, 2:]).max(axis=1)
            near = [other for other in np.flatnonzero(gap <= reach).tolist() if other in remaining]
            remaining.difference_update(near)
            queue += near
        groups.append(sorted(group))
    return groups


def _on_sheet(image: StoredImage, boxes: NDArray[np.float64], geographic: bool) -> Affine:
    """Return the affine from pixels to the sheet: north is up, degrees of longitude are shortened."""
    assert image.transform is not None
    a, b, c, d, e, f = image.transform
    west, north = boxes[:, 0].min(), boxes[:, 3].max()
    middle = (boxes[:, 1].min() + north) / 2
    narrow = max(float(np.cos(np.radians(middle))), 0.01) if geographic else 1.0
    return a * narrow, b * narrow, float(c - west) * narrow, -d, -e, float(north - f)


def _layers(placed: Sequence[Placed]) -> list[list[Placed]]:
    """Divide images into layers without overlap, in the order of their dates."""
    layers: list[list[Placed]] = []
    for item in sorted(placed, key=lambda p: (p.image.date or "", p.image.image_id)):
        fit = next((layer for layer in layers if not any(_overlap(item, other) for other in layer)), None)
        if fit is None:
            layers.append([item])
        else:
            fit.append(item)
    return layers


def _overlap(first: Placed, second: Placed) -> bool:
    a, b = first.box(), second.box()
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width > 0 and height > 0 and width * height > OVERLAP * min(areas)


def scale_bar(extent_m: float) -> float:
    """Return a round length of at most a quarter of an extent: 1, 2 or 5 times a power of ten."""
    goal = max(extent_m / 4, 1e-9)
    power = 10.0 ** np.floor(np.log10(goal))
    return float(max(step * power for step in (1, 2, 5) if step * power <= goal))


def metres(value: float) -> str:
    """Return a length as text, in metres or kilometres."""
    return f"{value / 1000:,.4g} km" if value >= 1000 else f"{value:.3g} m"
