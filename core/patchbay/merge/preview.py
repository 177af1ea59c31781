"""What a person looks at before merging: how large the terms are and where, how much they agree, and what may go wrong.

No inference. Knows nothing of names: terms are told by their position in the recipe.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from patchbay.delta import Delta
from patchbay.merge.matrix import Matrix
from patchbay.merge.method import Method
from patchbay.merge.stack import Base, difference_of, is_sampled

UNEVEN = 2.0  # from this ratio of lengths on, the longest task vector decides most of a merge


@dataclass(frozen=True, slots=True)
class Preview:
    """Of T terms, each as it is before its weight.

    `norms` [T]: |tau_t|; `kind_norms`: the same for each kind of tensor. `along_base` [T]: the share of a term's energy
    in neurons that lies along W0 (input sensitivity); the rest is orthogonal (task adaptability). `cosines` [T][T].
    `sign_conflicts`: the share of entries that two terms or more change on whose sign they do not agree.
    """

    norms: tuple[float, ...]
    kind_norms: Mapping[str, tuple[float, ...]]
    along_base: tuple[float, ...]
    cosines: tuple[tuple[float, ...], ...]
    sign_conflicts: float


def preview(deltas: Sequence[Delta], base: Base) -> Preview:
    """Looks at every tensor that any of `deltas` changes, one at a time."""
    count = len(deltas)
    gram, along = torch.zeros(count, count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    in_neurons = torch.zeros(count, dtype=torch.float64)
    kinds: dict[str, torch.Tensor] = {}
    shared = conflicting = 0
    for name in sorted({name for delta in deltas for name in (*delta.matrices, *delta.factors, *delta.vectors)}):
        matrix = Matrix(name, deltas, torch.ones(count), base)
        gram += matrix.gram.sum(0)
        energy = matrix.gram.diagonal(dim1=1, dim2=2).sum(0)
        kind = base.specs[name].kind.value
        kinds[kind] = kinds.get(kind, torch.zeros(count, dtype=torch.float64)) + energy
        if base.specs[name].is_matrix:
            in_neurons += energy
            along += _along(matrix)
        several, opposed = _signs(name, deltas, base)
        shared, conflicting = shared + several, conflicting + opposed
    return Preview(
        norms=_lengths(gram.diagonal()),
        kind_norms={kind: _lengths(energy) for kind, energy in sorted(kinds.items())},
        along_base=tuple(_ratios(along, in_neurons)),
        cosines=tuple(map(tuple, _cosines(gram))),
        sign_conflicts=conflicting / shared if shared else 0.0,
    )


def warnings_of(method: Method, deltas: Sequence[Delta]) -> tuple[str, ...]:
    """What an answer from this merge should be read with. Costs no look at a tensor that was looked at before."""
    found: list[str] = []
    norms = [delta.norm for delta in deltas] if len(deltas) > 1 else []
    longer = [norm for norm in norms if norm]
    if longer and max(longer) > UNEVEN * min(longer):
        ratio = f"{max(longer) / min(longer):.1f} times"
        found.append(f"the largest task vector is {ratio} as long as the smallest and decides most of the merge")
    if len(longer) < len(norms):
        count = f"{len(norms) - len(longer)} of {len(norms)} terms"
        found.append(f"{count} change no weight of the base, the head only if anything, and add nothing to the merge")
    if method.needs_magnitudes and any(map(is_sampled, deltas)):
        found.append(
            f"{method.name} chooses entries by size, which deltas that were pruned at random do not carry: "
            "it thins at random instead"
        )
    thin = [delta for delta in deltas if delta.manifest.compression.density < method.least_density]
    if thin:
        least = min(delta.manifest.compression.density for delta in thin)
        found.append(
            f"{method.name} keeps little of terms that were pruned to a density below {method.least_density:g}, and "
            f"{len(thin)} of {len(deltas)} were (the lowest is {least:.2g}): tsv_m or neuromerging keep more"
        )
    return tuple(found)


def _along(matrix: Matrix) -> torch.Tensor:
    """Energy of each term along its neurons' weights; with what pruning made of a row, at most the row's own."""
    energy = matrix.base_energy[:, None]
    parts = torch.where(energy > 0, matrix.projections.square() / energy, 0.0)
    return torch.minimum(parts, matrix.gram.diagonal(dim1=1, dim2=2)).sum(0)


def _signs(name: str, deltas: Sequence[Delta], base: Base) -> tuple[int, int]:
    """Entries that several terms change, and those of them whose signs differ."""
    shape = base.specs[name].shape
    touched, summed = torch.zeros(shape, dtype=torch.int8), torch.zeros(shape, dtype=torch.int8)
    for delta in deltas:
        if name in delta:
            signs = difference_of(delta, name, shape).sign().to(torch.int8)
            summed += signs
            touched += signs.abs()
    several = touched > 1
    return int(several.sum()), int((several & (summed.abs() < touched)).sum())


def _lengths(energies: torch.Tensor) -> tuple[float, ...]:
    return tuple(energies.clamp(min=0).sqrt().tolist())


def _ratios(parts: torch.Tensor, wholes: torch.Tensor) -> list[float]:
    ratios: list[float] = torch.where(wholes > 0, parts / wholes, 0.0).tolist()
    return ratios


def _cosines(gram: torch.Tensor) -> list[list[float]]:
    lengths = gram.diagonal().clamp(min=0).sqrt()
    products = lengths[:, None] * lengths
    cosines = torch.where(products > 0, gram / products, 0.0).clamp(-1, 1)
    found: list[list[float]] = cosines.fill_diagonal_(1.0).tolist()
    return [[0.0 if math.isnan(cosine) else cosine for cosine in row] for row in found]
