"""Manifests that hold, over streams that do not: bombs, wrong counts, positions and numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import zstandard
from tests.attacks.registry import attack
from tests.delta.samples import assemble, sample

from patchbay.delta.encode import PACKED
from patchbay.delta.frames import pack, unpack
from patchbay.errors import MalformedDelta, NonFiniteValue

HALF_NAN = np.array(np.nan, "<f2").tobytes()
FLOAT_NAN = np.array(np.nan, "<f4").tobytes()


def frame(name: str, data: bytes, **fields: Any) -> bytes:
    """The valid sample with one stream's frame replaced, and fields of the tensor's entry."""
    manifest, streams = sample()
    manifest["tensors"].get(name.rpartition(".")[0], {}).update(fields)
    return assemble(manifest, {**streams, name: data})


def patched(name: str, at: int, data: bytes, **fields: Any) -> bytes:
    """The valid sample with bytes of one decoded stream replaced."""
    whole = bytearray(unpack(sample()[1][name], 1 << 20))
    at %= len(whole)
    assert at + len(data) <= len(whole)
    whole[at : at + len(data)] = data
    return frame(name, pack(bytes(whole)), **fields)


def bomb() -> bytes:
    """1 GiB of zeros in 33 kB, written without ever holding them."""
    writer = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters.from_level(1, window_log=20)
    ).compressobj(size=1 << 30)
    parts = [writer.compress(bytes(1 << 20)) for _ in range(1 << 10)]
    return b"".join(parts) + writer.flush()


@attack(MalformedDelta, "'mlp.weight.values' is missing")
def missing_stream() -> bytes:
    """The manifest promises what the file does not hold."""
    manifest, streams = sample()
    del streams["mlp.weight.values"]
    return assemble(manifest, streams)


@attack(MalformedDelta, "'mlp.weight.code' is not in the manifest")
def extra_stream() -> bytes:
    """Bytes that no rule looks at."""
    return frame("mlp.weight.code", pack(b"import os"))


@attack(MalformedDelta, "'mlp.weight': a zstd frame decodes to more than")
def bomb_in_positions() -> bytes:
    """1 GiB of zeros where 200 positions belong."""
    return frame("mlp.weight.positions", bomb())


@attack(MalformedDelta, "'mlp.weight': a zstd frame decodes to more than")
def bomb_in_values() -> bytes:
    """1 GiB of zeros where 200 values belong."""
    return frame("mlp.weight.values", bomb())


@attack(MalformedDelta, "'patchbay.dense': a zstd frame decodes to more than")
def bomb_in_dense() -> bytes:
    """1 GiB of zeros where two norms and a head belong."""
    return frame(PACKED, bomb())


@attack(MalformedDelta, "'mlp.weight': a zstd frame is cut short or followed by other bytes")
def trailing_data_in_frame() -> bytes:
    """Bytes behind the frame's end."""
    return frame("mlp.weight.values", sample()[1]["mlp.weight.values"] + b"\0")


@attack(MalformedDelta, "'mlp.weight': a stream goes on after the end")
def second_frame() -> bytes:
    """A second frame, a step of the reader behind the first: some decoders would join the two."""
    return frame("mlp.weight.positions", pack(bytes(range(200))) + pack(b"") * 500)


@attack(MalformedDelta, "'mlp.weight': a zstd frame is cut short")
def truncated_frame() -> bytes:
    """The last byte is missing."""
    return frame("mlp.weight.values", sample()[1]["mlp.weight.values"][:-1])


@attack(MalformedDelta, "'mlp.weight': a zstd frame is damaged")
def window_of_2_gib() -> bytes:
    """A ten-byte frame that makes a decoder reserve its window."""
    return frame("mlp.weight.values", b"\x28\xb5\x2f\xfd\x00" + bytes([(31 - 10) << 3]) + b"\x01\x00\x00")


@attack(MalformedDelta, "'mlp.weight': a stream does not start with a zstd frame")
def skippable_frame() -> bytes:
    """A frame of user data that decoders pass over in silence."""
    data = b"\x50\x2a\x4d\x18" + (9).to_bytes(4, "little") + b"import os"
    return frame("mlp.weight.values", data)


@attack(MalformedDelta, "'mlp.weight': a stream does not start with a zstd frame")
def empty_stream() -> bytes:
    """No frame at all."""
    return frame("mlp.weight.values", b"")


@attack(MalformedDelta, "'mlp.weight': position 7616 in a tensor of 3840 entries")
def position_beyond_the_end() -> bytes:
    """Writing there would touch another tensor's memory."""
    return patched("mlp.weight.positions", 0, b"\xfe" * 16)


@attack(MalformedDelta, "'mlp.weight': 199 positions where 200 are declared")
def too_few_positions() -> bytes:
    """A gap that became an escape: values and positions would shift against each other."""
    return patched("mlp.weight.positions", 0, b"\xff")


@attack(MalformedDelta, "'mlp.weight': 200 positions where 200 are declared")
def escape_at_the_end() -> bytes:
    """An escape that leads nowhere: a second spelling of the same positions."""
    return frame("mlp.weight.positions", pack(unpack(sample()[1]["mlp.weight.positions"], 4000) + b"\xff"))


@attack(MalformedDelta, "'attn.weight': a bitmask with")
def bitmask_with_another_count() -> bytes:
    """More bits than entries declared."""
    return patched("attn.weight.positions", 0, b"\xff\xff")


@attack(MalformedDelta, "'odd.weight': a bitmask with 9 entries where 9 are declared")
def bitmask_padding_set() -> bytes:
    """A bit behind the last entry, one inside cleared: the count holds, the position does not exist."""
    return patched("odd.weight.positions", 0, b"\x7f\x81")


@attack(MalformedDelta, "'odd.weight': a bitmask of 1 bytes")
def bitmask_too_short() -> bytes:
    """Nothing said about the last seven entries."""
    return frame("odd.weight.positions", pack(b"\xff"))


@attack(MalformedDelta, "'attn.weight': a padding bit")
def sign_padding_set() -> bytes:
    """A sign behind the last value: bits that nobody reads can carry something."""
    return patched("attn.weight.values", -1, b"\xff")


@attack(MalformedDelta, "'attn.weight': 90 bytes of sign_row")
def sign_stream_too_short() -> bytes:
    """Fewer scales than rows."""
    return frame("attn.weight.values", pack(bytes(90)))


@attack(MalformedDelta, "'mlp.weight': a scale is negative")
def negative_scale() -> bytes:
    """Turns every sign of a group around."""
    return patched("mlp.weight.values", 0, np.array(-1, "<f4").tobytes())


@attack(MalformedDelta, "'mlp.weight': a scale is negative, not finite")
def nan_scale() -> bytes:
    """Spreads to a whole group."""
    return patched("mlp.weight.values", 4, HALF_NAN)


@attack(MalformedDelta, "'mlp.weight': a scale is negative, not finite or above its maximum")
def scale_above_its_maximum() -> bytes:
    """65504 times the declared maximum: overflows where the maximum itself is legal."""
    return patched("mlp.weight.values", 4, np.array(65504, "<f2").tobytes())


@attack(NonFiniteValue, "'mlp.weight' contains NaN or infinity")
def finite_scales_infinite_values() -> bytes:
    """Every stored number is finite; minimum + 127 steps is not."""
    top = np.array(3e38, "<f4").tobytes() + np.array([1, 1], "<f2").tobytes()
    return patched("mlp.weight.values", 0, top + top + b"\x7f")


@attack(NonFiniteValue, "'odd.weight' contains NaN or infinity")
def nan_in_fp32_values() -> bytes:
    """One NaN in a weight makes every answer NaN."""
    data = np.full(9, np.nan, "<f4").view(np.uint8).reshape(9, 4).T.tobytes()
    return frame("odd.weight.values", pack(data))


@attack(NonFiniteValue, "'norm.bias' contains NaN or infinity")
def infinity_in_bf16_dense() -> bytes:
    """norm.bias comes after 768 bytes of the head: all low bytes, then all high bytes."""
    return patched(PACKED, 768, b"\x80" * 64 + b"\x7f" * 64)


@attack(NonFiniteValue, "'head.weight' contains NaN or infinity")
def nan_in_added_head() -> bytes:
    """A head is stored as it is, and checked all the same."""
    return patched(PACKED, 0, b"\xff" * 768)


@attack(NonFiniteValue, "'mlp.weight' contains NaN or infinity")
def nan_in_exceptions() -> bytes:
    """Raw bits go around the sum, not around the check."""
    data = np.full(3, np.nan, "<f4").view(np.uint8).reshape(3, 4).T.tobytes()
    return frame("mlp.weight.exception_bits", pack(data))


@attack(MalformedDelta, "'mlp.weight': 8 bytes of exceptions for 3 entries")
def exceptions_too_short() -> bytes:
    """Fewer bits than positions."""
    return frame("mlp.weight.exception_bits", pack(bytes(8)))


@attack(MalformedDelta, "patchbay.dense holds 100 bytes")
def dense_too_short() -> bytes:
    """All dense tensors share a stream: a short one would cut the last of them."""
    return frame(PACKED, pack(bytes(100)))


@attack(MalformedDelta, "'attn.weight': an entry is listed both")
def entry_listed_twice() -> bytes:
    """An own value at a position that has another one: order would decide."""
    manifest, streams = sample()
    first = int(np.flatnonzero(np.unpackbits(_decoded("attn.weight.positions"), bitorder="little"))[0])
    gaps = bytearray(_decoded("attn.weight.own_positions"))
    gaps[1] += gaps[0] - first
    gaps[0] = first
    return assemble(manifest, {**streams, "attn.weight.own_positions": pack(bytes(gaps))})


@attack(MalformedDelta, "'head.weight': a boolean that is neither 0 nor 1")
def boolean_of_value_two() -> bytes:
    """A bool of value 2 is undefined behaviour in C++."""
    manifest, streams = sample()
    manifest["tensors"]["head.weight"].update(dtype="BOOL", shape=[3, 256])
    return assemble(manifest, {**streams, PACKED: pack(b"\x02" * len(_decoded(PACKED)))})


@attack(MalformedDelta, "payload's sha256")
def payload_hash_mismatch() -> bytes:
    """Legal values, but not those that were written."""
    manifest, streams = sample()
    return assemble({**manifest, "payload_sha256": f"sha256:{'0' * 64}"}, streams)


def _decoded(name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.frombuffer(unpack(sample()[1][name], 1 << 20), np.uint8).copy()
