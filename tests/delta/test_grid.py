from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tests.delta.laws import LAW, kept

from patchbay.delta.codecs import VALUES, Positions, Shape, Values
from patchbay.delta.codecs.grid import ZERO, grid, to_grid
from patchbay.delta.manifest import numel

Kept = tuple[Shape, Positions, Values]


@LAW
@given(st.integers(0, 40), st.integers(1, 30), st.integers(0, 2**32))
def test_columns_on_the_grid_come_back_bit_for_bit(rows: int, columns: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    points = grid(np.float32(10.0 ** generator.uniform(-20, 20)), 4)[: generator.integers(1, 255)]
    magnitude = np.append(generator.choice(points, columns - 1), points[0])  # the largest has to be there
    where = np.flatnonzero(generator.random((rows, columns)) < 0.5)
    where = np.union1d(where, np.arange(columns) * (rows > 0))[: rows * columns]
    if rows and not (where % columns == columns - 1).any():
        where = np.append(where, rows * columns - 1)
    values = (magnitude[where % columns] * generator.choice([-1.0, 1.0], len(where))).astype(np.float32)
    codec, shape = VALUES["sign_column_log"], (rows, columns)
    assert codec.decode(codec.encode(values, where, shape), where, shape).tobytes() == values.tobytes()


@LAW
@given(kept())
def test_log_scales_are_within_a_step_of_the_columns_mean(entries: Kept) -> None:
    shape, where, values = entries
    codec = VALUES["sign_column_log"]
    back = codec.decode(codec.encode(values, where, shape), where, shape)
    column = where % max(1, numel(shape[1:]))
    means = {c: np.abs(values[column == c]).astype(np.float64).mean() for c in np.unique(column)}
    for c, mean in means.items():
        scale = np.abs(back[column == c])
        assert (scale == scale[0]).all()
        if mean > max(means.values()) * 2.0**-63:
            assert abs(scale[0] - mean) <= 0.0867 * mean  # half the distance of two points over their mean
        assert np.array_equal(np.signbit(back), np.signbit(values))


def test_the_grid_is_the_power_of_two_to_a_rounding() -> None:
    for steps in (1, 2, 4):
        exact = 0.7 * 2.0 ** (-np.arange(255) / steps)
        assert np.allclose(grid(np.float32(0.7), steps), exact, rtol=2e-7, atol=1e-45)
        assert np.array_equal(
            grid(np.float32(0.7), steps)[::steps], np.ldexp(np.float32(0.7), -np.arange(255))[: -(-255 // steps)]
        )


def test_half_way_between_two_points_is_the_larger() -> None:
    values = np.array([1, 0.75, 0.7499999, 0.5, 0], np.float32)
    assert to_grid(values, 1)[1].tolist() == [0, 0, 1, 1, ZERO]
