"""DELLA-Merging (Deep et al., arXiv 2406.11617): entries are dropped at random, the small ones more often.

`density` - `epsilon` is the probability that the smallest entry of a row is kept and `density` + `epsilon` that of the
largest; between them it grows with the rank. A row is an output neuron, a tensor without neurons is one row. mergekit
ranks along the second axis whatever that is: the same for the matrices of linear layers and for tensors of one axis.
`rescale`: what is kept by its own probability (`inverse_probability`, the paper), else as in `trim`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from patchbay.errors import InvalidRecipe
from patchbay.merge.consensus import elected, summed
from patchbay.merge.draws import uniform
from patchbay.merge.parameters import choice, shares
from patchbay.merge.stack import Params, Stack, Stacks
from patchbay.merge.trim import RESCALES, Ranking, Trimmed, each_term, rescaled


def della(stacks: Stacks, params: Params) -> Iterator[tuple[str, torch.Tensor]]:
    """The mean of those who agree with the elected sign, among what is kept; parameters as in `consensus`."""
    return elected(_dropped(stacks, params), params)


def della_linear(stacks: Stacks, params: Params) -> Iterator[tuple[str, torch.Tensor]]:
    """The weighted sum of what is kept."""
    return summed(_dropped(stacks, params), params)


def _dropped(stacks: Stacks, params: Params) -> Trimmed:
    """Entries whose sizes were drawn have no ranks: all are kept with probability `density`, and divided by it."""
    how, ranking = choice(params, "rescale", (*RESCALES, "inverse_probability")), Ranking.of(stacks, params)

    def keep(stack: Stack, term: int, values: torch.Tensor) -> torch.Tensor:
        density, epsilon = (shares(stack, params, name)[term] for name in ("density", "epsilon"))
        if density in (0, 1):
            return values * density
        _check(density, epsilon)
        likely = probabilities(_rows(values, stack), density, 0.0 if ranking.is_random else epsilon)
        likely = _rows_back(likely, values, stack)
        kept = torch.where(uniform(ranking.seed, stack.name, term, values.shape) <= likely, values, 0.0)
        if ranking.is_random or how == "inverse_probability":
            return torch.where(likely > 0, kept / likely, 0.0)
        return rescaled(kept, values, density, how)

    return lambda: each_term(stacks, keep)


def probabilities(rows: torch.Tensor, density: float, epsilon: float) -> torch.Tensor:
    """fp32 [R, n]: (density - epsilon) + 2 epsilon rank / (n - 1), rank 0 the smallest of a row; density if n = 1."""
    count = rows.shape[1]
    order = torch.argsort(rows.abs(), dim=1, stable=True)
    places = torch.arange(count, dtype=torch.float32) / (count - 1) if count > 1 else torch.full((count,), 0.5)
    ranks = torch.empty_like(rows).scatter_(1, order, places.expand_as(rows))
    return (density - epsilon) + ranks * 2 * epsilon


def _rows(values: torch.Tensor, stack: Stack) -> torch.Tensor:
    axis = stack.spec.neuron_axis
    return values.reshape(1, -1) if axis is None else values.movedim(axis, 0).flatten(1)


def _rows_back(rows: torch.Tensor, values: torch.Tensor, stack: Stack) -> torch.Tensor:
    axis = stack.spec.neuron_axis
    if axis is None:
        return rows.reshape(values.shape)
    return rows.reshape(values.movedim(axis, 0).shape).movedim(0, axis)


def _check(density: float, epsilon: float) -> None:
    if density - epsilon < 0 or density + epsilon > 1:
        raise InvalidRecipe(
            f"density {density:g} and epsilon {epsilon:g} give probabilities outside 0 to 1; take a smaller epsilon",
            param="params.epsilon",
        )
