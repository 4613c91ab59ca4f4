"""Series, images and patches -> TFRecord shards, whole or not at all."""

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
"""A shard of full-size series is then 0.4 to 0.8 GB: few files, and little to do again after a stop."""


def shard_name(number: int) -> str:
    """File name of the n-th shard of series, in an order that sorts."""
    return f"series-{number:05d}.tfrecords"


@contextmanager
def _tf_errors(path: Path) -> Iterator[None]:
    """Give TensorFlow's errors of writing the names that the system has for them."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.ResourceExhaustedError as err:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from err
    except tf.errors.OpError as err:
        raise OSError(errno.EIO, f"could not be written ({err.message})", str(path)) from err


def write_records(path: Path, records: Iterable[bytes]) -> int:
    """Write records to a file, one after the other; not atomic, call it inside `writing_file`.

    Args:
        path: the file.
        records: serialised examples.

    Returns:
        How many there were.

    Raises:
        OSError: the disk is full, or the file can't be written.
    """
    import tensorflow as tf

    count = 0
    with _tf_errors(path), tf.io.TFRecordWriter(str(path)) as writer:
        for count, record in enumerate(records, start=1):  # noqa: B007 - the count is the result
            writer.write(record)
    return count


def _marked(items: Iterable[Item]) -> Iterator[tuple[Item, bool]]:
    """Each item, and whether it is the last."""
    items = iter(items)
    try:
        item = next(items)
    except StopIteration:
        return
    for following in items:
        yield item, False
        item = following
    yield item, True


def _encoded(items: Iterable[Item], encode: Callable[..., bytes], challenge: bool) -> Iterator[bytes]:
    """Serialise items; ours say which is the last, so that a file that was cut between two is seen."""
    for item, last in _marked(items):
        yield encode(item, challenge=challenge, last=None if challenge else last)


def _one_id_each(items: Iterable[Item], number: Callable[[Item], int], what: str) -> Iterator[Item]:
    """Pass items on, refusing an id that came before."""
    seen: set[int] = set()
    for item in items:
        if number(item) in seen:
            raise DuplicateIdError(
                f"{what} id {number(item)} occurs twice among those to write: number them anew"
            )
        seen.add(number(item))
        yield item


def write_images(
    images: Iterable[Image], path: str | os.PathLike[str], *, challenge: bool = False, overwrite: bool = False
) -> int:
    """Write images to one file, such as `test_images.tfrecords`.

    Args:
        images: what to write, in this order; consumed one by one.
        path: the file.
        challenge: the challenge's features and nothing else: float16 scaled 512 x 512 x 4.
        overwrite: replace a file that is there.

    Returns:
        How many were written.

    Raises:
        OutputExistsError: the file is there.
        DuplicateIdError: two images have one id.
        ArrayError: there is no image, or one that does not fit.
        DiskFullError: the disk is full; the former file is untouched.
    """
    distinct = _one_id_each(images, lambda image: image.image_id, "image")
    with writing_file(path, overwrite=overwrite) as partial:
        count = write_records(partial, _encoded(distinct, encode_image, challenge))
        if not count:
            raise ArrayError(f"{path}: there are no images to write")
    return count


def write_patches(
    patches: Patches, path: str | os.PathLike[str], *, challenge: bool = False, overwrite: bool = False
) -> int:
    """Write patches to one file, such as `test_patches.tfrecords`.

    Args:
        patches: what to write, in this order; pixels may be a memory map.
        path: the file.
        challenge: the challenge's features and nothing else: float16 scaled 64 x 64 x 4.
        overwrite: replace a file that is there.

    Returns:
        How many were written.

    Raises:
        OutputExistsError: the file is there.
        DuplicateIdError: two patches have one id.
        ArrayError: there is no patch, or they do not fit.
        DiskFullError: the disk is full; the former file is untouched.
    """

    def encode(row: int, **how: Any) -> bytes:
        number, pixels = int(patches.patch_ids[row]), patches.pixels[row]
        return encode_patch(number, pixels, patches.units, patches.bands, patches.nodata, **how)

    rows = _one_id_each(range(len(patches)), lambda row: int(patches.patch_ids[row]), "patch")
    with writing_file(path, overwrite=overwrite) as partial:
        count = write_records(partial, _encoded(rows, encode, challenge))
        if not count:
            raise ArrayError(f"{path}: there are no patches to write")
    return count


def write_shard(
    folder: PartialFolder, name: str, series: Iterable[Series], *, challenge: bool = False, exact: bool = True
) -> int:
    """Write one shard of series into a folder in the making.

    Args:
        folder: from `writing_folder(kind="series")`; ask `folder.done(name)` before.
        name: relative name of the shard, ending in ".tfrecords"; shards are read in the order of
            their names.
        series: what to write, consumed one by one.
        challenge: the challenge's feature and nothing else: float16 DN, 12 x 512 x 512 x 4.
        exact: keep a whole copy where float16 would lose a bit.

    Returns:
        How many series were written; `folder.meta(name)` says it later, with their places, bands,
        dtypes and units.

    Raises:
        ArrayError: there is no series, or one that does not fit.
    """
    seen: dict[str, set[str]] = {"places": set(), "bands": set(), "dtypes": set(), "units": set()}

    def noted(item: Series, **how: Any) -> bytes:
        values = (item.place, " ".join(item.bands), item.pixels.dtype.name, item.units)
        for known, value in zip(seen.values(), values, strict=True):
            known.add(value)
        return encode_series(item, exact=exact, **how)

    meta: dict[str, Any] = {}
    with folder.part(name, meta) as partial:
        meta["series"] = write_records(partial, _encoded(series, noted, challenge))
        if not meta["series"]:
            raise ArrayError(f"{name}: there are no series to write")
        meta |= {key: sorted(values) for key, values in seen.items()}
    return meta["series"]


def summarise_shards(folder: PartialFolder, names: Iterable[str]) -> None:
    """Enter what finished shards of series hold into the folder's manifest.

    Args:
        folder: the folder in the making.
        names: its shards; their number of series, shards and places become `counts`, their bands,
            dtypes and units `extra`.
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
        series: what to write, in this order; consumed one by one, never held together.
        out: the folder.
        config: all that decides the series. With it a stopped run goes on: the series of finished
            shards are passed over. Without it a stopped run is begun anew.
        per_shard: series in a shard, at least 1.
        challenge: the challenge's feature and nothing else: float16 DN, 12 x 512 x 512 x 4.
        exact: keep a whole copy where float16 would lose a bit; the manifest says so.
        overwrite: replace a finished folder of series.

    Returns:
        How many series the folder holds.

    Raises:
        OutputExistsError: a finished folder is there.
        UnfinishedOutputError: an unfinished one of another configuration is.
        ArrayError: there is no series, or one that does not fit.
        DiskFullError: the disk is full; the former folder is untouched.
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
