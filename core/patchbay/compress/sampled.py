"""NPS with a sampled support: the re-weighted task vector, pruned at random but unbiased.

NPS multiplies each magnitude group of the vector by a weight and keeps the largest entries. Here the re-weighted vector
u = w * tau is sampled instead: entry i with probability proportional to |u_i|, kept as +- one constant, or a multiple
of it where |u_i| is larger. A weight says how much of a group arrives, and by that how often its entries are kept: the
byte budget holds whatever the weights.
Weights (0, .., 0, s, .., s) are "sampled within the largest R, times s"; the search starts from the best of those.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch

from patchbay.compress.budget import entropy
from patchbay.compress.parts import Part, SparsePart, Vector
from patchbay.compress.prune import CHUNK, chunks
from patchbay.compress.sampling import SystematicWalk, geometric_bounds, rank_values, solve_rate
from patchbay.delta import SparseRows
from patchbay.delta.codecs import index_dtype
from patchbay.delta.codecs.digits import MAX_KINDS

EVENLY = 0.87  # a systematic walk's positions and signs, over those of independent draws: measured on files
WHOLE = 8.0  # bits of the sign and value of an entry that is kept in full
KINDS = 1 << 12  # of multiples that are told apart: larger ones are as rare
Scales = Mapping[str, torch.Tensor]  # name -> importance of an input column, broadcastable to the matrix


class Weighted(NamedTuple):
    """The entries of one matrix whose weight is not 0: flat positions (None for all), and |u| there, times the column's
    importance.
    """

    positions: torch.Tensor | None
    magnitudes: torch.Tensor


@dataclass
class Sampled:
    """The draws from one task vector. `columns` weighs the input columns."""

    vector: Vector
    groups: int
    columns: Scales = field(default_factory=dict)

    def __post_init__(self) -> None:
        ranks = geometric_bounds(self.groups, max(1, self.vector.numel))
        # Group 0 holds the largest entries; the last edge is below all of them.
        self.edges = torch.tensor([*rank_values(map(self._importance, self.vector.names), ranks)[:-1], 0.0])

    def parts(self, weights: Sequence[float], keep: int, seed: int) -> Iterator[tuple[str, Part]]:
        """All parts of one draw."""
        for name, drawn in self.draws(weights, keep, seed):
            yield name, drawn(self.vector.read(name))

    def draws(
        self, weights: Sequence[float], keep: int, seed: int
    ) -> Iterator[tuple[str, Callable[[torch.Tensor], SparsePart]]]:
        """One draw of the re-weighted vector: exactly `keep` entries, or all that are not zero. Each matrix's is asked
        for with its difference.
        """
        chosen = torch.tensor(weights, dtype=torch.float32)
        weighted = {name: self._weigh(name, chosen) for name in self.vector.names}
        rate = solve_rate([part.magnitudes for part in weighted.values()], keep) if keep else 0.0
        walk, more = SystematicWalk(seed), SystematicWalk(seed, stream=1)
        for name in self.vector.names:
            part = weighted.pop(name)
            drawn = walk(part.magnitudes, rate)
            size = part.magnitudes[drawn]
            positions = (
                drawn.to(index_dtype(self.vector.sizes[name])) if part.positions is None else part.positions[drawn]
            )
            times = 1 + more.counts((size.double() * rate - 1).clamp_(min=0)) if math.isfinite(rate) else None
            del part
            yield name, partial(self._part, name, positions, size, times, rate)

    def cost(self, weights: Sequence[float], keep: int) -> float:
        """Bits that `keep` entries of the re-weighted vector will take, about: positions, signs and multiples.

        Matrices that keep more pay for matrices that keep less.
        """
        if not keep:
            return 0.0
        chosen = torch.tensor(weights, dtype=torch.float32)
        weighted = {name: self._weigh(name, chosen).magnitudes for name in self.vector.names}
        rate = solve_rate(list(weighted.values()), keep)
        return sum(_bits(weighted[name], rate, size) for name, size in self.vector.sizes.items())

    def _part(
        self,
        name: str,
        positions: torch.Tensor,
        size: torch.Tensor,
        times: torch.Tensor | None,
        rate: float,
        tau: torch.Tensor,
    ) -> SparsePart:
        """Kept in full (no `times`), or with multiples that no file holds, entries keep a value of their own."""
        scale = self._scale(name).expand(tau.shape).reshape(-1)[positions]
        exact = times is None or float(times.max() if len(times) else 1) > MAX_KINDS
        values = size / scale if exact or times is None else (times / (rate * scale.double())).float()
        rows = SparseRows(tuple(tau.shape), positions, torch.copysign(values, tau.reshape(-1)[positions]))
        return SparsePart(rows, "int8") if exact else SparsePart(rows, self._encoding(name), times)

    def _weigh(self, name: str, weights: torch.Tensor) -> Weighted:
        importance = self._importance(name).reshape(-1)
        # Where most entries have weight 0, those are dropped before anything is computed about them.
        lowest = float(self.edges[int(torch.nonzero(weights).max())]) if bool(weights.any()) else math.inf
        positions = None
        if lowest > 0:
            positions = _where_at_least(importance, lowest)
            importance = importance[positions]
        for chunk in chunks(importance):
            group = torch.bucketize(chunk, self.edges.flip(0), right=True)  # 1 = the smallest
            chunk *= weights.flip(0)[group - 1]
        return Weighted(positions, importance)

    def _importance(self, name: str) -> torch.Tensor:
        magnitude = self.vector.read(name).abs_()
        return magnitude.mul_(self.columns[name]) if name in self.columns else magnitude

    def _scale(self, name: str) -> torch.Tensor:
        return self.columns.get(name, torch.ones(1))

    def _encoding(self, name: str) -> str:
        if name not in self.columns:
            return "sign_tensor"
        return "sign_column_log" if self.columns[name].shape[0] == 1 else "sign_row"


def _bits(magnitudes: torch.Tensor, rate: float, size: int) -> float:
    """What the draw of one matrix takes: expected counts of kept entries and of every multiple."""
    if not math.isfinite(rate):
        nonzero = int(torch.count_nonzero(magnitudes))
        return EVENLY * size * entropy(nonzero / size) + WHOLE * nonzero
    kinds = torch.zeros(KINDS, dtype=torch.float64)
    for piece in chunks(magnitudes):
        expected = piece.double().mul_(rate)
        certain = expected[expected > 1].clamp_(max=KINDS - 1)
        lower = certain.floor()
        kinds += torch.bincount(lower.long(), 1 - (certain - lower), KINDS)
        kinds += torch.bincount(lower.long() + 1, certain - lower, KINDS + 1)[:KINDS]
        kinds[1] += expected[expected <= 1].sum()
    count = min(float(size), float(kinds.sum()))
    shares = kinds[kinds > 0] / kinds.sum()
    return EVENLY * (size * entropy(count / size) + count) - count * float((shares * shares.log2()).sum())


def region_weights(groups: int, inside: int, scale: float) -> tuple[float, ...]:
    """`scale` for the first `inside` groups, those of the largest entries, 0 for the others."""
    return (scale,) * inside + (0.0,) * (groups - inside)


def _where_at_least(flat: torch.Tensor, lowest: float) -> torch.Tensor:
    """Positions of entries of at least `lowest`."""
    index = index_dtype(flat.numel())
    found = [
        (torch.nonzero(chunk >= lowest).flatten() + number * CHUNK).to(index)
        for number, chunk in enumerate(chunks(flat))
    ]
    return torch.cat(found) if found else torch.empty(0, dtype=index)
