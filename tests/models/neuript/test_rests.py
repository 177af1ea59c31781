"""What stands still is found by looking at every second, and by the filters that find it at once."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from patchbay.models.neuript.recording import DEAD_UV
from patchbay.models.neuript.rests import NOTHING, STILL, Rests


@given(
    st.integers(1, 3),
    st.integers(3, 40),
    st.sampled_from([4.0, 5.0]),
    st.sampled_from([0.5, 1.0, 2.5]),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40), st.integers(0, 20)), max_size=4),
    st.integers(0, 1000),
)
def test_every_second(
    channels: int, samples: int, rate: float, seconds: float, off: list[tuple[int, int, int]], seed: int
) -> None:
    signal = 10 * np.random.default_rng(seed).standard_normal((channels, samples))
    for channel, first, count in off:
        signal[channel % channels, first : first + count] = 7
    names = [f"c{number}" for number in range(channels)]
    found = Rests.of(signal, names, rate, seconds)
    size = max(1, min(round(min(1.0, seconds) * rate), samples))
    still = np.array([[np.ptp(row[at : at + size]) < DEAD_UV for at in range(samples - size + 1)] for row in signal])
    assert (found.still == still).all() and found.size == size
    nothing = np.zeros(samples, bool)
    for at in np.flatnonzero(still.all(0)):
        nothing[at : at + size] = True
    assert (found.moving == (~nothing if not nothing.all() else nothing)).all()

    length = round(seconds * rate)
    starts = [at / rate for at in range(0, samples - length + 1)]
    for rejects in (False, True):
        reasons, _ = found.reasons(starts, seconds, rejects=rejects)
        for at, reason in enumerate(reasons):
            inside = still[:, at : at + max(1, length - size + 1)]
            off_here = tuple(name for name, row in zip(names, inside, strict=True) if row.any())
            if inside.all(0).any():
                assert reason == (NOTHING, ())
            else:
                assert reason == ((STILL, off_here) if off_here and rejects else None)


def test_of_some_channels() -> None:
    signal = np.random.default_rng(0).standard_normal((3, 40)) * 10
    signal[1] = 0
    found = Rests.of(signal, ["a", "b", "c"], 10.0, 2.0)
    assert found.reasons([0.0], 2.0, rejects=True)[0] == [(STILL, ("b",))]
    assert found.of_channels(["c", "a"]).reasons([0.0], 2.0, rejects=True)[0] == [None]
