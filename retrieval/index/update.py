"""An index that grows and shrinks: images put into a finished one and taken out, the others left as they are.

The new folder is made beside the old one, as any other: pixels of images that stay are links to the same
files, their vectors are read from the old index, and only new images are embedded. Old and new then change
places in one step. Whatever stops it, the old index is there and whole, and the same call goes on.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from retrieval.config import Device, IndexKind
from retrieval.errors import IndexMismatchError
from retrieval.index.builder import ImageIndexer, to_codes
from retrieval.index.device import resolve_device
from retrieval.index.faiss_index import VectorIndex
from retrieval.index.folder import KIND, IndexFolder, write_rest
from retrieval.index.kinds import choose_kind
from retrieval.types import Encoder, Progress, StoredImage, silent
from tfrecords.artifacts import MANIFEST, PartialFolder, digest, recover, writing_folder
from tfrecords.errors import DuplicateIdError, MissingInputError
from tfrecords.read import ImageSource
from tfrecords.schema import Image

RELEARN = 2
"""Codes and cells are learned anew when an index has so many times the windows they were learned from."""


@dataclass(frozen=True)
class Change:
    """What became of an index."""

    added: tuple[int, ...]
    """Ids of the images that were put in, ascending."""
    removed: tuple[int, ...]
    """Ids of those that were taken out, ascending."""
    present: int
    """How many were to be put in and are in it already, with the same pixels: left out."""


def add_images(
    images: ImageSource,
    out: Path,
    *,
    source: str,
    encoder: Encoder | None = None,
    stride_px: int | None = None,
    kind: IndexKind | None = None,
    overwrite: bool = False,
    device: Device = "auto",
    progress: Progress = silent,
) -> Change:
    """Put images into a finished index.

    Images that bring ids of their own (records) keep them. Others get the numbers behind the largest that
    the index ever used, in their order; one that is in it already, of the same file and with the same
    pixels, is left out.

    Args:
        images: what to put in.
        out: the index.
        source: where the images come from, for the fingerprint.
        encoder: refused if it is not the one that made the index; None takes that one.
        stride_px: likewise.
        kind: likewise.
        overwrite: begin an unfinished change of other settings anew.
        device: where FAISS trains and adds.
        progress: told after each image.

    Raises:
        IndexMismatchError: another encoder, stride or kind than the index's.
        DuplicateIdError: an image brings an id that is in the index.
        UnfinishedOutputError: another change was stopped and is waiting.
    """
    base = _open(out, encoder)
    _check_same(base, stride_px, kind)
    numbered = _Numbered(images, base)
    new = iter(numbered)
    first = next(new, None)
    if first is None:
        return Change((), (), numbered.present)
    with _changing(base, {"added": source}, overwrite) as folder:
        _keep(folder, base, base.images)
        parts = ImageIndexer(folder, base.encoder, base.config, resolve_device(device))
        for number, _ in enumerate(parts.add(chain([first], new))):
            progress("indexing images", number + 1, None)
        _finish(folder, base, {**base.images, **parts.rows}, device, progress)
    return Change(tuple(sorted(parts.rows)), (), numbered.present)


def remove_images(
    out: Path,
    names: Sequence[str | int],
    *,
    overwrite: bool = False,
    device: Device = "auto",
    progress: Progress = silent,
    encoder: Encoder | None = None,
) -> Change:
    """Take images out of a finished index.

    Args:
        out: the index.
        names: each an image's id, its path as `images.csv` has it, or the end of that path, such as the
            file's name, where only one image ends so.
        overwrite: begin an unfinished change of other settings anew.
        device: where FAISS adds.
        progress: told of the stages.
        encoder: only for an index that was made with an encoder that is no Keras model.

    Raises:
        MissingInputError: no image, or several, of such a name; or none would be left.
        UnfinishedOutputError: another change was stopped and is waiting.
    """
    base = _open(out, encoder)
    gone = {_named(str(name), base) for name in names}
    kept = {i: row for i, row in base.images.items() if i not in gone}
    if not kept:
        raise MissingInputError(f"{out} would have no image left: remove the folder itself")
    with _changing(base, {"removed": sorted(gone)}, overwrite) as folder:
        _keep(folder, base, kept)
        _finish(folder, base, kept, device, progress)
    return Change((), tuple(sorted(gone)), 0)


def _open(out: Path, encoder: Encoder | None) -> IndexFolder:
    recover(out.absolute())
    return IndexFolder(out, encoder=encoder, device="cpu")


def _check_same(base: IndexFolder, stride_px: int | None, kind: IndexKind | None) -> None:
    """Refuse other settings than the index's; those that are not given are the index's."""
    for flag, asked, has in (
        ("--stride", stride_px, (base.config.stride_px,)),
        ("--kind", kind, (base.config.kind, base.vectors.kind)),
    ):
        if asked is not None and asked not in has:
            raise IndexMismatchError(
                f"{base.path} was built with {flag} {has[0]}, not {asked}: leave {flag} out, or build the "
                "index again from all images"
            )


def _changing(
    base: IndexFolder, what: Mapping[str, Any], overwrite: bool
) -> AbstractContextManager[PartialFolder]:
    """The new folder in the making; of another state of the index it is not gone on with."""
    settings = {
        **what,
        "encoder": base.encoder.fingerprint,
        "index": base.config.to_dict(),
        "former": digest(base.path / MANIFEST),
    }
    return writing_folder(base.path, kind=KIND, config=settings, overwrite=overwrite or "finished")


def _keep(folder: PartialFolder, base: IndexFolder, images: Iterable[int]) -> None:
    """Take the encoder and the pixels of images over."""
    names = ["encoder.keras", *(f"pixels/{i}.npy" for i in images)]
    folder.adopt(base.path, {n: base.manifest.files[n] for n in names if n in base.manifest.files})


def _finish(
    folder: PartialFolder,
    base: IndexFolder,
    images: Mapping[int, StoredImage],
    device: Device,
    progress: Progress,
) -> None:
    """Write table and vectors of all images, and what later changes have to know."""
    where, windows = resolve_device(device), sum(r.windows for r in images.values())
    learned = _still_good(base, windows, where)
    write_rest(
        folder, images, base.encoder, base.config, where, progress, former=base.vectors, learned=learned
    )
    folder.extra["learned_from"] = _learned_from(base) if learned else windows
    folder.extra["largest_id"] = max(_largest_id(base), *images)


def _still_good(base: IndexFolder, windows: int, device: str) -> VectorIndex | None:
    """The index, where what it has learned fits so many windows too; None to learn anew.

    An exact index has learned nothing and is made as from the images. The others keep half-precision
    vectors, from which no exact one is made again when images are taken out.
    """
    if base.vectors.kind == "exact":
        return None
    kind = choose_kind(base.config.kind, windows, base.config, device)
    times = max(1, windows) / max(1, _learned_from(base))
    near = 1 / RELEARN <= times <= RELEARN and kind == base.vectors.kind
    return base.vectors if near or kind == "exact" else None


def _learned_from(base: IndexFolder) -> int:
    return int(base.manifest.extra.get("learned_from", base.manifest.counts["windows"]))


def _largest_id(base: IndexFolder) -> int:
    return max(int(base.manifest.extra.get("largest_id", -1)), *base.images)


class _Numbered:
    """Images under the ids that they get in an index; counts those that are in it already."""

    def __init__(self, images: ImageSource, base: IndexFolder) -> None:
        self._images, self._base, self.present = images, base, 0
        self._ids: dict[str, list[int]] = defaultdict(list)
        for image_id, row in sorted(base.images.items()):
            self._ids[row.path].append(image_id)

    def __iter__(self) -> Iterator[Image]:
        following, seen = _largest_id(self._base) + 1, Counter[str]()
        for image in self._images:
            if self._images.own_ids:
                yield self._not_in_the_index(image)
                continue
            rank = seen[image.path]
            seen[image.path] += 1
            if self._is_present(image, rank):
                self.present += 1
            else:
                yield replace(image, image_id=following)
                following += 1

    def _not_in_the_index(self, image: Image) -> Image:
        row = self._base.images.get(image.image_id)
        if row is not None:
            raise DuplicateIdError(
                f"image id {image.image_id} of {image.path or 'the images to be added'} is that of "
                f"{row.path or 'an image'} in {self._base.path}: give the new one another id, or take the "
                f"old one out first with --remove {image.image_id}"
            )
        return image

    def _is_present(self, image: Image, rank: int) -> bool:
        """Whether the index has the image: the same file, as many images of it before, the same pixels."""
        ids = self._ids.get(image.path, []) if image.path else []
        if rank >= len(ids):
            return False
        known = np.load(self._base.path / f"pixels/{ids[rank]}.npy", mmap_mode="r", allow_pickle=False)
        return bool(np.array_equal(known, to_codes(image.scaled())))


def _named(name: str, base: IndexFolder) -> int:
    """The id of the image that is meant."""
    if name.isdecimal() and int(name) in base.images:
        return int(name)
    asked = PurePosixPath(name).parts
    ends = [
        i for i, r in base.images.items() if asked and PurePosixPath(r.path).parts[-len(asked) :] == asked
    ]
    found = [i for i in ends if base.images[i].path == name] or ends
    if len(found) != 1:
        among = f"{len(found)} images, {', '.join(map(str, found[:5]))}," if found else "none"
        raise MissingInputError(
            f"{name!r} names {among} of {len(base.images)} in {base.path}; expected an image_id or a path of "
            f"{base.path / 'images.csv'}"
        )
    return found[0]
