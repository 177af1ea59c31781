from __future__ import annotations

import pytest
import torch
from tests.merge.stacks import merged, numbers, stacks_of

from patchbay.errors import InvalidRecipe
from patchbay.merge.methods import METHODS

VALUES = [[3.0, -1.0, 0.0, 2.0], [1.0, 1.0, 1.0, -1.0]]  # sums of squares 14 and 4


def test_by_hand() -> None:
    found = merged("sce", stacks_of({"a": VALUES}))["a"]
    torch.testing.assert_close(found, torch.tensor([(42 + 4) / 18, 0.0, 1.0, 2.0]))
    assert merged("sce", stacks_of({"a": VALUES}), tie="positive")["a"][1] == 1.0


def test_entries_are_selected_by_their_variance_before_anything_else() -> None:
    # variances 1, 1, 1/4, 9/4; half of the four: the last and, of the equal ones, the first; squares 13 and 2
    found = merged("sce", stacks_of({"a": VALUES}), select_topk=0.5)["a"]
    torch.testing.assert_close(found, torch.tensor([(39 + 2) / 15, 0.0, 0.0, 2.0]))
    assert not merged("sce", stacks_of({"a": VALUES}), select_topk=0.0)["a"].any()


def test_what_does_not_vary_does_not_count() -> None:
    values = numbers(0, 2, 1000)
    values[1, 100:] = values[0, 100:]
    found = merged("sce", stacks_of({"a": values}), select_topk=0.5)["a"]
    assert int(torch.count_nonzero(found)) == 50


def test_weights_are_a_factor_of_the_energies() -> None:
    found = merged("sce", stacks_of({"a": VALUES}, [1.0, 3.5]))["a"]
    torch.testing.assert_close(found, torch.tensor([(42 + 14) / 28, 1.0, 1.0, -1.0]))


def test_every_tensor_has_its_own_energies() -> None:
    tensors = {"a": torch.tensor(VALUES), "b": torch.tensor(VALUES).flip(0)}
    found = merged("sce", stacks_of(tensors))
    torch.testing.assert_close(found["a"], found["b"])


def test_small_differences_weigh_what_they_are_worth() -> None:
    """Not as in mergekit, where terms whose mean squares sum to less than 1e-6 count alike."""
    values = torch.tensor(VALUES)
    found = merged("sce", stacks_of({"a": values / 1024}))["a"]
    torch.testing.assert_close(1024 * found, merged("sce", stacks_of({"a": values}))["a"])
    alike = merged("sce", stacks_of({"a": values / 2**14}), preset="mergekit")["a"]
    torch.testing.assert_close(2**14 * alike, torch.tensor([2.0, 1.0, 1.0, 2.0]))


def test_terms_of_next_to_no_energy_are_heard_where_they_are_alone() -> None:
    """Not in mergekit, whose divisor is at least 1e-6."""
    stacks = stacks_of({"a": [[1024.0, 0.0], [0.0, 0.5]]})
    torch.testing.assert_close(merged("sce", stacks)["a"], torch.tensor([1024.0, 0.5]))
    share = 0.25 / (1024**2 + 0.25)
    expected = torch.tensor([1024.0, 0.5 * share / 1e-6])
    torch.testing.assert_close(merged("sce", stacks, preset="mergekit")["a"], expected)


def test_sampled_entries_are_selected_at_random() -> None:
    values = torch.zeros(2, 4000)
    values[0, ::4], values[1, 1::4] = 1.0, -1.0
    found = merged("sce", stacks_of({"a": values}, is_sampled=True), select_topk=0.1)["a"]
    there = torch.nonzero(found).flatten()
    assert len(there) == 200
    assert abs(float(there.float().mean()) - 2000) < 400
    torch.testing.assert_close(found.abs().sum(), values.abs().sum())


def test_what_is_refused() -> None:
    with pytest.raises(InvalidRecipe, match="select_topk is a share"):
        merged("sce", stacks_of({"a": VALUES}), select_topk=10)
    with pytest.raises(InvalidRecipe, match="tie is one of zero, positive"):
        merged("sce", stacks_of({"a": VALUES}), tie="majority")
    with pytest.raises(InvalidRecipe, match="sce merges 2 to 8 deltas"):
        METHODS["sce"].check_terms([1.0])
