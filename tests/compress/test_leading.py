"""What singular vectors a budget buys, and that nothing is lost between them and the rest."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.compress.problems import random_tensors, vector_of

from patchbay.compress.leading import Allocation, Leading, less
from patchbay.compress.low_rank import stored_bytes

ALLOCATIONS: tuple[Allocation, ...] = ("even", "energy")
TENSORS = random_tensors(a=(40, 60), b=(96, 24), c=(8, 5, 10))


def spent(leading: Leading, bits: float, allocation: Allocation) -> dict[str, int]:
    """Bytes of the factors of each matrix."""
    return {
        name: sum(stored_bytes(values, left.shape[1], (len(left), len(right))) for left, right, values in bands)
        for name, bands in leading.bands(bits, allocation).items()
    }


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@given(bits=st.floats(0, 8), scale=st.floats(0.01, 100))
@settings(max_examples=25, deadline=None)
def test_no_more_is_spent_than_there_is(allocation: Allocation, bits: float, scale: float) -> None:
    tensors = {**TENSORS, "a": scale * TENSORS["a"], "zero": torch.zeros(30, 30)}
    leading = Leading(vector_of(tensors))
    sizes = spent(leading, bits, allocation)
    assert 8 * sum(sizes.values()) <= bits * leading.vector.numel
    assert "zero" not in sizes
    if allocation == "even":
        assert all(8 * size <= bits * tensors[name].numel() for name, size in sizes.items())


def test_energy_goes_where_the_energy_is() -> None:
    tensors = {"loud": 10 * random_tensors(x=(64, 64))["x"], "quiet": random_tensors(seed=1, x=(64, 64))["x"]}
    leading = Leading(vector_of(tensors))
    assert spent(leading, 1.0, "energy").keys() == {"loud"}
    even = spent(leading, 1.0, "even")
    assert even["loud"] == pytest.approx(even["quiet"], rel=0.1)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_factors_and_the_rest_are_the_vector(allocation: Allocation) -> None:
    leading = Leading(vector_of(TENSORS))
    bands = leading.bands(2.0, allocation)
    rest = leading.rest(bands)
    assert bands.keys() == TENSORS.keys()
    for name, tau in TENSORS.items():
        product = sum((left @ right.T for left, right, _ in bands[name]), torch.zeros(()))
        torch.testing.assert_close(rest.read(name) + product.reshape(tau.shape), tau)
        assert rest.read(name).norm() < tau.norm()


def test_what_is_read_stays_as_it_is() -> None:
    tau, bands = TENSORS["a"].clone(), Leading(vector_of(TENSORS)).bands(1.0, "even")["a"]
    left_over = less(tau, bands)
    assert torch.equal(tau, TENSORS["a"])
    assert not torch.equal(left_over, tau)
    assert torch.equal(less(tau, ()), tau)


def test_the_same_budget_gives_the_same_factors() -> None:
    first, other = Leading(vector_of(TENSORS)), Leading(vector_of(TENSORS))
    first.bands(0.5, "energy")  # what was asked for in between makes no difference
    for one, same in zip(first.bands(1.0, "even").values(), other.bands(1.0, "even").values(), strict=True):
        assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(one, same, strict=True))
