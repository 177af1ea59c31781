"""Byte streams -> tensors, after the manifest was checked against a backbone's specs. Every stream may be hostile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import ParamSpec, TypeVar

import numpy as np
import torch

from patchbay.architecture import TensorSpec
from patchbay.delta.codecs import POSITIONS, VALUES, Positions
from patchbay.delta.delta import Delta, Exceptions, SparseRows
from patchbay.delta.encode import OWN_VALUES, PACKED
from patchbay.delta.frames import unpack, unshuffle
from patchbay.delta.manifest import DTYPES, Dense, Entries, Manifest, Sparse, numel
from patchbay.errors import DeltaTooLarge, MalformedDelta, NonFiniteValue, UnknownTensor, WrongBase, WrongShape

MAX_ADDED_BYTES = 1 << 26
ReadStream = Callable[[str], bytes]


def check_fits(manifest: Manifest, specs: Mapping[str, TensorSpec], fingerprint: str) -> None:
    """The delta was made for this base: fingerprint, then every name, shape and dtype kind.

    Raises WrongBase, UnknownTensor, WrongShape or DeltaTooLarge, naming the first offender in order of names.
    """
    if manifest.base.fingerprint != fingerprint:
        raise WrongBase(
            f"the delta was made for base {manifest.base.name!r} ({manifest.base.fingerprint[:19]}...), "
            f"this base is {fingerprint[:19]}...",
            param="base.fingerprint",
        )
    for name, entry in manifest.tensors.items():
        if entry.kind == "added":
            continue
        spec = specs.get(name)
        if spec is None:
            raise UnknownTensor(f"the base has no tensor {name!r}", param=name)
        if spec.shape != entry.shape:
            raise WrongShape(f"{name!r} has shape {list(entry.shape)}, the base's has {list(spec.shape)}", param=name)
        is_float = DTYPES[entry.dtype].is_floating_point
        if is_float == (entry.kind == "copied") or is_float != spec.dtype.startswith(("F", "BF")):
            raise WrongShape(
                f"{name!r} is of kind {entry.kind} and dtype {entry.dtype}, the base's is {spec.dtype}", param=name
            )
    _check_added(manifest, specs)


def _check_added(manifest: Manifest, specs: Mapping[str, TensorSpec]) -> None:
    added = {n: e for n, e in manifest.tensors.items() if e.kind == "added"}
    size = sum(numel(entry.shape) * DTYPES[entry.dtype].itemsize for entry in added.values())
    if size > MAX_ADDED_BYTES:
        raise DeltaTooLarge(f"added tensors take {size} bytes; at most {MAX_ADDED_BYTES} are accepted", param="tensors")
    for name in added:
        if name in specs and not specs[name].is_head:
            raise WrongShape(f"{name!r} is a tensor of the base and no head: it cannot be added", param=name)


def stream_names(manifest: Manifest) -> set[str]:
    """Exactly the streams that a file with this manifest holds."""
    names: set[str] = set()
    for name, entry in manifest.tensors.items():
        if isinstance(entry, Sparse):
            names |= {f"{name}.positions", f"{name}.values"}
            names |= {f"{name}.own_positions", f"{name}.own_values"} if entry.own else set()
        else:
            names.add(PACKED)
        if entry.exceptions:
            names |= {f"{name}.exception_positions", f"{name}.exception_bits"}
    return names


def decode(manifest: Manifest, read: ReadStream, *, finite: bool = True) -> Delta:
    """All tensors of a delta whose manifest has passed `check_fits`. `finite=False` admits NaN and infinity in
    exceptions.

    Raises MalformedDelta or NonFiniteValue, naming the tensor.
    """
    sparse = {n: e for n, e in manifest.tensors.items() if isinstance(e, Sparse)}
    matrices = {name: _named(name, _decode_sparse, name, entry, read) for name, entry in sparse.items()}
    dense: dict[str, dict[str, torch.Tensor]] = {"delta": {}, "added": {}, "copied": {}}
    for name, entry, tensor in _decode_dense(manifest, read):
        dense[entry.kind][name] = tensor
    exceptions = {
        name: _named(name, _decode_exceptions, name, entry, entry.exceptions, read)
        for name, entry in manifest.tensors.items()
        if entry.exceptions
    }
    delta = Delta(manifest, matrices, dense["delta"], dense["added"], dense["copied"], exceptions)
    _check_finite(delta, finite)
    return delta


def _decode_sparse(name: str, entry: Sparse, read: ReadStream) -> SparseRows:
    positions = _positions(entry, read(f"{name}.positions"), entry.shape)
    codec = VALUES[entry.values]
    data = unpack(read(f"{name}.values"), codec.max_bytes(entry.count, entry.shape))
    values = codec.decode(data, positions, entry.shape)
    if entry.own:
        own = _positions(entry.own, read(f"{name}.own_positions"), entry.shape)
        codec = VALUES[OWN_VALUES]
        own_data = unpack(read(f"{name}.own_values"), codec.max_bytes(entry.own.count, entry.shape))
        order = np.argsort(np.concatenate([positions, own]), kind="stable")
        values = np.concatenate([values, codec.decode(own_data, own, entry.shape)])[order]
        positions = np.concatenate([positions, own])[order]
        if (np.diff(positions) == 0).any():
            raise MalformedDelta("an entry is listed both with an own value and without")
    return SparseRows(entry.shape, _index_tensor(positions, entry.shape), torch.from_numpy(values))


def _decode_dense(manifest: Manifest, read: ReadStream) -> Iterator[tuple[str, Dense, torch.Tensor]]:
    entries = [(name, entry) for name, entry in manifest.tensors.items() if isinstance(entry, Dense)]
    if not entries:
        return
    sizes = [numel(entry.shape) * _stored_dtype(entry).itemsize for _, entry in entries]
    data = _named(PACKED, unpack, read(PACKED), sum(sizes))
    if len(data) != sum(sizes):
        raise MalformedDelta(f"{PACKED} holds {len(data)} bytes where {sum(sizes)} are declared", param=PACKED)
    start = 0
    for (name, entry), size in zip(entries, sizes, strict=True):
        part = _named(name, _from_bytes, data[start : start + size], _stored_dtype(entry))
        tensor = part.reshape(entry.shape)
        start += size
        yield name, entry, tensor.to(torch.float32) if entry.kind == "delta" else tensor


def _decode_exceptions(name: str, entry: Sparse | Dense, listed: Entries, read: ReadStream) -> Exceptions:
    positions = _positions(listed, read(f"{name}.exception_positions"), entry.shape)
    dtype = DTYPES[entry.dtype]
    data = unpack(read(f"{name}.exception_bits"), listed.count * dtype.itemsize)
    if len(data) != listed.count * dtype.itemsize:
        raise MalformedDelta(f"{len(data)} bytes of exceptions for {listed.count} entries")
    return Exceptions(_index_tensor(positions, entry.shape), _from_bytes(data, dtype))


def _positions(entries: Entries, frame: bytes, shape: tuple[int, ...]) -> Positions:
    codec, total = POSITIONS[entries.positions], numel(shape)
    return codec.decode(unpack(frame, codec.max_bytes(entries.count, total)), entries.count, total)


def _stored_dtype(entry: Dense) -> torch.dtype:
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "raw": DTYPES[entry.dtype]}[entry.values]


def _from_bytes(data: bytes, dtype: torch.dtype) -> torch.Tensor:
    if dtype == torch.bool and data.strip(b"\0\1"):
        raise MalformedDelta("a boolean that is neither 0 nor 1")
    return (
        torch.frombuffer(bytearray(unshuffle(data, dtype.itemsize)), dtype=dtype)
        if data
        else torch.empty(0, dtype=dtype)
    )


def _index_tensor(positions: Positions, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(positions.astype(np.int32 if numel(shape) < 2**31 else np.int64))


P = ParamSpec("P")
T = TypeVar("T")


def _named(name: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    try:
        return function(*args, **kwargs)
    except MalformedDelta as error:
        raise MalformedDelta(f"{name!r}: {error.message}", param=name) from error


def _check_finite(delta: Delta, bits_too: bool) -> None:
    parts: dict[str, torch.Tensor] = {name: rows.values for name, rows in delta.matrices.items()}
    parts |= dict(delta.vectors) | {n: t for n, t in delta.added.items() if t.is_floating_point()}
    for name, tensor in sorted(parts.items()):
        if not bool(torch.isfinite(tensor).all()):
            raise NonFiniteValue(f"{name!r} contains NaN or infinity", param=name)
    for name, exceptions in delta.exceptions.items() if bits_too else ():
        if not bool(torch.isfinite(exceptions.bits).all()):
            raise NonFiniteValue(f"{name!r} contains NaN or infinity", param=name)
