from __future__ import annotations

import numpy as np
import pytest
from benchmarks.slowdown import slowdown
from hypothesis import given
from hypothesis import strategies as st

ratios = st.lists(st.floats(0.5, 2), min_size=1, max_size=30)


@given(ratios)
def test_the_bound_is_above_the_middle_and_among_the_ratios(found: list[float]) -> None:
    middle, bound = slowdown(found)
    assert middle == pytest.approx(np.median(found) - 1)
    assert min(found) - 1 <= middle <= bound + 1e-12 and bound <= max(found) - 1 + 1e-12
    assert slowdown(found) == (middle, bound)


def test_rounds_that_agree_leave_no_doubt() -> None:
    assert slowdown([1.04] * 20) == pytest.approx((0.04, 0.04))


def test_the_bound_holds_as_often_as_it_says() -> None:
    """Of the median of a hundred samples of 20 rounds, whose true median is 1."""
    generator = np.random.default_rng(1)
    held = [slowdown(generator.normal(1, 0.05, 20).tolist())[1] >= 0 for _ in range(100)]
    assert 88 <= sum(held) <= 100
    assert slowdown([1.0, 1.1] * 10, certainty=0.5)[1] < slowdown([1.0, 1.1] * 10)[1]
