"""What terms set for themselves, tensor by tensor. The table holds what mergekit 0.1.5 plans for the same models."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import pico

from patchbay.architecture import Architecture
from patchbay.checkpoint import Checkpoint
from patchbay.delta import Delta
from patchbay.errors import InvalidRecipe
from patchbay.merge import METHODS, Merged, Recipe, Term, build, build_plan
from patchbay.merge.rules import EVERY, MAX_GRADIENT, Rule, canonical_rules, without_default
from patchbay.merge.settings import (
    OF_TERMS,
    Settings,
    check_keys,
    check_term,
    depths,
    gradient_at,
    layer_of,
    value_at,
)

ModelFolder = Callable[..., Path]
LAW = settings(deadline=None)  # a busy machine is no failure
FIRST = [{"value": [0.1, 0.7, 0.4]}]
SECOND = [
    {"filter": "attn", "value": [0, 1]},
    {"filter": "attention", "value": [0.9, 0.2]},
    {"filter": "SelfAttention", "value": [0.5, -0.5]},
    {"filter": "mlp", "value": -0.5},
    {"filter": "*", "value": [0.3, 0.3, 0.6, 0.9]},
]
DENSITY = [{"value": [1, 0.5]}]
# model, number of layers, tensor -> weights of both terms, density of the second
PLANNED_BY_MERGEKIT = [
    ("llama", 4, "model.embed_tokens.weight", [0.1, 0.3], 1.0),
    ("llama", 4, "model.layers.0.input_layernorm.weight", [0.1, 0.3], 1.0),
    ("llama", 4, "model.layers.0.self_attn.q_proj.weight", [0.1, 0.0], 1.0),
    ("llama", 4, "model.layers.0.post_attention_layernorm.weight", [0.1, 0.9], 1.0),
    ("llama", 4, "model.layers.1.self_attn.o_proj.weight", [0.5, 1 / 3], 5 / 6),
    ("llama", 4, "model.layers.1.post_attention_layernorm.weight", [0.5, 2 / 3], 5 / 6),
    ("llama", 4, "model.layers.1.mlp.up_proj.weight", [0.5, -0.5], 5 / 6),
    ("llama", 4, "model.layers.2.input_layernorm.weight", [0.6, 0.6], 2 / 3),
    ("llama", 4, "model.layers.2.post_attention_layernorm.weight", [0.6, 1.3 / 3], 2 / 3),
    ("llama", 4, "model.layers.3.self_attn.k_proj.weight", [0.4, 1.0], 0.5),
    ("llama", 4, "model.layers.3.mlp.down_proj.weight", [0.4, -0.5], 0.5),
    ("llama", 4, "model.norm.weight", [0.1, 0.3], 1.0),
    ("llama", 1, "model.layers.0.self_attn.q_proj.weight", [0.4, 1.0], 0.5),
    ("llama", 1, "model.layers.0.input_layernorm.weight", [0.4, 0.9], 0.5),
    ("llama", 1, "model.embed_tokens.weight", [0.1, 0.3], 1.0),
    ("bert_classifier", 3, "bert.embeddings.word_embeddings.weight", [0.1, 0.3], 1.0),
    ("bert_classifier", 3, "bert.encoder.layer.0.attention.self.query.weight", [0.1, 0.9], 1.0),
    ("bert_classifier", 3, "bert.encoder.layer.1.attention.output.LayerNorm.bias", [0.7, 0.55], 0.75),
    ("bert_classifier", 3, "bert.encoder.layer.1.output.dense.weight", [0.7, 0.45], 0.75),
    ("bert_classifier", 3, "bert.encoder.layer.2.intermediate.dense.bias", [0.4, 0.9], 0.5),
    ("bert_classifier", 3, "bert.pooler.dense.weight", [0.1, 0.3], 1.0),
    ("bert_classifier", 3, "classifier.weight", [0.1, 0.3], 1.0),
    ("t5", 2, "shared.weight", [0.1, 0.3], 1.0),
    ("t5", 2, "encoder.block.0.layer.0.SelfAttention.q.weight", [0.1, 0.5], 1.0),
    ("t5", 2, "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", [0.1, 0.9], 1.0),
    ("t5", 2, "decoder.block.1.layer.0.SelfAttention.o.weight", [0.4, -0.5], 0.5),
    ("t5", 2, "decoder.block.1.layer.2.DenseReluDense.wo.weight", [0.4, 0.9], 0.5),
    ("t5", 2, "encoder.final_layer_norm.weight", [0.1, 0.3], 1.0),
]  # fmt: skip


def recipe_of(method: str, terms: list[dict[str, Any]], **fields: Any) -> Recipe:
    return Recipe.model_validate({"method": method, "terms": terms, **fields})


def canonical(recipe: Recipe) -> Any:
    digests = {term.delta: f"sha256:{term.delta}" for term in recipe.terms}
    method = METHODS[recipe.method]
    filled = recipe.model_copy(update={"params": method.filled(recipe.params)})
    return filled.canonical(digests, method.symmetric, {})


def settings_of(method: str, terms: list[dict[str, Any]], names: Iterable[str], **fields: Any) -> Settings:
    recipe = canonical(recipe_of(method, terms, **fields))
    return Settings.of(recipe, METHODS[method].filled(dict(recipe.params)), names)


# where layers are


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("bert.encoder.layer.11.attention.self.query.weight", ("bert.encoder.layer", 11)),
        ("encoder.layer.0.output.dense.bias", ("encoder.layer", 0)),
        ("distilbert.transformer.layer.3.ffn.lin1.weight", ("distilbert.transformer.layer", 3)),
        ("vit.encoder.layer.7.layernorm_before.weight", ("vit.encoder.layer", 7)),
        ("vision_model.encoder.layers.2.mlp.fc1.weight", ("vision_model.encoder.layers", 2)),
        ("model.layers.31.mlp.down_proj.weight", ("model.layers", 31)),
        ("model.layers.3.block_sparse_moe.experts.5.w1.weight", ("model.layers", 3)),
        ("model.decoder.layers.4.fc1.weight", ("model.decoder.layers", 4)),
        ("gpt_neox.layers.5.attention.dense.weight", ("gpt_neox.layers", 5)),
        ("transformer.h.9.attn.c_attn.weight", ("transformer.h", 9)),
        ("h.10.mlp.c_fc.bias", ("h", 10)),
        ("transformer.blocks.6.ffn.up_proj.weight", ("transformer.blocks", 6)),
        ("visual.transformer.resblocks.1.ln_1.weight", ("visual.transformer.resblocks", 1)),
        ("encoder.block.1.layer.0.SelfAttention.q.weight", ("encoder.block", 1)),
        ("decoder.block.12.layer.2.DenseReluDense.wo.weight", ("decoder.block", 12)),
        ("bert.embeddings.word_embeddings.weight", None),
        ("vit.embeddings.patch_embeddings.projection.weight", None),
        ("model.embed_tokens.weight", None),
        ("lm_head.weight", None),
        ("classifier.1.bias", None),
        ("transformer.wpe.weight", None),
        ("shared.weight", None),
        ("model.player.3.weight", None),
        ("layers.weight", None),
        ("", None),
    ],
)
def test_layer_of(name: str, place: tuple[str, int] | None) -> None:
    assert layer_of(name) == place


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert_classifier", "vit", "clip_vision"])
def test_every_real_layer_has_a_number(model_folder: ModelFolder, kind: str) -> None:
    names = Checkpoint.open(model_folder(kind, layers=3)).tensors
    found = depths(names)
    assert found.keys() == names.keys()
    assert {round(2 * depth) for depth in found.values()} == {0, 1, 2}
    for name, depth in found.items():
        number = re.search(r"\.([0-9]+)\.", f".{name}")
        assert depth == (int(number[1]) / 2 if number else 0.0), name


def test_stacks_count_their_own_layers() -> None:
    names = ["encoder.block.0.a", "encoder.block.4.a", "decoder.block.0.a", "decoder.block.1.a", "decoder.block.2.a"]
    assert list(depths(names).values()) == [0.0, 1.0, 0.0, 0.5, 1.0]
    assert depths(["h.0.a", "wte"]) == {"h.0.a": 1.0, "wte": 0.0}
    assert depths([]) == {}


# gradients and filters


@pytest.mark.parametrize(("model", "layers", "name", "weights", "density"), PLANNED_BY_MERGEKIT)
def test_as_mergekit_plans(
    model_folder: ModelFolder, model: str, layers: int, name: str, weights: list[float], density: float
) -> None:
    terms = [
        {"delta": "a", "params": {"weight": FIRST}},
        {"delta": "b", "params": {"weight": SECOND, "density": DENSITY}},
    ]
    found = settings_of("ties", terms, Checkpoint.open(model_folder(model, layers=layers)).tensors)
    assert found.weights_in(name).tolist() == torch.tensor(weights, dtype=torch.float32).tolist()
    assert found.params_in(name).keys() == {"density"}
    assert found.params_in(name)["density"].tolist() == torch.tensor([1.0, density]).tolist()


@pytest.mark.parametrize(
    ("values", "depth", "expected"),
    [([2.0], 0.7, 2.0), ([0.0, 1.0], 0.25, 0.25), ([0.0, 1.0, 4.0], 0.75, 2.5), ([0.0, 1.0], 1.0, 1.0)],
)
def test_a_gradient(values: list[float], depth: float, expected: float) -> None:
    assert gradient_at(values, depth) == expected


@LAW
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=MAX_GRADIENT), st.floats(0, 1))
def test_a_gradient_stays_between_its_numbers(values: list[float], depth: float) -> None:
    assert min(values) - 1e-9 <= gradient_at(values, depth) <= max(values) + 1e-9
    assert (gradient_at(values, 0.0), gradient_at(values, 1.0)) == (values[0], values[-1])


def test_what_no_rule_says_is_the_terms_weight_and_the_methods_parameter() -> None:
    terms = [
        {"delta": "a", "weight": 3, "params": {"weight": [{"filter": "mlp", "value": 2}]}},
        {"delta": "b", "weight": 5, "params": {"density": [{"filter": "attn", "value": 0.5}]}},
        {"delta": "c", "params": {"density": 0.25}},
    ]
    found = settings_of("ties", terms, ["h.0.mlp.w", "h.0.attn.w"], params={"density": 0.75})
    assert found.weights_in("h.0.mlp.w").tolist() == [2, 5, 1]
    assert found.weights_in("h.0.attn.w").tolist() == [3, 5, 1]
    assert found.params_in("h.0.mlp.w")["density"].tolist() == [0.75, 0.75, 0.25]
    assert found.params_in("h.0.attn.w")["density"].tolist() == [0.75, 0.5, 0.25]


def test_settings_follow_their_terms_into_canonical_order() -> None:
    terms = [{"delta": "b", "params": {"density": 0.5}}, {"delta": "a", "weight": 2}]
    found = settings_of("ties", terms, [], params={"density": 0.75})
    assert (found.weights, found.params_in("x")["density"].tolist()) == ((2.0, 1.0), [0.75, 0.5])


def test_without_settings_there_is_nothing_to_look_up() -> None:
    found = settings_of("ties", [{"delta": "a", "weight": 0.5}], ["h.0.x"])
    assert not found.has_rules and not found.params_in("h.0.x") and not found.depths
    assert found.weights_in("h.0.x").tolist() == [0.5]


@pytest.mark.parametrize(
    ("method", "key"), [("linear", "density"), ("ties", "seed"), ("ties", "gamma"), ("neuromerging", "lambda1")]
)
def test_what_terms_cannot_set_is_refused(method: str, key: str) -> None:
    with pytest.raises(
        InvalidRecipe, match=f"terms of {method} have no parameter '{key}' of their own.*weight"
    ) as caught:
        settings_of(method, [{"delta": "a", "params": {key: 0.5}}, {"delta": "b"}], [])
    assert caught.value.param == "terms"
    check_keys(method, METHODS[method].defaults, ["weight"])


@pytest.mark.parametrize(
    ("method", "params", "message", "param"),
    [
        ("ties", {"seed": 1}, "term 'math@3': terms of ties have no parameter 'seed' of their own", "terms"),
        ("ties", {"density": 1.5}, "term 'math@3': density is from 0 to 1, not 1.5", "params.density"),
        ("breadcrumbs", {"gamma": [{"filter": "a", "value": 0}, {"value": [1, -2]}]}, "term 'math@3'", "params.gamma"),
        ("della", {"density": 0.5, "epsilon": 2}, "term 'math@3': epsilon is from 0 to 1, not 2", "params.epsilon"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_term(method: str, params: Any, message: str, param: str) -> None:
    term = Term.model_validate({"delta": "math@3", "params": params})
    with pytest.raises(InvalidRecipe) as caught:
        check_term(method, METHODS[method].defaults, term)
    assert caught.value.message.startswith(message) and caught.value.param == param


def test_what_a_term_may_set() -> None:
    params = {"density": 1, "epsilon": [{"filter": "mlp", "value": [0, 1]}], "weight": [{"value": -10}]}
    check_term("della", METHODS["della"].defaults, Term.model_validate({"delta": "math", "params": params}))


def test_one_density_where_all_tensors_are_ranked_together() -> None:
    settings_of("ties", [{"delta": "a", "params": {"density": 0.5}}], [], params={"scope": "global"})
    varying = [{"delta": "a", "params": {"density": DENSITY}}]
    with pytest.raises(InvalidRecipe, match="scope=global"):
        settings_of("ties", varying, [], params={"scope": "global"})


def test_methods_read_what_terms_may_set(llama: Path, deltas: list[Delta]) -> None:
    """A parameter in `OF_TERMS` that a method does not look up by term would be ignored without a word."""
    asked = [name for name in METHODS if OF_TERMS & METHODS[name].defaults.keys()]
    assert {"ties", "dare_linear", "dare_ties", "breadcrumbs", "della"} <= set(asked)
    for name in asked:
        for key in sorted(OF_TERMS & METHODS[name].defaults.keys()):
            shared = {"density": 0.5, "gamma": 0.2, "epsilon": 0.1}[key]
            both = {"density": 0.6} | ({key: shared} if key != "density" else {})
            plain = [{"delta": "d0"}, {"delta": "d1"}]
            own = [{"delta": "d0", "params": {key: shared / 2}}, {"delta": "d1"}]
            params = {k: v for k, v in both.items() if k in METHODS[name].defaults}
            assert not same(made(llama, deltas, name, plain, params), made(llama, deltas, name, own, params)), (
                name,
                key,
            )


# canonical rules

FILTERS = st.sampled_from([None, EVERY, "a", "b", "ab", "abc", "c"])
VALUES = st.sampled_from([0.0, -0.0, 0.5, 1.0])
RULES = st.lists(
    st.builds(Rule, filter=FILTERS, value=st.one_of(VALUES, st.lists(VALUES, min_size=1, max_size=3).map(tuple))),
    min_size=1,
    max_size=5,
).map(tuple)


def plainly(rules: tuple[Rule, ...], name: str, depth: float) -> float | None:
    """As written, without the code under test but for the gradient."""
    for rule in rules:
        if rule.filter in (None, EVERY) or rule.filter in name:
            return gradient_at(rule.values, depth)
    return None


@LAW
@given(RULES, st.text("abcd", max_size=6), st.floats(0, 1))
def test_canonical_rules_mean_the_same(rules: tuple[Rule, ...], name: str, depth: float) -> None:
    found, expected = value_at(canonical_rules(rules), name, depth), plainly(rules, name, depth)
    assert (found is None) == (expected is None)
    assert found is None or found == pytest.approx(expected)
    otherwise = value_at(without_default(canonical_rules(rules), 0.5), name, depth)
    assert (0.5 if otherwise is None else otherwise) == pytest.approx(0.5 if expected is None else expected)


@LAW
@given(RULES)
def test_canonical_rules_are_their_own_canonical_form(rules: tuple[Rule, ...]) -> None:
    found = canonical_rules(rules)
    again = tuple(Rule(filter=name, value=values) for name, values in found)
    assert len(found) <= len(rules) and canonical_rules(again) == found


# merged


@pytest.fixture(scope="module")
def deltas(llama: Path, finetune_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> list[Delta]:
    folder = tmp_path_factory.mktemp("deltas")
    return [
        pico.delta(llama, finetune_folder("llama", seed=s, scale=0.05), folder / f"{s}", density=1.0, values="fp32")
        for s in (1, 2)
    ]


class Stored:
    """The base on disk."""

    def __init__(self, folder: Path) -> None:
        self.checkpoint = Checkpoint.open(folder)
        self.specs = Architecture.of(self.checkpoint).specs

    def stored(self, name: str) -> torch.Tensor:
        return self.checkpoint.read(name)


def made(
    base: Path, deltas: list[Delta], method: str, terms: list[dict[str, Any]], params: dict[str, Any] | None = None
) -> dict[str, torch.Tensor]:
    """The merged difference of every tensor of the llama model; `terms` name d0, d1 ... in this order."""
    merged: Merged = build(canonical(recipe_of(method, terms, params=params or {})), deltas, Stored(base))
    parts, result = merged.deltas(deltas), dict(merged.plan.vectors)
    for name, plan in merged.plan.matrices.items():
        rows = zip(plan.coefficients, parts, strict=True)
        result[name] = torch.stack([row[:, None] * part.difference(name) for row, part in rows if name in part]).sum(0)
    return result


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.allclose(one[name], other[name]) for name in one)


def test_every_tensor_has_its_own_weights(llama: Path, deltas: list[Delta]) -> None:
    rules = [{"filter": "mlp", "value": 0}, {"filter": "layers", "value": [0.5, 2]}]
    found = made(llama, deltas, "task_arithmetic", [{"delta": "d0", "params": {"weight": rules}}, {"delta": "d1"}])
    for name, difference in found.items():
        weight = 0.0 if "mlp" in name else 0.5 if "layers.0" in name else 2.0 if "layers.1" in name else 1.0
        expected = weight * deltas[0].difference(name) + deltas[1].difference(name)
        torch.testing.assert_close(difference, expected.reshape(difference.shape), msg=name)


def test_a_mean_divides_by_the_weights_of_the_tensor(llama: Path, deltas: list[Delta]) -> None:
    weights = [{"filter": "mlp", "value": 3}]
    found = made(llama, deltas, "linear", [{"delta": "d0", "params": {"weight": weights}}, {"delta": "d1"}])
    for name, difference in found.items():
        share = 0.75 if "mlp" in name else 0.5
        expected = share * deltas[0].difference(name) + (1 - share) * deltas[1].difference(name)
        torch.testing.assert_close(difference, expected.reshape(difference.shape), rtol=0, atol=1e-6, msg=name)


def test_weights_that_cancel_in_one_tensor_name_it(llama: Path, deltas: list[Delta]) -> None:
    weights = [{"filter": "layers.1.mlp.up_proj", "value": -1}]
    with pytest.raises(InvalidRecipe, match=r"in 'model.layers.1.mlp.up_proj.weight', the weights of a mean sum to 0"):
        made(llama, deltas, "linear", [{"delta": "d0", "params": {"weight": weights}}, {"delta": "d1"}])


@pytest.mark.parametrize("method", ["ties", "neuromerging"])
def test_the_same_weight_by_rule_and_in_plain(llama: Path, deltas: list[Delta], method: str) -> None:
    """The rules cannot be folded into a plain weight, so that the two ways are really different."""
    rules = [{"filter": "layers", "value": 0.5}, {"filter": "norm", "value": 0.5}, {"filter": "embed", "value": 0.5}]
    by_rule = made(llama, deltas, method, [{"delta": "d0", "params": {"weight": rules}}, {"delta": "d1"}])
    in_plain = made(llama, deltas, method, [{"delta": "d0", "weight": 0.5}, {"delta": "d1"}])
    assert same(by_rule, in_plain)
    assert not same(in_plain, made(llama, deltas, method, [{"delta": "d0"}, {"delta": "d1"}]))


def test_a_density_for_one_layer(llama: Path, deltas: list[Delta]) -> None:
    rules = [{"filter": "layers.1.", "value": 0}]
    found = made(llama, deltas, "ties", [{"delta": "d0", "params": {"density": rules}}, {"delta": "d1"}])
    whole = made(llama, deltas, "ties", [{"delta": "d0"}, {"delta": "d1"}])
    for name, difference in found.items():
        expected = deltas[1].difference(name).reshape(difference.shape) if "layers.1." in name else whole[name]
        torch.testing.assert_close(difference, expected, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize(("value", "exact"), [(1.0, True), (0.5, False)])
def test_exact_is_weight_one_in_all_tensors(llama: Path, deltas: list[Delta], value: float, exact: bool) -> None:
    term = {"delta": "d0", "params": {"weight": [{"filter": "norm", "value": value}]}}
    plan = build_plan(canonical(recipe_of("task_arithmetic", [term])), deltas[:1], Stored(llama))
    assert plan.exact is exact


def test_tensors_with_equal_weights_share_their_coefficients(llama: Path, deltas: list[Delta]) -> None:
    term = {"delta": "d0", "params": {"weight": [{"filter": "layers.1.", "value": 0.5}]}}
    plan = build_plan(canonical(recipe_of("task_arithmetic", [term])), deltas[:1], Stored(llama))
    assert len({id(matrix) for matrix in plan.matrices.values()}) == 2
