"""Which byte streams a manifest implies, in which order they lie, and how they are packed into frames.

A frame holds streams of one kind: gaps, scales and codes each compress best among themselves. Knows nothing of what
the bytes mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from typing import NamedTuple

from patchbay.delta.codecs import POSITIONS, VALUES, digits
from patchbay.delta.entries import DTYPES, Dense, Entries, Entry, LowRank, Sparse, numel, rows_columns
from patchbay.delta.manifest import Manifest
from patchbay.errors import MalformedDelta

OWN_VALUES = "bf16"
FRAME_BYTES = 16 << 20
ENERGY_HEAD = 4  # the fp32 maximum before a byte a neuron

# Also the order of the kinds in the file.
KINDS = (
    "positions",
    "scales",
    "values",
    "multiples",
    "own_positions",
    "own_values",
    "exception_positions",
    "exception_bits",
    "neuron_energy",
    "neuron_cosine",
    "vector_scales",
    "vectors",
    "lossless",
    "added",
    "copied",
    "appended",
)


class Stream(NamedTuple):
    """One stream of one tensor; `part` numbers the factors of a low-rank difference, from 1 where 0 are kept values."""

    kind: str
    name: str
    part: int = 0


class Frame(NamedTuple):
    """Streams of one kind that are compressed together."""

    kind: str
    lengths: Mapping[Stream, int]

    @property
    def num_bytes(self) -> int:
        return sum(self.lengths.values())


ReadStream = Callable[[Stream], bytes | memoryview]


def stream_bounds(manifest: Manifest) -> dict[Stream, int]:
    """Every stream that a file with this manifest holds, in canonical order, with the most bytes it can have."""
    listed: dict[str, dict[Stream, int]] = {kind: {} for kind in KINDS}
    for name, entry in manifest.tensors.items():
        for stream, bound in _streams(name, entry):
            listed[stream.kind][stream] = bound
    return {stream: bound for kind in KINDS for stream, bound in listed[kind].items()}


def stream_lengths(manifest: Manifest) -> dict[Stream, int]:
    """Every stream's exact length. Raises MalformedDelta where `unused` does not fit the bounds."""
    bounds = stream_bounds(manifest)
    if len(bounds) != len(manifest.unused):
        raise MalformedDelta(f"unused lists {len(manifest.unused)} streams of {len(bounds)}", param="unused")
    for (stream, bound), unused in zip(bounds.items(), manifest.unused, strict=True):
        if unused > bound:
            raise MalformedDelta(f"unused: {stream.kind} of {stream.name!r} has at most {bound} bytes", param="unused")
    return {stream: bounds[stream] - unused for stream, unused in zip(bounds, manifest.unused, strict=True)}


def plan_frames(lengths: Mapping[Stream, int]) -> list[Frame]:
    """Streams in order, a new frame for each kind and wherever one would pass FRAME_BYTES; empty streams are in none.

    A stream longer than that is a frame of its own.
    """
    frames: list[Frame] = []
    present = [(stream, length) for stream, length in lengths.items() if length]
    for kind, streams in groupby(present, key=lambda item: item[0].kind):
        held: dict[Stream, int] = {}
        size = 0
        for stream, length in streams:
            if held and size + length > FRAME_BYTES:
                frames.append(Frame(kind, held))
                held, size = {}, 0
            held[stream] = length
            size += length
        frames.append(Frame(kind, held))
    return frames


def value_kinds(entry: Entry) -> tuple[str, str]:
    """Where the scales and codes of an entry's values lie: norms and biases apart from matrices."""
    vector = isinstance(entry, Dense) and len(entry.shape) <= 1
    return ("vector_scales", "vectors") if vector else ("scales", "values")


def factor_parts(entry: LowRank | Sparse) -> Iterator[tuple[int, str, tuple[int, int]]]:
    """Part, value encoding and shape of every factor: left and right of each band."""
    factors = ((band.values, (side, band.rank)) for band in entry.bands for side in rows_columns(entry.shape))
    for part, (values, shape) in enumerate(factors, isinstance(entry, Sparse)):
        yield part, values, shape


def _streams(name: str, entry: Entry) -> Iterator[tuple[Stream, int]]:
    if isinstance(entry, Sparse):
        yield Stream("positions", name), _position_bound(entry, entry.shape)
        yield from _value_streams(name, entry, entry.values, entry.count, entry.shape)
        if entry.multiples > 1:
            yield Stream("multiples", name), digits.num_bytes(entry.count, entry.multiples)
        if entry.own:
            yield Stream("own_positions", name), _position_bound(entry.own, entry.shape)
            yield Stream("own_values", name), VALUES[OWN_VALUES].max_bytes(entry.own.count, entry.shape)
    if isinstance(entry, Sparse | LowRank):
        for part, values, shape in factor_parts(entry):
            yield from _value_streams(name, entry, values, numel(shape), shape, part)
    elif entry.kind == "delta":
        yield from _value_streams(name, entry, entry.values, numel(entry.shape), entry.shape)
    else:  # lossless, added or copied: as wide as the tensor
        yield Stream(entry.kind, name), numel(entry.shape) * DTYPES[entry.dtype].itemsize
    yield from _companions(name, entry)


def _value_streams(
    name: str, entry: Entry, values: str, count: int, shape: tuple[int, ...], part: int = 0
) -> Iterator[tuple[Stream, int]]:
    scales, codes = value_kinds(entry)
    codec = VALUES[values]
    scale_bytes = codec.scale_bytes(count, shape)
    if scale_bytes:
        yield Stream(scales, name, part), scale_bytes
    yield Stream(codes, name, part), codec.max_bytes(count, shape) - scale_bytes


def _companions(name: str, entry: Entry) -> Iterator[tuple[Stream, int]]:
    width = DTYPES[entry.dtype].itemsize
    if entry.exceptions:
        yield Stream("exception_positions", name), _position_bound(entry.exceptions, entry.shape)
        yield Stream("exception_bits", name), entry.exceptions.count * width
    if entry.neurons:
        yield Stream("neuron_energy", name), ENERGY_HEAD + entry.neurons
        yield Stream("neuron_cosine", name), entry.neurons
    if entry.appended:
        yield Stream("appended", name), entry.appended * numel(entry.shape[1:]) * width


def _position_bound(listed: Entries, shape: tuple[int, ...]) -> int:
    return POSITIONS[listed.positions].max_bytes(listed.count, numel(shape))
