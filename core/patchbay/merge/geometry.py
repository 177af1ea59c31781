"""Methods that follow from lengths and angles between models or task vectors: a few numbers a tensor, so plans.

Inner products come from `Matrix`: no model is laid out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from patchbay.errors import InvalidRecipe
from patchbay.merge.linear import mean_weights
from patchbay.merge.matrix import Matrix, MatrixPlan
from patchbay.merge.stack import Params

NEARLY_PARALLEL = 0.9995  # cosine from which on slerp is linear, as in mergekit
COLLINEAR = 1e-8  # sine below which nuslerp is linear, as in mergekit
SMALLEST_NORMS = 1e-6  # product of two norms that model_stock divides by at least, as in mergekit
SINGULAR = 1e-6


def slerp(matrix: Matrix, params: Params) -> MatrixPlan:
    """Spherical interpolation of two fine-tuned models, each tensor flattened: `t` = 0 is the first, 1 the second.

    theta = sin((1-t) o) / sin(o) theta_1 + sin(t o) / sin(o) theta_2 with o the angle between them (Shoemake, 1985);
    linear where they are nearly parallel, which fine-tunes of one base mostly are. Terms have no weights here.
    """
    tensor = matrix.flattened()
    models = tensor.base_energy[:, None, None] + tensor.gram
    models = models + tensor.projections[:, :, None] + tensor.projections[:, None, :]  # <theta_t, theta_u>
    shares = _arc(models, float(params["t"]), lambda cosine: cosine.abs() > NEARLY_PARALLEL)
    return MatrixPlan(shares.sum(1).float(), shares.T.float())


def nuslerp(matrix: Matrix, params: Params) -> MatrixPlan:
    """Spherical interpolation of two task vectors, at t = w_2 / (w_1 + w_2); for the whole tensor, or each neuron.

    mergekit's NuSLERP with a base: `scope` = `tensor` is its `nuslerp_flatten`, `neuron` is without it. Its
    `nuslerp_row_wise`, which turns columns, is not linear in a row. Raises InvalidRecipe for another scope, and weights
    that sum to nothing.
    """
    if params["scope"] not in ("tensor", "neuron"):
        raise InvalidRecipe(f"scope is tensor or neuron, not {params['scope']!r}", param="params.scope")
    view = matrix.flattened() if params["scope"] == "tensor" else matrix
    t = float(mean_weights(matrix.weights, params)[1])
    shares = _arc(view.gram, t, lambda cosine: 1 - cosine.square() <= COLLINEAR**2)
    return MatrixPlan(torch.ones(1), shares.T.float().contiguous())


def model_stock(matrix: Matrix, params: Params) -> MatrixPlan:
    """t theta_mean + (1 - t) theta_0 with t = N cos / (1 + (N - 1) cos), cos the mean cosine between task vectors.

    Model Stock (Jang et al., 2024), for each tensor, or with `filter_wise` each neuron. Where the denominator is 0 the
    base stays. Terms have no weights here.
    """
    view = matrix if params["filter_wise"] else matrix.flattened()
    count = len(matrix.deltas)
    lengths = view.gram.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
    pairs = torch.combinations(torch.arange(count), 2)
    norms = (lengths[:, pairs[:, 0]] * lengths[:, pairs[:, 1]]).clamp(min=SMALLEST_NORMS)
    cosine = (view.gram[:, pairs[:, 0], pairs[:, 1]] / norms).clamp(-1, 1).mean(1)
    denominator = 1 + (count - 1) * cosine
    singular = denominator.abs() < SINGULAR
    share = torch.where(singular, 0.0, count * cosine / torch.where(singular, 1.0, denominator)) / count
    return MatrixPlan(torch.ones(1), share.float().expand(count, -1).contiguous())


def _arc(gram: torch.Tensor, t: float, is_linear: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Shares [R, 2] of two vectors on the arc between them, from their inner products [R, 2, 2]."""
    lengths = gram.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
    lengths = torch.where(lengths > COLLINEAR, lengths, 1.0)
    cosine = (gram[:, 0, 1] / lengths.prod(1)).clamp(-1, 1)
    linear = is_linear(cosine)
    angle = torch.acos(torch.where(linear, 0.0, cosine))
    first, second = (torch.sin(share * angle) / torch.sin(angle) for share in (1 - t, t))
    return torch.stack([torch.where(linear, 1 - t, first), torch.where(linear, t, second)], dim=1)
