"""Several index folders as one index: a folder of shards, or a list of folders.

    index/
      shards.json         manifest of kind "shards": settings, counts, checksum of each shard's manifest
      3fa2b1c4-0000/ …    an index folder with some of the images
      3fa2b1c4-0001/ …

Shards have one encoder and one stride, and an image is in one shard. Where the kind has codes, all shards
have the same. A calibration next to `shards.json` serves all. The file is written last and replaced in one
step: a folder without it is unfinished.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import Device
from retrieval.distributed.merged_vectors import merge_vectors
from retrieval.errors import IndexMismatchError
from retrieval.index.device import resolve_device
from retrieval.index.file_paths import PATHS_FROM, FilePaths
from retrieval.index.folder import SHARDS, IndexFolder, is_pixels, read_index_manifest
from retrieval.index.parts import JoinedParts
from retrieval.models.calibration import calibrations_beside
from retrieval.types import Encoder
from tfrecords.artifacts import (
    FORMAT_VERSION,
    MANIFEST,
    Manifest,
    check_file,
    digest,
    fingerprint,
    identity,
    parse_manifest,
)
from tfrecords.errors import DuplicateIdError
from tfrecords.remote import local_folder, url_of

KIND = "shards"
"""Kind of `shards.json`."""
Folders = str | Path | Sequence[str | Path]
"""A folder of an index or of shards, or several."""


def open_folder(
    path: Folders,
    *,
    encoder: Encoder | None = None,
    device: Device = "auto",
    just_written: bool = False,
) -> IndexFolder:
    """Open an index folder, a folder of shards, or several of them as one index.

    Args:
        path: a folder or its URL, or a list. A folder at a URL is copied into the cache first, but for
            pixels, which are copied when they are read.
        encoder: the encoder that made the index, if the caller has it.
        device: where FAISS searches.
        just_written: see `IndexFolder`.

    Raises:
        ManifestError: a file is missing or was changed.
        IndexMismatchError: the folders have different encoders or strides.
        DuplicateIdError: two folders hold an image of the same id.
        RemoteError: the connection to a URL was lost.
    """
    places = [path] if isinstance(path, (str, Path)) else list(path)
    urls = [url_of(place) for place in places]
    paths = [local_folder(u, is_pixels) if u else Path(p) for u, p in zip(urls, places, strict=True)]
    options: dict[str, Any] = {"encoder": encoder, "device": device, "just_written": just_written}
    if len(paths) == 1 and not (paths[0] / SHARDS).is_file():
        folder = IndexFolder(paths[0], **options)
    else:
        folder = ShardedFolder(
            paths, [u or str(p.absolute()) for u, p in zip(urls, paths, strict=True)], **options
        )
    folder.origin = urls[0]
    return folder


def read_shards(path: Path) -> tuple[Manifest, list[Path]]:
    """Read `shards.json` of a folder, and check the manifest of each shard against it.

    Returns:
        Its content, and the folders of the shards in their order.

    Raises:
        ManifestError: the file is damaged, or a shard is missing or was changed.
        FormatVersionError: this release does not read the format version.
    """
    manifest = parse_manifest(path / SHARDS, KIND)
    for name, known in manifest.files.items():
        check_file(path / name, known, content=True)
    return manifest, [(path / name).parent for name in sorted(manifest.files)]


class ShardedFolder(IndexFolder):
    """Opened index folders that answer as one."""

    def __init__(
        self,
        paths: Sequence[Path],
        places: Sequence[str] | None = None,
        *,
        encoder: Encoder | None = None,
        device: Device = "auto",
        just_written: bool = False,
    ) -> None:
        """Open and check the folders; see `open_folder`. The path of the first one stands for all.

        `places` are the URLs of copies and the paths of other folders, for other processes.
        """
        self._paths = tuple(paths)
        self._places = tuple(places or (str(path.absolute()) for path in paths))
        super().__init__(self._paths[0], encoder=encoder, device=device, just_written=just_written)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the paths; a process opens the folders once."""
        encoder, device = self._opened_with
        held = all("encoder.keras" in shard.manifest.files for shard in self.shards)
        return _unpickled, (self._places, self.version, None if held else encoder, device)

    def _read_version(self) -> str:
        files = [path / SHARDS if (path / SHARDS).is_file() else path / MANIFEST for path in self._paths]
        try:
            return fingerprint({"files": [digest(file) for file in files]})
        except OSError:
            return ""

    def _open(self, encoder: Encoder | None, device: Device, just_written: bool) -> None:
        """Read all files of the shards but the pixels."""
        manifests, folders = list[Manifest](), list[Path]()
        for path in self._paths:
            manifest, found = read_shards(path) if (path / SHARDS).is_file() else (None, [path])
            manifests += [manifest] if manifest else []
            folders += found
        kinds = {str(read_index_manifest(folder, verify=False).extra["kind"]) for folder in folders}
        searched_on: Device = "cpu" if kinds == {"exact"} else device
        self.shards: list[IndexFolder] = []
        for folder in folders:
            shard = IndexFolder(folder, encoder=encoder, device=searched_on, just_written=just_written)
            encoder = shard.encoder
            self.shards.append(shard)
        first = self.shards[0]
        self.config, self.encoder = first.config, first.encoder
        self._check_fit()
        self._shard_of = {i: shard for shard in self.shards for i in shard.images}
        self.images = {i: self._shard_of[i].images[i] for i in sorted(self._shard_of)}
        self.vectors = merge_vectors([shard.vectors for shard in self.shards], resolve_device(device))
        parts = [shard.parts for shard in self.shards if len(shard.vectors)]
        held = [part for part in parts if part is not None]
        self.parts = JoinedParts(held) if len(held) == len(parts) else None
        if calibrations := tuple(calibrations_beside(self._paths[0] / "encoder.keras")):
            self.encoder.calibrations = calibrations
        alone = len(self._paths) == 1 and manifests
        self.manifest = manifests[0] if alone else self._joint_manifest()

    def _check_fit(self) -> None:
        """Refuse folders that cannot answer as one index."""
        first, known = self.shards[0], dict[int, Path]()
        for shard in self.shards:
            if shard.config.stride_px != first.config.stride_px:
                raise IndexMismatchError(
                    f"{shard.path} has a stride of {shard.config.stride_px} px, {first.path} of "
                    f"{first.config.stride_px}. Expected one stride. Build one of them again."
                )
            for image_id in shard.images:
                if image_id in known:
                    raise DuplicateIdError(
                        f"image id {image_id} is in {known[image_id]} and in {shard.path}. Expected distinct "
                        "ids. Index the images together with --shards."
                    )
                known[image_id] = shard.path

    def _joint_manifest(self) -> Manifest:
        """Return a manifest of folders that no file joins."""
        first, names = self.shards[0].manifest, ("images", "windows")
        config = {"index": self.config.to_dict(), "shards": [s.manifest.fingerprint for s in self.shards]}
        return Manifest(
            kind=KIND,
            version=FORMAT_VERSION[KIND],
            config=config,
            fingerprint=identity(KIND, config),
            created_by=first.created_by,
            counts={name: sum(s.manifest.counts[name] for s in self.shards) for name in names},
            files={},
            extra=first.extra | {"kind": self.vectors.kind},
        )

    @property
    def without_windows(self) -> dict[int, str]:
        """Images that no query finds, and why; see `IndexFolder`."""
        reasons = {i: why for shard in self.shards for i, why in shard.without_windows.items()}
        return dict(sorted(reasons.items()))

    def scaled(self, image_id: int, window: tuple[int, int, int, int] | None = None) -> NDArray[np.float32]:
        """Return an image's pixels from its shard; see `IndexFolder`."""
        return self._shard_of[image_id].scaled(image_id, window)

    def squares(self, image_id: int, corners: NDArray[np.int64], side: int) -> NDArray[np.float32]:
        """Return squares of an image from its shard; see `IndexFolder`."""
        return self._shard_of[image_id].squares(image_id, corners, side)

    def stored_codes(self, image_id: int) -> NDArray[np.uint16]:
        """Return an image's stored pixels from its shard; see `IndexFolder`."""
        return self._shard_of[image_id].stored_codes(image_id)

    def file_paths(self) -> FilePaths:
        """Return what the paths of the table mean: in all shards of a folder they have one start."""
        started = (shard for shard in self.shards if PATHS_FROM in shard.manifest.extra)
        return next(started, self.shards[0]).file_paths()


_unpickled_folders: dict[tuple[tuple[str, ...], str], IndexFolder] = {}
_UNPICKLING = Lock()


def _unpickled(places: tuple[str, ...], version: str, encoder: Encoder | None, device: Device) -> IndexFolder:
    """Open the folders that `ShardedFolder.__reduce__` packed, unless this process has them open.

    Raises:
        IndexMismatchError: a folder was changed since.
    """
    with _UNPICKLING:
        if (places, version) not in _unpickled_folders:
            folder = open_folder(places, encoder=encoder, device=device)
            if folder.version != version:
                raise folder.changed()
            _unpickled_folders.clear()
            _unpickled_folders[places, version] = folder
        return _unpickled_folders[places, version]
