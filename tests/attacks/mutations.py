"""Valid files of every encoding, and the ways to damage them: blindly, and by the rules of the format.

Every mutation takes a sample and a source of random numbers, and knows nothing of readers.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from tests.delta import samples
from tests.delta.samples import assemble_version1, container, parts, replaced, rows_of
from tests.golden import lossless, make

from patchbay.architecture import TensorSpec
from patchbay.delta.encode import Streams
from patchbay.delta.file import frame_row
from patchbay.delta.frames import pack, unpack
from patchbay.delta.streams import plan_frames

Fields = dict[str, Any]
Raw = dict[Any, bytes]
Mutation = Callable[["Sample", random.Random], bytes]
EDGES = (0, 1, -1, 127, 128, 255, 65_535, 2**31 - 1, 2**31, 2**48, 2**53 + 1, 2**63 - 1, 2**63, 2**64)
VALUES = (*EDGES, 0.5, -0.0, 1e-320, 1e308, float("inf"), float("nan"), True, False, None, "", "..", "a\0b", "x" * 2000)
NESTED: tuple[Any, ...] = ([], {}, [[]], [0] * 100, {"kind": "sparse"}, "sha256:" + "0" * 64)


@dataclass(frozen=True)
class Sample:
    """A valid file, and the parts that `assemble` makes it of."""

    name: str
    specs: Mapping[str, TensorSpec]
    manifest: Fields
    streams: Raw
    assemble: Callable[[Fields, Raw], bytes]
    fingerprint: str = samples.FINGERPRINT
    read_base: Callable[[str], torch.Tensor] | None = None

    @property
    def file(self) -> bytes:
        return self.assemble(self.manifest, self.streams)

    @property
    def has_lengths(self) -> bool:
        return "unused" in self.manifest


_packed = lru_cache(maxsize=4096)(pack)  # most frames of a damaged file are those of the valid one


def _frames(streams: Raw) -> dict[str, bytes]:
    planned = plan_frames({stream: len(data) for stream, data in streams.items()})
    joined = [b"".join(streams[stream] for stream in frame.lengths) for frame in planned]
    return {frame_row(number): _packed(data) for number, data in enumerate(joined)}


def _version2(manifest: Fields, streams: Raw) -> bytes:
    return samples.enclose(rows_of(manifest, _frames(streams)))


def _version1(manifest: Fields, streams: Raw) -> bytes:
    return assemble_version1(manifest, {name: _packed(data) for name, data in streams.items()})


def _lossless() -> Sample:
    base, tuned = lossless.models()
    streams = Streams()
    for name in base:
        streams.add_lossless(name, base[name], torch.nan_to_num(tuned[name]))
    return Sample("lossless", lossless.SPECS, *parts(streams), _version2, read_base=base.__getitem__)


def _samples() -> tuple[Sample, ...]:
    old, frames = samples.sample_version1()
    return (
        Sample("every_kind", samples.SPECS, *samples.sample(), _version2),
        Sample("factors", samples.SPECS, *parts(samples.factored_streams()), _version2),
        Sample("every_encoding", make.SPECS, *parts(make.build()), _version2),
        _lossless(),
        Sample(
            "version1", samples.SPECS, old, {name: unpack(data, 1 << 24) for name, data in frames.items()}, _version1
        ),
    )


SAMPLES = _samples()
FILES = {sample.name: sample.file for sample in SAMPLES}


def flip_bits(sample: Sample, source: random.Random) -> bytes:
    data = bytearray(FILES[sample.name])
    for _ in range(source.choice([1, 1, 2, 8])):
        data[source.randrange(len(data))] ^= 1 << source.randrange(8)
    return bytes(data)


def truncate(sample: Sample, source: random.Random) -> bytes:
    data = FILES[sample.name]
    return data[: source.randrange(len(data))]


def splice(sample: Sample, source: random.Random) -> bytes:
    """A piece of this file or of another one, put in or written over what was there."""
    data, other = FILES[sample.name], FILES[source.choice(SAMPLES).name]
    start, at = source.randrange(len(other)), source.randrange(len(data))
    piece = other[start : start + source.choice([1, 8, 64, 1024])]
    return data[:at] + piece + data[at + source.choice([0, len(piece)]) :]


def edit_header(sample: Sample, source: random.Random) -> bytes:
    """The container's JSON with a value changed, gone or there twice; the payload as it was."""
    header, payload = _opened(FILES[sample.name])
    return container(_edited(header, source), payload)


def edit_lengths(sample: Sample, source: random.Random) -> bytes:
    """The number of the header's bytes, or where the rows of the payload begin and end."""
    data = FILES[sample.name]
    header, payload = _opened(data)
    if source.random() < 0.3:
        length = source.choice([*EDGES, len(data), len(data) - 8, source.randrange(2 * len(data))])
        return (length % 2**64).to_bytes(8, "little") + data[8:]
    for _ in range(source.choice([1, 2])):
        row = header[source.choice([name for name in header if name != "__metadata__"])]
        offsets, which = row["data_offsets"], source.randrange(2)
        offsets[which] = source.choice([*EDGES, offsets[which] + source.randint(-9, 9), offsets[1 - which]])
        if source.random() < 0.5:
            row["shape"] = [offsets[1] - offsets[0]]
    return container(header, payload)


def edit_manifest(sample: Sample, source: random.Random) -> bytes:
    """Under the right payload hash, unless that is what was changed."""
    return sample.assemble(_edited(sample.manifest, source), sample.streams)


def edit_stream_lengths(sample: Sample, source: random.Random) -> bytes:
    """What the manifest says of streams that are as they were."""
    manifest = copy.deepcopy(sample.manifest)
    if not sample.has_lengths:
        return edit_manifest(sample, source)
    unused = manifest["unused"]
    for _ in range(source.choice([1, 2])):
        place = source.randrange(len(unused))
        unused[place] = source.choice([*EDGES, unused[place] + source.randint(-9, 9)])
    return sample.assemble(manifest, sample.streams)


def edit_stream(sample: Sample, source: random.Random) -> bytes:
    """Bytes of one stream changed, cut or put in, under the right hash and the right length."""
    stream = source.choice(list(sample.streams))
    data = bytearray(sample.streams[stream])
    for _ in range(source.randint(1, 4)):
        at = source.randrange(len(data) + 1)
        byte = source.choice([0, 1, 0x7F, 0x80, 0xFE, 0xFF, source.randrange(256)])
        data[at : at + source.choice([0, 1, 1, 1])] = bytes([byte] * source.choice([1, 1, 1, 4]))
    if source.random() < 0.2:
        del data[source.randrange(len(data) + 1) :]
    if not sample.has_lengths:
        return sample.assemble(sample.manifest, {**sample.streams, stream: bytes(data)})
    return sample.assemble(*replaced(stream, bytes(data), copy.deepcopy(sample.manifest), sample.streams))


def swap_streams(sample: Sample, source: random.Random) -> bytes:
    """One stream's bytes in the place of another's."""
    streams = list(sample.streams)
    one, other = source.choice(streams), source.choice(streams)
    if not sample.has_lengths:
        return sample.assemble(sample.manifest, {**sample.streams, one: sample.streams[other]})
    return sample.assemble(*replaced(one, sample.streams[other], copy.deepcopy(sample.manifest), sample.streams))


def damage_frame(sample: Sample, source: random.Random) -> bytes:
    """Bytes of a zstd frame changed, under the right hash: only the decompressor is left to see it."""
    frames = _frames(sample.streams) if sample.has_lengths else {n: _packed(d) for n, d in sample.streams.items()}
    name = source.choice(list(frames))
    data = bytearray(frames[name])
    for _ in range(source.randint(1, 3)):
        data[source.randrange(min(len(data), source.choice([16, len(data)])))] = source.randrange(256)
    frames[name] = bytes(data)
    if not sample.has_lengths:
        return assemble_version1(sample.manifest, frames)
    return samples.enclose(rows_of(sample.manifest, frames))


MUTATIONS: Mapping[str, Mutation] = {
    mutation.__name__: mutation
    for mutation in (
        flip_bits,
        truncate,
        splice,
        edit_header,
        edit_lengths,
        edit_manifest,
        edit_stream_lengths,
        edit_stream,
        swap_streams,
        damage_frame,
    )
}


def _opened(file: bytes) -> tuple[Fields, bytes]:
    start = 8 + int.from_bytes(file[:8], "little")
    return json.loads(file[8:start]), file[start:]


def _edited(fields: Fields, source: random.Random) -> Fields:
    """One to three places of a JSON object changed."""
    changed = copy.deepcopy(fields)
    for _ in range(source.choice([1, 1, 2, 3])):
        places = _places(changed)
        if places:
            _edit(places, source)
    return changed


def _edit(places: list[tuple[Any, Any]], source: random.Random) -> None:
    inside, key = source.choice(places)
    action = source.random()
    if action < 0.6:
        inside[key] = copy.deepcopy(source.choice([*VALUES, *NESTED]))
    elif action < 0.75:
        del inside[key]
    elif action < 0.9:
        elsewhere, other = source.choice(places)
        inside[key] = copy.deepcopy(elsewhere[other])
    elif isinstance(inside, dict):
        inside[source.choice(["again", key + "x", key + ".", "../" + key])] = copy.deepcopy(inside[key])
    else:
        inside.insert(key, copy.deepcopy(inside[key]))


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every place of a JSON value that can be written to: what holds it, and its key or index."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    return [(value, key) for key in keys] + [place for key in keys for place in _places(value[key])]
