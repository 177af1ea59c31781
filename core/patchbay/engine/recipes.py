"""Recipes made ready to run: their deltas, their plan, and on which path. Knows nothing of requests and inputs.

Made in the thread of whoever asks, so that a cold delta delays nobody else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from weakref import WeakValueDictionary

from patchbay.backbone import Backbone
from patchbay.delta import Delta
from patchbay.delta.manifest import Token
from patchbay.engine.pool import Pool
from patchbay.errors import InputError
from patchbay.execute.active import ActivePlan, CompiledDelta, pack
from patchbay.execute.prove import Proof
from patchbay.execute.vocabulary import appended_rows
from patchbay.merge import CanonicalRecipe, Merged, build

Load = Callable[[str], Delta]


class Path(StrEnum):
    """How an answer is computed: by the base's weights alone, with deltas beside them, or with weights patched."""

    BASE = "base"
    DECOUPLED = "decoupled"
    PATCHED = "patched"


@dataclass(frozen=True, eq=False)
class Ready:
    """`key` is the recipe's hash: what was kept of a text under one is never used under another. `active` is there
    where `path` is decoupled, `merged` where there is a recipe; `deltas` are its terms', by digest.
    """

    key: str
    path: Path
    deltas: Mapping[str, Delta]
    merged: Merged | None = None
    active: ActivePlan | None = None

    @property
    def tokens(self) -> list[Token]:
        """That deltas add to the tokenizer."""
        return [token for delta in self.deltas.values() for token in delta.manifest.tokens]

    @property
    def num_appended(self) -> int:
        """Tokens that a delta adds to the vocabulary."""
        return max(map(len, appended_rows(list(self.deltas.values())).values()), default=0)


class Recipes:
    """`delta_bytes` bounds the decoded deltas kept in memory, and again what they are compiled to; `plan_bytes` plans
    and merged deltas.
    """

    def __init__(self, backbone: Backbone, load: Load, proof: Proof, *, delta_bytes: int, plan_bytes: int) -> None:
        self.backbone, self.proof = backbone, proof
        self.deltas: Pool[Delta] = Pool(delta_bytes)
        self.compiled: Pool[CompiledDelta] = Pool(delta_bytes)
        self.plans: Pool[Merged] = Pool(plan_bytes)
        # One for all requests of a recipe while any is under way: their rows are one segment then.
        self._in_use: WeakValueDictionary[str, ActivePlan] = WeakValueDictionary()
        self.built: Callable[[float], None] = lambda seconds: None  # told how long each plan took
        self._load = load if not proof.ok else lambda digest: pack(load(digest), backbone)

    def prepare(self, recipe: CanonicalRecipe | None, wanted: Path | None = None) -> Ready:
        """Loads what is missing. Raises as `load` and `build` do, and InputError where the path that is `wanted` is not
        to be had.
        """
        if recipe is None:
            return Ready("base", Path.BASE, {})
        deltas = self.load(recipe)
        merged = self.merged(recipe, deltas)
        reason = self._not_decoupled(merged, deltas)
        if wanted is Path.DECOUPLED and reason:
            raise InputError(f"this cannot run on the decoupled path: {reason}; leave 'path' out", param="path")
        if reason or wanted is Path.PATCHED or (wanted is None and self._is_heavy(merged, deltas)):
            return Ready(recipe.hash, Path.PATCHED, deltas, merged)
        return Ready(recipe.hash, Path.DECOUPLED, deltas, merged, self._active(recipe, merged, deltas))

    def load(self, recipe: CanonicalRecipe | None) -> dict[str, Delta]:
        """In the recipe's order, which is that of the plan's coefficients."""
        digests = [digest for digest, _ in recipe.terms] if recipe else []
        return {digest: self.deltas.get(digest, partial(self._load, digest)) for digest in digests}

    def merged(self, recipe: CanonicalRecipe, deltas: Mapping[str, Delta]) -> Merged:
        """Raises InvalidRecipe also where two deltas append rows."""
        appended_rows(list(deltas.values()))
        return self.plans.get(recipe.hash, partial(self._build, recipe, deltas))

    def pin(self, digest: str) -> None:
        """Loads a delta, and makes the kernels that it runs with, where they are missing; both stay until `unpin`.

        Raises CacheFull, and as `load` does.
        """
        delta = self.deltas.pin(digest, partial(self._load, digest))
        if not self.proof.ok or delta.appended:
            return  # it runs by patches alone
        try:
            self.compiled.pin(digest, partial(CompiledDelta.of, delta, self.backbone))
        except BaseException:
            self.deltas.unpin(digest)
            raise

    def unpin(self, digest: str) -> None:
        """Nothing where it is not pinned."""
        self.deltas.unpin(digest)
        self.compiled.unpin(digest)

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
        for other in self.compiled.keys:
            if not self.compiled.is_pinned(other):
                self.compiled.discard(other)
        self._in_use = WeakValueDictionary()
        if is_pinned:
            self.pin(key)

    def _build(self, recipe: CanonicalRecipe, deltas: Mapping[str, Delta]) -> Merged:
        started = time.perf_counter()
        merged = build(recipe, list(deltas.values()), self.backbone)
        self.built(time.perf_counter() - started)
        return merged

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
        """Whether a delta is larger than the base: reading it beside the base costs more than writing it there."""
        return any(delta.num_bytes > self.backbone.num_bytes for delta in merged.deltas(list(deltas.values())))

    def _active(self, recipe: CanonicalRecipe, merged: Merged, deltas: Mapping[str, Delta]) -> ActivePlan:
        known = self._in_use.get(recipe.hash)
        if known is not None:
            return known
        terms = {recipe.hash: merged.delta} if merged.delta else deltas
        compiled = [
            self.compiled.get(key, lambda delta=delta: CompiledDelta.of(delta, self.backbone))  # type: ignore[misc]
            for key, delta in terms.items()
        ]
        made = ActivePlan(merged.plan, tuple(compiled), self.backbone)
        return self._in_use.setdefault(recipe.hash, made)
