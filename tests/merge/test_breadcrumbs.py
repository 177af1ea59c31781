from __future__ import annotations

import torch
from tests.merge.stacks import merged, numbers, stacks_of

VALUES = [[1.0, -10.0, 3.0, 4.0, -5.0], [-6.0, 0.25, -3.5, 8.0, 4.0]]


def test_the_sum_without_the_largest_and_the_smallest() -> None:
    stacks = stacks_of({"a": VALUES}, [1.0, 2.0])
    assert merged("breadcrumbs", stacks, density=0.4, gamma=0.2)["a"].tolist() == [-12.0, 0.0, 0.0, 4.0, 3.0]
    assert merged("breadcrumbs", stacks, gamma=0.2)["a"].tolist() == [-11.0, 0.5, -4.0, 4.0, 3.0]
    mean = merged("breadcrumbs", stacks, density=0.4, gamma=0.2, normalize=True)["a"]
    torch.testing.assert_close(mean, torch.tensor([-4.0, 0.0, 0.0, 4 / 3, 1.0]))


def test_those_who_agree() -> None:
    stacks = stacks_of({"a": VALUES}, [1.0, 2.0])
    assert merged("breadcrumbs_ties", stacks, density=0.4, gamma=0.2)["a"].tolist() == [-6.0, 0.0, 0.0, 4.0, 4.0]
    found = merged("breadcrumbs_ties", stacks, density=0.4, gamma=0.2, normalize=False)["a"]
    assert found.tolist() == [-12.0, 0.0, 0.0, 4.0, 8.0]


def test_outliers_go_from_a_delta_that_is_pruned_already() -> None:
    """The default keeps all that is stored but the largest hundredth, as mergekit would at a lower density."""
    values = numbers(0, 1, 1000)
    values[:, 300:] = 0
    found = merged("breadcrumbs", stacks_of({"a": values}))["a"]
    assert int(torch.count_nonzero(found)) == 290
    assert torch.equal(found, merged("breadcrumbs", stacks_of({"a": values}), preset="mergekit", density=0.5)["a"])
    assert torch.equal(merged("breadcrumbs", stacks_of({"a": values}), preset="mergekit")["a"], values[0])


def test_the_papers_share() -> None:
    found = merged("breadcrumbs", stacks_of({"a": numbers(0, 1, 1000)}), preset="paper")["a"]
    assert int(torch.count_nonzero(found)) == 140
