from __future__ import annotations

import torch
from hypothesis import given
from tests.merge.matrices import close, matrices, normal

from patchbay.merge.singular import decompose, orthogonalised


@given(matrices(max_terms=1))
def test_as_the_direct_decomposition(terms: torch.Tensor) -> None:
    matrix = terms[0].double()
    found = decompose(matrix)
    expected = torch.linalg.svdvals(matrix)[: len(found.sizes)]
    close(found.sizes, expected)
    close(found.to_dense(), matrix)
    eye = torch.eye(len(found.sizes)).double()
    close(found.left.T @ found.left, eye)
    close(found.right.T @ found.right, eye)


def test_long_matrices_either_way() -> None:
    matrix = normal(1, 40, 6).double()
    assert decompose(matrix).left.shape == (40, 6)
    assert decompose(matrix.T).left.shape == (6, 6)
    close(decompose(matrix.T).to_dense(), matrix.T)


def test_numerical_rank() -> None:
    matrix = normal(1, 30, 3) @ normal(2, 3, 20)  # rounded to fp32: all of its singular values are above 0
    assert (torch.linalg.svdvals(matrix.double()) > 0).all()
    assert decompose(matrix.double()).sizes.shape == (3,)
    assert decompose(torch.zeros(4, 5).double()).sizes.shape == (0,)
    assert not decompose(torch.zeros(4, 5).double()).to_dense().any()


def test_leading() -> None:
    matrix = torch.diag(torch.tensor([1.0, 3.0, 2.0])).double()
    assert decompose(matrix, 2).to_dense().round(decimals=9).diagonal().tolist() == [0.0, 3.0, 2.0]
    assert len(decompose(matrix, 7).sizes) == 3


@given(matrices(max_terms=1))
def test_orthogonalised_is_the_nearest(terms: torch.Tensor) -> None:
    columns = terms[0].double()
    if columns.shape[0] < columns.shape[1]:
        columns = columns.T
    left, _, right = torch.linalg.svd(columns, full_matrices=False)
    close(orthogonalised(columns), left @ right)


def test_equal_columns_share_their_direction() -> None:
    column = torch.tensor([[3.0], [4.0]]).double()
    close(orthogonalised(torch.cat([column, column], 1)), torch.cat([column, column], 1) / 5 / 2**0.5)
