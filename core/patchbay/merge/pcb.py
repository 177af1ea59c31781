"""PCB-Merging (Du et al., arXiv 2410.02396): parameters compete, and the balance of the winners is a weighted mean.

The form of the authors' evolution-strategy code, without the search: sizes clamped at their 1 % and 99 % quantiles,
products of every two terms. (Their other files multiply by the sum of the terms, or clamp at 0.01 %.) Quantiles and
extremes are those of a term's whole vector, of all tensors that any term changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce

import torch

from patchbay.merge.cut import find_cuts
from patchbay.merge.fusion import over_count
from patchbay.merge.parameters import share
from patchbay.merge.stack import Params, Stack, Stacks
from patchbay.merge.trim import by_size

CLAMPED = 0.01  # of the entries, at either end
SMALLEST_SHARES = 1e-12  # sum of shares that is divided by at least, as in the reference


def pcb(stacks: Stacks, params: Params) -> Iterator[tuple[str, torch.Tensor]]:
    """sum_t share_t clamped_t / sum_t share_t, elementwise, of tau_t = w_t times the term's difference.

    clamped_t = sign(tau_t) clamp(|tau_t|, low_t, high_t); n_t = sign(tau_t) (|clamped_t| - low_t) / (high_t - low_t);
    score_t = exp(T n_t^2) sum_u tanh(n_t n_u), at least 0; share_t is 0 outside the `ratio` highest scores of the term,
    and there runs from 0, the lowest of them, to 1. A term that keeps less than 1 % of its entries is not clamped.

    Where sizes were drawn nothing can compete: `ratio` of the entries stay, at random (`seed`), and each is divided by
    the number of terms that kept it. Raises InvalidRecipe where `ratio` is not from 0 to 1.
    """
    ratio = share(params, "ratio")
    if stacks.is_sampled:
        trimming: Params = {"density": ratio, "scope": "global", "rescale": "none", "seed": params["seed"]}
        return ((stack.name, over_count(kept, stack.weights)) for stack, kept in by_size(stacks, trimming)())
    return _competed(stacks, ratio)


def _competed(stacks: Stacks, ratio: float) -> Iterator[tuple[str, torch.Tensor]]:
    if not len(stacks):
        return
    span = _Span.of(stacks)
    lowest, highest = _winning_scores(stacks, span, ratio)
    for stack in stacks:
        places, terms = _changed(stack)
        shares = ((span.scores(terms) - lowest) / (highest - lowest).clamp(min=SMALLEST_SHARES)).clamp(min=0)
        merged = torch.zeros(stack.differences[0].numel())
        merged[places] = (span.clamped(terms) * shares).sum(0) / shares.sum(0).clamp(min=SMALLEST_SHARES)
        yield stack.name, merged.reshape(stack.differences.shape[1:])


@dataclass(frozen=True, slots=True)
class _Span:
    """The sizes that each term is clamped to, [T, 1], and how many entries there are of each."""

    low: torch.Tensor
    high: torch.Tensor
    total: int

    @classmethod
    def of(cls, stacks: Stacks) -> _Span:
        """The reference's order statistics: from small to large, numbers int(0.01 n) and int(0.99 n - 1) of n."""
        total = sum(stack.differences[0].numel() for stack in stacks)
        ranks = total - int(total * CLAMPED), total - max(int(total * (1 - CLAMPED) - 1), 0)
        low, high = _order_statistics(stacks, torch.abs, ranks)
        if not bool((high > 0).all()):
            high = torch.where(high > 0, high, _order_statistics(stacks, torch.abs, (1, 1))[0])
        return cls(low, high, total)

    def clamped(self, terms: torch.Tensor) -> torch.Tensor:
        return terms.sign() * terms.abs().clamp(self.low, self.high)

    def scores(self, terms: torch.Tensor) -> torch.Tensor:
        """fp32 [T, n], 0 or more."""
        width = (self.high - self.low).clamp(min=torch.finfo(torch.float32).tiny)
        sizes = (terms.abs().clamp(self.low, self.high) - self.low) / width
        signed = terms.sign() * sizes
        among = torch.zeros_like(signed)
        for other in signed:
            among += torch.tanh(signed * other)
        return (torch.exp(len(terms) * sizes.square()) * among).clamp(min=0)


def _winning_scores(stacks: Stacks, span: _Span, ratio: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Of every term, [T, 1]: the lowest score of the `ratio` highest, and the highest."""
    return _order_statistics(stacks, span.scores, (max(1, span.total - int(span.total * (1 - ratio))), 1))


def _order_statistics(
    stacks: Stacks, measure: Callable[[torch.Tensor], torch.Tensor], ranks: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of `measure`, fp32 [T, n] and 0 or more: the numbers of two ranks, from the largest, 1, on; [T, 1] each.

    Entries that no term changes measure 0, and are read as one entry at the end.
    """
    count = len(next(iter(stacks)).weights)

    def read() -> Iterator[torch.Tensor]:
        for stack in stacks:
            rows = measure(_changed(stack)[1])
            yield torch.cat([rows, rows])
        yield torch.zeros(2 * count, 1)

    cuts = find_cuts(read, lambda row, total: min(ranks[row >= count], total))
    found = torch.tensor([cut.threshold for cut in cuts], dtype=torch.int32).view(torch.float32)
    return found[:count, None], found[count:, None]


def _changed(stack: Stack) -> tuple[torch.Tensor, torch.Tensor]:
    """Where any term changes the flattened tensor, [n], and tau_t there, [T, n]: of pruned terms, a few entries."""
    any_term = reduce(torch.logical_or, (difference != 0 for difference in stack.differences))
    places = torch.nonzero(any_term.flatten()).flatten()
    return places, stack.differences.flatten(1).index_select(1, places) * stack.weights[:, None]
