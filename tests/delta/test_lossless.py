"""Differences of bit patterns: any bits come back, from a stream that may say anything."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.delta.laws import LAW, SHAPES
from tests.delta.samples import FINGERPRINT, SPECS, assemble, manifest_fields, parts, replaced, spec, versioned

from patchbay.checkpoint import as_bits, raw_bytes
from patchbay.delta import Delta, DeltaFile, Manifest, read_delta, write_delta
from patchbay.delta.container import Container
from patchbay.delta.decode import decode
from patchbay.delta.delta import apply_difference
from patchbay.delta.encode import Streams
from patchbay.delta.entries import DTYPES
from patchbay.delta.lossless import INTEGERS, as_difference, decode_bits, encode_bits
from patchbay.delta.streams import Stream, stream_bounds
from patchbay.delta.version1 import check_version1
from patchbay.errors import DeltaError, MalformedDelta, NonFiniteValue, WrongShape

FLOATS = [dtype for dtype in DTYPES.values() if dtype.is_floating_point]
# -0.0, infinities, quiet and signalling NaNs with payloads, the smallest and the largest subnormal, the largest number.
ODD = {
    torch.float64: [
        *(1 << 63, 0x7FF << 52, 0xFFF << 52, 0x7FF8000000000ABC),
        *(0x7FF0000000000ABC, 1, (1 << 52) - 1, 0x7FEFFFFFFFFFFFFF),
    ],
    torch.float32: [1 << 31, 0x7F800000, 0xFF800000, 0x7FC12345, 0xFF812345, 1, 0x7FFFFF, 0x7F7FFFFF],
    torch.float16: [1 << 15, 0x7C00, 0xFC00, 0x7E12, 0xFD12, 1, 0x3FF, 0x7BFF],
    torch.bfloat16: [1 << 15, 0x7F80, 0xFF80, 0x7FC5, 0xFF85, 1, 0x7F, 0x7F7F],
}


def floats(patterns: np.ndarray[Any, Any], dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    narrow = patterns.astype(f"<u{dtype.itemsize}").view(f"<i{dtype.itemsize}")
    return torch.from_numpy(narrow.copy()).view(dtype).reshape(shape)


@st.composite
def tensors(draw: st.DrawFn, shape: tuple[int, ...]) -> torch.Tensor:
    """Normal numbers, any bits at all, odd ones, or a mix; of any float dtype."""
    dtype, total = draw(st.sampled_from(FLOATS)), torch.Size(shape).numel()
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    patterns = generator.integers(0, 2**64, total, np.uint64)
    odd = generator.random(total) < draw(st.sampled_from([0.0, 0.2, 1.0]))
    patterns[odd] = generator.choice(np.array(ODD[dtype], np.uint64), int(odd.sum()))
    tensor = floats(patterns, dtype, shape)
    if draw(st.booleans()):
        normal = torch.from_numpy(generator.normal(0, 0.02, total)).reshape(shape).to(dtype)
        tensor = torch.where(torch.from_numpy(odd).reshape(shape), tensor, normal)
    return tensor


@st.composite
def pairs(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Base and fine-tune: of one dtype or of two, next to each other or unrelated."""
    shape = draw(SHAPES)
    before = draw(tensors(shape))
    if draw(st.booleans()):
        return before, draw(tensors(shape))
    noise = np.random.default_rng(draw(st.integers(0, 2**32))).normal(0, 1e-3, shape)
    return before, (before.double() + torch.as_tensor(noise)).to(before.dtype)


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    return (left.dtype, left.shape, raw_bytes(left)) == (right.dtype, right.shape, raw_bytes(right))


def one(before: torch.Tensor, after: torch.Tensor) -> Streams:
    streams = Streams()
    streams.add_lossless("w", before, after)
    return streams


def manifest(streams: Streams, **changes: object) -> Manifest:
    entries, _ = streams.finish()
    return Manifest.model_validate(manifest_fields(entries) | versioned(2) | changes)


def decoded(streams: Streams, before: torch.Tensor, *, finite: bool = True) -> Delta:
    made, data = manifest(streams), streams.finish()[1]
    return decode(made, data.__getitem__, finite=finite, read_base={"w": before}.__getitem__)


def rebuilt(delta: Delta, before: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    tuned = apply_difference(before, delta.vectors["w"], dtype)
    if "w" in delta.exceptions:
        tuned.view(-1)[delta.exceptions["w"].positions.long()] = delta.exceptions["w"].bits
    return tuned


@LAW
@given(pairs())
def test_any_bits_come_back(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    before, after = pair
    codes = encode_bits(before, after)
    assert (codes.dtype, codes.shape) == (INTEGERS[after.element_size()], (after.numel(),))
    assert same(decode_bits(before, codes, after.dtype), after)


@LAW
@given(pairs())
def test_a_decoded_delta_is_the_fine_tune(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    """By way of streams: as base + difference with exceptions, and every difference a number."""
    before, after = pair
    streams = one(before, after)
    delta = decoded(streams, before, finite=False)
    assert delta.vectors["w"].dtype == torch.float32
    assert bool(delta.vectors["w"].isfinite().all())
    assert same(rebuilt(delta, before, after.dtype), after)
    assert same(delta.vectors["w"], Streams().add_lossless("w", before, after))  # what the writer was told


@LAW
@given(pairs())
def test_exceptions_are_only_where_they_must_be(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    before, after = pair
    difference, exceptions = as_difference(before, after)
    wrong = as_bits(apply_difference(before, difference, after.dtype)) != as_bits(after)
    assert exceptions.positions.tolist() == wrong.nonzero().flatten().tolist()


@LAW
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_codes_are_those_of_the_specification(base: int, tuned: int) -> None:
    before, after = (
        torch.frombuffer(bytearray(struct.pack("<I", bits)), dtype=torch.float32) for bits in (base, tuned)
    )
    step = (tuned - base + 2**31) % 2**32 - 2**31
    assert int(encode_bits(before, after)) % 2**32 == (2 * step if step >= 0 else -2 * step - 1)


def test_neighbours_have_small_codes() -> None:
    before = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0])
    after = torch.tensor([1.0, 1.0 - 2**-24, 1.0 + 2**-23, -1.0 - 2**-23, -1.0 + 2**-24])
    assert encode_bits(before, after).tolist() == [0, 1, 2, 2, 1]


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_base_of_another_dtype_is_rounded_and_its_nans_are_zero(dtype: torch.dtype) -> None:
    before = torch.tensor([1.00390625, -0.0, float("inf"), float("nan")], dtype=dtype)
    other = torch.bfloat16 if dtype != torch.bfloat16 else torch.float16
    expected = torch.tensor([1.0, -0.0, float("inf"), 0.0], dtype=other)
    assert encode_bits(before, expected).tolist() == [0, 0, 0, 0]


def test_strided_tensors() -> None:
    before, after = torch.randn(5, 7, 2)[..., 0], torch.randn(7, 5).T
    assert same(decode_bits(before, encode_bits(before, after), torch.float32), after.contiguous())


def test_through_a_file(tmp_path: Path) -> None:
    """Beside tensors of other kinds, with statistics and appended rows; the base is asked for nothing else."""
    before, after, asked = torch.randn(64, 60), torch.randn(64, 60), []
    streams = Streams()
    streams.add_lossless("mlp.weight", before, after)
    streams.add_neurons("mlp.weight", torch.rand(64), torch.zeros(64))
    streams.add_appended("mlp.weight", torch.ones(2, 60))
    streams.add_dense("norm.weight", torch.ones(64), "fp32", torch.float32)
    entries, data = streams.finish()
    file = write_delta(tmp_path / "d", manifest_fields(entries), data)

    def read_base(name: str) -> torch.Tensor:
        asked.append(name)
        return before

    delta = read_delta(file.path, SPECS, FINGERPRINT, read_base=read_base)
    assert asked == ["mlp.weight"]
    assert same(before + delta.vectors["mlp.weight"], after) or "mlp.weight" in delta.exceptions
    assert delta.appended["mlp.weight"].shape == (2, 60)
    assert set(delta.neurons) == {"mlp.weight"}
    items = file.itemised()
    assert 0.5 * before.nbytes < items["lossless"] <= 1.01 * before.nbytes
    assert sum(items.values()) == file.num_bytes


def test_close_weights_are_smaller(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(64, 60, generator=generator)
    sizes = []
    for scale in (1e-6, 1e-4, 1e-2, 1.0):
        after = before + scale * torch.randn(64, 60, generator=generator)
        entries, data = one(before, after).finish()
        sizes.append(write_delta(tmp_path / "d", manifest_fields(entries), data).itemised()["lossless"])
    assert sizes == sorted(sizes)
    assert sizes[0] < 0.4 * before.nbytes


def test_without_the_base_it_is_refused(tmp_path: Path) -> None:
    entries, data = one(torch.zeros(64, 60), torch.ones(64, 60)).finish()
    entries = {"mlp.weight": entries["w"]}
    write_delta(
        tmp_path / "d", manifest_fields(entries), {Stream("lossless", "mlp.weight"): data[Stream("lossless", "w")]}
    )
    with pytest.raises(DeltaError, match="'mlp.weight' is stored against the bits of the base") as caught:
        read_delta(tmp_path / "d", SPECS, FINGERPRINT)
    assert caught.value.param == "mlp.weight"


@pytest.mark.parametrize("dtype", FLOATS)
def test_numbers_that_are_not_finite_are_refused_unless_asked_for(dtype: torch.dtype) -> None:
    for bad in (float("nan"), float("inf"), -float("inf")):
        streams = one(torch.ones(3, dtype=dtype), torch.tensor([1.0, bad, 2.0], dtype=dtype))
        with pytest.raises(NonFiniteValue, match="'w' contains NaN or infinity"):
            decoded(streams, torch.ones(3, dtype=dtype))
        delta = decoded(streams, torch.ones(3, dtype=dtype), finite=False)
        assert delta.exceptions["w"].positions.tolist() == [1]


def test_a_difference_that_overflows_is_an_exception() -> None:
    before, after = torch.tensor([3e38, -3e38, 1.0]), torch.tensor([-3e38, 3e38, 1.5])
    delta = decoded(one(before, after), before)
    assert delta.vectors["w"].tolist() == [0.0, 0.0, 0.5]
    assert same(rebuilt(delta, before, torch.float32), after)


@pytest.mark.parametrize("length", [0, 1, 35, 37, 72])
def test_a_stream_of_another_length_is_refused(length: int) -> None:
    streams = one(torch.zeros(9), torch.ones(9))
    streams.streams[Stream("lossless", "w")] = bytes(length)
    with pytest.raises(MalformedDelta, match=f"'w': {length} bytes for 9 entries") as caught:
        decoded(streams, torch.zeros(9))
    assert caught.value.param == "w"


def test_a_shorter_stream_in_a_file_is_refused(tmp_path: Path) -> None:
    fields, streams = parts(one(torch.zeros(64, 60), torch.ones(64, 60)))
    bent = replaced(Stream("lossless", "w"), bytes(100), fields, streams)
    (tmp_path / "d").write_bytes(assemble(*bent))
    specs = {"w": spec("w", (64, 60))}
    with pytest.raises(MalformedDelta, match="'w': 100 bytes for 3840 entries"):
        read_delta(tmp_path / "d", specs, FINGERPRINT, read_base=lambda name: torch.zeros(64, 60))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "I32"}, "is no I32"),
        ({"dtype": "nothing"}, "unknown dtype"),
        ({"values": "raw"}, "zigzag"),
        ({"exceptions": {"count": 1, "positions": "gap"}}, "no exceptions"),
        ({"count": 1}, "Extra inputs"),
    ],
)
def test_entries_that_cannot_be(change: dict[str, Any], message: str) -> None:
    entry = {"kind": "lossless", "shape": [9], "dtype": "F32", "values": "zigzag"} | change
    text = json.dumps({**manifest_fields({"w": entry}), **versioned(2)})
    with pytest.raises(MalformedDelta, match=message) as caught:
        Manifest.parse(text)
    assert caught.value.param is not None
    assert caught.value.param.startswith("tensors.w")


def test_its_stream_is_as_wide_as_the_tensor() -> None:
    for dtype in FLOATS:
        made = manifest(one(torch.zeros(3, 5, dtype=dtype), torch.ones(3, 5, dtype=dtype)))
        assert stream_bounds(made) == {Stream("lossless", "w"): 15 * dtype.itemsize}


def test_the_bases_shape_comes_before_any_byte(tmp_path: Path) -> None:
    """A shape of the file's own would decide how much is reserved."""
    entry = {"kind": "lossless", "shape": [2**20, 2**20], "dtype": "F64", "values": "zigzag"}
    fields = {**manifest_fields({"mlp.weight": entry}), "format_version": 2, "unused": [2**43 - 8]}
    (tmp_path / "d").write_bytes(assemble(json.loads(json.dumps(fields)), {Stream("lossless", "mlp.weight"): bytes(8)}))
    with pytest.raises(WrongShape, match="'mlp.weight' has shape"):
        read_delta(tmp_path / "d", SPECS, FINGERPRINT, read_base=lambda name: pytest.fail("the base was read"))


def test_version_1_had_none(tmp_path: Path) -> None:
    made = manifest(one(torch.zeros(3), torch.ones(3)))
    container = Container(tmp_path / "d", "", 0, {})
    with pytest.raises(MalformedDelta, match="'w' is encoded in a way that version 1 does not have"):
        check_version1(container, made)


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    before, after = torch.randn(64, 60), torch.randn(64, 60)
    for name in ("a", "b"):
        entries, data = one(before, after).finish()
        write_delta(tmp_path / name, manifest_fields(entries), data)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert DeltaFile.open(tmp_path / "a").manifest.num_kept == 0
