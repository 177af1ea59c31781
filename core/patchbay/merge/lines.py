"""LiNeS (Wang et al., arXiv 2410.17146): deep layers change more than shallow ones, which hold what all tasks share."""

from __future__ import annotations

from functools import lru_cache

import torch

from patchbay.merge.matrix import Matrix, MatrixPlan
from patchbay.merge.settings import depths
from patchbay.merge.stack import Params


def lines(matrix: Matrix, params: Params) -> MatrixPlan:
    """theta_0 + (alpha + beta l / (L - 1)) sum_t w_t tau_t in layer l of L; alpha outside layers."""
    depth = _depths(tuple(matrix.base.specs))[matrix.name]
    share = float(params["alpha"]) + float(params["beta"]) * depth
    return MatrixPlan(torch.ones(1), (share * matrix.weights).unsqueeze(1))


@lru_cache(maxsize=4)
def _depths(names: tuple[str, ...]) -> dict[str, float]:
    return depths(names)
