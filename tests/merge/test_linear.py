from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from patchbay.errors import InvalidRecipe
from patchbay.merge.linear import arithmetic_weights, mean_weights

WEIGHTS = st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=8)


@given(WEIGHTS)
def test_arithmetic_weights_are_the_weights(weights: list[float]) -> None:
    assert arithmetic_weights(torch.tensor(weights), {}).tolist() == weights


@given(WEIGHTS)
def test_mean_weights_sum_to_one_in_proportion(weights: list[float]) -> None:
    given_weights = torch.tensor(weights)
    assume(abs(float(given_weights.sum())) > 0.1)
    mean = mean_weights(given_weights, {})
    assert float(mean.sum()) == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(mean * given_weights.sum(), given_weights, rtol=1e-5, atol=1e-5)


@given(st.floats(2**-10, 10, width=32))
def test_one_fine_tune_is_its_own_mean(weight: float) -> None:
    assert mean_weights(torch.tensor([weight]), {}).tolist() == [1.0]


@pytest.mark.parametrize("weights", [[0.0], [1.0, -1.0], [0.3, 0.3, -0.6], [1e-9, -1e-9]])
def test_weights_that_sum_to_nothing(weights: list[float]) -> None:
    with pytest.raises(InvalidRecipe, match="task_arithmetic") as caught:
        mean_weights(torch.tensor(weights), {})
    assert caught.value.param == "terms"
