from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.delta.laws import LAW

from patchbay.delta.codecs import VALUES
from patchbay.delta.codecs.levels import MAX_LEVELS
from patchbay.errors import InvalidRecipe, MalformedDelta


@LAW
@given(st.integers(1, MAX_LEVELS), st.integers(0, 300), st.integers(0, 2**32))
def test_levels_are_exact_to_the_bit(num_levels: int, count: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    table = np.unique((10.0 ** generator.uniform(-30, 30, num_levels)).astype(np.float32))
    values = generator.choice(table, count) * generator.choice(np.array([-1, 1], np.float32), count)
    where = np.arange(count)
    data = VALUES["levels"].encode(values, where, (count,))
    assert VALUES["levels"].decode(data, where, (count,)).tobytes() == values.tobytes()
    signs, used = (count + 7) // 8, len(np.unique(np.abs(values)))
    digits = {0: 0, 1: 0, 2: 8, 3: 5, 4: 4, 5: 3, 6: 3}.get(used, 1)
    assert len(data) == 64 + signs + (-(-count // digits) if digits else 0)


def test_more_levels_than_fit_are_an_error_that_says_so() -> None:
    with pytest.raises(InvalidRecipe, match="17 distinct magnitudes"):
        VALUES["levels"].encode(np.arange(17, dtype=np.float32), np.arange(17), (17,))


def levels_file(table: list[float], codes: bytes) -> bytes:
    return np.pad(np.array(table, "<f4"), (0, MAX_LEVELS - len(table))).tobytes() + codes


@pytest.mark.parametrize(
    ("table", "codes", "says"),
    [
        ([1.0, 2.0, 3.0], bytes([243, 0]), "beyond the 3 kinds"),  # 3^5 - 1 is the last
        ([1.0, 2.0, 3.0], bytes([81, 0]), "digit behind the last value"),  # the fifth digit of four values
        ([1.0, 2.0, 1.5], bytes([0, 0]), "does not rise"),
        ([-1.0, 2.0], bytes([0, 0]), "finite magnitudes"),
        ([float("nan")], bytes([0]), "finite magnitudes"),
        ([1.0, 2.0], bytes([0]), "bytes of levels"),
        ([1.0], bytes([16]), "padding bit"),
    ],
)
def test_impossible_levels_are_refused(table: list[float], codes: bytes, says: str) -> None:
    with pytest.raises(MalformedDelta, match=says):
        VALUES["levels"].decode(levels_file(table, codes), np.arange(4), (4,))
