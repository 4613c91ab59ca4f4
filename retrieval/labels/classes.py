"""Classes of a map: their names in order, the values and colours that stand for them.

A class map holds the index of a class, from 0, and 255 where there is no data or no label. If the first class
is called `background`, it is the ground that no label covers; else such ground is 255.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import LabelsError
from tfrecords.errors import listed

IGNORED = 255
"""Value of a pixel without data or without a label."""
BACKGROUND = "background"
"""Name of the class of ground that no label covers."""
IGNORED_NAMES = ("ignored", "unknown", "nodata")
"""Names in a file of classes that stand for `IGNORED`."""
MAX_CLASSES = 255

Colour = tuple[int, int, int]

_PALETTE: tuple[Colour, ...] = (
    (0, 164, 204),
    (228, 87, 46),
    (118, 176, 65),
    (255, 201, 20),
    (126, 89, 154),
    (23, 190, 187),
    (166, 86, 40),
    (232, 142, 189),
    (110, 110, 110),
    (0, 90, 50),
)
_DEEPGLOBE: tuple[tuple[str, Colour], ...] = (
    ("urban", (0, 255, 255)),
    ("agriculture", (255, 255, 0)),
    ("rangeland", (255, 0, 255)),
    ("forest", (0, 255, 0)),
    ("water", (0, 0, 255)),
    ("barren", (255, 255, 255)),
)


@dataclass(frozen=True)
class Classes:
    """Names, colours and values of the classes of a map."""

    names: tuple[str, ...]
    """Name of each class; its place is its index."""
    colours: tuple[Colour, ...] = ()
    """Red, green and blue of each class, 0 to 255."""
    values: Mapping[str, int] = field(default_factory=dict)
    """Index by attribute value; `IGNORED` for values that are no class."""
    ignored_colours: tuple[Colour, ...] = ((0, 0, 0),)
    """Colours of a mask that stand for `IGNORED`, unless a class has the colour."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) <= MAX_CLASSES or len(set(self.names)) != len(self.names):
            raise LabelsError(
                f"classes {', '.join(self.names) or 'none'}: expected 1 to {MAX_CLASSES} different names."
            )
        if not self.colours:
            object.__setattr__(self, "colours", tuple(map(self._default_colour, range(len(self.names)))))
        if not self.values:
            object.__setattr__(self, "values", {name: index for index, name in enumerate(self.names)})

    def _default_colour(self, index: int) -> Colour:
        if self.background is not None:
            return (235, 235, 235) if index == 0 else _PALETTE[(index - 1) % len(_PALETTE)]
        return _PALETTE[index % len(_PALETTE)]

    @classmethod
    def binary(cls, name: str) -> Classes:
        """Return background and one class."""
        return cls((BACKGROUND, name))

    @property
    def background(self) -> int | None:
        """Index of the background; None where every class is a label."""
        return 0 if self.names[0] == BACKGROUND else None

    @property
    def unlabelled(self) -> int:
        """Value of ground that no label covers."""
        return IGNORED if self.background is None else self.background

    @property
    def labels(self) -> tuple[int, ...]:
        """Indices of the classes without the background."""
        return tuple(index for index in range(len(self.names)) if index != self.background)

    def index_of(self, value: object) -> int:
        """Return the index of an attribute value.

        Raises:
            LabelsError: the value is unknown.
        """
        text = value_text(value)
        if text not in self.values:
            raise LabelsError(
                f"class value {text!r}: unknown. Expected {', '.join(self.values)}. Add a row to the file of "
                "classes."
            )
        return self.values[text]

    def to_colours(self, indices: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a class map (h, w) as colours (h, w, 3)."""
        return self.colour_table()[indices]

    def colour_table(self) -> NDArray[np.uint8]:
        """Return the colours of all 256 values, (256, 3); values without a class are black."""
        table = np.zeros((256, 3), np.uint8)
        table[: len(self.colours)] = self.colours
        return table

    def to_indices(self, colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the class map of a mask of colours.

        Where all colours of the classes consist of 0 and 255, a mask is read at the threshold 128, so
        that lossy compression does no harm. Else colours must be equal.

        Args:
            colours: (h, w, 3).

        Returns:
            (h, w) indices, `IGNORED` where the colour is one of `ignored_colours`.

        Raises:
            LabelsError: a colour is no class's.
        """
        known = [*zip(self.colours, range(len(self.names)), strict=True)]
        known += [(colour, IGNORED) for colour in self.ignored_colours if colour not in self.colours]
        pixels = np.asarray(colours, np.uint8)
        if all(channel in (0, 255) for colour, _ in known for channel in colour):
            bits = (pixels >= 128) @ np.array([4, 2, 1], np.uint8)
            corners = _packed(np.array([[c & 4, c & 2, c & 1] for c in range(8)], bool) * np.uint8(255))
            packed = corners[bits]
            found = corners[np.bincount(bits.ravel(), minlength=8) > 0]
        else:
            packed = _packed(pixels)
            found = np.unique(packed)
        wanted = {int(_packed(np.array(colour, np.uint8))): index for colour, index in known}
        unknown = [int(value) for value in found if int(value) not in wanted]
        if unknown:
            raise LabelsError(
                f"colours {listed([f'#{value:06x}' for value in unknown], 4)}: no class has them. Expected "
                f"{', '.join(hex_of(colour) for colour, _ in known)}. Name the classes with --classes."
            )
        table = np.array([wanted[int(value)] for value in found], np.uint8)
        return table[np.searchsorted(found, packed)]


def hex_of(colour: Colour) -> str:
    """Return a colour as #rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def value_text(value: object) -> str:
    """Return an attribute value as text; whole floats lose their fraction, as 3.0 and 3 are one class."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def read_classes(source: str | Path) -> Classes:
    """Read a file of classes, or return built-in ones.

    Args:
        source: "deepglobe", or a CSV with the columns `name`, `value` and `colour`; the last two are
            optional. The order of the names is the order of the indices. A name on several rows has several
            values. `ignored`, `unknown` and `nodata` stand for 255. A colour is #rrggbb.

    Returns:
        The classes.

    Raises:
        LabelsError: no such file, no column `name`, or a bad or doubled colour or value.
    """
    if str(source) == "deepglobe":
        return Classes(tuple(n for n, _ in _DEEPGLOBE), tuple(c for _, c in _DEEPGLOBE))
    rows = _rows(Path(source))
    names: list[str] = []
    colours: dict[str, Colour] = {}
    values: dict[str, int] = {}
    ignored: list[Colour] = []
    for number, row in enumerate(rows, start=2):
        name = (row.get("name") or "").strip()
        if not name:
            raise LabelsError(f"{source}, line {number}: no name. Expected the name of a class.")
        is_ignored = name.lower() in IGNORED_NAMES
        if not is_ignored and name not in names:
            names.append(name)
        value = (row.get("value") or "").strip() or name
        index = IGNORED if is_ignored else names.index(name)
        if values.setdefault(value, index) != index:
            raise LabelsError(f"{source}, line {number}: value {value!r} stands for two classes. Remove one.")
        if text := (row.get("colour") or row.get("color") or "").strip():
            colour = _colour(text, f"{source}, line {number}")
            if is_ignored:
                ignored.append(colour)
            elif colour in colours.values() and colours.get(name) != colour:
                raise LabelsError(
                    f"{source}, line {number}: colour {text} stands for two classes. Remove one."
                )
            else:
                colours[name] = colour
    if not names:
        raise LabelsError(
            f"{source}: no classes. Expected one row per class below the header name,value,colour."
        )
    base = Classes(tuple(names))
    full = tuple(colours.get(name, base.colours[index]) for index, name in enumerate(names))
    return Classes(tuple(names), full, values, tuple(ignored) or ((0, 0, 0),))


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            columns = [name.strip().lower() for name in reader.fieldnames or ()]
    except FileNotFoundError:
        raise LabelsError(f"{path}: no such file. Expected a CSV of classes, or deepglobe.") from None
    except (UnicodeDecodeError, csv.Error, IsADirectoryError) as error:
        raise LabelsError(f"{path}: not a CSV of classes ({error}). Expected name,value,colour.") from None
    if "name" not in columns:
        raise LabelsError(f"{path}: columns {', '.join(columns) or 'none'}. Expected name, value and colour.")
    return [{(key or "").strip().lower(): value for key, value in row.items()} for row in rows]


def _colour(text: str, where: str) -> Colour:
    digits = text.removeprefix("#")
    try:
        number = int(digits, 16)
    except ValueError:
        number = -1
    if len(digits) != 6 or number < 0:
        raise LabelsError(f"{where}: colour {text!r}. Expected #rrggbb, such as #ffc914.")
    return number >> 16, number >> 8 & 255, number & 255


def _packed(colours: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Return colours (..., 3) as one number each."""
    wide = colours.astype(np.int32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
