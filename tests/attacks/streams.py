"""Manifests that hold, over streams that do not: bombs, wrong counts, positions and numbers."""

from __future__ import annotations

import numpy as np
from tests.attacks.registry import attack
from tests.delta.samples import assemble, replaced, sample

from patchbay.delta.streams import Stream
from patchbay.errors import MalformedDelta, NonFiniteValue

HALF_NAN = np.array(np.nan, "<f2").tobytes()
FLOAT_NAN = np.array(np.nan, "<f4").tobytes()


def bent(kind: str, name: str, data: bytes) -> bytes:
    """The valid sample with one stream's bytes replaced, lengths told truly."""
    return assemble(*replaced(Stream(kind, name), data, *sample()))


def patched(kind: str, name: str, at: int, data: bytes) -> bytes:
    """The valid sample with some bytes of one stream replaced."""
    whole = bytearray(sample()[1][Stream(kind, name)])
    at %= len(whole)
    assert at + len(data) <= len(whole)
    whole[at : at + len(data)] = data
    return bent(kind, name, bytes(whole))


@attack(MalformedDelta, "'mlp.weight': position 7616 in a tensor of 3840 entries")
def position_beyond_the_end() -> bytes:
    """Writing there would touch another tensor's memory."""
    return patched("positions", "mlp.weight", 0, b"\xfe" * 16)


@attack(MalformedDelta, "'mlp.weight': 199 positions where 200 are declared")
def too_few_positions() -> bytes:
    """A gap that became an escape: values and positions would shift against each other."""
    return patched("positions", "mlp.weight", 0, b"\xff")


@attack(MalformedDelta, "'mlp.weight': 200 positions where 200 are declared")
def escape_at_the_end() -> bytes:
    """An escape that leads nowhere: a second spelling of the same positions."""
    return bent("positions", "mlp.weight", sample()[1][Stream("positions", "mlp.weight")] + b"\xff")


@attack(MalformedDelta, "'attn.weight': a bitmask with")
def bitmask_with_another_count() -> bytes:
    """More bits than entries declared."""
    return patched("positions", "attn.weight", 0, b"\xff\xff")


@attack(MalformedDelta, "'odd.weight': a bitmask with 9 entries where 9 are declared")
def bitmask_padding_set() -> bytes:
    """A bit behind the last entry, one inside cleared: the count holds, the position does not exist."""
    return patched("positions", "odd.weight", 0, b"\x7f\x81")


@attack(MalformedDelta, "'odd.weight': a bitmask of 1 bytes")
def bitmask_too_short() -> bytes:
    """Nothing said about the last seven entries."""
    return bent("positions", "odd.weight", b"\xff")


@attack(MalformedDelta, "'attn.weight': a padding bit")
def sign_padding_set() -> bytes:
    """A sign behind the last value: bits that nobody reads can carry something."""
    return patched("values", "attn.weight", -1, b"\xff")


@attack(MalformedDelta, "'attn.weight': 78 bytes of sign_row")
def sign_stream_too_short() -> bytes:
    """Fewer signs than values."""
    return bent("values", "attn.weight", bytes(10))


@attack(MalformedDelta, "'mlp.weight': a scale is negative")
def negative_scale() -> bytes:
    """Turns every sign of a group around."""
    return patched("scales", "mlp.weight", 0, np.array(-1, "<f4").tobytes())


@attack(MalformedDelta, "'mlp.weight': a scale is negative, not finite")
def nan_scale() -> bytes:
    """Spreads to a whole group."""
    return patched("scales", "mlp.weight", 4, HALF_NAN)


@attack(MalformedDelta, "'mlp.weight': a scale is negative, not finite or above its maximum")
def scale_above_its_maximum() -> bytes:
    """65504 times the declared maximum: overflows where the maximum itself is legal."""
    return patched("scales", "mlp.weight", 4, np.array(65504, "<f2").tobytes())


@attack(NonFiniteValue, "'mlp.weight' contains NaN or infinity")
def finite_scales_infinite_values() -> bytes:
    """Every stored number is finite; minimum + 127 steps is not."""
    manifest, streams = sample()
    top = np.array(3e38, "<f4").tobytes() + np.array([1, 1], "<f2").tobytes()
    codes = b"\x7f" + streams[Stream("values", "mlp.weight")][1:]
    return assemble(
        manifest, {**streams, Stream("scales", "mlp.weight"): top + top, Stream("values", "mlp.weight"): codes}
    )


@attack(NonFiniteValue, "'odd.weight' contains NaN or infinity")
def nan_in_fp32_values() -> bytes:
    """One NaN in a weight makes every answer NaN."""
    data = np.full(9, np.nan, "<f4").view(np.uint8).reshape(9, 4).T.tobytes()
    return bent("values", "odd.weight", data)


@attack(NonFiniteValue, "'norm.bias' contains NaN or infinity")
def infinity_in_bf16_dense() -> bytes:
    """A norm of infinities: all low bytes, then all high bytes."""
    return patched("vectors", "norm.bias", 0, b"\x80" * 64 + b"\x7f" * 64)


@attack(NonFiniteValue, "'head.weight' contains NaN or infinity")
def nan_in_added_head() -> bytes:
    """A head is stored as it is, and checked all the same."""
    return patched("added", "head.weight", 0, b"\xff" * 768)


@attack(NonFiniteValue, "'mlp.weight' contains NaN or infinity")
def nan_in_exceptions() -> bytes:
    """Raw bits go around the sum, not around the check."""
    data = np.full(3, np.nan, "<f4").view(np.uint8).reshape(3, 4).T.tobytes()
    return bent("exception_bits", "mlp.weight", data)


@attack(MalformedDelta, "'mlp.weight': 8 bytes for 3 entries")
def exceptions_too_short() -> bytes:
    """Fewer bits than positions."""
    return bent("exception_bits", "mlp.weight", bytes(8))


@attack(MalformedDelta, "'norm.bias': 100 bytes of bf16 for 64 values")
def dense_too_short() -> bytes:
    """Norms share a frame: a short one must not take bytes of the next."""
    return bent("vectors", "norm.bias", bytes(100))


@attack(MalformedDelta, "'attn.weight': an entry is listed both")
def entry_listed_twice() -> bytes:
    """An own value at a position that has another one: order would decide."""
    streams = sample()[1]
    listed = np.frombuffer(streams[Stream("positions", "attn.weight")], np.uint8)
    first = int(np.flatnonzero(np.unpackbits(listed, bitorder="little"))[0])
    gaps = bytearray(streams[Stream("own_positions", "attn.weight")])
    gaps[1] += gaps[0] - first
    gaps[0] = first
    return bent("own_positions", "attn.weight", bytes(gaps))


@attack(MalformedDelta, "'head.weight': a boolean that is neither 0 nor 1")
def boolean_of_value_two() -> bytes:
    """A bool of value 2 is undefined behaviour in C++."""
    manifest, streams = sample()
    manifest["tensors"]["head.weight"].update(dtype="BOOL", shape=[3, 256])
    return assemble(manifest, {**streams, Stream("added", "head.weight"): b"\x02" * 768})


@attack(MalformedDelta, "payload's sha256")
def payload_hash_mismatch() -> bytes:
    """Legal values, but not those that were written."""
    manifest, streams = sample()
    return assemble({**manifest, "payload_sha256": f"sha256:{'0' * 64}"}, streams)
