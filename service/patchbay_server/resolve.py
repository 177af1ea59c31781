"""From what a request names to what the engine runs: names -> digests, an expression or a patch -> a canonical recipe.

Names are resolved once per request; after that only digests count, so a rollback never changes a request under way.
Canonical recipes hold digests as `residents` writes them: everything that is made of one, and kept, is its tenant's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from patchbay.errors import InvalidRecipe, NotFound
from patchbay.merge import CanonicalRecipe, Recipe, Term, named, parse, settled
from patchbay.merge.recipe import WEIGHT
from patchbay.store.base import DEFAULT_TENANT, DeltaRecord
from patchbay.store.hub import Hub
from patchbay_server.residents import resident

BASE = "base"
MERGE = "merge"  # what metrics call a recipe that a request writes out itself


@dataclass(frozen=True, slots=True)
class Pinned:
    """One term's delta as it was found: the answer says so, and metrics and heads use the name."""

    term: str  # as written: `math` or `math@3`
    name: str
    version: int
    digest: str


@dataclass(frozen=True, slots=True)
class Resolved:
    """`recipe` and `canonical` are None for the base itself. `label` is the name that it goes by."""

    tenant: str
    label: str
    recipe: Recipe | None
    canonical: CanonicalRecipe | None
    pinned: tuple[Pinned, ...]
    head: str | None

    @property
    def names(self) -> dict[str, str]:
        """The engine's names -> the terms as written."""
        return {resident(self.tenant, pin.digest): pin.term for pin in self.pinned}

    @property
    def kind(self) -> str:
        """`base`, `delta` or `merge`: what others may know of it."""
        if self.recipe is None:
            return BASE
        return "delta" if len(self.recipe.terms) == 1 else "merge"

    @property
    def shown(self) -> str:
        """What operators may see of it, in metrics and logs: names of other tenants than the default one are theirs."""
        return self.label if self.tenant == DEFAULT_TENANT else self.kind

    def describe(self, path: str, warnings: Sequence[str] = ()) -> dict[str, Any]:
        """The `patchbay` object of a response."""
        weights = {term.delta: _plain_weight(term) for term in self.recipe.terms} if self.recipe else {}
        deltas = [
            {"name": pin.name, "version": pin.version, "digest": pin.digest, "weight": weights[pin.term]}
            for pin in self.pinned
        ]
        return {"path": path, "deltas": deltas, "recipe": self._replayable(), "warnings": list(warnings)}

    def _replayable(self) -> str | dict[str, Any] | None:
        """The recipe as an expression that, sent as `model`, asks for the same again: a head beside it goes inside.

        Where no expression writes it, in full, as `patch` takes it.
        """
        if self.recipe is None:
            return None
        recipe = self.recipe.model_copy(update={"head": self.head})
        return recipe.describe() or recipe.model_dump(mode="json")


def resolve(
    hub: Hub, tenant: str, base: str, model: str, patch: Recipe | None = None, head: str | None = None
) -> Resolved:
    """What `model` (with `patch` and `head` beside it) means now.

    Raises NotFound (with close names), InvalidExpression, InvalidRecipe, UnknownMethod.
    """
    if model in (base, BASE):
        if patch is None:
            return Resolved(tenant, BASE, None, None, (), _written_head(head, None))
        return _pin(hub, tenant, patch, head, label=MERGE)
    if patch is not None:
        raise InvalidRecipe(f"'patch' goes with the base as model, not with {model!r}", param="model")
    saved = _saved_merge(hub, tenant, model)
    if saved is not None:
        return _from_saved(hub, tenant, model, saved, head)
    recipe = parse(model)
    return _pin(hub, tenant, recipe, head, label=recipe.terms[0].name if _is_plain(recipe) else MERGE)


def pin_recipe(hub: Hub, tenant: str, recipe: Recipe, *, follow: bool) -> tuple[str, Resolved]:
    """The JSON that a saved merge stores, and what it means now."""
    resolved = _pin(hub, tenant, recipe, None, label=MERGE)
    pins = {p.term: {"name": p.name, "version": p.version, "digest": p.digest} for p in resolved.pinned}
    kept = recipe if follow else named(recipe)
    return json.dumps({"recipe": kept.model_dump(mode="json"), "follow": follow, "pins": pins}), resolved


def _is_plain(recipe: Recipe) -> bool:
    return len(recipe.terms) == 1 and recipe.method == "task_arithmetic"


def _plain_weight(term: Term) -> float | None:
    """None where it varies: the recipe says how."""
    return None if WEIGHT in term.params else term.weight


def _saved_merge(hub: Hub, tenant: str, name: str) -> Mapping[str, Any] | None:
    try:
        stored: dict[str, Any] = json.loads(hub.catalog.get_merge(tenant, name).recipe)
        return stored
    except NotFound:
        return None


def _from_saved(hub: Hub, tenant: str, name: str, saved: Mapping[str, Any], head: str | None) -> Resolved:
    recipe = Recipe.model_validate(saved["recipe"])
    if saved["follow"]:
        return _pin(hub, tenant, recipe, head, label=name)
    # Written with its versions: a bare name means whatever is current when the recipe is sent again.
    versions = {term: f"{pin['name']}@{pin['version']}" for term, pin in saved["pins"].items()}
    terms = tuple(term.model_copy(update={"delta": versions[term.delta]}) for term in recipe.terms)
    pinned = [Pinned(versions[t], pin["name"], pin["version"], pin["digest"]) for t, pin in saved["pins"].items()]
    renamed = recipe.model_copy(update={"terms": terms, "head": versions.get(recipe.head or "", recipe.head)})
    return _canonical(tenant, renamed, pinned, versions.get(head or "", head), label=name)


def _pin(hub: Hub, tenant: str, recipe: Recipe, head: str | None, *, label: str) -> Resolved:
    pinned = []
    for term in recipe.terms:
        record = _find(hub, tenant, term.name, term.version)
        pinned.append(Pinned(term.delta, record.name, record.version, record.digest))
    return _canonical(tenant, recipe, pinned, head, label=label)


def _find(hub: Hub, tenant: str, name: str, version: int | None) -> DeltaRecord:
    if name == BASE:
        raise InvalidRecipe("the base is no term: a smaller weight is nearer to it, as in '0.5*math'", param="model")
    try:
        return hub.catalog.get_delta(tenant, name, version)
    except NotFound as error:
        if _saved_merge(hub, tenant, name) is not None:
            message = f"{name!r} is a saved merge, which cannot be a term of another: write its deltas out"
            raise InvalidRecipe(message, param="model") from error
        raise NotFound(error.message, param="model") from error


def _canonical(tenant: str, recipe: Recipe, pinned: list[Pinned], head: str | None, *, label: str) -> Resolved:
    recipe = named(recipe)
    canonical = settled(recipe, {pin.term: resident(tenant, pin.digest) for pin in pinned})
    return Resolved(tenant, label, recipe, canonical, tuple(pinned), _written_head(head, recipe))


def _written_head(asked: str | None, recipe: Recipe | None) -> str | None:
    """The head as a term is written. A bare name stands for the term of that name, whatever its version."""
    inside = recipe.head if recipe else None
    if asked is not None and inside is not None and asked != inside:
        raise InvalidRecipe(f"the request asks for head {asked!r} and its recipe for {inside!r}", param="head")
    wanted = asked if asked is not None else inside
    terms = [term for term in recipe.terms if wanted in (term.delta, term.name)] if recipe and wanted else []
    return terms[0].delta if len(terms) == 1 else wanted
