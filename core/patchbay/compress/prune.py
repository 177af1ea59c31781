"""Which entries of a task vector are kept, over all its matrices at once, one matrix in memory at a time.

Knows nothing of encodings. A pruner is asked for the matrices in sorted order of names, each once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch

from patchbay.delta import SparseRows
from patchbay.delta.codecs import index_dtype, seeded_positions

Read = Callable[[str], torch.Tensor]
UPPER_BINS = 1 << 15
CHUNK = 1 << 20  # entries looked at in one step: what is computed about them takes several times their memory


def num_kept(density: float, total: int) -> int:
    """floor(density * total), exact for densities that decimal notation writes exactly: .29 of 100 is 29, not 28."""
    return min(total, math.floor(round(density * total, 9)))


class KeepLargest:
    """Global magnitude top-k: exactly `keep` entries, ties by lower index (names in order, then position).

    The threshold is found by two histograms over the bits of |tau|, whose order as integers is their order as numbers,
    so the vector is read twice and never held.
    """

    def __init__(self, read: Read, names: Iterable[str], keep: int, *, scale: float = 1.0) -> None:
        self.scale = scale
        names = list(names)
        high = histogram(map(read, names), upper_half, UPPER_BINS)
        keep = min(keep, int(high.sum()))
        upper, above = crossing(high, keep)
        low = histogram(map(read, names), lambda bits: (bits & 0xFFFF)[upper_half(bits) == upper], 1 << 16)
        lower, between = crossing(low, keep - above)
        self.threshold = (upper << 16) | lower
        self.ties_left = keep - above - between

    @property
    def smallest(self) -> float:
        """The magnitude of the smallest kept entry."""
        return float(torch.tensor([self.threshold], dtype=torch.int32).view(torch.float32))

    def __call__(self, name: str, tau: torch.Tensor) -> SparseRows:
        bits = _magnitude_bits(tau)
        kept = bits > self.threshold
        ties = torch.nonzero(bits == self.threshold).flatten()[: self.ties_left]
        self.ties_left -= len(ties)
        kept[ties] = True
        return _gather(tau, torch.nonzero(kept).flatten(), self.scale)


class KeepRandom:
    """DARE (Yu et al., 2024): `keep` entries drawn without replacement, values divided by the density.

    Each matrix gets its share of them, rounded at random, and draws one entry of every stretch of 1/density, rounded to
    whole entries: positions that a reader can draw again from `seed_of(name)`.
    """

    def __init__(self, sizes: Mapping[str, int], keep: int, *, seed: int, rescale: bool = True) -> None:
        self.seed = seed
        total = sum(sizes.values())
        self.scale = total / keep if rescale and keep else 1.0
        self.counts = _shares(sizes, keep, start=int(np.random.default_rng(seed).integers(max(1, total))))

    def __call__(self, name: str, tau: torch.Tensor) -> SparseRows:
        chosen = seeded_positions(self.seed_of(name), self.counts[name], tau.numel())
        return _gather(tau, torch.from_numpy(chosen), self.scale)

    def seed_of(self, name: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{self.seed} {name}".encode()).digest()[:8], "little")


def _shares(sizes: Mapping[str, int], keep: int, *, start: int) -> dict[str, int]:
    """Systematic sampling: matrix i gets floor or ceil of keep * size_i / D, and `keep` is met exactly.

    With `start` uniform in [0, D) the expectation is keep * size_i / D. Integers throughout, so D has no limit.
    """
    total, end = sum(sizes.values()), 0
    shares: dict[str, int] = {}
    for name in sorted(sizes):
        before, end = end, end + sizes[name]
        shares[name] = (start + end * keep) // total - (start + before * keep) // total if total else 0
    return shares


def _gather(tau: torch.Tensor, positions: torch.Tensor, scale: float) -> SparseRows:
    values = tau.reshape(-1)[positions] * scale
    return SparseRows(tuple(tau.shape), positions.to(index_dtype(tau.numel())), values)


def _magnitude_bits(tau: torch.Tensor) -> torch.Tensor:
    return tau.reshape(-1).contiguous().view(torch.int32) & 0x7FFFFFFF


def upper_half(bits: torch.Tensor) -> torch.Tensor:
    """Of a magnitude's bits: sign-free exponent and seven bits of fraction, its size to 1/128."""
    return bits >> 16


def chunks(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Flat views of CHUNK entries each, the last one shorter."""
    return torch.split(tensor.reshape(-1), CHUNK) if tensor.numel() else ()


def histogram(tensors: Iterable[torch.Tensor], key: Callable[[torch.Tensor], torch.Tensor], bins: int) -> torch.Tensor:
    """How many entries have each key, over all tensors; `key` is of the bits of magnitudes."""
    counts = torch.zeros(bins, dtype=torch.int64)
    for tensor in tensors:
        for chunk in chunks(tensor):
            counts += torch.bincount(key(_magnitude_bits(chunk)), minlength=bins)
    return counts


def crossing(counts: torch.Tensor, keep: int) -> tuple[int, int]:
    """The highest bin b with at least `keep` entries in bins >= b, and how many lie above it."""
    from_top = counts.flip(0).cumsum(0)
    index = int(torch.searchsorted(from_top, keep)) if keep > 0 else 0
    index = min(index, len(counts) - 1)
    return len(counts) - 1 - index, int(from_top[index - 1]) if index else 0
