"""A method's parameter within its limits, or an error that says them."""

from __future__ import annotations

from patchbay.errors import InvalidRecipe
from patchbay.merge.stack import Params


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
