from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.delta.laws import LAW
from tests.delta.samples import sample

from patchbay.delta import Manifest
from patchbay.delta.streams import FRAME_BYTES, KINDS, Stream, plan_frames, stream_bounds, stream_lengths
from patchbay.errors import MalformedDelta

SIZES = st.one_of(st.just(0), st.integers(1, 100), st.sampled_from([FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1]))


def manifest(**changes: Any) -> Manifest:
    return Manifest.parse(json.dumps({**sample()[0], "payload_sha256": f"sha256:{'0' * 64}", **changes}))


@LAW
@given(st.lists(st.tuples(st.sampled_from(KINDS), SIZES), max_size=40))
def test_frames_hold_every_byte_once_in_order(listed: list[tuple[str, int]]) -> None:
    listed.sort(key=lambda item: KINDS.index(item[0]))
    lengths = {Stream(kind, f"t{i:02d}"): size for i, (kind, size) in enumerate(listed)}
    frames = plan_frames(lengths)
    held = [(stream, length) for frame in frames for stream, length in frame.lengths.items()]
    assert held == [(stream, length) for stream, length in lengths.items() if length]
    for frame in frames:
        assert {stream.kind for stream in frame.lengths} == {frame.kind}
        assert 0 < frame.num_bytes <= FRAME_BYTES or len(frame.lengths) == 1
    for before, after in zip(frames, frames[1:], strict=False):  # none is cut earlier than it has to be
        assert before.kind != after.kind or before.num_bytes + next(iter(after.lengths.values())) > FRAME_BYTES


def test_streams_are_kind_major_in_order_of_names() -> None:
    listed = list(stream_bounds(manifest()))
    assert listed == sorted(listed, key=lambda stream: (KINDS.index(stream.kind), stream.name, stream.part))
    assert {stream.name for stream in listed} == set(manifest().tensors)


def test_bounds_less_the_unused_are_the_lengths() -> None:
    fields, streams = sample()
    assert stream_lengths(manifest()) == {stream: len(data) for stream, data in streams.items()}
    assert any(fields["unused"])  # gaps are shorter than they could be
    bounds = stream_bounds(manifest())
    assert bounds[Stream("positions", "mlp.weight")] == 200 + 3840 // 255


def test_a_low_rank_difference_has_a_stream_a_factor() -> None:
    bands = [{"rank": 2, "values": "fp32"}, {"rank": 1, "values": "int8"}]
    entry = {"kind": "low_rank", "shape": [6, 5], "dtype": "F32", "bands": bands, "neurons": 6, "appended": 2}
    assert stream_bounds(manifest(tensors={"w": entry}, unused=[])) == {
        Stream("scales", "w", 2): 12,
        Stream("scales", "w", 3): 12,
        Stream("values", "w", 0): 4 * 6 * 2,
        Stream("values", "w", 1): 4 * 5 * 2,
        Stream("values", "w", 2): 6,
        Stream("values", "w", 3): 5,
        Stream("neuron_energy", "w"): 4 + 6,
        Stream("neuron_cosine", "w"): 6,
        Stream("appended", "w"): 2 * 5 * 4,
    }


@pytest.mark.parametrize("companion", [{}, {"own": {"count": 3, "positions": "bitmask"}}, {"multiples": 3}])
def test_factors_beside_kept_values_are_parts_from_1(companion: dict[str, Any]) -> None:
    bands = [{"rank": 2, "values": "bf16"}, {"rank": 1, "values": "int8"}]
    entry = {"kind": "sparse", "shape": [6, 5], "dtype": "F32", "count": 9, "positions": "gap", "values": "sign_row"}
    both = stream_bounds(manifest(tensors={"w": {**entry, **companion, "bands": bands}}, unused=[]))
    alone = stream_bounds(manifest(tensors={"w": {**entry, **companion}}, unused=[]))
    factors = {
        Stream("scales", "w", 3): 12,
        Stream("scales", "w", 4): 12,
        Stream("values", "w", 1): 2 * 6 * 2,
        Stream("values", "w", 2): 2 * 5 * 2,
        Stream("values", "w", 3): 6,
        Stream("values", "w", 4): 5,
    }
    assert both == {**alone, **factors}
    assert list(both) == sorted(both, key=lambda stream: (KINDS.index(stream.kind), stream.part))
    assert {stream.part for stream in alone} == {0}


@pytest.mark.parametrize("change", [lambda unused: unused[:-1], lambda unused: [*unused, 0], lambda unused: []])
def test_unused_lists_every_stream(change: Any) -> None:
    with pytest.raises(MalformedDelta, match="unused lists"):
        stream_lengths(manifest(unused=change(sample()[0]["unused"])))


def test_no_stream_is_shorter_than_nothing() -> None:
    unused = sample()[0]["unused"]
    with pytest.raises(MalformedDelta, match="'attn.weight' has at most"):
        stream_lengths(manifest(unused=[10**6, *unused[1:]]))
