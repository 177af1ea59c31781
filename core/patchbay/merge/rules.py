"""A setting of one term: a number, or rules that give tensors numbers by name and by depth, as mergekit writes them.

Read strictly, because it comes from outside. Knows no tensors: where rules hold is said by `patchbay.merge.settings`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

MAX_RULES = 8
MAX_GRADIENT = 64
MAX_FILTER = 200
EVERY = "*"  # the filter that matches all names, as no filter does


class Outside(BaseModel):
    """From JSON: 1 is read as 1.0, but "1" and true are no numbers; unknown fields, NaN and infinity are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


def list_as_tuple(value: object) -> object:
    """JSON's only sequence is the list, which strict mode would refuse for a tuple once it is a Python object."""
    return tuple(value) if isinstance(value, list) else value


def _number_or_list(value: object) -> object:
    """Says so where a union of the two would complain once for each."""
    if isinstance(value, list | tuple):
        return tuple(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise ValueError("a finite number, or a list")
    return value


_Filter = Annotated[str, Field(pattern="^[!-~]+$", max_length=MAX_FILTER)]
_Gradient = Annotated[tuple[float, ...], Field(min_length=1, max_length=MAX_GRADIENT)]


class Rule(Outside):
    """`value` for tensors whose stored name contains `filter`; without one, and with `*`, for all.

    Several numbers are a gradient: they are spread over the layers at equal distances, and interpolated.
    """

    filter: Annotated[_Filter | None, Field(exclude_if=lambda name: name is None)] = None
    value: Annotated[float | _Gradient, BeforeValidator(_number_or_list)]

    @property
    def values(self) -> tuple[float, ...]:
        return self.value if isinstance(self.value, tuple) else (self.value,)


Rules = Annotated[tuple[Rule, ...], Field(min_length=1, max_length=MAX_RULES)]
Setting = Annotated[float | Rules, BeforeValidator(_number_or_list)]
CanonicalRule = tuple[str | None, tuple[float, ...]]  # filter, or None for all names; number or gradient


def canonical_rules(setting: float | tuple[Rule, ...]) -> tuple[CanonicalRule, ...]:
    """The shortest rules that mean the same, whatever the names of tensors are.

    Left out is what an earlier rule always hides; filters in a row with one value have no order.
    """
    rules = setting if isinstance(setting, tuple) else (Rule(value=setting),)
    plain = [(None if rule.filter == EVERY else rule.filter, _plain(rule.values)) for rule in rules]
    found: list[CanonicalRule] = []
    for values, run in groupby(_reachable(plain), key=lambda rule: rule[1]):
        found += [(name, values) for name in _widest([name for name, _ in run])]
    return tuple(found)


def without_default(rules: tuple[CanonicalRule, ...], default: float) -> tuple[CanonicalRule, ...]:
    """Canonical rules without those at the end that say what holds without them."""
    kept = list(rules)
    while kept and kept[-1][1] == (default,):
        kept.pop()
    return tuple(kept)


def _plain(values: tuple[float, ...]) -> tuple[float, ...]:
    """A gradient of equal numbers is that number; + 0.0 turns -0.0 into 0.0."""
    return (values[0] + 0.0,) if len(set(values)) == 1 else tuple(value + 0.0 for value in values)


def _reachable(rules: Iterable[CanonicalRule]) -> list[CanonicalRule]:
    kept: list[CanonicalRule] = []
    for name, values in rules:
        if not any(_hides(earlier, name) for earlier, _ in kept):
            kept.append((name, values))
    return kept


def _hides(wide: str | None, narrow: str | None) -> bool:
    """Whether every name that `narrow` matches is one that `wide` matches."""
    return wide is None or (narrow is not None and wide in narrow)


def _widest(filters: Sequence[str | None]) -> list[str | None]:
    """Of filters with one value those that no other makes needless, in an order of their own."""
    kept = {one for one in filters if not any(other != one and _hides(other, one) for other in filters)}
    return sorted(kept, key=lambda name: name or "")
