"""What the probabilities of a class map say for and against a label.

The likeliest class of a pixel follows how frequent the classes are. Where one field in ten looks like forest,
a map takes most such pixels for fields. But a label is information, so its support is asked without the
frequencies. Each probability is divided by the mean of its class over the map: the class with the largest
ratio is the *shown* one. For areas without a label the frequencies count, so they come from the map itself.

Source: M. Saerens et al., Adjusting the outputs of a classifier to new a priori probabilities, 2002.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import LabelsError
from retrieval.labels.classes import IGNORED, Classes
from retrieval.labels.files import find_files
from retrieval.labels.grids import Piece
from retrieval.labels.masks import open_raster, shape_of
from retrieval.types import Progress, silent
from tfrecords.errors import MissingInputError


@dataclass(frozen=True, eq=False)
class Evidence:
    """The probabilities of the classes of a map."""

    files: Mapping[str, Path]
    """File of each map by its name: one band for each class."""
    prior: NDArray[np.float64]
    """(k,) mean probability of each class over the map."""

    @classmethod
    def open(
        cls, source: str | Path, pieces: Sequence[Piece], classes: Classes, progress: Progress = silent
    ) -> Evidence:
        """Find the probabilities of maps, and their means.

        Args:
            source: what `segment predict --probabilities` wrote: a file for one map, else a folder.
            pieces: pieces of the maps.
            classes: classes of the maps.
            progress: called after each piece.

        Raises:
            MissingInputError: a map has no probabilities.
            LabelsError: they are of other classes or pixels than the map.
        """
        source = Path(source)
        names = list(dict.fromkeys(piece.name for piece in pieces))
        found = find_files(source, "mask")
        files = {names[0]: source} if source.is_file() and len(names) == 1 else found
        for piece in {piece.name: piece for piece in pieces}.values():
            _check(source, files.get(piece.name), piece, classes)
        total, count = np.zeros(len(classes.names)), 0
        for number, piece in enumerate(pieces):
            table = _read(files[piece.name], piece)
            known = table[np.isfinite(table[..., 0])]
            total += known.sum(0, dtype=np.float64)
            count += len(known)
            progress("reading probabilities", number + 1, len(pieces))
        return cls(files, np.maximum(total, 1.0) / max(count, 1))

    def read(self, piece: Piece) -> NDArray[np.float32]:
        """Return the probabilities (h, w, k) of a piece, NaN where there is no data."""
        return _read(self.files[piece.name], piece)

    def shown(self, piece: Piece) -> NDArray[np.uint8]:
        """Return the class (h, w) for which the imagery of a piece speaks most, 255 without data."""
        table = self.read(piece)
        empty = np.isnan(table[..., 0])
        ratio = np.where(empty[..., None], 0, table) / self.prior.astype(np.float32)
        return np.where(empty, IGNORED, ratio.argmax(-1)).astype(np.uint8)


def _read(path: Path, piece: Piece) -> NDArray[np.float32]:
    with open_raster(path) as dataset:
        return np.moveaxis(dataset.read(window=piece.window), 0, -1).astype(np.float32, copy=False)


def _check(source: Path, path: Path | None, piece: Piece, classes: Classes) -> None:
    """Refuse probabilities that do not fit their map."""
    if path is None:
        raise MissingInputError(
            f"{source}: no probabilities of {piece.name}. Expected a file of each map. Write them with "
            "`retrieve segment predict --probabilities`."
        )
    assert piece.path is not None
    own, other = shape_of(piece.path), shape_of(path)
    with open_raster(path) as dataset:
        names = tuple(name or "" for name in dataset.descriptions)
    if (own.width, own.height) != (other.width, other.height) or not other.dtype.startswith("float"):
        raise LabelsError(
            f"{path}: {other.width} x {other.height} pixels of {other.dtype}; its map has {own.width} x "
            f"{own.height}. Expected the probabilities of {piece.path}."
        )
    if len(names) != len(classes.names) or (any(names) and names != classes.names):
        raise LabelsError(
            f"{path}: bands {', '.join(names)}. Expected a band for each of {', '.join(classes.names)}."
        )
