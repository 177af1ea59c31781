from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.merge.stacks import differences, numbers, stacks_of

from patchbay.errors import InvalidRecipe
from patchbay.merge.consensus import elected, summed
from patchbay.merge.elect import elect_mean
from patchbay.merge.recipe import Scalar
from patchbay.merge.stack import Stacks

OURS: dict[str, Scalar] = {"sign": "weighted", "tie": "zero", "divisor": "sizes", "normalize": True}
POSITIVE = st.sampled_from([0.5, 1.0, 2.0])


def merge(stacks: Stacks, **params: Scalar) -> dict[str, torch.Tensor]:
    return dict(elected(lambda: ((stack, stack.differences) for stack in stacks), {**OURS, **params}))


def vote(values: list[list[float]], weights: list[float] | None = None, **params: Scalar) -> list[float]:
    """Of terms as rows."""
    found: list[float] = merge(stacks_of({"a": torch.tensor(values)}, weights), **params)["a"].tolist()
    return found


def test_those_who_agree_are_averaged_by_weight() -> None:
    values = [[4.0, -1.0, 0.0, 2.0], [1.0, -3.0, 0.0, 0.0], [-2.0, 2.0, 0.0, 0.0]]
    assert vote(values) == [2.5, -2.0, 0.0, 2.0]
    assert vote(values, [3.0, 1.0, 1.0]) == [3.25, -1.5, 0.0, 2.0]
    assert vote(values, [3.0, 1.0, 1.0], normalize=False) == [13.0, -6.0, 0.0, 6.0]


def test_whether_weights_vote() -> None:
    values, weights = [[1.0], [-2.0]], [3.0, 1.0]
    assert vote(values, weights) == [1.0]
    assert vote(values, weights, sign="unweighted") == [-2.0]


def test_what_is_divided_by() -> None:
    values, weights = [[4.0], [1.0]], [3.0, 1.0]
    assert vote(values, weights, divisor="sizes") == [3.25]
    assert vote(values, weights, divisor="weights") == [3.25]
    assert vote(values, weights, divisor="count") == [6.5]


def test_negative_weights_turn_votes_around() -> None:
    values, weights = [[4.0], [-1.0]], [1.0, -0.5]
    assert vote(values, weights, divisor="sizes") == [3.0]  # (4 + .5) / (1 + .5)
    assert vote(values, weights, divisor="weights") == [9.0]
    assert vote([[4.0], [-1.0]], [1.0, -1.0], divisor="weights") == [5.0]  # weights that sum to 0 divide by nothing


def test_ties() -> None:
    values = [[1.0, -3.0, -1.0, -1.0], [-1.0, 3.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0]]
    assert vote(values) == [0.0, 0.0, -1.0, -1.0]
    assert vote(values, tie="positive") == [1.0, 3.0, -1.0, -1.0]
    assert vote(values, tie="majority") == [-1.0, -3.0, -1.0, -1.0]


def test_the_majority_is_the_models() -> None:
    tensors = {"a": [[1.0], [-1.0]], "b": [[-1.0, -2.0], [0.0, 0.0]]}
    assert merge(stacks_of(tensors), tie="majority")["a"].tolist() == [-1.0]
    assert merge(stacks_of({"a": tensors["a"]}), tie="majority")["a"].tolist() == [0.0]


def test_rounding_elects_nobody() -> None:
    assert vote([[0.1], [0.2], [-0.3]]) == [0.0]
    assert vote([[0.1], [0.2], [-0.3]], tie="positive") != [0.0]


@given(differences(min_terms=2), st.permutations(range(4)), st.lists(POSITIVE, min_size=4, max_size=4))
def test_the_order_of_terms_does_not_matter(values: torch.Tensor, order: list[int], weights: list[float]) -> None:
    order = [t for t in order if t < len(values)]
    there = merge(stacks_of({"a": values}, weights[: len(values)]))["a"]
    back = merge(stacks_of({"a": values[order]}, [weights[t] for t in order]))["a"]
    torch.testing.assert_close(there, back)


@given(differences(min_terms=1, max_terms=1), st.lists(POSITIVE, min_size=1, max_size=4))
def test_identical_terms_give_that_term_back(values: torch.Tensor, weights: list[float]) -> None:
    same = values.expand(len(weights), -1)
    for divisor in ("sizes", "weights"):
        torch.testing.assert_close(merge(stacks_of({"a": same}, weights), divisor=divisor)["a"], values[0])
    torch.testing.assert_close(merge(stacks_of({"a": same}), divisor="count")["a"], values[0])


@given(differences(min_terms=1, max_terms=3), st.floats(2**-6, 10, width=32))
def test_opposite_terms_cancel(values: torch.Tensor, weight: float) -> None:
    opposite = torch.cat([values, -values])
    assert not merge(stacks_of({"a": opposite}, [weight] * len(opposite)))["a"].any()


@given(differences())
def test_without_weights_it_is_the_elected_mean(values: torch.Tensor) -> None:
    torch.testing.assert_close(merge(stacks_of({"a": values}))["a"], elect_mean(values))


@given(differences(), st.lists(POSITIVE, min_size=4, max_size=4))
def test_the_sum(values: torch.Tensor, weights: list[float]) -> None:
    weights = weights[: len(values)]
    stacks = stacks_of({"b": values, "a": values}, weights)
    found = dict(summed(lambda: ((stack, stack.differences) for stack in stacks), {"normalize": False}))
    assert list(found) == ["b", "a"]
    torch.testing.assert_close(found["a"], torch.tensor(weights) @ values)
    mean = dict(summed(lambda: ((stack, stack.differences) for stack in stacks), {"normalize": True}))
    torch.testing.assert_close(mean["a"], torch.tensor(weights) @ values / sum(weights))


def test_a_mean_needs_weights_that_sum_to_something() -> None:
    stacks = stacks_of({"a": numbers(0, 2, 3)}, [1.0, -1.0])
    with pytest.raises(InvalidRecipe, match="sum to 0"):
        dict(summed(lambda: ((stack, stack.differences) for stack in stacks), {"normalize": True}))


@pytest.mark.parametrize("name", ["sign", "tie", "divisor"])
def test_unknown_words_are_refused(name: str) -> None:
    with pytest.raises(InvalidRecipe, match=f"{name} is one of"):
        vote([[1.0]], **{name: "other"})
