"""NPS with a sampled support: the re-weighted task vector, pruned at random but unbiased.

NPS multiplies each magnitude group of the vector by a weight and keeps the largest entries. Here the re-weighted vector
u = w * tau is sampled instead: entry i with probability proportional to |u_i|, kept as +- one constant, or a multiple
of it where |u_i| is larger. A weight says how much of a group arrives, and by that how often its entries are kept: the
byte budget holds whatever the weights.
Weights (0, .., 0, s, .., s) are "sampled within the largest R, times s"; the search starts from the best of those.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from patchbay.compress.parts import Part, SparsePart, Vector
from patchbay.compress.sampling import SystematicWalk, geometric_bounds, rank_values, solve_rate
from patchbay.delta import SparseRows
from patchbay.delta.codecs.digits import MAX_KINDS

Scales = Mapping[str, torch.Tensor]  # name -> importance of an input column, broadcastable to the matrix


class Weighted(NamedTuple):
    """The entries of one matrix whose weight is not 0: flat positions and |u| there, times the column's importance."""

    positions: torch.Tensor
    magnitudes: torch.Tensor


@dataclass
class Sampled:
    """The candidates of one task vector at one number of kept entries. `columns` weighs the input columns."""

    vector: Vector
    groups: int
    columns: Scales = field(default_factory=dict)

    def __post_init__(self) -> None:
        ranks = geometric_bounds(self.groups, max(1, self.vector.numel))
        # Group 0 holds the largest entries; the last edge is below all of them.
        self.edges = torch.tensor([*rank_values(map(self._importance, self.vector.names), ranks)[:-1], 0.0])

    def parts(self, weights: Sequence[float], keep: int, seed: int) -> Iterator[tuple[str, Part]]:
        """One draw of the re-weighted vector: exactly `keep` entries, or all that are not zero."""
        chosen = torch.tensor(weights, dtype=torch.float32)
        weighted = {name: self._weigh(name, chosen) for name in self.vector.names}
        rate = solve_rate([part.magnitudes for part in weighted.values()], keep) if keep else 0.0
        walk, more = SystematicWalk(seed), SystematicWalk(seed, stream=1)
        for name in self.vector.names:
            part = weighted.pop(name)
            drawn = walk(torch.nan_to_num(part.magnitudes * rate, nan=0.0).clamp_(max=1))
            size = part.magnitudes[drawn]
            times = 1 + more.counts((size.double() * rate - 1).clamp_(min=0)) if math.isfinite(rate) else None
            yield name, self._part(name, part.positions[drawn], size, times, rate)

    def _part(
        self, name: str, positions: torch.Tensor, size: torch.Tensor, times: torch.Tensor | None, rate: float
    ) -> SparsePart:
        """Kept in full (no `times`), or with multiples that no file holds, entries keep a value of their own."""
        tau = self.vector.read(name)
        scale = self._scale(name).expand(tau.shape).reshape(-1)[positions]
        exact = times is None or float(times.max() if len(times) else 1) > MAX_KINDS
        values = size / scale if exact or times is None else (times / (rate * scale.double())).float()
        rows = SparseRows(tuple(tau.shape), positions, torch.copysign(values, tau.reshape(-1)[positions]))
        return SparsePart(rows, "int8") if exact else SparsePart(rows, self._encoding(name), times)

    def _weigh(self, name: str, weights: torch.Tensor) -> Weighted:
        importance = self._importance(name).reshape(-1)
        # Most entries have weight 0: they are dropped before anything is computed about them.
        lowest = float(self.edges[int(torch.nonzero(weights).max())]) if bool(weights.any()) else math.inf
        positions = torch.nonzero((importance >= lowest) & (importance > 0)).flatten()
        positions = positions.to(torch.int32 if importance.numel() < 2**31 else torch.int64)
        kept = importance[positions]
        group = torch.bucketize(kept, self.edges.flip(0), right=True)  # 1 = the smallest
        return Weighted(positions, kept * weights.flip(0)[group - 1])

    def _importance(self, name: str) -> torch.Tensor:
        magnitude = self.vector.read(name).abs()
        return magnitude.mul_(self.columns[name]) if name in self.columns else magnitude

    def _scale(self, name: str) -> torch.Tensor:
        return self.columns.get(name, torch.ones(1))

    def _encoding(self, name: str) -> str:
        if name not in self.columns:
            return "sign_tensor"
        return "sign_column_log" if self.columns[name].shape[0] == 1 else "sign_row"


def region_weights(groups: int, inside: int, scale: float) -> tuple[float, ...]:
    """`scale` for the first `inside` groups, those of the largest entries, 0 for the others."""
    return (scale,) * inside + (0.0,) * (groups - inside)
