"""What an index folder is made of, image by image: pixels and vectors, each a part that is written whole.

Pixels are kept as the encoder saw them: `code = round((scaled + 1) * 2047.5)`, 0 to 4095, which is
`clip(dn, 0, 4095)`, and 65535 for nodata. Vectors wait in files of their own until those of all images are
put into one index: of half precision from where on there are too many for an exact one, which alone keeps
more. That is half of what is written, and the disk may be what an index waits for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import IndexConfig
from retrieval.index.kinds import most_exact
from retrieval.index.vector_file import to_float16
from retrieval.kernels.compiled import ahead
from retrieval.models.embed import embed_image
from retrieval.types import Encoder, StoredImage, WindowVectors, pack_ids
from tfrecords.artifacts import PartialFolder
from tfrecords.errors import DuplicateIdError
from tfrecords.schema import Image

NODATA = np.uint16(65535)
"""Code of a pixel that is not known."""
AHEAD_PX = 1 << 22
"""Pixels of images that are embedded side by side, about: a larger image is embedded alone."""
LEVELS = 4095
"""Largest code of a known pixel."""


class ImageIndexer:
    """Adds images: pixels and vectors, each a part that a later run need not make again."""

    def __init__(
        self, folder: PartialFolder, encoder: Encoder, config: IndexConfig, device: str = "cpu"
    ) -> None:
        """Begin.

        Args:
            folder: holds the parts.
            encoder: makes the vectors.
            config: stride, visibility, kind of index.
            device: "cpu" or "gpu", which decides up to how many windows the index is exact.
        """
        self._folder, self._encoder, self._config = folder, encoder, config
        self._exact_to, self._windows = most_exact(config, device), 0
        self.rows: dict[int, StoredImage] = {}

    def add(self, images: Iterable[Image]) -> Iterator[StoredImage]:
        """Write the pixels and vectors of images, unless an earlier run has, with the same pixels.

        Several are embedded side by side; they are read and written by the caller's thread alone.

        Yields:
            The row of each, once it is written.

        Raises:
            DuplicateIdError: an image id comes twice.
        """
        drawn = self._drawn(images)
        for made in ahead(self._made, drawn, lambda d: d[0].width * d[0].height, AHEAD_PX):
            row = self._written(*made)
            del made  # before the next is read: it may be large
            self.rows[row.image_id] = row
            yield row

    def _written(self, image: Image, codes: NDArray[np.uint16], found: WindowVectors | None) -> StoredImage:
        """Write what was made of an image."""
        pixels, vectors = parts_of(image.image_id)
        if found:
            with self._folder.part(pixels) as path:
                np.save(path, codes, allow_pickle=False)
            ids = pack_ids(np.full(len(found.xy), image.image_id), found.xy[:, 0], found.xy[:, 1])
            few = self._windows + len(ids) <= self._exact_to
            meta = {"windows": len(ids)} | ({} if few else {"exact_to": self._exact_to})
            with self._folder.part(vectors, meta) as path:
                _save_vectors(path, ids, found.vectors if few else to_float16(found.vectors))
        windows = int(self._folder.meta(vectors)["windows"])
        self._windows += windows
        return _row(image, windows)

    def _drawn(self, images: Iterable[Image]) -> Iterator[tuple[Image, bool]]:
        """Images, and whether an earlier run has made the parts of each."""
        seen = set[int]()
        for image in images:
            if image.image_id in seen:
                raise DuplicateIdError(
                    f"image id {image.image_id} comes twice (again in {image.path or 'the array'}); expected "
                    "distinct ids"
                )
            seen.add(image.image_id)
            yield image, self._done(image.image_id)

    def _done(self, image_id: int) -> bool:
        """Whether an earlier run has made the parts of an image, and keeps what this one needs of vectors."""
        pixels, vectors = parts_of(image_id)
        if not (self._folder.done(pixels) and self._folder.done(vectors)):
            return False
        # Of half precision where no index of so many was exact; a GPU has exact ones of more.
        return bool(self._exact_to <= self._folder.meta(vectors).get("exact_to", np.inf))

    def _made(self, drawn: tuple[Image, bool]) -> tuple[Image, NDArray[np.uint16], WindowVectors | None]:
        """An image's codes and vectors; None where those of the earlier run are of the same pixels."""
        image, done = drawn
        codes = to_codes(image.scaled())
        before = self._folder.path / parts_of(image.image_id)[0]
        if done and np.array_equal(np.load(before, allow_pickle=False), codes):
            return image, codes, None
        return image, codes, embed_image(self._encoder, from_codes(codes), self._config)


def parts_of(image_id: int) -> tuple[str, str]:
    """Names of an image's parts: its pixels, its vectors."""
    return f"pixels/{image_id}.npy", f"work/{image_id}.npy"


def _row(image: Image, windows: int) -> StoredImage:
    known = {
        f: getattr(image, f)
        for f in ("image_id", "path", "width", "height", "bands", "crs", "transform", "date")
    }
    known |= {f: getattr(image.provenance, f) for f in ("source", "datetime", "baseline", "cloud_cover")}
    return StoredImage(**known, windows=windows)


def _save_vectors(path: Path, ids: NDArray[np.int64], vectors: NDArray[Any]) -> None:
    """One file of two arrays: the vectors first, so that they can be mapped, their ids behind them."""
    with path.open("wb") as file:
        np.save(file, vectors, allow_pickle=False)
        np.save(file, ids, allow_pickle=False)


def load_vectors(path: Path) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Read what an image's part of vectors holds.

    Returns:
        Ids (m,), and vectors (m, dim) of single or half precision, read from the file as they are used.
    """
    vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    with path.open("rb") as file:
        file.seek(vectors.offset + vectors.nbytes)
        return np.load(file, allow_pickle=False), np.asarray(vectors)


def to_codes(scaled: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Scaled pixels as codes: [-1, 1] -> 0..4095, NaN -> 65535."""
    codes = scaled + np.float32(1)
    codes *= np.float32(LEVELS / 2)
    np.rint(codes, out=codes)
    np.copyto(codes, np.float32(NODATA), where=np.isnan(codes))
    return codes.astype(np.uint16)


def from_codes(codes: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Undo `to_codes`; what was rounded stays rounded."""
    scaled: NDArray[np.float32] = np.divide(codes, np.float32(LEVELS / 2), dtype=np.float32)
    scaled -= np.float32(1)
    np.copyto(scaled, np.float32(np.nan), where=codes == NODATA)
    return scaled
