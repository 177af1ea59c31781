"""Laws that hold for every method that works matrix by matrix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.merge.matrices import PER_MATRIX, close, matrices, matrix_spec, merge_matrix, normal

from patchbay.merge.by_matrix import by_matrix
from patchbay.merge.stack import Stack, Stacks

METHOD = st.sampled_from(PER_MATRIX)


@given(METHOD, matrices(min_terms=2), st.data())
def test_the_order_of_terms_does_not_matter(method: str, terms: torch.Tensor, data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.sampled_from([0.5, 1.0, -1.0]), min_size=len(terms), max_size=len(terms)))
    order = data.draw(st.permutations(range(len(terms))))
    permuted = merge_matrix(method, terms[order], [weights[place] for place in order])
    close(merge_matrix(method, terms, weights), permuted, 1e-3)


@given(METHOD, matrices(), st.sampled_from([1e-6, 0.25, 8.0]))
def test_scales_with_the_terms(method: str, terms: torch.Tensor, factor: float) -> None:
    close(merge_matrix(method, factor * terms), factor * merge_matrix(method, terms), 1e-3)


@given(METHOD, matrices())
def test_weights_multiply_differences(method: str, terms: torch.Tensor) -> None:
    weights = [0.5, -2.0, 0.25, 1.0][: len(terms)]
    scaled = terms * torch.tensor(weights)[:, None, None]
    close(merge_matrix(method, terms, weights), merge_matrix(method, scaled))


@given(METHOD, matrices())
def test_transposed_on_disk(method: str, terms: torch.Tensor) -> None:
    """GPT-2's Conv1D, also where its memory is not contiguous."""
    layout = matrix_spec(tuple(terms.mT.shape[1:]), axis=1)
    merged = merge_matrix(method, terms)
    close(merge_matrix(method, terms.mT, tensor=layout), merged.T)
    close(merge_matrix(method, terms.mT.contiguous(), tensor=layout), merged.T, 1e-3)


@pytest.mark.parametrize("method", PER_MATRIX)
def test_convolutions_are_flattened(method: str) -> None:
    terms = normal(1, 3, 4, 2, 3, 3)
    flat = merge_matrix(method, terms.flatten(2))
    close(merge_matrix(method, terms, tensor=matrix_spec((4, 2, 3, 3))), flat.reshape(4, 2, 3, 3))
    moved = merge_matrix(method, terms.movedim(1, 2), tensor=matrix_spec((2, 4, 3, 3), axis=1))
    close(moved, flat.reshape(4, 2, 3, 3).movedim(0, 1))


@pytest.mark.parametrize("method", PER_MATRIX)
def test_vectors_and_vocabularies_are_averaged(method: str) -> None:
    terms = torch.tensor([[[1.0, 2.0], [0.0, 4.0]], [[3.0, 0.0], [0.0, -4.0]]])
    vocabulary = matrix_spec((2, 2), is_vocabulary=True)
    assert merge_matrix(method, terms, tensor=vocabulary).tolist() == [[2.0, 1.0], [0.0, 0.0]]
    norm = matrix_spec((2,), axis=None)
    assert merge_matrix(method, terms[:, 0], [1.0, 2.0], tensor=norm).tolist() == [3.5, 1.0]


@pytest.mark.parametrize("method", PER_MATRIX)
def test_zeros(method: str) -> None:
    assert not merge_matrix(method, torch.zeros(3, 4, 5)).any()
    assert not merge_matrix(method, normal(1, 2, 4, 5), [0.0, 0.0]).any()
    terms = torch.stack([normal(1, 4, 5), torch.zeros(4, 5)])
    assert merge_matrix(method, terms).isfinite().all()


@pytest.mark.parametrize("method", ("tsv_m", "svc", "wudi"))
@given(matrices(max_terms=1), st.sampled_from([1.0, 0.3, -2.0]))
def test_one_term_comes_out_as_it_is(method: str, terms: torch.Tensor, weight: float) -> None:
    close(merge_matrix(method, terms, [weight]), weight * terms[0])


@given(METHOD, st.integers(0, 99), st.booleans())
def test_low_rank_stays_in_the_terms_directions(method: str, seed: int, is_tall: bool) -> None:
    """Three terms of rank 2 span at most 6 of 9 directions on either side."""
    shape = (12, 9) if is_tall else (9, 12)
    terms = normal(seed, 3, shape[0], 2) @ normal(seed + 1, 3, 2, shape[1])
    merged = merge_matrix(method, terms)
    rows, columns = torch.linalg.pinv(terms.flatten(0, 1)), torch.linalg.pinv(torch.cat(list(terms), 1))
    close(merged @ rows @ terms.flatten(0, 1), merged, 1e-3)
    close(torch.cat(list(terms), 1) @ columns @ merged, merged, 1e-3)


def test_names_come_in_order() -> None:
    terms = {"a": normal(1, 2, 3, 3), "b": normal(2, 2, 3, 3)}

    def read(name: str) -> Stack:
        return Stack(name, terms[name], torch.ones(2), matrix_spec((3, 3)), lambda: torch.zeros(3, 3))

    merged = list(by_matrix(Stacks(("a", "b"), read), lambda both: both.sum(0)))
    assert [name for name, _ in merged] == ["a", "b"]
    assert torch.equal(merged[1][1], terms["b"].double().sum(0).float())
