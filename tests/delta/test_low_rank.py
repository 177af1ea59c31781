"""Products of factors: the same bits whatever the machine, the block and the memory layout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.delta.laws import LAW, values

from patchbay.delta import Factors
from patchbay.delta import low_rank as module
from patchbay.delta.low_rank import product


@st.composite
def factors(draw: st.DrawFn) -> Factors:
    rows, columns = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    rank = draw(st.integers(1, min(rows, columns)))
    left, right = draw(values(rows * rank)), draw(values(columns * rank))
    return Factors(
        (rows, columns),
        torch.from_numpy(left).reshape(rows, rank),
        torch.from_numpy(right).reshape(columns, rank),
    )


def entry_by_entry(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Every product and every sum a number of its own, in fp32."""
    total = np.zeros((len(left), len(right)), np.float32)
    for row in range(len(left)):
        for column in range(len(right)):
            for k in range(left.shape[1]):
                total[row, column] += left.numpy()[row, k] * right.numpy()[column, k]
    return torch.from_numpy(total)


@LAW
@given(factors(), st.integers(1, 40))
def test_the_product_is_that_of_single_numbers(made: Factors, block: int) -> None:
    """Also where blocks end inside the matrix."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        assert torch.equal(made.to_dense(), entry_by_entry(made.left, made.right))


def test_columns_are_added_from_the_first() -> None:
    """A matrix product is free to add the small ones first."""
    right = torch.tensor([[1.0, 2.0**-24, 2.0**-24]])
    ones = torch.ones(1, 3)
    assert Factors((1, 1), ones, right).to_dense().item() == 1.0
    assert Factors((1, 1), ones, right.flip(1)).to_dense().item() == 1.0 + 2.0**-23


def test_no_product_is_fused_with_its_sum() -> None:
    """(1 + 2^-12)^2 - 1 - 2^-11 is 2^-24, which the rounded product has lost."""
    near = 1 + 2.0**-12
    left, right = torch.tensor([[-1 - 2.0**-11, near]]), torch.tensor([[1.0, near]])
    assert Factors((1, 1), left, right).to_dense().item() == 0.0


def test_a_large_matrix_passes_many_blocks() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(700, 3, generator=generator), torch.randn(501, 3, generator=generator)
    assert 5 * module.BLOCK < 700 * 501
    expected = sum((left[:, k, None] * right[:, k] for k in range(3)), torch.zeros(700, 501))
    assert torch.equal(torch.from_numpy(product(left.numpy(), right.numpy())), expected)


def test_layout_does_not_matter() -> None:
    left, right = torch.randn(9, 4), torch.randn(7, 4)
    aside = product(np.asfortranarray(left.numpy()), right.numpy()[:, ::-1][:, ::-1])
    assert np.array_equal(aside, product(left.numpy(), right.numpy()))


def test_a_convolution_is_a_matrix_of_its_filters() -> None:
    left, right = torch.randn(4, 2), torch.randn(18, 2)
    dense = Factors((4, 2, 3, 3), left, right).to_dense()
    assert dense.shape == (4, 2, 3, 3)
    assert torch.equal(dense.flatten(1), Factors((4, 18), left, right).to_dense())


def test_bytes_are_those_of_both_factors() -> None:
    assert Factors((5, 3), torch.zeros(5, 2), torch.zeros(3, 2)).num_bytes == 4 * (5 + 3) * 2


@LAW
@given(factors())
def test_no_entry_is_above_the_bound(made: Factors) -> None:
    largest = float(made.to_dense().abs().max())
    assert largest <= made.largest * (1 + 2.0**-20) + 1e-44  # rounded sums and subnormal products
    if made.left.shape[1] == 1:
        assert largest == pytest.approx(made.largest, rel=1e-7, abs=1e-44)


@pytest.mark.parametrize(("left", "right"), [("nan", 0.0), (0.0, "nan"), ("inf", 0.0), (0.0, "-inf"), ("inf", 1.0)])
def test_the_bound_of_numbers_that_are_none_is_none(left: float | str, right: float | str) -> None:
    sides = torch.zeros(3, 2), torch.ones(4, 2)
    sides[0][1, 1], sides[1][2, 1] = float(left), float(right)
    assert not np.isfinite(Factors((3, 4), *sides).largest)


def test_factors_without_entries_have_no_bound() -> None:
    assert Factors((0, 3), torch.zeros(0, 1), torch.ones(3, 1)).largest == 0.0
    assert Factors((0, 3), torch.zeros(0, 1), torch.ones(3, 1)).to_dense().shape == (0, 3)
