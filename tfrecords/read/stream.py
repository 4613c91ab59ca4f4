"""Training series streamed as pairs of crops, in bounded memory whatever the size of the data.

A series of the challenge has 25 MB and there are thousands: to shuffle series would hold as many
gigabytes as the buffer has dozens of them. So crops are cut first, where a series is read, and the
crops are shuffled. At any time there are in memory: the series being read and cut (`parallel_reads`
of each, with copies), the crops of those, the shuffle buffer, and as many crops that are ready ahead.

The cutting itself is NumPy (`crops.cut_crops`), so that what is trained on is defined once; its
chance depends on seed, epoch, file and record only, not on the order in which threads come to it.
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
"""More than anybody trains."""
PACKED_HALF = 32767.0
"""Steps of a packed crop on each side of 0."""


def stream_crops(
    source: SeriesLike, plan: CropPlan | None = None, *, epoch: int = 0, repeat: bool = False
) -> Any:
    """Stream pairs of crops for training.

    Wrap the loop over it in `naming_bad_records`, and a damaged record is named by file and number.

    Args:
        source: see `series_files`.
        plan: how crops are drawn; the defaults of `CropPlan` if there is none.
        epoch: number of the epoch, from 0; each draws other crops in another order.
        repeat: go on with the next epochs for ever; else end with this one.

    Returns:
        A `tf.data.Dataset` of dicts, the same each time it is gone through:
        anchor, positive: (size, size, 4) float32 in [-1, 1] to within 2e-5, NaN where nodata; bands in stored
            order, missing ones all NaN; positive is another date of the same pixels;
        place_id: int64 in [0, 2**63), the same for all cuts of a place;
        overlap_group: int64, the same for places that share ground;
        x, y: int64, top-left pixel of the anchor in the place's grid;
        dates: (2,) int64, numbers of the two dates in the series.

    Raises:
        MissingInputError: there is nothing to read.
        ManifestError: the folder is damaged or unfinished.
        RecordError: a file is truncated; names file and record.
        ArrayError: no series of this shard gives a crop: all are too small, or nodata.
    """
    plan = plan or CropPlan()
    files = series_files(source)
    counts = np.array([count_records(path) for path in files], np.int64)
    with naming_bad_records(source):
        first = _epochs(files, counts, replace(plan, shuffle=1), epoch, epoch + 1).take(1)
        if not any(True for _ in first):
            raise ArrayError(
                f"{source}: shard {plan.shard_index} of {plan.shard_count} has no two dates with a window of "
                f"{plan.size_px} x {plan.size_px} px of ground: the series are too small or nodata, or fewer "
                f"than the shards"
            )
    return _epochs(files, counts, plan, epoch, EPOCHS if repeat else epoch + 1)


@contextmanager
def naming_bad_records(source: SeriesLike) -> Iterator[None]:
    """Turn what TensorFlow says of a damaged record into the file's name and the record's number.

    Args:
        source: what is streamed; its files are read once more where TensorFlow doesn't say which.

    Yields:
        Nothing: put the loop over the data set, or the `fit` that it feeds, into the block.

    Raises:
        RecordError: a record is truncated, corrupt or malformed.
    """
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as err:
        said = re.search(r"RecordError: (.*)", str(err))
        if said:
            raise RecordError(said[1]) from err
        if isinstance(err, tf.errors.DataLossError):
            for path in series_files(source):
                for _ in raw_records(path):
                    pass
        raise


def _epochs(files: Sequence[Path], counts: NDArray[np.int64], plan: CropPlan, start: int, stop: int) -> Any:
    """Epochs one after the other, each shuffled for itself."""
    import tensorflow as tf

    # By file where there are enough of them, so that nobody reads what is another's.
    by_file = len(files) >= plan.shard_count
    mine = np.arange(len(files))[plan.shard_index :: plan.shard_count] if by_file else np.arange(len(files))

    def order(epoch: np.int64) -> NDArray[np.int64]:
        return np.random.default_rng([plan.seed, int(epoch)]).permutation(mine)

    def records(epoch: Any, number: Any) -> Any:
        dataset = tf.data.TFRecordDataset(tf.gather([str(path) for path in files], number)).enumerate()
        if not by_file:
            before = tf.gather(np.cumsum(counts) - counts, number)
            dataset = dataset.filter(
                lambda record, raw: (before + record) % plan.shard_count == plan.shard_index
            )
        return dataset.map(lambda record, raw: (epoch, number, record, raw)).prefetch(1)

    def one_epoch(epoch: Any) -> Any:
        # This graph's own seed, so that `tf.random.set_seed` elsewhere doesn't change the order; 0 would
        # mean chance.
        tf.compat.v1.set_random_seed(plan.seed + 1)
        numbers = tf.ensure_shape(tf.numpy_function(order, [epoch], tf.int64), [None])
        reads = plan.parallel_reads
        dataset = tf.data.Dataset.from_tensor_slices(numbers)
        # Each file reads one record ahead in a thread of its own. Interleaving "in parallel" instead
        # keeps dozens of records ready: 1.2 GB.
        dataset = dataset.interleave(lambda n: records(epoch, n), cycle_length=reads)
        dataset = dataset.map(_cutter(files, counts, plan), num_parallel_calls=reads)
        dataset = dataset.flat_map(tf.data.Dataset.from_tensor_slices)
        return dataset.shuffle(plan.shuffle, seed=epoch, reshuffle_each_iteration=False)

    # An epoch gives nothing until its shuffle buffer is full: what is ready ahead bridges that, since
    # a buffer fills faster than its crops are trained on.
    dataset = tf.data.Dataset.range(start, stop).flat_map(one_epoch).prefetch(plan.shuffle)
    dataset = dataset.map(
        lambda pair: pair | {name: _unpacked(pair[name]) for name in ("anchor", "positive")}
    )
    options = tf.data.Options()
    options.deterministic = True
    # Cutting would hold every thread of TensorFlow's own pool, and who takes crops that are ready would wait.
    options.threading.private_threadpool_size = plan.parallel_reads + 2
    # Autotuning gives every stage a buffer of its own choice; here they hold 25 MB an element.
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    return dataset.with_options(options)


def _packed(scaled: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Scaled values in half the memory of the shuffle buffer: 0 is NaN, an error is below 2e-5 (0.03 DN)."""
    codes = np.rint((scaled + np.float32(1)) * np.float32(PACKED_HALF)) + np.float32(1)
    return np.nan_to_num(codes, nan=0.0).astype(np.uint16)


def _unpacked(codes: Any) -> Any:
    """Undo `_packed`, in the graph."""
    import tensorflow as tf

    scaled = (tf.cast(codes, tf.float32) - 1.0) / PACKED_HALF - 1.0
    return tf.where(tf.equal(codes, 0), tf.constant(np.nan, tf.float32), scaled)


def _cutter(
    files: Sequence[Path], counts: NDArray[np.int64], plan: CropPlan
) -> Callable[..., dict[str, Any]]:
    """The graph's step from a record to its crops."""
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
        path, ends = files[int(number)], bool(record == counts[number] - 1)
        rng = np.random.default_rng([plan.seed, int(epoch), int(number), int(record)])
        crops, ids = _crops_of(raw, path, int(record), ends, plan, rng)
        places = (np.full(len(crops.x), i, np.int64) for i in ids)
        return _packed(crops.anchor), _packed(crops.positive), *crops[2:], *places

    def step(epoch: Any, number: Any, record: Any, raw: Any) -> dict[str, Any]:
        kinds = [s.dtype for s in spec.values()]
        values = tf.numpy_function(cut, [epoch, number, record, raw], kinds)
        return {
            name: tf.ensure_shape(value, s.shape)
            for (name, s), value in zip(spec.items(), values, strict=True)
        }

    return step


def _crops_of(
    raw: bytes, path: Path, record: int, ends: bool, plan: CropPlan, rng: np.random.Generator
) -> tuple[Crops, tuple[int, int]]:
    """Crops of a record, and its place id and overlap group; every fault is a `RecordError`."""
    fields = parse(raw, place_of(path, record))
    if ends and fields.ends_file is False:
        raise fields.fault("more records were written after it: the file is truncated")
    series = series_of(fields, f"{path.stem}#{record}")
    try:
        return cut_crops(series, plan, rng), (group_of(series.place), series.overlap_group)
    except ArrayError as err:
        raise fields.fault(str(err)) from err
