"""Recipes made ready to run: their deltas, their plan, and on which path. Knows nothing of requests and inputs.

Made in the thread of whoever asks, so that a cold delta delays nobody else.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from weakref import WeakValueDictionary

from patchbay.backbone import Backbone
from patchbay.delta import Delta
from patchbay.delta.manifest import Token
from patchbay.engine.patience import FOREVER, Patience
from patchbay.engine.pool import Pool
from patchbay.errors import InputError
from patchbay.execute.active import ActivePlan, CompiledDelta, pack
from patchbay.execute.prove import Proof
from patchbay.execute.vocabulary import appended_rows
from patchbay.merge import CanonicalRecipe, Merged, build

logger = logging.getLogger(__name__)
Load = Callable[[str], Delta]
MAX_WAIT_S = 30.0


class Path(StrEnum):
    """How an answer is computed: by the base's weights alone, with deltas beside them, or with weights patched."""

    BASE = "base"
    DECOUPLED = "decoupled"
    PATCHED = "patched"


@dataclass(frozen=True, eq=False)
class Ready:
    """`key` is the recipe's hash: what was kept of a text under one is never used under another, nor under another
    `salt`. `active` is there where `path` is decoupled, `merged` where there is a recipe; `terms` are its deltas, by
    digest, and in use for as long as this is.
    """

    key: str
    path: Path
    terms: Mapping[str, CompiledDelta]
    merged: Merged | None = None
    active: ActivePlan | None = None
    salt: str = ""

    @property
    def prefix_key(self) -> str:
        """Texts that begin alike share what is known of their beginning where they have this in common."""
        return f"{self.salt} {self.key}"

    @property
    def deltas(self) -> Mapping[str, Delta]:
        return {digest: term.delta for digest, term in self.terms.items()}

    @property
    def tokens(self) -> list[Token]:
        """That deltas add to the tokenizer."""
        return [token for delta in self.deltas.values() for token in delta.manifest.tokens]

    @property
    def num_appended(self) -> int:
        """Tokens that a delta adds to the vocabulary."""
        return max(map(len, appended_rows(list(self.deltas.values())).values()), default=0)


@dataclass(frozen=True, eq=False)
class Built:
    """A merge, and where it made a delta of its own that one with its kernels."""

    merged: Merged
    compiled: CompiledDelta | None

    @property
    def num_bytes(self) -> int:
        return self.compiled.num_bytes if self.compiled else self.merged.num_bytes


class Recipes:
    """`delta_bytes` bounds the deltas in memory, those of requests under way included: who needs another one waits for
    room, `max_wait` seconds at the most. `plan_bytes` bounds the plans and merged deltas that are kept. Deltas of more
    than `break_even_bytes` are patched where nobody says how.
    """

    def __init__(
        self,
        backbone: Backbone,
        load: Load,
        proof: Proof,
        *,
        delta_bytes: int,
        plan_bytes: int,
        break_even_bytes: int,
        max_wait: float = MAX_WAIT_S,
    ) -> None:
        self.backbone, self.proof = backbone, proof
        self.break_even_bytes = break_even_bytes
        self.deltas: Pool[CompiledDelta] = Pool(delta_bytes, max_wait=max_wait)
        self.plans: Pool[Built] = Pool(plan_bytes)
        # One for all requests of a recipe while any is under way: their rows are one segment then.
        self._in_use: WeakValueDictionary[str, ActivePlan] = WeakValueDictionary()
        # Told how long each of them took.
        self.loaded: Callable[[str, float], None] = lambda digest, seconds: None
        self.built: Callable[[CanonicalRecipe, float], None] = lambda recipe, seconds: None
        self._load = load

    def prepare(
        self,
        recipe: CanonicalRecipe | None,
        wanted: Path | None = None,
        patience: Patience = FOREVER,
        salt: str = "",
    ) -> Ready:
        """Loads what is missing. `salt`: who may learn, by how soon an answer begins, that a text was asked before:
        those with the same one. Raises as `load`, `build` and `patience` do, and InputError where the path that is
        `wanted` is not to be had.
        """
        if recipe is None:
            return Ready("base", Path.BASE, {}, salt=salt)
        terms = self._terms(recipe, patience)
        deltas = {digest: term.delta for digest, term in terms.items()}
        built = self._built(recipe, deltas)
        merged = built.merged
        reason = self._not_decoupled(merged, deltas)
        if wanted is Path.DECOUPLED and reason:
            raise InputError(f"this cannot run on the decoupled path: {reason}; leave 'path' out", param="path")
        if reason or wanted is Path.PATCHED or (wanted is None and self._is_heavy(merged, deltas)):
            return Ready(recipe.hash, Path.PATCHED, terms, merged, salt=salt)
        return Ready(recipe.hash, Path.DECOUPLED, terms, merged, self._active(recipe, built, terms), salt)

    def load(self, recipe: CanonicalRecipe | None) -> dict[str, Delta]:
        """In the recipe's order, which is that of the plan's coefficients."""
        return {digest: term.delta for digest, term in self._terms(recipe).items()}

    def merged(self, recipe: CanonicalRecipe, deltas: Mapping[str, Delta]) -> Merged:
        """Raises InvalidRecipe also where two deltas append rows."""
        return self._built(recipe, deltas).merged

    def pin(self, digest: str) -> None:
        """Loads a delta where it is missing; it stays until `unpin`. Raises CacheFull, and as `load` does."""
        self.deltas.pin(digest, partial(self._make, digest))

    def unpin(self, digest: str) -> None:
        """Nothing where it is not pinned."""
        self.deltas.unpin(digest)

    def is_pinned(self, digest: str) -> bool:
        return self.deltas.is_pinned(digest)

    def forget(self, key: str) -> None:
        """Lets go of a delta, or of a merge, that cannot be trusted any more, and of all that is made of deltas: it is
        made anew for who asks next. What is pinned is loaded again at once; raises as `pin` does.
        """
        is_pinned = self.is_pinned(key)
        self.unpin(key)
        self.deltas.discard(key)
        for other in self.plans.keys:
            self.plans.discard(other)
        self._in_use = WeakValueDictionary()
        if is_pinned:
            self.pin(key)

    def _terms(self, recipe: CanonicalRecipe | None, patience: Patience = FOREVER) -> dict[str, CompiledDelta]:
        found: dict[str, CompiledDelta] = {}
        for digest in [digest for digest, _ in recipe.terms] if recipe else []:
            held = sum(term.num_bytes for term in found.values())
            found[digest] = self.deltas.get(digest, partial(self._make, digest), held=held, patience=patience)
        return found

    def _make(self, digest: str) -> CompiledDelta:
        started = time.perf_counter()
        delta = self._load(digest)
        if not self.proof.ok or delta.appended:
            made = CompiledDelta(delta, {})  # it runs by patches alone
        else:
            made = CompiledDelta.of(pack(delta, self.backbone), self.backbone)
        if made.num_bytes > self.deltas.max_bytes:
            logger.warning(
                "a delta takes %s bytes, and the budget for all of them is %s: it is loaded anew for every request",
                f"{made.num_bytes:,}",
                f"{self.deltas.max_bytes:,}",
            )
        self.loaded(digest, time.perf_counter() - started)
        return made

    def _built(self, recipe: CanonicalRecipe, deltas: Mapping[str, Delta]) -> Built:
        appended_rows(list(deltas.values()))
        return self.plans.get(recipe.hash, partial(self._build, recipe, deltas))

    def _build(self, recipe: CanonicalRecipe, deltas: Mapping[str, Delta]) -> Built:
        started = time.perf_counter()
        merged = build(recipe, list(deltas.values()), self.backbone)
        compiled = None
        if merged.delta is not None and self._not_decoupled(merged, deltas) is None:
            merged = replace(merged, delta=pack(merged.delta, self.backbone))
            compiled = None if self._is_heavy(merged, deltas) else self._compiled(merged)
        self.built(recipe, time.perf_counter() - started)
        return Built(merged, compiled)

    def _compiled(self, merged: Merged) -> CompiledDelta:
        assert merged.delta is not None
        return CompiledDelta.of(merged.delta, self.backbone)

    def _not_decoupled(self, merged: Merged, deltas: Mapping[str, Delta]) -> str | None:
        """Why the weights themselves must change."""
        if not self.proof.ok:
            return f"the proof at start failed ({self.proof.reason})"
        if merged.plan.exact and any(delta.is_exact for delta in deltas.values()):
            return "a delta restores its fine-tune bit for bit"
        if any(delta.appended for delta in deltas.values()):
            return "a delta adds tokens to the vocabulary"
        return "a delta replaces whole tensors" if merged.plan.copied else None

    def _is_heavy(self, merged: Merged, deltas: Mapping[str, Delta]) -> bool:
        """Whether reading a delta beside the base at every step costs more than what steps in common save."""
        return any(delta.num_bytes > self.break_even_bytes for delta in merged.deltas(list(deltas.values())))

    def _active(self, recipe: CanonicalRecipe, built: Built, terms: Mapping[str, CompiledDelta]) -> ActivePlan:
        known = self._in_use.get(recipe.hash)
        if known is not None:
            return known
        if built.merged.delta is None:
            compiled = tuple(terms.values())
        else:
            compiled = (built.compiled or self._compiled(built.merged),)
        return self._in_use.setdefault(recipe.hash, ActivePlan(built.merged.plan, compiled, self.backbone))
