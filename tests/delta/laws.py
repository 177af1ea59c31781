"""What the property tests of deltas share: shapes, kept positions and values as hypothesis draws them."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from patchbay.delta.codecs import Positions, Shape, Values
from patchbay.delta.manifest import numel

LAW = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])

SHAPES = st.one_of(
    st.lists(st.integers(0, 9), max_size=4).map(tuple),  # () and empty tensors too
    st.tuples(st.integers(1, 40), st.integers(1, 61)),
    st.tuples(st.sampled_from([254, 255, 256, 257, 510, 511, 1021])),
)
DENSITIES = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.002, 0.19, 0.2, 0.21, 1.0]))


@st.composite
def positions(draw: st.DrawFn, shape: Shape) -> Positions:
    """Any number of entries from none to all, strictly increasing."""
    total = numel(shape)
    count = round(draw(DENSITIES) * total)
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    return np.sort(generator.choice(total, count, replace=False)).astype(np.int64) if total else np.empty(0, np.int64)


@st.composite
def values(draw: st.DrawFn, count: int) -> Values:
    """Signed values whose magnitudes spread over up to 33 decades, 1e-30 the smallest; some equal, some zero."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    low = draw(st.sampled_from([-30.0, -12.0, -7.0, -3.0]))
    decades = draw(st.sampled_from([0.0, 0.5, 3.0, 33.0]))
    magnitude = 10.0 ** (low + np.minimum(generator.random(count) * decades, 3.0 - low))
    magnitude[generator.random(count) < draw(st.sampled_from([0.0, 0.1]))] = 0.0
    return np.asarray(magnitude * generator.choice([-1.0, 1.0], count), np.float32)


@st.composite
def kept(draw: st.DrawFn) -> tuple[Shape, Positions, Values]:
    shape = draw(SHAPES)
    where = draw(positions(shape))
    return shape, where, draw(values(len(where)))


def few_magnitudes(values: Values) -> Values:
    """At most four distinct ones, 0 among them: what `levels` can hold."""
    ranks = np.argsort(np.argsort(np.abs(values))) % 4 if len(values) else np.empty(0, np.int64)
    return np.asarray(np.copysign(np.array([0.0, 1e-7, 0.5, 3.0])[ranks], values), np.float32)
