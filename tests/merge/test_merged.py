"""What a recipe becomes, patched into the resident model, is what its method says on dense tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests import pico
from tests.merge.test_neuro import published

from patchbay.backbone import Backbone
from patchbay.delta import Delta
from patchbay.errors import InvalidRecipe
from patchbay.execute.patch import Patcher
from patchbay.merge import METHODS, CanonicalRecipe, build
from patchbay.merge.elect import elect_mean
from patchbay.merge.recipe import Scalar
from patchbay.merge.settings import Settings
from patchbay.merge.stack import Stacks

ModelFolder = Callable[..., Path]
PLANS = [name for name, method in METHODS.items() if method.path == "plan"]
DELTAS = [name for name, method in METHODS.items() if method.path == "delta"]


@pytest.fixture(scope="session")
def base(llama: Path) -> Backbone:
    return Backbone.load(llama)


@pytest.fixture(scope="session")
def deltas(llama: Path, finetune_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> list[Delta]:
    folder = tmp_path_factory.mktemp("merged")
    return [
        pico.delta(llama, finetune_folder("llama", seed=s), folder / f"{s}", density=d, values="fp32")
        for s, d in ((1, 1.0), (2, 0.3), (3, 0.3))
    ]


def recipe_of(method: str, weights: tuple[float, ...], scale: float = 1.0, **params: Scalar) -> CanonicalRecipe:
    filled = METHODS[method].filled(params)
    terms = tuple((f"sha256:{number}", weight) for number, weight in enumerate(weights))
    return CanonicalRecipe(method, terms, scale, tuple(sorted(filled.items())), None)


def weights_for(method: str) -> tuple[float, ...]:
    weights = (0.6, 1.3, 0.9) if METHODS[method].is_weighted else (1.0, 1.0, 1.0)
    return weights[: METHODS[method].num_terms[1]]


def patched(base: Backbone, deltas: list[Delta], recipe: CanonicalRecipe) -> dict[str, torch.Tensor]:
    """The resident tensors under the merge."""
    terms = deltas[: len(recipe.terms)]
    merged = build(recipe, terms, base)
    with Patcher(base).patched(merged.plan, merged.deltas(terms)):
        return {name: base.tensor(name).clone() for name in base.specs}


def bits(base: Backbone) -> dict[str, bytes]:
    return {name: base.tensor(name).numpy().tobytes() for name in base.specs}


@pytest.mark.parametrize("method", METHODS)
def test_the_base_is_itself_again(base: Backbone, deltas: list[Delta], method: str) -> None:
    before = bits(base)
    under = patched(base, deltas, recipe_of(method, weights_for(method)))
    assert bits(base) == before
    assert any(under[name].numpy().tobytes() != before[name] for name in before)


@pytest.mark.parametrize("method", DELTAS)
def test_a_delta_is_what_the_method_gives(base: Backbone, deltas: list[Delta], method: str) -> None:
    recipe = recipe_of(method, weights_for(method), scale=0.5)
    terms, params = deltas[: len(recipe.terms)], dict(recipe.params)
    merge = METHODS[method].merge
    assert merge is not None
    stacks = Stacks.of(terms, Settings.of(recipe, params, base.specs), base)
    expected = {name: base.stored(name) + 0.5 * difference for name, difference in merge(stacks, params)}
    assert set(expected) == set(stacks.names)
    for name, tensor in patched(base, deltas, recipe).items():
        torch.testing.assert_close(tensor, expected.get(name, base.stored(name)), rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("method", PLANS)
def test_a_plan_is_numbers_for_deltas_as_they_are(base: Backbone, deltas: list[Delta], method: str) -> None:
    recipe = recipe_of(method, weights_for(method))
    terms = deltas[: len(recipe.terms)]
    before = [rows.values.clone() for delta in terms for rows in delta.matrices.values()]
    merged = build(recipe, terms, base)
    assert merged.delta is None and merged.deltas(terms) == terms
    after = [rows.values for delta in terms for rows in delta.matrices.values()]
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    neurons = sum(spec.shape[spec.neuron_axis or 0] for spec in base.specs.values() if spec.is_matrix)
    by_rows = METHODS[method].plan is not None  # others sum small matrices, which are stored whole, like norms
    listed = [spec for name, spec in base.specs.items() if name not in merged.plan.matrices]
    others = sum(spec.numel for spec in listed if not (by_rows and spec.is_matrix))
    assert merged.num_bytes <= 4 * ((len(terms) + 1) * neurons + others)


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_terms_of_a_symmetric_method(base: Backbone, deltas: list[Delta], method: str) -> None:
    weights = weights_for(method)
    forward = patched(base, deltas, recipe_of(method, weights))
    turned = deltas[: len(weights)][::-1]
    backward = patched(base, turned, recipe_of(method, weights[::-1]))
    same = all(torch.allclose(forward[name], backward[name], rtol=0, atol=1e-5) for name in forward)
    # What draws for each term by its place has another draw, and is as good.
    assert same or not METHODS[method].symmetric or "seed" in METHODS[method].defaults


def test_neuromerging_is_the_published_merge_of_every_neuron(base: Backbone, deltas: list[Delta]) -> None:
    weights, params = (0.7, 1.5, 1.0), {"lambda1": 0.5, "lambda2": 1.2, "rescale": False}
    found = patched(base, deltas, recipe_of("neuromerging", weights, scale=0.9, **params))
    for name, spec in base.specs.items():
        before = base.stored(name).double()
        pairs = zip(deltas, weights, strict=True)
        taus = [w * (d.difference(name) if name in d else torch.zeros(spec.shape)).double() for d, w in pairs]
        if spec.is_matrix:
            parts = [published(w, torch.stack(rows)) for w, *rows in zip(before, *taus, strict=True)]
            expected = before + 0.9 * torch.stack([0.5 * along + 1.2 * across for along, across in parts])
        else:
            expected = before + 0.9 * 1.2 * elect_mean(torch.stack(taus))
        torch.testing.assert_close(found[name].double(), expected, rtol=0, atol=2e-6, msg=name)


def test_logits_are_those_of_the_merged_checkpoint(base: Backbone, deltas: list[Delta]) -> None:
    recipe = recipe_of("neuromerging", (1.0, 1.0, 1.0))
    merged, inputs = build(recipe, deltas, base), torch.arange(12).reshape(2, 6)
    offline = Backbone.load(base.folder)
    for name, tensor in patched(base, deltas, recipe).items():
        offline.tensor(name).copy_(tensor)
    with torch.no_grad(), Patcher(base).patched(merged.plan, deltas):
        online = base.model(input_ids=inputs).logits
    with torch.no_grad():
        torch.testing.assert_close(online, offline.model(input_ids=inputs).logits, rtol=0, atol=1e-5)


def test_the_rule_restores_the_mass_of_the_term_that_lost_most(base: Backbone, deltas: list[Delta]) -> None:
    with_rule = build(recipe_of("neuromerging", (1.0, 1.0)), deltas[:2], base).plan
    without = build(recipe_of("neuromerging", (1.0, 1.0), rescale=False), deltas[:2], base).plan
    sigma = deltas[1].manifest.statistics.sigma
    assert 0.2 < sigma < 1
    for name, matrix in without.matrices.items():
        torch.testing.assert_close(with_rule.matrices[name].coefficients, matrix.coefficients / (1 - sigma))


@pytest.mark.parametrize(("method", "count"), [("slerp", 1), ("slerp", 3), ("model_stock", 1)])
def test_the_wrong_number_of_terms(base: Backbone, deltas: list[Delta], method: str, count: int) -> None:
    with pytest.raises(InvalidRecipe, match=f"{method} merges .* and the recipe has {count}"):
        build(recipe_of(method, (1.0,) * count), deltas[:count], base)
