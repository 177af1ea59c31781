from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable

import pytest
from tests.waiting import until

from patchbay.engine.lock import FairLock


def start(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def queue(lock: FairLock, order: list[int], count: int) -> list[threading.Thread]:
    """Threads that ask one after another, each when those before it stand in the queue."""

    def take(number: int) -> None:
        with lock:
            order.append(number)

    threads = []
    for number in range(count):
        threads.append(start(lambda number=number: take(number)))  # type: ignore[misc]
        until(lambda number=number: len(lock._waiting) > number)  # type: ignore[misc]
    return threads


def join(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def test_it_is_had_in_the_order_in_which_it_was_asked_for() -> None:
    lock, order = FairLock(), list[int]()
    with lock:
        threads = queue(lock, order, 5)
    join(*threads)
    assert order == [0, 1, 2, 3, 4]


def test_who_takes_it_again_at_once_comes_last() -> None:
    """However fast: those who wait need not be awake to be next."""
    for _ in range(20):
        lock, order = FairLock(), list[int]()
        with lock:
            threads = queue(lock, order, 2)
        with lock:
            order.append(9)
        join(*threads)
        assert order == [0, 1, 9]


def test_everybody_gets_in_beside_a_thread_that_takes_it_in_a_tight_loop() -> None:
    lock, over, entries = FairLock(), threading.Event(), list[int]()

    def loop() -> None:
        while not over.is_set():
            with lock:
                pass

    def work() -> None:
        for _ in range(20):
            with lock:
                entries.append(1)

    looping = start(loop)
    join(*[start(work) for _ in range(4)])
    over.set()
    join(looping)
    assert len(entries) == 80


def test_one_at_a_time() -> None:
    lock, inside, seen = FairLock(), list[int](), list[int]()

    def work() -> None:
        for _ in range(50):
            with lock:
                inside.append(1)
                time.sleep(0)  # others may go on
                seen.append(len(inside))
                inside.pop()

    join(*[start(work) for _ in range(6)])
    assert seen == [1] * 300


def test_it_is_let_go_with_an_exception_too() -> None:
    lock, order = FairLock(), list[int]()
    with pytest.raises(RuntimeError), lock:
        threads = queue(lock, order, 1)
        raise RuntimeError
    join(*threads)
    with lock:
        assert order == [0]


def test_who_is_interrupted_stands_in_nobody_s_way() -> None:
    """As by Ctrl-C in the main thread."""
    lock, order, main = FairLock(), list[int](), threading.get_ident()
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            assert over.wait(30)

    def interrupt() -> None:
        until(lambda: len(lock._waiting) == 1)
        signal.pthread_kill(main, signal.SIGINT)

    holder = start(hold)
    assert held.wait(30)
    interrupting = start(interrupt)
    with pytest.raises(KeyboardInterrupt), lock:
        order.append(1)
    assert not lock._waiting and not order
    others = queue(lock, order, 2)
    over.set()
    join(holder, interrupting, *others)
    with lock:
        assert order == [0, 1]
