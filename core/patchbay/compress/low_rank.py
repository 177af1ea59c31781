"""A matrix difference as a few singular vectors, the leading ones stored precisely and the tail coarsely.

The idea of Delta-CoMe (Ping et al., 2024). Knows nothing of files: what is chosen here is written by others.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import combinations_with_replacement, pairwise

import numpy as np
import numpy.typing as npt
import torch

from patchbay.delta.codecs import VALUES
from patchbay.delta.low_rank import FactorPair

Factors = tuple[torch.Tensor, torch.Tensor]
Ranks = npt.NDArray[np.int64]  # [splits, encodings]

# From precise to coarse. A column is a singular vector, so one scale a column is one scale a vector.
ENCODINGS = [name for name in ("bf16", "int8", "int4", "sign_column") if name in VALUES]
PARTS = 12  # the budget is dealt out in twelfths
EXACT_SIDE = 1024  # matrices up to this get all singular vectors: seconds
OVERSAMPLING = 16
POWER_ITERATIONS = 4


def low_rank_bands(tau: torch.Tensor, bits: float) -> list[FactorPair]:
    """[(left [m, r_b], right [n, r_b], values)] with tau ~ sum_b left right^T and sum_b r_b <= min(m, n).

    `tau` [m, ...] is finite fp32 and taken as [m, n]. Each band's factors are singular vectors times the root of their
    value, to be stored in the encoding `values`; all of them together take at most bits * m * n / 8 bytes, scales
    included. No bands where the budget does not pay for one vector or tau is zero.
    """
    matrix = tau.reshape(len(tau), -1)
    rank = affordable_rank(matrix.shape, bits)
    return split_bands(*singular_factors(matrix, rank), bits) if rank and tau.any() else []


def affordable_rank(shape: Sequence[int], bits: float) -> int:
    """The most vectors that `bits` an entry can pay for."""
    rows, columns = shape
    return max(_affordable(cost, _budget(rows, columns, bits)) for cost in _costs(rows, columns))


def split_bands(left: torch.Tensor, right: torch.Tensor, bits: float) -> list[FactorPair]:
    """Factors as `singular_factors` gives them, dealt out among the encodings: `low_rank_bands` says how."""
    rows, columns = len(left), len(right)
    splits = _splits(_budget(rows, columns, bits), rows, columns, left.shape[1])
    ends: list[int] = np.cumsum([0, *_best(splits, left, right)]).tolist()
    return [
        (left[:, start:end].contiguous(), right[:, start:end].contiguous(), name)
        for name, (start, end) in zip(ENCODINGS, pairwise(ends), strict=True)
        if end > start
    ]


def stored_bytes(encoding: str, rank: int, shape: Sequence[int]) -> int:
    """What both factors of a band take, before they are compressed further."""
    codec = VALUES[encoding]
    return sum(codec.max_bytes(side * rank, (side, rank)) for side in shape) if rank else 0


def as_stored(factor: torch.Tensor, encoding: str) -> torch.Tensor:
    """The factor as it is read back."""
    codec = VALUES[encoding]
    positions = np.arange(factor.numel())
    stored = codec.encode(factor.flatten().numpy(), positions, tuple(factor.shape))
    return torch.from_numpy(codec.decode(stored, positions, tuple(factor.shape))).reshape(factor.shape)


def singular_factors(matrix: torch.Tensor, rank: int) -> Factors:
    """Singular vectors times the root of their singular value, largest first: [m, r] and [n, r], r <= rank."""
    u, s, v = _some_vectors(matrix, rank + OVERSAMPLING) if not is_exact(matrix.shape, rank) else _svd(matrix)
    rank = min(rank, int((s > s[0] * max(matrix.shape) * torch.finfo(s.dtype).eps).sum()))
    root = s[:rank].sqrt()
    return u[:, :rank] * root, v[:, :rank] * root


def is_exact(shape: Sequence[int], rank: int) -> bool:
    """Whether that many vectors are found by a whole decomposition, of which fewer would be the first."""
    side = min(shape)
    return side <= EXACT_SIDE or rank + OVERSAMPLING >= side // 4


def _budget(rows: int, columns: int, bits: float) -> int:
    return int(bits * rows * columns / 8)


@cache
def _costs(rows: int, columns: int) -> tuple[tuple[int, ...], ...]:
    """For each encoding the bytes of 0, 1, .. vectors."""
    ranks = range(min(rows, columns) + 1)
    return tuple(tuple(stored_bytes(name, rank, (rows, columns)) for rank in ranks) for name in ENCODINGS)


def _affordable(cost: Sequence[int], budget: int) -> int:
    """The highest rank that fits; `cost` of 0, 1, .. vectors does not fall."""
    return max(0, bisect_right(cost, budget) - 1)


def _svd(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u, s, vh.T


def _some_vectors(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Randomised subspace iteration (Halko et al., 2011). torch.svd_lowrank draws from the global generator."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(matrix @ torch.randn(matrix.shape[1], rank, generator=generator)).Q
    for _ in range(POWER_ITERATIONS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    u, s, v = _svd(basis.T @ matrix)
    return basis @ u, s, v


def _best(splits: Ranks, left: torch.Tensor, right: torch.Tensor) -> list[int]:
    """One rank an encoding. The squared error of a split is what coding costs its vectors plus the vectors left out.

    Errors of different vectors are taken as orthogonal, so that a split's error is a difference of prefix sums.
    """
    energy = left.double().square().sum(0).square()
    ends = np.cumsum(np.pad(splits, ((0, 0), (1, 0))), axis=1)
    error = (energy.sum() - _prefix_sums(energy)).numpy()[ends[:, -1]]
    for number, name in enumerate(ENCODINGS):
        coded = _prefix_sums(energy * _coding_errors(left, right, name)).numpy()
        error = error + coded[ends[:, number + 1]] - coded[ends[:, number]]
    best: list[int] = splits[int(error.argmin())].tolist()
    return best


@lru_cache(maxsize=256)
def _splits(budget: int, rows: int, columns: int, most: int) -> Ranks:
    """Ranks for every way to deal the budget out among the encodings; what one cannot use goes to the next."""
    costs, found = _costs(rows, columns), []
    for cuts in combinations_with_replacement(range(PARTS + 1), len(ENCODINGS) - 1):
        ranks: list[int] = []
        left_over = budget
        for cost, cut in zip(costs, (*cuts, PARTS), strict=True):
            allowance = left_over - budget * (PARTS - cut) // PARTS
            rank = min(_affordable(cost, allowance), most - sum(ranks))
            left_over -= cost[rank]
            ranks.append(rank)
        found.append(ranks)
    return np.array(found)


def _coding_errors(left: torch.Tensor, right: torch.Tensor, encoding: str) -> torch.Tensor:
    """float64 [r]: |u v^T - u' v'^T|^2 for each pair of unit vectors and what is read back of them."""
    u, v = (factor / factor.norm(dim=0).clamp(min=torch.finfo(factor.dtype).tiny) for factor in (left, right))
    stored_u, stored_v = as_stored(u, encoding).double(), as_stored(v, encoding).double()
    agreement = (u * stored_u).sum(0) * (v * stored_v).sum(0)
    energy = stored_u.square().sum(0) * stored_v.square().sum(0)
    error: torch.Tensor = 1 - 2 * agreement + energy
    return error


def _prefix_sums(values: torch.Tensor) -> torch.Tensor:
    return torch.cat([values.new_zeros(1), values.cumsum(0)])
