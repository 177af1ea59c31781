"""Every encoding gives back what its line in FORMAT.md promises, and refuses what its writer cannot have made."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.delta.laws import LAW, SHAPES, few_magnitudes, kept, positions

from patchbay.delta.codecs import POSITIONS, VALUES, Positions, Shape, Values, best_positions
from patchbay.delta.codecs.affine import GROUP
from patchbay.delta.frames import scaled_half
from patchbay.delta.manifest import numel
from patchbay.errors import MalformedDelta

Kept = tuple[Shape, Positions, Values]
WRITERS = {"gap": best_positions(1, 10), "bitmask": best_positions(9, 10)}


@LAW
@given(st.sampled_from(list(WRITERS)), st.data())
def test_positions_come_back_within_the_bound(name: str, draw: st.DataObject) -> None:
    shape = draw.draw(SHAPES)
    listed, total = draw.draw(positions(shape)), numel(shape)
    data = WRITERS[name].encode(listed, total)
    assert len(data) <= POSITIONS[name].max_bytes(len(listed), total)
    back = POSITIONS[name].decode(data, len(listed), total)
    assert back.dtype in (np.int32, np.int64)
    assert np.array_equal(back, listed)


@LAW
@given(st.lists(st.sampled_from([0, 1, 253, 254, 255, 256, 509, 510, 511, 765]), max_size=20), st.integers(0, 600))
def test_gaps_around_the_escape(gaps: list[int], behind: int) -> None:
    listed = np.cumsum(np.array(gaps, np.int64) + 1) - 1
    total = int(listed[-1]) + 1 + behind if gaps else behind
    data = WRITERS["gap"].encode(listed, total)
    assert len(data) == len(gaps) + sum(gap // 255 for gap in gaps) <= POSITIONS["gap"].max_bytes(len(gaps), total)
    assert np.array_equal(POSITIONS["gap"].decode(data, len(gaps), total), listed)


@LAW
@given(st.sampled_from(list(POSITIONS)), st.binary(max_size=80), st.integers(0, 60), st.integers(0, 600))
def test_any_bytes_are_refused_or_are_increasing_positions(name: str, data: bytes, count: int, total: int) -> None:
    try:
        listed = POSITIONS[name].decode(data, count, total)
    except MalformedDelta:
        return
    assert len(listed) == count
    assert (np.diff(listed, prepend=-1) > 0).all()
    assert not count or listed[-1] < total
    if name in WRITERS:
        assert WRITERS[name].encode(listed, total) == data  # no second spelling


@pytest.mark.parametrize(
    ("count", "total", "name"),
    [(0, 0, "all"), (0, 1, "gap"), (1, 1, "all"), (209, 1000, "gap"), (210, 1000, "bitmask"), (999, 1000, "bitmask")],
)
def test_gaps_where_few_are_kept_and_a_bitmask_from_there_on(count: int, total: int, name: str) -> None:
    assert best_positions(count, total).name == name


@LAW
@given(st.sampled_from(list(VALUES)), kept())
def test_streams_have_their_declared_length_and_decode_to_themselves(name: str, entries: Kept) -> None:
    shape, where, values = entries
    values = few_magnitudes(values) if name == "levels" else values
    codec = VALUES[name]
    before = values.copy()
    data = codec.encode(values, where, shape)
    assert data == codec.encode(values, where, shape)
    assert np.array_equal(values, before)
    assert len(data) == codec.max_bytes(len(where), shape) or (name == "levels" and len(data) < 65 + 2 * len(where))
    assert codec.scale_bytes(len(where), shape) <= len(data)
    back = codec.decode(data, where, shape)
    assert back.dtype == np.float32
    assert back.shape == values.shape
    assert np.isfinite(back).all()
    for wrong in (data + b"\0", data[:-1]):
        if wrong != data:
            with pytest.raises(MalformedDelta, match=f"bytes of {name}"):
                codec.decode(wrong, where, shape)


@LAW
@given(st.sampled_from(list(VALUES)), kept(), st.integers(0, 2**32))
def test_any_bytes_of_the_right_length_decode_without_a_crash(name: str, entries: Kept, seed: int) -> None:
    shape, where, _ = entries
    data = np.random.default_rng(seed).bytes(VALUES[name].max_bytes(len(where), shape))
    try:
        assert VALUES[name].decode(data, where, shape).shape == where.shape
    except MalformedDelta:
        assert name not in ("fp32", "bf16")


@LAW
@given(kept())
def test_fp32_is_exact_to_the_bit(entries: Kept) -> None:
    shape, where, values = entries
    back = VALUES["fp32"].decode(VALUES["fp32"].encode(values, where, shape), where, shape)
    assert back.tobytes() == values.tobytes()


@LAW
@given(kept())
def test_bf16_rounds_to_nearest_even(entries: Kept) -> None:
    shape, where, values = entries
    back = VALUES["bf16"].decode(VALUES["bf16"].encode(values, where, shape), where, shape)
    bits = values.view(np.uint32).astype(np.uint64)
    expected = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32)
    assert np.array_equal(back.view(np.uint32), expected)


@LAW
@given(st.sampled_from([("int8", 127), ("int4", 7)]), kept())
def test_affine_codes_err_by_half_a_step_and_the_rounding_of_their_scales(kind: tuple[str, int], entries: Kept) -> None:
    (name, levels), (shape, where, values) = kind, entries
    back = VALUES[name].decode(VALUES[name].encode(values, where, shape), where, shape)
    assert np.array_equal(np.signbit(back), np.signbit(values))
    exact, decoded = np.abs(values).astype(np.float64), np.abs(back).astype(np.float64)
    groups = [slice(start, start + GROUP) for start in range(0, len(values), GROUP)]
    low = np.array([exact[group].min() for group in groups])
    step = np.array([(exact[group].max() - exact[group].min()) / levels for group in groups])
    slack = 2.0**-11 * (low + levels * step) + 2.0**-25 * (low.max(initial=0) + levels * step.max(initial=0))
    for group, bound in zip(groups, step / 2 + slack, strict=True):
        fp32 = 2.0**-20 * exact[group].max() + 1e-43
        assert np.abs(decoded[group] - exact[group]).max() <= bound * 1.01 + fp32


@pytest.mark.parametrize(("name", "levels"), [("int8", 127), ("int4", 7)])
def test_affine_codes_keep_both_ends_of_a_group(name: str, levels: int) -> None:
    values = np.array([0.5, -1.0, 0.75], np.float32)
    where = np.arange(3)
    back = VALUES[name].decode(VALUES[name].encode(values, where, (3,)), where, (3,))
    assert back[0] == 0.5
    assert abs(back[1] + 1.0) <= 2.0**-11
    assert abs(back[2] - 0.75) <= 0.5 / levels / 2 * 1.01


def test_the_half_byte_behind_an_odd_count_is_zero_and_must_be() -> None:
    where = np.arange(3)
    data = bytearray(VALUES["int4"].encode(np.ones(3, np.float32), where, (3,)))
    assert data[-1] < 16
    data[-1] |= 16
    with pytest.raises(MalformedDelta, match="half byte"):
        VALUES["int4"].decode(bytes(data), where, (3,))


@pytest.mark.parametrize(("data", "count", "total"), [(b"", 2, 3), (b"\0", 3, 3)])
def test_all_is_all(data: bytes, count: int, total: int) -> None:
    with pytest.raises(MalformedDelta, match="where all"):
        POSITIONS["all"].decode(data, count, total)


AXES = {
    "sign_tensor": lambda where, columns: np.zeros_like(where),
    "sign_row": lambda where, columns: where // columns,
    "sign_column": lambda where, columns: where % columns,
}


@LAW
@given(st.sampled_from(list(AXES)), kept())
def test_sign_keeps_signs_and_the_mean_magnitude_of_each_scale(name: str, entries: Kept) -> None:
    shape, where, values = entries
    back = VALUES[name].decode(VALUES[name].encode(values, where, shape), where, shape)
    assert np.array_equal(np.signbit(back), np.signbit(values))
    group = AXES[name](where, max(1, numel(shape[1:])))
    means = {g: np.abs(values[group == g]).astype(np.float64).mean() for g in np.unique(group)}
    top = max(means.values(), default=0.0)
    for g, mean in means.items():
        scale = np.abs(back[group == g])
        assert (scale == scale[0]).all()
        assert abs(scale[0] - mean) <= mean * 2.0**-11 * 1.01 + top * 2.0**-25 * 1.01


@LAW
@given(st.sampled_from(list(AXES)), st.integers(1, 30))
def test_sign_padding_is_zero_and_must_be(name: str, count: int) -> None:
    where, shape = np.arange(count), (count, 1)
    data = bytearray(VALUES[name].encode(np.full(count, -1.0, np.float32), where, shape))
    used = (count - 1) % 8 + 1
    assert data[-1] == (1 << used) - 1
    if used < 8:
        data[-1] |= 0x80
        with pytest.raises(MalformedDelta, match="padding"):
            VALUES[name].decode(bytes(data), where, shape)


def test_scales_of_tiny_values_survive() -> None:
    """fp16 alone would flush everything below 6e-8 to zero."""
    values = np.array([1e-30, -3e-30], np.float32)
    for name in ("int8", "sign_row"):
        back = VALUES[name].decode(VALUES[name].encode(values, np.arange(2), (2, 1)), np.arange(2), (2, 1))
        assert np.allclose(back, values, rtol=1e-3, atol=0)
    assert len(scaled_half(values[:1])) == 6
