"""What was found: the details table beside the patches and, where they are known, the answers."""

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
from retrieval.models.calibration import RIGHT_PX
from retrieval.types import StoredImage
from tfrecords.errors import MissingInputError

COLUMNS = {"patch_id": "i", "rank": "i", "image_id": "i", "x": "i", "y": "i"} | dict.fromkeys(
    ("dx", "dy", "similarity", "ncc", "confidence"), "f"
)
"""Columns of the details table that the page reads, and whether they hold whole numbers or any."""
PLACED = ("longitude", "latitude")
MOST_FAILURES = 2 / 3
"""Share of the choice that failures may take: to tell why they fail one has to see what does not."""

Verdict = Literal["right", "shifted", "wrong", "unknown"]


@dataclass(frozen=True, eq=False)
class Results:
    """What was found, a row a patch in the order of the patches."""

    best: Any
    """Frame: the columns of `COLUMNS` without rank, width, height, longitude, latitude; image_id -1 where
    nothing was found; right_image_id (-1 where not known), right_x, right_y, distance_px (NaN in another
    image), verdict."""
    candidates: Any
    """Frame: every candidate, with all columns of the table, in the order of patch and rank."""
    score: Score | None
    """What the answers give; None where there are none."""

    @property
    def answered(self) -> bool:
        """Whether answers are known."""
        return self.score is not None

    @property
    def known(self) -> NDArray[np.bool_]:
        """(n,) whose answer is known."""
        return np.asarray(self.best.verdict != "unknown")

    @property
    def right(self) -> NDArray[np.bool_]:
        """(n,) right: the right image, and within 5 px."""
        return np.asarray(self.best.verdict == "right")

    @property
    def confidence(self) -> NDArray[np.float64]:
        """(n,) in [0, 1]; 0 where nothing was found."""
        return np.asarray(self.best.confidence, dtype=np.float64)


def read_details(path: str | Path) -> Any:
    """Read the table of candidates that `retrieve query --details` writes.

    Args:
        path: `.parquet` or `.csv`.

    Returns:
        A pandas frame, by patch and rank; columns beside those of `COLUMNS` are kept as they are.

    Raises:
        MissingInputError: there is no such file.
        ConfigError: it is no such table.
    """
    import pandas as pd

    path = Path(path)
    if not path.is_file():
        raise MissingInputError(
            f"{path}: no such file; expected the table of candidates: run `retrieve query --details {path}`"
        )
    read = pd.read_csv if path.suffix.lower() == ".csv" else pd.read_parquet
    try:
        frame = read(path)
    except (ValueError, OSError) as error:  # pyarrow's and pandas' own errors are of these kinds
        raise ConfigError(
            f"{path} can't be read as a table ({type(error).__name__}); expected what "
            "`retrieve query --details` writes, .parquet or .csv"
        ) from error
    return _checked(frame, str(path)).sort_values(["patch_id", "rank"], kind="stable", ignore_index=True)


def _checked(frame: Any, name: str) -> Any:
    """Refuse a table without the columns that are read, or with other things in them."""
    missing = [column for column in COLUMNS if column not in frame]
    if missing:
        raise ConfigError(
            f"{name} has no column {', '.join(missing)}; expected a table of candidates with "
            f"{', '.join(COLUMNS)}: `retrieve query --details` writes it"
        )
    for column, kind in COLUMNS.items():
        dtype = frame[column].dtype
        if getattr(dtype, "kind", "O") not in ("iu" if kind == "i" else "iuf"):
            raise ConfigError(f"{name}: column {column} is of {dtype}; expected numbers")
    return frame


def results(
    frame: Any,
    patch_ids: NDArray[np.int64],
    images: Mapping[int, StoredImage],
    answers: Submission | None = None,
    sizes: NDArray[np.int64] | None = None,
) -> Results:
    """Put candidates, patches and answers beside each other.

    Args:
        frame: from `read_details`, or `Matches.details()`.
        patch_ids: (n,) of the patches that were asked about.
        images: the index's table of images.
        answers: what is right, of some or all of the patches.
        sizes: (n, 2) rows and columns of each; None where all are of 64 x 64 pixels.

    Returns:
        A row for each patch; one without a candidate has confidence 0.

    Raises:
        ConfigError: the table names patches or images that are not there, or no patch has an answer.
    """
    import pandas as pd

    frame = _checked(frame, "the table of candidates")
    sizes = np.full((len(patch_ids), 2), PATCH_PX) if sizes is None else sizes
    side = pd.DataFrame(sizes, index=patch_ids, columns=["height", "width"])
    _check_ids(frame, side, images)
    frame = frame.sort_values(["patch_id", "rank"], kind="stable", ignore_index=True)
    first = frame.drop_duplicates("patch_id").set_index("patch_id")
    wanted = [column for column in (*COLUMNS, *PLACED) if column in first and column != "rank"]
    best = first[wanted].reindex(patch_ids).reset_index(names="patch_id")
    best["image_id"] = best.image_id.fillna(-1).astype(np.int64)
    for column in ("x", "y"):
        best[column] = best[column].fillna(0).astype(np.int64)
    best["confidence"] = best.confidence.fillna(0.0)
    for column in side:
        best[column] = side[column].to_numpy()
    for column in PLACED:
        if column not in best:
            best[column] = np.nan
    right = pd.DataFrame({"right_image_id": -1, "right_x": 0, "right_y": 0}, index=range(len(best)))
    if answers is not None:
        right = _right(answers, patch_ids)
    best = best.join(right)
    best["distance_px"] = np.hypot(best.x - best.right_x, best.y - best.right_y).where(
        (best.image_id == best.right_image_id) & (best.image_id >= 0)
    )
    best["verdict"] = _verdicts(best)
    return Results(best, frame, None if answers is None else _scored(best, answers))


def _check_ids(frame: Any, side: Any, images: Mapping[int, StoredImage]) -> None:
    """Refuse a table of another query: patches, images or places that are not there."""
    hint = "are patches, index and matches of one query?"
    strange = np.setdiff1d(frame.patch_id, side.index)
    if len(strange):
        raise ConfigError(
            f"the table of candidates names patch {strange[0]}, which is none of the {len(side)}; {hint}"
        )
    strange = np.setdiff1d(frame.image_id, list(images))
    if len(strange):
        raise ConfigError(
            f"the table of candidates names image {strange[0]}, which the index does not hold; {hint}"
        )
    sizes = {i: (image.width, image.height) for i, image in images.items()}
    limits = np.array([sizes[i] for i in frame.image_id], dtype=np.int64).reshape(-1, 2)
    own = side.loc[frame.patch_id]
    # A chip may stick out of its image, a patch may not.
    least = [np.where(own[n] > PATCH_PX, 1 - own[n], 0) for n in ("width", "height")]
    outside = (frame.x < least[0]) | (frame.y < least[1])
    outside |= (frame.x >= limits[:, 0]) | (frame.y >= limits[:, 1])
    if outside.any():
        row = frame[outside].iloc[0]
        raise ConfigError(
            f"the table of candidates puts patch {row.patch_id:g} at x {row.x:g}, y {row.y:g} of image "
            f"{row.image_id:g}, which has {sizes[row.image_id]} columns and rows; {hint}"
        )


def _right(answers: Submission, patch_ids: NDArray[np.int64]) -> Any:
    """Give the answers by patch: right_image_id, -1 where not known, right_x, right_y."""
    import pandas as pd

    columns = {"right_image_id": answers.image_ids, "right_x": answers.x, "right_y": answers.y}
    table = pd.DataFrame(columns, index=answers.patch_ids).reindex(patch_ids)
    if table.right_image_id.isna().all():
        raise ConfigError(
            f"{answers.source} holds none of the {len(patch_ids)} patches; expected their answers: are they "
            "of one job?"
        )
    table = table.fillna({"right_image_id": -1, "right_x": 0, "right_y": 0}).astype(np.int64)
    return table.reset_index(drop=True)


def _verdicts(best: Any) -> NDArray[Any]:
    """Give (n,) words: the right image and within 5 px, the right image, another one, not known."""
    same = np.asarray(best.distance_px.notna())
    near = np.asarray(best.distance_px <= RIGHT_PX)
    words = np.select(
        [np.asarray(best.right_image_id < 0), near, same], ["unknown", "right", "shifted"], "wrong"
    )
    return words.astype(object)


def _scored(best: Any, answers: Submission) -> Score:
    """Score the best candidates; a patch without one counts as wrong, which the page says itself."""
    rows = best[(best.right_image_id >= 0) & (best.image_id >= 0)]
    columns = [np.asarray(rows[column]) for column in ("patch_id", "image_id", "x", "y")]
    submission = Submission(columns[0], columns[1], columns[2], columns[3], source="matches")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MissingPatchWarning)
        return score(submission, answers)


def choose(found: Results, most: int) -> list[int]:
    """Choose the patches that are shown, in the order in which they are.

    Where answers are known, the failures come first, the surest of them on top, in at most two thirds of
    the places; elsewhere the least sure come first, in half of them. The rest are a spread over all
    other patches, from the least sure to the surest.

    Args:
        found: what was found.
        most: how many, at most.

    Returns:
        Rows of `found.best`.
    """
    confidence = found.confidence
    rising = np.argsort(confidence, kind="stable")
    if found.answered:
        failed = found.known & ~found.right
        first = rising[::-1][failed[rising[::-1]]]
        room = most if failed.all() else int(np.ceil(most * MOST_FAILURES))
    else:
        first, room = rising, (most + 1) // 2
    first = first[:room]
    others = rising[~np.isin(rising, first)]
    left = min(most - len(first), len(others))
    spread = others[np.unique(np.linspace(0, len(others) - 1, left).round().astype(int))] if left > 0 else []
    return [int(row) for row in (*first, *spread)]
