"""WUDI-Merging (Cheng et al., arXiv 2503.08099): the matrix that disturbs each task the least on its own inputs.

The rows of a term's difference stand for the inputs that its task saw. The paper takes some hundred steps of Adam from
the sum of the terms; here the same quadratic objective is minimised at once.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from patchbay.merge.by_matrix import by_matrix
from patchbay.merge.parameters import above_zero
from patchbay.merge.stack import Params, Stacks


def wudi(stacks: Stacks, params: Params) -> Iterator[tuple[str, torch.Tensor]]:
    """min over tau of sum_t |(tau - tau_t) tau_t^T|^2 / |tau_t|^2 + mu |tau - sum_t tau_t|^2, for each matrix [m, n].

    mu = `ridge` times the mean eigenvalue of H = sum_t tau_t^T tau_t / |tau_t|^2. Directions in which all terms are
    small are left near the sum, where the paper's steps start. tau_t is w_t times the term's difference; a term of
    zeros takes no part. One term comes out as it is. Raises InvalidRecipe unless `ridge` is above 0.
    """
    ridge = above_zero(params, "ridge")
    return by_matrix(stacks, lambda terms: _wudi(terms, ridge))


def _wudi(terms: torch.Tensor, ridge: float) -> torch.Tensor:
    """tau = S + C B (B^T B + mu)^-1, or the same as C (B B^T + mu)^-1 B: whichever is smaller is solved.

    With S the sum, B [T m, n] the terms over their norms one above the other, so that H = B^T B, and C [m, T m] the
    (tau_t - S) tau_t^T / |tau_t| side by side.
    """
    total = terms.sum(0)
    changed = terms[terms.flatten(1).any(1)]
    if not len(changed):
        return total
    units = changed / torch.linalg.matrix_norm(changed)[:, None, None]
    rows = units.flatten(0, 1)
    across = torch.cat(list((changed - total) @ units.mT), 1)
    penalty = ridge * len(changed) / terms.shape[2]
    moved: torch.Tensor
    if len(rows) < rows.shape[1]:
        moved = _solve(rows @ rows.T, penalty, across.T).T @ rows
    else:
        moved = _solve(rows.T @ rows, penalty, (across @ rows).T).T
    return total + moved


def _solve(gram: torch.Tensor, penalty: float, right: torch.Tensor) -> torch.Tensor:
    gram.diagonal().add_(penalty)
    solved: torch.Tensor = torch.cholesky_solve(right, torch.linalg.cholesky(gram))
    return solved
