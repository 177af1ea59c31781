from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.merge.stacks import differences, merged, numbers, stacks_of

from patchbay.errors import InvalidRecipe
from patchbay.merge.recipe import Scalar
from patchbay.merge.tall import tall_masks

FACTOR = st.sampled_from([0.2, 0.4, 0.6, 1.0, 3.0])


def by_definition(terms: torch.Tensor, multi_task: torch.Tensor, factor: float, k: int) -> torch.Tensor:
    """One entry after the other."""
    found = multi_task.clone()
    for place in range(terms.shape[1]):
        needing = 0
        for term in terms:
            needing += bool(abs(term[place]) > factor * abs(multi_task[place] - term[place]))
        if needing < k:
            found[place] = 0
    return found


def ties_sum(terms: torch.Tensor, density: float) -> torch.Tensor:
    """Trimmed over the whole term, elected by mass, summed."""
    kept = torch.zeros_like(terms)
    for row, term in zip(kept, terms, strict=True):
        first = torch.sort(term.abs(), descending=True, stable=True).indices[: int(density * len(term))]
        row[first] = term[first]
    elected = kept.sum(0).sign()
    return torch.where(kept.sign() == elected, kept, 0.0).sum(0)


def consensus(method: str, terms: torch.Tensor, **params: Scalar) -> torch.Tensor:
    return merged(method, stacks_of({"a": terms}), **params)["a"]


def test_by_hand() -> None:
    """The sum is (3, 1, 6, 1). In the second entry the first term is alone; in the last it is .25 beside .4 of .75."""
    terms = torch.tensor([[1.0, 1.0, 2.0, 0.25], [2.0, 0.0, 2.0, 0.75], [0.0, 0.0, 2.0, 0.0]])
    assert consensus("consensus_ta", terms).tolist() == [3.0, 0.0, 6.0, 0.0]
    assert consensus("consensus_ta", terms, k=0).tolist() == [3.0, 1.0, 6.0, 1.0]
    assert consensus("consensus_ta", terms, k=3).tolist() == [0.0, 0.0, 6.0, 0.0]


@given(differences(min_terms=2), FACTOR, st.integers(0, 2))
def test_consensus_ta(terms: torch.Tensor, factor: float, k: int) -> None:
    found = consensus("consensus_ta", terms, **{"lambda": factor, "k": k})
    assert torch.equal(found, by_definition(terms, terms.sum(0), factor, k))


@settings(max_examples=30, deadline=None)
@given(differences(min_terms=2), FACTOR, st.integers(0, 2), st.sampled_from([0.3, 0.5, 1.0]))
def test_consensus_ties(terms: torch.Tensor, factor: float, k: int, density: float) -> None:
    """Masks compare the terms before trimming."""
    found = consensus("consensus_ties", terms, **{"lambda": factor, "k": k, "density": density})
    assert torch.equal(found, by_definition(terms, ties_sum(terms, density), factor, k))


@settings(max_examples=30, deadline=None)
@given(differences(min_terms=2), st.sampled_from(["consensus_ta", "consensus_ties"]), st.data())
def test_laws(terms: torch.Tensor, method: str, data: st.DataObject) -> None:
    found = consensus(method, terms, density=0.5) if method == "consensus_ties" else consensus(method, terms)
    own: dict[str, Scalar] = {"density": 0.5} if method == "consensus_ties" else {}
    order = data.draw(st.permutations(range(len(terms))))
    assert torch.equal(consensus(method, terms[order], **own), found)
    assert torch.equal(consensus(method, 8 * terms, **own), 8 * found)
    weighted = merged(method, stacks_of({"a": terms}, [0.5, -2.0, 0.25, 1.0][: len(terms)]), **own)["a"]
    scaled = terms * torch.tensor([0.5, -2.0, 0.25, 1.0])[: len(terms), None]
    assert torch.equal(weighted, consensus(method, scaled, **own))


def test_masks_have_the_shape_of_the_terms() -> None:
    terms = numbers(1, 3, 2, 5)
    assert tall_masks(terms, terms.sum(0), 0.4).shape == (3, 2, 5)
    assert tall_masks(terms, terms[0], 1e6)[0].all()  # nothing else is there


def test_zeros() -> None:
    assert not consensus("consensus_ta", torch.zeros(2, 3)).any()
    assert not consensus("consensus_ties", torch.zeros(2, 3)).any()


def test_drawn_sizes_are_not_compared() -> None:
    terms = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 1.0, 0.0]])
    sampled = stacks_of({"a": terms}, is_sampled=True)
    assert merged("consensus_ta", sampled)["a"].tolist() == [1.0, 1.0, 2.0, 0.0]
    found = merged("consensus_ties", sampled, density=0.25)["a"]
    assert float(found.sum()) == 4.0  # one entry of each term stands for two


@pytest.mark.parametrize(("name", "value"), [("k", -1), ("k", 3), ("lambda", 0.0)])
def test_parameters_out_of_range(name: str, value: float) -> None:
    with pytest.raises(InvalidRecipe) as caught:
        consensus("consensus_ta", numbers(1, 2, 3), **{name: value})
    assert caught.value.param == f"params.{name}"
