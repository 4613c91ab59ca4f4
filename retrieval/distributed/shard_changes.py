"""Add images to an index, or remove images from it, in one folder or in shards.

    1. add      new and rewritten images become a new shard, with the codes of the others
    2. thin     shards that lose images are written again; pixels that stay are hard links
    3. join     `shards.json` is replaced in one step, and shards that it no longer names are removed

Until the third step the former index answers. An interrupted change leaves it whole, and the same call
continues. Only new images are embedded.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from retrieval.config import Device, IndexConfig, IndexKind
from retrieval.distributed.shard_builder import CODES, alone, join_shards
from retrieval.distributed.shards import KIND, ShardedFolder
from retrieval.errors import IndexMismatchError
from retrieval.index.additions import Additions, largest_id
from retrieval.index.builder import ImageIndexer, Previous, finish_index
from retrieval.index.device import on_device, resolve_device
from retrieval.index.faiss_index import VectorIndex
from retrieval.index.file_paths import PATHS_FROM, paths_entry
from retrieval.index.folder import KIND as INDEX_KIND
from retrieval.index.folder import SHARDS, IndexFolder
from retrieval.index.image_parts import part_names
from retrieval.index.update import Change, add_images, check_same, find_image, remove_images, summarize
from retrieval.index.without_windows import warn_without_windows
from retrieval.models.encoder import load_encoder
from retrieval.types import Encoder, Progress, StoredImage, silent
from tfrecords.artifacts import MANIFEST, PartialFolder, identity, writing_folder
from tfrecords.errors import MissingInputError
from tfrecords.read import ImageSource, read_images


def add_to_index(
    images: str | Path | NDArray[Any] | ImageSource,
    out: str | Path,
    *,
    encoder: str | Path | Encoder | None = None,
    stride_px: int | None = None,
    kind: IndexKind | None = None,
    bands: Sequence[str] | None = None,
    units: str | None = None,
    device: Device = "auto",
    restart: bool = False,
    progress: Progress = silent,
) -> Change:
    """Add images to a finished index: only they are embedded.

    Args:
        images: as for `retrieval.pipeline.build_index`; see `add_images` for their ids.
        out: the index; one in shards gets a new shard.
        encoder: refused if it is not the index's; None takes the index's.
        stride_px: the same.
        kind: the same.
        bands: names of the bands; None reads them from the file.
        units: "dn", "reflectance", "scaled" or "byte"; None infers them from the values.
        device: "auto", "cpu" or "gpu".
        restart: discard an unfinished change with other settings.
        progress: hears of each image.

    Raises:
        RetrieveError: one of its kinds; the index is then unchanged.
    """
    source = images if isinstance(images, ImageSource) else read_images(images, bands=bands, units=units)
    chosen = None if encoder is None else load_encoder(encoder)
    out = Path(out)
    with on_device(device):
        if (out / SHARDS).is_file():
            with alone(out.absolute()):
                return _ShardChange(_opened(out, chosen, stride_px, kind), device, progress).add(source)
        return add_images(
            source,
            out,
            source=source.note,
            encoder=chosen,
            stride_px=stride_px,
            kind=kind,
            restart=restart,
            device=device,
            progress=progress,
        )


def remove_from_index(
    out: str | Path,
    names: Sequence[str | int],
    *,
    encoder: Encoder | None = None,
    device: Device = "auto",
    restart: bool = False,
    progress: Progress = silent,
) -> Change:
    """Remove images from a finished index, see `remove_images`; nothing is embedded."""
    out = Path(out)
    with on_device(device):
        if (out / SHARDS).is_file():
            with alone(out.absolute()):
                return _ShardChange(_opened(out, encoder, None, None), device, progress).remove(names)
        return remove_images(out, names, encoder=encoder, device=device, restart=restart, progress=progress)


def _opened(
    out: Path, encoder: Encoder | None, stride_px: int | None, kind: IndexKind | None
) -> ShardedFolder:
    base = ShardedFolder([out], encoder=encoder, device="cpu")
    check_same(base, stride_px, kind)
    return base


@dataclass(frozen=True)
class _ShardChange:
    """One change of an index in shards."""

    base: ShardedFolder
    """The index before."""
    device: Device
    """Where FAISS adds."""
    progress: Progress

    def add(self, source: ImageSource) -> Change:
        """Write a shard of the new images; see `add_to_index`."""
        additions = Additions(source, self.base)
        images = iter(additions)
        if (first := next(images, None)) is None:
            return summarize(additions, ())
        settings = self._settings({"added": source.note})
        goal = self._goal(settings, 0)
        shutil.rmtree(goal, ignore_errors=True)  # finished by a run that was stopped before the last step
        with writing_folder(goal, kind=INDEX_KIND, config=settings) as folder:
            device = resolve_device(self.device)
            indexer = ImageIndexer(folder, self.base.encoder, self.base.config, device)
            for number, _ in enumerate(indexer.add(chain([first], images))):
                self.progress("indexing images", number + 1, None)
            self._finish(folder, self.base.shards[0], indexer.rows, indexer.reasons, None)
        warn_without_windows(indexer.rows, indexer.reasons)
        self._join(settings, [*self._thinned(settings, set(additions.replaced)), goal], max(indexer.rows))
        return summarize(additions, indexer.rows)

    def remove(self, names: Sequence[str | int]) -> Change:
        """Write the shards again that lose images; see `remove_from_index`."""
        removed = {find_image(str(name), self.base) for name in names}
        kept = [row for image_id, row in self.base.images.items() if image_id not in removed]
        if not any(row.windows for row in kept):
            left = "window" if kept else "image"
            raise MissingInputError(f"{self.base.path} would have no {left} left: remove the folder itself")
        settings = self._settings({"removed": sorted(removed)})
        self._join(settings, list(self._thinned(settings, removed)), 0)
        return Change((), tuple(sorted(removed)), 0)

    def _settings(self, change: Mapping[str, Any]) -> dict[str, Any]:
        """Return what decides the new shards: the same change of the same index resumes."""
        known = {"encoder": self.base.encoder.fingerprint, "index": self.base.config.to_dict()}
        return {**change, **known, "former": self.base.version}

    def _goal(self, settings: Mapping[str, Any], number: int) -> Path:
        return self.base.path / f"{identity(KIND, settings)[:8]}-{number:04d}"

    def _thinned(self, settings: Mapping[str, Any], gone: set[int]) -> Iterator[Path]:
        """Yield the folders of the former shards, written again where they lose images."""
        for number, shard in enumerate(self.base.shards, start=1):
            kept = {i: row for i, row in shard.images.items() if i not in gone}
            if len(kept) == len(shard.images):
                yield shard.path
            elif kept:
                goal = self._goal(settings, number)
                if not (goal / MANIFEST).is_file():
                    with writing_folder(goal, kind=INDEX_KIND, config=dict(settings)) as folder:
                        names = [part_names(image_id)[0] for image_id in kept]
                        files = shard.manifest.files
                        folder.adopt(shard.path, {n: files[n] for n in names if n in files})
                        reasons = {i: why for i, why in shard.without_windows.items() if i in kept}
                        previous = Previous(shard.vectors, frozenset(kept), shard.parts)
                        self._finish(folder, shard, kept, reasons, previous)
                yield goal

    def _finish(
        self,
        folder: PartialFolder,
        shard: IndexFolder,
        rows: Mapping[int, StoredImage],
        reasons: Mapping[int, str],
        previous: Previous | None,
    ) -> None:
        """Turn the parts of a shard into an index folder, with the encoder and the codes of another one."""
        files = shard.manifest.files
        folder.adopt(shard.path, {n: files[n] for n in ("encoder.keras",) if n in files})
        trained = self._trained() if any(row.windows for row in rows.values()) else None
        config = self._config(rows)
        device = resolve_device(self.device)
        finish_index(
            folder,
            rows,
            reasons,
            self.base.encoder,
            config,
            device,
            self.progress,
            previous,
            trained,
            may_be_empty=True,
        )
        starts = (s.manifest.extra[PATHS_FROM] for s in self.base.shards if PATHS_FROM in s.manifest.extra)
        start = next(starts, None)
        paths = (row.path for row in rows.values())
        folder.extra |= {PATHS_FROM: start} if start else paths_entry(folder.path, paths)
        folder.extra[CODES] = shard.manifest.extra[CODES]

    def _trained(self) -> VectorIndex | None:
        """Return the vectors of a shard whose codes serve all; None for an exact index."""
        coded = (s.vectors for s in self.base.shards if len(s.vectors) and s.vectors.kind != "exact")
        return next(coded, None)

    def _config(self, rows: Mapping[int, StoredImage]) -> IndexConfig:
        """Return the settings of a shard: the kind of the index, and parts where it has them."""
        seen = any(row.windows for row in rows.values())
        parts: Any = "always" if seen and self.base.parts is not None else "never"
        return replace(self.base.config, kind=self.base.vectors.kind if seen else "exact", parts=parts)

    def _join(self, settings: Mapping[str, Any], folders: Sequence[Path], largest: int) -> None:
        """Replace `shards.json`, and remove shards that it no longer names."""
        if not self.base.is_current():
            raise IndexMismatchError(
                f"{self.base.path} was changed by another process in the meantime. Run the command again."
            )
        kept = {name: value for name, value in self.base.manifest.extra.items() if name != "recall"}
        extra = kept | {"largest_id": max(largest, largest_id(self.base))}
        join_shards(self.base.path, folders, settings, extra)
