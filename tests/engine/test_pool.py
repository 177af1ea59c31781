from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchbay.engine.pool import Pool


@dataclass(frozen=True)
class Value:
    num_bytes: int


def test_a_value_is_made_once() -> None:
    pool: Pool[Value] = Pool(10)
    made = [pool.get("a", lambda: Value(4)) for _ in range(3)]
    assert made[0] is made[1] is made[2]
    assert (pool.hits, pool.misses, len(pool), pool.num_bytes) == (2, 1, 1, 4)


def test_the_least_recently_used_leaves_first() -> None:
    pool: Pool[Value] = Pool(10)
    values = {key: pool.get(key, lambda: Value(4)) for key in "ab"}
    assert pool.get("a", lambda: Value(4)) is values["a"]
    pool.get("c", lambda: Value(4))
    assert pool.num_bytes == 8
    assert pool.get("a", lambda: Value(4)) is values["a"]
    assert pool.get("b", lambda: Value(4)) is not values["b"]


def test_a_look_changes_nothing() -> None:
    pool: Pool[Value] = Pool(8)
    first = pool.get("a", lambda: Value(4))
    pool.get("b", lambda: Value(4))
    assert pool.peek("a") is first and pool.peek("c") is None
    assert (pool.hits, pool.misses, len(pool)) == (0, 2, 2)
    pool.get("c", lambda: Value(4))
    assert pool.peek("a") is None, "it grew no younger"


@pytest.mark.parametrize("budget", [0, 9])
def test_a_value_over_the_budget_is_handed_out_and_not_kept(budget: int) -> None:
    pool: Pool[Value] = Pool(budget)
    kept = pool.get("small", lambda: Value(budget))
    first = pool.get("large", lambda: Value(10))
    assert first.num_bytes == 10
    assert pool.get("large", lambda: Value(10)) is not first
    assert pool.get("small", lambda: Value(budget)) is kept, "nothing was thrown out for it"


def test_an_exception_reaches_its_caller_only() -> None:
    pool: Pool[Value] = Pool(10)

    def fail() -> Value:
        raise LookupError("gone")

    for _ in range(2):
        with pytest.raises(LookupError):
            pool.get("a", fail)
    assert pool.get("a", lambda: Value(1)).num_bytes == 1
    assert (len(pool), pool.misses) == (1, 3)


def test_a_second_caller_waits_for_the_first_ones_value() -> None:
    pool: Pool[Value] = Pool(10)
    started, release = threading.Event(), threading.Event()
    calls = []

    def slow() -> Value:
        calls.append(1)
        started.set()
        assert release.wait(30)
        return Value(1)

    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(pool.get, "a", slow)
        assert started.wait(30)
        others = [threads.submit(pool.get, "a", slow) for _ in range(7)]
        assert pool.get("b", lambda: Value(1)).num_bytes == 1, "other keys do not wait"
        release.set()
        assert all(other.result(30) is first.result(30) for other in others)
    assert len(calls) == 1


def test_those_who_waited_for_a_failure_make_their_own() -> None:
    pool: Pool[Value] = Pool(10)
    started, release = threading.Event(), threading.Event()

    def fail() -> Value:
        started.set()
        assert release.wait(30)
        raise LookupError("gone")

    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(pool.get, "a", fail)
        assert started.wait(30)
        others = [threads.submit(pool.get, "a", lambda: Value(1)) for _ in range(3)]
        release.set()
        with pytest.raises(LookupError):
            first.result(30)
        results = [other.result(30) for other in others]
    assert results[0] is results[1] is results[2]


@settings(deadline=None)
@given(st.integers(0, 12), st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 6)), max_size=30))
def test_it_is_an_lru_of_bytes(budget: int, asked: list[tuple[str, int]]) -> None:
    """Against the plainest one there is; a key's size is that of its first request while it is kept."""
    pool: Pool[Value] = Pool(budget)
    model: OrderedDict[str, int] = OrderedDict()
    for key, size in asked:
        expected = model.get(key, size)
        if key in model:
            model.move_to_end(key)
        elif size <= budget:
            model[key] = size
            while sum(model.values()) > budget:
                model.popitem(last=False)
        assert pool.get(key, lambda s=size: Value(s)).num_bytes == expected  # type: ignore[misc]
        assert (len(pool), pool.num_bytes) == (len(model), sum(model.values())) and pool.num_bytes <= budget
