"""Compiled or not, the same; many shapes, no warning; results in the order of the items."""

import os
import threading

import numpy as np
import pytest
from engine import small_encoder

from retrieval.kernels import compiled
from retrieval.kernels.compiled import Compiled
from retrieval.kernels.executors import parallel_map, prefetch_map
from retrieval.models.encoder import COMPILED_AFTER


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


def test_where_many_calls_are_expected_the_first_shape_alone_is_compiled_at_once():
    one = Compiled(lambda a: a * 2.0, after=2)
    one.expect(3)
    one(np.ones(1, np.float32))
    assert not one._fast
    one.expect(4)
    for n in (2, 2, 3, 3):
        assert one(np.ones(n, np.float32)).tolist() == [2.0] * n
    assert [shapes[0][0] for shapes in one._fast] == [(2,)]
    assert one(np.ones(3, np.float32)).tolist() == [2.0] * 3
    assert [shapes[0][0] for shapes in one._fast] == [(2,), (3,)]


@pytest.mark.parametrize("fused", [True, False])
def test_many_shapes_are_no_reason_to_warn(fused, caplog, capfd):
    one = Compiled(lambda a: a * 2.0, fused=fused, after=0)
    for n in range(1, 30):
        assert one(np.ones(n, np.float32)).tolist() == [2.0] * n
    assert len(one._fast) == compiled.MAX_SHAPES  # compiled code is never freed
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


def test_cores_are_shared_unless_somebody_has_decided(monkeypatch):
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "3")
    compiled.limit_tf_threads()
    assert os.environ["TF_NUM_INTRAOP_THREADS"] == "3"
    for cores, own in ((1, "1"), (2, "1"), (4, "1"), (16, "4")):
        monkeypatch.setattr(compiled, "cores", lambda cores=cores: cores)
        monkeypatch.delenv("TF_NUM_INTRAOP_THREADS")
        compiled.limit_tf_threads()
        assert os.environ["TF_NUM_INTRAOP_THREADS"] == own


def test_side_by_side_keeps_the_order_and_uses_several_threads(monkeypatch):
    monkeypatch.setattr(compiled, "threads", lambda: 3)
    meeting = threading.Barrier(3, timeout=20)

    def work(item):
        meeting.wait()  # passes only if three are at work at once
        return item * item

    assert list(parallel_map(work, range(9))) == [i * i for i in range(9)]
    monkeypatch.setattr(compiled, "threads", lambda: 1)
    assert list(parallel_map(lambda i: -i, range(3))) == [0, -1, -2]


def test_what_goes_wrong_in_a_thread_is_raised(monkeypatch):
    monkeypatch.setattr(compiled, "threads", lambda: 2)

    def work(item):
        raise ValueError(item)

    with pytest.raises(ValueError, match="0"):
        list(parallel_map(work, range(4)))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_ahead_keeps_the_order_and_what_was_made_before_a_failure(monkeypatch, count):
    monkeypatch.setattr(compiled, "threads", lambda: count)

    def drawn(stop):
        yield from range(5)
        raise stop

    def work(item):
        return 6 // (3 - item)

    assert list(prefetch_map(str, range(9))) == list("012345678")
    for stop in (KeyboardInterrupt, ValueError):
        made = []
        with pytest.raises(stop):
            for each in prefetch_map(str, drawn(stop)):
                made.append(each)
        assert made == list("01234")
    made = []
    with pytest.raises(ZeroDivisionError):
        for each in prefetch_map(work, range(9)):
            made.append(each)
    assert made == [2, 3, 6]


def test_ahead_draws_few_and_large_ones_alone(monkeypatch):
    monkeypatch.setattr(compiled, "threads", lambda: 2)
    drawn, seen = [], []

    def items(sizes):
        for size in sizes:
            drawn.append(size)
            yield size

    for number, _ in enumerate(prefetch_map(lambda s: s, items([1] * 9), lambda s: s, 100)):
        assert len(drawn) <= number + 3  # as many as threads, and one
    drawn.clear()
    for _ in prefetch_map(lambda s: s, items([1, 100, 1, 100, 100]), lambda s: s, 100):
        seen.append(len(drawn))
    assert seen == [2, 2, 4, 4, 5]


def test_of_many_images_the_encoder_is_compiled_for_the_first(tmp_path):
    from retrieval.pipeline import build_index

    pixels = np.random.default_rng(0).integers(1, 4000, (COMPILED_AFTER, 72, 72, 4)).astype(np.uint16)
    for repeated, ready in ((1, False), (2, True)):
        encoder = small_encoder()
        build_index(np.concatenate([pixels] * repeated), tmp_path / str(ready), encoder=encoder)
        assert bool(encoder._call._fast) is ready
