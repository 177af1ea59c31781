"""Files of format version 1, which are still read: a zstd frame a stream, and the manifest in the header."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import zstandard
from tests.attacks.registry import attack
from tests.delta.samples import assemble_version1, sample_version1

from patchbay.delta.frames import pack, unpack
from patchbay.delta.version1 import PACKED
from patchbay.errors import DeltaTooLarge, MalformedDelta, NonFiniteValue

HALF_NAN = np.array(np.nan, "<f2").tobytes()
FLOAT_NAN = np.array(np.nan, "<f4").tobytes()


def frame(name: str, data: bytes, **fields: Any) -> bytes:
    """The valid sample with one stream's frame replaced, and fields of the tensor's entry."""
    manifest, streams = sample_version1()
    manifest["tensors"].get(name.rpartition(".")[0], {}).update(fields)
    return assemble_version1(manifest, {**streams, name: data})


def patched(name: str, at: int, data: bytes, **fields: Any) -> bytes:
    """The valid sample with bytes of one decoded stream replaced."""
    whole = bytearray(unpack(sample_version1()[1][name], 1 << 20))
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
def version1_missing_stream() -> bytes:
    """The manifest promises what the file does not hold."""
    manifest, streams = sample_version1()
    del streams["mlp.weight.values"]
    return assemble_version1(manifest, streams)


@attack(MalformedDelta, "'mlp.weight.code' is not in the manifest")
def version1_extra_stream() -> bytes:
    """Bytes that no rule looks at."""
    return frame("mlp.weight.code", pack(b"import os"))


@attack(MalformedDelta, "'mlp.weight': a zstd frame decodes to more than")
def version1_bomb_in_positions() -> bytes:
    """1 GiB of zeros where 200 positions belong."""
    return frame("mlp.weight.positions", bomb())


@attack(MalformedDelta, "'mlp.weight': a zstd frame decodes to more than")
def version1_bomb_in_values() -> bytes:
    """1 GiB of zeros where 200 values belong."""
    return frame("mlp.weight.values", bomb())


@attack(MalformedDelta, "'patchbay.dense': a zstd frame decodes to more than")
def version1_bomb_in_dense() -> bytes:
    """1 GiB of zeros where two norms and a head belong."""
    return frame(PACKED, bomb())


@attack(MalformedDelta, "'mlp.weight': a zstd frame is cut short or followed by other bytes")
def version1_trailing_data_in_frame() -> bytes:
    """Bytes behind the frame's end."""
    return frame("mlp.weight.values", sample_version1()[1]["mlp.weight.values"] + b"\0")


@attack(MalformedDelta, "'mlp.weight': a stream goes on after the end")
def version1_second_frame() -> bytes:
    """A second frame, a step of the reader behind the first: some decoders would join the two."""
    return frame("mlp.weight.positions", pack(bytes(range(200))) + pack(b"") * 500)


@attack(MalformedDelta, "'mlp.weight': a zstd frame is cut short")
def version1_truncated_frame() -> bytes:
    """The last byte is missing."""
    return frame("mlp.weight.values", sample_version1()[1]["mlp.weight.values"][:-1])


@attack(MalformedDelta, "'mlp.weight': a zstd frame is damaged")
def version1_window_of_2_gib() -> bytes:
    """A ten-byte frame that makes a decoder reserve its window."""
    return frame("mlp.weight.values", b"\x28\xb5\x2f\xfd\x00" + bytes([(31 - 10) << 3]) + b"\x01\x00\x00")


@attack(MalformedDelta, "'mlp.weight': a stream does not start with a zstd frame")
def version1_skippable_frame() -> bytes:
    """A frame of user data that decoders pass over in silence."""
    data = b"\x50\x2a\x4d\x18" + (9).to_bytes(4, "little") + b"import os"
    return frame("mlp.weight.values", data)


@attack(MalformedDelta, "'mlp.weight': a stream does not start with a zstd frame")
def version1_empty_stream() -> bytes:
    """No frame at all."""
    return frame("mlp.weight.values", b"")


@attack(MalformedDelta, "'mlp.weight': 199 positions where 200 are declared")
def version1_too_few_positions() -> bytes:
    """A gap that became an escape: values and positions would shift against each other."""
    return patched("mlp.weight.positions", 0, b"\xff")


@attack(MalformedDelta, "'mlp.weight': a scale is negative")
def version1_negative_scale() -> bytes:
    """Turns every sign of a group around."""
    return patched("mlp.weight.values", 0, np.array(-1, "<f4").tobytes())


@attack(NonFiniteValue, "'head.weight' contains NaN or infinity")
def version1_nan_in_added_head() -> bytes:
    """A head is stored as it is, and checked all the same."""
    return patched(PACKED, 0, b"\xff" * 768)


@attack(MalformedDelta, "patchbay.dense holds 100 bytes")
def version1_dense_too_short() -> bytes:
    """All dense tensors share a stream: a short one would cut the last of them."""
    return frame(PACKED, pack(bytes(100)))


@attack(MalformedDelta, "payload's sha256")
def version1_payload_hash_mismatch() -> bytes:
    """Legal values, but not those that were written."""
    manifest, streams = sample_version1()
    return assemble_version1({**manifest, "payload_sha256": f"sha256:{'0' * 64}"}, streams)


@attack(MalformedDelta, "duplicate key 'base'")
def version1_duplicate_manifest_key() -> bytes:
    """Strict JSON in the header's text as well."""
    manifest, streams = sample_version1()
    return assemble_version1(json.dumps(manifest).replace('"base"', '"base": {}, "base"', 1), streams)


@attack(MalformedDelta, "unused: version 1 has no such field")
def version1_with_lengths() -> bytes:
    """A field that version 1 did not have."""
    manifest, streams = sample_version1()
    return assemble_version1({**manifest, "unused": [0]}, streams)


@attack(MalformedDelta, "'norm.bias' is encoded in a way that version 1 does not have")
def version1_with_later_kinds() -> bytes:
    """Statistics for which version 1 has no stream."""
    manifest, streams = sample_version1()
    manifest["tensors"]["norm.bias"].update(neurons=64)
    return assemble_version1(manifest, streams)


@attack(MalformedDelta, "'mlp.weight' is encoded in a way that version 1 does not have")
def version1_with_bands() -> bytes:
    """Factors for which version 1 has no stream."""
    manifest, streams = sample_version1()
    manifest["tensors"]["mlp.weight"].update(bands=[{"rank": 1, "values": "bf16"}])
    return assemble_version1(manifest, streams)


@attack(DeltaTooLarge, "header has")
def version1_huge_labels() -> bytes:
    """5,000 labels of a kilobyte: over the header's limit."""
    manifest, streams = sample_version1()
    return assemble_version1({**manifest, "labels": ["x" * 1024] * 5000}, streams)
