"""The best match of each patch, its verdict against the answers, and which patches the page shows."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX
from retrieval.errors import ConfigError, MissingPatchWarning
from retrieval.evaluation.figures import Score
from retrieval.evaluation.scoring import score
from retrieval.evaluation.submission import Submission
from retrieval.geo.file_windows import shifts_to_upright, to_upright
from retrieval.models.calibration import RIGHT_PX
from retrieval.types import StoredImage
from tfrecords.errors import MissingInputError
from tfrecords.read.orientation import UPRIGHT

COLUMNS = {"patch_id": "i", "rank": "i", "image_id": "i", "x": "i", "y": "i"} | dict.fromkeys(
    ("dx", "dy", "similarity", "ncc", "confidence"), "f"
)
"""Columns of the details table that the page needs: `i` for integers, `f` for any number."""
POSITION = ("x", "y", "dx", "dy", "right_x", "right_y")
"""Columns in pixels."""
COORDINATES = ("longitude", "latitude")
STATUS = "status"
"""Column of `Matches.status`; tables of earlier releases lack it."""
MAX_FAILURE_SHARE = 2 / 3
"""Largest share of failures among the patches shown: a reader compares them with successes."""

Verdict = Literal["right", "shifted", "wrong", "unknown"]


@dataclass(frozen=True, eq=False)
class PatchResults:
    """The results of a query, one row per patch in the order of the patches."""

    best: Any
    """Frame: the columns of `COLUMNS` without rank; width, height, longitude, latitude, status, verdict. Also
    right_image_id (-1 without an answer), right_x, right_y, and distance_px (NaN in another image). Without
    a match image_id is -1."""
    candidates: Any
    """Frame: every candidate with all columns of the table, in the order of patch and rank; no row for a
    patch without a match."""
    score: Score | None
    """The score; None without answers."""

    @property
    def has_answer(self) -> NDArray[np.bool_]:
        """(n,) patches with an answer."""
        return np.asarray(self.best.verdict != "unknown")

    @property
    def is_right(self) -> NDArray[np.bool_]:
        """(n,) patches whose match is in the right image and within 5 px."""
        return np.asarray(self.best.verdict == "right")

    @property
    def confidence(self) -> NDArray[np.float64]:
        """(n,) in [0, 1]; 0 where there is no match, NaN where the encoder has no calibration."""
        return np.asarray(self.best.confidence, dtype=np.float64)


def read_details(path: str | Path) -> Any:
    """Read the table of candidates that `retrieve query --details` writes.

    Args:
        path: `.parquet` or `.csv`.

    Returns:
        A pandas frame in the order of patch and rank; columns other than `COLUMNS` are kept. Rows of patches
        that find nothing are left out.

    Raises:
        MissingInputError: the file does not exist.
        ConfigError: the file is not a table of candidates.
    """
    import pandas as pd

    path = Path(path)
    if not path.is_file():
        raise MissingInputError(
            f"{path}: no such file. Expected the table of candidates: run `retrieve query --details {path}`."
        )
    read = pd.read_csv if path.suffix.lower() == ".csv" else pd.read_parquet
    try:
        frame = read(path)
    except (ValueError, OSError) as error:  # the errors of pyarrow and pandas are of these kinds
        raise ConfigError(
            f"{path}: can't be read as a table ({type(error).__name__}). Expected the .parquet or .csv file "
            "that `retrieve query --details` writes."
        ) from error
    return _check_columns(frame, str(path)).sort_values(
        ["patch_id", "rank"], kind="stable", ignore_index=True
    )


def _check_columns(frame: Any, name: str) -> Any:
    """Return the rows with a match; refuse a table that lacks columns or numbers in them."""
    frame = _matched(frame)
    missing = [column for column in COLUMNS if column not in frame]
    if missing:
        raise ConfigError(
            f"{name}: no column {', '.join(missing)}. Expected a table of candidates with the columns "
            f"{', '.join(COLUMNS)}: run `retrieve query --details`."
        )
    for column, kind in COLUMNS.items():
        dtype = frame[column].dtype
        if getattr(dtype, "kind", "O") not in ("iu" if kind == "i" else "iuf"):
            raise ConfigError(f"{name}: column {column} has the type {dtype}. Expected numbers.")
    return frame


def _matched(frame: Any) -> Any:
    """Leave out patches that find nothing: their row has no image, so whole numbers were read as floats."""
    if "image_id" not in frame or not frame.image_id.isna().any():
        return frame
    frame = frame[frame.image_id.notna()]
    integers = [name for name, kind in COLUMNS.items() if kind == "i" and name in frame]
    numbers = [name for name in integers if getattr(frame[name].dtype, "kind", "O") in "iuf"]
    whole = [name for name in numbers if (frame[name] % 1 == 0).all()]
    return frame.astype(dict.fromkeys(whole, "int64"))


def judge(
    frame: Any,
    patch_ids: NDArray[np.int64],
    images: Mapping[int, StoredImage],
    answers: Submission | None = None,
    sizes: NDArray[np.int64] | None = None,
) -> PatchResults:
    """Compare the best match of each patch with its answer.

    Args:
        frame: from `read_details`, or `Matches.details()`.
        patch_ids: (n,) ids of the query patches.
        images: the index's image table.
        answers: the right places of all or some patches.
        sizes: (n, 2) rows and columns of each patch; None where all have 64 x 64 pixels.

    Returns:
        One row per patch; one without a candidate has confidence 0.

    Raises:
        ConfigError: the table names patches or images that do not exist, or no patch has an answer.
    """
    import pandas as pd

    frame = _check_columns(frame, "the table of candidates")
    sizes = np.full((len(patch_ids), 2), PATCH_PX) if sizes is None else sizes
    side = pd.DataFrame(sizes, index=patch_ids, columns=["height", "width"])
    _check_ids(frame, side, images)
    frame = frame.sort_values(["patch_id", "rank"], kind="stable", ignore_index=True)
    best = _best_matches(frame, side)
    right = pd.DataFrame({"right_image_id": -1, "right_x": 0, "right_y": 0}, index=range(len(best)))
    best = best.join(right if answers is None else _right_places(answers, patch_ids))
    best["distance_px"] = np.hypot(best.x - best.right_x, best.y - best.right_y).where(
        (best.image_id == best.right_image_id) & (best.image_id >= 0)
    )
    best["verdict"] = _verdicts(best)
    measured = None if answers is None else _score(best, answers)
    return PatchResults(_upright(best, side, images), _upright(frame, side, images), measured)


def _upright(frame: Any, side: Any, images: Mapping[int, StoredImage]) -> Any:
    """Return positions in the pixels of the index; `file_x` and the like keep the pixels of the files."""
    frame = frame.assign(**{f"file_{name}": frame[name] for name in POSITION if name in frame})
    if all(image.orientation == UPRIGHT for image in images.values()):
        return frame
    height, width = side.loc[frame.patch_id, ["height", "width"]].to_numpy().T
    for prefix in ("", "right_"):
        if f"{prefix}x" in frame:
            ids, x, y = (frame[f"{prefix}{name}"].to_numpy() for name in ("image_id", "x", "y"))
            turned = np.isin(ids, [i for i, image in images.items() if image.orientation > 4])
            across, down = np.where(turned, height, width), np.where(turned, width, height)
            frame[f"{prefix}x"], frame[f"{prefix}y"], _, _ = to_upright(images, ids, x, y, across, down)
    shift = shifts_to_upright(images, frame.image_id.to_numpy(), frame.dx.to_numpy(), frame.dy.to_numpy())
    frame["dx"], frame["dy"] = shift
    return frame


def _best_matches(frame: Any, side: Any) -> Any:
    """Return the first candidate of each patch, with image_id -1 for a patch without one."""
    first = frame.drop_duplicates("patch_id").set_index("patch_id")
    columns = [column for column in (*COLUMNS, *COORDINATES, STATUS) if column in first and column != "rank"]
    best = first[columns].reindex(side.index).reset_index(names="patch_id")
    best["image_id"] = best.image_id.fillna(-1).astype(np.int64)
    for column in ("x", "y"):
        best[column] = best[column].fillna(0).astype(np.int64)
    if first.empty or first.confidence.notna().any():  # else the encoder has no calibration
        best.loc[best.image_id < 0, "confidence"] = 0.0
    known = best[STATUS].astype(object) if STATUS in best else "found"
    best[STATUS] = np.where(best.image_id < 0, "not_found", known)
    for column in side:
        best[column] = side[column].to_numpy()
    for column in COORDINATES:
        if column not in best:
            best[column] = np.nan
    return best


def _check_ids(frame: Any, side: Any, images: Mapping[int, StoredImage]) -> None:
    """Refuse the table of another query: patches, images or positions that do not exist."""
    fix = "Use the patches, the index and the matches of one query."
    strange = np.setdiff1d(frame.patch_id, side.index)
    if len(strange):
        raise ConfigError(
            f"the table of candidates: it names patch {strange[0]}, which is not among the {len(side)} "
            f"patches. {fix}"
        )
    strange = np.setdiff1d(frame.image_id, list(images))
    if len(strange):
        raise ConfigError(
            f"the table of candidates: it names image {strange[0]}, which is not in the index. {fix}"
        )
    sizes = {i: _file_size(image) for i, image in images.items()}
    limits = np.array([sizes[i] for i in frame.image_id], dtype=np.int64).reshape(-1, 2)
    patch_side = side.loc[frame.patch_id].reset_index(drop=True)
    turned = np.array([images[i].orientation > 4 for i in frame.image_id], bool)  # rows are columns
    patch_side[turned] = patch_side[turned][["width", "height"]].to_numpy()
    # A chip may extend beyond its image, a patch may not.
    low = [np.where(patch_side[n] > PATCH_PX, 1 - patch_side[n], 0) for n in ("width", "height")]
    outside = (frame.x < low[0]) | (frame.y < low[1])
    outside |= (frame.x >= limits[:, 0]) | (frame.y >= limits[:, 1])
    if outside.any():
        row = frame[outside].iloc[0]
        raise ConfigError(
            f"the table of candidates: it puts patch {row.patch_id:g} at x {row.x:g}, y {row.y:g} of image "
            f"{row.image_id:g}, which has {sizes[row.image_id]} columns and rows. {fix}"
        )


def _file_size(image: StoredImage) -> tuple[int, int]:
    """Return the columns and rows of an image's file."""
    return (image.height, image.width) if image.orientation > 4 else (image.width, image.height)


def _right_places(answers: Submission, patch_ids: NDArray[np.int64]) -> Any:
    """Return right_image_id (-1 where there is no answer), right_x and right_y of each patch."""
    import pandas as pd

    columns = {"right_image_id": answers.image_ids, "right_x": answers.x, "right_y": answers.y}
    table = pd.DataFrame(columns, index=answers.patch_ids).reindex(patch_ids)
    if table.right_image_id.isna().all():
        raise ConfigError(
            f"{answers.source}: it holds none of the {len(patch_ids)} patches. Expected the answers of these "
            "patches."
        )
    table = table.fillna({"right_image_id": -1, "right_x": 0, "right_y": 0}).astype(np.int64)
    return table.reset_index(drop=True)


def _verdicts(best: Any) -> NDArray[Any]:
    """Return (n,) words: right image and within 5 px, right image, another image, no answer."""
    same_image = np.asarray(best.distance_px.notna())
    near = np.asarray(best.distance_px <= RIGHT_PX)
    no_answer = np.asarray(best.right_image_id < 0)
    words = np.select([no_answer, near, same_image], ["unknown", "right", "shifted"], "wrong")
    return words.astype(object)


def _score(best: Any, answers: Submission) -> Score:
    """Score the best matches; the page itself reports patches without a match, which count as wrong."""
    rows = best[(best.right_image_id >= 0) & (best.image_id >= 0)]
    columns = [np.asarray(rows[column]) for column in ("patch_id", "image_id", "x", "y")]
    submission = Submission(columns[0], columns[1], columns[2], columns[3], source="matches")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MissingPatchWarning)
        return score(submission, answers)


def choose(results: PatchResults, limit: int) -> list[int]:
    """Choose the patches that the page shows, in their order on the page.

    With answers the failures come first, by falling confidence, and take at most two thirds of the
    places. Without answers the least confident come first, in half of the places. An even selection of
    the other patches follows, by rising confidence.

    Args:
        results: from `judge`.
        limit: largest number of patches.

    Returns:
        Rows of `results.best`.
    """
    rising = np.argsort(results.confidence, kind="stable")
    if results.score is not None:
        failed = results.has_answer & ~results.is_right
        first = rising[::-1][failed[rising[::-1]]]
        room = limit if failed.all() else int(np.ceil(limit * MAX_FAILURE_SHARE))
    else:
        first, room = rising, (limit + 1) // 2
    first = first[:room]
    others = rising[~np.isin(rising, first)]
    count = min(limit - len(first), len(others))
    even = others[np.unique(np.linspace(0, len(others) - 1, count).round().astype(int))] if count > 0 else []
    return [int(row) for row in (*first, *even)]
