"""Labels as users write them, as rows of a list of classes."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ExamplesError
from tfrecords.errors import DuplicateIdError, MissingInputError

COLUMNS = ("Id", "Category")
"""Columns of a CSV of labels, and of a submission."""


def class_rows(
    labels: Sequence[Any], classes: Sequence[str] | None, name: str
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return labels as rows of a list of classes.

    Args:
        labels: one for each image: all numbers, or all names.
        classes: names of the classes; a number is a row of them. None takes the labels as they are, sorted.
        name: name of the source, for messages.

    Returns:
        (n,) rows, and the names.

    Raises:
        ExamplesError: a label is not among the classes, is empty, or is no whole number.
    """
    numeric = [_whole(label, row, name) for row, label in enumerate(labels) if not isinstance(label, str)]
    if numeric and len(numeric) < len(labels):
        raise ExamplesError(f"{name}: numbers and names are mixed. Expected labels of one kind.")
    if classes is not None and len(set(classes)) < len(classes):
        raise ExamplesError(f"{name}: a class is named twice: {', '.join(classes)}. Name each class once.")
    if numeric:
        return _of_numbers(numeric, classes, name)
    texts = [str(label).strip() for label in labels]
    if "" in texts:
        raise ExamplesError(f"{name}: image {texts.index('')} has an empty label. Give each image a class.")
    known = tuple(classes) if classes is not None else tuple(sorted(set(texts)))
    rows = {text: row for row, text in enumerate(known)}
    for row, text in enumerate(texts):
        if text not in rows:
            raise ExamplesError(
                f"{name}: label {text!r} of image {row} is not among the classes {', '.join(known)}. "
                "Correct the label, or add the class to --classes."
            )
    return np.array([rows[text] for text in texts], np.int64), known


def _whole(label: Any, row: int, name: str) -> int:
    """Return a label as a whole number."""
    value = float(label)
    if not np.isfinite(value) or value != int(value):
        raise ExamplesError(
            f"{name}: label {value:g} of image {row} is no whole number. Expected the number of a class."
        )
    return int(value)


def _of_numbers(
    numbers: list[int], classes: Sequence[str] | None, name: str
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return numbers as rows: of the named classes, or of the sorted numbers that occur."""
    if classes is None:
        present = sorted(set(numbers))
        rows = {number: row for row, number in enumerate(present)}
        return np.array([rows[n] for n in numbers], np.int64), tuple(map(str, present))
    for row, number in enumerate(numbers):
        if not 0 <= number < len(classes):
            raise ExamplesError(
                f"{name}: label {number} of image {row} is out of range. --classes names {len(classes)} "
                f"classes, which are 0 to {len(classes) - 1}."
            )
    return np.array(numbers, np.int64), tuple(classes)


def read_csv(path: Path) -> tuple[list[Path], list[str]]:
    """Read a CSV of labels.

    Args:
        path: the file, with the columns `Id,Category`. An Id is a path relative to the CSV, or a number: then
            the file of that number in the folder of the CSV's name.

    Returns:
        The file and the label of each row.

    Raises:
        ExamplesError: other columns, or an empty cell.
        DuplicateIdError: two rows name the same image, or two files have the same number.
        MissingInputError: the CSV, or a file that it names, does not exist.
    """
    rows = _rows(path)
    folder, numbered = path.with_suffix(""), None
    files: list[Path] = []
    seen: dict[Path, int] = {}
    for line, number, _ in rows:
        if number.isdecimal() and not is_file(path.parent / number):
            numbered = _numbered(folder) if numbered is None else numbered
            file = numbered.get(int(number))
        else:
            file = path.parent / number
        if file is None or not is_file(file):
            place = f"no file of number {number} in {folder}" if number.isdecimal() else f"no file {file}"
            raise MissingInputError(f"{path}, line {line}: {place}. Correct the Id, or add the file.")
        first = seen.setdefault(file.resolve(), line)
        if first != line:
            raise DuplicateIdError(
                f"{path}: Id {number} occurs twice, in lines {first} and {line}. Remove one of them."
            )
        files.append(file)
    return files, [category for _, _, category in rows]


def is_file(path: str | Path) -> bool:
    """Return whether there is a file of this name, also for a text that is too long for a name."""
    try:
        return Path(path).is_file()
    except OSError:
        return False


def _rows(path: Path) -> list[tuple[int, str, str]]:
    """Return line, Id and category of each row of a CSV of labels."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            table = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except FileNotFoundError:
        raise MissingInputError(f"{path}: no such file. Expected a CSV of {','.join(COLUMNS)}.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ExamplesError(f"{path} is no CSV ({error}). Expected {','.join(COLUMNS)} in UTF-8.") from error
    head = [cell.strip() for cell in table[0][1]] if table else []
    if sorted(head) != sorted(COLUMNS):
        raise ExamplesError(
            f"{path}: the columns are {','.join(head) or 'missing'}. Expected {','.join(COLUMNS)}."
        )
    at = [head.index(column) for column in COLUMNS]
    for line, row in table[1:]:
        if len(row) != len(head) or not all(cell.strip() for cell in row):
            raise ExamplesError(f"{path}, line {line}: {','.join(row)!r}. Expected an Id and a Category.")
    if len(table) < 2:
        raise MissingInputError(f"{path} has no row. Expected one for each labelled image.")
    return [(line, row[at[0]].strip(), row[at[1]].strip()) for line, row in table[1:]]


def _numbered(folder: Path) -> dict[int, Path]:
    """Return the files of a folder whose stem is a number, by this number."""
    files: dict[int, Path] = {}
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not file.stem.isdecimal() or not file.is_file():
            continue
        former = files.setdefault(int(file.stem), file)
        if former != file:
            raise DuplicateIdError(
                f"{folder}: {former.name} and {file.name} have the same number. Remove or rename one of them."
            )
    return files
