from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.delta.laws import LAW

from patchbay.delta.codecs import POSITIONS, seeded_positions
from patchbay.errors import InvalidRecipe, MalformedDelta


@LAW
@given(st.integers(0, 2**64 - 1), st.integers(0, 2000), st.floats(0, 1))
def test_seeded_positions_have_one_in_each_stretch(seed: int, total: int, density: float) -> None:
    count = round(density * total)
    listed = seeded_positions(seed, count, total)
    assert np.array_equal(POSITIONS["seeded"].decode(seed.to_bytes(8, "little"), count, total), listed)
    for k, position in enumerate(listed.tolist()):
        assert k * total // count <= position < (k + 1) * total // count


def test_seeded_positions_of_large_tensors_do_not_wrap() -> None:
    total, count = 2**48, 2**16 + 3
    listed = seeded_positions(7, count, total).tolist()
    assert all(k * total // count <= p < (k + 1) * total // count for k, p in enumerate(listed))
    assert len({p * count // total for p in listed}) == count


def test_seeds_draw_evenly() -> None:
    inside = np.concatenate([seeded_positions(seed, 1000, 10_000) % 10 for seed in range(20)])
    assert np.bincount(inside, minlength=10).std() < 3 * 2000**0.5


@pytest.mark.parametrize(("count", "total"), [(3, 2), (2**31 + 1, 2**40), (1, 2**33)])
def test_what_cannot_be_drawn_is_refused(count: int, total: int) -> None:
    with pytest.raises(MalformedDelta, match="cannot be drawn"):
        POSITIONS["seeded"].decode(bytes(8), count, total)
    with pytest.raises(InvalidRecipe, match="cannot be drawn"):
        seeded_positions(0, count, total)
    with pytest.raises(InvalidRecipe, match="64 bits"):
        seeded_positions(2**64, 0, 1)
