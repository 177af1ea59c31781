"""Singular vectors and a draw of what they leave, for a number of bits: what a point of the sampled search stands for.

Knows nothing of scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from patchbay.compress.budget import density_of, entropy
from patchbay.compress.leading import Allocation, Bands, Leading, less, stored_bits
from patchbay.compress.parts import LowRankPart, Part, Pruner, SparsePart, Vector
from patchbay.compress.prune import num_kept
from patchbay.compress.region import Regions
from patchbay.compress.sampled import Sampled, Scales, region_weights
from patchbay.compress.sampling import geometric_bounds
from patchbay.compress.search import Point


@dataclass(frozen=True, slots=True)
class Choice:
    """`share` of the bits go to singular vectors; `inside` and `scale` are where `weights` come from, one a magnitude
    group of what is sampled; `columns` says whether input columns are weighed.
    """

    inside: int
    scale: float
    weights: Point
    columns: bool = False
    share: float = 0.0
    allocation: Allocation = "even"

    @property
    def point(self) -> Point:
        return (float(self.columns), self.share, float(self.allocation == "energy"), *self.weights)


@dataclass
class Mixture:
    """A density d stands for the bits that a draw of d of the entries takes, whatever they are spent on.

    `weigh_columns` is asked once, when a choice weighs columns.
    """

    vector: Vector
    groups: int
    seed: int
    values: str
    weigh_columns: Callable[[], Scales]
    _last: tuple[tuple[Choice, float], tuple[Bands, Sampled]] | None = None
    _spent: dict[float, float] = field(default_factory=dict)
    _kept: dict[tuple[Choice, float], int] = field(default_factory=dict)

    def pruner(self, choice: Choice, density: float) -> Pruner:
        bands, sampled = self._parts(replace(choice, inside=0, scale=0.0, weights=()), density)
        keep = self._keep(choice, density, sampled) if choice.share else num_kept(density, self.vector.numel)
        return _in_order(sampled.draws(choice.weights, keep, self.seed), bands, self.values)

    def rule(self, density: float) -> Choice:
        """Region and scale without calibration inputs, and no singular vectors."""
        keep = num_kept(density, self.vector.numel)
        inside, scale = self._regions.best(keep, _allowed(density, self.groups, self.vector.numel))
        return Choice(inside, scale, region_weights(self.groups, inside, scale))

    def beside(self, choice: Choice, share: float, allocation: Allocation, density: float) -> Choice:
        """With that share of singular vectors, and the rule's region and scale for what they leave."""
        there = replace(choice, share=share, allocation=allocation)
        _, rest = self._parts(Choice(0, 0.0, (), share=share, allocation=allocation), density)
        keep = num_kept(self._left(there, density), self.vector.numel)
        inside, scale = Regions.of(rest.vector, rest.edges).best(keep, self.regions(there, density))
        return replace(there, inside=inside, scale=scale, weights=region_weights(self.groups, inside, scale))

    def regions(self, choice: Choice, density: float) -> list[int]:
        """How many groups may be sampled from: they hold at least twice the entries that are kept, or they are all."""
        return _allowed(self._left(choice, density), self.groups, self.vector.numel)

    def _left(self, choice: Choice, density: float) -> float:
        """What the bits that singular vectors leave are a draw of, about."""
        return nominal_density(self._unspent(choice, density)) if choice.share else density

    @cached_property
    def _regions(self) -> Regions:
        return Regions.of(self.vector, self._plain.edges)

    @cached_property
    def _plain(self) -> Sampled:
        """The whole vector, every column the same. Made once: it passes over all of it."""
        return Sampled(self.vector, self.groups)

    @cached_property
    def _leading(self) -> Leading:
        return Leading(self.vector)

    @cached_property
    def _columns(self) -> Scales:
        return self.weigh_columns()

    def _parts(self, choice: Choice, density: float) -> tuple[Bands, Sampled]:
        """Singular vectors and what is sampled beside them. The last ones are kept: weights are searched over them."""
        if self._last is None or self._last[0] != (choice, density):
            columns = self._columns if choice.columns else {}
            bands = self._bands(choice, density)
            rest = self._leading.rest(bands) if bands else self.vector
            sampled = Sampled(rest, self.groups, columns) if bands or columns else self._plain
            self._last = (choice, density), (bands, sampled)
        return self._last[1]

    def _bands(self, choice: Choice, density: float) -> Bands:
        return self._leading.bands(choice.share * self._affordable(density), choice.allocation) if choice.share else {}

    def _unspent(self, choice: Choice, density: float) -> float:
        """Bits an entry that singular vectors leave: their share too, of a matrix that it buys no vector. With nothing
        but singular vectors, what cannot be spent is left over: few entries take more for their headers.
        """
        if choice.share == 1:
            return 0.0
        spent = stored_bits(self._bands(choice, density)) / self.vector.numel
        return max(0.0, self._affordable(density) - spent)

    def _affordable(self, density: float) -> float:
        """Bits an entry that a draw of this density takes by the rule."""
        if density not in self._spent:
            price = _price(self._plain, self.rule(density).weights, min(density, 0.5))
            self._spent[density] = price * nominal_bits(density)
        return self._spent[density]

    def _keep(self, choice: Choice, density: float, sampled: Sampled) -> int:
        """How many entries of the rest take what singular vectors leave of the bits.

        The same for all weights of a region: what a search finds is a draw of that many.
        """
        key = replace(choice, weights=()), density
        if key not in self._kept:
            weights = region_weights(self.groups, choice.inside, choice.scale)
            bits = self._unspent(choice, density)
            price = _price(sampled, weights, min(nominal_density(bits), 0.5))
            self._kept[key] = num_kept(nominal_density(bits / price), self.vector.numel)
        return self._kept[key]


def _in_order(draws: Iterator[tuple[str, Callable[[torch.Tensor], SparsePart]]], bands: Bands, values: str) -> Pruner:
    def prune(name: str, tau: torch.Tensor) -> Part:
        asked, drawn = next(draws)
        assert asked == name, "a pruner is asked in sorted order of names"
        leading = bands.get(name, ())
        part = drawn(less(tau, leading))
        if leading and not len(part.rows.positions):
            return LowRankPart(part.rows.shape, leading)
        part = replace(part, bands=leading)
        return part if values in ("auto", "sign") else SparsePart(part.rows, values, bands=leading)

    return prune


def _allowed(density: float, groups: int, total: int) -> list[int]:
    bounds = geometric_bounds(groups, total)
    smallest = next((m + 1 for m, bound in enumerate(bounds) if bound >= 2 * density * total), groups)
    return list(range(min(smallest, groups), groups + 1))


def nominal_bits(density: float) -> float:
    """What an entry costs that is drawn with this density: its position and its sign; from half of the entries on more
    and more for multiples, until every entry has a value of eight bits.
    """
    return entropy(density) + density if density <= 0.5 else 1.5 + 13 * (density - 0.5)


def nominal_density(bits: float) -> float:
    """The inverse of `nominal_bits`."""
    return density_of(bits) if bits <= 1.5 else min(1.0, 0.5 + (bits - 1.5) / 13)


def _price(sampled: Sampled, weights: Sequence[float], density: float) -> float:
    """What a draw takes, over what `nominal_bits` says."""
    total = sampled.vector.numel
    keep = num_kept(density, total)
    return sampled.cost(weights, keep) / (total * nominal_bits(keep / total)) if keep else 1.0
