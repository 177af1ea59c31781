"""Labels that do not fit are counted: by what windows come of them, and by what does not."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from patchbay.models.neuript.steps import RATE, Steps
from patchbay.training.labels import Span, starts_of
from patchbay.training.misfits import CUT, INTO_NEXT, OUTSIDE, SHORT, WINDOW_OUTSIDE, misfits, notes, sentences

TWO = Steps(window_seconds=2.0)
AT_ONSET = Steps(window_seconds=2.0, onset_seconds=0.5)
TIMES = st.integers(-5 * RATE, 15 * RATE).map(lambda place: place / RATE)


@pytest.mark.parametrize(
    ("spans", "steps", "found"),
    [
        ([Span(0.0, 4.0, "a"), Span(4.0, 10.0, "b")], TWO, {}),
        ([Span(0.0, None, "a")], TWO, {}),
        ([Span(4.0, 10.01, "a")], TWO, {}),
        ([Span(4.0, 12.0, "a")], TWO, {CUT: 1}),
        ([Span(9.0, 12.0, "a")], TWO, {CUT: 1, SHORT: 1}),
        ([Span(1.0, 2.0, "a"), Span(2.0, 3.5, "a")], TWO, {SHORT: 2}),
        ([Span(10.0, 12.0, "a"), Span(-3.0, 2.0, "b")], TWO, {OUTSIDE: 2}),
        ([Span(0.0, 0.0, "a"), Span(2.5, 2.5, "b")], AT_ONSET, {}),
        ([Span(0.0, 0.0, "a"), Span(2.4, 2.4, "a")], AT_ONSET, {INTO_NEXT: 1}),
        ([Span(8.0, 8.0, "a"), Span(11.0, 11.0, "b")], AT_ONSET, {WINDOW_OUTSIDE: 1, OUTSIDE: 1}),
    ],
)
def test_kinds(spans: list[Span], steps: Steps, found: dict[str, int]) -> None:
    assert misfits(spans, 10.0, steps) == found


@example([(0.0, 2 - 1 / RATE)])
@given(st.lists(st.tuples(TIMES, TIMES).filter(lambda ends: ends[0] < ends[1]), min_size=1))
def test_a_label_without_a_window_is_counted(ends: list[tuple[float, float]]) -> None:
    for begin, end in ends:
        span = Span(begin, end, "a")
        whole = [place for place in starts_of([span], 10.0, TWO) if 0 <= place <= 8 * RATE]
        counted = misfits([span], 10.0, TWO)
        assert whole or counted[SHORT] or counted[OUTSIDE]
        assert not (counted[SHORT] and whole)


def test_sentences() -> None:
    counts = [(Path(f"data/{name}.edf"), {CUT: 2}) for name in "abcde"]
    (found,) = sentences([*counts, (Path("x.edf"), {})])
    assert found == f"{CUT}: 10, in a.edf, b.edf, c.edf and 2 recordings more"
    said = [(Path("a.edf"), ("cut off", "flat")), (Path("b.edf"), ("flat",))]
    assert notes(said) == ["a.edf: cut off", "a.edf, b.edf: flat"]
