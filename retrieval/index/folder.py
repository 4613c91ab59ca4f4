"""The index folder: vectors, table of images, their pixels, and the encoder that made them.

    index/
      manifest.json     configuration, fingerprints, counts, checksums
      encoder.keras     the encoder, so that a query needs nothing but this folder
      images.csv        image_id, path, width, height, bands, crs, transform, date, windows,
                        source, datetime, baseline, cloud_cover
      vectors.faiss     opens with plain `faiss.read_index`
      pixels/<id>.npy   (h, w, b) uint16 codes of the scaled pixels

Pixels are kept as the encoder saw them: `code = round((scaled + 1) * 2047.5)`, 0 to 4095, which is
`clip(dn, 0, 4095)`, and 65535 for nodata. Files of pixels are checked against the manifest when they
are first read, the rest when the folder is opened.
"""

from __future__ import annotations

import csv
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX, Device, IndexConfig
from retrieval.errors import IndexFormatError, IndexMismatchError
from retrieval.index.builder import ImageIndexer, from_codes, load_vectors, parts_of
from retrieval.index.device import resolve_device
from retrieval.index.faiss_index import VectorIndex
from retrieval.index.kinds import Blocks, joined
from retrieval.index.recall import DEEPEST, exact_search, measure_recall
from retrieval.models.embed import embed_patches
from retrieval.models.encoder import KerasEncoder, load_encoder
from retrieval.types import Encoder, Progress, StoredImage, silent
from tfrecords.artifacts import Manifest, PartialFolder, check_file, read_manifest, writing_folder
from tfrecords.schema import Image

KIND = "index"
RECALL_QUERIES = 256
"""Windows that the recall of an index is measured with."""
LEARNED_FROM = 1_000_000
"""Windows among which codes and cells are learned, at least: those of whole images."""


# --- writing --------------------------------------------------------------------------------------


def write_index(
    images: Iterable[Image],
    out: Path,
    encoder: Encoder,
    config: IndexConfig,
    *,
    source: str,
    overwrite: bool = False,
    device: Device = "auto",
    progress: Progress = silent,
) -> None:
    """Write an index folder, whole; a run that was stopped goes on where it was.

    Args:
        images: what to index; ids distinct, in any order.
        out: the folder.
        encoder: turns pixels into vectors; kept in the folder where it is a Keras model.
        config: stride, kind, visibility.
        source: where the images come from, for the fingerprint.
        overwrite: replace a finished index.
        device: where FAISS trains and adds.
        progress: told after each image.

    Raises:
        DuplicateIdError: an image id comes twice.
        OutputExistsError: the folder is there and `overwrite` is false.
    """
    settings = {"source": source, "encoder": encoder.fingerprint, "index": config.to_dict()}
    with writing_folder(out, kind=KIND, config=settings, overwrite=overwrite) as folder:
        where = resolve_device(device)
        parts = ImageIndexer(folder, encoder, config, where)
        total = len(images) if isinstance(images, Sized) else None
        if total and isinstance(encoder, KerasEncoder):
            encoder.warm_up(total)
        for number, _ in enumerate(parts.add(images)):
            progress("indexing images", number + 1, total)
        if hasattr(encoder, "model"):
            with folder.part("encoder.keras") as path:
                encoder.model.save(path)
        write_rest(folder, parts.rows, encoder, config, where, progress)


def write_rest(
    folder: PartialFolder,
    images: Mapping[int, StoredImage],
    encoder: Encoder,
    config: IndexConfig,
    device: str,
    progress: Progress,
    former: VectorIndex | None = None,
    learned: VectorIndex | None = None,
) -> None:
    """Write what is made of all images together: the table, the vectors, what the manifest says of them.

    Args:
        folder: holds the pixels of all images, and the vectors of those that are new.
        images: the table, by id.
        encoder: made the vectors.
        config: kind of index.
        device: as `resolve_device` gives it.
        progress: told of the stages.
        former: holds the vectors of the other images.
        learned: its kind, codes and cells are taken over; None to learn anew.
    """
    rows = [images[i] for i in sorted(images)]
    windows = sum(r.windows for r in rows)
    _write_table(folder, rows)
    progress("building the vector index", 0, None)
    kind = _write_vectors(folder, rows, encoder, config, device, progress, former, learned)
    folder.counts = {"images": len(rows), "windows": windows}
    folder.extra |= {
        "kind": kind,
        "encoder": encoder.name,
        "encoder_fingerprint": encoder.fingerprint,
        "dim": encoder.dim,
    }
    folder.extra |= {"metric": "inner product of unit vectors", "pixels": "uint16 codes, 65535 = nodata"}
    shutil.rmtree(folder.path / "work", ignore_errors=True)


def _write_vectors(
    folder: PartialFolder,
    rows: list[StoredImage],
    encoder: Encoder,
    config: IndexConfig,
    device: str,
    progress: Progress,
    former: VectorIndex | None,
    learned: VectorIndex | None,
) -> str:
    """Write the vectors and measure recall; gives the kind.

    Exact search is asked while the file is written, by a thread of its own.
    """
    blocks, some, about = _blocks(folder, rows, former), _some(rows), dict[str, str]()
    waiting: list[Future[tuple[NDArray[np.float32], NDArray[np.int64]]]] = []
    with ThreadPoolExecutor(1) as beside:
        with folder.part("vectors.faiss", about) as path:
            index = VectorIndex.build(
                blocks,
                encoder.dim,
                config,
                device,
                path=path,
                count=sum(r.windows for r in rows),
                sample=(_blocks(folder, some, former), sum(r.windows for r in some)),
                learned=learned,
                added=lambda: waiting.append(
                    beside.submit(_searched, folder.path, rows, encoder, config, blocks)
                ),
            )
            about["kind"] = index.kind
        if waiting:
            progress("measuring recall", 0, None)
            asked, truth = waiting[0].result()
            if len(asked):
                how = "windows of the indexed images, at random pixels"
                folder.extra["recall"] = measure_recall(index, asked, truth, how).to_dict()
    return index.kind


def _searched(
    folder: Path, rows: list[StoredImage], encoder: Encoder, config: IndexConfig, blocks: Blocks
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Vectors to measure recall with, and what exact search finds for them."""
    asked = _off_the_grid(folder, rows, encoder, config)
    return asked, exact_search(lambda: joined(blocks()), asked, min(DEEPEST, sum(r.windows for r in rows)))


def _write_table(folder: PartialFolder, rows: list[StoredImage]) -> None:
    with folder.part("images.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(StoredImage.__dataclass_fields__)
        for r in rows:
            transform = "" if r.transform is None else " ".join(repr(float(v)) for v in r.transform)
            writer.writerow(
                [
                    r.image_id,
                    r.path,
                    r.width,
                    r.height,
                    " ".join(quote(b, safe="") for b in r.bands),  # names may hold blanks
                    r.crs or "",
                    transform,
                    r.date or "",
                    r.windows,
                    r.source,
                    r.datetime,
                    r.baseline,
                    "" if r.cloud_cover is None else r.cloud_cover,
                ]
            )


def _some(rows: list[StoredImage]) -> list[StoredImage]:
    """Images to learn codes from: all, or of many as many at random as have `LEARNED_FROM` windows."""
    order = np.random.default_rng(0).permutation(len(rows))
    windows = np.cumsum([rows[i].windows for i in order])
    few = int(np.searchsorted(windows, LEARNED_FROM)) + 1
    return [rows[i] for i in sorted(order[:few])]


def _blocks(folder: PartialFolder, rows: list[StoredImage], former: VectorIndex | None) -> Blocks:
    """The vectors of all images in the order of their ids: the new ones' own files, or a former index."""
    known = former.ids() if former else np.zeros(0, np.int64)

    def blocks() -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        for r in rows:
            part = folder.path / parts_of(r.image_id)[1]
            if part.exists():
                yield load_vectors(part)
            elif former:
                start, stop = np.searchsorted(known, [r.image_id << 32, r.image_id + 1 << 32])
                yield former.vectors(int(start), int(stop))

    return blocks


def _off_the_grid(
    folder: Path, rows: list[StoredImage], encoder: Encoder, config: IndexConfig
) -> NDArray[np.float32]:
    """Vectors of windows at random pixels of the images, as patches lie, to measure recall with."""
    rng, seen = np.random.default_rng(0), defaultdict[int, list[NDArray[np.float32]]](list)
    windows = np.array([r.windows for r in rows], float)
    for rank in rng.choice(len(rows), RECALL_QUERIES, p=windows / windows.sum()):
        codes = np.load(folder / f"pixels/{rows[rank].image_id}.npy", mmap_mode="r", allow_pickle=False)
        y, x = (rng.integers(side - PATCH_PX + 1) for side in codes.shape[:2])
        window = from_codes(np.asarray(codes[y : y + PATCH_PX, x : x + PATCH_PX]))
        if np.isnan(window).all(-1).mean() <= 1 - config.min_visible:
            seen[window.shape[-1]].append(window)
    none = np.zeros((0, encoder.dim), np.float32)
    found = np.concatenate([none, *(embed_patches(encoder, np.stack(those)) for those in seen.values())])
    return found[found.any(1)]


# --- reading --------------------------------------------------------------------------------------


class IndexFolder:
    """An opened index folder: the table, the vectors, the encoder, and pixels on demand."""

    def __init__(
        self,
        path: Path,
        *,
        encoder: Encoder | None = None,
        device: Device = "auto",
        just_written: bool = False,
    ) -> None:
        """Open and check.

        Args:
            path: the folder.
            encoder: the one that made the index, if it is at hand.
            device: where FAISS searches.
            just_written: this process has written and summed up all files a moment ago; only their sizes
                are looked at.

        Raises:
            ManifestError: a file is missing or not what was written.
            FormatVersionError: another format version.
            IndexMismatchError: `encoder` is not the one that made the index.
        """
        self.path = path
        self.manifest: Manifest = read_manifest(path, KIND, verify="sizes")
        for name in (n for n in self.manifest.files if not n.startswith("pixels/")):
            check_file(path / name, self.manifest.files[name], content=not just_written)
        self.config = IndexConfig.from_mapping(self.manifest.config["index"])
        self.encoder = self._encoder(encoder)
        self.images = {r.image_id: r for r in _read_table(path / "images.csv")}
        kind: Any = self.manifest.extra["kind"]
        self.vectors = VectorIndex.open(
            path / "vectors.faiss",
            kind,
            self.config.nprobe,
            resolve_device(device),
            self.config.rerank_k,
        )
        if self.vectors.dim != self.encoder.dim or len(self.vectors) != self.manifest.counts["windows"]:
            raise IndexFormatError(
                f"{path}: vectors and manifest do not fit each other; build the index again"
            )
        self._checked: set[int] = set()

    def _encoder(self, given: Encoder | None) -> Encoder:
        """The encoder in the folder, or the one given, if it is the one that made the index."""
        made_by, name = self.manifest.extra["encoder_fingerprint"], self.manifest.extra["encoder"]
        if given is None:
            if "encoder.keras" not in self.manifest.files:
                raise IndexMismatchError(
                    f"{self.path} was made with {name!r}, which it does not hold: give that encoder"
                )
            given = load_encoder(self.path / "encoder.keras")
            given.name = name
        if given.fingerprint != made_by:
            raise IndexMismatchError(
                f"{self.path} was made with encoder {name!r} ({made_by[:12]}), not with {given.name!r} "
                f"({given.fingerprint[:12]}): use that one, or build the index again"
            )
        return given

    def bands(self, image_id: int) -> tuple[str, ...]:
        """Names of an image's bands."""
        return self.images[image_id].bands

    def size(self, image_id: int) -> tuple[int, int]:
        """Height and width of an image, in pixels."""
        image = self.images[image_id]
        return image.height, image.width

    def scaled(self, image_id: int, window: tuple[int, int, int, int] | None = None) -> NDArray[np.float32]:
        """An image's pixels, (h, w, b) scaled, NaN = nodata.

        Args:
            image_id: which.
            window: x, y, width and height of a part, which is all that is read then.

        Raises:
            ManifestError: the file is not what was written.
        """
        name = f"pixels/{image_id}.npy"
        if image_id not in self._checked:
            check_file(self.path / name, self.manifest.files[name], content=True)
            self._checked.add(image_id)
        if window is None:
            return from_codes(np.load(self.path / name, allow_pickle=False))
        x, y, width, height = window
        codes = np.load(self.path / name, mmap_mode="r", allow_pickle=False)
        return from_codes(np.asarray(codes[y : y + height, x : x + width]))


def _read_table(path: Path) -> list[StoredImage]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [
        StoredImage(
            int(r["image_id"]),
            r["path"],
            int(r["width"]),
            int(r["height"]),
            tuple(unquote(b) for b in r["bands"].split()),
            r["crs"] or None,
            tuple(map(float, r["transform"].split())) if r["transform"] else None,
            r["date"] or None,
            int(r["windows"]),
            r.get("source") or "",  # folders of earlier releases have none of these four
            r.get("datetime") or "",
            r.get("baseline") or "",
            float(r["cloud_cover"]) if r.get("cloud_cover") else None,
        )
        for r in rows
    ]
