"""What version 2 brought: frames that many tensors share, lengths in the manifest, new kinds of entries."""

from __future__ import annotations

from typing import Any

import zstandard
from tests.attacks.container import valid_rows
from tests.attacks.manifest import entry, fields
from tests.attacks.registry import attack
from tests.delta.samples import assemble, container, enclose, frames_of, row_header, rows_of, sample

from patchbay.delta.frames import pack
from patchbay.errors import DeltaTooLarge, MalformedDelta, WrongShape

POSITIONS = "0000"  # the first frame of the sample


def frame(data: bytes, name: str = POSITIONS) -> bytes:
    """The valid sample with one frame replaced, under a payload hash that holds."""
    manifest, streams = sample()
    return enclose(rows_of(manifest, {**frames_of(streams), name: data}))


def raw_positions() -> bytes:
    return b"".join(data for stream, data in sample()[1].items() if stream.kind == "positions")


def bomb() -> bytes:
    """1 GiB of zeros in 33 kB, written without ever holding them; it says how long it is."""
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=20)
    writer = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=1 << 30)
    return b"".join(writer.compress(bytes(1 << 20)) for _ in range(1 << 10)) + writer.flush()


def lying_bomb(length: int) -> bytes:
    """The same, declaring `length` (256 to 65791) bytes."""
    whole = bomb()
    start = 4 + 1 + 1 + 4  # magic, descriptor, window, length
    assert whole[4] == 0x80
    return whole[:4] + b"\x40" + whole[5:6] + (length - 256).to_bytes(2, "little") + whole[start:]


def with_checksum(frame: bytes) -> bytes:
    """A frame that claims a checksum it does not have: what declares too much is refused before."""
    return frame[:4] + bytes([frame[4] | 4]) + frame[5:]


@attack(MalformedDelta, "frame '0000' (positions): its zstd frame declares 1073741824 bytes where")
def bomb_in_a_frame() -> bytes:
    """1 GiB of zeros where a few hundred positions belong."""
    return frame(bomb())


@attack(MalformedDelta, "frame '0000' (positions): its zstd frame is damaged")
def bomb_that_lies() -> bytes:
    """1 GiB of zeros that declares the right length."""
    return frame(lying_bomb(len(raw_positions())))


@attack(DeltaTooLarge, "the manifest has 1073741824 bytes")
def bomb_in_the_manifest() -> bytes:
    """1 GiB of zeros where the manifest belongs."""
    return enclose({**valid_rows(), "manifest": with_checksum(bomb())})


@attack(DeltaTooLarge, "the manifest has 4194305 bytes")
def manifest_too_large_as_it_lies() -> bytes:
    """One byte over the limit before anything is decoded."""
    return enclose({**valid_rows(), "manifest": bytes((4 << 20) + 1)})


@attack(MalformedDelta, "the manifest cannot be read: its zstd frame has no checksum")
def manifest_without_checksum() -> bytes:
    """Damage would go unseen: no hash covers the manifest."""
    return enclose({**valid_rows(), "manifest": pack(b"{}")})


@attack(MalformedDelta, "the manifest is not strict JSON")
def manifest_in_bad_utf8() -> bytes:
    """Bytes that no reader may guess at."""
    return enclose({**valid_rows(), "manifest": pack(b'{"\xff": 1}', checksum=True)})


@attack(MalformedDelta, "no manifest")
def frames_without_manifest() -> bytes:
    """Marked as a delta, but nothing says what the frames are."""
    return enclose({name: data for name, data in valid_rows().items() if name != "manifest"})


@attack(MalformedDelta, "frame '0000' is missing")
def missing_frame() -> bytes:
    """The manifest promises what the file does not hold."""
    return enclose({name: data for name, data in valid_rows().items() if name != POSITIONS})


@attack(MalformedDelta, "frame '0999' is not in the manifest")
def extra_frame() -> bytes:
    """Bytes that no rule looks at."""
    return enclose({**valid_rows(), "0999": pack(b"import os")})


@attack(MalformedDelta, "do not lie in order")
def manifest_first() -> bytes:
    """The payload hash is over what lies before the manifest: here, over nothing."""
    rows = valid_rows()
    order = ["manifest", *sorted(rows.keys() - {"manifest"})]
    header = row_header({f"{i:02d}": rows[name] for i, name in enumerate(order)})
    named = {name: header[f"{i:02d}"] for i, name in enumerate(order)}
    return container({"__metadata__": {"patchbay": "2"}, **named}, b"".join(rows[name] for name in order))


@attack(MalformedDelta, "frame '0000' (positions): its zstd frame is damaged")
def truncated_shared_frame() -> bytes:
    """The last byte is missing."""
    return frame(pack(raw_positions())[:-1])


@attack(MalformedDelta, "frame '0000' (positions): its zstd frame is damaged")
def trailing_data_in_shared_frame() -> bytes:
    """Bytes behind the frame's end."""
    return frame(pack(raw_positions()) + b"\0")


@attack(MalformedDelta, "frame '0000' (positions): its zstd frame is damaged")
def second_shared_frame() -> bytes:
    """Some decoders would join the two, others see the first only."""
    return frame(pack(raw_positions()) + pack(b"more"))


@attack(MalformedDelta, "frame '0000' (positions): it does not start with a zstd frame")
def skippable_shared_frame() -> bytes:
    """A frame of user data that decoders pass over in silence."""
    return frame(b"\x50\x2a\x4d\x18" + (9).to_bytes(4, "little") + b"import os")


@attack(MalformedDelta, "frame '0000' (positions): it does not start with a zstd frame")
def empty_frame() -> bytes:
    """No frame at all."""
    return frame(b"")


@attack(MalformedDelta, "frame '0000' (positions): its zstd frame does not say how long")
def frame_without_length() -> bytes:
    """It would have to be decoded to know what to reserve."""
    return frame(zstandard.ZstdCompressor(write_content_size=False).compress(raw_positions()))


@attack(MalformedDelta, "frame '0000' (positions): its zstd frame is damaged")
def shared_frame_with_window_of_2_gib() -> bytes:
    """A frame of the right length that makes a decoder reserve its window."""
    length = len(raw_positions())
    assert 256 <= length < 65792
    head = b"\x28\xb5\x2f\xfd\x40" + bytes([(31 - 10) << 3]) + (length - 256).to_bytes(2, "little")
    return frame(head + b"\x01\x00\x00")


@attack(MalformedDelta, "a manifest of version 1 in a file of version 2")
def older_manifest() -> bytes:
    """Rules of one version over streams of the other."""
    return fields(format_version=1)


@attack(MalformedDelta, "unused lists 0 streams of")
def lengths_left_out() -> bytes:
    """Without them no frame has a length."""
    return fields(unused=[])


@attack(MalformedDelta, "unused: positions of 'attn.weight' has at most")
def negative_length() -> bytes:
    """A stream shorter than nothing would start before its frame."""
    return fields(unused=[10**9, *sample()[0]["unused"][1:]])


@attack(MalformedDelta, "unused")
def flood_of_lengths() -> bytes:
    """A million lengths for a handful of streams."""
    return fields(unused=[0] * 1_000_000)


@attack(MalformedDelta, "norm.bias.low_rank: rank 1")
def low_rank_vector() -> bytes:
    """Factors of something that is no matrix."""
    return low_rank("norm.bias", [{"rank": 1, "values": "fp32"}], shape=[64], dtype="BF16")


@attack(MalformedDelta, "mlp.weight.low_rank: rank 120")
def rank_above_the_matrix() -> bytes:
    """Two bands that are legal alone: together more bytes than the tensor has."""
    return low_rank("mlp.weight", [{"rank": 60, "values": "fp32"}] * 2, shape=[64, 60], dtype="F32")


@attack(MalformedDelta, "mlp.weight.low_rank.bands")
def flood_of_bands() -> bytes:
    """100,000 bands."""
    return low_rank("mlp.weight", [{"rank": 1, "values": "fp32"}] * 100_000, shape=[64, 60], dtype="F32")


@attack(MalformedDelta, "mlp.weight.sparse.bands.0.rank")
def band_without_rank() -> bytes:
    """Factors of no columns: a second spelling of none."""
    return entry("mlp.weight", bands=[{"rank": 0, "values": "fp32"}])


@attack(MalformedDelta, "mlp.weight.sparse: rank 4294967296")
def huge_ranks_beside_kept_entries() -> bytes:
    """Two bands of 2^31 columns under 200 kept entries."""
    return entry("mlp.weight", bands=[{"rank": 2**31, "values": "fp32"}] * 2)


@attack(WrongShape, "'mlp.weight'")
def ranks_of_a_matrix_that_the_base_does_not_have() -> bytes:
    """Legal for the shape that the file claims: 2^20 columns of factors."""
    bands = [{"rank": 2**20, "values": "int8"}]
    return entry("mlp.weight", shape=[2**20, 2**20], count=0, exceptions=None, bands=bands)


@attack(MalformedDelta, "mlp.weight.sparse.bands")
def flood_of_bands_beside_kept_entries() -> bytes:
    """100,000 bands."""
    return entry("mlp.weight", bands=[{"rank": 1, "values": "fp32"}] * 100_000)


@attack(MalformedDelta, "odd.weight.sparse: rank 4")
def rank_above_a_pruned_matrix() -> bytes:
    """More columns of factors than the matrix has."""
    return entry("odd.weight", bands=[{"rank": 4, "values": "fp32"}])


@attack(MalformedDelta, "norm.weight.delta.bands")
def bands_of_a_norm() -> bytes:
    """Factors beside a difference that is stored whole: which one counts?"""
    return entry("norm.weight", bands=[{"rank": 1, "values": "fp32"}])


@attack(MalformedDelta, "unused lists")
def bands_without_streams() -> bytes:
    """Factors that the file does not hold."""
    manifest, streams = sample()
    manifest["tensors"]["mlp.weight"]["bands"] = [{"rank": 1, "values": "fp32"}]
    return assemble(manifest, streams)


@attack(WrongShape, "'mlp.weight' has statistics of 63 neurons")
def statistics_of_another_size() -> bytes:
    """They would be read against the wrong rows."""
    return entry("mlp.weight", neurons=63)


@attack(DeltaTooLarge, "added tensors and rows take")
def appended_gigabytes() -> bytes:
    """Rows behind the base's last one are not bounded by its shape."""
    return entry("mlp.weight", appended=2**31)


@attack(MalformedDelta, "norm.bias.added: a tensor of kind 'added' is stored as it is")
def appended_to_an_added_tensor() -> bytes:
    """Two ways to say how many rows there are."""
    return entry("norm.bias", kind="added", values="raw", appended=1)


def low_rank(name: str, bands: list[dict[str, Any]], **changes: Any) -> bytes:
    """The valid sample with one tensor replaced by a low-rank difference."""
    manifest, streams = sample()
    manifest["tensors"][name] = {"kind": "low_rank", "bands": bands, **changes}
    return assemble(manifest, streams)
