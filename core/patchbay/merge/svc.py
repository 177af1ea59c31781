"""Singular value calibration (Li et al., arXiv 2602.05536) of task arithmetic.

It rescales the singular values of any merged matrix; here of the sum, which gains by far the most in the paper, and
for which it is a method like others rather than a switch on each of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from patchbay.merge.by_matrix import by_matrix
from patchbay.merge.parameters import above_zero
from patchbay.merge.singular import decompose
from patchbay.merge.stack import Params, Stacks


def svc(stacks: Stacks, params: Params) -> Iterator[tuple[str, torch.Tensor]]:
    """M = lambda sum_t tau_t = U S V^T -> U diag(gamma S) V^T, gamma_r = T / sum_t max(alpha, s_rt).

    s_rt = <u_r^T M, u_r^T tau_t> / |u_r^T tau_t|^2 says how many times over term t is in direction r; after it, terms
    are there once on average. So lambda, task arithmetic's factor, cancels but for alpha. tau_t is w_t times the
    term's difference: one term comes out as it is. With `agreed`, as in the paper's code, gamma_r is
    1 / max(alpha, mean_t s_rt) where all s_rt > 0, and 1 elsewhere. Raises InvalidRecipe unless both are above 0.
    """
    factor, floor, agreed = above_zero(params, "lambda"), above_zero(params, "alpha"), bool(params["agreed"])
    return by_matrix(stacks, lambda terms: _calibrated(terms, factor, floor, agreed))


def _calibrated(terms: torch.Tensor, factor: float, floor: float, agreed: bool) -> torch.Tensor:
    merged = decompose(factor * terms.sum(0))
    responses = merged.left.T @ terms
    along = torch.einsum("trn,nr,r->tr", responses, merged.right, merged.sizes)
    energy = responses.square().sum(-1)
    counted = torch.where(energy > 0, along / energy.clamp(min=torch.finfo(energy.dtype).tiny), 0.0)
    return merged._replace(sizes=merged.sizes / _over_count(counted, floor, agreed)).to_dense()


def _over_count(counted: torch.Tensor, floor: float, agreed: bool) -> torch.Tensor:
    """1 / gamma, of s [T, r]."""
    if not agreed:
        return counted.clamp(min=floor).mean(0)
    return torch.where((counted > 0).all(0), counted.mean(0).clamp(min=floor), 1.0)
