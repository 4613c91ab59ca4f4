"""What became of each item, in `items.csv` beside the places; and what was asked for, in `query.json`."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from retrieval.ingest.stac.query import CatalogQuery
from tfrecords.artifacts import writing_file
from tfrecords.errors import ManifestError, OutputExistsError

ITEMS, SEARCH = "items.csv", "search.json"
KIND, VERSION = "stac-places", 1


@dataclass(frozen=True)
class Row:
    """One item."""

    item: str
    """Its id."""
    place: str = ""
    """Its place; empty where it was left out before that was known."""
    date: str = ""
    """Its day by the sun, YYYY-MM-DD."""
    file: str = ""
    """What it became, or became a part of: path in the folder; empty where it was left out."""
    cloud_cover: float | None = None
    """Share of its tile under cloud as its metadata say, percent."""
    hidden: float | None = None
    """Share of the ground asked for that is hidden or without data that day, percent; None = not measured."""
    baseline: str = ""
    """Processing baseline."""
    offset: float | None = None
    """Digital numbers that were added to the red band's."""
    offset_from: str = ""
    """Which metadata said so."""
    dark: float | None = None
    """Digital number of the darkest pixels of its file (0.1 percentile over all bands)."""
    left_out: str = ""
    """Why it was left out; empty where it wasn't."""


def _cell(value: object) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _value(name: str, text: str) -> Any:
    if name in ("cloud_cover", "hidden", "offset", "dark"):
        return float(text) if text else None
    return text


def read_rows(folder: Path) -> list[Row]:
    """Read `items.csv`.

    Args:
        folder: Holds it; without one there are no rows.

    Returns:
        The rows, in its order.

    Raises:
        ManifestError: it is damaged.
    """
    path = folder / ITEMS
    if not path.is_file():
        return []
    names = [field.name for field in fields(Row)]
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames != names:
                raise ValueError(f"its columns are {reader.fieldnames}")
            return [Row(**{name: _value(name, row[name] or "") for name in names}) for row in reader]
    except (ValueError, TypeError, csv.Error) as error:
        raise ManifestError(f"{path} is damaged ({error}): remove it, or give --overwrite") from error


class Journal:
    """Rows of one query, written whole after each change."""

    def __init__(self, folder: Path, query: CatalogQuery, *, overwrite: bool) -> None:
        """Take over what an earlier run of the same search did.

        Args:
            folder: Where the places are.
            query: What is asked for.
            overwrite: Begin anew; the files of the earlier search are removed when this one begins to write.

        Raises:
            OutputExistsError: the folder holds files of another query, and `overwrite` is not given.
            ManifestError: its journal is damaged.
        """
        if folder.exists() and not folder.is_dir():
            raise OutputExistsError(f"{folder} is a file; expected the name of a folder to write")
        self.folder, self._asked = folder, {"format_version": VERSION, "kind": KIND, **query.to_json()}
        former = _former(folder, overwrite)
        if former not in (None, self._asked) and not overwrite and _files(folder):
            raise OutputExistsError(
                f"{folder} holds another search ({_difference(former or {}, self._asked)}) and was left as "
                "it is: name another folder, or give --overwrite"
            )
        rows = read_rows(folder) if former == self._asked and not overwrite else []
        self._stale = _files(folder) if overwrite else []
        self.rows = {row.item: row for row in rows}

    def begin(self) -> None:
        """Make the folder; what an overwritten search left there goes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self._stale:
            path.unlink(missing_ok=True)
        self._stale = []
        with writing_file(self.folder / SEARCH, overwrite=True) as path:
            path.write_text(json.dumps(self._asked, indent=1) + "\n", encoding="utf-8")
        self.save()

    def note(self, rows: Iterable[Row]) -> None:
        """Enter items, in place of what was known of them."""
        self.rows.update({row.item: row for row in rows})

    def save(self) -> None:
        """Write `items.csv`."""
        ordered = sorted(self.rows.values(), key=lambda row: (row.place, row.date, row.item))
        with (
            writing_file(self.folder / ITEMS, overwrite=True) as path,
            path.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([field.name for field in fields(Row)])
            writer.writerows([_cell(value) for value in asdict(row).values()] for row in ordered)


def _former(folder: Path, overwrite: bool) -> dict[str, Any] | None:
    path = folder / SEARCH
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None
    except (ValueError, TypeError) as error:
        if overwrite:
            return {}
        raise ManifestError(
            f"{path} is damaged ({error}): name another folder, or give --overwrite"
        ) from error


def _difference(former: dict[str, Any], asked: dict[str, Any]) -> str:
    return ", ".join(f"{k} {former.get(k)}" for k in asked if former.get(k) != asked[k])[:160]


def _files(folder: Path) -> list[Path]:
    """Files that an earlier search wrote: those of its journal that lie in the folder."""
    try:
        rows = read_rows(folder)
    except ManifestError:
        return []
    root = folder.resolve()
    paths = {(folder / row.file).resolve() for row in rows if row.file}
    return sorted(path for path in paths if path.is_relative_to(root) and path.suffix == ".tif")
