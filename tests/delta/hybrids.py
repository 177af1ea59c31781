"""Delta files over a whole base model, with factors in some of their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from patchbay.architecture import Architecture
from patchbay.checkpoint import Checkpoint
from patchbay.delta import Delta, SparseRows, read_delta, write_delta
from patchbay.delta.delta import find_exceptions
from patchbay.delta.encode import Streams
from patchbay.delta.manifest import Base, Compression, Provenance, Statistics

KINDS = ("hybrid", "low_rank", "sparse", "whole")


def hybrid_file(
    base: Path,
    out: Path,
    kinds: Mapping[str, str],
    *,
    seed: int = 0,
    tuned: Mapping[str, torch.Tensor] | None = None,
    scale: float = 0.1,
) -> Path:
    """A random difference of each named tensor, stored as its kind says, its values or factors times `scale`;
    exceptions where `tuned` has other bits.
    """
    checkpoint, generator, streams = Checkpoint.open(base), torch.Generator().manual_seed(seed), Streams()
    for name, kind in kinds.items():
        before = checkpoint.read(name)
        stored = _add(streams, name, kind, before, generator, scale)
        if tuned is not None:
            streams.add_exceptions(name, find_exceptions(before, stored, tuned[name]))
    entries, data = streams.finish()
    manifest = {
        "base": Base(name=base.name, fingerprint=checkpoint.fingerprint),
        "compression": Compression(method="hybrid", density=0.1),
        "statistics": Statistics(relative_error=0.5, sigma=0.0),
        "provenance": Provenance(finetuned=f"hybrid-{seed}", tool="tests", original_bytes=checkpoint.num_bytes),
        "tensors": entries,
    }
    write_delta(out, manifest, data)
    return out


def hybrid_delta(
    base: Path, out: Path, kinds: Mapping[str, str], *, seed: int = 0, tuned: Mapping[str, torch.Tensor] | None = None
) -> Delta:
    """The same, read back as a server reads it."""
    checkpoint, file = Checkpoint.open(base), hybrid_file(base, out, kinds, seed=seed, tuned=tuned)
    return read_delta(file, Architecture.of(checkpoint).specs, checkpoint.fingerprint)


def _add(
    streams: Streams, name: str, kind: str, before: torch.Tensor, generator: torch.Generator, scale: float
) -> torch.Tensor:
    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * scale

    shape = tuple(before.shape)
    if kind == "whole":
        return streams.add_whole(name, noise(*shape), "int8", before.dtype)
    across = before.numel() // shape[0]
    bands = [(noise(shape[0], rank), noise(across, rank), values) for rank, values in ((2, "bf16"), (1, "int8"))]
    if kind == "low_rank":
        return streams.add_low_rank(name, bands, before.dtype, shape).to_dense()
    positions = torch.randperm(before.numel(), generator=generator)[: before.numel() // 10].sort().values.int()
    kept = streams.add_sparse(name, SparseRows(shape, positions, noise(len(positions))), "int8", before.dtype)
    return kept.to_dense() if kind == "sparse" else kept.to_dense() + streams.add_factors(name, bands).to_dense()
