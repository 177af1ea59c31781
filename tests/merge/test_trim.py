from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.merge.stacks import differences, numbers, stacks_of

from patchbay.errors import InvalidRecipe
from patchbay.merge.recipe import Scalar
from patchbay.merge.stack import Stacks
from patchbay.merge.trim import Ranking, Trimmed, at_random, by_size, middle, rescaled

DENSITIES = st.sampled_from([0.0, 0.1, 0.29, 0.5, 0.7, 0.9, 1.0])
OURS: dict[str, Scalar] = {
    "density": 1.0,
    "gamma": 0.0,
    "scope": "tensor",
    "prefer": "gamma",
    "rescale": "none",
    "seed": 0,
}


def kept(trimmed: Trimmed) -> dict[str, torch.Tensor]:
    return {stack.name: values for stack, values in trimmed()}


def trim(stacks: Stacks, **params: Scalar) -> dict[str, torch.Tensor]:
    return kept(by_size(stacks, {**OURS, **params}))


def test_the_largest_of_every_term() -> None:
    stacks = stacks_of({"a": [[1.0, -3.0, 2.0, 0.5, 2.0], [0.0, 0.0, 5.0, -6.0, 0.25]]})
    assert trim(stacks, density=0.4)["a"].tolist() == [[0.0, -3.0, 2.0, 0.0, 0.0], [0.0, 0.0, 5.0, -6.0, 0.0]]


def test_the_largest_of_all_tensors() -> None:
    stacks = stacks_of({"a": [[1.0, -3.0], [9.0, 8.0]], "b": [[2.0, 0.5, 2.0], [0.0, 0.0, 7.0]]})
    found = trim(stacks, density=0.4, scope="global")
    assert found["a"].tolist() == [[0.0, -3.0], [9.0, 8.0]]
    assert found["b"].tolist() == [[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert trim(stacks, density=0.4)["a"].tolist() == [[0.0, 0.0], [0.0, 0.0]]  # floor(.8) of two


def test_trimmed_tensors_can_be_read_twice() -> None:
    trimmed = by_size(stacks_of({"a": [[1.0, 1.0]], "b": [[1.0, 1.0]]}), {**OURS, "density": 0.75, "scope": "global"})
    for _ in range(2):
        assert [values.tolist() for values in kept(trimmed).values()] == [[[1.0, 1.0]], [[1.0, 0.0]]]


@given(differences(), DENSITIES, st.sampled_from(["tensor", "global"]))
def test_exactly_so_many_and_none_larger_is_left_out(values: torch.Tensor, density: float, scope: str) -> None:
    values = values + values.sign()  # sizes above 1, often equal; and zeros
    found = trim(stacks_of({"a": values}), density=density, scope=scope)["a"]
    for term, trimmed in zip(values, found, strict=True):
        count = min(int(density * len(term)), int(torch.count_nonzero(term)))
        assert int(torch.count_nonzero(trimmed)) == count
        assert torch.equal(trimmed[trimmed != 0], term[trimmed != 0])
        left = term[trimmed == 0].abs()
        assert not count or not len(left) or float(left.max()) <= float(trimmed[trimmed != 0].abs().min())


@given(differences(), st.sampled_from(["tensor", "global"]))
def test_at_density_1_nothing_is_trimmed(values: torch.Tensor, scope: str) -> None:
    assert torch.equal(trim(stacks_of({"a": values}), scope=scope)["a"], values)
    for other in (at_random, middle):
        assert torch.equal(kept(other(stacks_of({"a": values}), OURS))["a"], values)


def test_the_terms_densities_are_their_own() -> None:
    for scope in ("tensor", "global"):
        stacks = stacks_of({"a": numbers(0, 3, 1000)}, settings={"density": [0.7, 0.29, 0.001]})
        assert torch.count_nonzero(trim(stacks, scope=scope)["a"], dim=1).tolist() == [700, 290, 1]


def test_densities_of_tensors_add_up_over_the_model() -> None:
    densities = {"a": torch.tensor([0.5]), "b": torch.tensor([0.1])}
    stacks = stacks_of({"a": numbers(0, 1, 100), "b": 2 * numbers(1, 1, 200)})
    own = Stacks(stacks.names, lambda name: replace(stacks.read(name), settings={"density": densities[name]}))
    found = trim(own, scope="global")
    assert sum(int(torch.count_nonzero(values)) for values in found.values()) == 70
    assert int(torch.count_nonzero(found["b"])) > 60  # whose entries are the larger ones
    rescaled_by = trim(own, scope="global", rescale="inverse_density")
    torch.testing.assert_close(rescaled_by["b"], found["b"] * 300 / 70)


def test_rescaling() -> None:
    values, some = torch.tensor([1.0, -3.0, 4.0]), torch.tensor([0.0, 0.0, 4.0])
    assert rescaled(some, values, 0.5, "none").tolist() == [0.0, 0.0, 4.0]
    assert rescaled(some, values, 0.5, "l1").tolist() == [0.0, 0.0, 8.0]
    assert rescaled(some, values, 0.25, "inverse_density").tolist() == [0.0, 0.0, 16.0]
    assert rescaled(some * 0, values, 0.0, "inverse_density").tolist() == [0.0] * 3
    assert rescaled(some * 0, values, 0.5, "l1").tolist() == [0.0] * 3


@pytest.mark.parametrize("how", ["l1", "inverse_density"])
def test_what_is_trimmed_by_size_can_be_rescaled(how: str) -> None:
    stacks = stacks_of({"a": [[1.0, -3.0], [4.0, 4.0]]})
    for scope in ("tensor", "global"):
        expected = [[0.0, -4.0], [8.0, 0.0]] if how == "l1" else [[0.0, -6.0], [8.0, 0.0]]
        torch.testing.assert_close(
            trim(stacks, density=0.5, rescale=how, scope=scope)["a"], torch.tensor(expected), rtol=1e-6, atol=0
        )


def drop(stacks: Stacks, **params: Scalar) -> dict[str, torch.Tensor]:
    return kept(at_random(stacks, {**OURS, **params}))


def test_dropping_keeps_a_share_whatever_the_size() -> None:
    values = numbers(0, 2, 20_000)
    found = drop(stacks_of({"a": values}), density=0.3)["a"]
    assert torch.equal(found[found != 0], values[found != 0])
    shares = (found != 0).float().mean(1)
    assert bool((shares - 0.3).abs().max() < 0.02)
    large = values.abs() > 0.5
    assert abs(float((found != 0)[large].float().mean()) - 0.3) < 0.02
    assert not torch.equal(found[0] != 0, found[1] != 0)


def test_masks_are_of_seed_name_and_term_and_of_nothing_else() -> None:
    values = numbers(0, 2, 500)
    alone = drop(stacks_of({"b": values}), density=0.5)["b"]
    beside = drop(stacks_of({"a": values, "b": 2 * values, "c": values}), density=0.5)
    assert torch.equal(beside["b"], 2 * alone)
    assert not torch.equal(beside["a"] != 0, beside["c"] != 0)
    assert torch.equal(drop(stacks_of({"b": values[:1]}), density=0.5)["b"], alone[:1])
    assert not torch.equal(drop(stacks_of({"b": values}), density=0.5, seed=1)["b"], alone)


def test_dropping_is_unbiased() -> None:
    values = numbers(0, 1, 50)
    total = sum(
        (drop(stacks_of({"a": values}), density=0.5, rescale="inverse_density", seed=seed)["a"] for seed in range(800)),
        start=torch.zeros(1, 50),
    )
    torch.testing.assert_close(total / 800, values, rtol=0, atol=0.16)  # 4.5 standard deviations


def cut_middle(values: list[float], is_sampled: bool = False, **params: Scalar) -> list[float]:
    found: list[float] = kept(middle(stacks_of({"a": [values]}, is_sampled=is_sampled), {**OURS, **params}))["a"][
        0
    ].tolist()
    return found


def test_the_middle() -> None:
    values = [1.0, -10.0, 3.0, 4.0, -5.0, 6.0, 7.0, 8.0, 9.0, 2.0]
    assert cut_middle(values, density=0.3, gamma=0.2) == [0, 0, 0, 0, 0, 6.0, 7.0, 8.0, 0, 0]
    assert cut_middle(values, density=1.0, gamma=0.2) == [1.0, 0, 3.0, 4.0, -5.0, 6.0, 7.0, 8.0, 0, 2.0]
    assert cut_middle(values, density=0.9, gamma=0.2, prefer="density") == [1.0, 0, *values[2:]]
    assert cut_middle(values, density=1.0, gamma=0.2, prefer="density") == values
    assert cut_middle(values, density=0.3, gamma=0.2, rescale="l1")[5:8] == pytest.approx(
        [size * 55 / 21 for size in (6, 7, 8)]
    )


@given(differences(max_terms=1), DENSITIES, DENSITIES, st.sampled_from(["gamma", "density"]))
def test_the_middle_has_so_many_entries(values: torch.Tensor, density: float, gamma: float, prefer: str) -> None:
    values = values + torch.where(values < 0, -1.0, 1.0)  # none is 0
    count, outliers = int(density * values.numel()), int(gamma * values.numel())
    found = torch.tensor(cut_middle(values[0].tolist(), density=density, gamma=gamma, prefer=prefer))
    expected = min(count, values.numel() - outliers) if prefer == "gamma" else count
    assert int(torch.count_nonzero(found)) == expected


def signs(seed: int, *shape: int) -> torch.Tensor:
    """As a sampled delta has them: one entry in five is there, and all are of one size."""
    found = numbers(seed, *shape)
    return torch.where(found.abs() < 0.2, found.sign() / 64, 0.0)


@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_sampled_entries_are_thinned_at_random_in_every_tensor(scope: str) -> None:
    tensors = {name: signs(seed, 2, 5_000) for seed, name in enumerate("abc")}
    found = trim(stacks_of(tensors, is_sampled=True), density=0.05, scope=scope)
    in_all = [0, 0]
    for name, values in found.items():
        for term, (thinned, before) in enumerate(zip(values, tensors[name], strict=True)):
            there = torch.nonzero(thinned).flatten()
            assert 200 < len(there) < 300  # a quarter of a thousand
            assert abs(float(there.float().mean()) - 2_500) < 400  # and not the first of them
            assert torch.equal(thinned[there].sign(), before[there].sign())
            in_all[term] += len(there)
            if scope == "tensor":
                assert len(there) == 250
                torch.testing.assert_close(thinned.abs().sum(), before.abs().sum())
    if scope == "global":
        assert in_all == [750, 750]
        for term in range(2):
            sums = [sum(float(each[name][term].abs().sum()) for name in found) for each in (found, tensors)]
            assert sums[0] == pytest.approx(sums[1], rel=1e-5)


def test_sampled_entries_that_fit_are_left_alone() -> None:
    values = signs(0, 2, 1000)
    for scope in ("tensor", "global"):
        found = trim(stacks_of({"a": values}, is_sampled=True), density=0.4, scope=scope, rescale="inverse_density")
        assert torch.equal(found["a"], values)


def test_thinning_is_of_seed_name_and_term() -> None:
    values = signs(0, 1, 1000).expand(2, -1)
    found = trim(stacks_of({"a": values, "b": values}, is_sampled=True), density=0.1)
    masks = [found["a"][0] != 0, found["a"][1] != 0, found["b"][0] != 0]
    masks.append(trim(stacks_of({"a": values}, is_sampled=True), density=0.1, seed=1)["a"][0] != 0)
    assert all(not torch.equal(masks[i], masks[j]) for i in range(4) for j in range(i))
    assert torch.equal(trim(stacks_of({"b": values}, is_sampled=True), density=0.1)["b"], found["b"])


def test_sampled_entries_have_no_outliers() -> None:
    values = signs(0, 1, 1000)[0]
    assert cut_middle(values.tolist(), is_sampled=True, gamma=0.1) == values.tolist()
    thinned = torch.tensor(cut_middle(values.tolist(), is_sampled=True, gamma=0.1, density=0.1))
    assert int(torch.count_nonzero(thinned)) == 100
    torch.testing.assert_close(thinned.abs().sum(), values.abs().sum())


def test_a_ranking_by_size_ranks_by_size() -> None:
    sizes = torch.tensor([0.0, 2.0, 1.0])
    assert Ranking(0, is_random=False).scores(sizes, "a", 0) is sizes
    drawn = Ranking(0, is_random=True).scores(sizes, "a", 0)
    assert drawn[0] == 0
    assert bool((drawn[1:] > 0).all())


@pytest.mark.parametrize(("name", "value"), [("scope", "layer"), ("rescale", "l2"), ("density", 1.5)])
def test_what_is_refused(name: str, value: Scalar) -> None:
    with pytest.raises(InvalidRecipe) as caught:
        trim(stacks_of({"a": [[1.0]]}), **{name: value})
    assert caught.value.param == f"params.{name}"
    with pytest.raises(InvalidRecipe, match="prefer"):
        cut_middle([1.0], prefer="size")
