"""The answers to a set of patches, and the tables that people and tools read."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ConfigError, UncalibratedWarning
from retrieval.geo.coordinates import lonlat, offsets_m
from retrieval.geo.footprints import DECIMALS, footprints
from retrieval.index.folder import IndexFolder
from retrieval.matching.large_chips import LocatedChips
from retrieval.models.calibration import calibration_features, calibration_of
from retrieval.results.tables import FOOTPRINT
from retrieval.types import RankedCandidates
from tfrecords.schema import Chips, Patches

CALIBRATE = "retrieve calibrate PATCHES ANSWERS"
"""Command that messages name."""


@dataclass(frozen=True, eq=False)
class Matches:
    """The answers to a set of patches or chips."""

    patch_ids: NDArray[np.int64]
    """(n,)."""
    candidates: RankedCandidates
    """(n, k) refined candidates, best first; positions are of the patch's or chip's top-left pixel."""
    confidence: NDArray[np.float64]
    """(n,) probability that the best candidate is right, within 5 px; NaN without a calibration."""
    folder: IndexFolder
    """The index that was asked."""
    patches: Patches | Chips
    """What was asked."""
    windows: NDArray[np.int64] | None = None
    """(n,) windows of each chip that were looked for; None where patches are their own window."""
    agree: NDArray[np.int64] | None = None
    """(n, k) how many of them agree on a candidate; None likewise."""
    features: NDArray[np.float64] | None = None
    """(n, 4) what the confidence follows from: `TERMS` of patches, `CHIP_TERMS` of chips."""

    @classmethod
    def of_patches(cls, folder: IndexFolder, patches: Patches, ranked: RankedCandidates) -> Self:
        """Return the answers of patches, with the confidence that the encoder's calibration gives."""
        features = calibration_features(ranked)
        confidence = calibration_of(folder.encoder).probability(features)
        matches = cls(patches.patch_ids, ranked, confidence, folder, patches, features=features)
        warn_uncalibrated(matches)
        return matches

    @classmethod
    def of_chips(cls, folder: IndexFolder, chips: Chips, located: LocatedChips) -> Self:
        """Return the answers of chips."""
        ids, found, confidence = chips.patch_ids, located.found, located.confidence
        matches = cls(ids, found, confidence, folder, chips, located.windows, located.agree, located.features)
        warn_uncalibrated(matches)
        return matches

    @property
    def calibrated(self) -> NDArray[np.bool_]:
        """(n,) whether a calibration of the encoder gave the confidence."""
        return ~np.isnan(self.confidence)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(n, 2) rows and columns of each patch or chip."""
        return self.patches.sizes

    def query(self, row: int) -> NDArray[np.float32]:
        """What was asked in a row, (h, w, b) scaled, NaN = not known."""
        return self.patches.scaled_one(row)

    def best(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """image_id, x, y of each answer, (n,) each; the first image's corner where nothing was found.

        x and y of a chip that sticks out of its image may be negative.
        """
        first = min(self.folder.images, default=0)
        found = self.candidates.image_ids[:, 0]
        none = found < 0
        zero = np.zeros_like(found)
        c = self.candidates
        return np.where(none, first, found), np.where(none, zero, c.x[:, 0]), np.where(none, zero, c.y[:, 0])

    def frame(self) -> Any:
        """A row for each patch; see `Index.locate`."""
        import pandas as pd

        image_id, x, y = self.best()
        c = self.candidates
        columns: dict[str, Any] = {"patch_id": self.patch_ids, "image_id": image_id, "x": x, "y": y}
        columns |= {"dx": c.dx[:, 0], "dy": c.dy[:, 0], "confidence": self.confidence}
        columns |= {"similarity": np.maximum(c.similarity[:, 0], -1), "ncc": c.ncc[:, 0]}
        # Where nothing was found the answer is a stand-in: it has no place on the map.
        at = c.image_ids[:, 0], x + c.dx[:, 0], y + c.dy[:, 0], self.sizes[:, 1], self.sizes[:, 0]
        columns["longitude"], columns["latitude"] = lonlat(self.folder.images, *at)
        return pd.DataFrame(columns)

    def unsure(self, min_confidence: float | None) -> NDArray[np.bool_]:
        """Return which answers have a confidence below a limit, (n,); none where the limit is None.

        Raises:
            ConfigError: the limit is not in [0, 1], or the index has no calibration for its encoder.
        """
        check_confidence_limit(min_confidence, self.folder, bool(self.calibrated.all()))
        return self.confidence < (0.0 if min_confidence is None else min_confidence)

    def details(self, min_confidence: float | None = None) -> Any:
        """A row for each candidate kept, with all that is known of it.

        Args:
            min_confidence: where it is given, a column `unsure` says whose answer is below it.

        Returns:
            A `pandas.DataFrame`: patch_id, rank (0 is the answer), image_id, x, y, dx, dy, width, height,
            similarity, ncc, confidence (rank 0), calibrated, unsure, windows, agree, longitude, latitude,
            off_east_m, off_north_m, off_m, image_path, image_date, source, datetime, baseline, cloud_cover,
            hidden_share, footprint (WKT, longitude and latitude); see `docs/formats.md`.
        """
        import pandas as pd

        c = self.candidates
        row, rank = np.nonzero(c.image_ids >= 0)
        height, width = self.sizes[row].T
        columns: dict[str, Any] = {"patch_id": self.patch_ids[row], "rank": rank}
        columns |= {n: getattr(c, f)[row, rank] for n, f in _CANDIDATE.items()}
        columns |= {"width": width, "height": height}
        columns |= {"similarity": c.similarity[row, rank], "ncc": c.ncc[row, rank]}
        columns["confidence"] = np.where(rank == 0, self.confidence[row], np.nan)
        columns["calibrated"] = self.calibrated[row]
        if min_confidence is not None:
            columns["unsure"] = self.unsure(min_confidence)[row]
        columns["windows"] = np.ones(len(row), int) if self.windows is None else self.windows[row]
        columns["agree"] = np.ones(len(row), int) if self.agree is None else self.agree[row, rank]
        at = columns["image_id"], columns["x"] + columns["dx"], columns["y"] + columns["dy"], width, height
        columns["longitude"], columns["latitude"] = lonlat(self.folder.images, *at)
        columns |= self._offsets(row, *at) | self._origin(*at)
        columns[FOOTPRINT] = _texts(s and _wkt(s) for s in footprints(self.folder.images, *at))
        return pd.DataFrame(columns)

    def _offsets(
        self, row: NDArray, image_ids: NDArray, x: NDArray, y: NDArray, width: NDArray, height: NDArray
    ) -> dict[str, NDArray]:
        """How far from where the chips say that they lie."""
        said = self.patches.georeferences or (None,) * len(self.patch_ids)
        mine = [said[r] for r in row]
        east, north = offsets_m(self.folder.images, image_ids, x, y, mine, width, height)
        return {"off_east_m": east, "off_north_m": north, "off_m": np.hypot(east, north)}

    def _origin(
        self, image_ids: NDArray, x: NDArray, y: NDArray, width: NDArray, height: NDArray
    ) -> dict[str, Any]:
        """What is known of the images, and how much of each window is hidden in them."""
        images = [self.folder.images[i] for i in image_ids.tolist()]
        columns: dict[str, Any] = {
            f"image_{n}": _texts(getattr(i, n) for i in images) for n in ("path", "date")
        }
        columns |= {n: _texts(getattr(i, n) for i in images) for n in ("source", "datetime", "baseline")}
        cover = [i.cloud_cover for i in images]
        columns["cloud_cover"] = np.array([np.nan if v is None else v for v in cover], float)
        at = np.rint(x).astype(np.int64), np.rint(y).astype(np.int64)
        columns["hidden_share"] = _hidden(self.folder, image_ids, *at, width, height)
        return columns


_CANDIDATE = {"image_id": "image_ids", "x": "x", "y": "y", "dx": "dx", "dy": "dy"}


def _texts(values: Iterable[str | None]) -> Any:
    """A column of texts, None where there is none."""
    import pandas as pd

    return pd.array([value or None for value in values], dtype="string")


def _wkt(shape: Any) -> str:
    import shapely

    return str(shapely.to_wkt(shape, rounding_precision=DECIMALS))


def _hidden(
    store: IndexFolder, image_ids: NDArray, x: NDArray, y: NDArray, width: NDArray, height: NDArray
) -> NDArray[np.float64]:
    """Share of each window, 0 to 1, that is nodata in the index's pixels or outside of its image."""
    share = np.zeros(len(x))
    for image_id in np.unique(image_ids):
        known = np.logical_not(np.isnan(store.scaled(int(image_id))).all(-1))
        for row in np.flatnonzero(image_ids == image_id):
            part = known[max(0, y[row]) : y[row] + height[row], max(0, x[row]) : x[row] + width[row]]
            share[row] = 1 - part.sum() / (width[row] * height[row])
    return share


def warn_uncalibrated(matches: Matches) -> None:
    """Warn where matches have no confidence.

    Warns:
        UncalibratedWarning: the index has no calibration for its encoder.
    """
    if not matches.calibrated.all():
        folder = matches.folder
        warnings.warn(
            f"{folder.path}: the confidence is empty, because the encoder {folder.encoder.name!r} has no "
            f"calibration. Run `{CALIBRATE} --index {folder.path}`.",
            UncalibratedWarning,
            stacklevel=4,
        )


def check_confidence_limit(limit: float | None, folder: IndexFolder, is_calibrated: bool) -> None:
    """Refuse a least confidence that no answer can be compared with.

    Raises:
        ConfigError: the limit is not in [0, 1], or the index has no calibration for its encoder.
    """
    if limit is None:
        return
    if not 0 <= limit <= 1:
        raise ConfigError(f"a least confidence of {limit}; expected a probability, 0 to 1")
    if not is_calibrated:
        raise ConfigError(
            f"{folder.path}: a least confidence of {limit} needs a calibration. The encoder "
            f"{folder.encoder.name!r} has none. Run `{CALIBRATE} --index {folder.path}`."
        )
