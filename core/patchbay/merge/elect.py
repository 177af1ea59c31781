"""Election of a sign and the mean of those who agree with it: TIES on numbers, whatever the numbers are of."""

from __future__ import annotations

import torch

TOLERANCE = 1e-9  # what is smaller than this share of all that was summed is rounding: it elects nobody and has no vote


def elect_mean(values: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """Over `dim`: the mean of the values whose sign is that of their sum; 0 where they cancel.

    TIES-Merging (Yadav et al., 2023), steps 2 and 3. Values that are 0 have no vote and are not counted.
    """
    total = values.sum(dim, keepdim=True)
    nothing = max(TOLERANCE, 4 * torch.finfo(values.dtype).eps) * values.abs().sum(dim, keepdim=True)
    agree = (values * total.sign() > nothing) & (total.abs() > nothing)
    return torch.where(agree, values, 0.0).sum(dim) / agree.sum(dim).clamp(min=1)
