"""Write series, images and patches to TFRecord files, whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from tfrecords.artifacts import PartialFolder, writing_file, writing_folder
from tfrecords.errors import ArrayError, DuplicateIdError
from tfrecords.schema import Image, Patches, Series, encode_image, encode_patch, encode_series

Item = TypeVar("Item")

SERIES_PER_SHARD = 16
"""A shard of full-size series then has 0.4 to 0.8 GB: few files, little to repeat after an interruption."""


def shard_name(number: int) -> str:
    """Return the file name of a shard; names sort in the order of numbers."""
    return f"series-{number:05d}.tfrecords"


@contextmanager
def _tf_errors(path: Path) -> Iterator[None]:
    """Turn TensorFlow's errors of writing into `OSError`."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.ResourceExhaustedError as err:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from err
    except tf.errors.OpError as err:
        raise OSError(errno.EIO, f"could not be written ({err.message})", str(path)) from err


def write_records(path: Path, records: Iterable[bytes]) -> int:
    """Write records to a file; not atomic, so call it inside `writing_file`.

    Args:
        path: the file.
        records: serialised examples.

    Returns:
        The number of records.

    Raises:
        OSError: the disk is full, or the file cannot be written.
    """
    import tensorflow as tf

    count = 0
    with _tf_errors(path), tf.io.TFRecordWriter(str(path)) as writer:
        for count, record in enumerate(records, start=1):  # noqa: B007 - the count is the result
            writer.write(record)
    return count


def _mark_last(items: Iterable[Item]) -> Iterator[tuple[Item, bool]]:
    """Yield each item, and whether it is the last."""
    items = iter(items)
    try:
        item = next(items)
    except StopIteration:
        return
    for following in items:
        yield item, False
        item = following
    yield item, True


def _encode_all(items: Iterable[Item], encode: Callable[..., bytes], challenge: bool) -> Iterator[bytes]:
    """Serialize items; the last of our own is marked, so that a file cut between two records is noticed."""
    for item, last in _mark_last(items):
        yield encode(item, challenge=challenge, last=None if challenge else last)


def _check_distinct(items: Iterable[Item], id_of: Callable[[Item], int], noun: str) -> Iterator[Item]:
    """Yield items, refusing an id that came before."""
    known_ids: set[int] = set()
    for item in items:
        if id_of(item) in known_ids:
            raise DuplicateIdError(
                f"{noun} id {id_of(item)} occurs twice; expected distinct ids. Renumber them."
            )
        known_ids.add(id_of(item))
        yield item


def write_images(
    images: Iterable[Image], path: str | os.PathLike[str], *, challenge: bool = False, overwrite: bool = False
) -> int:
    """Write images to one file, such as `test_images.tfrecords`.

    Args:
        images: the images, in this order; consumed one by one.
        path: the file.
        challenge: write the challenge's features only: float16 scaled 512 x 512 x 4.
        overwrite: replace an existing file.

    Returns:
        The number of images.

    Raises:
        OutputExistsError: the file exists and `overwrite` is false.
        DuplicateIdError: two images have the same id.
        ArrayError: there is no image, or one does not fit.
        DiskFullError: the disk is full; the former file is unchanged.
    """
    distinct = _check_distinct(images, lambda image: image.image_id, "image")
    with writing_file(path, overwrite=overwrite) as partial:
        count = write_records(partial, _encode_all(distinct, encode_image, challenge))
        if not count:
            raise ArrayError(f"{path}: there are no images to write")
    return count


def write_patches(
    patches: Patches, path: str | os.PathLike[str], *, challenge: bool = False, overwrite: bool = False
) -> int:
    """Write patches to one file, such as `test_patches.tfrecords`.

    Args:
        patches: the patches; pixels may be a memory map.
        path: the file.
        challenge: write the challenge's features only: float16 scaled 64 x 64 x 4.
        overwrite: replace an existing file.

    Returns:
        The number of patches.

    Raises:
        OutputExistsError: the file exists and `overwrite` is false.
        DuplicateIdError: two patches have the same id.
        ArrayError: there is no patch, or they do not fit.
        DiskFullError: the disk is full; the former file is unchanged.
    """

    def encode(row: int, **options: Any) -> bytes:
        patch_id, pixels = int(patches.patch_ids[row]), patches.pixels[row]
        return encode_patch(patch_id, pixels, patches.units, patches.bands, patches.nodata, **options)

    rows = _check_distinct(range(len(patches)), lambda row: int(patches.patch_ids[row]), "patch")
    with writing_file(path, overwrite=overwrite) as partial:
        count = write_records(partial, _encode_all(rows, encode, challenge))
        if not count:
            raise ArrayError(f"{path}: there are no patches to write")
    return count


def write_shard(
    folder: PartialFolder, name: str, series: Iterable[Series], *, challenge: bool = False, exact: bool = True
) -> int:
    """Write one shard of series into an unfinished folder.

    Args:
        folder: from `writing_folder(kind="series")`; check `folder.done(name)` before.
        name: relative name of the shard, ending in ".tfrecords"; shards are read in the order of
            their names.
        series: the series, consumed one by one.
        challenge: write the challenge's feature only: float16 DN, 12 x 512 x 512 x 4.
        exact: add an exact copy where float16 would lose a bit.

    Returns:
        The number of series; `folder.meta(name)` holds it, with their places, bands, dtypes and units.

    Raises:
        ArrayError: there is no series, or one does not fit.
    """
    facts: dict[str, set[str]] = {"places": set(), "bands": set(), "dtypes": set(), "units": set()}

    def encode(item: Series, **options: Any) -> bytes:
        values = (item.place, " ".join(item.bands), item.pixels.dtype.name, item.units)
        for known, value in zip(facts.values(), values, strict=True):
            known.add(value)
        return encode_series(item, exact=exact, **options)

    meta: dict[str, Any] = {}
    with folder.part(name, meta) as partial:
        meta["series"] = write_records(partial, _encode_all(series, encode, challenge))
        if not meta["series"]:
            raise ArrayError(f"{name}: there are no series to write")
        meta |= {key: sorted(values) for key, values in facts.items()}
    return int(meta["series"])


def summarise_shards(folder: PartialFolder, names: Iterable[str]) -> None:
    """Summarize finished shards of series in the folder's manifest.

    Args:
        folder: the unfinished folder.
        names: its shards; numbers of series, shards and places become `counts`; bands, dtypes and
            units become `extra`.
    """
    metas = [folder.meta(name) for name in names]
    union = {
        key: sorted({v for m in metas for v in m[key]}) for key in ("places", "bands", "dtypes", "units")
    }
    folder.counts |= {"series": sum(m["series"] for m in metas), "shards": len(metas)}
    folder.counts["places"] = len(union.pop("places"))
    folder.extra |= union


def write_series(
    series: Iterable[Series],
    out: str | os.PathLike[str],
    *,
    config: Mapping[str, Any] | None = None,
    per_shard: int = SERIES_PER_SHARD,
    challenge: bool = False,
    exact: bool = True,
    overwrite: bool = False,
) -> int:
    """Write series to a folder of shards with a manifest.

    Args:
        series: the series, in this order; consumed one by one.
        out: the folder.
        config: all that decides the series. With it an interrupted run resumes: series of finished
            shards are skipped. Without it an interrupted run starts over.
        per_shard: series in a shard, at least 1.
        challenge: write the challenge's feature only: float16 DN, 12 x 512 x 512 x 4.
        exact: add an exact copy where float16 would lose a bit.
        overwrite: replace a finished folder of series.

    Returns:
        The number of series in the folder.

    Raises:
        OutputExistsError: a finished folder exists and `overwrite` is false.
        UnfinishedOutputError: an unfinished folder has other settings.
        ArrayError: there is no series, or one does not fit.
        DiskFullError: the disk is full; the former folder is unchanged.
    """
    layout = {"per_shard": per_shard, "challenge": challenge, "exact": exact}
    names: list[str] = []
    items = iter(series)
    with writing_folder(
        out, kind="series", config={**layout, **(config or {})}, overwrite=overwrite
    ) as folder:
        folder.extra |= {"challenge": challenge, "exact": exact and not challenge}
        for first in items:
            name = shard_name(len(names))
            names.append(name)
            if config is not None and folder.done(name):
                for _ in islice(items, folder.meta(name)["series"] - 1):
                    pass
                continue
            shard = chain([first], islice(items, per_shard - 1))
            write_shard(folder, name, shard, challenge=challenge, exact=exact)
        if not names:
            raise ArrayError(f"{out}: there are no series to write")
        summarise_shards(folder, names)
    return folder.counts["series"]
