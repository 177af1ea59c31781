"""What a caller may ask of `compress`. Values and their limits only; how they are met is elsewhere.

Command lines read it before they load torch, so it imports nothing of deltas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from patchbay.errors import InvalidRecipe

Support = Literal["sampled", "topk"]
Scope = Literal["retained", "all"]
ScoreName = Literal["kl", "accuracy", "balanced_accuracy", "log_likelihood"]
Optimizer = Literal["cobyla", "cmaes"]

METHODS = {
    "nps": "NPS: group weights searched on calibration inputs; sampled, over singular vectors where they pay, or top-k",
    "magnitude": "the largest entries of the whole model",
    "scaled_magnitude": "the largest entries, times the one scale that suits the calibration inputs best",
    "random": "DARE: random entries over the density; positions from a seed take no bytes",
    "bitdelta": "BitDelta: every sign and one scale a row, or a distilled one a matrix",
    "low_rank": "truncated SVD of each matrix with mixed precision",
    "lossless": "every bit, as differences of bit patterns: how small a file is that loses nothing",
}
ONE_SIZE = frozenset({"bitdelta", "lossless"})
VALUES = ("auto", "int8", "int4", "bf16", "fp32", "sign")
MAX_EVALUATIONS = 10_000


@dataclass(frozen=True, slots=True)
class Options:
    """How to compress.

    `density`: fraction of the prunable entries that is kept, or where a method has other parts (low rank, singular
    vectors beside a sampled support) what stands for as many bits; `target_size`: an upper bound on the file's bytes,
    and `target_kl`: on the score, either of which chooses the density. `scale` multiplies the kept values (magnitude).
    `values`: the encoding of kept values, `auto` the method's own. `exact`: raw bits wherever base + delta does not
    round to the fine-tune. The others are NPS's: `groups` M, `evaluations` of the search, `optimizer`, `support`,
    `scope` of the groups of the top-k support, and `score` on the calibration inputs. `distil`: tune what costs no
    bytes on the calibration inputs at the end, for the methods that do (sampled NPS, BitDelta). BitDelta and lossless
    have one size: of the three numbers they take `target_size` alone, and refuse what is smaller.
    """

    method: str = "nps"
    density: float | None = None
    target_size: int | None = None
    target_kl: float | None = None
    values: str = "auto"
    scale: float = 1.0
    seed: int = 0
    exact: bool = False
    support: Support = "sampled"
    scope: Scope = "retained"
    groups: int = 8
    evaluations: int = 40
    optimizer: Optimizer = "cobyla"
    score: ScoreName = "kl"
    merge_statistics: bool = True
    distil: bool = True

    def __post_init__(self) -> None:
        _known("method", self.method, METHODS)
        _known("values", self.values, VALUES)
        _known("support", self.support, ("sampled", "topk"))
        _known("scope", self.scope, ("retained", "all"))
        _known("optimizer", self.optimizer, ("cobyla", "cmaes"))
        _known("score", self.score, ("kl", "accuracy", "balanced_accuracy", "log_likelihood"))
        self._check_size()
        if not math.isfinite(self.scale):
            raise InvalidRecipe(f"scale {self.scale} is not a finite number", param="scale")
        if self.scale != 1.0 and self.method != "magnitude":
            raise InvalidRecipe(f"{self.method} finds its own scale: only magnitude takes one", param="scale")
        if self.values != "auto" and self.method == "lossless":
            raise InvalidRecipe("lossless keeps bits: it has no encoding of values to choose", param="values")
        if self.seed < 0:
            raise InvalidRecipe(f"seed {self.seed} is negative", param="seed")
        if not 1 <= self.groups <= 256:
            raise InvalidRecipe(f"{self.groups} groups: 1 to 256 are possible", param="groups")
        if not 0 <= self.evaluations <= MAX_EVALUATIONS:
            raise InvalidRecipe(
                f"{self.evaluations} evaluations: 0 to {MAX_EVALUATIONS} are possible", param="evaluations"
            )

    @property
    def keeps_bits(self) -> bool:
        """Whether the fine-tune can be had back bit for bit."""
        return self.exact or self.method == "lossless"

    def _check_size(self) -> None:
        given = [name for name in ("density", "target_size", "target_kl") if getattr(self, name) is not None]
        if len(given) > 1:
            raise InvalidRecipe(f"{' and '.join(given)} both decide the size: give one of them", param=given[1])
        if self.method in ONE_SIZE and given and self.target_size is None:
            raise InvalidRecipe(f"{self.method} has one size: leave {given[0]} out", param=given[0])
        if self.density is not None and not 0.0 <= self.density <= 1.0:
            raise InvalidRecipe(f"density {self.density} is not between 0 and 1", param="density")
        if self.target_size is not None and self.target_size <= 0:
            raise InvalidRecipe(f"target_size {self.target_size} is not a number of bytes", param="target_size")
        if self.target_kl is not None and not (math.isfinite(self.target_kl) and self.target_kl > 0):
            raise InvalidRecipe(f"target_kl {self.target_kl} is not a positive number", param="target_kl")


def _known(param: str, value: str, names: object) -> None:
    known = list(names)  # type: ignore[call-overload]
    if value not in known:
        raise InvalidRecipe(f"unknown {param} {value!r}; known: {', '.join(known)}", param=param)
