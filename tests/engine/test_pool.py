from __future__ import annotations

import gc
import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.waiting import until

from patchbay.engine.patience import Patience
from patchbay.engine.pool import Pool
from patchbay.errors import CacheFull, Cancelled, DeadlineExceeded, QueueFull


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
    for key in "abac":
        pool.get(key, lambda: Value(4))
    assert pool.num_bytes == 8 and pool.keys == ["a", "c"]


def test_what_is_discarded_is_made_anew() -> None:
    pool: Pool[Value] = Pool(10)
    first = pool.pin("a", lambda: Value(4))
    pool.get("b", lambda: Value(3))
    assert pool.keys == ["a", "b"]
    pool.discard("a")
    pool.discard("nobody")
    assert (pool.keys, pool.num_bytes, pool.pinned_bytes) == (["b"], 3, 0)
    assert pool.get("a", lambda: Value(4)) is not first
    assert not pool.is_pinned("a")


def test_a_look_changes_nothing() -> None:
    pool: Pool[Value] = Pool(8)
    first = pool.get("a", lambda: Value(4))
    pool.get("b", lambda: Value(4))
    assert pool.peek("a") is first and pool.peek("c") is None
    assert (pool.hits, pool.misses, len(pool)) == (0, 2, 2)
    del first
    pool.get("c", lambda: Value(4))
    assert pool.peek("a") is None, "it grew no younger"


def test_what_is_pinned_stays() -> None:
    pool: Pool[Value] = Pool(10)
    pinned = pool.pin("a", lambda: Value(4))
    for key in "bcd":
        pool.get(key, lambda: Value(6))
    assert pool.pin("a", lambda: Value(9)) is pool.get("a", lambda: Value(9)) is pinned
    assert (len(pool), pool.num_bytes, pool.pinned_bytes, pool.is_pinned("a")) == (2, 10, 4, True)
    pool.unpin("a")
    pool.get("e", lambda: Value(10))
    assert pool.peek("a") is None and pool.pinned_bytes == 0
    pool.unpin("never pinned")


def test_pins_over_the_budget_are_refused_and_change_nothing() -> None:
    pool: Pool[Value] = Pool(10)
    pool.pin("a", lambda: Value(4))
    with pytest.raises(CacheFull, match=r"7 bytes cannot be pinned beside 4 .* 10; .*--delta-cache-bytes"):
        pool.pin("b", lambda: Value(7))
    assert (len(pool), pool.num_bytes, pool.is_pinned("b")) == (1, 4, False)
    assert pool.get("b", lambda: Value(7)).num_bytes == 7, "it is made and handed out all the same"
    pool.pin("c", lambda: Value(6))
    assert (len(pool), pool.num_bytes, pool.pinned_bytes) == (2, 10, 10)


@pytest.mark.parametrize("budget", [0, 9])
def test_a_value_over_the_budget_is_handed_out_and_not_kept(budget: int) -> None:
    pool: Pool[Value] = Pool(budget)
    kept = pool.get("small", lambda: Value(budget))
    first = pool.get("large", lambda: Value(10))
    assert first.num_bytes == 10
    assert pool.get("large", lambda: Value(10)) is first, "as long as somebody has it"
    del first
    pool.get("large", lambda: Value(10))
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
@given(
    st.integers(0, 12),
    st.lists(st.tuples(st.sampled_from(("get", "pin", "unpin")), st.sampled_from("abcd"), st.integers(0, 6))),
)
def test_it_is_an_lru_of_bytes(budget: int, asked: list[tuple[str, str, int]]) -> None:
    """Against the plainest one there is; a key's size is that of its first request while it is kept."""
    pool: Pool[Value] = Pool(budget)
    model: OrderedDict[str, int] = OrderedDict()
    pins: dict[str, int] = {}

    def keep(key: str, size: int) -> None:
        model[key] = size
        while sum(model.values()) > budget:
            del model[next(other for other in model if other not in pins)]

    for action, key, size in asked:
        expected = model.get(key, size)
        if action == "unpin":
            pool.unpin(key)
            pins.pop(key, None)
            continue
        if key in model:
            model.move_to_end(key)
        elif size + sum(pins.values()) <= budget:
            keep(key, size)
        if action == "get":
            assert pool.get(key, lambda s=size: Value(s)).num_bytes == expected  # type: ignore[misc]
        elif key in pins or expected + sum(pins.values()) <= budget:
            pins[key] = expected
            assert pool.pin(key, lambda s=size: Value(s)).num_bytes == expected  # type: ignore[misc]
        else:
            with pytest.raises(CacheFull):
                pool.pin(key, lambda s=size: Value(s))  # type: ignore[misc]
        assert (len(pool), pool.num_bytes) == (len(model), sum(model.values())) and pool.num_bytes <= budget
        assert pool.pinned_bytes == sum(pins.values()) and pins.items() <= model.items()


def test_what_is_used_counts_and_is_found_again() -> None:
    pool: Pool[Value] = Pool(10)
    used = pool.get("a", lambda: Value(6))
    other = pool.get("b", lambda: Value(6))
    assert pool.keys == ["b"]
    assert pool.get("a", lambda: Value(6)) is used, "it is no second copy"
    assert pool.keys == ["a"] and pool.misses == 2
    assert other.num_bytes == 6


def test_who_finds_no_room_waits_for_it() -> None:
    pool: Pool[Value] = Pool(10, max_wait=60)
    used = [pool.get("a", lambda: Value(5)), pool.get("b", lambda: Value(5))]
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(pool.get, "c", lambda: Value(5))
        time.sleep(0.1)
        assert pool.get("a", lambda: Value(5)) is used[0], "what is there does not wait"
        assert not waiting.done()
        used.clear()
        assert waiting.result(30).num_bytes == 5


def test_nobody_waits_for_ever() -> None:
    pool: Pool[Value] = Pool(4, max_wait=0.05)
    used = pool.get("a", lambda: Value(4))
    with pytest.raises(QueueFull, match=r"use all 4 bytes .* --delta-cache-bytes"):
        pool.get("b", lambda: Value(1))
    assert pool.get("a", lambda: Value(4)) is used
    del used
    assert pool.get("b", lambda: Value(1)).num_bytes == 1


def test_all_who_wait_for_one_value_wait_as_long_as_one() -> None:
    """Not one after the other, each as its maker: that would be eight times as long."""
    pool: Pool[Value] = Pool(4, max_wait=0.5)
    used = pool.get("a", lambda: Value(4))
    start = time.monotonic()
    with ThreadPoolExecutor(8) as threads:
        waiting = [threads.submit(pool.get, "b", lambda: Value(1)) for _ in range(8)]
        for one in waiting:
            with pytest.raises(QueueFull):
                one.result(30)
    assert time.monotonic() - start < 7 * pool.max_wait
    assert used.num_bytes == 4 and not pool.num_waiting


def test_who_gives_up_waits_no_longer() -> None:
    pool: Pool[Value] = Pool(4, max_wait=60)
    used, gone = pool.get("a", lambda: Value(4)), threading.Event()
    late = Patience(until=time.monotonic() + 0.1)
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(pool.get, "b", lambda: Value(1))
        until(lambda: pool.num_waiting == 1)
        behind = threads.submit(pool.get, "b", lambda: Value(1), patience=late)  # whoever makes it waits himself
        leaving = threads.submit(pool.get, "c", lambda: Value(1), patience=Patience(gone=gone))
        with pytest.raises(DeadlineExceeded):
            behind.result(30)
        until(lambda: pool.num_waiting == 2)
        gone.set()
        with pytest.raises(Cancelled):
            leaving.result(30)
        assert used.num_bytes == 4 and pool.num_waiting == 1
        del used
        assert first.result(30).num_bytes == 1


def test_what_only_a_cycle_holds_is_not_in_use() -> None:
    class Holder:
        def __init__(self, value: Value) -> None:
            self.value, self.itself = value, self

    pool: Pool[Value] = Pool(4, max_wait=60)
    gc.disable()
    try:
        Holder(pool.get("a", lambda: Value(4)))
        start = time.monotonic()
        assert pool.get("b", lambda: Value(4)).num_bytes == 4
        assert time.monotonic() - start < 30
    finally:
        gc.enable()


def test_pins_are_not_waited_for() -> None:
    pool: Pool[Value] = Pool(4, max_wait=60)
    pinned = pool.pin("a", lambda: Value(4))
    assert pool.get("b", lambda: Value(9)).num_bytes == 9 and pinned.num_bytes == 4


def test_those_who_need_several_do_not_wait_for_each_other() -> None:
    """Each holds what the others wait for: one after the other goes on."""
    pool: Pool[Value] = Pool(2, max_wait=60)
    ready = threading.Barrier(6)

    def take(number: int) -> int:
        first = pool.get(f"{number}", lambda: Value(1))
        if number < 2:
            pair.wait()  # two that fill it
        second = pool.get(f"{number}+", lambda: Value(1), held=first.num_bytes)
        return first.num_bytes + second.num_bytes

    pair = threading.Barrier(2)
    with ThreadPoolExecutor(6) as threads:
        found = [threads.submit(lambda number=number: (ready.wait(), take(number))[1]) for number in range(6)]
        assert [each.result(30) for each in found] == [2] * 6
