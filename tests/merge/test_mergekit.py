"""mergekit's YAML means what mergekit makes of it, or is refused with the place and what to do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchbay.errors import InvalidRecipe, PatchbayError, UnknownMethod
from patchbay.merge import METHODS, Recipe, mergekit, parse

LAW = settings(deadline=None)  # a busy machine is no failure
FULL = """\
# as on the hub
merge_method: ties
base_model: org/base@main
models:
  - model: org/base@main
  - model: math
    parameters: {weight: 0.5, density: [0.2, 0.6, 0.2]}
  - model: code@3
    parameters:
      weight:
        - {filter: self_attn, value: 0.7}
        - {value: 0.3}
parameters: {normalize: true, int8_mask: true, lambda: 1.2}
dtype: float32
out_dtype: bfloat16
tokenizer_source: base
"""


def document(
    method: str = "task_arithmetic", models: str = "[{model: math, parameters: {weight: 1}}]", **more: str
) -> str:
    fields = {"merge_method": method, "base_model": "org/base", "models": models, **more}
    return "".join(f"{name}: {value}\n" for name, value in fields.items() if value)


def read(*args: str, **more: str) -> Recipe:
    return mergekit.read(document(*args, **more)).recipe


def test_a_full_document() -> None:
    found = mergekit.read(FULL)
    assert found.recipe == Recipe.model_validate(
        {
            "method": "ties",
            "terms": [
                {"delta": "math", "weight": 0.5, "params": {"density": [{"value": [0.2, 0.6, 0.2]}]}},
                {"delta": "code@3", "params": {"weight": [{"filter": "self_attn", "value": 0.7}, {"value": 0.3}]}},
            ],
            "scale": 1.2,
            "params": {"preset": "mergekit", "normalize": True},
        }
    )
    assert (found.dtype, found.out_dtype) == ("float32", "bfloat16")


def test_what_an_expression_says_too() -> None:
    models = "[{model: math, parameters: {weight: 0.6}}, {model: code, parameters: {weight: -0.4}}]"
    assert read(models=models) == parse("0.6*math - 0.4*code")
    assert read("linear", models, base_model="") == parse("linear(0.6*math, -0.4*code)")
    assert read(models=models, parameters="{normalize: true, lambda: 0.5}") == parse(
        "linear(0.6*math, -0.4*code; scale=0.5)"
    )
    assert read("sce", "[{model: math}, {model: code}]", parameters="{select_topk: 1e-1}") == parse(
        "sce(math, code; preset=mergekit, select_topk=0.1)"
    )
    assert read("model_stock", "[{model: math}, {model: code}]", parameters="{filter_wise: true}") == parse(
        "model_stock(math, code; filter_wise=true)"
    )


@pytest.mark.parametrize("name", sorted(METHODS))
def test_presets_are_mergekits(name: str) -> None:
    base = "" if name == "linear" else "a" if name == "slerp" else "org/base"
    weight = "" if name in ("slerp", "sce", "model_stock") else ", parameters: {weight: 1}"
    found = read(name, f"[{{model: a{weight}}}, {{model: b{weight}}}]", base_model=base)
    assert found.method == name
    assert found.params == ({"preset": "mergekit"} if "mergekit" in METHODS[name].presets else {})
    METHODS[name].filled(found.params)


def test_values_of_all_models_stand_behind_those_of_one() -> None:
    models = "[{model: a, parameters: {weight: 1, density: [{filter: mlp, value: 0.5}]}}, {model: b}]"
    found = read("ties", models, parameters="{density: [1, 0.5], weight: [{filter: attn, value: 2}, {value: [0, 1]}]}")
    first, second = (term.model_dump(mode="json", exclude={"delta"}) for term in found.terms)
    assert first == {"weight": 1.0, "params": {"density": [{"filter": "mlp", "value": 0.5}, {"value": [1.0, 0.5]}]}}
    shared = [{"filter": "attn", "value": 2.0}, {"value": [0.0, 1.0]}]
    assert second == {"weight": 1.0, "params": {"density": [{"value": [1.0, 0.5]}], "weight": shared}}


def test_a_number_for_all_models_is_the_methods() -> None:
    found = read(
        "ties", "[{model: a, parameters: {density: 0.25}}, {model: b}]", parameters="{density: 0.5, weight: 2}"
    )
    assert found.params == {"preset": "mergekit", "density": 0.5}
    assert [(term.weight, term.params) for term in found.terms] == [(2.0, {"density": 0.25}), (2.0, {})]


def test_lambda_of_a_method_that_has_its_own() -> None:
    found = read("consensus_ta", "[{model: a}, {model: b}]", parameters="{lambda: 0.5}")
    assert (found.scale, found.params) == (1.0, {"lambda": 0.5})


def test_slerp_starts_from_its_base_model() -> None:
    both = "[{model: math}, {model: code}]"
    assert read("slerp", both, base_model="code", parameters="{t: 0.25}") == parse("slerp(code, math; t=0.25)")
    assert read("slerp", "[{model: math}]", base_model="code") == parse("slerp(code, math)")
    assert read("slerp", both, base_model="math") == parse("slerp(math, code)")


MEAN = "[{model: BASE, parameters: {weight: 1}}, {model: math, parameters: {weight: 4}}, {model: code%s}]"


@pytest.mark.parametrize("base", ["base", "org/base", "llama-7b"])
def test_a_mean_counts_the_base_where_it_is_listed(base: str) -> None:
    """theta = (theta_0 + 4 theta_math + 3 theta_code) / 8, which is theta_0 + 4/8 tau_math + 3/8 tau_code."""
    models = MEAN.replace("BASE", base) % ", parameters: {weight: 3}"
    named = "" if base == "base" else base
    expected = parse("0.5*math + 0.375*code")
    assert read("linear", models, base_model=named, parameters="{normalize: true}") == expected
    assert read("linear", models.replace(base, "base"), base_model=named) == expected
    assert read("linear", MEAN.replace("BASE", base) % "", base_model=named, parameters="{weight: 3}") == expected


def test_a_base_that_is_not_listed_is_counted_too() -> None:
    """mergekit adds it to the models, with the weight of all."""
    models = "[{model: math}, {model: code, parameters: {weight: 3}}]"
    assert read("linear", models, parameters="{weight: 2}") == parse(
        "0.2857142857142857*math + 0.42857142857142855*code"
    )


def test_a_base_of_no_weight() -> None:
    models = "[{model: base, parameters: {weight: 0}}, {model: math, parameters: {weight: 0.2}}]"
    assert read("linear", models, base_model="") == parse("math")


@LAW
@given(
    st.lists(st.integers(-4, 4), min_size=2, max_size=8).filter(sum),
    st.lists(st.floats(-1, 1), min_size=8, max_size=8),
)
def test_a_mean_of_models_and_the_base(weights: list[int], models: list[float]) -> None:
    names = ["base", *(f"m{n}" for n in range(1, len(weights)))]
    listed = [f"{{model: {name}, parameters: {{weight: {w}}}}}" for name, w in zip(names, weights, strict=True)]
    theta = dict(zip(names, models, strict=False))
    merged = theta["base"]
    for term in read("linear", f"[{', '.join(listed)}]", base_model="").terms:
        merged += term.weight * (theta[term.delta] - theta["base"])
    mean = sum(w * theta[name] for name, w in zip(names, weights, strict=True)) / sum(weights)
    assert merged == pytest.approx(mean, abs=1e-12)


def test_nuslerp_and_rescale_have_other_words() -> None:
    models = "[{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 3}}]"
    assert read("nuslerp", models, parameters="{nuslerp_flatten: false}").params == {"scope": "neuron"}
    assert read("nuslerp", models, parameters="{nuslerp_flatten: true}").params == {"scope": "tensor"}
    assert read("ties", models, parameters="{rescale: true}").params["rescale"] == "l1"
    assert read("dare_ties", models, parameters="{rescale: false}").params["rescale"] == "none"


@pytest.mark.parametrize(
    ("setting", "rules"),
    [
        ("[0, 1]", [{"value": [0.0, 1.0]}]),
        ("{filter: mlp, value: 1e-1}", [{"filter": "mlp", "value": 0.1}]),
        ("[{filter: '*', value: 0.5}]", [{"filter": "*", "value": 0.5}]),
        ("[{filter: a, value: [0]}, {value: 1}, {value: 2}]", [{"filter": "a", "value": [0.0]}, {"value": 1.0}]),
        ("[{filter: ~, value: [1, 2]}]", [{"value": [1.0, 2.0]}]),
    ],
)  # fmt: skip
def test_forms_of_a_setting(setting: str, rules: Any) -> None:
    found = read("ties", f"[{{model: a, parameters: {{weight: 1, density: {setting}}}}}]")
    assert found.terms[0].model_dump(mode="json")["params"] == {"density": rules}


def test_null_is_as_if_it_were_not_there() -> None:
    assert read(dtype="~", slices="null", tokenizer="~", chat_template="", parameters="~") == parse("math")


@pytest.mark.parametrize("name", ["float32", "torch.bfloat16", "float16"])
def test_dtypes(name: str) -> None:
    assert mergekit.read(document(out_dtype=name)).out_dtype == name.removeprefix("torch.")


TWO = "[{model: a}, {model: b}]"
ONE = "[{model: math, parameters: {weight: %s}}]"
REFUSED: dict[str, tuple[str, str, str]] = {
    "slices": (document(models="", slices="[{sources: []}]"), "slices", "line 3, column 9: slices: a merge keeps"),
    "modules": (document(models="", modules="{text: {}}"), "modules", "modules: a merge is of the whole base"),
    "tokenizer": (document(tokenizer="{source: union}"), "tokenizer", "keeps the base's tokenizer"),
    "chat template": (document(chat_template="auto"), "chat_template", "keeps the base's chat template"),
    "tokenizer source": (document(tokenizer_source="union"), "tokenizer_source", "'base' says so"),
    "passthrough": (document("passthrough"), "merge_method", "passthrough stacks layers"),
    "unknown field": (document(merge_methd="ties"), "merge_methd", "there is no field 'merge_methd' here"),
    "no method": (document(""), "None", "the document has no merge_method"),
    "no models": (document(models=""), "None", "the document has no models"),
    "models a mapping": (document(models="{a: b}"), "models", "models is a list"),
    "no terms": (document(models="[]"), "terms", "terms"),
    "only the base": (document(models="[{model: org/base}]"), "terms", "terms"),
    "an entry without model": (document(models="[{parameters: {weight: 1}}]"), "models.0", "has a model"),
    "an entry with more": (document(models="[{model: a, layer_range: [0, 4]}]"), "models.0.layer_range", "no field"),
    "a path": (document(models="[{model: org/Math-7B}]"), "models.0.model", "is no delta's name: compress"),
    "an upper case name": (document(models="[{model: Math}]"), "models.0.model", "is no delta's name"),
    "an adapter": (document(models="[{model: math+lora}]"), "models.0.model", "is no delta's name"),
    "a reference": (document(models="[{model: {path: a}}]"), "models.0.model", "models.0.model is text"),
    "the base with a weight": (
        document(models="[{model: org/base, parameters: {weight: 1}}]"), "models.0", "the base has no weight"
    ),
    "no base": (document(base_model=""), "merge_method", "task_arithmetic needs a base_model"),
    "linear with a base": (
        document("linear"), "base_model", "linear counts base_model as one of the models: list it with a weight, or"
    ),
    "the base twice": (
        document("linear", MEAN.replace("BASE", "base") % ", parameters: {weight: 1}}, {model: org/base",
                 parameters="{weight: 1}"), "models", "the base is listed twice"
    ),
    "the base without a weight": (
        document("linear", "[{model: base}, {model: a, parameters: {weight: 1}}]", base_model=""),
        "models.0", "base has no weight"
    ),
    "a mean of nothing": (
        document("linear", MEAN.replace("BASE", "org/base") % ", parameters: {weight: -5}"),
        "models", "the weights of this mean sum to 0, and it divides by that"
    ),
    "a mean of next to nothing": (
        document("linear", MEAN.replace("BASE", "org/base") % ", parameters: {weight: -4.9}"),
        "models", "the weights of this mean sum to 0.1, and it divides by that"
    ),
    "a mean with the base that varies": (
        document("linear", MEAN.replace("BASE", "org/base") % ", parameters: {weight: [0, 1]}"),
        "models.2", "takes one weight for all tensors, and code's varies"
    ),
    "a base that varies": (
        document("linear", "[{model: base, parameters: {weight: [0, 1]}}, {model: a, parameters: {weight: 1}}]",
                 base_model=""), "models.0", "takes one weight for all tensors, and base's varies"
    ),
    "a base with a density": (
        document("linear", "[{model: base, parameters: {weight: 1, density: 1}}]", base_model=""),
        "models.0.parameters.density", "have no parameter 'density'"
    ),
    "a path in a mean": (
        document("linear", "[{model: org/base, parameters: {weight: 1}}]", base_model=""),
        "models.0.model", "the base itself is 'model: base'"
    ),
    "octal": (document(models=ONE % "010"), "models.0.parameters.weight", "begins with 0, which YAML 1.1"),
    "octal for all": (document(parameters="{lambda: 01}"), "parameters.lambda", "begins with 0, which YAML 1.1"),
    "no weight": (document(models="[{model: math}]"), "models.0", "math has no weight"),
    "a weight for some": (
        document(models=ONE % "[{filter: mlp, value: 1}]"), "models.0", "the weight of math ends with a value without"
    ),
    "a weight in text": (document(models=ONE % "'1'"), "models.0.parameters.weight", "is a finite number"),
    "a weight true": (document(models=ONE % "true"), "models.0.parameters.weight", "is a finite number"),
    "a large weight": (document(models=ONE % "11"), "models.0.parameters.weight", "lies within -10 and 10"),
    "a large weight inside": (document(models=ONE % "[1, 11]"), "models.0.parameters.weight.1", "lies within"),
    "an empty gradient": (document(models=ONE % "[]"), "models.0.parameters.weight", "1 to 64 numbers"),
    "a mixed list": (document(models=ONE % "[1, {value: 2}]"), "models.0.parameters.weight.0", "is a mapping"),
    "a nested gradient": (document(models=ONE % "[[1]]"), "models.0.parameters.weight.0", "is a finite number"),
    "a filter alone": (document(models=ONE % "{filter: a}"), "models.0.parameters.weight", "a filter has a value"),
    "a filter with more": (document(models=ONE % "{value: 1, t: 2}"), "models.0.parameters.weight.t", "no field 't'"),
    "nine rules": (
        document(models=ONE % f"[{'{filter: a, value: 1}, ' * 8}{{value: 1}}]"), "models.0.parameters.weight", "most 8"
    ),
    "a long gradient": (document(models=ONE % str([0.5] * 65)), "models.0.parameters.weight", "1 to 64 numbers"),
    "nine models": (
        document(models=f"[{', '.join(f'{{model: m{n}, parameters: {{weight: 1}}}}' for n in range(9))}]"), "terms", "8"
    ),
    "another method's": (
        document(models="[{model: a, parameters: {weight: 1, density: 1}}]"), "models.0.parameters.density", "have no"
    ),
    "shared in a model": (
        document("ties", "[{model: a, parameters: {weight: 1, lambda: 1}}]"), "models.0.parameters.lambda", "have no"
    ),
    "unknown parameter": (document(parameters="{lamda: 1}"), "parameters.lamda", "no parameter 'lamda'"),
    "lambda that varies": (document(parameters="{lambda: [0, 1]}"), "parameters.lambda", "is a finite number"),
    "a large lambda": (document(parameters="{lambda: 11}"), "parameters.lambda", "lies within"),
    "lambda of sce": (document("sce", TWO, parameters="{lambda: 1}"), "parameters.lambda", "no parameter"),
    "t that varies": (
        document("slerp", TWO, base_model="a", parameters="{t: [0, 1]}"), "parameters.t", "cannot vary"
    ),
    "weight of slerp": (
        document("slerp", TWO, base_model="a", parameters="{weight: 1}"), "parameters.weight", "no parameter 'weight'"
    ),
    "weight in sce": (document("sce"), "models.0.parameters.weight", "no parameter 'weight'"),
    "a sum of models": (
        document("linear", base_model="", parameters="{normalize: false}"), "parameters.normalize", "scales the base"
    ),
    "normalised sce": (document("sce", TWO, parameters="{normalize: true}"), "parameters.normalize", "no parameter"),
    "mask in words": (document(parameters="{int8_mask: maybe}"), "parameters.int8_mask", "is true or false"),
    "row-wise": (
        document("nuslerp", parameters="{nuslerp_row_wise: true}"), "parameters.nuslerp_row_wise", "no parameter"
    ),
    "dtype": (document(dtype="int8"), "dtype", "dtype is one of float32, bfloat16, float16"),
    "a list": ("- a", "None", "the document is a mapping"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "param", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(text: str, param: str, message: str) -> None:
    with pytest.raises(InvalidRecipe) as caught:
        mergekit.read(text)
    assert message in caught.value.message
    assert str(caught.value.param) == param
    assert "line " in caught.value.message or param.startswith("terms")


def test_a_method_that_is_not_there_lists_those_that_are() -> None:
    with pytest.raises(UnknownMethod, match="there is no method 'karcher'; the methods are task_arithmetic"):
        read("karcher")


NUMBER = st.sampled_from(
    ["1", "0.5", "-2", "1e-1", "[0, 1]", "[1, 0.5, 0]", "{filter: mlp, value: 1}", "x", "true", "[]"]
)


@LAW
@given(
    st.sampled_from([*sorted(METHODS), "karcher", "passthrough", "[a]"]),
    st.lists(st.tuples(st.sampled_from(["a", "b", "org/base", "A/b", "~"]), NUMBER, NUMBER), max_size=3),
    st.dictionaries(st.sampled_from(["lambda", "normalize", "density", "t", "int8_mask", "seed"]), NUMBER, max_size=2),
)
def test_any_document_is_read_or_refused(
    method: str, models: list[tuple[str, str, str]], parameters: dict[str, str]
) -> None:
    listed = ", ".join(f"{{model: {name}, parameters: {{weight: {w}, density: {d}}}}}" for name, w, d in models)
    written = ", ".join(f"{key}: {value}" for key, value in parameters.items())
    try:
        found = mergekit.read(document(method, f"[{listed}]", parameters=f"{{{written}}}")).recipe
    except PatchbayError as error:
        assert error.message
    else:
        METHODS[found.method].filled(found.params)
        assert Recipe.model_validate_json(found.model_dump_json()) == found
