"""The largest of many numbers, exactly as many as asked for, one tensor in memory at a time.

Between equal numbers the earlier one wins: in the order of tensors, and of entries in a tensor. Knows nothing of what
the numbers measure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch

_BINS = 2**16  # of the upper and of the lower 16 bits of an fp32 number; their order is that of numbers from 0 up


@dataclass(frozen=True, slots=True)
class Cut:
    """What is kept of one sequence of numbers: those above `threshold`, and the first `ties` of those that equal it.

    `threshold` is an fp32 number's bits. `stands_for`: how many of the numbers that are not 0 there are for each that
    is kept.
    """

    threshold: int
    ties: int
    stands_for: float

    def mask(self, scores: torch.Tensor) -> tuple[torch.Tensor, Cut]:
        """Which of the next tensor's scores, fp32 [n], are kept, bool [n]; and the cut for those after it."""
        bits = scores.view(torch.int32)
        kept = bits > self.threshold
        equal = torch.nonzero(bits == self.threshold).flatten()[: self.ties]
        kept[equal] = True
        return kept, replace(self, ties=self.ties - len(equal))


NOTHING = Cut(threshold=2**31 - 1, ties=0, stands_for=1.0)


def largest(scores: torch.Tensor, count: int) -> Cut:
    """Keeps the `count` largest of fp32 [n], n >= count; scores are 0 or more."""
    if not count:
        return NOTHING
    threshold = scores.kthvalue(len(scores) - count + 1).values
    ties = count - int(torch.count_nonzero(scores > threshold))
    return Cut(int(threshold.view(torch.int32)), ties, _stands_for(int(torch.count_nonzero(scores)), count))


def find_cuts(read: Callable[[], Iterable[torch.Tensor]], count: Callable[[int, int], int]) -> list[Cut]:
    """For scores in T rows, [T, n_1], [T, n_2] ..., read twice: row t's `count(t, n_1 + n_2 + ...)` largest."""
    upper, positive = _upper_counts(read())
    if not len(upper):
        return []
    counts = [count(row, total) for row, total in enumerate(upper.sum(1).tolist())]
    bins, rest = zip(*map(_crossing, upper, counts), strict=True)
    lower = _lower_counts(read(), bins)
    return [
        _cut(lower[row], bins[row], rest[row], _stands_for(positive[row], wanted)) if wanted else NOTHING
        for row, wanted in enumerate(counts)
    ]


def _cut(lower: torch.Tensor, upper_bin: int, rest: int, stands_for: float) -> Cut:
    lower_bin, ties = _crossing(lower, rest)
    return Cut((upper_bin << 16) + lower_bin, ties, stands_for)


def _stands_for(positive: int, wanted: int) -> float:
    return positive / min(wanted, positive) if positive else 1.0


def _upper_counts(tensors: Iterable[torch.Tensor]) -> tuple[torch.Tensor, list[int]]:
    """Histograms of the upper bits, [T, bins], and how many scores of each row are not 0."""
    counts, positive = torch.zeros(0, _BINS, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    for scores in tensors:
        if not len(counts):
            counts, positive = counts.new_zeros(len(scores), _BINS), positive.new_zeros(len(scores))
        positive += torch.count_nonzero(scores, dim=1)
        for row, bits in enumerate(scores.view(torch.int32)):
            counts[row] += torch.bincount(bits >> 16, minlength=_BINS)
    return counts, positive.tolist()


def _lower_counts(tensors: Iterable[torch.Tensor], bins: tuple[int, ...]) -> torch.Tensor:
    """Histograms of the lower bits, [T, bins], of the scores whose upper bits are `bins[t]`."""
    counts = torch.zeros(len(bins), _BINS, dtype=torch.int64)
    for scores in tensors:
        for row, bits in enumerate(scores.view(torch.int32)):
            there = bits[bits >> 16 == bins[row]]
            counts[row] += torch.bincount(there & (_BINS - 1), minlength=_BINS)
    return counts


def _crossing(counts: torch.Tensor, rank: int) -> tuple[int, int]:
    """The bin of the number of this rank, 1 = the largest, and its rank in there."""
    so_far = counts.flip(0).cumsum(0)
    from_top = int(torch.searchsorted(so_far, max(1, rank)))
    before = int(so_far[from_top - 1]) if from_top else 0
    return len(counts) - 1 - from_top, rank - before
