"""DARE (Yu et al., arXiv 2311.03099): drop entries of every term at random, rescale the others, then merge."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from patchbay.merge.consensus import elected, summed
from patchbay.merge.stack import Params, Stacks
from patchbay.merge.trim import at_random


def dare_linear(stacks: Stacks, params: Params) -> Iterator[tuple[str, torch.Tensor]]:
    """The weighted sum of what is kept. `rescale`: 1 / density (the paper, PEFT), or to the L1 norm (mergekit)."""
    return summed(at_random(stacks, params), params)


def dare_ties(stacks: Stacks, params: Params) -> Iterator[tuple[str, torch.Tensor]]:
    """The mean of those who agree with the elected sign, among what is kept; parameters as in `consensus`."""
    return elected(at_random(stacks, params), params)
