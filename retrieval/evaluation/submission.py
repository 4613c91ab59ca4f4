"""A submission, or the answers: read from CSV, checked, written whole."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from retrieval.errors import SubmissionError
from retrieval.types import ID_LIMIT, XY_LIMIT
from tfrecords.artifacts import writing_file
from tfrecords.errors import MissingInputError

_HEADER = ["Patch ID", "Result"]
_SEPARATOR = re.compile(r"\s*,\s*|\s+")
_WHOLE = re.compile(r"-?[0-9]{1,18}")  # what fits in an int64; int() alone would also take "1_0" and "٣"


@dataclass(frozen=True, eq=False)
class Submission:
    """For each patch one answer: an image and a position in it. The answers file is one of these too.

    Raises:
        SubmissionError: the columns differ in length, are not whole numbers, or are out of range, or
            a patch has two rows.
    """

    patch_ids: NDArray[np.int64]
    """(n,) in [0, 2**31), each once, in any order."""
    image_ids: NDArray[np.int64]
    """(n,) in [0, 2**31)."""
    x: NDArray[np.int64]
    """(n,) column of the top-left pixel, 0-based, in [0, 65536)."""
    y: NDArray[np.int64]
    """(n,) row, likewise."""
    source: str = "submission"
    """What to call it in messages: the file's path, where it came from one."""
    lines: NDArray[np.int64] | None = None
    """(n,) the 1-based line of the file that each row stands on; None for one made in memory."""

    def __post_init__(self) -> None:
        limits = {"patch_ids": ID_LIMIT, "image_ids": ID_LIMIT, "x": XY_LIMIT, "y": XY_LIMIT}
        for name, limit in limits.items():
            object.__setattr__(self, name, self._checked(name, limit))
        self._check_unique()

    def __len__(self) -> int:
        return len(self.patch_ids)

    def where(self, row: int) -> str:
        """Name a row for a message: `submission.csv, line 12`, or `submission, row 10` in memory."""
        return f"{self.source}, row {row}" if self.lines is None else f"{self.source}, line {self.lines[row]}"

    def _checked(self, name: str, limit: int) -> NDArray[np.int64]:
        column, shape = np.asarray(getattr(self, name)), np.shape(self.patch_ids)
        if column.ndim != 1 or column.shape != shape:
            raise SubmissionError(
                f"{self.source}: received {name} of shape {column.shape} for patch ids of shape {shape}; "
                "expected one number a patch in each column"
            )
        if column.size and column.dtype.kind not in "iu":
            raise SubmissionError(
                f"{self.source}: received {name} of dtype {column.dtype}; expected whole numbers"
            )
        bad = (column < 0) | (column >= limit)
        if bad.any():
            row = int(np.argmax(bad))
            raise SubmissionError(
                f"{self.where(row)}: received {name.removesuffix('s')} {column[row]}; expected a whole "
                f"number from 0 to {limit - 1}; where nothing was found, leave the row out or give a guess"
            )
        return column.astype(np.int64)

    def _check_unique(self) -> None:
        order = np.argsort(self.patch_ids, kind="stable")
        twins = np.flatnonzero(np.diff(self.patch_ids[order]) == 0)
        if len(twins):
            first, second = order[twins[0]], order[twins[0] + 1]
            raise SubmissionError(
                f"{self.where(second)}: received patch {self.patch_ids[second]} a second time, after "
                f"{self.where(first)}; expected one row a patch: keep one of the two"
            )


def read_submission(path: str | Path) -> Submission:
    """Read a submission or an answers file.

    A CSV of UTF-8 text with the header `Patch ID,Result`. `Result` is three whole numbers, image id, x
    and y, separated by spaces, or by commas with or without spaces, quoted or not. Empty lines are
    passed over.

    Args:
        path: the file.

    Returns:
        The rows in the order of the file.

    Raises:
        MissingInputError: there is no such file, or it can't be read.
        SubmissionError: a row is malformed, out of range or doubled; the text names its line.
    """
    path = Path(path)
    rows: list[tuple[int, ...]] = []
    lines: list[int] = []
    for line, fields in _csv_rows(path):
        rows.append(_parse_row(fields, f"{path}, line {line}"))
        lines.append(line)
    patch_ids, image_ids, x, y = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    return Submission(patch_ids, image_ids, x, y, source=str(path), lines=np.array(lines, dtype=np.int64))


def write_submission(
    path: str | Path,
    patch_ids: ArrayLike,
    image_ids: ArrayLike,
    x: ArrayLike,
    y: ArrayLike,
    overwrite: bool = False,
) -> Path:
    """Write a submission or an answers file, whole or not at all, in the challenge's own form.

    Args:
        path: the file to make, by custom `submission.csv` or `answers.csv`.
        patch_ids: (n,) whole numbers in [0, 2**31), each once; rows are written in this order.
        image_ids: (n,) whole numbers in [0, 2**31).
        x: (n,) column of the top-left pixel, 0-based.
        y: (n,) row, likewise.
        overwrite: replace a file that is already there.

    Returns:
        The path.

    Raises:
        SubmissionError: the columns don't make a submission; nothing is written.
        OutputExistsError: the file is there and `overwrite` is not set.
        DiskFullError: there was no room; a former file is untouched.
    """
    rows = Submission(
        np.asarray(patch_ids), np.asarray(image_ids), np.asarray(x), np.asarray(y), source=str(path)
    )
    body = zip(rows.patch_ids, rows.image_ids, rows.x, rows.y, strict=True)
    lines = [",".join(_HEADER), *(f"{patch},{image} {column} {row}" for patch, image, column, row in body)]
    with writing_file(Path(path), overwrite=overwrite) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    return Path(path)


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Give (1-based line, fields) of every row under the header that is not empty."""
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    headed = False
    try:
        for row in reader:
            fields = [field.strip() for field in row]
            if fields in ([], [""]):
                continue
            if headed:
                yield reader.line_num, fields
            elif fields != _HEADER:
                raise SubmissionError(_header_message(f"{path}, line {reader.line_num}", fields))
            headed = True
    except csv.Error as error:
        where = f"{path}, line {reader.line_num}"
        raise SubmissionError(f"{where}: received a row that is no CSV ({error}); mend its quotes") from error
    if not headed:
        raise SubmissionError(_header_message(f"{path}", []))


def _header_message(where: str, fields: list[str]) -> str:
    return (
        f"{where}: received {_shown(fields) if fields else 'an empty file'}; expected the header "
        f"'{','.join(_HEADER)}', and under it rows like '0,12 305 77' (patch, then image x y)"
    )


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MissingInputError(
            f"{path} can't be read: {error.strerror}; expected a CSV with the columns {' and '.join(_HEADER)}"
        ) from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise SubmissionError(
            f"{path}, line {line}: received bytes that are not UTF-8; expected text: save it as CSV in UTF-8"
        ) from error


def _parse_row(fields: list[str], where: str) -> tuple[int, ...]:
    """Turn the fields of a row into (patch, image, x, y); unquoted commas have made more fields."""
    numbers = [fields[0], *_SEPARATOR.split(",".join(fields[1:]))]
    if len(numbers) != 4 or not all(_WHOLE.fullmatch(number) for number in numbers):
        raise SubmissionError(
            f"{where}: received {_shown(fields)}; expected a patch id, a comma and three whole numbers, "
            "image id, x and y, separated by spaces, as in '0,12 305 77'"
        )
    return tuple(int(number) for number in numbers)


def _shown(fields: list[str], limit: int = 60) -> str:
    text = ",".join(fields)
    return repr(text if len(text) <= limit else text[:limit] + "...")
