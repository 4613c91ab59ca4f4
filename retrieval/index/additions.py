"""Which images of a source an index lacks, which it holds, and which it holds in an earlier version.

One scene has one entry. A record is known by its id and its file, every other image by its file and its
number within the file. An image of the same scene with other pixels or another georeference replaces the
entry and keeps its id.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from retrieval.index.folder import IndexFolder, table_cells, to_codes
from retrieval.index.image_parts import table_row
from retrieval.types import StoredImage
from tfrecords.errors import DuplicateIdError
from tfrecords.read import ImageSource
from tfrecords.schema import Image


def largest_id(base: IndexFolder) -> int:
    """Return the largest id that an image of the index ever had."""
    return max(int(base.manifest.extra.get("largest_id", -1)), *base.images)


class Additions:
    """Iterates over the images to embed, under the ids and paths that they get; reports the others.

    The attributes are complete at the end of the iteration.
    """

    def __init__(self, images: ImageSource, base: IndexFolder) -> None:
        """Compare nothing yet.

        Args:
            images: the images to add.
            base: the index.
        """
        self.present = 0
        """Images that the index holds unchanged."""
        self.replaced: list[int] = []
        """Ids of images that replace an entry."""
        self._images, self._base = images, base
        self._paths = base.file_paths()
        self._entries: dict[str, list[int]] = defaultdict(list)
        for image_id, row in sorted(base.images.items()):
            self._entries[self._paths.in_table(row.path)].append(image_id)
        self._counts, self._seen = Counter[str](), set[int]()

    @property
    def outdated(self) -> list[int]:
        """Ids of entries whose files were read, and hold fewer images than the index has of them."""
        return sorted(i for file, count in self._counts.items() for i in self._entries.get(file, [])[count:])

    def __iter__(self) -> Iterator[Image]:
        next_id = largest_id(self._base) + 1
        for image in self._images:
            file = self._paths.given(image.path)
            row = self._entry_of_id(image, file) if self._images.own_ids else self._entry_of_file(file)
            if row is not None and self._is_unchanged(image, row):
                self.present += 1
            elif row is not None:
                self.replaced.append(row.image_id)
                yield replace(image, image_id=row.image_id, path=row.path)
            else:
                image_id = image.image_id if self._images.own_ids else next_id
                next_id += 1
                yield replace(image, image_id=image_id, path=self._path_for_table(image.path, file))

    def _entry_of_id(self, image: Image, file: str) -> StoredImage | None:
        """Return the entry of a record; refuse an id that another file's image has."""
        row = self._base.images.get(image.image_id)
        if row is None:
            return None
        if image.image_id in self._seen:
            raise DuplicateIdError(
                f"image id {image.image_id} comes twice (again in {image.path or 'the array'}); expected "
                "distinct ids"
            )
        self._seen.add(image.image_id)
        if not file or file != self._paths.in_table(row.path):
            raise DuplicateIdError(
                f"image id {image.image_id} of {image.path or 'the images to be added'} belongs to "
                f"{row.path or 'an image'} in {self._base.path}: give the new image another id, or first "
                f"remove the old one with --remove {image.image_id}"
            )
        return row

    def _entry_of_file(self, file: str) -> StoredImage | None:
        """Return the entry of the next image of a file; images without a file have none."""
        if not file:
            return None
        rank, entries = self._counts[file], self._entries.get(file, [])
        self._counts[file] += 1
        return self._base.images[entries[rank]] if rank < len(entries) else None

    def _path_for_table(self, path: str, file: str) -> str:
        """Return a new entry's path: as other entries of the file spell it, if there are any."""
        entries = self._entries.get(file, []) if file else []
        return self._base.images[entries[0]].path if entries else self._paths.for_table(path)

    def _is_unchanged(self, image: Image, row: StoredImage) -> bool:
        """Return whether an entry has the image's pixels and table cells.

        An index of version 1 clipped bright ground: its files are compared as it stored them.
        """
        same = replace(image, image_id=row.image_id, path=row.path, clipped=row.clipped)
        if table_cells(table_row(same, row.windows)) != table_cells(row):
            return False
        return bool(np.array_equal(self._base.stored_codes(row.image_id), to_codes(same.scaled())))
