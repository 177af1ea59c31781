from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import pico
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from patchbay.engine.recipes import Path, Ready
from patchbay.engine.request import Request, SamplingParams, TokenLogprob
from patchbay.engine.scheduler import MAX_SKIPPED, TURN_STEPS, Limits, Scheduler, turn_of
from patchbay.engine.sequence import Sequence as Running
from patchbay.errors import QueueFull

BASE = Ready("base", Path.BASE, {})
BESIDE = Ready("beside", Path.DECOUPLED, {})
PATCHES = [Ready(name, Path.PATCHED, {}) for name in ("p", "q", "r")]
Make = Callable[..., Running]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(
        pico.tokenizer(tmp_path_factory.mktemp("words"))
    )
    numbers = count()

    def new(prompt: int = 4, answer: int = 3, ready: Ready = BASE) -> Running:
        params = SamplingParams(max_tokens=answer, temperature=0, seed=0)
        tokens = tuple(range(4, 4 + prompt))
        return Running(Request(next(numbers), tokens, params, ready, tokenizer, (), frozenset(), lambda _: None))

    return new


class World:
    """A scheduler, room for `room` tokens, and a model that reads what it is given and answers with a word."""

    def __init__(self, room: int, **limits: object) -> None:
        self.room = room
        self.scheduler = Scheduler(Limits(**limits), self.reserve)  # type: ignore[arg-type]
        self.order: list[Running] = []  # in which they got memory

    def reserve(self, tokens: int) -> object | None:
        if tokens > self.room:
            return None
        self.room -= tokens
        return object()

    def admit(self) -> list[Running]:
        found = self.scheduler.admit()
        self.order += found
        return found

    def forward(self) -> list[tuple[Running, int]]:
        """One pass; those that are over leave."""
        chosen = self.scheduler.schedule(self.scheduler.turn())
        for sequence, tokens in chosen:
            sequence.computed += tokens
            if sequence.computed == sequence.num_tokens:
                sequence.accept(TokenLogprob(7, None))
        self.leave(sequence for sequence, _ in chosen if sequence.is_over)
        return chosen

    def leave(self, sequences: Iterable[Running]) -> None:
        gone = list(sequences)
        self.scheduler.remove(gone)
        for sequence in gone:
            self.room += sequence.num_reserved if sequence.place else 0

    def run(self) -> Iterator[list[tuple[Running, int]]]:
        while self.scheduler.waiting or self.scheduler.running:
            self.admit()
            yield self.forward()


def test_first_come_first_served(make: Make) -> None:
    world = World(1000, max_running=4)
    sequences = [make(answer=1 + number % 5) for number in range(20)]
    world.scheduler.add(sequences)
    for _ in world.run():
        assert len(world.scheduler.running) <= 4
    assert world.order == sequences


def test_a_short_one_passes_one_that_waits_for_memory(make: Make) -> None:
    world = World(20)
    there, long, short, late = make(8, 4), make(16, 4), make(4, 4), make(4, 4)
    world.scheduler.add([there])
    assert world.admit() == [there]
    world.scheduler.add([long, short, late])
    assert world.admit() == [short]
    assert list(world.scheduler.waiting) == [long, late] and (long.skipped, late.skipped) == (1, 0)
    world.leave([there, short])
    assert world.admit() == [long], "it comes first again"


def test_nobody_starves(make: Make) -> None:
    """Short requests keep coming, and there is always memory for one of them, but not for the long one."""
    world = World(40)
    long = make(32, 4)
    world.scheduler.add([make(4, 4)])
    world.admit()
    world.scheduler.add([long])
    for _ in range(500):
        world.scheduler.add([make(4, 4)])
        world.admit()
        if long.place is not None:
            break
        world.forward()
    assert long.place is not None
    assert long.skipped == MAX_SKIPPED == world.order.index(long) - 1


@pytest.mark.parametrize("before", [0, 1, MAX_SKIPPED - 1])
def test_many_at_once_pass_no_more_often(make: Make, before: int) -> None:
    world = World(100, max_running=1000)
    long = make(200, 1)
    long.skipped = before
    world.scheduler.add([long, *(make(1, 0) for _ in range(80))])
    assert len(world.admit()) == MAX_SKIPPED - before and long.skipped == MAX_SKIPPED
    assert not world.admit()


def test_where_memory_fails_nobody_is_lost(make: Make) -> None:
    """Whoever looks for all sequences, to tell them, finds them."""
    sequences = [make() for _ in range(4)]
    places = iter([object(), None])

    def reserve(_: int) -> object | None:
        for place in places:
            return place
        raise MemoryError

    scheduler = Scheduler(Limits(), reserve)
    scheduler.add(sequences)
    with pytest.raises(MemoryError):
        scheduler.admit()
    assert scheduler.running == sequences[:1] and list(scheduler.waiting) == sequences[1:]


def test_the_queue_takes_all_or_none(make: Make) -> None:
    scheduler = Scheduler(Limits(max_waiting=5), lambda _: None)
    scheduler.add([make() for _ in range(3)])
    kept = list(scheduler.waiting)
    with pytest.raises(QueueFull, match="3 texts are waiting already"):
        scheduler.add([make() for _ in range(3)])
    assert list(scheduler.waiting) == kept
    scheduler.add([make() for _ in range(2)])
    assert len(scheduler.waiting) == 5
    scheduler.remove(kept[1:])
    assert list(scheduler.waiting)[0] is kept[0] and len(scheduler.waiting) == 3


requests = st.tuples(st.integers(1, 30), st.integers(1, 6), st.sampled_from([BASE, BESIDE, *PATCHES]))


@given(st.lists(requests, min_size=1, max_size=12), st.integers(1, 20), st.integers(1, 6), st.booleans())
@settings(deadline=None, max_examples=60)
def test_everyone_is_answered(
    make: Make, asked: list[tuple[int, int, Ready]], max_step: int, max_running: int, whole_prompts: bool
) -> None:
    """Every pass is of one group, within its budget, and gives each answer under way a token."""
    world = World(64, max_step=max_step, max_running=max_running, whole_prompts=whole_prompts)
    sequences = [make(*each) for each in asked]
    world.scheduler.add(sequences)
    read = dict.fromkeys(sequences, 0)
    while world.scheduler.waiting or world.scheduler.running:
        world.admit()
        decoding = {each for each in world.scheduler.running if each.draws.answer}
        chosen = world.forward()
        group = {turn_of(sequence) for sequence, _ in chosen}
        assert len(group) == 1
        assert {each for each in decoding if turn_of(each) in group} == {each for each, _ in chosen if each in decoding}
        assert all(tokens == 1 if each in decoding else tokens >= 1 for each, tokens in chosen)
        prompts = [(each, tokens) for each, tokens in chosen if each not in decoding]
        room = max(1, max_step - (len(chosen) - len(prompts)))
        if whole_prompts:
            assert all(tokens == len(each.request.prompt) for each, tokens in prompts)
            assert sum(tokens for _, tokens in prompts[:-1]) < room
        else:
            assert sum(tokens for _, tokens in prompts) <= room
        for each, tokens in chosen:
            read[each] += tokens
    assert set(world.order) == set(sequences)
    assert all(len(each.draws.answer) == each.request.params.max_tokens for each in sequences)
    assert all(count == each.num_tokens - 1 for each, count in read.items()), "no token is read twice"


def test_the_oldest_prompts_are_read_first(make: Make) -> None:
    world = World(1000, max_step=10)
    first, second, third = make(14), make(4), make(20)
    world.scheduler.add([first, second, third])
    passes = [dict(chosen) for chosen in world.run()]
    assert passes[:4] == [
        {first: 10},
        {first: 4, second: 4, third: 2},
        {first: 1, second: 1, third: 8},
        {first: 1, second: 1, third: 8},
    ]


def test_a_prompt_goes_on_beside_however_many_answers(make: Make) -> None:
    world = World(1000, max_step=2)
    sequences = [make(1, 20) for _ in range(4)]
    world.scheduler.add(sequences)
    for _ in range(4):
        world.admit()
        world.forward()
    late = make(3, 2)
    world.scheduler.add([late])
    world.admit()
    assert [dict(world.forward()) for _ in range(3)] == [dict.fromkeys([*sequences, late], 1)] * 3


def turns(world: World, passes: int) -> list[str | None]:
    found = []
    for _ in range(passes):
        world.admit()
        [group] = {turn_of(sequence) for sequence, _ in world.forward()}
        found.append(group)
    return found


def test_groups_take_turns(make: Make) -> None:
    world = World(10**6)
    p, q, _ = PATCHES
    world.scheduler.add([make(2, 500, ready) for ready in (p, BASE, BESIDE, q, p)])
    expected = [group for group in (None, "q", "p") for _ in range(TURN_STEPS)]
    assert turns(world, 6 * TURN_STEPS) == expected + expected


def test_a_group_that_is_alone_goes_on(make: Make) -> None:
    world = World(10**6)
    world.scheduler.add([make(2, 500, BESIDE)])
    assert turns(world, 3 * TURN_STEPS) == [None] * 3 * TURN_STEPS
    world.scheduler.add([make(2, 500, PATCHES[0])])
    assert turns(world, 2)[-1] == "p", "it has had its turn long ago"


def test_a_group_s_turn_ends_with_it(make: Make) -> None:
    world = World(10**6)
    p, q, r = PATCHES
    world.scheduler.add([make(2, 3, p), make(2, 100, q), make(2, 2, r)])
    expected: Sequence[str] = [*"ppp", *"q" * TURN_STEPS, *"rr", *"q" * TURN_STEPS, *"q" * 5]
    assert turns(world, len(expected)) == expected


def test_limits_for_whole_prompts() -> None:
    assert Limits(max_step=3).for_whole_prompts() == Limits(max_step=3, whole_prompts=True)
