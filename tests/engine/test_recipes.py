"""What a recipe is made ready to, once for all who ask, and which way it runs."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import pytest
import torch
from tests import pico

from patchbay.backbone import Backbone
from patchbay.delta import Delta
from patchbay.delta.manifest import Token
from patchbay.engine.recipes import Path as How
from patchbay.engine.recipes import Recipes
from patchbay.errors import InputError, InvalidRecipe, NotFound
from patchbay.execute.prove import Proof
from patchbay.execute.wrap import wrap
from patchbay.merge import CanonicalRecipe, parse, settled

Folder = Callable[..., Path]
NAMES = ("math", "code", "exact", "whole", "longer", "longest")
FINE = Proof(True, 0.0, {})


@pytest.fixture(scope="module")
def base(model_folder: Folder) -> Backbone:
    found = Backbone.load(model_folder("llama"))
    wrap(found)
    return found


@pytest.fixture(scope="module")
def deltas(base: Backbone, finetune_folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Delta]:
    folder = tmp_path_factory.mktemp("deltas")
    made = {
        name: pico.delta(base.folder, finetune_folder("llama", seed, 0.1), folder / name, density=0.3)
        for seed, name in enumerate(("math", "code"), 1)
    }
    tuned = finetune_folder("llama", 3, 0.1)
    made["exact"] = pico.delta(base.folder, tuned, folder / "exact", density=1.0, exact=True)
    norm = "model.norm.weight"
    made["whole"] = replace(made["math"], copied={norm: base.tensor(norm) + 1})
    token = Token(id=pico.VOCAB, content="<new>", special=False)
    for name, rows in (("longer", 1), ("longest", 3)):
        manifest = made["math"].manifest.model_copy(update={"tokens": (token,)})
        appended = {"model.embed_tokens.weight": torch.zeros(rows, pico.HIDDEN)}
        made[name] = replace(made["math"], appended=appended, manifest=manifest)
    return made


@pytest.fixture
def loaded() -> list[str]:
    return []


@pytest.fixture
def recipes(base: Backbone, deltas: Mapping[str, Delta], loaded: list[str]) -> Recipes:
    return opened(base, deltas, loaded)


def opened(
    base: Backbone, deltas: Mapping[str, Delta], loaded: list[str], proof: Proof = FINE, budget: int = 1 << 30
) -> Recipes:
    def load(digest: str) -> Delta:
        loaded.append(digest)
        if digest not in deltas:
            raise NotFound.named("delta", digest)
        return deltas[digest]

    heavy = base.num_bytes
    return Recipes(base, load, proof, delta_bytes=budget, plan_bytes=budget, break_even_bytes=heavy)


def recipe(text: str) -> CanonicalRecipe:
    parsed = parse(text)
    return settled(parsed, {term.delta: term.delta for term in parsed.terms})


def test_no_recipe_is_the_base(recipes: Recipes, loaded: list[str]) -> None:
    for wanted in (None, How.DECOUPLED, How.PATCHED):
        ready = recipes.prepare(None, wanted)
        assert (ready.path, ready.active, ready.merged, ready.deltas) == (How.BASE, None, None, {})
        assert (ready.tokens, ready.num_appended) == ([], 0)
    assert not loaded


def test_decoupled_where_nothing_speaks_against_it(recipes: Recipes) -> None:
    for wanted in (None, How.DECOUPLED):
        ready = recipes.prepare(recipe("math + code"), wanted)
        assert ready.path is How.DECOUPLED and ready.active is not None and ready.merged is not None
        assert ready.active.plan is ready.merged.plan and list(ready.deltas) == ["code", "math"]


def test_patched_where_it_is_wanted(recipes: Recipes) -> None:
    ready = recipes.prepare(recipe("math"), How.PATCHED)
    assert ready.path is How.PATCHED and ready.active is None and ready.merged is not None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("exact", "bit for bit"),
        ("longer", "adds tokens"),
        ("math + longer", "adds tokens"),
        ("ties(code, longer)", "adds tokens"),
        ("whole", "replaces whole tensors"),
    ],
)
def test_what_cannot_be_decoupled(recipes: Recipes, text: str, reason: str) -> None:
    ready = recipes.prepare(recipe(text))
    assert ready.path is How.PATCHED and ready.active is None
    with pytest.raises(InputError, match=f"{reason}.*leave 'path' out") as error:
        recipes.prepare(recipe(text), How.DECOUPLED)
    assert error.value.param == "path"


def test_a_weight_of_its_own_makes_an_exact_delta_an_ordinary_one(recipes: Recipes) -> None:
    for text in ("0.5*exact", "exact + math"):
        assert recipes.prepare(recipe(text), How.DECOUPLED).path is How.DECOUPLED


def test_nothing_is_decoupled_without_a_proof(base: Backbone, deltas: Mapping[str, Delta], loaded: list[str]) -> None:
    recipes = opened(base, deltas, loaded, Proof(False, None, {}, "its rows are mixed"))
    assert recipes.prepare(recipe("math")).path is How.PATCHED
    with pytest.raises(InputError, match=r"proof at start failed \(its rows are mixed\)"):
        recipes.prepare(recipe("math"), How.DECOUPLED)


def test_new_tokens_are_told(recipes: Recipes) -> None:
    ready = recipes.prepare(recipe("math + longest"))
    assert ready.num_appended == 3 and [token.content for token in ready.tokens] == ["<new>"]
    with pytest.raises(InvalidRecipe):
        recipes.prepare(recipe("longer + longest"))


def test_keys_tell_recipes_apart(recipes: Recipes) -> None:
    """Texts that were read under one are found again by its key."""
    texts = [None, "math", "0.5*math", "code", "math + code", "ties(math, code)", "ties(math, code; density=0.4)"]
    keys = [recipes.prepare(recipe(text) if text else None).key for text in texts]
    assert len(set(keys)) == len(texts)
    assert recipes.prepare(recipe("code + math")).key == keys[4]
    assert recipes.prepare(recipe("math"), How.PATCHED).key == keys[1]


@pytest.mark.parametrize("text", ["math + code", "ties(math, code)"])
def test_a_plan_is_one_object_while_anybody_uses_it(recipes: Recipes, text: str) -> None:
    """Whose rows are one segment then; and what nobody uses is not kept for their sake."""
    first, second = recipes.prepare(recipe(text)), recipes.prepare(recipe(text))
    assert first.active is second.active is not None
    assert len(recipes._in_use) == 1
    del first, second
    gc.collect()
    assert not len(recipes._in_use)


def test_all_who_ask_at_once_get_one(recipes: Recipes, loaded: list[str]) -> None:
    start = Barrier(8)

    def prepare(_: int) -> object:
        start.wait()
        return recipes.prepare(recipe("math + code")).active

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(prepare, range(8)))
    assert len(set(map(id, found))) == 1 and found[0] is not None
    assert sorted(loaded) == ["code", "math"]
    assert (recipes.deltas.misses, recipes.plans.misses) == (2, 1)


def test_what_a_merge_made_is_compiled_once(recipes: Recipes) -> None:
    """Its own kernels, not those of its terms."""
    ready = recipes.prepare(recipe("ties(math, code)"))
    assert ready.active is not None and ready.merged is not None
    assert [compiled.delta for compiled in ready.active.deltas] == [ready.merged.delta]
    compiled = ready.active.deltas
    del ready
    gc.collect()
    again = recipes.prepare(recipe("ties(math, code)")).active
    assert again is not None and again.deltas[0] is compiled[0]


def test_a_budget_of_nothing_still_serves(base: Backbone, deltas: Mapping[str, Delta], loaded: list[str]) -> None:
    recipes = opened(base, deltas, loaded, budget=0)
    kept = recipes.prepare(recipe("math"))
    again = recipes.prepare(recipe("math"))
    assert kept.active is again.active is not None, "who uses it keeps it"
    assert loaded == ["math"] and not len(recipes.deltas)
    del kept, again
    gc.collect()
    recipes.prepare(recipe("math - code"))
    assert sorted(loaded) == ["code", "math", "math"] and not len(recipes.deltas)


def test_a_load_that_fails_is_tried_again(recipes: Recipes, loaded: list[str]) -> None:
    for _ in range(2):
        with pytest.raises(NotFound, match="no delta 'nobody'"):
            recipes.prepare(recipe("math + nobody"))
    assert loaded.count("nobody") == 2 and loaded.count("math") == 1
    assert recipes.prepare(recipe("math")).path is How.DECOUPLED


def test_a_lossless_delta_alone_is_patched(base: Backbone, finetune_folder: Folder, tmp_path: Path) -> None:
    """Whether any entry needed its bits written out or not: the sum beside the base is rounded elsewhere."""
    lossless = pico.delta(base.folder, finetune_folder("llama", 4, 0.1), tmp_path / "delta", method="lossless")
    for delta in (lossless, replace(lossless, exceptions={})):
        found = opened(base, {"math": delta}, [])
        assert found.prepare(recipe("math")).path is How.PATCHED
        with pytest.raises(InputError, match="bit for bit"):
            found.prepare(recipe("math"), How.DECOUPLED)
        assert found.prepare(recipe("0.5*math"), How.DECOUPLED).path is How.DECOUPLED


def test_a_delta_past_the_break_even_is_patched_unless_told(base: Backbone, deltas: Mapping[str, Delta]) -> None:
    recipes = opened(base, deltas, [])
    assert deltas["exact"].num_bytes > recipes.break_even_bytes > deltas["math"].num_bytes
    assert recipes.prepare(recipe("0.5*exact")).path is How.PATCHED
    assert recipes.prepare(recipe("0.5*exact"), How.DECOUPLED).path is How.DECOUPLED
    assert recipes.prepare(recipe("0.5*math")).path is How.DECOUPLED
