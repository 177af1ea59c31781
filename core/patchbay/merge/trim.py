"""Which entries of the terms' differences are kept, and what the kept ones are multiplied by.

Knows nothing of how terms are then merged.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from patchbay.merge.cut import Cut, find_cuts, largest
from patchbay.merge.draws import uniform
from patchbay.merge.parameters import choice, shares
from patchbay.merge.stack import Params, Stack, Stacks

Trimmed = Callable[[], Iterator[tuple[Stack, torch.Tensor]]]  # every stack with what is kept of it, [T, *shape]
SCOPES = ("tensor", "global")
RESCALES = ("none", "l1", "inverse_density")
TINY = 1e-7  # an L1 norm below it is no measure to rescale by


@dataclass(frozen=True, slots=True)
class Ranking:
    """What entries are ranked by: their sizes; or, where those were drawn and say nothing, a draw among the nonzero.

    Ranking sampled entries by size would keep whichever come first. What is kept at random stands for all there were:
    it is multiplied by how many that are each, and by nothing else.
    """

    seed: int
    is_random: bool

    @classmethod
    def of(cls, stacks: Stacks, params: Params) -> Ranking:
        return cls(int(params["seed"]), stacks.is_sampled)

    def scores(self, sizes: torch.Tensor, name: str, term: int) -> torch.Tensor:
        """fp32 of the shape of `sizes`, which are 0 or more: the larger, the sooner an entry is kept."""
        return torch.where(sizes > 0, uniform(self.seed, name, term, sizes.shape), 0.0) if self.is_random else sizes

    def kept(self, values: torch.Tensor, mask: torch.Tensor, cut: Cut, density: float, how: str) -> torch.Tensor:
        """`values` where `mask` holds, else 0; rescaled as asked for, or as a draw needs."""
        kept = torch.where(mask.reshape(values.shape), values, 0.0)
        return kept * cut.stands_for if self.is_random else rescaled(kept, values, density, how)


def rescaled(kept: torch.Tensor, values: torch.Tensor, density: float, how: str) -> torch.Tensor:
    """`l1`: to the L1 norm of `values`, as mergekit does. `inverse_density`: 1 / density, as DARE and PEFT do."""
    if how == "inverse_density" and density > 0:
        return kept / density
    if how == "l1":
        before, after = values.abs().sum(), kept.abs().sum()
        return kept * (before / after) if min(before, after) >= TINY else kept
    return kept


def each_term(
    stacks: Stacks, keep: Callable[[Stack, int, torch.Tensor], torch.Tensor]
) -> Iterator[tuple[Stack, torch.Tensor]]:
    """Every stack with `keep(stack, t, difference of term t)` of all terms, [T, *shape]."""
    for stack in stacks:
        kept = torch.empty_like(stack.differences)
        for term, values in enumerate(stack.differences):
            kept[term] = keep(stack, term, values)
        yield stack, kept


def by_size(stacks: Stacks, params: Params) -> Trimmed:
    """TIES's trimming: of every term the floor(density n) largest of the n entries of a tensor, or of all tensors.

    `scope`: `tensor` (mergekit, PEFT) or `global` (the paper). All tensors are those that any term changes; where a
    term's density differs between them, it keeps as many entries in all as it would tensor by tensor.
    Raises InvalidRecipe for a density that is no share.
    """
    scope, how, ranking = (
        choice(params, "scope", SCOPES),
        choice(params, "rescale", RESCALES),
        Ranking.of(stacks, params),
    )
    if scope == "global":
        return _by_size_of_all(stacks, params, ranking, how)

    def keep(stack: Stack, term: int, values: torch.Tensor) -> torch.Tensor:
        density = shares(stack, params, "density")[term]
        if density == 1:
            return values
        scores = _scores(ranking, stack, term)
        cut = largest(scores, int(density * scores.numel()))
        return ranking.kept(values, cut.mask(scores)[0], cut, density, how)

    return lambda: each_term(stacks, keep)


def _by_size_of_all(stacks: Stacks, params: Params, ranking: Ranking, how: str) -> Trimmed:
    entries: defaultdict[int, Counter[float]] = defaultdict(Counter)  # term -> density -> in how many entries it holds

    def read() -> Iterator[torch.Tensor]:
        entries.clear()
        for stack in stacks:
            for term, density in enumerate(shares(stack, params, "density")):
                entries[term][density] += stack.spec.numel
            yield torch.stack([_scores(ranking, stack, term) for term in range(len(stack.weights))])

    def wanted(term: int) -> float:
        return sum(density * count for density, count in entries[term].items())

    cuts = find_cuts(read, lambda term, total: int(wanted(term)))
    densities = {term: wanted(term) / max(1, counts.total()) for term, counts in entries.items()}

    def trimmed() -> Iterator[tuple[Stack, torch.Tensor]]:
        left = list(cuts)

        def keep(stack: Stack, term: int, values: torch.Tensor) -> torch.Tensor:
            mask, left[term] = left[term].mask(_scores(ranking, stack, term))
            return ranking.kept(values, mask, cuts[term], densities[term], how)

        return each_term(stacks, keep)

    return trimmed


def _scores(ranking: Ranking, stack: Stack, term: int) -> torch.Tensor:
    """fp32 [n]"""
    return ranking.scores(stack.differences[term].abs().reshape(-1), stack.name, term)


def at_random(stacks: Stacks, params: Params) -> Trimmed:
    """DARE's dropping: every entry is kept with probability `density`, whatever its size.

    Raises InvalidRecipe for a density that is no share.
    """
    how, seed = choice(params, "rescale", RESCALES), int(params["seed"])

    def keep(stack: Stack, term: int, values: torch.Tensor) -> torch.Tensor:
        density = shares(stack, params, "density")[term]
        if density == 1:
            return values
        mask = uniform(seed, stack.name, term, values.shape) <= density
        return rescaled(torch.where(mask, values, 0.0), values, density, how)

    return lambda: each_term(stacks, keep)


def middle(stacks: Stacks, params: Params) -> Trimmed:
    """Breadcrumbs: of every tensor without its floor(gamma n) largest entries, the floor(density n) next.

    `prefer`: where density + gamma is more than 1, fewer than density n are left (`gamma`: outliers always go, the
    paper's), or fewer outliers go (`density`, mergekit's, where density 1 keeps everything). Among entries whose sizes
    were drawn there are no outliers. Raises InvalidRecipe for a density or gamma that is no share.
    """
    how, ranking = choice(params, "rescale", RESCALES), Ranking.of(stacks, params)
    density_first = choice(params, "prefer", ("gamma", "density")) == "density"

    def keep(stack: Stack, term: int, values: torch.Tensor) -> torch.Tensor:
        density, gamma = (shares(stack, params, name)[term] for name in ("density", "gamma"))
        scores = _scores(ranking, stack, term)
        wanted, outliers = int(density * scores.numel()), 0 if ranking.is_random else int(gamma * scores.numel())
        if density_first:
            outliers = min(outliers, scores.numel() - wanted)
        cut = largest(scores, min(outliers + wanted, scores.numel()))
        mask = cut.mask(scores)[0] & ~largest(scores, outliers).mask(scores)[0]
        return ranking.kept(values, mask, cut, density, how)

    return lambda: each_term(stacks, keep)
