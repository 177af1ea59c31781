from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchbay.merge.draws import ALL_TERMS, uniform


@given(st.integers(), st.text(max_size=20), st.integers(ALL_TERMS, 7), st.integers(0, 50))
def test_numbers_are_of_seed_name_and_term_and_above_0_to_1(seed: int, name: str, term: int, count: int) -> None:
    numbers = uniform(seed, name, term, (count,))
    assert numbers.shape == (count,)
    assert numbers.dtype == torch.float32
    assert torch.equal(numbers, uniform(seed, name, term, (count,)))
    assert bool(((numbers > 0) & (numbers <= 1)).all())
    assert torch.equal(numbers * 2**24, (numbers * 2**24).round())


@pytest.mark.parametrize("other", [(1, "a", 0), (0, "b", 0), (0, "a", 1), (0, "a", ALL_TERMS), (0, "a1", 0)])
def test_whatever_differs_the_numbers_do(other: tuple[int, str, int]) -> None:
    numbers, others = uniform(0, "a", 0, (1000,)), uniform(*other, (1000,))
    assert int((numbers == others).sum()) <= 1


def test_a_shape_does_not_change_the_numbers() -> None:
    assert torch.equal(uniform(0, "a", 0, (3, 5)).reshape(-1), uniform(0, "a", 0, (16,))[:15])
    assert uniform(0, "a", 0, ()).shape == ()


def test_they_are_uniform() -> None:
    numbers = uniform(0, "a", 0, (200_000,))
    counts = torch.histc(numbers, 20, 0, 1)
    assert bool((counts - 10_000).abs().max() < 500)  # five standard deviations
    assert abs(float(torch.corrcoef(torch.stack([numbers[1:], numbers[:-1]]))[0, 1])) < 0.012


def test_they_never_change() -> None:
    """Recipes are cached and served by their hash: equal seeds stay equal masks."""
    expected = torch.tensor([[3917113, 4385120, 14941043, 5833353, 3054417]]) / 2**24
    assert torch.equal(uniform(7, "layer.weight", 2, (1, 5)), expected)
