"""The methods that NPS is measured against, each one a compression that people use.

Magnitude pruning; the same with one scale; DARE (arXiv 2311.03099); BitDelta (2402.10193); truncated SVD with mixed
precision, the idea of Delta-CoMe (2406.08903).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from patchbay.compress.low_rank import low_rank_bands
from patchbay.compress.options import Options
from patchbay.compress.parts import DensePart, Distils, LowRankPart, Part, Pruner, SparsePart
from patchbay.compress.problem import Problem
from patchbay.compress.prune import KeepLargest, KeepRandom, num_kept
from patchbay.compress.search import Point, maximise
from patchbay.delta.delta import LOSSLESS
from patchbay.errors import InvalidRecipe

Params = Mapping[str, int | float | str | bool]
MAX_SCALE = 8.0
LOW_RANK_BITS = 4


@dataclass
class Magnitude:
    """The largest entries of the whole model. `scale` multiplies them."""

    problem: Problem
    options: Options
    distils: Distils = "nothing"
    scale: float = 1.0

    def __post_init__(self) -> None:
        self.scale = self.options.scale

    def choose(self, density: float) -> None:
        """Nothing to choose."""

    def tune(self, density: float) -> None:
        """Nothing to tune."""

    def pruner(self, density: float) -> Pruner:
        return self._scaled(density, self.scale)

    @property
    def params(self) -> Params:
        return {"scale": self.scale} if self.scale != 1.0 else {}

    def _scaled(self, density: float, scale: float) -> Pruner:
        vector = self.problem.vector
        keep = KeepLargest(vector.read, vector.names, num_kept(density, vector.numel), scale=scale)
        values = "int4" if self.options.values == "auto" else self.options.values
        return lambda name, tau: SparsePart(keep(name, tau), values)


class ScaledMagnitude(Magnitude):
    """The largest entries, times the scale with the best score on the calibration inputs."""

    def tune(self, density: float) -> None:
        if self.problem.judge is None:
            raise InvalidRecipe(
                "scaled_magnitude finds its scale on calibration inputs: give some", param="calibration"
            )
        if self.problem.record.left == 0:
            raise InvalidRecipe("scaled_magnitude needs at least one evaluation", param="evaluations")

        def score(point: Point) -> float:
            return self.problem.score(point, lambda: self.problem.prune(self._scaled(density, point[0])))

        budget = self.problem.record.left
        found = maximise(score, (1.0,), method="cobyla", budget=budget, bounds=(0.1, MAX_SCALE))
        self.scale = found.best.point[0]


@dataclass
class _Untuned:
    """A method that finds nothing out on calibration inputs."""

    problem: Problem
    options: Options
    distils: Distils = "nothing"

    def choose(self, density: float) -> None:
        """Nothing to choose."""

    def tune(self, density: float) -> None:
        """Nothing to tune."""

    @property
    def params(self) -> Params:
        return {}


@dataclass
class Random(_Untuned):
    """DARE with positions drawn from a seed, which a file stores instead of them."""

    def pruner(self, density: float) -> Pruner:
        vector, options = self.problem.vector, self.options
        keep = KeepRandom(vector.sizes, num_kept(density, vector.numel), seed=options.seed)
        values = "int4" if options.values == "auto" else options.values
        return lambda name, tau: SparsePart(keep(name, tau), values, seed=keep.seed_of(name))


@dataclass
class BitDelta(_Untuned):
    """Every entry's sign and one scale a row, its mean magnitude: the constant with the least squared error."""

    distils: Distils = "scales"

    def pruner(self, density: float) -> Pruner:
        return lambda name, tau: DensePart(_signs(tau), "sign_row")


@dataclass
class LowRank(_Untuned):
    """Singular vectors of each matrix. The density is read as bits: density 1 is 4 bits an entry."""

    def pruner(self, density: float) -> Pruner:
        def prune(name: str, tau: torch.Tensor) -> Part:
            bands = low_rank_bands(tau, LOW_RANK_BITS * density)
            return LowRankPart(tuple(tau.shape), tuple(bands)) if bands else SparsePart.empty(tuple(tau.shape))

        return prune

    @property
    def params(self) -> Params:
        return {"bits": LOW_RANK_BITS}


@dataclass
class Lossless(_Untuned):
    """Every tensor to the bit: what the others' sizes are worth is seen against this one."""

    def pruner(self, density: float) -> Pruner:
        return lambda name, tau: DensePart(tau, LOSSLESS)


def _signs(tau: torch.Tensor) -> torch.Tensor:
    rows = tau.flatten(1)
    return torch.copysign(rows.abs().mean(1, keepdim=True), rows).reshape(tau.shape)
