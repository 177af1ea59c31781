"""Stacks of given numbers, for methods that are given nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from hypothesis import strategies as st
from tests.delta.samples import spec

from patchbay.merge.draws import uniform
from patchbay.merge.methods import METHODS
from patchbay.merge.recipe import Scalar
from patchbay.merge.stack import Stack, Stacks


def stacks_of(
    tensors: Mapping[str, torch.Tensor | Sequence[object]],
    weights: Sequence[float] | None = None,
    settings: Mapping[str, Sequence[float]] | None = None,
    is_sampled: bool = False,
) -> Stacks:
    """Of differences [T, *shape] by name, which need not be sorted; `settings` hold in every tensor."""
    differences = {name: torch.as_tensor(values, dtype=torch.float32) for name, values in tensors.items()}
    own = {name: torch.tensor(values) for name, values in (settings or {}).items()}

    def read(name: str) -> Stack:
        found = differences[name].clone()
        weight = torch.tensor(weights) if weights is not None else torch.ones(len(found))
        return Stack(name, found, weight, spec(name, tuple(found.shape[1:])), lambda: found[0], 0.0, own)

    return Stacks(tuple(differences), read, is_sampled)


def merged(method: str, stacks: Stacks, **params: Scalar) -> dict[str, torch.Tensor]:
    """What the method of the table merges, with its defaults where nothing else is said."""
    row = METHODS[method]
    assert row.merge is not None
    return dict(row.merge(stacks, row.filled(params)))


def numbers(seed: int, *shape: int) -> torch.Tensor:
    """fp32 in (-1, 1), of which no two are likely to be equal."""
    return 2 * uniform(seed, "numbers", 0, shape) - 1


# A whole stack of small tensors, [T, n]: quarters, so that sums are exact and sizes are often equal.
QUARTERS = st.integers(-8, 8).map(lambda number: number / 4)


@st.composite
def differences(draw: st.DrawFn, min_terms: int = 1, max_terms: int = 4) -> torch.Tensor:
    terms, entries = draw(st.integers(min_terms, max_terms)), draw(st.integers(1, 12))
    return torch.tensor(draw(st.lists(QUARTERS, min_size=terms * entries, max_size=terms * entries))).reshape(terms, -1)
