from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tests.delta.laws import LAW, SHAPES, few_magnitudes, kept
from tests.delta.samples import parts, sample_streams

from patchbay.delta import Delta, Exceptions, Manifest, SparseRows
from patchbay.delta.codecs import VALUES, Positions, Shape, Values, seeded_positions
from patchbay.delta.decode import decode
from patchbay.delta.encode import Streams
from patchbay.delta.streams import Stream, stream_lengths

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])
Kept = tuple[Shape, Positions, Values]


def read_back(streams: Streams) -> Delta:
    manifest, data = parts(streams)
    parsed = Manifest.parse(json.dumps({**manifest, "payload_sha256": f"sha256:{'0' * 64}"}))
    assert stream_lengths(parsed) == {stream: len(raw) for stream, raw in data.items()}
    return decode(parsed, data.__getitem__)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def assert_same(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert (tensor.dtype, tensor.shape) == (right[name].dtype, right[name].shape)
        assert bits(tensor) == bits(right[name])


@LAW
@given(st.sampled_from(sorted(VALUES)), kept(), DTYPES, st.data())
def test_what_add_sparse_returns_is_what_a_reader_sees(
    encoding: str, entries: Kept, dtype: torch.dtype, draw: st.DataObject
) -> None:
    shape, where, values = entries
    values = few_magnitudes(values) if encoding == "levels" else values
    own = torch.from_numpy(draw.draw(hnp.arrays(np.bool_, len(where))))
    times = torch.from_numpy(draw.draw(hnp.arrays(np.int64, len(where), elements=st.integers(1, 300))))
    rows = SparseRows(shape, torch.from_numpy(where.astype(np.int32)), torch.from_numpy(values.copy()))
    streams = Streams()
    beside = draw.draw(st.sampled_from([{}, {"own": own}] + [{"multiples": times}] * (encoding != "levels")))
    returned = streams.add_sparse("w", rows, encoding, dtype, **beside)
    seen = read_back(streams).matrices["w"]
    assert seen.shape == shape
    assert torch.equal(seen.positions, rows.positions)
    assert bits(seen.values) == bits(returned.values)
    assert rows.values.numpy().tobytes() == values.tobytes()  # the caller's tensor is left alone


@LAW
@given(kept(), st.data())
def test_own_entries_are_rounded_to_bf16_and_the_rest_is_encoded_without_them(
    entries: Kept, draw: st.DataObject
) -> None:
    shape, where, values = entries
    mask = draw.draw(hnp.arrays(np.bool_, len(where)))
    rows = SparseRows(shape, torch.from_numpy(where.astype(np.int32)), torch.from_numpy(values))
    streams = Streams()
    returned = streams.add_sparse("w", rows, "sign_tensor", torch.float32, torch.from_numpy(mask))
    expected = torch.from_numpy(values[mask]).to(torch.bfloat16).to(torch.float32)
    assert torch.equal(returned.values[torch.from_numpy(mask)], expected)
    if (~mask).any():
        mean = np.abs(values[~mask]).mean(dtype=np.float64)
        assert np.allclose(np.abs(returned.values.numpy()[~mask]), mean, rtol=1e-3)


@LAW
@given(SHAPES, st.sampled_from(["fp32", "bf16", "int8", "sign"]), st.integers(0, 2**32))
def test_add_dense_keeps_floats(shape: Shape, encoding: str, seed: int) -> None:
    difference = torch.randn(torch.Size(shape), generator=torch.Generator().manual_seed(seed)) * 1e-7
    streams = Streams()
    returned = streams.add_dense("w", difference, encoding, torch.bfloat16)
    width = torch.float32 if encoding == "fp32" else torch.bfloat16
    assert torch.equal(returned, difference.to(width).to(torch.float32))
    assert_same(read_back(streams).vectors, {"w": returned})


@LAW
@given(SHAPES, st.sampled_from(sorted(VALUES)), st.integers(0, 2**32))
def test_a_whole_difference_takes_any_encoding(shape: Shape, encoding: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    difference = torch.randn(torch.Size(shape), generator=generator)
    if encoding == "levels":
        difference = difference.sign() * 0.5
    streams = Streams()
    returned = streams.add_whole("w", difference, encoding, torch.bfloat16)
    assert_same(read_back(streams).vectors, {"w": returned})
    assert bool((returned.sign() * difference.sign() >= 0).all())
    if encoding in ("fp32", "levels"):
        assert torch.equal(returned, difference)


def test_norms_and_matrices_are_kept_apart() -> None:
    streams = Streams()
    streams.add_whole("norm", torch.ones(3), "int8", torch.float32)
    streams.add_whole("matrix", torch.ones(2, 3), "int8", torch.float32)
    kinds = {stream.name: stream.kind for stream in streams.finish()[1]}
    assert kinds == {"norm": "vectors", "matrix": "values"}
    assert Stream("vector_scales", "norm") in streams.streams


@LAW
@given(
    SHAPES,
    st.sampled_from([torch.float64, torch.float16, torch.int64, torch.int16, torch.uint8, torch.bool]),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_raw_tensors_come_back_bit_for_bit(shape: Shape, dtype: torch.dtype, copied: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randint(0, 2 if dtype == torch.bool else 100, shape, generator=generator).to(dtype)
    streams = Streams()
    streams.add_raw("w", tensor, copied=copied)
    delta = read_back(streams)
    assert_same(delta.copied if copied else delta.added, {"w": tensor})


@LAW
@given(kept(), st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]))
def test_exceptions_come_back_bit_for_bit(entries: Kept, dtype: torch.dtype) -> None:
    shape, where, values = entries
    streams = Streams()
    streams.add_dense("w", torch.zeros(torch.Size(shape)), "bf16", dtype)
    bits_listed = torch.from_numpy(values).clamp(-1e4, 1e4).to(dtype)
    streams.add_exceptions("w", Exceptions(torch.from_numpy(where), bits_listed))
    delta = read_back(streams)
    assert ("w" in delta.exceptions) == bool(len(where))
    if len(where):
        assert delta.exceptions["w"].positions.tolist() == where.tolist()
        assert_same({"w": delta.exceptions["w"].bits}, {"w": bits_listed})


def test_equal_input_gives_equal_bytes() -> None:
    assert sample_streams().finish() == sample_streams().finish()


@pytest.mark.parametrize("own", [None, torch.zeros(200, dtype=torch.bool)])
def test_without_own_values_there_are_no_streams_for_them(own: torch.Tensor | None) -> None:
    streams = Streams()
    rows = SparseRows((20, 20), torch.arange(200, dtype=torch.int32), torch.ones(200))
    streams.add_sparse("w", rows, "sign_row", torch.float32, own)
    assert {stream.kind for stream in streams.finish()[1]} == {"positions", "scales", "values"}


@LAW
@given(st.integers(1, 400), st.floats(0, 1), st.integers(0, 2**64 - 1))
def test_a_seed_stands_for_its_positions(total: int, density: float, seed: int) -> None:
    where = seeded_positions(seed, round(density * total), total)
    rows = SparseRows((total,), torch.from_numpy(where.astype(np.int32)), torch.ones(len(where)))
    streams = Streams()
    streams.add_sparse("w", rows, "sign_tensor", torch.float32, seed=seed)
    assert streams.streams[Stream("positions", "w")] == seed.to_bytes(8, "little")
    assert torch.equal(read_back(streams).matrices["w"].positions, rows.positions)


def test_other_positions_than_the_seeds_are_not_written() -> None:
    rows = SparseRows((100,), torch.tensor([0, 1], dtype=torch.int32), torch.ones(2))
    with pytest.raises(AssertionError, match="not those of the seed"):
        Streams().add_sparse("w", rows, "fp32", torch.float32, seed=1)


def test_all_entries_take_no_bytes() -> None:
    streams = Streams()
    streams.add_sparse("w", SparseRows((2, 3), torch.arange(6, dtype=torch.int32), torch.ones(6)), "fp32", torch.half)
    assert streams.streams[Stream("positions", "w")] == b""
    assert read_back(streams).matrices["w"].positions.tolist() == list(range(6))


@LAW
@given(st.lists(st.tuples(st.floats(0, 1e6, width=32), st.floats(-1, 1, width=32)), min_size=1, max_size=60))
def test_statistics_come_back_on_their_grids(listed: list[tuple[float, float]]) -> None:
    energy, cosine = torch.tensor(listed, dtype=torch.float32).T
    streams = Streams()
    streams.add_whole("w", torch.zeros(len(listed), 2), "bf16", torch.bfloat16)
    returned = streams.add_neurons("w", energy, cosine)
    seen = read_back(streams).neurons["w"]
    assert_same({"e": seen.energy, "c": seen.cosine}, {"e": returned.energy, "c": returned.cosine})
    assert float((seen.cosine - cosine).abs().max()) <= 1 / 30 + 1e-6
    top = float(energy.max())
    for given_energy, found in zip(energy.tolist(), seen.energy.tolist(), strict=True):
        if given_energy == 0:
            assert found == 0
        elif given_energy > top * 2.0**-126:
            assert 0.8 * found <= given_energy <= 1.25 * found  # (1 + 2^-1/2) / 2 = 0.854 and its inverse
    assert not top or float(seen.energy.max()) == top


@LAW
@given(st.integers(0, 5), st.integers(1, 5), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_appended_rows_come_back_beside_an_unchanged_tensor(rows: int, columns: int, dtype: torch.dtype) -> None:
    more = torch.arange(rows * columns).reshape(rows, columns).to(dtype)
    nothing = SparseRows((7, columns), torch.empty(0, dtype=torch.int32), torch.empty(0))
    streams = Streams()
    streams.add_sparse("w", nothing, "bf16", dtype)
    streams.add_appended("w", more)
    delta = read_back(streams)
    assert not len(delta.matrices["w"].positions)
    assert_same(delta.appended, {"w": more} if rows else {})
