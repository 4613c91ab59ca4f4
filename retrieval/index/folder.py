"""The index folder: what it holds, and how it is opened.

    index/
      manifest.json     configuration, fingerprints, counts, checksums
      encoder.keras     the encoder, so that a query needs only this folder
      encoder.calibration.json, encoder.chips.calibration.json
                        its calibrations, unless they are the shipped ones
      images.csv        image_id, path, width, height, bands, crs, transform, date, windows,
                        source, datetime, baseline, cloud_cover, orientation, clipped
      vectors.faiss     opens with plain `faiss.read_index`
      parts.bin, parts.faiss
                        parts of windows, see `IndexConfig.parts`
      pixels/<id>.npy   (h, w, b) uint16 codes of the scaled pixels

Pixels are stored as the encoder saw them: as digital numbers, 0 to 65534, and 65535 for nodata. Scaled pixels
up to 1 have the code `round((scaled + 1) * 2047.5)`. Brighter ones expand the logarithm of
`tfrecords.schema.compress_bright`. Version 1 has codes up to 4095 alone, with the same meaning.

A pixel file is checked against the manifest when it is first read, all other files when the folder is opened.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from io import BufferedReader
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, Literal, Self
from urllib.parse import quote, unquote

import numpy as np
from numpy.typing import NDArray

from retrieval.config import Device, IndexConfig
from retrieval.errors import IndexFormatError, IndexMismatchError
from retrieval.index.device import resolve_device
from retrieval.index.faiss_index import VectorIndex
from retrieval.index.file_paths import PATHS_FROM, FilePaths
from retrieval.index.parts import PARTS, PartsIndex
from retrieval.index.recall import Recall
from retrieval.index.without_windows import stored_reasons
from retrieval.models.calibration import calibrations_beside
from retrieval.models.encoder import load_encoder
from retrieval.types import Encoder, StoredImage
from tfrecords.artifacts import MANIFEST, Manifest, check_file, digest, read_manifest
from tfrecords.errors import ManifestError, MissingInputError
from tfrecords.remote import fetch, incomplete_copy, local_folder, url_of
from tfrecords.schema import compress_bright, expand_bright

KIND = "index"
"""Kind of the folder in its manifest."""
TABLE = "images.csv"
SHARDS = "shards.json"
"""File that joins several index folders; see `retrieval.distributed.shards`."""
OPENINGS = 20
"""Attempts to open a folder that other processes replace at the same time."""
NODATA = np.uint16(65535)
"""Code of a nodata pixel."""
MAX_CODE = 4095
"""Code of scaled 1; codes above it are compressed by a logarithm in scaled pixels."""


class IndexFolder:
    """An opened index folder: table, vectors, encoder, and pixels on demand."""

    origin: str | None = None
    """URL that the folder is a copy of, or None; other machines make a copy, too."""

    def __init__(
        self,
        path: Path,
        *,
        encoder: Encoder | None = None,
        device: Device = "auto",
        just_written: bool = False,
    ) -> None:
        """Open and check a folder.

        Args:
            path: the folder.
            encoder: the encoder that made the index, if the caller has it; None loads it from the folder.
            device: where FAISS searches.
            just_written: this process wrote the files a moment ago; check their sizes only.

        Raises:
            ManifestError: a file is missing or was changed.
            FormatVersionError: another format version.
            IndexMismatchError: `encoder` did not make the index, or other processes replace it all the time.
        """
        self.path, self._opened_with = path, (encoder, device)
        for attempt in range(OPENINGS):
            self.version = self._read_version()
            try:
                self._open(encoder, device, just_written)
            except Exception:
                # Another process may have replaced the folder in between: its files do not fit each other.
                if self._read_version() == self.version or attempt == OPENINGS - 1:
                    raise
            else:
                if self._read_version() == self.version:
                    return
        raise self.changed()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the folder's path; a process opens the folder once."""
        encoder, device = self._opened_with
        held = "encoder.keras" in self.manifest.files
        place = self.origin or str(self.path.absolute())
        return _unpickled, (place, self.version, None if held else encoder, device)

    def _open(self, encoder: Encoder | None, device: Device, just_written: bool) -> None:
        """Read all files but the pixels."""
        path = self.path
        self.manifest: Manifest = read_index_manifest(path, verify=False)
        lacks_pixels = incomplete_copy(path / "pixels") is not None
        for name, known in self.manifest.files.items():
            if not (lacks_pixels and is_pixels(name)) or (path / name).exists():
                check_file(path / name, known, content=not just_written and not is_pixels(name))
        self.config = IndexConfig.from_mapping(self.manifest.config["index"])
        self.encoder = self._check_encoder(encoder)
        self.images = {row.image_id: row for row in read_table(path / TABLE)}
        self.vectors = VectorIndex.open(
            path / "vectors.faiss",
            self.manifest.extra["kind"],
            self.config.nprobe,
            resolve_device(device),
            self.config.rerank_k,
        )
        if self.vectors.dim != self.encoder.dim or len(self.vectors) != self.manifest.counts["windows"]:
            raise IndexFormatError(
                f"{path}: vectors.faiss and {path.name}/manifest.json do not fit each other. Build the index "
                "again."
            )
        self.parts = PartsIndex.open(path) if PARTS in self.manifest.files else None
        self._checked: dict[int, tuple[int, int, int]] = {}
        self._headers: dict[int, _Header] = {}

    def changed(self) -> IndexMismatchError:
        """Return the error of an index that was changed while it was open."""
        return IndexMismatchError(f"{self.path} was changed while it was in use. Run the command again.")

    def is_current(self) -> bool:
        """Return whether no other process has changed the index since it was opened."""
        return self._read_version() == self.version

    def _read_version(self) -> str:
        """Return the sha256 of the manifest; empty where it cannot be read."""
        try:
            return digest(self.path / MANIFEST)
        except OSError:
            return ""

    def _check_encoder(self, encoder: Encoder | None) -> Encoder:
        """Return the given encoder, or the folder's, if it made the index."""
        made_by, name = self.manifest.extra["encoder_fingerprint"], self.manifest.extra["encoder"]
        if encoder is None:
            if "encoder.keras" not in self.manifest.files:
                raise IndexMismatchError(
                    f"{self.path} was made with {name!r}, which it does not hold: give that encoder"
                )
            encoder = load_encoder(self.path / "encoder.keras")
            encoder.name = name
        if encoder.fingerprint != made_by:
            raise IndexMismatchError(
                f"{self.path} was made with encoder {name!r} ({made_by[:12]}), not with {encoder.name!r} "
                f"({encoder.fingerprint[:12]}): use the former, or build the index again"
            )
        if calibrations := tuple(calibrations_beside(self.path / "encoder.keras")):
            encoder.calibrations = calibrations
        return encoder

    @property
    def without_windows(self) -> dict[int, str]:
        """Images that no query finds, and why: the reason by id, "" where the index did not store it."""
        return stored_reasons(self.images, self.manifest.extra)

    def bands(self, image_id: int) -> tuple[str, ...]:
        """Return the names of an image's bands."""
        return self.images[image_id].bands

    def size(self, image_id: int) -> tuple[int, int]:
        """Return height and width of an image, in pixels."""
        image = self.images[image_id]
        return image.height, image.width

    def scaled(self, image_id: int, window: tuple[int, int, int, int] | None = None) -> NDArray[np.float32]:
        """Return an image's pixels, (h, w, b) scaled, NaN = nodata.

        Args:
            image_id: the image.
            window: x, y, width and height of the part to read; None reads the whole image.

        Raises:
            ManifestError: the file was changed.
            IndexMismatchError: another process replaced or removed the image since the index was opened.
        """
        if window is None:
            with self._pixel_file(image_id) as file:
                return from_codes(np.load(file, allow_pickle=False))
        x, y, width, height = window
        return from_codes(np.asarray(self._mapped_codes(image_id)[y : y + height, x : x + width]))

    def squares(self, image_id: int, corners: NDArray[np.int64], side: int) -> NDArray[np.float32]:
        """Return squares of an image, (n, side, side, b) scaled, NaN = nodata.

        Args:
            image_id: the image.
            corners: (n, 2) x and y of each, all of it inside the image.
            side: in pixels.

        Raises:
            ManifestError: the file was changed.
            IndexMismatchError: another process replaced or removed the image since the index was opened.
        """
        from retrieval.kernels.numba_loops import look_up_squares

        codes = np.ascontiguousarray(self._mapped_codes(image_id))  # mapped, not copied, as we write it
        scaled = np.empty((len(corners), side, side, codes.shape[2]), np.float32)
        look_up_squares(codes, corners, _scaled_of_all_codes(), scaled)
        return scaled

    def stored_codes(self, image_id: int) -> NDArray[np.uint16]:
        """Return an image's pixels (h, w, b) as they are stored, from the file when they are read."""
        with self._open_file(f"pixels/{image_id}.npy") as file:
            codes: NDArray[np.uint16] = np.load(file.name, mmap_mode="r", allow_pickle=False)
        return codes

    def file_paths(self) -> FilePaths:
        """Return what the paths of the table mean."""
        return FilePaths(self.path, self.manifest.extra.get(PATHS_FROM))

    def _mapped_codes(self, image_id: int) -> NDArray[np.uint16]:
        """Map an image's pixels. Its header is parsed once: `_pixel_file` vouches for the same content."""
        with self._pixel_file(image_id) as file:
            if image_id not in self._headers:
                self._headers[image_id] = _Header.read(file)
            return self._headers[image_id].mapped(file)

    def _open_file(self, name: str) -> BufferedReader:
        """Open a file of the folder; it is copied first where it is still at the URL of the index only."""
        try:
            return (self.path / name).open("rb")
        except FileNotFoundError:
            try:
                if not fetch(self.path / name, self.manifest.files[name]):
                    raise
            except MissingInputError as error:
                raise self.changed() from error
            return (self.path / name).open("rb")

    def _pixel_file(self, image_id: int) -> BinaryIO:
        """Open a file of pixels, and compare its content with the manifest unless that was done before.

        A change of the index links or replaces files, so another file has another number in the file system.
        """
        name = f"pixels/{image_id}.npy"
        path, known = self.path / name, self.manifest.files[name]
        try:
            file = self._open_file(name)
        except OSError as err:
            if not self.is_current():
                raise self.changed() from err
            check_file(path, known, content=False)
            raise
        status = os.fstat(file.fileno())
        stamp = status.st_ino, status.st_size, status.st_mtime_ns
        if self._checked.get(image_id) != stamp:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            if (status.st_size, sha256) != (known["bytes"], known["sha256"]):
                file.close()
                if not self.is_current():
                    raise self.changed()
                check_file(path, known, content=True)
            self._checked[image_id] = stamp
        return file


_unpickled_folders: dict[tuple[str, str], IndexFolder] = {}
_UNPICKLING = Lock()


def _unpickled(place: str, version: str, encoder: Encoder | None, device: Device) -> IndexFolder:
    """Open the folder that `IndexFolder.__reduce__` packed, unless this process has it open.

    Raises:
        IndexMismatchError: the folder was changed since.
    """
    with _UNPICKLING:
        if (place, version) not in _unpickled_folders:
            url = url_of(place)
            folder = IndexFolder(
                local_folder(url, is_pixels) if url else Path(place), encoder=encoder, device=device
            )
            folder.origin = url
            if folder.version != version:
                raise folder.changed()
            _unpickled_folders.clear()
            _unpickled_folders[place, version] = folder
        return _unpickled_folders[place, version]


@dataclass(frozen=True)
class _Header:
    """Where the pixels of a `.npy` file lie."""

    dtype: np.dtype[np.uint16]
    shape: tuple[int, ...]
    order: Literal["C", "F"]
    offset: int
    """Bytes before the pixels."""

    @classmethod
    def read(cls, file: BinaryIO) -> Self:
        """Read the header of an open file."""
        np.lib.format.read_magic(file)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        return cls(dtype, shape, "F" if fortran else "C", file.tell())

    def mapped(self, file: BinaryIO) -> NDArray[np.uint16]:
        """Map the open file; a path could lead to another file in the meantime."""
        return np.memmap(file, self.dtype, "r", self.offset, self.shape, self.order)


def is_pixels(name: str) -> bool:
    """Return whether a file of an index, by its relative POSIX name, holds the pixels of an image."""
    return name.split("/")[-2:-1] == ["pixels"]


def read_index_manifest(path: Path, *, verify: bool | Literal["sizes"] = True) -> Manifest:
    """Read an index's manifest, with names of 0.1.0 replaced by today's; see `read_manifest`."""
    if (path / SHARDS).is_file():
        raise ManifestError(
            f"{path}: it holds an index in shards; expected a single index. Name one of its shards."
        )
    manifest = read_manifest(path, KIND, verify=verify)
    if "recall" not in manifest.extra:
        return manifest
    recall = Recall.from_mapping(manifest.extra["recall"]).to_dict()
    return replace(manifest, extra=manifest.extra | {"recall": recall})


# --- codes of pixels ------------------------------------------------------------------------------


def to_codes(scaled: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return scaled pixels as codes: [-1, 1] becomes 0 to 4095, more up to 65534, NaN becomes 65535."""
    codes = scaled + np.float32(1)
    codes *= np.float32(MAX_CODE / 2)
    expand_bright(codes)
    np.rint(codes, out=codes)
    np.copyto(codes, np.float32(NODATA), where=np.isnan(codes))
    return codes.astype(np.uint16)


def from_codes(codes: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return codes as scaled pixels, NaN = nodata; undoes `to_codes` but for its rounding."""
    from retrieval.kernels.numba_loops import look_up

    scaled = np.empty(codes.shape, np.float32)
    look_up(np.ascontiguousarray(codes).reshape(-1), _scaled_of_all_codes(), scaled.reshape(-1))
    return scaled


@cache
def _scaled_of_all_codes() -> NDArray[np.float32]:
    """Scaled pixels of all codes, (65536,)."""
    scaled = np.arange(1 << 16, dtype=np.float32)
    compress_bright(scaled)
    scaled /= np.float32(MAX_CODE / 2)
    scaled -= np.float32(1)
    scaled[NODATA] = np.nan
    return scaled


# --- table of images ------------------------------------------------------------------------------


def write_table(path: Path, rows: Iterable[StoredImage]) -> None:
    """Write `images.csv`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(StoredImage.__dataclass_fields__)
        writer.writerows(table_cells(row) for row in rows)


def table_cells(row: StoredImage) -> list[Any]:
    """Return the cells of an image in `images.csv`, in the order of the record's fields; None is empty."""
    cells = {name: getattr(row, name) for name in StoredImage.__dataclass_fields__}
    cells["bands"] = " ".join(quote(band, safe="") for band in row.bands)  # names may hold blanks
    if row.transform is not None:
        cells["transform"] = " ".join(repr(float(v)) for v in row.transform)
    return ["" if value is None else value for value in cells.values()]


def read_table(path: Path) -> list[StoredImage]:
    """Read `images.csv`; version 1 has no column `clipped`, its first builds none after `windows`."""
    with path.open(newline="", encoding="utf-8") as file:
        return [_from_cells(cells) for cells in csv.DictReader(file)]


def _from_cells(cells: dict[str, str]) -> StoredImage:
    return StoredImage(
        image_id=int(cells["image_id"]),
        path=cells["path"],
        width=int(cells["width"]),
        height=int(cells["height"]),
        bands=tuple(unquote(band) for band in cells["bands"].split()),
        crs=cells["crs"] or None,
        transform=tuple(map(float, cells["transform"].split())) if cells["transform"] else None,
        date=cells["date"] or None,
        windows=int(cells["windows"]),
        source=cells.get("source") or "",
        datetime=cells.get("datetime") or "",
        baseline=cells.get("baseline") or "",
        cloud_cover=float(cells["cloud_cover"]) if cells.get("cloud_cover") else None,
        orientation=int(cells.get("orientation") or 1),
        clipped=cells.get("clipped", "True") == "True",
    )
