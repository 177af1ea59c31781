"""A method's parameter within its limits, or an error that says them. Knows no method."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from patchbay.errors import InvalidRecipe
from patchbay.merge.stack import Params, Stack


def choice(params: Params, name: str, words: Sequence[str]) -> str:
    """A parameter that is one of `words`. Raises InvalidRecipe, which lists them."""
    word = str(params[name])
    if word not in words:
        raise InvalidRecipe(f"{name} is one of {', '.join(words)}, not {word!r}", param=f"params.{name}")
    return word


def share(params: Params, name: str) -> float:
    """A shared parameter from 0 to 1. Raises InvalidRecipe for another number."""
    return _checked(float(params[name]), name)


def shares(stack: Stack, params: Params, name: str) -> list[float]:
    """A parameter from 0 to 1 of every term. Raises InvalidRecipe for another number.

    Read from fp32 as it was typed: 0.7 of 1,000 entries are 700, and 0.7 in fp32 is less than 0.7.
    """
    return [_checked(float(str(np.float32(value))), name) for value in stack.each(name, params).tolist()]


def whole(params: Params, name: str, least: int, most: int) -> int:
    """Raises InvalidRecipe where the parameter is not from `least` to `most`."""
    number = int(params[name])
    if not least <= number <= most:
        raise InvalidRecipe(f"{name} is {least} to {most} here, not {number}", param=f"params.{name}")
    return number


def above_zero(params: Params, name: str) -> float:
    """Raises InvalidRecipe where the parameter is not above 0."""
    number = float(params[name])
    if not number > 0:
        raise InvalidRecipe(f"{name} is above 0, not {number:g}", param=f"params.{name}")
    return number


def _checked(value: float, name: str) -> float:
    if not 0 <= value <= 1:
        raise InvalidRecipe(f"{name} is a share of the entries, from 0 to 1, not {value:g}", param=f"params.{name}")
    return value
