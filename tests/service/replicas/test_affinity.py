from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from patchbay_server.replicas.affinity import SENT_S, Candidate, Held, Outcome, outcome_of, rank

DELTAS = st.frozensets(st.sampled_from("abcde"))
CANDIDATES = st.lists(
    st.builds(Candidate, st.text("xyz", min_size=1), DELTAS, st.integers(0, 100), st.integers(1, 40)),
    min_size=1,
    unique_by=lambda candidate: candidate.name,
)


def best(candidates: list[Candidate], *wanted: str) -> str:
    return rank(candidates, frozenset(wanted))[0].name


def test_who_has_all_of_it_is_first_though_others_have_less_to_do() -> None:
    both, one, idle = Candidate("both", "ab", 7, 8), Candidate("one", "a", 1, 8), Candidate("idle", "", 0, 8)
    assert [each.name for each in rank([idle, one, both], frozenset("ab"))] == ["both", "one", "idle"]


def test_an_overloaded_one_is_last() -> None:
    for load, expected in ((7, "busy"), (8, "idle"), (100, "idle")):
        assert best([Candidate("busy", "a", load, 8), Candidate("idle", "", 0, 8)], "a") == expected


def test_where_all_are_busy_the_holder_goes_on_until_it_has_twice_as_much_to_do() -> None:
    for load, expected in ((20, "busy"), (40, "busy"), (41, "idler")):
        assert best([Candidate("busy", "a", load, 8), Candidate("idler", "", 20, 8)], "a") == expected


def test_new_deltas_are_spread_evenly_over_idle_replicas() -> None:
    held: dict[str, set[str]] = {"x": set(), "y": set(), "z": set()}
    for number in range(30):
        candidates = [Candidate(name, frozenset(deltas), 0, 8) for name, deltas in held.items()]
        held[best(candidates, f"d{number}")].add(f"d{number}")
    assert Counter(map(len, held.values())) == {10: 3}


@given(CANDIDATES, DELTAS)
def test_laws_of_the_order(candidates: list[Candidate], wanted: frozenset[str]) -> None:
    ranked = rank(candidates, wanted)
    assert sorted(ranked, key=lambda each: each.name) == sorted(candidates, key=lambda each: each.name)
    assert rank(candidates[::-1], wanted) == ranked, "the order in which they are listed decides nothing"
    first = ranked[0]
    idlest = min(each.load for each in candidates)
    holders = [each for each in candidates if wanted <= each.deltas]
    assert first.load < first.capacity or first.load <= 2 * idlest, "never an overloaded one: the idlest is none"
    if any(each.load < each.capacity for each in holders):
        assert wanted <= first.deltas


@given(CANDIDATES, DELTAS)
def test_laws_of_the_outcome(candidates: list[Candidate], wanted: frozenset[str]) -> None:
    chosen = rank(candidates, wanted)[0]
    outcome = outcome_of(chosen, candidates, wanted)
    assert (outcome is Outcome.ANY) == (not wanted)
    assert (outcome is Outcome.HIT) == (bool(wanted) and wanted <= chosen.deltas)
    assert outcome is not Outcome.COLD or not any(wanted <= each.deltas for each in candidates)


def test_what_was_sent_is_held_until_it_was_told_or_long_ago() -> None:
    now = 0.0
    held = Held(lambda: now)
    assert held.of("x") == frozenset()
    held.sent("x", "a")
    held.said("x", told := ["b"])
    assert held.of("x") == frozenset("ab") and held.of("y") == frozenset()
    now += SENT_S
    held.said("x", told)
    assert held.of("x") == frozenset("b")
    held.said("x", ["a", "c"])
    assert held.of("x") == frozenset("ac")
    held.keep(["y"])
    assert held.of("x") == frozenset()
