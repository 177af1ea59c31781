"""Tensors -> manifest entries and byte streams. The streams and their layouts are those of FORMAT.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from patchbay.checkpoint import raw_bytes
from patchbay.delta.codecs import VALUES, Positions, Shape, Values, best_positions, digits, seeded_positions
from patchbay.delta.codecs.seeded import SEED_BYTES, Seeded
from patchbay.delta.delta import Exceptions, NeuronStatistics, SparseRows
from patchbay.delta.entries import DTYPES, Band, Dense, Entries, Entry, Lossless, LowRank, Sparse, numel
from patchbay.delta.frames import shuffle
from patchbay.delta.lossless import as_difference, encode_bits
from patchbay.delta.low_rank import FactorPair, Factors
from patchbay.delta.neurons import decode_neurons, encode_neurons
from patchbay.delta.streams import OWN_VALUES, Stream, factor_parts, value_kinds

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass
class Streams:
    """Collects entries and their streams; `finish` returns both, ready for `write_delta`."""

    entries: dict[str, Entry] = field(default_factory=dict)
    streams: dict[Stream, bytes] = field(default_factory=dict)

    def add_sparse(
        self,
        name: str,
        rows: SparseRows,
        values: str,
        dtype: torch.dtype,
        own: torch.Tensor | None = None,
        *,
        seed: int | None = None,
        multiples: torch.Tensor | None = None,
    ) -> SparseRows:
        """One pruned matrix; returns it as a reader will see it.

        `dtype` is the fine-tuned tensor's; `own` a bool mask over the kept entries that keep a bf16 value of their own.
        With `seed`, the positions are those of `seeded_positions(seed, ...)` and only the seed is stored. With
        `multiples`, whole numbers from 1 to 65536 a kept entry, values / multiples is what `values` encodes.
        """
        assert own is None or multiples is None, "an own value is not a multiple"
        positions, kept = rows.positions.numpy().astype(np.int64), rows.values.numpy().copy()
        mask = np.zeros(len(positions), np.bool_) if own is None else own.numpy()
        own_entries = None
        if mask.any():
            own_entries = self._add_positions(Stream("own_positions", name), positions[mask], rows.shape)
            kept[mask] = self._add_own(name, kept[mask], positions[mask], rows.shape)
        listed = self._add_positions(Stream("positions", name), positions[~mask], rows.shape, seed)
        entry = self.entries[name] = Sparse(
            kind="sparse",
            shape=rows.shape,
            dtype=DTYPE_NAMES[dtype],
            count=listed.count,
            positions=listed.positions,
            values=values,
            own=own_entries,
            multiples=1 if multiples is None or not len(multiples) else int(multiples.max()),
        )
        times = np.float32(1) if multiples is None else self._add_multiples(name, entry, multiples)
        kept[~mask] = self._add_values(name, entry, values, kept[~mask] / times, positions[~mask], rows.shape)
        return SparseRows(rows.shape, rows.positions, torch.from_numpy(kept * times))

    def add_dense(self, name: str, difference: torch.Tensor, values: str, dtype: torch.dtype) -> torch.Tensor:
        """A norm, bias or tiny matrix whose whole difference is kept, in fp32 where that is the encoding of `values`
        and in bf16 beside any other; returns it as read back (fp32).
        """
        return self.add_whole(name, difference, "fp32" if values == "fp32" else "bf16", dtype)

    def add_whole(self, name: str, difference: torch.Tensor, encoding: str, dtype: torch.dtype) -> torch.Tensor:
        """A whole difference in any value encoding, for norms as for matrices; returns it as read back (fp32)."""
        shape = tuple(difference.shape)
        entry = self.entries[name] = Dense(kind="delta", shape=shape, dtype=DTYPE_NAMES[dtype], values=encoding)
        flat = difference.reshape(-1).to(torch.float32).numpy()
        stored = self._add_values(name, entry, encoding, flat, np.arange(numel(shape)), shape)
        return torch.from_numpy(stored).reshape(shape)

    def add_lossless(self, name: str, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """The fine-tune's tensor to the bit, against the base's; returns the difference as a reader sees it (fp32)."""
        self.streams[Stream("lossless", name)] = _shuffled(encode_bits(before, after))
        shape = tuple(after.shape)
        self.entries[name] = Lossless(kind="lossless", shape=shape, dtype=DTYPE_NAMES[after.dtype], values="zigzag")
        return as_difference(before, after)[0]

    def add_low_rank(
        self, name: str, bands: Sequence[FactorPair], dtype: torch.dtype, shape: tuple[int, ...] | None = None
    ) -> Factors:
        """A matrix difference sum_b U_b V_b^T from bands (U [rows, rank], V [columns, rank], value encoding).

        `shape`: the tensor's, where it is a convolution's with all dimensions but the first as columns. Returns the
        factors as read back.
        """
        shape = shape or (len(bands[0][0]), len(bands[0][1]))
        entry = LowRank(kind="low_rank", shape=shape, dtype=DTYPE_NAMES[dtype], bands=_listed(bands))
        self.entries[name] = entry
        return self._add_factors(name, entry, bands)

    def add_factors(self, name: str, bands: Sequence[FactorPair]) -> Factors:
        """The low-rank difference that the values of a pruned matrix, added before, are added to; as read back."""
        entry = self.entries[name]
        assert isinstance(entry, Sparse), "only a pruned matrix has factors beside its values"
        entry = self.entries[name] = entry.model_copy(update={"bands": _listed(bands)})
        return self._add_factors(name, entry, bands)

    def add_neurons(self, name: str, energy: torch.Tensor, cosine: torch.Tensor) -> NeuronStatistics:
        """Merge statistics [neurons] of a tensor added before; returns them as read back."""
        energies, cosines = encode_neurons(NeuronStatistics(energy, cosine))
        self.streams[Stream("neuron_energy", name)] = energies
        self.streams[Stream("neuron_cosine", name)] = cosines
        self.entries[name] = self.entries[name].model_copy(update={"neurons": len(energy)})
        return decode_neurons(energies, cosines, len(energy))

    def add_appended(self, name: str, rows: torch.Tensor) -> None:
        """Rows that the fine-tune has behind the base's last one, as they are, for a tensor added before.

        Where the common rows are unchanged, that is a sparse one without entries.
        """
        entry = self.entries[name]
        assert rows.shape[1:] == entry.shape[1:] and DTYPE_NAMES[rows.dtype] == entry.dtype
        self.streams[Stream("appended", name)] = _shuffled(rows)
        self.entries[name] = entry.model_copy(update={"appended": len(rows)})

    def add_exceptions(self, name: str, exceptions: Exceptions) -> None:
        """Raw bits for entries of a tensor added before, where base + delta does not round to the fine-tuned value."""
        if not len(exceptions.positions):
            return
        entry = self.entries[name]
        positions = exceptions.positions.numpy().astype(np.int64)
        listed = self._add_positions(Stream("exception_positions", name), positions, entry.shape)
        self.streams[Stream("exception_bits", name)] = _shuffled(exceptions.bits)
        self.entries[name] = entry.model_copy(update={"exceptions": listed})

    def add_raw(self, name: str, tensor: torch.Tensor, *, copied: bool) -> None:
        """A head of the fine-tune's own, or an integer tensor with new values: stored as it is."""
        kind: Literal["copied", "added"] = "copied" if copied else "added"
        self.streams[Stream(kind, name)] = _shuffled(tensor)
        self.entries[name] = Dense(kind=kind, shape=tuple(tensor.shape), dtype=DTYPE_NAMES[tensor.dtype], values="raw")

    def finish(self) -> tuple[dict[str, Entry], dict[Stream, bytes]]:
        """Entries in order of names, and the streams as they are before compression."""
        return dict(sorted(self.entries.items())), dict(self.streams)

    def _add_positions(self, stream: Stream, positions: Positions, shape: Shape, seed: int | None = None) -> Entries:
        if seed is not None:
            drawn = seeded_positions(seed, len(positions), numel(shape))
            assert np.array_equal(drawn, positions), "the positions are not those of the seed"
            self.streams[stream] = seed.to_bytes(SEED_BYTES, "little")
            return Entries(count=len(positions), positions=Seeded.name)
        codec = best_positions(len(positions), numel(shape))
        self.streams[stream] = codec.encode(positions, numel(shape))
        return Entries(count=len(positions), positions=codec.name)

    def _add_multiples(self, name: str, entry: Sparse, multiples: torch.Tensor) -> Values:
        times = multiples.numpy()
        if entry.multiples > 1:
            self.streams[Stream("multiples", name)] = digits.pack(times.astype(np.int64) - 1, entry.multiples)
        return times.astype(np.float32)

    def _add_own(self, name: str, values: Values, positions: Positions, shape: Shape) -> Values:
        data = VALUES[OWN_VALUES].encode(values, positions, shape)
        self.streams[Stream("own_values", name)] = data
        return VALUES[OWN_VALUES].decode(data, positions, shape)

    def _add_factors(self, name: str, entry: LowRank | Sparse, bands: Sequence[FactorPair]) -> Factors:
        stored: list[torch.Tensor] = []
        factors = [factor for left, right, _ in bands for factor in (left, right)]
        for (part, values, size), factor in zip(factor_parts(entry), factors, strict=True):
            flat = factor.reshape(-1).to(torch.float32).numpy()
            read = self._add_values(name, entry, values, flat, np.arange(numel(size)), size, part)
            stored.append(torch.from_numpy(read).reshape(size))
        return Factors(entry.shape, torch.cat(stored[::2], 1), torch.cat(stored[1::2], 1))

    def _add_values(
        self, name: str, entry: Entry, encoding: str, values: Values, positions: Positions, shape: Shape, part: int = 0
    ) -> Values:
        """Scales and codes in streams of their own; returns the values as read back."""
        scales, codes = value_kinds(entry)
        codec = VALUES[encoding]
        data = codec.encode(values, positions, shape)
        cut = codec.scale_bytes(len(positions), shape)
        if cut:
            self.streams[Stream(scales, name, part)] = data[:cut]
        self.streams[Stream(codes, name, part)] = data[cut:]
        return codec.decode(data, positions, shape)


def _listed(bands: Sequence[FactorPair]) -> tuple[Band, ...]:
    return tuple(Band(rank=left.shape[1], values=values) for left, _, values in bands)


def _shuffled(tensor: torch.Tensor) -> bytes:
    return shuffle(bytes(raw_bytes(tensor)), tensor.element_size())
