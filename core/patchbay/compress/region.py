"""Which part of a task vector a sampled support draws from, when no calibration inputs tell.

Entries outside are lost (bias), entries inside are noisy (variance), the more so the more of them share the kept ones.
Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from patchbay.compress.parts import Vector
from patchbay.compress.prune import chunks

# How much a unit of variance costs beside one of bias, over rms(tau) / rms(base). From the best regions of six
# fine-tunes of two models at three densities (core/LOG.md): larger changes tolerate less noise.
PRICE_OF_NOISE = 0.5
LONGER = 1.5  # where more than half of the energy is lost, what is left makes up for some of it


@dataclass(frozen=True, slots=True)
class Regions:
    """For the 1, 2, .. first groups together: `magnitude` = sum |tau|, `energy` = sum tau^2, fp64."""

    magnitude: torch.Tensor
    energy: torch.Tensor
    ratio: float

    @classmethod
    def of(cls, vector: Vector, edges: torch.Tensor) -> Regions:
        """`edges`: the smallest magnitude of each group, the largest entries' first."""
        groups = len(edges)
        sums = torch.zeros(2, groups, dtype=torch.float64)
        for name in vector.names:
            for chunk in chunks(vector.read(name)):
                size = chunk.abs().double()
                group = torch.bucketize(chunk.abs(), edges.flip(0), right=True) - 1  # 0 = the smallest
                for row, values in zip(sums, (size, size.square()), strict=True):
                    row += torch.bincount(group.clamp_(min=0), weights=values, minlength=groups)
        magnitude, energy = sums.flip(1).cumsum(1)
        return cls(magnitude, energy, vector.ratio)

    def best(self, keep: int, allowed: Sequence[int]) -> tuple[int, float]:
        """How many groups, one of `allowed`, with the lowest bias + price * variance where `keep` are drawn, and the
        factor that they are drawn with.

        Sampled in proportion to its size, an entry has the variance |tau| (sum |tau|) / keep - tau^2.
        """
        lost = self.energy[-1] - self.energy
        variance = self.magnitude.square() / max(1, keep) - self.energy
        cost = lost + PRICE_OF_NOISE * self.ratio * variance.clamp(min=0)
        inside = min(allowed, key=lambda number: float(cost[number - 1]))
        return inside, LONGER if lost[inside - 1] > self.energy[-1] / 2 else 1.0
