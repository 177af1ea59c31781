"""mergekit's YAML as a recipe: `models` with weights and parameters, and what holds for the whole merge.

Where mergekit refuses a document this does, too; where it makes a model, the recipe means that model. What changes the
base's shape (slices, modules, tokenizers) is no recipe. Knows nothing of which deltas exist.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from patchbay.errors import InvalidRecipe, complaint
from patchbay.merge.document import Node, load
from patchbay.merge.document_rules import reached, read_rules
from patchbay.merge.method import PRESET, Method
from patchbay.merge.methods import AUTO, find_method
from patchbay.merge.recipe import MAX_WEIGHT, NAME, VERSION, WEIGHT, Recipe, Scalar, valid_scalar
from patchbay.merge.rules import EVERY, MAX_RULES
from patchbay.merge.settings import OF_TERMS

DTYPES = ("float32", "bfloat16", "float16")
BASE = "base"  # the resident base, by a name that no delta has
MERGEKIT = "mergekit"  # the preset under which a method gives mergekit's results

_REFUSED: Mapping[str, str] = {
    "slices": "a merge keeps the base's layers; list whole models under 'models'",
    "modules": "a merge is of the whole base; list whole models under 'models'",
    "tokenizer": "a merge keeps the base's tokenizer; leave it out",
    "chat_template": "a merge keeps the base's chat template; leave it out",
}
_FIELDS = ("merge_method", "base_model", "models", "parameters", "dtype", "out_dtype", "tokenizer_source", *_REFUSED)
_WEIGHTED = frozenset({"linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "nuslerp"}) | frozenset(
    {"breadcrumbs", "breadcrumbs_ties", "della", "della_linear"}
)
_UNWEIGHTED = frozenset({"slerp", "model_stock", "sce"})
_THE_BASE = f"; the base itself is 'model: {BASE}'"
_MERGEKITS = _WEIGHTED | _UNWEIGHTED
_SCALED = _WEIGHTED - {"linear", "nuslerp"}  # those that have a lambda
_BASE_IS_NO_MODEL = _SCALED | {"nuslerp", "model_stock", "sce"}  # and that need one


@dataclass(frozen=True, slots=True)
class Document:
    """`dtype`: what mergekit computes in, `out_dtype` what it writes; None where the document says nothing."""

    recipe: Recipe
    dtype: str | None
    out_dtype: str | None


def read(text: str) -> Document:
    """The recipe that a mergekit document describes. Models are named as deltas are: `math`, or `math@3`.

    `lambda` becomes the recipe's `scale`, and `int8_mask` is left out: it says how mergekit stores a mask, not what
    comes out. Methods with a preset `mergekit` get it. Raises InvalidRecipe, with line and column, and UnknownMethod.
    """
    root = load(text)
    fields = root.mapping(_FIELDS)
    for name, reason in _REFUSED.items():
        if name in fields:
            fields[name].fail(f"{name}: {reason}")
    source = fields.get("tokenizer_source")
    if source and source.content != "base":
        source.fail("tokenizer_source: a merge keeps the base's tokenizer; 'base' says so, or leave it out")
    for name in ("merge_method", "models"):
        if name not in fields:
            root.fail(f"the document has no {name}")
    merge = _Merge(fields, _method(fields["merge_method"]))
    return Document(_recipe(merge.content()), _dtype(fields.get("dtype")), _dtype(fields.get("out_dtype")))


def _method(node: Node) -> Method:
    if node.text() == "passthrough":
        node.fail("passthrough stacks layers, which changes the base's shape; a merge cannot")
    return find_method(node.text())


def _dtype(node: Node | None) -> str | None:
    if node is None:
        return None
    name = node.text().removeprefix("torch.")
    if name not in DTYPES:
        node.fail(f"{node.path} is one of {', '.join(DTYPES)}")
    return name


def _recipe(content: dict[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise InvalidRecipe(f"{place}: {complaint(first['msg'])}", param=place) from error


class _Merge:
    """A document's fields on their way to a recipe's. mergekit lets a model's parameters go before those of all."""

    def __init__(self, fields: Mapping[str, Node], method: Method) -> None:
        self.fields, self.method = fields, method
        self.given = fields["parameters"].mapping() if "parameters" in fields else {}
        self.of_terms = OF_TERMS & method.defaults.keys() | (set() if method.name in _UNWEIGHTED else {WEIGHT})

    @property
    def name(self) -> str:
        return self.method.name

    def content(self) -> dict[str, Any]:
        models = self._models()
        terms = [self._term(name, entry) for name, entry in models]
        method = "linear" if self._is_mean() else self.name
        if self.name == "linear" and BASE in dict(models):
            method, terms = "task_arithmetic", self._beside_base(terms, [entry for _, entry in models])
        return {
            "method": AUTO if self.fields["merge_method"].text() == AUTO else method,
            "terms": terms,
            "scale": self._scale(),
            "params": self._params(),
        }

    def _is_mean(self) -> bool:
        """mergekit's task arithmetic divides by the sum of weights where it is told to."""
        normalize = self.given.get("normalize")
        if normalize is not None and self.name == "linear" and not normalize.flag():
            normalize.fail("a sum of models that is not divided by its weights scales the base; leave normalize out")
        return normalize is not None and self.name == "task_arithmetic" and normalize.flag()

    def _scale(self) -> float:
        if "lambda" not in self.given or not self._has_lambda:
            return 1.0
        return self.given["lambda"].number(MAX_WEIGHT)

    @property
    def _has_lambda(self) -> bool:
        """Of mergekit's methods some; of those that it has not, all that have no other parameter of that name."""
        return self.name in _SCALED or (self.name not in _MERGEKITS and "lambda" not in self.method.defaults)

    # models

    def _models(self) -> list[tuple[str, Node]]:
        """Names of deltas and their entries; the base is among them in slerp, which starts from it, and in linear."""
        entries = [(entry.mapping(("model", "parameters")), entry) for entry in self.fields["models"].items()]
        for fields, entry in entries:
            if "model" not in fields:
                entry.fail("an entry of models has a model")
        base = self._base()
        if self.name == "slerp":
            return self._from_base([(fields["model"], entry) for fields, entry in entries], base)
        found = []
        for fields, entry in entries:
            if base is None or fields["model"].text() != base.text():
                found.append((self._delta(fields["model"]), entry))
            elif self.name == "linear":
                found.append((BASE, entry))
            elif "parameters" in fields:
                entry.fail("the base has no weight and no parameters here; leave them out")
        if base is not None and self.name == "linear" and all(name != BASE for name, _ in found):
            found.append(self._unlisted(base))
        return found

    def _base(self) -> Node | None:
        base = self.fields.get("base_model")
        if base is None and self.name in _BASE_IS_NO_MODEL | {"slerp"}:
            self.fields["merge_method"].fail(f"{self.name} needs a base_model")
        return base

    def _unlisted(self, base: Node) -> tuple[str, Node]:
        """mergekit adds it to the models, where only the weight of all is its own."""
        if WEIGHT not in self.given:
            base.fail("linear counts base_model as one of the models: list it with a weight, or leave it out")
        return BASE, base

    def _from_base(self, models: list[tuple[Node, Node]], base: Node | None) -> list[tuple[str, Node]]:
        """slerp's base_model is the fine-tune at t = 0."""
        assert base is not None, "slerp needs one"
        names = {model.text() for model, _ in models}
        listed = models if base.text() in names else [(base, base), *models]
        ordered = sorted(listed, key=lambda pair: pair[0].text() != base.text())
        return [(self._delta(model), entry) for model, entry in ordered]

    def _delta(self, node: Node) -> str:
        name = node.text()
        if not re.fullmatch(f"{NAME}(@{VERSION})?", name):
            node.fail(
                f"{name[:200]!r} is no delta's name: compress and upload that model, and write the delta's name here, "
                f"as in 'model: math' or 'model: math@3'{_THE_BASE if self.name == 'linear' else ''}"
            )
        return name

    def _term(self, name: str, entry: Node) -> dict[str, Any]:
        given = entry.mapping().get("parameters") if isinstance(entry.content, dict) else None
        own = given.mapping() if given is not None else {}
        for key, node in own.items():
            if key not in self.of_terms:
                node.fail(f"models of {self.name} have no parameter {key!r} of their own{self._list(self.of_terms)}")
        settings = {key: self._setting(key, own.get(key)) for key in sorted(self.of_terms)}
        weight = settings.pop(WEIGHT, None)
        params = {key: setting for key, setting in settings.items() if setting is not None}
        if weight is None and self.name in _WEIGHTED:
            entry.fail(f"{name} has no weight")
        if isinstance(weight, list):
            if not any(rule.get("filter", EVERY) == EVERY for rule in weight):
                entry.fail(f"the weight of {name} ends with a value without a filter, for all other tensors")
            return {"delta": name, "params": params | {WEIGHT: weight}}
        return {"delta": name, "weight": 1.0 if weight is None else weight, "params": params}

    def _setting(self, key: str, own: Node | None) -> float | list[dict[str, Any]] | None:
        """A number, or rules: the model's own, then those of all models. Numbers of all are the recipe's params."""
        bound = MAX_WEIGHT if key == WEIGHT else float("inf")
        shared = self.given.get(key)
        if shared is not None and key != WEIGHT and shared.is_number:
            shared = None
        found = [read_rules(node, bound) for node in (own, shared) if node is not None]
        if not found:
            return None
        rules = reached([rule for part in found for rule in part])
        if len(rules) > MAX_RULES:
            (own or shared or self.fields["models"]).fail(f"{key} has at most {MAX_RULES} values with filters")
        first = rules[0]
        return first["value"] if first.keys() == {"value"} and isinstance(first["value"], float) else rules

    def _beside_base(self, terms: list[dict[str, Any]], entries: list[Node]) -> list[dict[str, Any]]:
        """Of a mean that counts the base the deltas, as a sum: theta_0 + sum_t (w_t / w) tau_t, w = w_0 + sum_t w_t."""
        for term, entry in zip(terms, entries, strict=True):
            if term["params"]:
                entry.fail(
                    f"a mean that counts the base takes one weight for all tensors, and {term['delta']}'s varies: "
                    "leave the base out, or write task_arithmetic, with each weight divided by the sum of all"
                )
        deltas = [term for term in terms if term["delta"] != BASE]
        if len(deltas) < len(terms) - 1:
            self.fields["models"].fail("the base is listed twice; list it once, with one weight")
        total = sum(term["weight"] for term in terms)
        if not total or any(abs(term["weight"]) > MAX_WEIGHT * abs(total) for term in deltas):
            self.fields["models"].fail(
                f"the weights of this mean sum to {total:g}, and it divides by that: no model may weigh more than "
                f"{MAX_WEIGHT:g} times as much as all together"
            )
        return [{**term, "weight": term["weight"] / total} for term in deltas]

    # what holds for the whole merge

    def _params(self) -> dict[str, Scalar]:
        params: dict[str, Scalar] = {PRESET: MERGEKIT} if MERGEKIT in self.method.presets else {}
        for key, node in self.given.items():
            if key == "int8_mask":
                node.flag()
            elif key == "nuslerp_flatten" and self.name == "nuslerp":
                params["scope"] = "tensor" if node.flag() else "neuron"
            elif key in self._read_elsewhere:
                continue
            elif key not in self.of_terms or node.is_number:
                params[key] = self._param(key, node)
        return params

    @property
    def _read_elsewhere(self) -> frozenset[str]:
        """What becomes another field of the recipe."""
        weights = self.of_terms & {WEIGHT}
        lambdas = {"lambda"} if self._has_lambda else set()
        return frozenset(weights | lambdas | ({"normalize"} if self.name in ("linear", "task_arithmetic") else set()))

    def _param(self, key: str, node: Node) -> Scalar:
        default = self.method.defaults.get(key)
        if default is None:
            node.fail(f"{self.name} has no parameter {key!r}{self._list(self.method.defaults.keys())}")
        if not isinstance(node.content, str):
            node.fail(f"{key} of {self.name} is one value for all tensors; it cannot vary")
        if key == "rescale" and isinstance(default, str) and node.is_flag:
            return "l1" if node.flag() else "none"
        if isinstance(default, bool):
            return node.flag()
        if isinstance(default, str):
            return _word(node)
        return int(node.number()) if isinstance(default, int) and node.number().is_integer() else node.number()

    def _list(self, keys: Any) -> str:
        return f"; there are {', '.join(sorted(keys))}" if keys else ""


def _word(node: Node) -> Scalar:
    try:
        return valid_scalar(node.text())
    except ValueError as error:
        node.fail(f"{node.path}: {error}")
