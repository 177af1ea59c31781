"""Which entries a sampled support keeps: entry i with probability p_i = min(1, c |u_i|), u the re-weighted vector.

A kept entry stands for those that are not: its value is u_i / p_i, which is +-1/c wherever p_i < 1. Larger ones are a
whole multiple of that, c |u_i| rounded up or down at random. So the pruned vector is u on average, whatever the
density, and a kept value is one bit and a small number that is 1 for most. Knows nothing of models and files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from patchbay.compress.prune import UPPER_BINS, crossing, histogram, upper_half

CHUNK = 1 << 20
_PASSES = 60


def solve_rate(magnitudes: Sequence[torch.Tensor], keep: int) -> float:
    """The c with sum_i min(1, c |u_i|) = keep; infinity where `keep` is at least the number of entries that are not 0.

    A histogram tells which entries may come out at 1; only those are looked at one by one.
    """
    if keep >= sum(int(torch.count_nonzero(m)) for m in magnitudes):
        return math.inf
    counts = histogram(magnitudes, upper_half, UPPER_BINS)
    taken = counts.nonzero().flatten()
    above = _newton(_edges(taken).double(), counts[taken], 0.0, keep)  # magnitudes rounded down need a larger c
    large = torch.cat([m[m * above >= 1] for m in magnitudes]).double()
    rest = math.fsum(float((m * (m * above < 1)).sum(dtype=torch.float64)) for m in magnitudes)
    return _newton(large, torch.ones(1, dtype=torch.float64), rest, keep)


def _newton(values: torch.Tensor, counts: torch.Tensor, rest: float, keep: int) -> float:
    """The c with sum_i counts_i min(1, c values_i) + c rest = keep, infinity where there is none.

    Newton's method on a concave function: from below it never overshoots, and ends after a few passes.
    """
    weighted = values * counts
    rate, certain = 0.0, 0.0
    for _ in range(_PASSES):
        below = values * rate < 1
        certain = float((counts * ~below).sum())
        slope = float((weighted * below).sum()) + rest
        if abs(certain + rate * slope - keep) <= 1e-9 * keep or certain > keep or slope <= 0:
            break
        rate = (keep - certain) / slope
    return rate if certain <= keep and slope > 0 else math.inf


class SystematicWalk:
    """Systematic sampling: entry i is kept where the running sum of p, plus one random offset, passes an integer.

    Kept entries repel each other: of any stretch of the walk it keeps the sum of its p, rounded up or down. The number
    kept over the whole walk is that of the sum, exactly, when the sum is an integer. Tensors are walked in the order
    in which they come. `stream` tells walks of one seed apart.
    """

    def __init__(self, seed: int, stream: int = 0) -> None:
        # Away from both ends, so that rounding errors of the running sum cannot add or lose an entry at the end.
        self._sum = float(np.random.default_rng([seed, stream]).uniform(0.01, 0.99))

    def __call__(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Flat positions of what is kept, increasing."""
        flat = probabilities.reshape(-1)
        found = [torch.nonzero(passed).flatten() + start for start, passed in self._passed(flat)]
        return torch.cat(found) if found else torch.empty(0, dtype=torch.int64)

    def counts(self, sizes: torch.Tensor) -> torch.Tensor:
        """fp64, how many integers the sum passes at each entry: its size rounded up or down, that size on average."""
        found = [passed for _, passed in self._passed(sizes.reshape(-1))]
        return torch.cat(found) if found else torch.empty(0, dtype=torch.float64)

    def _passed(self, flat: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """Chunk by chunk: where it starts, and how many integers are passed at each entry."""
        for start in range(0, flat.numel(), CHUNK):
            sums = torch.cumsum(flat[start : start + CHUNK].double(), 0) + self._sum
            floors = sums.floor()
            before = torch.cat([torch.tensor([math.floor(self._sum)], dtype=torch.float64), floors[:-1]])
            # Whole numbers are taken off, or the fraction would lose its digits over a long walk.
            self._sum = float(sums[-1] - floors[-1])
            yield start, floors - before


def geometric_bounds(groups: int, total: int) -> list[int]:
    """Ranks that cut `total` entries, largest first, into groups that grow by one factor from .03 % to all of them."""
    smallest = 3e-4
    fractions = [smallest ** (1 - m / max(1, groups - 1)) for m in range(groups)] if groups > 1 else [1.0]
    return [max(1, min(total, round(fraction * total))) for fraction in fractions]


def rank_values(magnitudes: Iterable[torch.Tensor], ranks: Sequence[int]) -> list[float]:
    """The magnitude at each rank (1 = the largest) over all tensors, to 1/128 of its size: from one histogram."""
    counts = histogram(magnitudes, upper_half, UPPER_BINS)
    return _edges(torch.tensor([crossing(counts, rank)[0] for rank in ranks])).tolist()


def _edges(bins: torch.Tensor) -> torch.Tensor:
    """fp32, the smallest magnitude of each bin of `upper_half`."""
    return (bins.to(torch.int32) << 16).view(torch.float32)
