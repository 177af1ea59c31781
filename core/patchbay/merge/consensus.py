"""How what is kept of the terms becomes one difference: a weighted sum, or the mean of those who agree on a sign.

`sign`: whether weights count in the election (`weighted`, mergekit) or not (`unweighted`, PEFT and the paper's code).
`tie`: what is elected where the votes sum to 0: nothing (`zero`), plus (`positive`, mergekit and PEFT), or the sign
    that most entries of the model are elected (`majority`, the paper's code).
`normalize`: whether the agreeing terms' sum is divided, by `divisor`: the sum of their weights (`weights`, mergekit),
    of the weights' sizes (`sizes`, the same unless one is negative), or how many they are (`count`, PEFT and paper).

Knows nothing of which entries were kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from patchbay.merge.elect import TOLERANCE
from patchbay.merge.linear import mean_weights
from patchbay.merge.parameters import choice
from patchbay.merge.stack import Params, Stack
from patchbay.merge.trim import Trimmed

SIGNS = ("weighted", "unweighted")
TIES = ("zero", "positive", "majority")
DIVISORS = ("sizes", "weights", "count")
ROUNDING = max(TOLERANCE, 4 * torch.finfo(torch.float32).eps)


def summed(trimmed: Trimmed, params: Params) -> Iterator[tuple[str, torch.Tensor]]:
    """sum_t w_t kept_t, by the sum of the weights where `normalize` says so.

    Raises InvalidRecipe for weights that sum to nothing and are to be divided by.
    """
    for stack, kept in trimmed():
        weights = mean_weights(stack.weights, params) if params["normalize"] else stack.weights
        yield stack.name, weighted_sum(kept, weights)


def elected(trimmed: Trimmed, params: Params) -> Iterator[tuple[str, torch.Tensor]]:
    """For every entry, of the terms whose sign is the elected one: sum_t w_t kept_t / divisor."""
    election = Election.of(params)
    majority = election.majority(trimmed())
    for stack, kept in trimmed():
        votes = election.votes(stack)
        merged, divisor = agreeing(kept, stack.weights, votes, election.signs(kept, votes, majority), election.divisor)
        yield stack.name, merged / torch.where(divisor == 0, 1.0, divisor) if election.normalize else merged


@dataclass(frozen=True, slots=True)
class Election:
    """The parameters of an election, read."""

    sign: str
    tie: str
    divisor: str
    normalize: bool

    @classmethod
    def of(cls, params: Params) -> Election:
        """Raises InvalidRecipe for a word that is none of a parameter's."""
        words = choice(params, "sign", SIGNS), choice(params, "tie", TIES), choice(params, "divisor", DIVISORS)
        return cls(*words, normalize=bool(params["normalize"]))

    def votes(self, stack: Stack) -> torch.Tensor:
        """What every term's values are multiplied by in the election, [T]."""
        return stack.weights if self.sign == "weighted" else torch.ones_like(stack.weights)

    def signs(self, values: torch.Tensor, votes: torch.Tensor, majority: int) -> torch.Tensor:
        return elected_signs(values, votes, self.tie, majority)

    def majority(self, trimmed: Iterable[tuple[Stack, torch.Tensor]]) -> int:
        """The sign of the sum of all elected signs of the model; read only where ties need it."""
        if self.tie != "majority":
            return 0
        total = sum(float(weighted_sum(kept, self.votes(stack)).sign().sum()) for stack, kept in trimmed)
        return (total > 0) - (total < 0)


def elected_signs(values: torch.Tensor, votes: torch.Tensor, tie: str, majority: int = 0) -> torch.Tensor:
    """The sign of sum_t votes_t values_t, [*shape], of values [T, *shape]; -1, 0 or 1.

    Where nothing is elected (`tie` is `zero`), what is smaller than rounding is 0.
    """
    total = weighted_sum(values, votes)
    if tie == "zero":
        size = torch.zeros_like(total)
        for value, vote in zip(values, votes, strict=True):
            size += (vote * value).abs()
        return torch.where(total.abs() > ROUNDING * size, total.sign(), 0.0)
    return torch.where(total == 0, 1.0 if tie == "positive" else float(majority), total.sign())


def agreeing(
    values: torch.Tensor, weights: torch.Tensor, votes: torch.Tensor, signs: torch.Tensor, divisor: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """sum_t weights_t values_t and the divisor, [*shape] each, over the terms whose vote is the elected sign."""
    shares = {"sizes": weights.abs(), "weights": weights, "count": torch.ones_like(weights)}[divisor]
    merged, total = torch.zeros_like(signs), torch.zeros_like(signs)
    for value, weight, vote, share in zip(values, weights, votes, shares, strict=True):
        agrees = (value * vote).sign() == signs  # where nothing is elected, those without a vote: they add nothing
        merged += torch.where(agrees, weight * value, 0.0)
        total += share * agrees
    return merged, total


def weighted_sum(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """sum_t weights_t values_t, [*shape], without a copy of the values."""
    total = torch.zeros_like(values[0])
    for value, weight in zip(values, weights, strict=True):
        total += weight * value
    return total
