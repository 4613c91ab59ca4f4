"""Compiled functions, executors and parallel maps."""

import os
import threading

import numpy as np
import pytest
from engine import SMALL, projection

from retrieval.kernels.compiled import MAX_SHAPES, Compiled
from retrieval.kernels.executors import limit_tf_threads, map_batches, parallel_map, prefetch_map
from retrieval.models.encoder import COMPILED_AFTER, KerasEncoder
from retrieval.models.networks import tensor_model


def test_the_same_before_and_after_it_is_compiled():
    from keras import ops

    one = Compiled(lambda a, b: (ops.sum(a * b, -1), ops.exp(a)), after=2)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 7)).astype(np.float32)
    results = [one(a, b) for _ in range(5)]
    for total, exp in results:
        np.testing.assert_allclose(total, (a * b).sum(-1), rtol=1e-5)
        np.testing.assert_allclose(exp, np.exp(a), rtol=1e-5)
        assert type(total) is type(exp) is np.ndarray


def test_with_many_calls_announced_the_first_shape_is_compiled_at_once():
    function = Compiled(lambda a: a * 2.0, after=2)
    function.warm_up(3)
    function(np.ones(1, np.float32))
    assert not function.shapes
    function.warm_up(4)
    for n in (2, 2, 3, 3):
        assert function(np.ones(n, np.float32)).tolist() == [2.0] * n
    assert function.shapes == [(2,)]
    assert function(np.ones(3, np.float32)).tolist() == [2.0] * 3
    assert function.shapes == [(2,), (3,)]


@pytest.mark.parametrize("fused", [True, False])
def test_many_shapes_are_no_reason_to_warn(fused, caplog, capfd):
    one = Compiled(lambda a: a * 2.0, fused=fused, after=0)
    for n in range(1, 30):
        assert one(np.ones(n, np.float32)).tolist() == [2.0] * n
    assert len(one.shapes) == MAX_SHAPES  # compiled code is never freed
    assert "retracing" not in caplog.text + capfd.readouterr().err


def test_arguments_that_are_left_out_cost_nothing(monkeypatch):
    import keras
    import tensorflow as tf

    if keras.backend.backend() != "tensorflow":
        pytest.skip("TensorFlow's own way of calling what it compiled")

    def second_try(*_):  # TensorFlow's, after it has put all arrays into the message of the first
        raise AssertionError("the call did not fit")

    concrete = type(tf.function(lambda: 0).get_concrete_function())
    monkeypatch.setattr(concrete, "_call_with_flat_signature", second_try)
    one = Compiled(lambda a, b, c=None, d=None: a + b, after=0)
    assert one(np.ones(3, np.float32), np.ones(3, np.float32)).tolist() == [2.0] * 3


@pytest.mark.parametrize(("cores", "expected"), [(1, "1"), (2, "1"), (4, "1"), (16, "4")])
def test_tensorflow_shares_the_cores_with_parallel_batches(monkeypatch, cores, expected):
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "")  # restored after the test
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS")
    limit_tf_threads(cores)
    assert os.environ["TF_NUM_INTRAOP_THREADS"] == expected


def test_a_thread_limit_of_the_user_stays(monkeypatch):
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "3")
    limit_tf_threads(16)
    assert os.environ["TF_NUM_INTRAOP_THREADS"] == "3"


@pytest.mark.parametrize("count", [0, 1, 3, 8, 9, 21])
def test_batches_of_few_sizes_give_what_all_rows_give(count):
    rows, sizes = np.arange(2.0 * count).reshape(count, 2), set()

    def mean(batch):
        sizes.add(len(batch))
        return batch.mean(1)

    found = [*map_batches(mean, rows, 8)]
    np.testing.assert_array_equal(np.concatenate([np.zeros(0), *found]), rows.mean(1) if count else [])
    assert sizes == {0: set(), 1: {1}, 3: {4}, 8: {8}, 9: {8}, 21: {8}}[count]


def test_parallel_map_keeps_the_order_and_uses_several_threads():
    meeting = threading.Barrier(3, timeout=20)

    def square(number):
        meeting.wait()  # passes only if three run at the same time
        return number * number

    assert list(parallel_map(square, range(9), 3)) == [i * i for i in range(9)]
    assert list(parallel_map(lambda i: -i, range(3), 1)) == [0, -1, -2]


def test_an_error_in_a_thread_is_raised():
    def fail(number):
        raise ValueError(number)

    with pytest.raises(ValueError, match="0"):
        list(parallel_map(fail, range(4), 2))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_prefetch_map_keeps_the_order_and_the_results_before_a_failure(count):
    def drawn(stop):
        yield from range(5)
        raise stop

    assert list(prefetch_map(str, range(9), count=count)) == list("012345678")
    for stop in (KeyboardInterrupt, ValueError):
        results = []
        with pytest.raises(stop):
            for result in prefetch_map(str, drawn(stop), count=count):
                results.append(result)
        assert results == list("01234")
    results = []
    with pytest.raises(ZeroDivisionError):
        for result in prefetch_map(lambda number: 6 // (3 - number), range(9), count=count):
            results.append(result)
    assert results == [2, 3, 6]


def test_prefetch_map_draws_few_tasks_and_runs_large_ones_alone():
    drawn = []

    def tasks(sizes):
        for size in sizes:
            drawn.append(size)
            yield size

    for number, _ in enumerate(prefetch_map(lambda s: s, tasks([1] * 9), lambda s: s, 100, 2)):
        assert len(drawn) <= number + 3  # as many as threads, and one
    drawn.clear()
    counts = [
        len(drawn) for _ in prefetch_map(lambda s: s, tasks([1, 100, 1, 100, 100]), lambda s: s, 100, 2)
    ]
    assert counts == [2, 2, 4, 4, 5]


def test_of_many_images_the_encoder_is_compiled_for_the_first(tmp_path):
    from retrieval.pipeline import build_index

    pixels = np.random.default_rng(0).integers(1, 4000, (COMPILED_AFTER, 72, 72, 4)).astype(np.uint16)
    for repeated, ready in ((1, False), (2, True)):
        encoder = KerasEncoder(tensor_model(projection(SMALL.dim), SMALL), "new")
        build_index(np.concatenate([pixels] * repeated), tmp_path / str(ready), encoder=encoder)
        assert bool(encoder.compiled_shapes) is ready
