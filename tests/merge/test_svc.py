from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.merge.matrices import close, matrices, merge_matrix, normal

from patchbay.errors import InvalidRecipe


def by_formula(terms: torch.Tensor, factor: float, alpha: float, agreed: bool) -> torch.Tensor:
    """One direction and one term after the other."""
    merged = factor * terms.double().sum(0)
    left, sizes, right = torch.linalg.svd(merged, full_matrices=False)
    for place in range(len(sizes)):
        of_merged = left[:, place] @ merged
        counted = []
        for term in terms.double():
            of_term = left[:, place] @ term
            counted.append(float(of_merged @ of_term / (of_term @ of_term)))
        if agreed:
            mean = sum(counted) / len(counted)
            sizes[place] /= max(mean, alpha) if min(counted) > 0 else 1
        else:
            sizes[place] *= len(counted) / sum(max(alpha, value) for value in counted)
    return left @ torch.diag(sizes) @ right


@given(matrices(), st.sampled_from([0.3, 1.0]), st.sampled_from([0.01, 0.1, 1.0]), st.booleans())
def test_formula(terms: torch.Tensor, factor: float, alpha: float, agreed: bool) -> None:
    params = {"lambda": factor, "alpha": alpha, "agreed": agreed}
    close(merge_matrix("svc", terms, **params), by_formula(terms, factor, alpha, agreed), 1e-2)


def test_what_all_terms_share_counts_once() -> None:
    matrix = normal(1, 4, 6)
    close(merge_matrix("svc", torch.stack([matrix] * 3)), matrix)


def test_terms_that_do_not_touch() -> None:
    """A term has lambda of its own direction and nothing of the other, where alpha counts instead."""
    terms = torch.stack([torch.diag(torch.tensor([2.0, 0.0])), torch.diag(torch.tensor([0.0, 5.0]))])
    expected = torch.diag(torch.tensor([2.0, 5.0])) * 0.3 * 2 / (0.3 + 0.1)
    close(merge_matrix("svc", terms), expected)


@given(matrices())
def test_the_factor_cancels_but_for_the_floor(terms: torch.Tensor) -> None:
    first = merge_matrix("svc", terms, **{"lambda": 0.2, "alpha": 0.1})
    close(first, merge_matrix("svc", terms, **{"lambda": 0.4, "alpha": 0.2}), 1e-3)


@pytest.mark.parametrize("name", ["lambda", "alpha"])
def test_numbers_that_are_not_above_zero(name: str) -> None:
    with pytest.raises(InvalidRecipe) as caught:
        merge_matrix("svc", normal(1, 2, 3, 3), **{name: 0.0})
    assert caught.value.param == f"params.{name}"
