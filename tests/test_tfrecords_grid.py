"""Window arithmetic against a slow restatement of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfrecords.errors import GridError
from tfrecords.grid import WindowGrid, map_to_pixel, overlap, pixel_to_map, valid_share, window_count

sides = st.integers(0, 40)
sizes = st.integers(1, 12)
strides = st.integers(1, 9)


def slow_windows(height, width, size, stride):
    """All (x, y), row by row, by trying every pixel."""
    return [
        (x, y)
        for y in range(0, height, stride)
        for x in range(0, width, stride)
        if y + size <= height and x + size <= width
    ]


@given(sides, sides, sizes, strides)
def test_windows_of_a_grid_fit_into_the_image(height, width, size, stride):
    grid = WindowGrid(height, width, size, stride)
    expected = slow_windows(height, width, size, stride)
    assert grid.xy().tolist() == [list(xy) for xy in expected]
    assert grid.count == len(expected) == grid.rows * grid.cols
    assert grid.xy().dtype == np.int32 and grid.xy().shape == (len(expected), 2)


@given(sides, sides, sizes, strides)
def test_ordinal_undoes_xy(height, width, size, stride):
    grid = WindowGrid(height, width, size, stride)
    x, y = grid.xy().T
    assert grid.ordinal(x, y).tolist() == list(range(grid.count))


@pytest.mark.parametrize("xy", [(1, 0), (0, 7), (-8, 0), (0, -8), (48, 0), (0, 24)])
def test_ordinal_refuses_positions_off_the_grid(xy):
    with pytest.raises(GridError, match=f"x={xy[0]}, y={xy[1]}"):
        WindowGrid(80, 104).ordinal(*xy)


@pytest.mark.parametrize(
    ("length", "size", "stride", "count"),
    [(63, 64, 8, 0), (64, 64, 8, 1), (71, 64, 8, 1), (72, 64, 8, 2), (512, 64, 8, 57)],
)
def test_window_count(length, size, stride, count):
    assert window_count(length, size, stride) == count


@pytest.mark.parametrize("numbers", [(-1, 5, 1, 1), (5, -1, 1, 1), (5, 5, 0, 1), (5, 5, 1, 0)])
def test_impossible_grid_is_refused(numbers):
    with pytest.raises(GridError, match="expected"):
        WindowGrid(*numbers)


@given(sides, sides, sizes, strides, st.integers(0, 2**32 - 1))
def test_valid_share_is_the_mean_of_each_window(height, width, size, stride, seed):
    valid = np.random.default_rng(seed).random((height, width)) < 0.7
    share = valid_share(valid, size, stride)
    expected = [
        valid[y : y + size, x : x + size].mean() for x, y in slow_windows(height, width, size, stride)
    ]
    assert share.dtype == np.float32
    np.testing.assert_allclose(share.ravel(), expected, atol=1e-6)


@given(*[st.integers(0, 30)] * 4, sizes)
def test_overlap_is_sharing_a_pixel(x0, y0, x1, y1, size):
    def pixels(x, y):
        return {(x + i, y + j) for i in range(size) for j in range(size)}

    assert bool(overlap(x0, y0, x1, y1, size)) == bool(pixels(x0, y0) & pixels(x1, y1))


def test_overlap_broadcasts_and_takes_unsigned_numbers():
    x = np.array([0, 63, 64], np.uint16)
    y = np.zeros(3, np.uint16)
    expected = [[True, True, False], [True, True, True], [False, True, True]]
    assert overlap(x[:, None], y[:, None], x, y).tolist() == expected


def test_pixel_corners_become_map_coordinates():
    tile = (10.0, 0.0, 600000.0, 0.0, -10.0, 5700000.0)
    assert pixel_to_map(tile, 0, 0) == (600000.0, 5700000.0)
    assert pixel_to_map(tile, 0.5, 1.5) == (600005.0, 5699985.0)


@given(*[st.floats(-1e4, 1e4)] * 2, st.floats(-1, 1), st.floats(-1, 1))
def test_map_to_pixel_undoes_pixel_to_map(x, y, b, d):
    transform = (10.0, b, 5e5, d, -10.0, 5e6)
    np.testing.assert_allclose(map_to_pixel(transform, *pixel_to_map(transform, x, y)), (x, y), atol=1e-6)


def test_pixels_without_area_are_refused():
    with pytest.raises(GridError, match="no area"):
        map_to_pixel((1, 1, 0, 1, 1, 0), 0, 0)
