"""Stream training series as pairs of crops, in memory that does not grow with the data.

A series of the challenge has 25 MB and there are thousands, too much for a shuffle buffer of series. So
crops are cut when a series is read, and the crops are shuffled. Memory holds the series being read and
cut (`parallel_reads` of each, with copies), their crops, the shuffle buffer, and as many prefetched crops.

NumPy cuts the crops (`crops.cut_crops`). Its random numbers depend on seed, epoch, file and record only, not
on the order of threads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfrecords.errors import ArrayError, RecordError
from tfrecords.read.crops import CropPlan, Crops, cut_crops
from tfrecords.read.records import count_records, place_of, raw_records
from tfrecords.read.series import SeriesLike, series_files
from tfrecords.schema import BANDS, group_of, parse, series_of

EPOCHS = 2**31
"""More epochs than any training needs."""
PACKED_HALF = 32767.0
"""Steps of a packed crop between 0 and 1."""


def stream_crops(
    source: SeriesLike, plan: CropPlan | None = None, *, epoch: int = 0, repeat: bool = False
) -> Any:
    """Stream pairs of crops for training.

    Wrap the loop over it in `naming_bad_records`: its errors then name the file and number of a record.

    Args:
        source: see `series_files`.
        plan: how crops are drawn; None for the defaults of `CropPlan`.
        epoch: number of the epoch, from 0; each draws other crops in another order.
        repeat: continue with the next epochs without end; else stop after this one.

    Returns:
        A `tf.data.Dataset` of dicts, the same in each iteration:
        anchor, positive: (size, size, 4) float32 in [-1, 1] to within 2e-5, NaN where nodata; bands in stored
            order, missing ones all NaN; positive is another date of the same pixels;
        place_id: int64 in [0, 2**63), the same for all series of a place;
        overlap_group: int64, the same for places that share ground;
        x, y: int64, top-left pixel of the anchor in the place's grid;
        dates: (2,) int64, numbers of the two dates in the series.

    Raises:
        MissingInputError: there is nothing to read.
        ManifestError: the folder is damaged or unfinished.
        RecordError: a file is truncated; names file and record.
        ArrayError: no series of this shard gives a crop, because all are too small or nodata.
    """
    plan = plan or CropPlan()
    files = series_files(source)
    counts = np.array([count_records(path) for path in files], np.int64)
    with naming_bad_records(source):
        first = _epochs(files, counts, replace(plan, shuffle=1), epoch, epoch + 1).take(1)
        if not any(True for _ in first):
            raise ArrayError(
                f"{source}: shard {plan.shard_index} of {plan.shard_count} has no window of {plan.size_px} x "
                f"{plan.size_px} valid px on two dates. The series are too small or nodata, or there are "
                f"fewer series than shards."
            )
    return _epochs(files, counts, plan, epoch, EPOCHS if repeat else epoch + 1)


@contextmanager
def naming_bad_records(source: SeriesLike) -> Iterator[None]:
    """Turn TensorFlow's error of a damaged record into one that names file and record.

    Args:
        source: the source of the data set; its files are read again if TensorFlow does not name the record.

    Yields:
        Nothing; put the loop over the data set, or the `fit` that uses it, into the block.

    Raises:
        RecordError: a record is truncated, corrupt or malformed.
    """
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as err:
        quoted = re.search(r"RecordError: (.*)", str(err))
        if quoted:
            raise RecordError(quoted[1]) from err
        if isinstance(err, tf.errors.DataLossError):
            for path in series_files(source):
                for _ in raw_records(path):
                    pass
        raise


def _epochs(files: Sequence[Path], counts: NDArray[np.int64], plan: CropPlan, start: int, stop: int) -> Any:
    """Return a data set of consecutive epochs, each shuffled."""
    import tensorflow as tf

    # Divide whole files among the workers if there are enough; else each worker reads all and filters.
    by_file = len(files) >= plan.shard_count
    numbers = (
        np.arange(len(files))[plan.shard_index :: plan.shard_count] if by_file else np.arange(len(files))
    )

    def file_order(epoch: np.int64) -> NDArray[np.int64]:
        return np.random.default_rng([plan.seed, int(epoch)]).permutation(numbers)

    def records(epoch: Any, number: Any) -> Any:
        dataset = tf.data.TFRecordDataset(tf.gather([str(path) for path in files], number)).enumerate()
        if not by_file:
            before = tf.gather(np.cumsum(counts) - counts, number)
            dataset = dataset.filter(
                lambda record, raw: (before + record) % plan.shard_count == plan.shard_index
            )
        return dataset.map(lambda record, raw: (epoch, number, record, raw)).prefetch(1)

    def one_epoch(epoch: Any) -> Any:
        # Seed of this graph, so that `tf.random.set_seed` elsewhere does not change the order. A seed of 0
        # would mean a random one.
        tf.compat.v1.set_random_seed(plan.seed + 1)
        shuffled = tf.ensure_shape(tf.numpy_function(file_order, [epoch], tf.int64), [None])
        reads = plan.parallel_reads
        dataset = tf.data.Dataset.from_tensor_slices(shuffled)
        # Each file prefetches one record on its thread. Parallel interleaving would prefetch dozens: 1.2 GB.
        dataset = dataset.interleave(lambda n: records(epoch, n), cycle_length=reads)
        dataset = dataset.map(_cutter(files, counts, plan), num_parallel_calls=reads)
        dataset = dataset.flat_map(tf.data.Dataset.from_tensor_slices)
        return dataset.shuffle(plan.shuffle, seed=epoch, reshuffle_each_iteration=False)

    # An epoch gives nothing until its shuffle buffer is full. Prefetched crops bridge that time, since a
    # buffer fills faster than training uses its crops.
    dataset = tf.data.Dataset.range(start, stop).flat_map(one_epoch).prefetch(plan.shuffle)
    dataset = dataset.map(lambda pair: pair | {name: _unpack(pair[name]) for name in ("anchor", "positive")})
    options = tf.data.Options()
    options.deterministic = True
    # In TensorFlow's pool, cutting would occupy every thread, and prefetched crops would wait.
    options.threading.private_threadpool_size = plan.parallel_reads + 2
    # Autotuning would choose a buffer for every stage; here an element has 25 MB.
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    return dataset.with_options(options)


def _pack(scaled: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return scaled values as uint16, for half the memory: 0 is NaN; the error is below 2e-5 (0.03 DN)."""
    codes = np.rint((scaled + np.float32(1)) * np.float32(PACKED_HALF)) + np.float32(1)
    packed: NDArray[np.uint16] = np.nan_to_num(codes, nan=0.0).astype(np.uint16)
    return packed


def _unpack(codes: Any) -> Any:
    """Undo `_pack`, in the graph."""
    import tensorflow as tf

    scaled = (tf.cast(codes, tf.float32) - 1.0) / PACKED_HALF - 1.0
    return tf.where(tf.equal(codes, 0), tf.constant(np.nan, tf.float32), scaled)


def _cutter(
    files: Sequence[Path], counts: NDArray[np.int64], plan: CropPlan
) -> Callable[..., dict[str, Any]]:
    """Return the graph's step from a record to its crops."""
    import tensorflow as tf

    side = plan.size_px
    spec = {
        "anchor": tf.TensorSpec((None, side, side, len(BANDS)), tf.uint16),
        "positive": tf.TensorSpec((None, side, side, len(BANDS)), tf.uint16),
        "x": tf.TensorSpec((None,), tf.int64),
        "y": tf.TensorSpec((None,), tf.int64),
        "dates": tf.TensorSpec((None, 2), tf.int64),
        "place_id": tf.TensorSpec((None,), tf.int64),
        "overlap_group": tf.TensorSpec((None,), tf.int64),
    }

    def cut(epoch: np.int64, number: np.int64, record: np.int64, raw: bytes) -> tuple[NDArray[Any], ...]:
        path, is_last = files[int(number)], bool(record == counts[number] - 1)
        rng = np.random.default_rng([plan.seed, int(epoch), int(number), int(record)])
        crops, ids = _crops_of(raw, path, int(record), is_last, plan, rng)
        places = (np.full(len(crops.x), i, np.int64) for i in ids)
        return _pack(crops.anchor), _pack(crops.positive), *crops[2:], *places

    def step(epoch: Any, number: Any, record: Any, raw: Any) -> dict[str, Any]:
        kinds = [s.dtype for s in spec.values()]
        values = tf.numpy_function(cut, [epoch, number, record, raw], kinds)
        return {
            name: tf.ensure_shape(value, s.shape)
            for (name, s), value in zip(spec.items(), values, strict=True)
        }

    return step


def _crops_of(
    raw: bytes, path: Path, record: int, is_last: bool, plan: CropPlan, rng: np.random.Generator
) -> tuple[Crops, tuple[int, int]]:
    """Return crops, place id and overlap group of a record; every fault is a `RecordError`."""
    fields = parse(raw, place_of(path, record))
    if is_last and fields.ends_file is False:
        raise fields.fault("more records were written after it. The file is truncated.")
    series = series_of(fields, f"{path.stem}#{record}")
    try:
        return cut_crops(series, plan, rng), (group_of(series.place), series.overlap_group)
    except ArrayError as err:
        raise fields.fault(str(err)) from err
