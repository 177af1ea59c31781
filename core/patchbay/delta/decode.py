"""Byte streams -> tensors, after the manifest was checked against a backbone's specs. Every stream may be hostile."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from patchbay.checkpoint import all_finite
from patchbay.delta.codecs import POSITIONS, VALUES, Bytes, Positions, Shape, Values, digits, index_dtype
from patchbay.delta.delta import Delta, Exceptions, NeuronStatistics, SparseRows
from patchbay.delta.entries import DTYPES, Dense, Entries, Entry, Lossless, LowRank, Sparse, numel
from patchbay.delta.frames import unshuffle
from patchbay.delta.lossless import INTEGERS, ReadBase, as_difference, decode_bits
from patchbay.delta.low_rank import Factors
from patchbay.delta.manifest import Manifest
from patchbay.delta.neurons import decode_neurons
from patchbay.delta.streams import OWN_VALUES, ReadStream, Stream, factor_parts, value_kinds
from patchbay.errors import DeltaError, MalformedDelta, NonFiniteValue

MOST_RANKS = 16  # of factors that stay factors
MAX_FACTORED = 2.0**127  # half of what fp32 holds: sums are rounded, and may end above their bound


def decode(manifest: Manifest, read: ReadStream, *, finite: bool = True, read_base: ReadBase | None = None) -> Delta:
    """All tensors of a delta whose manifest has passed `check_fits`. `finite=False` admits NaN and infinity in
    exceptions. `read_base` is asked for the base's tensor of every lossless one.

    Raises MalformedDelta or NonFiniteValue, naming the tensor or the frame, and DeltaError for lossless tensors
    without `read_base`.
    """
    parts = _Parts()
    for name, entry in manifest.tensors.items():
        with _naming(name):
            if isinstance(entry, Lossless):
                _decode_lossless(parts, name, entry, read, read_base)
            else:
                _decode_entry(parts, name, entry, read)
            _decode_companions(parts, name, entry, read)
    delta = Delta(
        manifest,
        parts.matrices,
        parts.vectors,
        parts.added,
        parts.copied,
        parts.exceptions,
        parts.neurons,
        parts.appended,
        parts.factors,
    )
    _check_finite(delta, finite)
    return _without_high_ranks(delta)


@dataclass
class _Parts:
    """What a `Delta` is made of, tensor by tensor."""

    matrices: dict[str, SparseRows] = field(default_factory=dict)
    vectors: dict[str, torch.Tensor] = field(default_factory=dict)
    added: dict[str, torch.Tensor] = field(default_factory=dict)
    copied: dict[str, torch.Tensor] = field(default_factory=dict)
    exceptions: dict[str, Exceptions] = field(default_factory=dict)
    neurons: dict[str, NeuronStatistics] = field(default_factory=dict)
    appended: dict[str, torch.Tensor] = field(default_factory=dict)
    factors: dict[str, Factors] = field(default_factory=dict)


def _decode_entry(parts: _Parts, name: str, entry: Entry, read: ReadStream) -> None:
    if isinstance(entry, Sparse):
        parts.matrices[name] = _decode_sparse(name, entry, read)
    elif isinstance(entry, Dense) and entry.kind == "delta":
        parts.vectors[name] = _decode_whole(name, entry, read)
    elif isinstance(entry, Dense):
        raw = _from_bytes(read(Stream(entry.kind, name)), DTYPES[entry.dtype], numel(entry.shape))
        (parts.added if entry.kind == "added" else parts.copied)[name] = raw.reshape(entry.shape)
    if isinstance(entry, LowRank) or (isinstance(entry, Sparse) and entry.bands):
        parts.factors[name] = _decode_factors(name, entry, read)


def _decode_lossless(parts: _Parts, name: str, entry: Lossless, read: ReadStream, read_base: ReadBase | None) -> None:
    if read_base is None:
        raise DeltaError(f"{name!r} is stored against the bits of the base: open it with the base at hand", param=name)
    dtype = DTYPES[entry.dtype]
    codes = _from_bytes(read(Stream("lossless", name)), INTEGERS[dtype.itemsize], numel(entry.shape))
    before = read_base(name)
    assert tuple(before.shape) == entry.shape, "the base whose fingerprint and shapes were checked"
    parts.vectors[name], exceptions = as_difference(before, decode_bits(before, codes, dtype))
    if len(exceptions.positions):
        parts.exceptions[name] = Exceptions(_index_tensor(exceptions.positions.numpy(), entry.shape), exceptions.bits)


def _decode_companions(parts: _Parts, name: str, entry: Entry, read: ReadStream) -> None:
    if entry.exceptions:
        parts.exceptions[name] = _decode_exceptions(name, entry, entry.exceptions, read)
    if entry.neurons:
        energy, cosine = read(Stream("neuron_energy", name)), read(Stream("neuron_cosine", name))
        parts.neurons[name] = decode_neurons(energy, cosine, entry.neurons)
    if entry.appended:
        shape = (entry.appended, *entry.shape[1:])
        raw = _from_bytes(read(Stream("appended", name)), DTYPES[entry.dtype], numel(shape))
        parts.appended[name] = raw.reshape(shape)


def _decode_sparse(name: str, entry: Sparse, read: ReadStream) -> SparseRows:
    positions = _positions(entry, read(Stream("positions", name)), entry.shape)
    values = _values(name, entry, entry.values, positions, entry.shape, read)
    if entry.multiples > 1:
        times = 1 + digits.unpack(read(Stream("multiples", name)), entry.count, entry.multiples).astype(np.float32)
        if times.max() != entry.multiples:
            raise MalformedDelta(f"no value counts {entry.multiples} times")
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused with the tensor's name
            values = values * times
    if entry.own:
        own = _positions(entry.own, read(Stream("own_positions", name)), entry.shape)
        own_values = VALUES[OWN_VALUES].decode(read(Stream("own_values", name)), own, entry.shape)
        order = np.argsort(np.concatenate([positions, own]), kind="stable")
        values = np.concatenate([values, own_values])[order]
        positions = np.concatenate([positions, own])[order]
        if (np.diff(positions) == 0).any():
            raise MalformedDelta("an entry is listed both with an own value and without")
    return SparseRows(entry.shape, _index_tensor(positions, entry.shape), torch.from_numpy(values))


def _decode_whole(name: str, entry: Dense, read: ReadStream) -> torch.Tensor:
    everywhere = np.arange(numel(entry.shape))
    values = _values(name, entry, entry.values, everywhere, entry.shape, read)
    return torch.from_numpy(values).reshape(entry.shape)


def _decode_factors(name: str, entry: LowRank | Sparse, read: ReadStream) -> Factors:
    factors: list[torch.Tensor] = []
    for part, values, shape in factor_parts(entry):
        everywhere = np.arange(numel(shape))
        decoded = _values(name, entry, values, everywhere, shape, read, part)
        factors.append(torch.from_numpy(decoded).reshape(shape))
    return Factors(entry.shape, torch.cat(factors[::2], 1), torch.cat(factors[1::2], 1))


def _values(
    name: str, entry: Entry, encoding: str, positions: Positions, shape: Shape, read: ReadStream, part: int = 0
) -> Values:
    scales, codes = value_kinds(entry)
    codec = VALUES[encoding]
    data: Bytes = read(Stream(codes, name, part))
    if codec.scale_bytes(len(positions), shape):
        data = b"".join((read(Stream(scales, name, part)), data))
    return codec.decode(data, positions, shape)


def _decode_exceptions(name: str, entry: Entry, listed: Entries, read: ReadStream) -> Exceptions:
    positions = _positions(listed, read(Stream("exception_positions", name)), entry.shape)
    bits = _from_bytes(read(Stream("exception_bits", name)), DTYPES[entry.dtype], listed.count)
    return Exceptions(_index_tensor(positions, entry.shape), bits)


def _positions(entries: Entries, data: Bytes, shape: Shape) -> Positions:
    return POSITIONS[entries.positions].decode(data, entries.count, numel(shape))


def _from_bytes(data: Bytes, dtype: torch.dtype, count: int) -> torch.Tensor:
    if len(data) != count * dtype.itemsize:
        raise MalformedDelta(f"{len(data)} bytes for {count} entries of {dtype}")
    if not data:
        return torch.empty(0, dtype=dtype)
    raw = unshuffle(data, dtype.itemsize)
    if dtype == torch.bool and raw.max() > 1:
        raise MalformedDelta("a boolean that is neither 0 nor 1")
    return torch.from_numpy(raw).view(dtype)


def _index_tensor(positions: Positions, shape: Shape) -> torch.Tensor:
    return torch.from_numpy(positions).to(index_dtype(numel(shape)))


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Puts the tensor's name into an error, unless it names something already."""
    try:
        yield
    except MalformedDelta as error:
        if error.param is not None:
            raise
        raise MalformedDelta(f"{name!r}: {error.message}", param=name) from error


def _check_finite(delta: Delta, bits_too: bool) -> None:
    parts = [(name, rows.unpacked().values) for name, rows in delta.matrices.items()]
    parts += [*delta.vectors.items(), *delta.added.items(), *delta.appended.items()]
    parts += [(name, torch.tensor(math.inf if _may_overflow(delta, name) else 0.0)) for name in delta.factors]
    if bits_too:
        parts += [(name, exceptions.bits) for name, exceptions in delta.exceptions.items()]
    for name, tensor in sorted(parts, key=lambda part: part[0]):
        if not all_finite(tensor):
            raise NonFiniteValue(f"{name!r} contains NaN or infinity", param=name)


def _without_high_ranks(delta: Delta) -> Delta:
    """Factors of many ranks become whole differences: every use of them would pay for each rank."""
    whole = {name: delta.difference(name) for name, factors in delta.factors.items() if factors.rank > MOST_RANKS}
    if not whole:
        return delta
    matrices = {name: rows for name, rows in delta.matrices.items() if name not in whole}
    factored = {name: factors for name, factors in delta.factors.items() if name not in whole}
    return replace(delta, matrices=matrices, vectors={**delta.vectors, **whole}, factors=factored)


def _may_overflow(delta: Delta, name: str) -> bool:
    """Whether a difference with factors may have entries that fp32 cannot hold, found out without multiplying out."""
    rows = delta.matrices.get(name)
    values = torch.empty(0) if rows is None else rows.unpacked().values
    kept = float(values.abs().max()) if len(values) else 0.0
    return not delta.factors[name].largest + kept < MAX_FACTORED
