from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.merge.stacks import differences, merged, numbers, stacks_of

from patchbay.compress.fusion import Fused, fuse
from patchbay.delta import SparseRows
from patchbay.errors import InvalidRecipe

WEIGHT = st.sampled_from([0.5, 1.0, 1.25, 4.0])


def test_by_hand() -> None:
    terms = [[4.0, 0.0, 1.0, 0.0], [2.0, 3.0, -1.0, 0.0]]
    assert merged("nps", stacks_of({"a": terms}))["a"].tolist() == [3.0, 3.0, 0.0, 0.0]
    assert merged("nps", stacks_of({"a": terms}, [2.0, 1.0]))["a"].tolist() == [5.0, 3.0, 0.5, 0.0]
    assert merged("nps", stacks_of({"a": terms}, [3.0, 1.0]), literal=True)["a"].tolist() == [3.5, 0.75, 0.5, 0.0]


@given(differences(), st.data(), st.booleans())
def test_agrees_with_the_fusion_of_files(terms: torch.Tensor, data: st.DataObject, literal: bool) -> None:
    weights = data.draw(st.lists(WEIGHT, min_size=len(terms), max_size=len(terms)))
    rows = [torch.nonzero(term).flatten() for term in terms]
    tasks = [
        Fused({"a": SparseRows((1, len(term)), places, term[places])}, {"b": term})
        for term, places in zip(terms, rows, strict=True)
    ]
    of_files = fuse(tasks, weights, literal=literal)
    found = merged("nps", stacks_of({"a": terms[:, None], "b": terms}, weights), literal=literal)
    # Sums in float64 that cancel leave what their order leaves.
    for name, expected in (("a", of_files.difference("a")), ("b", of_files.vectors["b"])):
        torch.testing.assert_close(found[name], expected, rtol=1e-7, atol=1e-14)


@given(differences(), st.data())
def test_the_order_of_terms_does_not_matter(terms: torch.Tensor, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(terms))))
    assert torch.equal(merged("nps", stacks_of({"a": terms[order]}))["a"], merged("nps", stacks_of({"a": terms}))["a"])


@given(differences(max_terms=1), WEIGHT)
def test_one_term(terms: torch.Tensor, weight: float) -> None:
    assert torch.equal(merged("nps", stacks_of({"a": terms}, [weight]))["a"], weight * terms[0])
    assert torch.equal(merged("nps", stacks_of({"a": terms}, [weight]), preset="paper")["a"], terms[0])


def test_rounded_once() -> None:
    """In fp32 the 1 would be lost."""
    terms = [[2.0**24], [1.0], [-(2.0**24)]]
    assert merged("nps", stacks_of({"a": terms}))["a"].tolist() == [pytest.approx(1 / 3)]


def test_names_in_order() -> None:
    assert list(merged("nps", stacks_of({"a": numbers(1, 2, 3), "b": numbers(2, 2, 3)}))) == ["a", "b"]


def test_weights_that_cancel_are_no_mean() -> None:
    with pytest.raises(InvalidRecipe, match="sum to 0"):
        merged("nps", stacks_of({"a": numbers(1, 2, 3)}, [1.0, -1.0]), literal=True)
