"""NeuroMerging (Fang et al., arXiv 2503.05320): training-free merging in neuronal subspaces.

Every neuron's difference is split into the part along its pre-trained weights ("input sensitivity") and the part
orthogonal to them ("task adaptability"). Over tasks, each part is merged by election and mean: the first as one
coefficient, the second in the singular directions of the T differences. The published form decomposes T x d numbers a
neuron; the same result is one number for each task and one for the base (`patchbay.merge.matrix`), from the T x T Gram
matrix. Where two singular values coincide, or a coordinate's sum is 0, the result is discontinuous, as published.
"""

from __future__ import annotations

import torch

from patchbay.merge.elect import elect_mean
from patchbay.merge.matrix import Matrix, MatrixPlan
from patchbay.merge.stack import Params, Stack
from patchbay.merge.weighted import weighted

MOST_LOST = 0.99  # a term that lost more is no reason to multiply all of them by hundreds
NO_DIRECTION = 1e-7  # of the largest singular value: below it lies what rounding left of a product of norms


def neuromerging(matrix: Matrix, params: Params) -> MatrixPlan:
    """lambda_1 (elected a) W0 + lambda_2 sum_t beta_t (tau_t - a_t W0), as a plan: a, beta from `neuron_weights`."""
    weights = matrix.weights.double()
    gram = matrix.gram * weights[:, None] * weights
    along, across, betas = neuron_weights(gram, matrix.projections * weights, matrix.base_energy)
    lambda1, lambda2 = float(params["lambda1"]), _lambda2(matrix.sigma, params)
    return MatrixPlan(
        base_scale=(1 + lambda1 * along - lambda2 * across).float(),
        coefficients=(lambda2 * betas * weights).T.float().contiguous(),
    )


def neuron_weights(
    gram: torch.Tensor, projections: torch.Tensor, base_energy: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of R neurons and T tasks, float64: the elected coefficient along W0 [R], sum_t beta_t a_t [R], and beta [R, T].

    a_t = <tau_t, w> / |w|^2 (0 for a neuron without weights). With G = gram - |w|^2 a a^T = U S^2 U^T, task t has the
    coordinate C_tj = U_tj S_j in direction j; c = elected means of the columns of C, and beta = U (c / S): the merged
    orthogonal part is sum_t beta_t (tau_t - a_t w). Directions of a size below NO_DIRECTION of the largest are none.
    """
    along = torch.where(base_energy[:, None] > 0, projections / base_energy[:, None], 0.0)
    orthogonal = gram - base_energy[:, None, None] * along[:, :, None] * along[:, None, :]
    betas = torch.zeros_like(along)
    changed = orthogonal.diagonal(dim1=1, dim2=2).amax(1) > 0  # of a vocabulary, only the tokens that occurred
    betas[changed] = _elected_shares(orthogonal[changed])
    return elect_mean(along, dim=1), (betas * along).sum(1), betas


def _elected_shares(gram: torch.Tensor) -> torch.Tensor:
    squares, directions = torch.linalg.eigh(gram)
    sizes = squares.clamp(min=0).sqrt()
    is_there = sizes > NO_DIRECTION * sizes.amax(-1, keepdim=True)
    coordinates = elect_mean(directions * sizes[:, None, :], dim=1)
    shares = torch.where(is_there, coordinates / torch.where(is_there, sizes, 1.0), 0.0)
    betas: torch.Tensor = (directions @ shares[:, :, None]).squeeze(-1)
    return betas


def elected_vector(stack: Stack, params: Params) -> torch.Tensor:
    """Norms and biases: TIES without trimming, times lambda_2."""
    return _lambda2(stack.sigma, params) * elect_mean(weighted(stack))


def _lambda2(sigma: float, params: Params) -> float:
    """The rule without data, 1 / (1 - sigma), restores the L1 mass of the term that lost the most."""
    return float(params["lambda2"]) / (1 - min(sigma, MOST_LOST) if params["rescale"] else 1.0)
