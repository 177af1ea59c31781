"""Who is told what the engine does, to count it. Called in the engine's threads: quickly answered, and never raising.

Knows nothing of what is made of it.
"""

from __future__ import annotations

from collections.abc import Collection

from patchbay.engine.recipes import Ready
from patchbay.engine.sequence import Sequence
from patchbay.merge import CanonicalRecipe


class Observer:
    """Does nothing: what somebody wants to know they override."""

    def stepped(self, is_patched: bool, readies: Collection[Ready]) -> None:
        """A forward pass for texts or inputs under these recipes, which may be the same, begins."""

    def produced(self, sequence: Sequence) -> None:
        """It has a new token."""

    def finished(self, sequence: Sequence) -> None:
        """It is over, however it ended."""

    def loaded(self, digest: str, seconds: float) -> None:
        """A delta was not in memory and has been loaded, in the thread of whoever asked for it."""

    def built(self, recipe: CanonicalRecipe, seconds: float) -> None:
        """A plan was not in memory and has been made, in the thread of whoever asked for it."""
