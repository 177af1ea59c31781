from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.delta.laws import LAW

from patchbay.delta.codecs import digits
from patchbay.errors import MalformedDelta


@LAW
@given(st.sampled_from([1, 2, 3, 4, 5, 6, 7, 200, 256, 257, 65536]), st.integers(0, 300), st.integers(0, 2**32))
def test_digits_come_back(kinds: int, count: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, kinds, count)
    data = digits.pack(drawn, kinds)
    assert len(data) == digits.num_bytes(count, kinds)
    assert digits.unpack(data, count, kinds).tolist() == drawn.tolist()


@LAW
@given(st.integers(1, 300), st.integers(0, 40), st.binary(max_size=80))
def test_any_bytes_have_one_meaning_or_none(kinds: int, count: int, data: bytes) -> None:
    try:
        found = digits.unpack(data, count, kinds)
    except MalformedDelta:
        return
    assert found.max(initial=0) < kinds
    assert digits.pack(found, kinds) == data


@pytest.mark.parametrize(
    ("data", "count", "kinds", "says"),
    [
        (bytes([243]), 4, 3, "beyond the 3 kinds"),  # 3^5 - 1 is the last
        (bytes([81]), 4, 3, "behind the last"),  # the fifth digit of four
        (bytes([7]), 1, 7, "beyond the 7 kinds"),
        (bytes([1, 1]), 1, 257, "beyond the 257 kinds"),
        (bytes(2), 1, 7, "2 bytes for 1 digits"),
        (bytes(1), 1, 1, "1 bytes for 1 digits"),
    ],
)
def test_impossible_digits_are_refused(data: bytes, count: int, kinds: int, says: str) -> None:
    with pytest.raises(MalformedDelta, match=says):
        digits.unpack(data, count, kinds)
