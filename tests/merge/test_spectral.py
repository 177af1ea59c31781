"""TSV-M, Iso-C and Iso-CTS against their published formulas, with direct decompositions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.merge.matrices import close, matrices, merge_matrix, normal, orthogonal

from patchbay.errors import InvalidRecipe


def svd(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    left, sizes, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    return left, sizes, right


def whitened(matrix: torch.Tensor) -> torch.Tensor:
    left, _, right = svd(matrix)
    return left @ right


def tsv_m_by_formula(terms: torch.Tensor) -> torch.Tensor:
    share = min(terms.shape[1:]) // len(terms)
    parts = [svd(term) for term in terms]
    lefts = torch.cat([left[:, :share] for left, _, _ in parts], 1)
    sizes = torch.cat([size[:share] for _, size, _ in parts])
    rights = torch.cat([right[:share] for _, _, right in parts])
    return whitened(lefts) @ torch.diag(sizes) @ whitened(rights)


def iso_cts_by_formula(terms: torch.Tensor, share: float) -> torch.Tensor:
    count, side = len(terms), min(terms.shape[1:])
    common = side - round((side - int(side * share)) / count) * count
    left, size, right = svd(terms.sum(0))
    lefts, sizes, rights = [left[:, :common]], [size[:common]], [right[:common]]
    own = (side - common) // count
    for term in terms.double():
        left, size, right = svd(term - lefts[0] @ lefts[0].T @ term)
        lefts.append(left[:, :own])
        sizes.append(size[:own])
        rights.append(right[:own])
    return torch.cat(sizes).mean() * whitened(torch.cat(lefts, 1)) @ whitened(torch.cat(rights))


@given(matrices())
def test_tsv_m(terms: torch.Tensor) -> None:
    if min(terms.shape[1:]) >= len(terms):
        close(merge_matrix("tsv_m", terms), tsv_m_by_formula(terms), 1e-3)


def test_tsv_m_by_hand() -> None:
    """Terms in directions that do not touch keep their largest singular value each."""
    terms = torch.stack([torch.diag(torch.tensor(values)) for values in ([5.0, 1.0, 0.0, 0.0], [0.0, 0.0, 2.0, 3.0])])
    close(merge_matrix("tsv_m", terms[:, :2, :2].clone()), torch.diag(torch.tensor([5.0, 0.0])))
    close(merge_matrix("tsv_m", terms), terms.sum(0))


def test_tsv_m_of_equal_terms_is_their_leading_half() -> None:
    matrix = normal(3, 6, 8)
    left, sizes, right = svd(matrix)
    expected = left[:, :3] @ torch.diag(sizes[:3]) @ right[:3]
    close(merge_matrix("tsv_m", torch.stack([matrix, matrix])), expected)


def test_tsv_m_of_more_terms_than_directions() -> None:
    terms = normal(1, 3, 2, 5)
    assert merge_matrix("tsv_m", terms).isfinite().all()
    assert merge_matrix("tsv_m", terms).any()


@given(matrices())
def test_iso_c(terms: torch.Tensor) -> None:
    left, sizes, right = svd(terms.sum(0))
    close(merge_matrix("iso_c", terms), sizes.mean() * left @ right, 1e-3)


@given(matrices(), st.integers(0, 99))
def test_iso_c_turns_with_the_terms(terms: torch.Tensor, seed: int) -> None:
    rows, columns = orthogonal(seed, terms.shape[1]), orthogonal(seed + 1, terms.shape[2])
    close(merge_matrix("iso_c", rows @ terms @ columns), rows @ merge_matrix("iso_c", terms) @ columns, 1e-2)


def test_iso_c_by_hand() -> None:
    terms = torch.stack([torch.diag(torch.tensor([6.0, 1.0, 0.0])), torch.diag(torch.tensor([0.0, -3.0, 0.0]))])
    close(merge_matrix("iso_c", terms), torch.diag(torch.tensor([8 / 3, -8 / 3, 0.0])))


@given(matrices(), st.sampled_from([0.0, 0.5, 0.8, 1.0]))
def test_iso_cts(terms: torch.Tensor, share: float) -> None:
    side = min(terms.shape[1:])
    if round((side - int(side * share)) / len(terms)) * len(terms) <= side:
        close(merge_matrix("iso_cts", terms, common=share), iso_cts_by_formula(terms, share), 1e-2)


def test_iso_cts_of_nothing_but_common_directions_is_iso_c() -> None:
    terms = normal(4, 3, 7, 9)
    close(merge_matrix("iso_cts", terms, common=1.0), merge_matrix("iso_c", terms))


def test_iso_cts_of_more_terms_than_directions() -> None:
    """Rounding would deal out one to each of four, and there are three."""
    terms = normal(1, 4, 3, 5)
    close(merge_matrix("iso_cts", terms, common=0.0), merge_matrix("iso_c", terms))


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_that_is_none(share: float) -> None:
    with pytest.raises(InvalidRecipe) as caught:
        merge_matrix("iso_cts", normal(1, 2, 3, 5), common=share)
    assert caught.value.param == "params.common"
