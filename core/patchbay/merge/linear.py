"""Methods that give every term one number for the whole model. Interpolation with the base is a single term."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from patchbay.errors import InvalidRecipe
from patchbay.merge.recipe import Scalar


def arithmetic_weights(weights: torch.Tensor, params: Mapping[str, Scalar]) -> torch.Tensor:
    """theta = theta_0 + sum_t w_t tau_t (Ilharco et al., 2023). One term with w = lambda is WiSE-FT's interpolation."""
    return weights


def mean_weights(weights: torch.Tensor, params: Mapping[str, Scalar]) -> torch.Tensor:
    """theta = sum_t w_t theta_t / sum_t w_t, which is theta_0 + sum_t (w_t / sum w) tau_t (Wortsman et al., 2022).

    Raises InvalidRecipe where the weights sum to nothing.
    """
    total = float(weights.sum())
    if abs(total) <= 1e-6 * float(weights.abs().sum()):
        raise InvalidRecipe(f"the weights of a mean sum to {total:g}; use task_arithmetic for a sum", param="terms")
    return weights / total
