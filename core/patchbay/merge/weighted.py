"""The terms of a tensor as most methods take them: every difference times its weight."""

from __future__ import annotations

import torch

from patchbay.merge.stack import Stack


def weighted(stack: Stack, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """w_t tau_t, [T, *shape]."""
    return stack.differences.to(dtype) * stack.weights.to(dtype).reshape(-1, *[1] * (stack.differences.dim() - 1))
