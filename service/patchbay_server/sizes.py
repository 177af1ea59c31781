"""Sizes as people write them: `350000`, `350kB`, `1.5 MB`, `2MiB`."""

from __future__ import annotations

import re
from decimal import Decimal

from patchbay.errors import InvalidRecipe

_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,9})?)\s*(?:([kmgt])(i?))?b?", re.IGNORECASE | re.ASCII)
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4}


def parse_size(text: str, param: str) -> int:
    """Whole bytes, rounded down. k, M, G and T count in thousands, Ki, Mi, Gi and Ti in 1,024s; case does not matter.

    Raises InvalidRecipe.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidRecipe(f"{text!r} is no size: give bytes, or a number like 350kB, 1.5MB or 2MiB", param=param)
    number, unit, is_binary = match.groups()
    factor = (1024 if is_binary else 1000) ** _POWERS[unit.lower()] if unit else 1
    return int(Decimal(number) * factor)
