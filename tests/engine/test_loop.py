from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from tests.waiting import until

from patchbay.engine.loop import Loop

Open = Callable[..., Loop]


class Steps:
    """Takes what is there one by one; what is an exception is raised."""

    def __init__(self) -> None:
        self.there: list[object] = []
        self.done: list[object] = []
        self.resting = 0  # how often there was nothing to do
        self.threads: set[int] = set()

    def __call__(self) -> bool:
        self.threads.add(threading.get_ident())
        if not self.there:
            self.resting += 1
            return False
        self.done.append(self.there.pop(0))
        if isinstance(self.done[-1], BaseException):
            raise self.done[-1]
        return True


@pytest.fixture
def steps() -> Steps:
    return Steps()


@pytest.fixture
def new() -> Iterator[Open]:
    made: list[Loop] = []

    def open_one(step: Callable[[], bool], on_death: Callable[[], None] = lambda: None) -> Loop:
        made.append(Loop(step, on_death))
        return made[-1]

    yield open_one
    for loop in made:
        loop.stop()


def test_it_steps_until_there_is_nothing_to_do(new: Open, steps: Steps) -> None:
    loop = new(steps)
    steps.there = [1, 2, 3]
    assert loop.is_alive and not steps.done, "the thread starts with the first call"
    loop.wake()
    until(lambda: steps.resting == 1)
    assert steps.done == [1, 2, 3]
    steps.there = [4]
    loop.wake()
    until(lambda: steps.resting == 2)
    assert steps.done == [1, 2, 3, 4] and len(steps.threads) == 1
    assert threading.get_ident() not in steps.threads and loop.restarts == 0


def test_who_wakes_it_during_a_step_is_heard(new: Open) -> None:
    inside, go, calls = threading.Event(), threading.Event(), list[int]()

    def step() -> bool:
        calls.append(1)
        inside.set()
        assert go.wait(30)
        return False

    loop = new(step)
    loop.wake()
    assert inside.wait(30)
    loop.wake()
    go.set()
    until(lambda: len(calls) == 2)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("error", [ValueError, SystemExit, MemoryError, KeyboardInterrupt])
def test_it_comes_back_from_the_dead(new: Open, steps: Steps, error: type[BaseException]) -> None:
    told: list[list[object]] = []

    def on_death() -> None:
        told.append(list(steps.done))
        steps.there.clear()

    loop = new(steps, on_death)
    for life in range(1, 3):
        failure = error()
        steps.there = [1, failure, 2]
        loop.wake()
        until(lambda life=life: loop.restarts == life and loop.is_alive)  # type: ignore[misc]
        assert told[-1][-2:] == [1, failure] and len(told) == life
        steps.there = [3, 4]
        loop.wake()
        until(lambda: steps.done[-1] == 4)
    assert len(steps.threads) <= 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_it_does_even_where_nobody_can_be_told(new: Open, steps: Steps) -> None:
    def on_death() -> None:
        raise RuntimeError("who asked is gone")

    loop = new(steps, on_death)
    steps.there = [ValueError()]
    loop.wake()
    until(lambda: loop.restarts == 1 and loop.is_alive)
    steps.there = [1]
    loop.wake()
    until(lambda: steps.done[-1] == 1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_it_is_not_alive_while_it_is_dead(new: Open, steps: Steps) -> None:
    go, alive = threading.Event(), list[bool]()

    def on_death() -> None:
        alive.append(loop.is_alive)
        assert go.wait(30)

    loop = new(steps, on_death)
    steps.there = [ValueError()]
    loop.wake()
    until(lambda: bool(alive))
    assert alive == [False]
    steps.there = [1]
    loop.wake()  # heard once it lives again
    go.set()
    until(lambda: steps.done[-1] == 1)


def test_stop_waits_for_the_step_under_way_and_for_no_other(new: Open) -> None:
    inside, over = threading.Event(), list[int]()

    def step() -> bool:
        inside.set()
        time.sleep(0.01)
        over.append(1)
        return True

    loop = new(step)
    loop.wake()
    assert inside.wait(30)
    loop.stop()
    count = len(over)
    assert count
    loop.stop()
    loop.wake()
    assert len(over) == count and not loop.is_alive


def test_stop_before_the_first_step(new: Open, steps: Steps) -> None:
    loop = new(steps)
    steps.there = [1]
    loop.stop()
    loop.wake()
    loop.stop()
    assert not steps.done
