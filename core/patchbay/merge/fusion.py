"""NPS fusion (arXiv 2505.18713): each entry is divided by the number of terms that kept it.

The same formula as for files in `patchbay.compress`. Knows nothing of how the terms were pruned.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from patchbay.errors import InvalidRecipe
from patchbay.merge.stack import Params, Stacks

CANCELLED = 1e-6  # a sum of weights smaller than this share of their sizes is no divisor


def nps(stacks: Stacks, params: Params) -> Iterator[tuple[str, torch.Tensor]]:
    """sum_t w_t tau_t / max(1, number of terms whose entry is not 0), elementwise.

    `literal` is equation 7 as it is printed, sum_t w_t tau_t / sum_t w_t, in which a common factor of the weights
    cancels. Computed in float64, rounded once. Raises InvalidRecipe for `literal` weights that sum to nothing.
    """
    for stack in stacks:
        divide = _over_weights if params["literal"] else over_count
        yield stack.name, divide(stack.differences, stack.weights)


def over_count(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The formula for one tensor, fp32 [*shape], of values [T, *shape] and weights [T]."""
    kept = torch.count_nonzero(values, dim=0).clamp(min=1)
    return (_weighted_sum(values, weights) / kept).float()


def _over_weights(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    total = float(weights.double().sum())
    if abs(total) <= CANCELLED * float(weights.double().abs().sum()):
        raise InvalidRecipe(f"the weights of a mean sum to {total:g}", param="terms")
    return (_weighted_sum(values, weights) / total).float()


def _weighted_sum(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    total = torch.zeros(values.shape[1:], dtype=torch.float64)
    for weight, value in zip(weights.tolist(), values, strict=True):
        total.add_(value, alpha=weight)
    return total
