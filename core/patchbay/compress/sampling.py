"""Which entries a sampled support keeps: entry i with probability p_i = min(1, c |u_i|), u the re-weighted vector.

A kept entry stands for those that are not: its value is u_i / p_i, which is +-1/c wherever p_i < 1. So the pruned
vector is u on average, whatever the density, and a kept value is one bit. Knows nothing of models and files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from patchbay.compress.prune import UPPER_BINS, crossing, histogram, upper_half

CHUNK = 1 << 20
_PASSES = 60


def solve_rate(magnitudes: Sequence[torch.Tensor], keep: int) -> float:
    """The c with sum_i min(1, c |u_i|) = keep; infinity where `keep` is at least the number of entries that are not 0.

    Newton's method on a concave function: from below it never overshoots, and ends after a few passes.
    """
    total = math.fsum(float(m.sum(dtype=torch.float64)) for m in magnitudes)
    if keep >= sum(int(torch.count_nonzero(m)) for m in magnitudes):
        return math.inf
    rate = keep / total
    for _ in range(_PASSES):
        certain, rest = 0, 0.0
        for magnitude in magnitudes:
            below = magnitude * rate < 1
            certain += magnitude.numel() - int(below.sum())
            rest += float((magnitude * below).sum(dtype=torch.float64))
        reached = certain + rate * rest
        if abs(reached - keep) <= 1e-9 * keep or rest == 0:
            break
        rate = (keep - certain) / rest
    return rate


class Kept(NamedTuple):
    """Flat positions in one tensor, increasing, and the probability that each had."""

    positions: torch.Tensor
    probabilities: torch.Tensor


class SystematicWalk:
    """Systematic sampling: entry i is kept where the running sum of p, plus one random offset, passes an integer.

    Kept entries repel each other: of any stretch of the walk it keeps the sum of its p, rounded up or down. The number
    kept over the whole walk is that of the sum, exactly, when the sum is an integer. Tensors are walked in the order
    in which they come.
    """

    def __init__(self, seed: int) -> None:
        # Away from both ends, so that rounding errors of the running sum cannot add or lose an entry at the end.
        self._sum = float(np.random.default_rng(seed).uniform(0.01, 0.99))

    def __call__(self, probabilities: torch.Tensor) -> Kept:
        flat = probabilities.reshape(-1)
        found: list[torch.Tensor] = []
        for start in range(0, flat.numel(), CHUNK):
            sums = torch.cumsum(flat[start : start + CHUNK].double(), 0) + self._sum
            floors = sums.floor()
            before = torch.cat([torch.tensor([math.floor(self._sum)], dtype=torch.float64), floors[:-1]])
            found.append(torch.nonzero(floors > before).flatten() + start)
            # Whole numbers are taken off, or the fraction would lose its digits over a long walk.
            self._sum = float(sums[-1] - floors[-1])
        positions = torch.cat(found) if found else torch.empty(0, dtype=torch.int64)
        return Kept(positions, flat[positions])


def geometric_bounds(groups: int, total: int) -> list[int]:
    """Ranks that cut `total` entries, largest first, into groups that grow by one factor from .03 % to all of them."""
    smallest = 3e-4
    fractions = [smallest ** (1 - m / max(1, groups - 1)) for m in range(groups)] if groups > 1 else [1.0]
    return [max(1, min(total, round(fraction * total))) for fraction in fractions]


def rank_values(magnitudes: Iterable[torch.Tensor], ranks: Sequence[int]) -> list[float]:
    """The magnitude at each rank (1 = the largest) over all tensors, to 1/128 of its size: from one histogram."""
    counts = histogram(magnitudes, upper_half, UPPER_BINS)
    bins = torch.tensor([crossing(counts, rank)[0] for rank in ranks], dtype=torch.int32)
    return (bins << 16).view(torch.float32).tolist()
