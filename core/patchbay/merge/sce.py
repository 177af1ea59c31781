"""SCE (Wan et al., FuseChat, arXiv 2408.07990): select entries by variance, calculate weights, erase minorities."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from patchbay.merge.consensus import agreeing, elected_signs
from patchbay.merge.cut import largest
from patchbay.merge.draws import ALL_TERMS
from patchbay.merge.parameters import choice, share
from patchbay.merge.stack import Params, Stack, Stacks
from patchbay.merge.trim import Ranking


def sce(stacks: Stacks, params: Params) -> Iterator[tuple[str, torch.Tensor]]:
    """For every tensor: sum_t c_t D_t / sum_t |c_t| over the terms that agree with the sign of sum_t w_t D_t.

    D are the differences where their variance over terms is among the `select_topk` largest of those that are not 0,
    and c_t = w_t |D_t|^2 / sum_s |D_s|^2. `tie`: `zero` or, as in mergekit, `positive`. `least_energy`: mean squares
    that sum to less are taken as equal, and the divisor is at least that (1e-6 in mergekit, which therefore weights
    small differences equally). mergekit has no weights w. Raises InvalidRecipe for a `select_topk` that is no share.
    """
    topk, tie = share(params, "select_topk"), choice(params, "tie", ("zero", "positive"))
    least, ranking = float(params["least_energy"]), Ranking.of(stacks, params)
    for stack in stacks:
        selected = stack.differences if topk == 1 else _selected(stack, ranking, topk)
        weights = stack.weights * _shares_of_energy(selected, least)
        signs = elected_signs(selected, stack.weights, tie)
        merged, divisor = agreeing(selected, weights, stack.weights, signs, "sizes")
        divisor = divisor.clamp(min=least)
        yield stack.name, torch.where(divisor > 0, merged / divisor, 0.0)


def _selected(stack: Stack, ranking: Ranking, topk: float) -> torch.Tensor:
    """One mask for all terms."""
    variance = stack.differences.var(0, correction=0)
    scores = ranking.scores(variance, stack.name, ALL_TERMS).reshape(-1)
    cut = largest(scores, int(int(torch.count_nonzero(scores)) * topk))
    mask = cut.mask(scores)[0].reshape(1, *variance.shape).expand_as(stack.differences)
    return ranking.kept(stack.differences, mask, cut, topk, "none")


def _shares_of_energy(differences: torch.Tensor, least: float) -> torch.Tensor:
    """fp32 [T], of sum 1: of the mean squares; equal where they sum to less than `least`, or to nothing."""
    energies = (
        differences.flatten(1).double().square().mean(1) if differences.dim() > 1 else differences.double().square()
    )
    total = float(energies.sum())
    if total == 0 or total < least:
        return torch.full((len(energies),), 1 / len(energies))
    return (energies / total).float()
