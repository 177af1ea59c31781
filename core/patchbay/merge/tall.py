"""TALL masks (Wang et al., arXiv 2405.07813): which entries of a merged vector matter to which task, and to how many.

A task needs an entry where its own difference outweighs what the other tasks add there. Consensus merging drops the
entries that fewer than k tasks need: those that matter to one only, or to none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from patchbay.merge.consensus import elected, weighted_sum
from patchbay.merge.parameters import above_zero, whole
from patchbay.merge.stack import Params, Stack, Stacks
from patchbay.merge.trim import by_size

Merged = Iterator[tuple[str, torch.Tensor]]


def consensus_ta(stacks: Stacks, params: Params) -> Merged:
    """sum_t w_t tau_t where at least `k` terms need the entry, 0 elsewhere; see `tall_masks`."""
    sums = ((stack.name, weighted_sum(stack.differences, stack.weights)) for stack in stacks)
    return _agreed(sums, stacks, params)


def consensus_ties(stacks: Stacks, params: Params) -> Merged:
    """As `consensus_ta`, of TIES's disjoint sum: of the `density` largest entries, those with the elected sign.

    As in the paper's code, the masks compare it with the terms as they were before they were trimmed.
    """
    election: Params = {"sign": "weighted", "normalize": False, "divisor": "count"}
    return _agreed(elected(by_size(stacks, {**params, "rescale": "none"}), {**params, **election}), stacks, params)


def tall_masks(terms: torch.Tensor, merged: torch.Tensor, factor: float) -> torch.Tensor:
    """|tau_t| > factor |merged - tau_t|, bool [T, *shape], of terms [T, *shape]. A larger factor needs less."""
    return terms.abs() > factor * (merged - terms).abs()


def _agreed(merged: Iterable[tuple[str, torch.Tensor]], stacks: Stacks, params: Params) -> Merged:
    """Where sizes were drawn there is nothing to compare, and everything stays.

    Raises InvalidRecipe for a `k` above the number of terms, or a `lambda` that is not above 0.
    """
    factor = above_zero(params, "lambda")
    for stack, (name, values) in zip(stacks, merged, strict=True):
        needed = whole(params, "k", 0, len(stack.weights))
        yield name, values if stacks.is_sampled else torch.where(_counts(stack, values, factor) >= needed, values, 0.0)


def _counts(stack: Stack, merged: torch.Tensor, factor: float) -> torch.Tensor:
    """How many terms need each entry."""
    counts = torch.zeros_like(merged, dtype=torch.int8)
    for weight, difference in zip(stack.weights, stack.differences, strict=True):
        counts += tall_masks(weight * difference, merged, factor)
    return counts
