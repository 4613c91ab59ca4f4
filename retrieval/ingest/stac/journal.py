"""The journal of a query: the outcome for each item in `items.csv`, and the query in `search.json`."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from retrieval.ingest.stac.query import CatalogQuery
from tfrecords.artifacts import writing_file
from tfrecords.errors import ManifestError, OutputExistsError, parse_json

ITEMS, SEARCH = "items.csv", "search.json"
KIND, VERSION = "stac-places", 1


@dataclass(frozen=True)
class ItemRow:
    """The outcome for one item."""

    item: str
    """Its id."""
    place: str = ""
    """Its place; empty where it is unknown."""
    date: str = ""
    """Its solar day, YYYY-MM-DD."""
    file: str = ""
    """Path of its file below the folder; empty where it was skipped."""
    cloud_cover: float | None = None
    """Share of its tile under cloud by its metadata, percent."""
    hidden: float | None = None
    """Share of the ground in the box that is hidden or nodata that day, percent; None = not measured."""
    baseline: str = ""
    """Processing baseline."""
    offset: float | None = None
    """Added to the digital numbers of the red band."""
    offset_from: str = ""
    """The metadata that state the offset."""
    dark: float | None = None
    """Digital number of the darkest pixels of its file (0.1 percentile over all bands)."""
    left_out: str = ""
    """Why it was skipped; empty where it was not."""


def _cell(value: object) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _value(name: str, text: str) -> Any:
    if name in ("cloud_cover", "hidden", "offset", "dark"):
        return float(text) if text else None
    return text


def read_rows(folder: Path) -> list[ItemRow]:
    """Read `items.csv`.

    Args:
        folder: holds it; without the file there are no rows.

    Returns:
        The rows, in the order of the file.

    Raises:
        ManifestError: it is damaged.
    """
    path = folder / ITEMS
    if not path.is_file():
        return []
    names = [field.name for field in fields(ItemRow)]
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames != names:
                raise ValueError(f"its columns are {reader.fieldnames}")
            return [ItemRow(**{name: _value(name, row[name] or "") for name in names}) for row in reader]
    except (ValueError, TypeError, csv.Error) as error:
        raise ManifestError(f"{path}: damaged ({error}). Remove it, or pass --overwrite") from error


class Journal:
    """The rows of one query; the file is written whole."""

    def __init__(self, folder: Path, query: CatalogQuery, *, overwrite: bool) -> None:
        """Read the journal of an earlier run with the same query.

        Args:
            folder: the folder of the places.
            query: the query.
            overwrite: start again; `begin` removes the files of the earlier query.

        Raises:
            OutputExistsError: the folder holds files of another query, and `overwrite` is false.
            ManifestError: its journal is damaged.
        """
        if folder.exists() and not folder.is_dir():
            raise OutputExistsError(f"{folder}: a file. Expected the name of a folder to write")
        self.folder, self._query = folder, {"format_version": VERSION, "kind": KIND, **query.to_json()}
        former = _former(folder, overwrite)
        if former not in (None, self._query) and not overwrite and _files(folder):
            raise OutputExistsError(
                f"{folder}: holds the files of another query ({_difference(former or {}, self._query)}). "
                "They are kept. Choose another folder, or pass --overwrite"
            )
        rows = read_rows(folder) if former == self._query and not overwrite else []
        self._stale = _files(folder) if overwrite else []
        self.rows = {row.item: row for row in rows}

    def begin(self) -> None:
        """Create the folder, and remove the files of a query that is overwritten."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self._stale:
            path.unlink(missing_ok=True)
        self._stale = []
        with writing_file(self.folder / SEARCH, overwrite=True) as path:
            path.write_text(json.dumps(self._query, indent=1) + "\n", encoding="utf-8")
        self.save()

    def note(self, rows: Iterable[ItemRow]) -> None:
        """Replace the rows of items."""
        self.rows.update({row.item: row for row in rows})

    def save(self) -> None:
        """Write `items.csv`."""
        ordered = sorted(self.rows.values(), key=lambda row: (row.place, row.date, row.item))
        with (
            writing_file(self.folder / ITEMS, overwrite=True) as path,
            path.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([field.name for field in fields(ItemRow)])
            writer.writerows([_cell(value) for value in asdict(row).values()] for row in ordered)


def _former(folder: Path, overwrite: bool) -> dict[str, Any] | None:
    path = folder / SEARCH
    try:
        return dict(parse_json(path.read_text(encoding="utf-8"))) if path.is_file() else None
    except (ValueError, TypeError) as error:
        if overwrite:
            return {}
        raise ManifestError(
            f"{path}: damaged ({error}). Choose another folder, or pass --overwrite"
        ) from error


def _difference(former: dict[str, Any], query: dict[str, Any]) -> str:
    return ", ".join(f"{k} {former.get(k)}" for k in query if former.get(k) != query[k])[:160]


def _files(folder: Path) -> list[Path]:
    """Return the files of the journal that lie in the folder."""
    try:
        rows = read_rows(folder)
    except ManifestError:
        return []
    root = folder.resolve()
    paths = {(folder / row.file).resolve() for row in rows if row.file}
    return sorted(path for path in paths if path.is_relative_to(root) and path.suffix == ".tif")
