from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tests.delta.laws import LAW, SHAPES, kept
from tests.delta.samples import manifest_fields, sample_streams

from patchbay.delta import Delta, Exceptions, Manifest, SparseRows
from patchbay.delta.codecs import VALUES, Positions, Shape, Values
from patchbay.delta.decode import decode, stream_names
from patchbay.delta.encode import PACKED, Streams
from patchbay.delta.frames import unpack

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])
Kept = tuple[Shape, Positions, Values]


def read_back(streams: Streams) -> Delta:
    entries, data = streams.finish()
    manifest = Manifest.model_validate(
        {**manifest_fields(entries), "format_version": 1, "payload_sha256": f"sha256:{'0' * 64}", "tokens": ()}
    )
    assert stream_names(manifest) == set(data)
    return decode(Manifest.parse(manifest.to_json()), data.__getitem__)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def assert_same(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert (tensor.dtype, tensor.shape) == (right[name].dtype, right[name].shape)
        assert bits(tensor) == bits(right[name])


@LAW
@given(st.sampled_from(list(VALUES)), kept(), DTYPES, st.data())
def test_what_add_sparse_returns_is_what_a_reader_sees(
    encoding: str, entries: Kept, dtype: torch.dtype, draw: st.DataObject
) -> None:
    shape, where, values = entries
    own = torch.from_numpy(draw.draw(hnp.arrays(np.bool_, len(where))))
    rows = SparseRows(shape, torch.from_numpy(where.astype(np.int32)), torch.from_numpy(values.copy()))
    streams = Streams()
    returned = streams.add_sparse("w", rows, encoding, dtype, own if draw.draw(st.booleans()) else None)
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
@given(SHAPES, st.sampled_from(["fp32", "bf16", "int8", "sign_row"]), st.integers(0, 2**32))
def test_what_add_dense_returns_is_what_a_reader_sees(shape: Shape, encoding: str, seed: int) -> None:
    difference = torch.randn(torch.Size(shape), generator=torch.Generator().manual_seed(seed)) * 1e-7
    streams = Streams()
    returned = streams.add_dense("w", difference, encoding, torch.bfloat16)
    width = torch.float32 if encoding == "fp32" else torch.bfloat16
    assert torch.equal(returned, difference.to(width).to(torch.float32))
    assert_same(read_back(streams).vectors, {"w": returned})


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


def test_dense_tensors_share_one_frame_in_order_of_names() -> None:
    streams = Streams()
    streams.add_raw("b", torch.tensor([7], dtype=torch.uint8), copied=True)
    streams.add_raw("a", torch.tensor([1, 2], dtype=torch.uint8), copied=False)
    entries, data = streams.finish()
    assert list(entries) == ["a", "b"]
    assert unpack(data[PACKED], 3) == bytes([1, 2, 7])


def test_equal_input_gives_equal_bytes() -> None:
    assert sample_streams().finish() == sample_streams().finish()


@pytest.mark.parametrize("own", [None, torch.zeros(200, dtype=torch.bool)])
def test_without_own_values_there_are_no_streams_for_them(own: torch.Tensor | None) -> None:
    streams = Streams()
    rows = SparseRows((20, 20), torch.arange(200, dtype=torch.int32), torch.ones(200))
    streams.add_sparse("w", rows, "sign_row", torch.float32, own)
    assert set(streams.finish()[1]) == {"w.positions", "w.values"}
