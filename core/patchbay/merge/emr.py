"""EMR-Merging (Huang et al., arXiv 2405.17461): elect one unified vector; mask and rescale it for each task.

One unified vector serves all tasks there, with a mask and a number for each. Here a merge is one task's share of it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from patchbay.merge.parameters import whole
from patchbay.merge.stack import Params, Stack, Stacks
from patchbay.merge.weighted import weighted


def emr(stacks: Stacks, params: Params) -> Iterator[tuple[str, torch.Tensor]]:
    """r m unified, for the term at place `task` of the recipe, from 0; tau_t = w_t times the term's difference.

    unified: the sign of sum_t tau_t (minus where it is 0), and of the terms that have it the largest size.
    m = 1 where the task's tau has that sign; r = sum |tau| / sum |m unified| over all tensors restores its L1 norm.
    Raises InvalidRecipe where there is no such term.
    """
    ratio = _rescaler(stacks, params)
    for stack in stacks:
        yield stack.name, ratio * _masked(weighted(stack), _task(stack, params))


def _rescaler(stacks: Stacks, params: Params) -> float:
    wanted, there = 0.0, 0.0
    for stack in stacks:
        terms, task = weighted(stack), _task(stack, params)
        wanted += float(terms[task].abs().double().sum())
        there += float(_masked(terms, task).abs().double().sum())
    return wanted / there if there else 0.0


def _masked(terms: torch.Tensor, task: int) -> torch.Tensor:
    """The unified vector where the task has its sign, 0 elsewhere."""
    signs = torch.where(terms.sum(0) > 0, 1.0, -1.0)
    unified = signs * (terms * signs).amax(0).clamp(min=0)
    return torch.where(terms[task] * signs > 0, unified, 0.0)


def _task(stack: Stack, params: Params) -> int:
    return whole(params, "task", 0, len(stack.weights) - 1)
