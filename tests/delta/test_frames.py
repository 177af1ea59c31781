from __future__ import annotations

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from tests.delta.laws import LAW

from patchbay.delta.frames import (
    MAX_WINDOW,
    SEARCHED_LEVELS,
    content_size,
    from_scaled_half,
    pack,
    scaled_half,
    shuffle,
    unpack,
    unpack_exactly,
    unshuffle,
)
from patchbay.errors import MalformedDelta

MAGNITUDES = st.lists(st.one_of(st.just(0.0), st.floats(1e-30, 1e30)), max_size=50)


@LAW
@given(st.binary(max_size=5000))
def test_unpack_inverts_pack_at_exactly_its_length(data: bytes) -> None:
    assert unpack(pack(data), len(data)) == data


@LAW
@given(st.binary(min_size=1, max_size=5000))
def test_unpack_refuses_one_byte_more_than_the_bound(data: bytes) -> None:
    with pytest.raises(MalformedDelta, match=f"more than the {len(data) - 1} bytes"):
        unpack(pack(data), len(data) - 1)


@LAW
@given(st.binary(min_size=1, max_size=5000), st.sampled_from([(1,), (3,), SEARCHED_LEVELS]), st.booleans())
def test_a_frame_says_how_long_it_is_and_decodes_to_that(data: bytes, levels: tuple[int, ...], checksum: bool) -> None:
    frame = pack(data, levels, checksum=checksum)
    assert content_size(frame, checksum=checksum) == len(data)
    assert unpack_exactly(frame, len(data)) == data
    assert len(frame) == min(len(pack(data, (level,), checksum=checksum)) for level in levels)
    for wrong in (len(data) + 1, len(data) - 1):
        with pytest.raises(MalformedDelta, match=f"declares {len(data)} bytes where {wrong} belong"):
            unpack_exactly(frame, wrong)


def test_an_empty_frame_is_none() -> None:
    with pytest.raises(MalformedDelta, match="declares 0 bytes"):
        unpack_exactly(pack(b"") + b"anything", 0)


def test_a_frame_without_length_or_checksum_is_refused() -> None:
    endless = zstandard.ZstdCompressor(write_content_size=False).compress(b"abc")
    with pytest.raises(MalformedDelta, match="how long"):
        unpack_exactly(endless, 3)
    with pytest.raises(MalformedDelta, match="no checksum"):
        content_size(pack(b"abc"), checksum=True)
    damaged = bytearray(pack(bytes(range(200)), checksum=True))
    damaged[50] ^= 1
    with pytest.raises(MalformedDelta, match="damaged"):
        unpack_exactly(bytes(damaged), 200)


def test_a_frame_with_more_than_it_declares_is_refused() -> None:
    """The declared length is all that is ever reserved."""
    frame = bytearray(pack(bytes(1000)))
    assert frame[4] & 0xC0 == 0x40  # two bytes of length, less 256
    frame[5:7] = (10).to_bytes(2, "little")
    assert content_size(bytes(frame)) == 266
    with pytest.raises(MalformedDelta, match="damaged"):
        unpack_exactly(bytes(frame), 266)


def test_the_writers_window_is_one_that_the_reader_accepts() -> None:
    data = np.random.default_rng(0).bytes(3 * MAX_WINDOW)
    frame = pack(data)
    assert zstandard.get_frame_parameters(frame).window_size <= MAX_WINDOW
    assert unpack(frame, len(data)) == unpack_exactly(frame, len(data)) == data


@pytest.mark.parametrize("log", [24, 27, 30])
def test_a_larger_window_is_refused(log: int) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=log)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()  # size unknown: window in full
    with pytest.raises(MalformedDelta, match="damaged"):
        unpack(stream.compress(b"a") + stream.flush(), 1)


@LAW
@given(st.binary(min_size=1, max_size=300), st.data())
def test_every_cut_and_every_suffix_is_refused(data: bytes, draw: st.DataObject) -> None:
    frame = pack(data)
    with pytest.raises(MalformedDelta):
        unpack(frame[: draw.draw(st.integers(0, len(frame) - 1))], len(data))
    with pytest.raises(MalformedDelta):
        unpack(frame + draw.draw(st.binary(min_size=1, max_size=3000)), len(data))
    with pytest.raises(MalformedDelta):
        unpack_exactly(frame[: draw.draw(st.integers(0, len(frame) - 1))], len(data))
    with pytest.raises(MalformedDelta):
        unpack_exactly(frame + draw.draw(st.binary(min_size=1, max_size=3000)), len(data))


def test_a_bomb_stops_within_a_step_of_the_bound() -> None:
    with pytest.raises(MalformedDelta, match="more than the 10 bytes"):
        unpack(pack(bytes(1 << 26)), 10)


def test_shuffle_puts_equal_bytes_of_values_together() -> None:
    assert shuffle(bytes([1, 2, 3, 4, 5, 6]), 2) == bytes([1, 3, 5, 2, 4, 6])
    assert shuffle(b"", 4) == unshuffle(b"", 4).tobytes() == b""


@LAW
@given(st.sampled_from([1, 2, 4, 8]), st.data())
def test_unshuffle_inverts_shuffle(width: int, draw: st.DataObject) -> None:
    data = draw.draw(st.binary(max_size=64).map(lambda raw: raw * width))
    assert unshuffle(shuffle(data, width), width).tobytes() == data


@LAW
@given(MAGNITUDES)
def test_scaled_half_is_relative_to_eleven_bits(magnitudes: list[float]) -> None:
    values = np.array(magnitudes, np.float32)
    back = from_scaled_half(scaled_half(values))
    top = values.max(initial=0.0)
    # 2^-11 relative, and what fp16 flushes relative to the maximum
    assert (np.abs(back - values) <= values * 2.0**-11 * 1.001 + top * 2.0**-25 * 1.001).all()
    assert len(back) == len(values)
    if len(values):
        assert back.max() == top


@pytest.mark.parametrize(
    ("top", "fraction"), [(-1.0, 1.0), (np.nan, 0.0), (np.inf, 0.0), (1.0, -0.5), (1.0, np.nan), (1.0, np.inf), (1, 2)]
)
def test_impossible_scales_are_refused(top: float, fraction: float) -> None:
    with pytest.raises(MalformedDelta, match="scale"):
        from_scaled_half(np.array(top, "<f4").tobytes() + np.array([fraction], "<f2").tobytes())
