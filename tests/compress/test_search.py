"""Both searches: what they promise together, what resuming means, and COBYLA's published first moves."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, minimize  # type: ignore[import-untyped]

from patchbay.compress.search import (
    METHODS,
    Evaluation,
    Method,
    Point,
    SearchResult,
    Vector,
    maximise,
)
from patchbay.errors import InvalidRecipe

Function = Callable[[Point], float]
Run = tuple[Function, list[float], list[tuple[float, float]], Method, int, int]
BOTH: list[Method] = ["cobyla", "cmaes"]
both = pytest.mark.parametrize("method", BOTH)


def hill(point: Point) -> float:
    """Smooth, with its top inside the bounds and off the axes."""
    return -sum((x - 1.3 - 0.1 * i) ** 2 * (1 + i) for i, x in enumerate(point))


def steps(point: Point) -> float:
    """Piecewise constant, as accuracy is."""
    return round(hill(point), 0)


def broken(point: Point) -> float:
    """A hill where a third of all points cannot be scored."""
    kind = int(point[0] * 1000) % 9
    return {0: math.nan, 1: math.inf, 2: -math.inf}.get(kind, hill(point))


def worst(point: Point) -> float:
    return math.nan


def edge(point: Point) -> float:
    """Its top is in a corner, so that both methods run into the bounds."""
    return sum(point)


def huge(point: Point) -> float:
    return 1e308 * math.copysign(1, math.sin(50 * sum(point)))


FUNCTIONS: list[Function] = [hill, steps, broken, worst, edge, huge]


@st.composite
def runs(draw: st.DrawFn) -> Run:
    dims = draw(st.integers(2, 6))
    lower = draw(st.lists(st.floats(-5, 5), min_size=dims, max_size=dims))
    width = draw(st.lists(st.floats(0.01, 10), min_size=dims, max_size=dims))
    share = draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=dims, max_size=dims))
    bounds = [(low, low + extent) for low, extent in zip(lower, width, strict=True)]
    start = [min(low + part * (high - low), high) for (low, high), part in zip(bounds, share, strict=True)]
    return (
        draw(st.sampled_from(FUNCTIONS)),
        start,
        bounds,
        draw(st.sampled_from(BOTH)),
        draw(st.integers(1, 30)),
        draw(st.integers(0, 2**32)),
    )


@settings(max_examples=60, deadline=None)
@given(runs())
def test_promises_of_every_run(run: Run) -> None:
    function, start, bounds, method, budget, seed = run
    calls: list[Point] = []

    def counted(point: Point) -> float:
        calls.append(point)
        return function(point)

    seen: list[Evaluation] = []
    result = maximise(counted, start, method=method, budget=budget, bounds=bounds, seed=seed, on_evaluation=seen.append)
    assert tuple(seen) == result.evaluations
    assert calls == [evaluation.point for evaluation in result.evaluations]
    assert calls[0] == tuple(start)
    assert 1 <= len(calls) <= budget
    assert all(low <= x <= high for point in calls for x, (low, high) in zip(point, bounds, strict=True))
    values = [e.score if math.isfinite(e.score) else -math.inf for e in result.evaluations]
    assert result.best is result.evaluations[values.index(max(values))]
    again = maximise(function, start, method=method, budget=budget, bounds=bounds, seed=seed)
    assert repr(again) == repr(result)  # NaN differs from itself


@both
@pytest.mark.parametrize("function", [hill, broken])
def test_resumed_after_any_evaluation_it_goes_on_as_if_uninterrupted(method: Method, function: Function) -> None:
    whole = maximise(function, (1.0,) * 3, method=method, budget=16, seed=3)
    assert len(whole.evaluations) == 16
    for k in range(17):
        calls: list[Point] = []

        def counted(point: Point, calls: list[Point] = calls) -> float:
            calls.append(point)
            return function(point)

        rest = maximise(counted, (1.0,) * 3, method=method, budget=16, seed=3, history=whole.evaluations[:k])
        assert repr(rest) == repr(whole)
        assert len(calls) == 16 - k


@both
def test_a_larger_budget_continues_a_smaller_one(method: Method) -> None:
    short = maximise(hill, (1.0,) * 4, method=method, budget=7)
    long = maximise(hill, (1.0,) * 4, method=method, budget=19)
    assert long.evaluations[:7] == short.evaluations


@both
def test_a_history_of_another_run_is_refused(method: Method) -> None:
    run = maximise(hill, (1.0,) * 3, method=method, budget=12)
    other = list(run.evaluations)
    other[9] = Evaluation(tuple(np.nextafter(x, 9) for x in other[9].point), other[9].score)
    with pytest.raises(InvalidRecipe, match="evaluation 9 of the history") as caught:
        maximise(hill, (1.0,) * 3, method=method, budget=20, history=other)
    assert caught.value.param == "history"


def test_another_seed_is_another_history() -> None:
    run = maximise(hill, (1.0,) * 3, method="cmaes", budget=12, seed=1)
    with pytest.raises(InvalidRecipe, match="evaluation 1 of the history"):
        maximise(hill, (1.0,) * 3, method="cmaes", budget=20, seed=2, history=run.evaluations)


@both
def test_it_finds_the_top(method: Method) -> None:
    budget = {"cobyla": 45, "cmaes": 400}[method]
    result = maximise(hill, (1.0,) * 4, method=method, budget=budget)
    assert result.best.score > -1e-3 > hill((1.0,) * 4)


@both
def test_it_ends_before_its_budget_where_it_converges(method: Method) -> None:
    result = maximise(lambda point: 1.0, (1.0,) * 3, method=method, budget=500)
    assert len(result.evaluations) < 500
    assert result.best.point == (1.0, 1.0, 1.0)


@both
def test_a_score_that_is_not_finite_is_never_the_best(method: Method) -> None:
    scores = iter([-5.0, math.inf, math.nan, -7.0, -math.inf, -6.0])
    result = maximise(lambda point: next(scores), (1.0,) * 3, method=method, budget=6)
    assert result.best.score == -5.0
    assert repr([evaluation.score for evaluation in result.evaluations]) == "[-5.0, inf, nan, -7.0, -inf, -6.0]"


@both
def test_a_failed_score_steers_as_the_worst_one(method: Method) -> None:
    """Points on one side of the start fail; the search must not stay with them."""
    result = maximise(lambda point: math.nan if point[0] > 1.1 else hill(point), (1.0,) * 4, method=method, budget=60)
    failed = [math.isnan(evaluation.score) for evaluation in result.evaluations]
    assert any(failed[:20])
    assert sum(failed[40:]) < 10
    assert result.best.score > hill((1.0,) * 4)


@both
def test_threads_and_the_global_generator_do_not_touch_each_other(method: Method) -> None:
    def search(_: int) -> SearchResult:
        return maximise(hill, (1.0,) * 6, method=method, budget=25, seed=7)

    single = search(0)
    np.random.seed(11)
    before = np.random.get_state(legacy=False)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(search, range(4))) == [single] * 4
    after = np.random.get_state(legacy=False)
    assert before["state"]["pos"] == after["state"]["pos"]
    assert (before["state"]["key"] == after["state"]["key"]).all()


@both
def test_it_reads_and_writes_no_file(method: Method, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = maximise(hill, (1.0,) * 3, method=method, budget=20)
    monkeypatch.chdir(tmp_path)
    Path("cma_signals.in").write_text("{'timeout': 0, 'maxfevals': 1}", "utf-8")
    assert maximise(hill, (1.0,) * 3, method=method, budget=20) == expected
    assert list(tmp_path.iterdir()) == [tmp_path / "cma_signals.in"]


@both
def test_ask_repeats_itself_until_it_is_told(method: Method) -> None:
    search = METHODS[method]([1.0, 1.0], (0.1, 3.9), 0)
    assert search.ask() == search.ask() == (1.0, 1.0)
    search.tell(0.0)
    assert search.ask() == search.ask() != (1.0, 1.0)


@both
def test_a_converged_search_wants_nothing_more(method: Method) -> None:
    search = METHODS[method]([1.0, 1.0], (0.1, 3.9), 0)
    while search.ask() is not None:
        search.tell(1.0)
    with pytest.raises(InvalidRecipe, match="wants no more scores"):
        search.tell(1.0)


def test_cobyla_is_scipys_with_failures_at_the_cost_known_when_they_came() -> None:
    """Replays are invisible: the same points as one uninterrupted call that is given each cost as it comes."""
    points: list[Point] = []
    finite: list[float] = []

    def cost(steps: Vector) -> float:
        points.append(tuple((1 + steps * 3.8 / 6).clip(0.1, 3.9).tolist()))
        score = broken(points[-1])
        if math.isfinite(score):
            finite.append(-score)
            return finite[-1]
        highest, lowest = max(finite, default=0.0), min(finite, default=0.0)
        return highest + max(1.0, highest - lowest)

    options = {"rhobeg": 1.0, "tol": 1e-3, "maxiter": 10_000}
    limits = Bounds([-0.9 * 6 / 3.8] * 3, [2.9 * 6 / 3.8] * 3)
    minimize(cost, np.zeros(3), method="COBYLA", bounds=limits, options=options)
    result = maximise(broken, (1.0,) * 3, method="cobyla", budget=500)
    assert len(result.evaluations) == len(points) > 20
    assert np.allclose([evaluation.point for evaluation in result.evaluations], points, rtol=1e-9)
    assert not all(math.isfinite(evaluation.score) for evaluation in result.evaluations)


PUBLISHED = [97.25, 97.32, 97.21, 97.27, 97.31, 97.33]  # validation accuracy of the paper's first six evaluations


def test_cobyla_moves_as_published() -> None:
    """From all ones, one coordinate at a time by +.6333, kept where the score rose; then the linear model's step."""
    scores = iter([*PUBLISHED, 0.0])
    result = maximise(lambda point: next(scores), (1.0,) * 5, method="cobyla", budget=7)
    moves = [[round(x, 4) for x in evaluation.point] for evaluation in result.evaluations]
    up = 1.6333
    assert moves == [
        [1, 1, 1, 1, 1],
        [up, 1, 1, 1, 1],
        [up, up, 1, 1, 1],
        [up, 1, up, 1, 1],
        [up, 1, 1, up, 1],
        [up, 1, 1, 1, up],
        [1.9492, 0.5036, 0.7744, 0.9549, 1.6785],
    ]


def test_cmaes_population_and_first_spread() -> None:
    """Eight weights: generations of 10. The first is drawn around the start with a standard deviation of .3."""
    points: list[float] = []
    for seed in range(50):
        run = maximise(hill, (1.0,) * 8, method="cmaes", budget=12, seed=seed)
        points += [x - 1 for evaluation in run.evaluations[1:11] for x in evaluation.point]
    assert np.std(points) == pytest.approx(0.3, rel=0.03)
    one, two = (maximise(f, (1.0,) * 8, method="cmaes", budget=12).evaluations for f in (hill, edge))
    assert [a.point == b.point for a, b in zip(one, two, strict=True)] == [True] * 11 + [False]


def test_one_variable() -> None:
    assert maximise(lambda point: -abs(point[0] - 2), [1.0], method="cobyla", budget=25).best.score > -0.01
    with pytest.raises(InvalidRecipe, match="with cobyla"):
        maximise(hill, [1.0], method="cmaes", budget=5)


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        ({"method": "gradient"}, "method"),
        ({"budget": 0}, "budget"),
        ({"history": [Evaluation((1.0, 1.0), 0.0)] * 6}, "budget"),
        ({"start": []}, "start"),
        ({"start": [1.0, 5.0]}, "start"),
        ({"start": [1.0, math.nan]}, "start"),
        ({"bounds": (2.0, 2.0), "start": [2.0, 2.0]}, "bounds"),
        ({"bounds": (0.0, math.inf)}, "bounds"),
        ({"bounds": [(0.0, 2.0)] * 3}, "bounds"),
    ],
)
def test_arguments_without_a_meaning(arguments: dict[str, object], param: str) -> None:
    whole: dict[str, object] = {"start": [1.0, 1.0], "method": "cobyla", "budget": 5} | arguments
    with pytest.raises(InvalidRecipe) as caught:
        maximise(hill, whole.pop("start"), **whole)  # type: ignore[arg-type]
    assert caught.value.param == param
