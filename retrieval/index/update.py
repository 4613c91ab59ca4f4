"""Add images to a finished index, or remove images from it.

The new folder is made next to the old one. Pixels of images that stay are hard links to the same files, and
their vectors are read from the old index. Only new and changed images are embedded. Then the two folders are
exchanged in one step. If the change is interrupted, the old index is still whole, and the same call resumes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from retrieval.config import Device, IndexKind
from retrieval.errors import IndexMismatchError
from retrieval.index.additions import Additions, largest_id
from retrieval.index.builder import ImageIndexer, Previous, finish_index
from retrieval.index.device import resolve_device
from retrieval.index.faiss_index import VectorIndex
from retrieval.index.file_paths import PATHS_FROM, paths_entry
from retrieval.index.folder import KIND, TABLE, IndexFolder
from retrieval.index.image_parts import part_names
from retrieval.index.kinds import choose_kind
from retrieval.index.without_windows import warn_without_windows
from retrieval.types import Encoder, Progress, StoredImage, silent
from tfrecords.artifacts import PartialFolder, recover, writing_folder
from tfrecords.errors import MissingInputError
from tfrecords.read import ImageSource

RETRAIN_FACTOR = 2
"""Codes and cells are trained again when the index has this many times the windows that trained them."""


@dataclass(frozen=True)
class Change:
    """The result of a change."""

    added: tuple[int, ...]
    """Ids of the images that were added, ascending."""
    removed: tuple[int, ...]
    """Ids of the images that were removed, ascending."""
    present: int
    """Number of images that the index holds unchanged."""
    replaced: tuple[int, ...] = ()
    """Ids of the images that replaced an earlier version of the same scene, ascending."""
    outdated: tuple[int, ...] = ()
    """Ids of images whose file was given, but no longer holds them; they stay, ascending."""


def add_images(
    images: ImageSource,
    out: Path,
    *,
    source: str,
    encoder: Encoder | None = None,
    stride_px: int | None = None,
    kind: IndexKind | None = None,
    restart: bool = False,
    device: Device = "auto",
    progress: Progress = silent,
) -> Change:
    """Add images to a finished index.

    Images with ids of their records keep them. Others get the numbers after the largest id that the index
    ever used, in their order. A scene that the index holds is left alone if nothing changed, else replaced
    under its id; `retrieval.index.additions` says what counts as the same scene.

    Args:
        images: the images to add.
        out: the index.
        source: where the images come from; part of the fingerprint.
        encoder: must be the encoder that made the index; None takes it from the index.
        stride_px: must be the index's stride; None takes it from the index.
        kind: must be the index's kind; None takes it from the index.
        restart: discard an interrupted change with other settings.
        device: where FAISS trains and adds.
        progress: called after each image.

    Raises:
        IndexMismatchError: the index has another encoder, stride or kind, or another process changed it.
        DuplicateIdError: the index holds an image of another file with the same id.
        NoWindowsError: no image has a window, neither old nor new.
        UnfinishedOutputError: another change of the index was interrupted.

    Warns:
        NoWindowsWarning: some new images have no window.
    """
    base = _open(out, encoder)
    check_same(base, stride_px, kind)
    additions = Additions(images, base)
    new_images = iter(additions)
    if (first := next(new_images, None)) is None:
        return summarize(additions, ())
    with _writing_change(base, {"added": source}, restart) as folder:
        indexer = ImageIndexer(folder, base.encoder, base.config, resolve_device(device))
        for number, _ in enumerate(indexer.add(chain([first], new_images))):
            progress("indexing images", number + 1, None)
        _adopt(folder, base, sorted(base.images.keys() - indexer.rows.keys()))
        images_now = {**base.images, **indexer.rows}
        _finish(folder, base, images_now, indexer.reasons, device, progress, indexer.rows)
        warn_without_windows(indexer.rows, indexer.reasons)
    return summarize(additions, indexer.rows)


def summarize(additions: Additions, embedded: Iterable[int]) -> Change:
    """Return what became of all images of a source."""
    return Change(
        added=tuple(sorted(set(embedded) - set(additions.replaced))),
        removed=(),
        present=additions.present,
        replaced=tuple(sorted(additions.replaced)),
        outdated=tuple(additions.outdated),
    )


def remove_images(
    out: Path,
    names: Sequence[str | int],
    *,
    restart: bool = False,
    device: Device = "auto",
    progress: Progress = silent,
    encoder: Encoder | None = None,
) -> Change:
    """Remove images from a finished index.

    Args:
        out: the index.
        names: for each image its id, its path in `images.csv`, or a unique end of that path, such as the
            file's name. Another path of the same file serves as well.
        restart: discard an interrupted change with other settings.
        device: where FAISS adds.
        progress: called at each stage.
        encoder: needed only if the index does not hold its encoder.

    Raises:
        MissingInputError: a name fits no image or several, or no image with a window would be left.
        UnfinishedOutputError: another change of the index was interrupted.
    """
    base = _open(out, encoder)
    removed = {find_image(str(name), base) for name in names}
    kept = {image_id: row for image_id, row in base.images.items() if image_id not in removed}
    if not any(row.windows for row in kept.values()):
        left = "window" if kept else "image"
        raise MissingInputError(f"{out} would have no {left} left: remove the folder itself")
    with _writing_change(base, {"removed": sorted(removed)}, restart) as folder:
        _adopt(folder, base, kept)
        _finish(folder, base, kept, {}, device, progress)
    return Change((), tuple(sorted(removed)), 0)


def _open(out: Path, encoder: Encoder | None) -> IndexFolder:
    recover(out.absolute())
    return IndexFolder(out, encoder=encoder, device="cpu")


def check_same(base: IndexFolder, stride_px: int | None, kind: IndexKind | None) -> None:
    """Refuse a stride or kind that is not the index's."""
    for flag, requested, accepted in (
        ("--stride", stride_px, (base.config.stride_px,)),
        ("--kind", kind, (base.config.kind, base.vectors.kind)),
    ):
        if requested is not None and requested not in accepted:
            raise IndexMismatchError(
                f"{base.path} was built with {flag} {accepted[0]}, not {requested}: leave {flag} out, or "
                "build the index again from all images"
            )


@contextmanager
def _writing_change(base: IndexFolder, change: Mapping[str, Any], restart: bool) -> Iterator[PartialFolder]:
    """Yield the unfinished folder; it resumes only the same change of the same state of the index."""
    settings = {
        **change,
        "encoder": base.encoder.fingerprint,
        "index": base.config.to_dict(),
        "former": base.version,
    }
    with writing_folder(
        base.path,
        kind=KIND,
        config=settings,
        overwrite=restart or "finished",
        discard_flag="--restart",
    ) as folder:
        if not base.is_current():  # from here on no other process can change it
            raise IndexMismatchError(
                f"{base.path} was changed by another process in the meantime. Run the command again."
            )
        yield folder


def _adopt(folder: PartialFolder, base: IndexFolder, image_ids: Iterable[int]) -> None:
    """Take over the encoder and the pixels of images."""
    names = ["encoder.keras", *(part_names(image_id)[0] for image_id in image_ids)]
    folder.adopt(base.path, {n: base.manifest.files[n] for n in names if n in base.manifest.files})


def _finish(
    folder: PartialFolder,
    base: IndexFolder,
    images: Mapping[int, StoredImage],
    reasons: Mapping[int, str],
    device: Device,
    progress: Progress,
    embedded: Collection[int] = (),
) -> None:
    """Write table and vectors of all images, and what later changes need."""
    resolved, windows = resolve_device(device), sum(row.windows for row in images.values())
    trained = _reusable_training(base, windows, resolved)
    kept_reasons = {i: r for i, r in base.without_windows.items() if i in images and not images[i].windows}
    previous = Previous(base.vectors, frozenset(images) - frozenset(embedded), base.parts)
    finish_index(
        folder,
        images,
        kept_reasons | dict(reasons),
        base.encoder,
        base.config,
        resolved,
        progress,
        previous,
        trained,
    )
    start = base.manifest.extra.get(PATHS_FROM)
    folder.extra |= (
        {PATHS_FROM: start} if start else paths_entry(base.path, (r.path for r in images.values()))
    )
    folder.extra["learned_from"] = _training_windows(base) if trained else windows
    folder.extra["largest_id"] = max(largest_id(base), *images)


def _reusable_training(base: IndexFolder, windows: int, device: str) -> VectorIndex | None:
    """Return the index if its codes and cells suit this many windows; None trains new ones.

    An exact index has nothing trained. The other kinds keep vectors in half precision only, so they stay as
    they are when "auto" would make a smaller index exact.
    """
    if base.vectors.kind == "exact":
        return None
    kind = choose_kind(base.config.kind, windows, base.config, device)
    growth = max(1, windows) / max(1, _training_windows(base))
    suits = 1 / RETRAIN_FACTOR <= growth <= RETRAIN_FACTOR and kind == base.vectors.kind
    return base.vectors if suits or kind == "exact" else None


def _training_windows(base: IndexFolder) -> int:
    """Return the number of windows that the index had when its codes were trained."""
    return int(base.manifest.extra.get("learned_from", base.manifest.counts["windows"]))


def find_image(name: str, base: IndexFolder) -> int:
    """Return the id of the image that a name stands for; see `remove_images`."""
    if name.isdecimal() and int(name) in base.images:
        return int(name)
    parts = PurePosixPath(name).parts
    matches = [
        image_id
        for image_id, row in base.images.items()
        if parts and PurePosixPath(row.path).parts[-len(parts) :] == parts
    ]
    matches = [image_id for image_id in matches if base.images[image_id].path == name] or matches
    if not matches and name:
        paths = base.file_paths()
        file = paths.given(name)
        matches = [i for i, row in base.images.items() if row.path and paths.in_table(row.path) == file]
    if len(matches) != 1:
        found = f"{len(matches)} images, {', '.join(map(str, matches[:5]))}," if matches else "none"
        raise MissingInputError(
            f"{name!r} names {found} of {len(base.images)} in {base.path}; expected an image_id or a path "
            f"listed in {base.path / TABLE}"
        )
    return matches[0]
