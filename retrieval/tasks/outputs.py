"""The files of a prediction: a submission of `Id,Category`, and a table of probabilities."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ConfigError
from retrieval.tasks.images import check_ids
from retrieval.tasks.labels import COLUMNS
from tfrecords.artifacts import writing_file

PREFIX = "p_"
"""Before the name of a class in the table of probabilities."""


def write_submission(
    path: Path, ids: Sequence[str], names: Sequence[str], *, overwrite: bool = False
) -> None:
    """Write one row `Id,Category` for each image.

    Args:
        path: the CSV.
        ids: Id of each image.
        names: name of its class.
        overwrite: replace an existing file.

    Raises:
        DuplicateIdError: two images have the same Id.
        OutputExistsError: the file exists and `overwrite` is false.
    """
    check_ids(ids, str(path))
    with (
        writing_file(path, overwrite=overwrite) as partial,
        partial.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(zip(ids, names, strict=True))


def write_probabilities(
    path: Path,
    ids: Sequence[str],
    probabilities: NDArray[np.float64],
    classes: Sequence[str],
    *,
    overwrite: bool = False,
) -> None:
    """Write a Parquet table: `Id`, and the probability of each class in a column `p_` and its name.

    Args:
        path: the table; ends in `.parquet`.
        ids: Id of each image.
        probabilities: (n, k).
        classes: names of the k classes.
        overwrite: replace an existing file.

    Raises:
        ConfigError: another ending.
        OutputExistsError: the file exists and `overwrite` is false.
    """
    import pyarrow as pa
    from pyarrow import parquet

    check_table(path)
    columns = {COLUMNS[0]: pa.array(list(ids))}
    columns |= {
        PREFIX + name: pa.array(column.astype(np.float32))
        for name, column in zip(classes, probabilities.T, strict=True)
    }
    with writing_file(path, overwrite=overwrite) as partial:
        parquet.write_table(pa.table(columns), partial)


def check_table(path: Path) -> None:
    """Refuse a table of probabilities that does not end in `.parquet`."""
    if path.suffix.lower() != ".parquet":
        raise ConfigError(f"{path}: the ending is {path.suffix!r}. Expected .parquet.")
