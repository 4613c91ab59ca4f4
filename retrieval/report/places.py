"""Where the images of an index lie: by their position on the ground, or one beside the other.

Images that lie near each other are one place. A place is drawn on sheets to scale; where its images
cover each other, as dates of one ground do, each date comes onto a sheet of its own. An image without
a coordinate reference system is a place by itself.
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
"""Images are one place where the gap between them is at most this share of the larger one's side."""
OVERLAP = 0.2
"""Images come onto one sheet where they share less than this of the smaller one's area."""
DEGREE_M = 111_320.0
"""Metres in a degree of latitude, about: for the bar of a scale."""

Affine = tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class Placed:
    """An image on a sheet."""

    image: StoredImage
    """The image."""
    label: str
    """What to call it."""
    affine: Affine
    """(a, b, c, d, e, f) from its pixels to the sheet: X = a x + b y + c, Y = d x + e y + f, down."""

    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom on the sheet."""
        a, b, c, d, e, f = self.affine
        w, h = self.image.width, self.image.height
        xs, ys = [c, c + a * w, c + b * h, c + a * w + b * h], [f, f + d * w, f + e * h, f + d * w + e * h]
        return min(xs), min(ys), max(xs), max(ys)


@dataclass(frozen=True)
class Sheet:
    """A part of the map."""

    images: tuple[Placed, ...]
    """What lies on it."""
    place: int
    """Number of the place, from 0."""
    name: str
    """What to call it."""
    unit_m: float | None
    """Metres in a unit of the sheet; None where it is a pixel of unknown size."""

    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom."""
        boxes = np.array([placed.box() for placed in self.images])
        left, top = boxes[:, :2].min(axis=0)
        right, bottom = boxes[:, 2:].max(axis=0)
        return float(left), float(top), float(right), float(bottom)


@dataclass(frozen=True)
class Layout:
    """Where all images lie."""

    sheets: tuple[Sheet, ...]
    """In the order of their places."""
    places: tuple[str, ...]
    """Names of the places."""
    labels: dict[int, str]
    """What to call an image, by its id."""
    place_of: dict[int, int]
    """Number of the place of an image, by its id."""


def lay_out(images: Sequence[StoredImage]) -> Layout:
    """Put images onto sheets.

    Args:
        images: the index's table.
    """
    labels = _labels(images)
    groups = _groups(images)
    sheets: list[Sheet] = []
    names = []
    for number, (members, unit_m) in enumerate(groups):
        placed = [Placed(image, labels[image.image_id], affine) for image, affine in members]
        names.append(_name([one.label for one in placed]))
        layers = _layers(placed)
        sheets += [
            Sheet(tuple(layer), number, _sheet_name(names[-1], layer, len(layers)), unit_m)
            for layer in layers
        ]
    place_of = {image.image_id: number for number, (members, _) in enumerate(groups) for image, _ in members}
    return Layout(tuple(sheets), tuple(names), labels, place_of)


# --- names ----------------------------------------------------------------------------------------


def _labels(images: Sequence[StoredImage]) -> dict[int, str]:
    """Name images by their files, without what all paths share; by number where a file holds many."""
    times = Counter(image.path for image in images)
    paths = {i.image_id: PurePosixPath(i.path) for i in images if i.path and times[i.path] == 1}
    parents = [path.parent.parts for path in paths.values()]
    common = 0
    while parents and all(len(p) > common and p[common] == parents[0][common] for p in parents):
        common += 1
    named = {i: "/".join(p.with_suffix("").parts[common:]) for i, p in paths.items()}
    return {image.image_id: named.get(image.image_id) or f"image {image.image_id}" for image in images}


def _name(labels: Sequence[str]) -> str:
    """Name a place by the folder that its images share, or by the first of them."""
    if len(labels) == 1:
        return labels[0]
    folders = {label.rpartition("/")[0] for label in labels}
    if len(folders) == 1 and (folder := folders.pop()):
        return folder
    return f"{labels[0]} and {len(labels) - 1} near it"


def _sheet_name(place: str, layer: Sequence[Placed], layers: int) -> str:
    """Name a sheet by its place, and by the date or the image where the place has several."""
    if layers == 1:
        return place
    dates = sorted({one.image.date for one in layer if one.image.date})
    told = f"{dates[0]} to {dates[-1]}" if len(dates) > 1 else "".join(dates)
    return f"{place}, {told}" if told and told not in place else _name([one.label for one in layer])


# --- where they lie -------------------------------------------------------------------------------


def _groups(images: Sequence[StoredImage]) -> list[tuple[list[tuple[StoredImage, Affine]], float | None]]:
    """Images that are one place, with their positions on its sheets and the size of a unit."""
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
    """Metres in a unit of a coordinate reference system, and whether it counts in degrees."""
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:
        known = CRS.from_string(crs)
        return (DEGREE_M, True) if known.is_geographic else (float(known.linear_units_factor[1]), False)
    except (CRSError, ValueError):
        return None, False


def _map_box(image: StoredImage) -> tuple[float, float, float, float]:
    """Smallest and largest map coordinates: left, low, right, high."""
    assert image.transform is not None
    a, b, c, d, e, f = image.transform
    x, y = np.array([0, image.width, 0, image.width]), np.array([0, 0, image.height, image.height])
    east, north = a * x + b * y + c, d * x + e * y + f
    return float(east.min()), float(north.min()), float(east.max()), float(north.max())


def _connected(boxes: NDArray[np.float64]) -> list[list[int]]:
    """Rows of boxes (n, 4) that are near each other, directly or through others."""
    left = set(range(len(boxes)))
    groups = []
    side = np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    while left:
        group, open_ = [], [min(left)]
        left.discard(open_[0])
        while open_:
            row = open_.pop()
            group.append(row)
            reach = NEAR * np.maximum(side, side[row])
            apart = np.maximum(boxes[:, :2] - boxes[row, 2:], boxes[row, :2] - boxes[:, 2:]).max(axis=1)
            near = [other for other in np.flatnonzero(apart <= reach).tolist() if other in left]
            left.difference_update(near)
            open_ += near
        groups.append(sorted(group))
    return groups


def _on_sheet(image: StoredImage, boxes: NDArray[np.float64], geographic: bool) -> Affine:
    """From an image's pixels to its place's sheet: north is up, degrees of longitude are shortened."""
    assert image.transform is not None
    a, b, c, d, e, f = image.transform
    west, north = boxes[:, 0].min(), boxes[:, 3].max()
    middle = (boxes[:, 1].min() + north) / 2
    narrow = max(float(np.cos(np.radians(middle))), 0.01) if geographic else 1.0
    return a * narrow, b * narrow, float(c - west) * narrow, -d, -e, float(north - f)


def _layers(placed: Sequence[Placed]) -> list[list[Placed]]:
    """Images that do not cover each other, by date."""
    layers: list[list[Placed]] = []
    for one in sorted(placed, key=lambda p: (p.image.date or "", p.image.image_id)):
        fit = next((layer for layer in layers if not any(_covers(one, other) for other in layer)), None)
        if fit is None:
            layers.append([one])
        else:
            fit.append(one)
    return layers


def _covers(one: Placed, other: Placed) -> bool:
    a, b = one.box(), other.box()
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width > 0 and height > 0 and width * height > OVERLAP * min(areas)


def scale_bar(extent_m: float) -> float:
    """A round length in metres, a quarter of an extent or less: 1, 2 or 5 times a power of ten."""
    goal = max(extent_m / 4, 1e-9)
    power = 10.0 ** np.floor(np.log10(goal))
    return float(max(step * power for step in (1, 2, 5) if step * power <= goal))


def metres(value: float) -> str:
    """A length for people."""
    return f"{value / 1000:,.4g} km" if value >= 1000 else f"{value:.3g} m"
