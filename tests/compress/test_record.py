"""Evaluations are counted, remembered and replayed."""

from __future__ import annotations

import math

import pytest

from patchbay.compress.record import BudgetSpent, Record
from patchbay.compress.search import Evaluation
from patchbay.errors import InvalidRecipe

POINTS = [(1.0,), (2.0,), (3.0,), (2.0,)]
ALL = tuple(Evaluation(point, -(point[0] ** 2)) for point in POINTS)


def run(record: Record) -> list[float]:
    return [record(point, lambda point=point: -(point[0] ** 2)) for point in POINTS]  # type: ignore[misc]


def never() -> float:
    raise AssertionError("a recorded evaluation is not computed again")


def test_budget_is_spent_exactly() -> None:
    seen: list[Evaluation] = []
    record = Record(4, on_evaluation=seen.append)
    assert run(record) == [-1.0, -4.0, -9.0, -4.0]
    assert record.left == 0
    with pytest.raises(BudgetSpent):
        record((5.0,), never)
    assert tuple(seen) == tuple(record.evaluations) == ALL


@pytest.mark.parametrize("known", range(5))
def test_history_is_replayed_and_not_told_again(known: int) -> None:
    seen: list[Evaluation] = []
    record = Record(4, ALL[:known], seen.append)
    for number, evaluation in enumerate(ALL[:known]):
        score = never if number else lambda: ALL[0].score
        assert record(evaluation.point, score) == evaluation.score
    for evaluation in ALL[known:]:
        assert record(evaluation.point, lambda evaluation=evaluation: evaluation.score) == evaluation.score  # type: ignore[misc]
    assert (tuple(record.evaluations), tuple(seen)) == (ALL, ALL[known:])


def test_history_from_json_has_lists_for_points() -> None:
    listed = [Evaluation([1.0], -1.0)]  # type: ignore[arg-type]
    record = Record(1, listed)
    assert record((1.0,), lambda: -1.0) == -1.0
    assert record.evaluations == [Evaluation((1.0,), -1.0)]


def test_history_of_another_run_is_refused() -> None:
    with pytest.raises(InvalidRecipe, match="evaluation 1 of the history is of another point") as caught:
        run(Record(4, [ALL[0], Evaluation((2.5,), 0.0)]))
    assert caught.value.param == "history"


@pytest.mark.parametrize(("recorded", "now"), [(-1.0, -1.1), (-1e-3, -2e-3), (-1.0, math.nan), (math.nan, -1.0)])
def test_history_of_other_inputs_is_refused(recorded: float, now: float) -> None:
    """The first score is computed again, since points alone depend on nothing but scores."""
    with pytest.raises(InvalidRecipe, match="evaluation 0 of the history has another score") as caught:
        Record(2, [Evaluation((1.0,), recorded)])((1.0,), lambda: now)
    assert caught.value.param == "history"


@pytest.mark.parametrize(("recorded", "now"), [(-1.0, -1.001), (-1e-9, 0.0), (math.nan, math.nan), (0.5, 0.5)])
def test_history_of_another_machine_rounds_otherwise(recorded: float, now: float) -> None:
    score = Record(2, [Evaluation((1.0,), recorded)])((1.0,), lambda: now)
    assert score == recorded or math.isnan(recorded)


def test_progress_counts_replayed_evaluations_too() -> None:
    steps: list[tuple[int, int, str]] = []
    run(Record(4, ALL[:2], on_progress=lambda *step: steps.append(step)))
    assert steps == [(number, 4, f"evaluation {number}, best score -1") for number in (1, 2, 3, 4)]


def test_best_score_is_the_highest() -> None:
    record = Record(4)
    assert record.best_score is None
    run(record)
    assert record.best_score == -1.0


def test_what_is_no_number_is_never_the_best() -> None:
    record = Record(3)
    for number, score in enumerate((math.nan, -0.5, math.nan)):
        record((float(number),), lambda score=score: score)  # type: ignore[misc]
    assert record.best_score == -0.5
