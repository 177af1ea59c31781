from __future__ import annotations

import math

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from patchbay.engine.cache import SHORTEST, Geometry, KVCache, Place, Shelf

CPU = torch.device("cpu")
# A key and a value may differ in shape, and layers too.
GEOMETRY = Geometry((((2, 3), (2, 1)), ((1, 2), (1, 2))), torch.float32, CPU)


def tensors(shelf: Shelf) -> list[torch.Tensor]:
    return [*shelf.keys, *shelf.values]


def row(tensor: torch.Tensor, number: float) -> torch.Tensor:
    """Exact in fp32, and different for every entry and number."""
    shape = tensor.shape[1:]
    return torch.arange(shape.numel()).view(shape) + number * 2.0**14


def write(place: Place, number: float) -> float:
    for tensor in tensors(place.shelf):
        tensor[place.row] = row(tensor, number)
    return number


class CacheMachine(RuleBasedStateMachine):
    """Against a list of places, and what was written to each."""

    def __init__(self) -> None:
        super().__init__()
        self.live: list[tuple[Place, float]] = []
        self.number = 0.0

    @initialize(tokens=st.integers(40, 1500))
    def open(self, tokens: int) -> None:
        self.max_bytes = tokens * GEOMETRY.token_bytes + 7
        self.cache = KVCache(GEOMETRY, self.max_bytes)
        assert self.cache.max_tokens == tokens

    @rule(tokens=st.integers(1, 260) | st.integers(1, 1500))
    def reserve(self, tokens: int) -> None:
        tokens = min(tokens, self.cache.max_tokens)
        capacity = self.cache.capacity_for(tokens)
        assert tokens <= capacity <= max(SHORTEST, 2 * tokens)
        fits = self.cache.used_tokens + capacity <= self.cache.max_tokens
        before = [tensor for shelf in self.cache.shelves.values() for tensor in tensors(shelf)]
        place = self.cache.reserve(tokens)
        assert (place is not None) == fits, "memory that nobody uses stands in nobody's way"
        if place is not None:
            assert place.shelf.capacity == capacity
            self.number += 1
            self.live.append((place, write(place, self.number)))
        else:
            after = [tensor for shelf in self.cache.shelves.values() for tensor in tensors(shelf)]
            assert all(a is b for a, b in zip(before, after, strict=True)), "nothing is copied for nothing"

    @rule(data=st.data(), is_known=st.booleans())
    def free(self, data: st.DataObject, is_known: bool) -> None:
        if self.live:
            place, number = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
            self.cache.free(place, is_finite=is_known and math.isfinite(number))

    @rule(data=st.data(), value=st.sampled_from([math.nan, math.inf]))
    def spoil(self, data: st.DataObject, value: float) -> None:
        """A recipe can make keys and values that are not finite: it may be long until its sequence goes."""
        if self.live:
            index = data.draw(st.integers(0, len(self.live) - 1))
            place, _ = self.live[index]
            self.live[index] = place, write(place, value)

    @invariant()
    def rows_in_use_lie_side_by_side(self) -> None:
        for shelf in self.cache.shelves.values():
            places = {id(place) for place, _ in self.live if place.shelf is shelf}
            assert places == {id(place) for place in shelf.places} and places
            assert [place.row for place in shelf.places] == list(range(len(places)))
            assert len(places) <= shelf.num_rows == len(tensors(shelf)[0])

    @invariant()
    def they_hold_what_was_written(self) -> None:
        for place, number in self.live:
            for tensor in tensors(place.shelf):
                torch.testing.assert_close(tensor[place.row], row(tensor, number), rtol=0, atol=0, equal_nan=True)

    @invariant()
    def all_other_rows_are_finite(self) -> None:
        """Attention reads beyond a sequence's end, and multiplies by 0."""
        for shelf in self.cache.shelves.values():
            for tensor in tensors(shelf):
                assert tensor[len(shelf.places) :].isfinite().all()

    @invariant()
    def the_budget_holds(self) -> None:
        taken = sum(tensor.nbytes for shelf in self.cache.shelves.values() for tensor in tensors(shelf))
        assert taken == self.cache.num_bytes <= self.max_bytes
        assert self.cache.used_tokens == sum(place.shelf.capacity for place, _ in self.live)
        assert self.live or not taken, "nobody is there, and nothing is taken"


def test_random_histories() -> None:
    run_state_machine_as_test(CacheMachine, settings=settings(max_examples=30, stateful_step_count=25, deadline=None))


def test_a_token_s_bytes() -> None:
    assert GEOMETRY.token_bytes == (2 * 3 + 2 * 1 + 1 * 2 + 1 * 2) * 4
    assert KVCache(GEOMETRY, 0).max_tokens == 0


@pytest.mark.parametrize("budget", [SHORTEST - 1, SHORTEST, 100, 1000])
def test_the_longest_text_gets_all_of_it(budget: int) -> None:
    cache = KVCache(GEOMETRY, budget * GEOMETRY.token_bytes)
    place = cache.reserve(budget)
    assert place is not None and cache.num_tokens == budget
    assert cache.reserve(1) is None
    cache.free(place, is_finite=True)
    with pytest.raises(ValueError, match=f"{budget + 1} tokens, and all memory is for {budget}"):
        cache.reserve(budget + 1)


def test_a_row_that_goes_is_forgotten_if_it_may_not_be_finite() -> None:
    cache = KVCache(GEOMETRY, 1000 * GEOMETRY.token_bytes)
    first, second = cache.reserve(10), cache.reserve(10)
    assert first is not None and second is not None and first.shelf is second.shelf
    shelf = first.shelf
    for tensor in tensors(shelf):
        tensor[:] = float("nan")
    cache.free(second, is_finite=False)
    assert all(not tensor[1].any() for tensor in tensors(shelf))
    assert all(tensor[0].isnan().all() for tensor in tensors(shelf)), "its neighbour is left alone"


def test_a_row_that_moves_leaves_nothing_behind() -> None:
    """It may be one that fails, which nobody knows yet."""
    cache = KVCache(GEOMETRY, 1000 * GEOMETRY.token_bytes)
    first, second = cache.reserve(10), cache.reserve(10)
    assert first is not None and second is not None
    write(second, math.nan)
    cache.free(first, is_finite=True)
    assert second.row == 0 and all(bool(tensor[0].isnan().all()) for tensor in tensors(second.shelf))
    assert all(not tensor[1].any() for tensor in tensors(second.shelf))


def test_memory_goes_from_those_who_left_to_those_who_come() -> None:
    cache = KVCache(GEOMETRY, 1024 * GEOMETRY.token_bytes)
    short = [cache.reserve(64) for _ in range(16)]
    assert cache.reserve(512) is None
    for place in short[4:12]:
        assert place is not None
        cache.free(place, is_finite=True)
    long = cache.reserve(512)
    assert long is not None and len(long.shelf.keys[0]) == 1
    assert cache.num_tokens == cache.used_tokens == 1024
