"""What an attack is, and the list of all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from patchbay.errors import DeltaError

Make = Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Attack:
    """`make` gives the file's bytes; reading it must raise exactly `error`, with `says` in the message."""

    name: str
    why: str
    error: type[DeltaError]
    says: str
    make: Make


ATTACKS: dict[str, Attack] = {}


def attack(error: type[DeltaError], says: str) -> Callable[[Make], Make]:
    """Registers a function under its own name; its docstring is the reason."""

    def register(make: Make) -> Make:
        name = make.__name__
        assert name not in ATTACKS and make.__doc__
        ATTACKS[name] = Attack(name, make.__doc__, error, says, make)
        return make

    return register
