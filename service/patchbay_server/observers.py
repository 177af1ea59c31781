"""Two observers where the engine tells one. Knows nothing of what they make of it."""

from __future__ import annotations

from collections.abc import Collection

from patchbay.engine.observer import Observer
from patchbay.engine.recipes import Ready
from patchbay.engine.sequence import Sequence
from patchbay.merge import CanonicalRecipe


class Both(Observer):
    """Tells two."""

    def __init__(self, first: Observer, second: Observer) -> None:
        self._each = first, second

    def stepped(self, is_patched: bool, readies: Collection[Ready]) -> None:
        for observer in self._each:
            observer.stepped(is_patched, readies)

    def produced(self, sequence: Sequence) -> None:
        for observer in self._each:
            observer.produced(sequence)

    def finished(self, sequence: Sequence) -> None:
        for observer in self._each:
            observer.finished(sequence)

    def loaded(self, digest: str, seconds: float) -> None:
        for observer in self._each:
            observer.loaded(digest, seconds)

    def built(self, recipe: CanonicalRecipe, seconds: float) -> None:
        for observer in self._each:
            observer.built(recipe, seconds)
