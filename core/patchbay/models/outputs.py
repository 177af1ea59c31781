"""What every kind of answer has to hold to, whichever model gave it."""

from __future__ import annotations

from patchbay.errors import NonFiniteValue


def check_finite(finite: bool) -> None:
    """Raises NonFiniteValue unless `finite`: weights that a recipe drove out of range answer anything at all."""
    if not finite:
        raise NonFiniteValue("the model's output is not finite under this recipe: use smaller weights", param="model")
