"""Model Breadcrumbs (Davari and Belilovsky, arXiv 2312.06795): neither the largest entries nor the smallest."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from patchbay.merge.consensus import elected, summed
from patchbay.merge.stack import Params, Stacks
from patchbay.merge.trim import middle


def breadcrumbs(stacks: Stacks, params: Params) -> Iterator[tuple[str, torch.Tensor]]:
    """The weighted sum of what is kept; `density`, `gamma`, `prefer`, `rescale`: `trim.middle`."""
    return summed(middle(stacks, params), params)


def breadcrumbs_ties(stacks: Stacks, params: Params) -> Iterator[tuple[str, torch.Tensor]]:
    """mergekit's: the mean of those who agree with the elected sign, among what is kept."""
    return elected(middle(stacks, params), params)
