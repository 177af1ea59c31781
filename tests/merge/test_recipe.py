"""Recipes from outside are read strictly, and equal meanings have equal hashes."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from patchbay.errors import InvalidRecipe
from patchbay.merge.recipe import MAX_INTEGER, MAX_PARAMS, MAX_TERMS, MAX_WEIGHT, Recipe, Scalar, Term
from patchbay.merge.rules import MAX_FILTER, MAX_GRADIENT, MAX_RULES, Rule

LAW = settings(deadline=None)  # a busy machine is no failure
WEIGHTS = st.floats(-MAX_WEIGHT, MAX_WEIGHT)
SCALARS = st.one_of(
    st.booleans(),
    st.integers(-MAX_INTEGER, MAX_INTEGER),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["sum", "mean", "random"]),
)
PARAMS = st.dictionaries(st.sampled_from(["density", "seed", "rule", "rescale"]), SCALARS)


def digests_of(recipe: Recipe) -> dict[str, str]:
    return {term.delta: "sha256:" + hashlib.sha256(term.delta.encode()).hexdigest() for term in recipe.terms}


def hash_of(recipe: Recipe, *, symmetric: bool = True, defaults: dict[str, Scalar] | None = None) -> str:
    return recipe.canonical(digests_of(recipe), symmetric, defaults or {}).hash


@st.composite
def recipes(draw: st.DrawFn, min_terms: int = 1) -> Recipe:
    names = draw(st.lists(st.sampled_from("abcdefgh"), min_size=min_terms, max_size=MAX_TERMS, unique=True))
    terms = tuple(Term(delta=name, weight=draw(WEIGHTS)) for name in names)
    method = draw(st.sampled_from(["ties", "linear"]))
    return Recipe(method=method, terms=terms, scale=draw(WEIGHTS), params=draw(PARAMS))


def read_both_ways(fields: dict[str, Any]) -> Recipe:
    """As a body already decoded (what a web framework passes) and as JSON text."""
    decoded = Recipe.model_validate(fields)
    assert Recipe.model_validate_json(json.dumps(fields)) == decoded
    return decoded


def with_term(**term: object) -> dict[str, Any]:
    return {"terms": [{"delta": "math", **term}]}


def with_field(**fields: object) -> dict[str, Any]:
    return {"terms": [{"delta": "math"}], **fields}


# reading


def test_a_full_recipe_is_read() -> None:
    recipe = read_both_ways(
        {
            "method": "ties",
            "terms": [{"delta": "math@3", "weight": 0.6}, {"delta": "code"}],
            "scale": 1.2,
            "params": {"density": 0.2, "seed": 7, "rescale": True, "rule": "sum"},
            "head": "math@3",
        }
    )
    assert recipe.terms == (Term(delta="math@3", weight=0.6), Term(delta="code", weight=1.0))
    assert (recipe.method, recipe.scale, recipe.head) == ("ties", 1.2, "math@3")
    assert recipe.params == {"density": 0.2, "seed": 7, "rescale": True, "rule": "sum"}


def test_only_terms_are_required() -> None:
    recipe = read_both_ways({"terms": [{"delta": "math"}]})
    assert recipe == Recipe(method="task_arithmetic", terms=(Term(delta="math"),), scale=1.0, params={}, head=None)


def test_whole_numbers_are_weights_and_become_floats() -> None:
    recipe = read_both_ways({"terms": [{"delta": "math", "weight": 1}], "scale": -2})
    assert [type(recipe.terms[0].weight), type(recipe.scale)] == [float, float]


@pytest.mark.parametrize("value", [True, 3, 3.0, "sum"])
def test_a_parameter_keeps_its_type(value: Scalar) -> None:
    assert type(read_both_ways(with_field(params={"x": value})).params["x"]) is type(value)


def test_a_term_knows_its_name_and_version() -> None:
    assert (Term(delta="math@12").name, Term(delta="math@12").version) == ("math", 12)
    assert (Term(delta="math").name, Term(delta="math").version) == ("math", None)


REFUSED: dict[str, dict[str, Any]] = {
    "no terms": {"terms": []},
    "too many terms": {"terms": [{"delta": f"d{n}"} for n in range(MAX_TERMS + 1)]},
    "terms missing": {"method": "ties"},
    "terms a mapping": {"terms": {"math": 1.0}},
    "unknown field": with_field(wieghts=[1]),
    "unknown term field": with_term(wieght=1),
    "weight true": with_term(weight=True),
    "weight text": with_term(weight="0.5"),
    "weight null": with_term(weight=None),
    "weight nan": with_term(weight=math.nan),
    "weight infinite": with_term(weight=math.inf),
    "weight too large": with_term(weight=10.01),
    "weight too small": with_term(weight=-10.01),
    "weight beyond floats": with_term(weight=10**400),
    "scale true": with_field(scale=True),
    "scale nan": with_field(scale=math.nan),
    "scale too large": with_field(scale=11),
    "delta empty": with_term(delta=""),
    "delta upper case": with_term(delta="Math"),
    "delta dotted start": with_term(delta=".math"),
    "delta too long": with_term(delta="a" * 64),
    "delta with a newline": with_term(delta="math\n"),
    "delta a path": with_term(delta="../math"),
    "delta a number": with_term(delta=3),
    "version zero": with_term(delta="math@0"),
    "version padded": with_term(delta="math@03"),
    "version negative": with_term(delta="math@-1"),
    "version empty": with_term(delta="math@"),
    "version huge": with_term(delta="math@" + "9" * 10),
    "version in other digits": with_term(delta="math@٣"),
    "method upper case": with_field(method="TIES"),
    "method null": with_field(method=None),
    "head not a name": with_field(head="Math"),
    "params a list": with_field(params=[1]),
    "param nan": with_field(params={"x": math.nan}),
    "param infinite": with_field(params={"x": -math.inf}),
    "param null": with_field(params={"x": None}),
    "param nested": with_field(params={"x": {"y": 1}}),
    "param whole number beyond 2**53": with_field(params={"x": MAX_INTEGER + 1}),
    "param text that reads as a number": with_field(params={"x": "0.5"}),
    "param text that reads as true": with_field(params={"x": "true"}),
    "param text of two words": with_field(params={"x": "a b"}),
    "param key upper case": with_field(params={"X": 1}),
    "param key scale": with_field(params={"scale": 1}),
    "param key head": with_field(params={"head": "math"}),
    "too many params": with_field(params={f"p{n}": n for n in range(MAX_PARAMS + 1)}),
}


@pytest.mark.parametrize("fields", REFUSED.values(), ids=REFUSED)
def test_what_is_no_recipe_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Recipe.model_validate(fields)
    with pytest.raises(ValidationError):
        Recipe.model_validate_json(json.dumps(fields))


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "Infinity"])
def test_json_numbers_that_are_not_finite_are_refused(number: str) -> None:
    for fields in ('"terms":[{"delta":"a","weight":%s}]', '"terms":[{"delta":"a"}],"params":{"x":%s}'):
        with pytest.raises(ValidationError, match="finite"):
            Recipe.model_validate_json("{" + fields % number + "}")


def test_a_refused_parameter_is_reported_once_with_its_place() -> None:
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate(with_field(params={"density": math.nan}))
    assert [error["loc"] for error in caught.value.errors()] == [("params", "density")]


def test_a_recipe_does_not_change() -> None:
    with pytest.raises(ValidationError):
        Recipe(terms=(Term(delta="a"),)).scale = 2.0


# canonical form


def test_the_canonical_json_is_exactly_this() -> None:
    recipe = Recipe(method="ties", terms=(Term(delta="b", weight=0.6), Term(delta="a")), params={"seed": 7})
    digests = {"a": "sha256:aa", "b": "sha256:bb"}
    canonical = recipe.canonical(digests, True, {"density": 1, "rescale": True}, "sha256:aa")
    assert canonical.to_json() == (
        '{"head":"sha256:aa","method":"ties","params":{"density":1.0,"rescale":true,"seed":7.0},'
        '"scale":1.0,"terms":[["sha256:aa",1.0],["sha256:bb",0.6]]}'
    )
    assert canonical.hash == "sha256:" + hashlib.sha256(canonical.to_json().encode()).hexdigest()


@LAW
@given(recipes(min_terms=2), st.randoms())
def test_order_matters_only_to_asymmetric_methods(recipe: Recipe, random: Any) -> None:
    shuffled = recipe.model_copy(update={"terms": tuple(random.sample(recipe.terms, len(recipe.terms)))})
    assert hash_of(shuffled) == hash_of(recipe)
    same_order = shuffled.terms == recipe.terms
    assert (hash_of(shuffled, symmetric=False) == hash_of(recipe, symmetric=False)) == same_order


@LAW
@given(recipes())
def test_params_order_does_not_matter(recipe: Recipe) -> None:
    reversed_params = dict(reversed(recipe.params.items()))
    assert hash_of(recipe.model_copy(update={"params": reversed_params})) == hash_of(recipe)


@LAW
@given(recipes(), st.integers(-10, 10))
def test_whole_and_float_numbers_mean_the_same(recipe: Recipe, number: int) -> None:
    def with_numbers(value: float) -> Recipe:
        terms = [{"delta": term.delta, "weight": value} for term in recipe.terms]
        return Recipe.model_validate({"terms": terms, "scale": value, "params": {"x": value}})

    assert hash_of(with_numbers(number)) == hash_of(with_numbers(float(number)))


@LAW
@given(recipes(), PARAMS)
def test_a_default_spelled_out_means_the_same(recipe: Recipe, defaults: dict[str, Scalar]) -> None:
    spelled_out = recipe.model_copy(update={"params": {**defaults, **recipe.params}})
    assert hash_of(recipe, defaults=defaults) == hash_of(spelled_out)


def test_minus_zero_is_zero() -> None:
    def zero(value: float) -> Recipe:
        return Recipe(terms=(Term(delta="a", weight=value),), scale=value, params={"x": value})

    assert hash_of(zero(-0.0)) == hash_of(zero(0.0))


def meaning(recipe: Recipe) -> tuple[object, ...]:
    """What two recipes must share to mean the same, written without the code under test."""
    params = {key: (isinstance(value, bool), value) for key, value in recipe.params.items()}
    return recipe.method, {term.delta: term.weight for term in recipe.terms}, recipe.scale, params


@LAW
@given(recipes(), recipes())
def test_hashes_are_equal_exactly_where_meanings_are(one: Recipe, other: Recipe) -> None:
    assert (hash_of(one) == hash_of(other)) == (meaning(one) == meaning(other))


BASE = Recipe(method="ties", terms=(Term(delta="a", weight=0.5), Term(delta="b")), params={"x": 1})


@pytest.mark.parametrize(
    "change",
    [
        {"method": "linear"},
        {"terms": (Term(delta="a"), Term(delta="b", weight=0.5))},
        {"terms": (Term(delta="a", weight=0.5), Term(delta="c"))},
        {"terms": (Term(delta="a", weight=0.5),)},
        {"scale": 1.0000000000000002},
        {"params": {"x": True}},
        {"params": {"x": 2}},
        {"params": {"y": 1}},
        {"params": {}},
    ],
    ids=str,
)
def test_every_single_change_changes_the_hash(change: dict[str, Any]) -> None:
    assert hash_of(BASE.model_copy(update=change)) != hash_of(BASE)


def test_the_head_is_part_of_the_meaning_but_its_spelling_is_not() -> None:
    digests = digests_of(BASE)
    assert BASE.canonical(digests, True, {}, "sha256:aa").hash != BASE.canonical(digests, True, {}, None).hash
    spelled = BASE.model_copy(update={"head": "a"})
    assert spelled.canonical(digests, True, {}, "sha256:aa").hash == BASE.canonical(digests, True, {}, "sha256:aa").hash


def test_large_seeds_stay_apart() -> None:
    seeds = [BASE.model_copy(update={"params": {"seed": MAX_INTEGER - n}}) for n in range(3)]
    assert len({hash_of(recipe) for recipe in seeds}) == 3


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_delta_named_twice_is_refused_with_both_names(symmetric: bool) -> None:
    recipe = Recipe(terms=(Term(delta="math"), Term(delta="code"), Term(delta="math@3", weight=0.5)))
    with pytest.raises(InvalidRecipe, match=r"'math' and 'math@3' are the same delta") as caught:
        recipe.canonical({"math": "sha256:aa", "math@3": "sha256:aa", "code": "sha256:bb"}, symmetric, {})
    assert caught.value.param == "terms"


# settings of terms


def with_params(**params: object) -> dict[str, Any]:
    return with_term(params=params)


def test_terms_have_settings_of_their_own() -> None:
    recipe = read_both_ways(
        {
            "terms": [
                {
                    "delta": "math",
                    "params": {"density": 0.5, "weight": [{"filter": "mlp", "value": 1}, {"value": [0, 1]}]},
                },
                {"delta": "code"},
            ]
        }
    )
    first, second = recipe.terms
    assert first.params == {"density": 0.5, "weight": (Rule(filter="mlp", value=1.0), Rule(value=(0.0, 1.0)))}
    assert second.params == {}
    assert recipe.describe() is None
    assert read_both_ways(recipe.model_dump(mode="json")) == recipe


def test_a_term_without_settings_is_written_as_ever() -> None:
    assert Term(delta="math").model_dump(mode="json") == {"delta": "math", "weight": 1.0}
    rule = {"value": [0.5, 1.0]}
    term = Term.model_validate({"delta": "math", "params": {"density": [rule]}})
    assert term.model_dump(mode="json") == {"delta": "math", "weight": 1.0, "params": {"density": [rule]}}


REFUSED_SETTINGS: dict[str, dict[str, Any]] = {
    "true": with_params(density=True),
    "text": with_params(density="half"),
    "null": with_params(density=None),
    "nan": with_params(density=math.nan),
    "beyond floats": with_params(density=10**400),
    "beyond floats in a rule": with_params(density=[{"value": -(10**400)}]),
    "no rules": with_params(density=[]),
    "numbers without a rule": with_params(density=[0.1, 0.2]),
    "nine rules": with_params(density=[{"filter": str(n), "value": 1} for n in range(MAX_RULES + 1)]),
    "unknown field": with_params(density=[{"filter": "a", "value": 1, "layer": 2}]),
    "no value": with_params(density=[{"filter": "a"}]),
    "value true": with_params(density=[{"value": True}]),
    "value text": with_params(density=[{"value": "1"}]),
    "value infinite": with_params(density=[{"value": math.inf}]),
    "empty gradient": with_params(density=[{"value": []}]),
    "long gradient": with_params(density=[{"value": [0.5] * (MAX_GRADIENT + 1)}]),
    "nested gradient": with_params(density=[{"value": [[0.5]]}]),
    "nan in a gradient": with_params(density=[{"value": [0.5, math.nan]}]),
    "filter empty": with_params(density=[{"filter": "", "value": 1}]),
    "filter long": with_params(density=[{"filter": "a" * (MAX_FILTER + 1), "value": 1}]),
    "filter with a blank": with_params(density=[{"filter": "a b", "value": 1}]),
    "filter a number": with_params(density=[{"filter": 5, "value": 1}]),
    "plain weight": with_params(weight=0.5),
    "weight too large": with_params(weight=[{"value": 10.5}]),
    "weight in a gradient too small": with_params(weight=[{"value": [0, -10.5]}]),
    "key upper case": with_params(Density=1),
    "key scale": with_params(scale=1),
    "too many": with_params(**{f"p{n}": n for n in range(MAX_PARAMS + 1)}),
    "a list": with_term(params=[1]),
}


@pytest.mark.parametrize("fields", REFUSED_SETTINGS.values(), ids=REFUSED_SETTINGS)
def test_settings_that_are_none(fields: dict[str, Any]) -> None:
    test_what_is_no_recipe_is_refused(fields)


def test_the_canonical_json_of_settings_is_exactly_this() -> None:
    rules = [{"filter": "mlp", "value": 1}, {"filter": "attn", "value": [0, 1]}, {"filter": "*", "value": 2}]
    recipe = Recipe.model_validate(
        {
            "method": "ties",
            "terms": [{"delta": "b", "params": {"weight": rules, "density": 0.5}}, {"delta": "a"}],
        }
    )
    canonical = recipe.canonical({"a": "sha256:aa", "b": "sha256:bb"}, True, {"density": 1.0})
    assert canonical.to_json() == (
        '{"head":null,"method":"ties","params":{"density":1.0},"scale":1.0,'
        '"settings":[{},{"density":[[null,[0.5]]],"weight":[["mlp",[1.0]],["attn",[0.0,1.0]]]}],'
        '"terms":[["sha256:aa",1.0],["sha256:bb",2.0]]}'
    )


def meaning_of(weight: float = 1.0, /, **params: object) -> str:
    """The hash of a recipe of two terms, of which the first has these."""
    terms = [{"delta": "a", "weight": weight, "params": params}, {"delta": "b"}]
    recipe = Recipe.model_validate({"method": "ties", "terms": terms})
    return hash_of(recipe, defaults={"density": 0.5, "rule": "sum"})


PLAIN = meaning_of()
MLP = {"filter": "mlp", "value": 0.25}
ATTN = {"filter": "attn", "value": 0.25}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (meaning_of(density=0.5), PLAIN),
        (meaning_of(density=[{"value": 0.5}]), PLAIN),
        (meaning_of(density=[{"filter": "*", "value": [0.5, 0.5]}]), PLAIN),
        (meaning_of(density=[{"filter": "mlp", "value": 0.5}]), PLAIN),
        (meaning_of(weight=[{"value": 1}]), PLAIN),
        (meaning_of(weight=[{"value": 2}]), meaning_of(2.0)),
        (meaning_of(7.0, weight=[{"value": 2}]), meaning_of(2.0)),
        (meaning_of(7.0, weight=[{"value": [0, 1]}]), meaning_of(weight=[{"value": [0, 1]}])),
        (meaning_of(weight=[MLP, {"value": 2}]), meaning_of(2.0, weight=[MLP])),
        (meaning_of(weight=[MLP, {"filter": "mlp.up", "value": 3}]), meaning_of(weight=[MLP])),
        (meaning_of(density=[{"value": 0.75}, MLP]), meaning_of(density=0.75)),
        (meaning_of(density=[MLP, ATTN]), meaning_of(density=[ATTN, MLP])),
        (meaning_of(density=-0.0), meaning_of(density=0)),
    ],
)  # fmt: skip
def test_settings_that_mean_the_same(one: str, other: str) -> None:
    assert one == other


def test_settings_that_mean_something_else() -> None:
    different = [
        PLAIN,
        meaning_of(2.0),
        meaning_of(density=0.75),
        meaning_of(density=[MLP]),
        meaning_of(density=[{"filter": "mlp", "value": [0.25, 0.5]}]),
        meaning_of(density=[{"filter": "mlp", "value": [0.5, 0.25]}]),
        meaning_of(density=[{"filter": "mlp.", "value": 0.25}]),
        meaning_of(weight=[MLP]),
        meaning_of(2.0, weight=[MLP]),
        meaning_of(epsilon=0.5),
        meaning_of(density=[MLP, {"filter": "attn", "value": 1}]),
        meaning_of(density=[{"filter": "attn", "value": 1}, MLP]),
    ]
    assert len(set(different)) == len(different)


def test_settings_stay_with_their_term() -> None:
    def of(*terms: dict[str, Any]) -> str:
        return hash_of(Recipe.model_validate({"method": "ties", "terms": terms}))

    one, other = {"delta": "a", "params": {"density": 0.25}}, {"delta": "b"}
    assert of(one, other) == of(other, one) != of({"delta": "a"}, {"delta": "b", "params": {"density": 0.25}})


def test_recipes_without_settings_keep_their_hash() -> None:
    assert "settings" not in BASE.canonical(digests_of(BASE), True, {}).to_json()
    pinned = Recipe(terms=(Term(delta="math", weight=0.6), Term(delta="code", weight=0.4)))
    digests = {"math": "sha256:" + "a" * 64, "code": "sha256:" + "b" * 64}
    assert (
        pinned.canonical(digests, True, {}).hash
        == "sha256:a6823c2bfa3d3b663d4f9a7a1c825fbc9f53d58b0a7f23801098e2ac2a174da3"
    )


RULE = st.fixed_dictionaries(
    {"value": st.one_of(WEIGHTS, st.lists(WEIGHTS, min_size=1, max_size=4))},
    optional={"filter": st.sampled_from(["*", "mlp", "mlp.up", "attn", "layers.0."])},
)


@LAW
@given(
    recipes(), st.dictionaries(st.sampled_from(["weight", "density", "gamma"]), st.lists(RULE, min_size=1, max_size=4))
)
def test_settings_survive_json(recipe: Recipe, settings: dict[str, Any]) -> None:
    """And what is read back has the same canonical form."""
    terms = [term.model_dump() | {"params": settings} for term in recipe.terms]
    written = Recipe.model_validate(recipe.model_dump() | {"terms": terms})
    again = Recipe.model_validate_json(written.model_dump_json())
    assert again == written
    assert hash_of(again) == hash_of(written)
