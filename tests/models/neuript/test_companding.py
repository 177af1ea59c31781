from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchbay.models.neuript.companding import compand, expand


@pytest.mark.parametrize(
    ("microvolts", "expected"),
    [(0, 0), (1, 0.1877), (4, 0.7508), (10, 1.4387), (20, 1.9591), (50, 2.6470), (100, 3.1674)],
)
def test_the_table(microvolts: float, expected: float) -> None:
    assert float(compand(torch.tensor(float(microvolts)))) == pytest.approx(expected, abs=5e-5)
    assert float(compand(torch.tensor(-float(microvolts)))) == pytest.approx(-expected, abs=5e-5)


@given(st.floats(-1e4, 1e4))
def test_there_and_back(value: float) -> None:
    x = torch.tensor(value, dtype=torch.float64)
    torch.testing.assert_close(expand(compand(x)), x, atol=1e-12, rtol=1e-12)


def test_it_is_increasing_without_a_step() -> None:
    x = torch.linspace(-200, 200, 40_001, dtype=torch.float64)
    rises = compand(x).diff()
    assert bool((rises > 0).all()) and float(rises.max()) < 2 * 0.25 * 0.01


def test_gradients_are_finite_at_zero() -> None:
    x = torch.zeros(3, requires_grad=True)
    compand(x).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None and bool(torch.isfinite(x.grad).all())
