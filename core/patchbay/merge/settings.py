"""What terms weigh, and set for themselves, in one tensor: rules looked up by its name and by the depth of its layer.

Evaluated as mergekit evaluates its filters and gradients. Knows no methods and reads no weights.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from patchbay.errors import InvalidRecipe
from patchbay.merge.recipe import WEIGHT, CanonicalRecipe, Term
from patchbay.merge.rules import CanonicalRule, canonical_rules

# What methods look up term by term (`Stack.each`): shares, from 0 to 1. Their other parameters are one for all.
OF_TERMS = frozenset({"density", "gamma", "epsilon"})
_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?|resblocks)\.([0-9]+)\.")


def check_term(method: str, known: Collection[str], term: Term) -> None:
    """Raises InvalidRecipe, which names the term, for what it cannot set for itself, and for a share that is none."""
    who = f"term {term.delta!r}: "
    check_keys(method, known, term.params, who)
    for key in sorted(OF_TERMS & term.params.keys()):
        for value in (number for _, values in canonical_rules(term.params[key]) for number in values):
            if not 0 <= value <= 1:
                raise InvalidRecipe(f"{who}{key} is from 0 to 1, not {value:g}", param=f"params.{key}")


def check_keys(method: str, known: Collection[str], keys: Iterable[str], who: str = "") -> None:
    """Raises InvalidRecipe for what terms of a method with the parameters `known` cannot set for themselves.

    `who` goes before the message.
    """
    takes = sorted(OF_TERMS & set(known)) + [WEIGHT]
    for key in keys:
        if key not in takes:
            raise InvalidRecipe(
                f"{who}terms of {method} have no parameter {key!r} of their own; they may set: {', '.join(takes)}",
                param="terms",
            )


def layer_of(name: str) -> tuple[str, int] | None:
    """The stack of layers that a tensor is in, and the layer's number there; None outside layers.

    `model.layers.3.mlp.up_proj.weight` is in ("model.layers", 3). T5's `encoder.block.1.layer.0.` is in block 1.
    """
    found = _LAYER.search(name)
    return (name[: found.start(1) - 1], int(found[1])) if found else None


def depths(names: Iterable[str]) -> dict[str, float]:
    """How deep each tensor's layer is in its stack: from 0, the first, to 1, the last.

    As in mergekit, the layer of a stack of one is at 1, and all that is outside layers (embeddings, heads) at 0.
    """
    places = {name: layer_of(name) for name in names}
    last: dict[str, int] = {}
    for stack, number in filter(None, places.values()):
        last[stack] = max(number, last.get(stack, 0))
    return {name: _depth(place[1], last[place[0]]) if place else 0.0 for name, place in places.items()}


def _depth(number: int, last: int) -> float:
    return number / last if last else 1.0


def gradient_at(values: Sequence[float], depth: float) -> float:
    """Linear between the two of `values`, spread over [0, 1] at equal distances, that `depth` lies between."""
    scaled = depth * (len(values) - 1)
    below = int(scaled)
    above, share = min(len(values) - 1, below + 1), scaled - below
    return (1 - share) * values[below] + share * values[above]


def value_at(rules: Iterable[CanonicalRule], name: str, depth: float) -> float | None:
    """What the first rule says whose filter the name contains; None where there is none."""
    values = next((values for part, values in rules if part is None or part in name), None)
    return None if values is None else gradient_at(values, depth)


def _varies(rules: Sequence[CanonicalRule]) -> bool:
    return any(part is not None or len(values) > 1 for part, values in rules)


@dataclass(frozen=True, slots=True)
class Settings:
    """`weights[t]` holds where `rules["weight"][t]` say nothing, `params[key]` where `rules[key][t]` do not."""

    weights: tuple[float, ...]
    params: Mapping[str, float] = field(default_factory=dict)
    rules: Mapping[str, Sequence[Sequence[CanonicalRule]]] = field(default_factory=dict)
    depths: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, recipe: CanonicalRecipe, params: Mapping[str, object], names: Iterable[str]) -> Settings:
        """Of a recipe whose method's parameters are `params`, all of them, for the base's tensors `names`.

        Raises InvalidRecipe for what terms cannot set for themselves.
        """
        terms = [dict(settings) for settings in recipe.settings]
        keys = sorted({key for settings in terms for key in settings})
        check_keys(recipe.method, params.keys(), keys)
        rules = {key: [settings.get(key, ()) for settings in terms] for key in keys}
        if params.get("scope") == "global" and any(map(_varies, rules.get("density", ()))):
            raise InvalidRecipe("with scope=global a term has one density for all its tensors", param="terms")
        shared = {key: float(str(params[key])) for key in keys if key != WEIGHT}
        return cls(tuple(weight for _, weight in recipe.terms), shared, rules, depths(names) if keys else {})

    @property
    def has_rules(self) -> bool:
        return bool(self.rules)

    def weights_in(self, name: str) -> torch.Tensor:
        """fp32 [T]."""
        return torch.tensor(self._values(WEIGHT, name, self.weights), dtype=torch.float32)

    def params_in(self, name: str) -> dict[str, torch.Tensor]:
        """What terms have of their own, fp32 [T] each: the method's value for those that have none."""
        return {
            key: torch.tensor(self._values(key, name, [shared] * len(self.weights)), dtype=torch.float32)
            for key, shared in self.params.items()
        }

    def _values(self, key: str, name: str, otherwise: Sequence[float]) -> list[float]:
        rules = self.rules.get(key) or [()] * len(otherwise)
        found = [value_at(each, name, self.depths.get(name, 0.0)) for each in rules]
        return [default if value is None else value for value, default in zip(found, otherwise, strict=True)]
