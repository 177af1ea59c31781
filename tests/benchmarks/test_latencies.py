from __future__ import annotations

from dataclasses import replace

import pytest
from benchmarks.latencies import Objective, goodput, latencies, per_token, shown
from hypothesis import given
from hypothesis import strategies as st

gaps = st.lists(st.floats(1e-3, 10), min_size=1, max_size=8)


def times(drawn: list[float], start: float = 0.0) -> list[float]:
    return [start + sum(drawn[: number + 1]) for number in range(len(drawn))]


def test_percentiles_are_of_all_answers_of_all_rounds() -> None:
    found = latencies([[[0.5, 0.75], [1.5, 2.0]], [[1.0, 1.25], [4.0, 4.5]]], [0.0, 1.0])
    assert found["ttft"] == {"p50": 1.0, "p95": 3.0, "p99": 3.0}  # .5, .5, 1, 3
    assert found["itl"] == {"p50": 0.5, "p95": 0.5, "p99": 0.5}  # .25, .25, .5, .5
    assert found["e2e"] == {"p50": 1.25, "p95": 3.5, "p99": 3.5}  # .75, 1, 1.25, 3.5
    assert shown(found["ttft"], 1e-3, 0, (50, 95)) == "1000 / 3000"
    assert latencies([[[0.5]]], [0.0])["itl"]["p99"] == 0.0


def test_the_objective_is_five_and_two_times_the_unloaded_medians() -> None:
    objective = Objective.beside([[1.0, 1.5, 2.0], [3.0, 3.25, 3.5], [2.0, 12.0, 22.0]])
    assert objective == Objective(first=10.0, later=1.0)
    assert objective.is_met([14.0, 15.0], 4.0)
    assert not objective.is_met([14.5, 15.0], 4.0)
    assert not objective.is_met([14.0, 15.5], 4.0)
    assert objective.is_met([14.0], 4.0)  # no later token that could be late


def test_goodput_is_answers_in_time_over_the_whole_time() -> None:
    served = [[1.0, 1.5], [2.0, 2.5], [9.0, 10.0]]
    assert goodput(served, [0.0, 1.0, 2.0], Objective(1.0, 0.5)) == pytest.approx(2 / 10)
    assert goodput(served, [0.0, 1.0, 2.0], Objective(0.5, 0.5)) == 0


@given(st.lists(gaps, min_size=1, max_size=5), st.floats(0, 5), st.floats(1e-3, 5), st.floats(1e-3, 5))
def test_a_looser_objective_loses_nothing(drawn: list[list[float]], at: float, first: float, later: float) -> None:
    served, arrivals = [times(one, at) for one in drawn], [at] * len(drawn)
    strict = Objective(first, later)
    found = goodput(served, arrivals, strict)
    assert 0 <= found <= len(drawn) / max(one[-1] for one in served)
    assert found <= goodput(served, arrivals, replace(strict, first=2 * first))
    assert found <= goodput(served, arrivals, replace(strict, later=2 * later))


@given(gaps, st.floats(0, 5))
def test_what_is_unloaded_meets_its_own_objective(drawn: list[float], at: float) -> None:
    assert Objective.beside([times(drawn)]).is_met(times(drawn, at), at)
    assert per_token(times(drawn, at)) == pytest.approx(per_token(times(drawn)), abs=1e-9)
