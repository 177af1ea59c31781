from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from patchbay.store.audit import Entry
from patchbay_server.refused import MORE, WINDOW_S, Refusals

STEPS = st.lists(st.tuples(st.floats(0, 90), st.sampled_from("ab"), st.sampled_from(["403", "404"])), max_size=40)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def refusal(at: float, actor: str, result: str) -> Entry:
    return Entry(at, "acme", actor, "DELETE /v1/deltas/{delta}", "math", result)


@given(STEPS)
def test_every_refusal_is_written_or_counted_and_one_a_minute_is_written(steps: list[tuple[float, str, str]]) -> None:
    clock = Clock()
    refusals, written = Refusals(clock), list[Entry]()
    for pause, actor, result in steps:
        clock.now += pause
        written += refusals.add(refusal(clock.now, actor, result))
    written += refusals.rest()
    counts = Counter[tuple[str, str]]()
    for entry in written:
        more = int(entry.subject.removesuffix(" more")) if entry.action == MORE else 1
        counts[entry.actor, entry.result] += more
    assert counts == Counter((actor, result) for _, actor, result in steps)
    for kind in counts:
        whole = [e.at for e in written if (e.actor, e.result) == kind and e.action != MORE]
        assert all(later - earlier >= WINDOW_S for earlier, later in zip(whole, whole[1:], strict=False))
    assert refusals.rest() == []


def test_who_goes_on_is_told_of_as_soon_as_the_minute_is_over() -> None:
    clock = Clock()
    refusals = Refusals(clock)
    assert refusals.add(refusal(0, "a", "403")) == [refusal(0, "a", "403")]
    clock.now = 30
    assert refusals.add(refusal(30, "a", "403")) == []
    clock.now = WINDOW_S
    more, first = refusals.add(refusal(60, "b", "404"))
    assert (more.at, more.actor, more.action, more.subject, more.result) == (30, "a", MORE, "1 more", "403")
    assert first == refusal(60, "b", "404")
