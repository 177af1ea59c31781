from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.merge.stacks import differences, merged, numbers, stacks_of

from patchbay.errors import InvalidRecipe
from patchbay.merge.recipe import Scalar

ELECTED = ("ties", "dare_ties", "breadcrumbs_ties", "della")
SUMMED = ("dare_linear", "breadcrumbs", "della_linear")
CHOOSING = (*ELECTED, *SUMMED, "sce")
# Under these everything is kept.
ALL: dict[str, dict[str, Scalar]] = {
    "ties": {},
    "dare_linear": {"density": 1.0},
    "dare_ties": {"density": 1.0},
    "breadcrumbs": {"gamma": 0.0},
    "breadcrumbs_ties": {"gamma": 0.0},
    "della": {"density": 1.0},
    "della_linear": {"density": 1.0},
    "sce": {},
}


def papers_ties(tensors: Sequence[torch.Tensor], density: float) -> torch.Tensor:
    """TIES as the paper's code has it, on one flat vector of the model: [T, D] -> [D]."""
    flat = torch.cat([tensor.flatten(1) for tensor in tensors], dim=1)
    smallest = flat.abs().sort(dim=1, descending=True).values[:, int(density * flat.shape[1]) - 1]
    flat = torch.where(flat.abs() >= smallest[:, None], flat, 0.0)
    sign = flat.sum(0).sign()
    sign[sign == 0] = sign.sum().sign()
    agree = torch.where(sign > 0, flat > 0, flat < 0)
    return (flat * agree).sum(0) / agree.sum(0).clamp(min=1)


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_the_papers(density: float) -> None:
    tensors = {"a": numbers(1, 3, 20, 15), "b": numbers(2, 3, 31) / 4, "c": numbers(3, 3, 2, 3, 4)}
    tensors["a"][1, 0], tensors["a"][2, 0] = -tensors["a"][0, 0], 0  # entries whose votes sum to 0
    found = merged("ties", stacks_of(tensors), preset="paper", density=density)
    expected = papers_ties(list(tensors.values()), density)
    torch.testing.assert_close(torch.cat([tensor.flatten() for tensor in found.values()]), expected)
    default = merged("ties", stacks_of(tensors), preset="paper", density=0.2)
    assert all(map(torch.equal, merged("ties", stacks_of(tensors), preset="paper").values(), default.values()))


def test_by_hand() -> None:
    values = [[4.0, -1.0, 0.5, 2.0], [1.0, -3.0, 0.25, 3.0], [-2.0, 2.0, 0.75, -4.0]]
    stacks = stacks_of({"a": values})
    assert merged("ties", stacks)["a"].tolist() == [2.5, -2.0, 0.5, 2.5]
    # two of each are kept: (4, 2), (-3, 3), (-2 or 2: the first, -4); at the last, 2 + 3 - 4
    assert merged("ties", stacks, density=0.5)["a"].tolist() == [4.0, -3.0, 0.0, 2.5]
    assert merged("ties", stacks, density=0.5, normalize=False)["a"].tolist() == [4.0, -3.0, 0.0, 5.0]


@pytest.mark.parametrize("method", CHOOSING)
def test_every_tensor_in_order_with_its_shape_and_the_terms_as_they_were(method: str) -> None:
    tensors = {
        "b.weight": numbers(0, 2, 6, 5),
        "a.bias": numbers(1, 2, 7),
        "c.conv": numbers(2, 2, 3, 2, 2),
        "scale": numbers(3, 2),
        "empty": torch.zeros(2, 3, 0),
        "same": torch.zeros(2, 4),
    }
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    found = merged(method, stacks_of(tensors))
    assert list(found) == list(tensors)
    for name, tensor in found.items():
        assert tensor.shape == tensors[name].shape[1:]
        assert tensor.dtype == torch.float32
        assert bool(tensor.isfinite().all())
    assert not found["same"].any()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("method", CHOOSING)
@pytest.mark.parametrize("is_sampled", [False, True])
def test_results_do_not_depend_on_what_was_merged_before(method: str, is_sampled: bool) -> None:
    params: dict[str, Scalar] = {"select_topk": 0.5} if method == "sce" else {"density": 0.5}
    a, b = numbers(1, 2, 40, 20), numbers(2, 2, 300)
    alone = merged(method, stacks_of({"b": b}, is_sampled=is_sampled), **params)["b"]
    torch.rand(3)
    beside = merged(method, stacks_of({"a": a, "b": b}, is_sampled=is_sampled), **params)
    assert torch.equal(beside["b"], alone)
    other = merged(method, stacks_of({"b": b}, is_sampled=is_sampled), **params, seed=1)["b"]
    is_drawn = is_sampled or method in ("dare_linear", "dare_ties", "della", "della_linear")
    assert torch.equal(other, alone) != is_drawn


@pytest.mark.parametrize("method", CHOOSING)
@settings(max_examples=20)
@given(values=differences(min_terms=2), order=st.permutations(range(4)))
def test_where_all_is_kept_the_order_of_terms_does_not_matter(
    method: str, values: torch.Tensor, order: list[int]
) -> None:
    weights = [1.0, 0.5, 2.0, 0.25][: len(values)]
    order = [term for term in order if term < len(values)]
    there = merged(method, stacks_of({"a": values}, weights), **ALL[method])["a"]
    back = merged(method, stacks_of({"a": values[order]}, [weights[term] for term in order]), **ALL[method])["a"]
    torch.testing.assert_close(there, back)


@pytest.mark.parametrize("method", CHOOSING)
@settings(max_examples=20)
@given(values=differences(min_terms=1, max_terms=1))
def test_where_all_is_kept_identical_terms_give_that_term_back(method: str, values: torch.Tensor) -> None:
    params = {**ALL[method], "normalize": True} if method in SUMMED else ALL[method]
    found = merged(method, stacks_of({"a": values.expand(3, -1)}, [1.0, 0.5, 2.0]), **params)["a"]
    torch.testing.assert_close(found, values[0])


@pytest.mark.parametrize("method", CHOOSING)
@settings(max_examples=20)
@given(values=differences(min_terms=1, max_terms=2))
def test_where_all_is_kept_opposite_terms_cancel(method: str, values: torch.Tensor) -> None:
    stacks = stacks_of({"a": torch.cat([values, -values])})
    assert not merged(method, stacks, **ALL[method])["a"].any()


@pytest.mark.parametrize("method", SUMMED)
@settings(max_examples=20)
@given(values=differences())
def test_where_all_is_kept_a_sum_is_task_arithmetic(method: str, values: torch.Tensor) -> None:
    weights = torch.tensor([1.0, 0.5, -2.0, 0.25][: len(values)])
    found = merged(method, stacks_of({"a": values}, weights.tolist()), **ALL[method])["a"]
    torch.testing.assert_close(found, weights @ values)


@pytest.mark.parametrize("method", ELECTED)
@settings(max_examples=20)
@given(values=differences())
def test_where_all_is_kept_an_election_is_ties(method: str, values: torch.Tensor) -> None:
    stacks = stacks_of({"a": values}, [1.0, 0.5, 2.0, 0.25][: len(values)])
    assert torch.equal(merged(method, stacks, **ALL[method])["a"], merged("ties", stacks)["a"])


@pytest.mark.parametrize("method", [method for method in CHOOSING if method != "sce"])
def test_a_density_is_a_share(method: str) -> None:
    with pytest.raises(InvalidRecipe, match="density is a share") as caught:
        merged(method, stacks_of({"a": [[1.0]]}), density=20)
    assert caught.value.param == "params.density"
