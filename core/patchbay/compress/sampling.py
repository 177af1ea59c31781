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

from patchbay.compress.prune import UPPER_BINS, chunks, crossing, histogram, upper_half

_PASSES = 60


def solve_rate(magnitudes: Sequence[torch.Tensor], keep: int) -> float:
    """The c with sum_i min(1, c |u_i|) = keep; infinity where `keep` is at least the number of entries that are not 0.

    A histogram tells which entries may come out at 1; only those are looked at one by one.
    """
    pieces = [piece for magnitude in magnitudes for piece in chunks(magnitude)]
    if keep >= sum(int(torch.count_nonzero(piece)) for piece in pieces):
        return math.inf
    counts = histogram(pieces, upper_half, UPPER_BINS)
    taken = counts.nonzero().flatten()
    above = _newton(_edges(taken).double(), counts[taken], 0.0, keep)  # magnitudes rounded down need a larger c
    large = torch.cat([piece[piece * above >= 1] for piece in pieces]).double()
    rest = math.fsum(float((piece * (piece * above < 1)).sum(dtype=torch.float64)) for piece in pieces)
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

    def __call__(self, magnitudes: torch.Tensor, rate: float = 1.0) -> torch.Tensor:
        """Flat positions of what is kept with probability min(1, rate |u|), increasing. 0 is never kept."""
        found = [torch.nonzero(passed).flatten() + start for start, passed in self._passed(magnitudes, rate, 1.0)]
        return torch.cat(found) if found else torch.empty(0, dtype=torch.int64)

    def counts(self, sizes: torch.Tensor) -> torch.Tensor:
        """fp64, how many integers the sum passes at each entry: its size rounded up or down, that size on average."""
        found = [passed for _, passed in self._passed(sizes)]
        return torch.cat(found) if found else torch.empty(0, dtype=torch.float64)

    def _passed(
        self, sizes: torch.Tensor, rate: float = 1.0, most: float = math.inf
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """Chunk by chunk: where it starts, and how many integers are passed at each entry."""
        start = 0
        for chunk in chunks(sizes):
            steps = torch.nan_to_num(chunk.double() * rate, nan=0.0).clamp_(max=most)  # 0 times infinity is 0
            sums = torch.cumsum(steps, 0) + self._sum
            floors = sums.floor()
            before = torch.cat([torch.tensor([math.floor(self._sum)], dtype=torch.float64), floors[:-1]])
            # Whole numbers are taken off, or the fraction would lose its digits over a long walk.
            self._sum = float(sums[-1] - floors[-1])
            yield start, floors - before
            start += len(chunk)


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
