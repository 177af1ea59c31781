"""Tensors -> manifest entries and byte streams. The stream names and layouts are those of FORMAT.md."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from patchbay.checkpoint import raw_bytes
from patchbay.delta.codecs import VALUES, Positions, Values, best_positions
from patchbay.delta.delta import Exceptions, SparseRows
from patchbay.delta.frames import pack, shuffle
from patchbay.delta.manifest import DTYPES, Dense, Entries, Sparse

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
PACKED = "patchbay.dense"
OWN_VALUES = "bf16"


@dataclass
class Streams:
    """Collects entries and streams; `finish` returns both, with all dense tensors packed into one frame."""

    entries: dict[str, Sparse | Dense] = field(default_factory=dict)
    streams: dict[str, bytes] = field(default_factory=dict)
    _dense: dict[str, bytes] = field(default_factory=dict)

    def add_sparse(
        self, name: str, rows: SparseRows, values: str, dtype: torch.dtype, own: torch.Tensor | None = None
    ) -> SparseRows:
        """One pruned matrix; returns it as a reader will see it.

        `dtype` is the fine-tuned tensor's; `own` a bool mask over the kept entries that keep a bf16 value of their own.
        """
        positions, kept = rows.positions.numpy().astype(np.int64), rows.values.numpy().copy()
        mask = np.zeros(len(positions), np.bool_) if own is None else own.numpy()
        own_entries = None
        if mask.any():
            own_entries = self._add_positions(f"{name}.own_positions", positions[mask], rows.shape)
            kept[mask] = self._add_values(f"{name}.own_values", OWN_VALUES, kept[mask], positions[mask], rows.shape)
        listed = self._add_positions(f"{name}.positions", positions[~mask], rows.shape)
        kept[~mask] = self._add_values(f"{name}.values", values, kept[~mask], positions[~mask], rows.shape)
        self.entries[name] = Sparse(
            kind="sparse",
            shape=rows.shape,
            dtype=DTYPE_NAMES[dtype],
            count=listed.count,
            positions=listed.positions,
            values=values,
            own=own_entries,
        )
        return SparseRows(rows.shape, rows.positions, torch.from_numpy(kept))

    def add_dense(self, name: str, difference: torch.Tensor, values: str, dtype: torch.dtype) -> torch.Tensor:
        """A norm, bias or tiny matrix whose whole difference is kept, as `fp32` or `bf16`; returns it as read back
        (fp32).
        """
        width: Literal["fp32", "bf16"] = "fp32" if values == "fp32" else "bf16"
        stored = difference.to(torch.float32 if width == "fp32" else torch.bfloat16)
        self._dense[name] = _shuffled(stored)
        self.entries[name] = Dense(kind="delta", shape=tuple(difference.shape), dtype=DTYPE_NAMES[dtype], values=width)
        return stored.to(torch.float32)

    def add_exceptions(self, name: str, exceptions: Exceptions) -> None:
        """Raw bits for entries of a tensor added before, where base + delta does not round to the fine-tuned value."""
        if not len(exceptions.positions):
            return
        entry = self.entries[name]
        self.streams[f"{name}.exception_bits"] = pack(_shuffled(exceptions.bits))
        listed = self._add_positions(
            f"{name}.exception_positions", exceptions.positions.numpy().astype(np.int64), entry.shape
        )
        self.entries[name] = entry.model_copy(update={"exceptions": listed})

    def add_raw(self, name: str, tensor: torch.Tensor, *, copied: bool) -> None:
        """A head of the fine-tune's own, or an integer tensor with new values: stored as it is."""
        self._dense[name] = _shuffled(tensor)
        kind: Literal["copied", "added"] = "copied" if copied else "added"
        self.entries[name] = Dense(kind=kind, shape=tuple(tensor.shape), dtype=DTYPE_NAMES[tensor.dtype], values="raw")

    def finish(self) -> tuple[dict[str, Sparse | Dense], dict[str, bytes]]:
        streams = dict(self.streams)
        if self._dense:
            streams[PACKED] = pack(b"".join(self._dense[name] for name in sorted(self._dense)))
        return dict(sorted(self.entries.items())), streams

    def _add_positions(self, stream: str, positions: Positions, shape: tuple[int, ...]) -> Entries:
        codec = best_positions(len(positions), _numel(shape))
        self.streams[stream] = pack(codec.encode(positions, _numel(shape)))
        return Entries(count=len(positions), positions=codec.name)

    def _add_values(
        self, stream: str, encoding: str, values: Values, positions: Positions, shape: tuple[int, ...]
    ) -> Values:
        data = VALUES[encoding].encode(values, positions, shape)
        self.streams[stream] = pack(data)
        return VALUES[encoding].decode(data, positions, shape)


def _shuffled(tensor: torch.Tensor) -> bytes:
    return shuffle(bytes(raw_bytes(tensor)), tensor.element_size())


def _numel(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))
