from __future__ import annotations

import pytest
import torch
from tests.delta.samples import spec
from tests.merge.stacks import merged, numbers, stacks_of

from patchbay.architecture import Kind, TensorSpec
from patchbay.errors import InvalidRecipe
from patchbay.merge.della import probabilities
from patchbay.merge.draws import uniform
from patchbay.merge.methods import METHODS
from patchbay.merge.stack import Stack, Stacks


def test_probabilities_grow_with_the_rank_in_a_row() -> None:
    rows = torch.tensor([[3.0, -1.0, 0.0, -8.0, 4.0], [0.0, 0.0, 1.0, 0.0, 0.0]])
    expected = [[0.5, 0.4, 0.3, 0.7, 0.6], [0.3, 0.4, 0.7, 0.5, 0.6]]
    torch.testing.assert_close(probabilities(rows, 0.5, 0.2), torch.tensor(expected))
    assert probabilities(torch.ones(3, 1), 0.5, 0.2).tolist() == [[0.5]] * 3


def kept(values: torch.Tensor, **params: float | str) -> torch.Tensor:
    return merged("della_linear", stacks_of({"a": values.unsqueeze(0)}), **params)["a"]


def test_what_is_kept_is_divided_by_its_own_probability() -> None:
    values = numbers(0, 30, 20)
    likely = probabilities(values, 0.5, 0.2)
    mask = uniform(0, "a", 0, (30, 20)) <= likely
    torch.testing.assert_close(kept(values, density=0.5, epsilon=0.2), values * mask / likely)
    torch.testing.assert_close(kept(values, density=0.5, epsilon=0.2, rescale="none"), values * mask)
    l1 = kept(values, density=0.5, epsilon=0.2, rescale="l1")
    torch.testing.assert_close(l1, values * mask * (values.abs().sum() / (values * mask).abs().sum()))


def test_large_entries_are_kept_more_often() -> None:
    values = numbers(0, 100_000)
    there = kept(values, density=0.5, epsilon=0.3) != 0
    order = values.abs().argsort()
    shares = [float(there[tenth].float().mean()) for tenth in order.chunk(10)]
    assert shares == pytest.approx([0.2 + 0.6 * (k + 0.5) / 10 for k in range(10)], abs=0.02)


def test_rows_are_output_neurons_wherever_their_axis_is() -> None:
    """GPT-2's Conv1D is stored [in, out]."""
    values = numbers(0, 6, 40)
    row = METHODS["della_linear"]
    assert row.merge is not None

    def merge(differences: torch.Tensor, tensor_spec: TensorSpec) -> torch.Tensor:
        stack = Stack("a", differences.unsqueeze(0), torch.ones(1), tensor_spec, lambda: differences)
        params = row.filled({"rescale": "inverse_probability", "density": 0.5, "epsilon": 0.5})
        return dict(row.merge(Stacks(("a",), lambda name: stack), params))["a"]

    conv = TensorSpec("a", "a", (6, 40), "F32", Kind.CONV1D, 1, (), False)
    by_column = merge(values, conv)
    likely = probabilities(values.T, 0.5, 0.5).T
    expected = torch.where(uniform(0, "a", 0, (6, 40)) <= likely, values / likely, 0.0)
    assert torch.equal(by_column, torch.where(likely > 0, expected, 0.0))
    assert not torch.equal(by_column, merge(values, spec("a", (6, 40))))


def test_those_who_agree_among_what_is_left() -> None:
    values = numbers(0, 2, 30, 20)
    alone = [merged("della_linear", stacks_of({"a": values}, weights))["a"] for weights in ([1.0, 0.0], [0.0, 1.0])]
    expected = merged("ties", stacks_of({"a": torch.stack(alone)}, [1.0, 0.5]))["a"]
    torch.testing.assert_close(merged("della", stacks_of({"a": values}, [1.0, 0.5]))["a"], expected)


@pytest.mark.parametrize("rescale", ["none", "l1", "inverse_density", "inverse_probability"])
def test_sampled_entries_have_no_ranks(rescale: str) -> None:
    values = numbers(0, 1, 1000).sign()
    found = merged("della_linear", stacks_of({"a": values}, is_sampled=True), density=0.5, rescale=rescale)["a"]
    expected = merged("dare_linear", stacks_of({"a": values}), density=0.5, rescale="inverse_density")["a"]
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("density", "epsilon"), [(0.1, 0.15), (0.9, 0.15)])
def test_probabilities_lie_between_0_and_1(density: float, epsilon: float) -> None:
    with pytest.raises(InvalidRecipe, match="probabilities outside 0 to 1") as caught:
        kept(torch.ones(3), density=density, epsilon=epsilon)
    assert caught.value.param == "params.epsilon"
    assert not kept(torch.ones(3), density=0.0).any()
    assert kept(torch.ones(3), density=1.0).tolist() == [1.0] * 3


def test_the_papers() -> None:
    values = numbers(0, 3, 30, 20)
    left = torch.empty_like(values)
    for term, value in enumerate(values):
        likely = probabilities(value, 0.7, 0.07)
        left[term] = value * (uniform(0, "a", term, (30, 20)) <= likely) / likely
    expected = merged("ties", stacks_of({"a": left}), preset="paper", density=1.0)["a"]
    torch.testing.assert_close(merged("della", stacks_of({"a": values}), preset="paper")["a"], expected)
