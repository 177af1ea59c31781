from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.merge.matrices import close, matrices, merge_matrix, normal

from patchbay.errors import InvalidRecipe


def loss(merged: torch.Tensor, terms: torch.Tensor, ridge: float) -> torch.Tensor:
    """The published objective, and the ridge towards the sum."""
    total = ridge * len(terms) / terms.shape[2] * (merged - terms.sum(0)).square().sum()
    for term in terms:
        total = total + ((merged - term) @ term.T).square().sum() / term.square().sum()
    return total


@given(matrices(), st.sampled_from([1e-3, 0.01, 1.0]))
def test_its_gradient_is_zero(terms: torch.Tensor, ridge: float) -> None:
    start = terms.sum(0).double().requires_grad_()
    loss(start, terms.double(), ridge).backward()
    merged = merge_matrix("wudi", terms, ridge=ridge).double().requires_grad_()
    loss(merged, terms.double(), ridge).backward()
    assert start.grad is not None
    assert merged.grad is not None
    assert float(merged.grad.norm()) <= 1e-4 * max(1.0, float(terms.norm()), float(start.grad.norm()))


@given(matrices(min_terms=2))
def test_a_smaller_loss_than_any_step_from_it(terms: torch.Tensor) -> None:
    merged, exact = merge_matrix("wudi", terms).double(), terms.double()
    for seed in range(3):
        aside = merged + 0.01 * normal(seed, *merged.shape).double()
        assert loss(merged, exact, 0.01) <= loss(aside, exact, 0.01) * (1 + 1e-6)


def test_terms_of_different_inputs_are_summed() -> None:
    """Nothing disturbs: the rows of one are orthogonal to those of the other."""
    terms = torch.zeros(2, 3, 4)
    terms[0, :, :2], terms[1, :, 2:] = normal(1, 3, 2), normal(2, 3, 2)
    close(merge_matrix("wudi", terms), terms.sum(0))


def test_equal_terms_count_once() -> None:
    matrix = normal(1, 4, 3)
    close(merge_matrix("wudi", torch.stack([matrix, matrix]), ridge=1e-9), matrix)


def test_by_hand() -> None:
    """One row, one column: H = 2, so (a (1 + 0) + b (1 + 0) + mu (a + b)) / (2 + mu) with mu = 2 ridge."""
    terms = torch.tensor([[[1.0]], [[3.0]]])
    close(merge_matrix("wudi", terms, ridge=0.5), torch.tensor([[(1.0 + 3.0 + 1.0 * 4.0) / 3.0]]))


@given(st.integers(0, 99))
def test_a_term_of_zeros_takes_no_part(seed: int) -> None:
    """Wide: the small system is solved. Tall: the other one."""
    for shape in ((2, 9), (9, 2)):
        terms = normal(seed, 2, *shape)
        with_zeros = torch.cat([terms, torch.zeros(1, *shape)])
        close(merge_matrix("wudi", with_zeros), merge_matrix("wudi", terms))


def test_a_ridge_that_is_none() -> None:
    with pytest.raises(InvalidRecipe) as caught:
        merge_matrix("wudi", normal(1, 2, 3, 3), ridge=0.0)
    assert caught.value.param == "params.ridge"
