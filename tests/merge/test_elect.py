from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchbay.merge.elect import elect_mean

NUMBERS = st.lists(st.floats(-8, 8, width=16), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("values", "elected"),
    [
        ([1.0, 3.0], 2.0),
        ([3.0, -1.0], 3.0),
        ([-3.0, 1.0, -1.0], -2.0),
        ([2.0, -2.0], 0.0),
        ([0.0, 4.0], 4.0),  # 0 has no vote
        ([1.0, -1e-12], 1.0),
        ([1.0, 1e-12], 1.0),  # rounding is not counted either
        ([0.0, 0.0], 0.0),
        ([1e-30, 3e-30], 2e-30),
    ],
)
def test_by_hand(values: list[float], elected: float) -> None:
    assert float(elect_mean(torch.tensor(values, dtype=torch.float64))) == pytest.approx(elected, rel=1e-12)


@given(NUMBERS)
def test_nobody_is_exceeded_and_order_does_not_matter(values: list[float]) -> None:
    numbers = torch.tensor(values, dtype=torch.float64)
    found = float(elect_mean(numbers))
    assert abs(found) <= float(numbers.abs().max())
    assert found == pytest.approx(float(elect_mean(numbers.flip(0))), rel=1e-12)
    assert found == -float(elect_mean(-numbers))


def test_along_any_dimension() -> None:
    values = torch.tensor([[1.0, -2.0], [3.0, -4.0], [-1.0, 0.5]])
    assert elect_mean(values, 0).tolist() == [2.0, -3.0]
    assert elect_mean(values, 1).tolist() == [-2.0, -4.0, -1.0]
