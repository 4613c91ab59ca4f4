"""The matches of a query, and their tables."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ConfigError, NotFoundWarning, UncalibratedWarning
from retrieval.geo.coordinates import lonlat, offsets_m
from retrieval.geo.file_windows import shifts_to_file, to_file
from retrieval.geo.footprints import DECIMALS, footprints
from retrieval.index.folder import IndexFolder
from retrieval.matching.exhaustive import UncertainSearch
from retrieval.matching.large_chips import LocatedChips
from retrieval.matching.places import number_places
from retrieval.matching.session import Session
from retrieval.models.calibration import calibration_features, calibration_of
from retrieval.results.tables import FOOTPRINT
from retrieval.types import RankedCandidates
from tfrecords.errors import listed
from tfrecords.schema import Chips, Patches

CALIBRATE = "retrieve calibrate PATCHES ANSWERS"
"""Command that messages name."""
FOUND, PARTLY_SEARCHED, NOT_FOUND = "found", "partly_searched", "not_found"
"""Values of `Matches.status`."""


@dataclass(frozen=True, eq=False)
class Matches:
    """The matches of a set of patches or chips."""

    patch_ids: NDArray[np.int64]
    """(n,) ids of the patches or chips."""
    candidates: RankedCandidates
    """(n, k) refined candidates, best first; positions of the top-left pixel in the index, north-up."""
    confidence: NDArray[np.float64]
    """(n,) probability in [0, 1] that the best candidate is right, within 5 px; NaN without a calibration."""
    folder: IndexFolder
    """The index folder."""
    patches: Patches | Chips
    """The queries."""
    windows: NDArray[np.int64] | None = None
    """(n,) windows searched of each chip; None for patches."""
    agree: NDArray[np.int64] | None = None
    """(n, k) windows that agree on a candidate; None for patches."""
    features: NDArray[np.float64] | None = None
    """(n, 4) inputs of the calibration: `TERMS` of patches, `CHIP_TERMS` of chips."""
    places: NDArray[np.int64] | None = None
    """(n, k) placements of chips: a number for each place, 0 for that of the best; None for patches."""
    searched: UncertainSearch | None = None
    """The searches of uncertain patches; None for chips."""

    @classmethod
    def of_patches(
        cls,
        folder: IndexFolder,
        patches: Patches,
        ranked: RankedCandidates,
        searched: UncertainSearch | None = None,
    ) -> Self:
        """Return the matches of patches, with the confidence of the encoder's calibration.

        Args:
            folder: the index folder.
            patches: the queries.
            ranked: candidates of each patch, best first, with their places.
            searched: the searches of uncertain patches; None for none.

        Warns:
            UncalibratedWarning: the index has no calibration for its encoder.
        """
        features = calibration_features(ranked)
        confidence = calibration_of(folder.encoder).probability(features)
        ids = patches.patch_ids
        matches = cls(ids, ranked, confidence, folder, patches, features=features, searched=searched)
        warn_uncalibrated(matches)
        return matches

    @classmethod
    def of_chips(cls, folder: IndexFolder, chips: Chips, located: LocatedChips) -> Self:
        """Return the matches of chips."""
        ids, ranked, confidence = chips.patch_ids, located.found, located.confidence
        matches = cls(
            ids,
            ranked,
            confidence,
            folder,
            chips,
            located.windows,
            located.agree,
            located.features,
            located.places,
        )
        warn_uncalibrated(matches)
        return matches

    @property
    def status(self) -> NDArray[np.str_]:
        """(n,) `found`, `partly_searched` or `not_found`.

        A patch is not found if no candidate has an NCC above 0. It is flat, has no data, or no window may be
        answered. It is partly searched if it is uncertain and the budget kept it from a further search.
        """
        left_out = np.zeros(len(self.patch_ids), bool) if self.searched is None else self.searched.left_out
        return np.select([~self.found, left_out], [NOT_FOUND, PARTLY_SEARCHED], FOUND)

    @property
    def found(self) -> NDArray[np.bool_]:
        """(n,) whether a candidate has an NCC above 0."""
        return np.asarray(((self.candidates.image_ids >= 0) & (self.candidates.ncc > 0)).any(1))

    @property
    def calibrated(self) -> NDArray[np.bool_]:
        """(n,) whether a calibration of the encoder gave the confidence."""
        return ~np.isnan(self.confidence)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(n, 2) rows and columns of each patch or chip, at the images' pixel size, without padding."""
        return sizes_of(self.patches)

    def query(self, row: int) -> NDArray[np.float32]:
        """Return the query in a row, (h, w, b) scaled, NaN = nodata."""
        return self.patches.scaled_one(row)

    def best(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return image_id, x and y of the best candidates, (n,) each.

        x and y are the smallest column and row in the image's file, whatever its orientation. They may be
        negative for a chip that extends beyond its image. A patch without a candidate gets the first pixel
        of the first image.
        """
        first, c = min(self.folder.images, default=0), self.candidates
        missing = c.image_ids[:, 0] < 0
        height, width = self.sizes.T
        x, y, _, _ = to_file(self.folder.images, c.image_ids[:, 0], c.x[:, 0], c.y[:, 0], width, height)
        ids = np.where(missing, first, c.image_ids[:, 0])
        return ids, np.where(missing, 0, x), np.where(missing, 0, y)

    def frame(self) -> Any:
        """Return a `pandas.DataFrame` with one row per patch; see `retrieval.pipeline.Index.locate`."""
        import pandas as pd

        image_id, x, y = self.best()
        c = self.candidates
        columns: dict[str, Any] = {"patch_id": self.patch_ids, "image_id": image_id, "x": x, "y": y}
        dx, dy = shifts_to_file(self.folder.images, c.image_ids[:, 0], c.dx[:, 0], c.dy[:, 0])
        columns |= {"dx": dx, "dy": dy, "confidence": self.confidence}
        columns |= {"similarity": np.maximum(c.similarity[:, 0], -1), "ncc": c.ncc[:, 0]}
        # The stand-in of a patch without a candidate has no coordinates.
        left, top = c.x[:, 0] + c.dx[:, 0], c.y[:, 0] + c.dy[:, 0]
        at = c.image_ids[:, 0], left, top, self.sizes[:, 1], self.sizes[:, 0]
        columns["longitude"], columns["latitude"] = lonlat(self.folder.images, *at)
        return pd.DataFrame(columns)

    def unsure(self, min_confidence: float | None) -> NDArray[np.bool_]:
        """Return (n,): whether the confidence is below a limit; all false without a limit.

        Raises:
            ConfigError: the limit is not in [0, 1], or the index has no calibration for its encoder.
        """
        check_confidence_limit(min_confidence, self.folder, bool(self.calibrated.all()))
        return self.confidence < (0.0 if min_confidence is None else min_confidence)

    def place_numbers(self) -> NDArray[np.int64]:
        """Return (n, k): one number for all candidates of a patch that show the same ground.

        The best candidate's place is 0, the others ascend by rank; -1 where there is no candidate.
        """
        if self.places is not None:
            return self.places
        assert isinstance(self.patches, Patches)
        session = Session(self.folder, self.patches, table=self.folder.images)
        return number_places(session, self.candidates)

    def details(self, min_confidence: float | None = None) -> Any:
        """Return the table of all candidates with their details; a patch that finds nothing has one row.

        Args:
            min_confidence: limit of the column `unsure`; None for no such column.

        Returns:
            A `pandas.DataFrame` with the columns of `docs/formats.md`:

            - patch_id, rank (0 is the best match), status, place (0 is that of the best match)
            - image_id, x, y, dx, dy, width, height
            - similarity, ncc, confidence (of rank 0), calibrated, unsure, windows, agree
            - longitude, latitude, off_east_m, off_north_m, off_m
            - image_path, image_date, source, datetime, baseline, cloud_cover, hidden_share
            - footprint (WKT, longitude and latitude)
        """
        import pandas as pd

        c = self.candidates
        shown = (c.image_ids >= 0) & self.found[:, None]
        shown[:, 0] = True  # a patch that finds nothing has a row, too
        row, rank = np.nonzero(shown)
        height, width = self.sizes[row].T
        columns: dict[str, Any] = {"patch_id": self.patch_ids[row], "rank": rank}
        columns["status"] = _texts(self.status[row])
        columns["place"] = self.place_numbers()[row, rank]
        image_ids = np.where(self.found[row], c.image_ids[row, rank], -1)
        x, y = c.x[row, rank], c.y[row, rank]
        dx, dy = c.dx[row, rank], c.dy[row, rank]
        columns |= {"image_id": image_ids} | self._file_columns(image_ids, x, y, dx, dy, width, height)
        columns |= {"similarity": c.similarity[row, rank], "ncc": c.ncc[row, rank]}
        columns["confidence"] = np.where(rank == 0, self.confidence[row], np.nan)
        columns["calibrated"] = self.calibrated[row]
        if min_confidence is not None:
            columns["unsure"] = self.unsure(min_confidence)[row]
        columns["windows"] = np.ones(len(row), int) if self.windows is None else self.windows[row]
        columns["agree"] = (image_ids >= 0).astype(int) if self.agree is None else self.agree[row, rank]
        at = image_ids, x + dx, y + dy, width, height
        columns["longitude"], columns["latitude"] = lonlat(self.folder.images, *at)
        columns |= self._offsets(row, *at) | self._image_columns(*at)
        columns[FOOTPRINT] = _texts(s and _wkt(s) for s in footprints(self.folder.images, *at))
        return _with_missing(pd.DataFrame(columns), image_ids < 0)

    def _file_columns(
        self,
        image_ids: NDArray[Any],
        x: NDArray[Any],
        y: NDArray[Any],
        dx: NDArray[Any],
        dy: NDArray[Any],
        width: NDArray[Any],
        height: NDArray[Any],
    ) -> dict[str, NDArray[Any]]:
        """Return the columns of the windows in the pixels of the files."""
        images = self.folder.images
        x, y, width, height = to_file(images, image_ids, x, y, width, height)
        dx, dy = shifts_to_file(images, image_ids, dx, dy)
        return {"x": x, "y": y, "dx": dx, "dy": dy, "width": width, "height": height}

    def _offsets(
        self,
        row: NDArray[Any],
        image_ids: NDArray[Any],
        x: NDArray[Any],
        y: NDArray[Any],
        width: NDArray[Any],
        height: NDArray[Any],
    ) -> dict[str, NDArray[Any]]:
        """Return the columns of the distance from the chips' georeferences."""
        georeferences = self.patches.georeferences or (None,) * len(self.patch_ids)
        stated = [georeferences[r] for r in row]
        east, north = offsets_m(self.folder.images, image_ids, x, y, stated, width, height)
        return {"off_east_m": east, "off_north_m": north, "off_m": np.hypot(east, north)}

    def _image_columns(
        self,
        image_ids: NDArray[Any],
        x: NDArray[Any],
        y: NDArray[Any],
        width: NDArray[Any],
        height: NDArray[Any],
    ) -> dict[str, Any]:
        """Return the columns of the images, and the hidden share of each window."""
        images = [self.folder.images.get(i) for i in image_ids.tolist()]
        columns = {f"image_{n}": _texts(getattr(i, n, None) for i in images) for n in ("path", "date")}
        provenance = ("source", "datetime", "baseline")
        columns |= {n: _texts(getattr(i, n, None) for i in images) for n in provenance}
        cover = [getattr(image, "cloud_cover", None) for image in images]
        columns["cloud_cover"] = np.array([np.nan if c is None else c for c in cover], float)
        at = np.rint(x).astype(np.int64), np.rint(y).astype(np.int64)
        columns["hidden_share"] = _hidden_share(self.folder, image_ids, *at, width, height)
        return columns


def sizes_of(queries: Patches | Chips) -> NDArray[np.int64]:
    """Return rows and columns (n, 2) of patches or chips, without padding."""
    unpadded = queries.unpadded if isinstance(queries, Chips) else None
    return queries.sizes if unpadded is None else unpadded


def _texts(values: Iterable[str | None]) -> Any:
    """Return a column of texts; missing where a text is empty or unknown."""
    import pandas as pd

    return pd.array([value or None for value in values], dtype="string")


def _wkt(shape: Any) -> str:
    import shapely

    return str(shapely.to_wkt(shape, rounding_precision=DECIMALS))


def _hidden_share(
    index: IndexFolder,
    image_ids: NDArray[Any],
    x: NDArray[Any],
    y: NDArray[Any],
    width: NDArray[Any],
    height: NDArray[Any],
) -> NDArray[np.float64]:
    """Return the share of each window, 0 to 1, that is nodata in the index or outside the image."""
    share = np.zeros(len(x))
    for image_id in np.unique(image_ids[image_ids >= 0]):
        visible = np.logical_not(np.isnan(index.scaled(int(image_id))).all(-1))
        for row in np.flatnonzero(image_ids == image_id):
            part = visible[max(0, y[row]) : y[row] + height[row], max(0, x[row]) : x[row] + width[row]]
            share[row] = 1 - part.sum() / (width[row] * height[row])
    return share


NULL_COLUMNS = "place image_id x y dx dy width height similarity ncc hidden_share".split()
"""Columns of details that are null where nothing is found."""


def _with_missing(frame: Any, rows: NDArray[np.bool_]) -> Any:
    """Return the table of details with nulls where nothing is found; whole numbers then become `Int64`."""
    import pandas as pd

    if not rows.any():
        return frame
    for name in NULL_COLUMNS:
        values = frame[name].to_numpy()
        kind, null = ("Int64", pd.NA) if values.dtype.kind == "i" else (values.dtype, np.nan)
        frame[name] = frame[name].astype(kind).mask(rows, null)
    return frame


def warn_not_found(matches: Matches) -> None:
    """Name the patches that find nothing.

    Warns:
        NotFoundWarning: there are some.
    """
    ids = matches.patch_ids[matches.status == NOT_FOUND]
    if len(ids):
        warnings.warn(
            f"{len(ids)} of {len(matches.patch_ids)} patches are not found; their rows in a submission are "
            f"placeholders: {listed([str(i) for i in ids.tolist()])}",
            NotFoundWarning,
            stacklevel=4,
        )


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
    """Refuse a limit of the confidence that cannot be applied.

    Raises:
        ConfigError: the limit is not in [0, 1], or the index has no calibration for its encoder.
    """
    if limit is None:
        return
    if not 0 <= limit <= 1:
        raise ConfigError(f"min_confidence: received {limit}. Expected a probability, 0 to 1.")
    if not is_calibrated:
        raise ConfigError(
            f"{folder.path}: min_confidence needs a calibration. The encoder "
            f"{folder.encoder.name!r} has none. Run `{CALIBRATE} --index {folder.path}`."
        )
