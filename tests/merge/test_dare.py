from __future__ import annotations

import pytest
import torch
from tests.merge.stacks import merged, numbers, stacks_of

from patchbay.merge.draws import uniform

WEIGHTS = [1.0, 0.5]


@pytest.fixture
def values() -> torch.Tensor:
    return numbers(0, 2, 30, 20)


def dropped(values: torch.Tensor, density: float) -> torch.Tensor:
    masks = torch.stack([uniform(0, "a", term, values.shape[1:]) <= density for term in range(len(values))])
    return values * masks


def test_the_sum_of_what_is_left(values: torch.Tensor) -> None:
    found = merged("dare_linear", stacks_of({"a": values}, WEIGHTS), density=0.25)["a"]
    left = dropped(values, 0.25)
    torch.testing.assert_close(found, 4 * (left[0] + 0.5 * left[1]))
    mean = merged("dare_linear", stacks_of({"a": values}, WEIGHTS), density=0.25, rescale="none", normalize=True)["a"]
    torch.testing.assert_close(mean, found / 4 / 1.5)


def test_the_l1_norm_of_every_term_is_kept(values: torch.Tensor) -> None:
    found = merged("dare_linear", stacks_of({"a": values[:1]}), density=0.25, rescale="l1")["a"]
    torch.testing.assert_close(found.abs().sum(), values[0].abs().sum())
    assert torch.equal(found == 0, dropped(values, 0.25)[0] == 0)


def test_those_who_agree_among_what_is_left(values: torch.Tensor) -> None:
    found = merged("dare_ties", stacks_of({"a": values}, WEIGHTS), density=0.5)["a"]
    left = 2 * dropped(values, 0.5)
    expected = merged("ties", stacks_of({"a": left}, WEIGHTS))["a"]
    torch.testing.assert_close(found, expected)


def test_sampled_deltas_are_thinned_as_all_are(values: torch.Tensor) -> None:
    for method in ("dare_linear", "dare_ties"):
        sampled = merged(method, stacks_of({"a": values}, is_sampled=True), density=0.5)["a"]
        assert torch.equal(sampled, merged(method, stacks_of({"a": values}), density=0.5)["a"])


def test_at_density_0_nothing_is_left(values: torch.Tensor) -> None:
    assert not merged("dare_linear", stacks_of({"a": values}), density=0.0)["a"].any()


def test_the_papers_density_is_a_tenth(values: torch.Tensor) -> None:
    found = merged("dare_linear", stacks_of({"a": values[:1]}), preset="paper")["a"]
    torch.testing.assert_close(found, 10 * dropped(values, 0.1)[0])
