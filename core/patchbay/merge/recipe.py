"""A recipe: which deltas to merge, with what weights, by which method. Read strictly, because it comes from outside.

A recipe does not know which deltas or methods exist; whoever resolves its names passes what they found to `canonical`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from patchbay.errors import InvalidRecipe
from patchbay.merge.rules import CanonicalRule, Outside, Setting, canonical_rules, list_as_tuple, without_default

Scalar = int | float | bool | str

MAX_TERMS = 8
MAX_WEIGHT = 10.0
MAX_PARAMS = 8  # with the bounds below every recipe, written out, stays under the expression parser's 2,000 characters
MAX_INTEGER = 2**53  # beyond it a JSON reader may round, and two seeds become one

NAME = r"[a-z0-9][a-z0-9._-]{0,62}"
VERSION = r"[1-9][0-9]{0,8}"
WORD = r"[a-z][a-z0-9._-]{0,62}"  # a method, or a parameter's text: never mistaken for a number
KEY = r"[a-z][a-z0-9_]{0,31}"
RESERVED_KEYS = frozenset({"scale", "head"})
RESERVED_WORDS = frozenset({"true", "false"})
WEIGHT = "weight"  # among a term's params: rules for its weight

TermSettings = tuple[tuple[str, tuple[CanonicalRule, ...]], ...]  # of one term, by key


def _valid_key(key: object) -> object:
    if isinstance(key, str) and key in RESERVED_KEYS:
        raise ValueError(f"{key} is a field of the recipe, beside params; move it there")
    return key


def valid_scalar(value: object) -> Scalar:
    """`value`, if a recipe can carry it as a parameter. Raises ValueError, which pydantic reports with its place."""
    match value:
        case bool():
            return value
        case int() if abs(value) > MAX_INTEGER:
            raise ValueError("a whole number is between -2**53 and 2**53")
        case float() if not math.isfinite(value):
            raise ValueError("a number is finite: neither NaN nor infinity")
        case str() if not re.fullmatch(WORD, value) or value in RESERVED_WORDS:
            raise ValueError("text is one lower-case word that starts with a letter, and not true or false")
        case int() | float() | str():
            return value
    raise ValueError("a parameter is a number, true, false or a word")


_DeltaText = Annotated[str, Field(pattern=f"^{NAME}(@{VERSION})?$")]
_Weight = Annotated[float, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT)]
_ParamKey = Annotated[str, Field(pattern=f"^{KEY}$"), BeforeValidator(_valid_key)]
_ParamValue = Annotated[Scalar, BeforeValidator(valid_scalar)]


class Term(Outside):
    """`weight` times one delta, which is written `name` (its current version) or `name@version`.

    `params` are the term's own: they go before the method's, where one of their rules holds. Rules for the weight are
    among them, under `weight`; `weight` itself holds where none of those does.
    """

    delta: _DeltaText
    weight: _Weight = 1.0
    params: Annotated[dict[_ParamKey, Setting], Field(max_length=MAX_PARAMS, exclude_if=lambda params: not params)] = {}

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        rules = self.params.get(WEIGHT, ())
        if not isinstance(rules, tuple):
            raise ValueError("params.weight takes rules; a plain weight is the term's own field, beside params")
        if any(abs(value) > MAX_WEIGHT for rule in rules for value in rule.values):
            raise ValueError(f"params.weight: weights lie within -{MAX_WEIGHT:g} and {MAX_WEIGHT:g}")
        return self

    @property
    def name(self) -> str:
        return self.delta.partition("@")[0]

    @property
    def version(self) -> int | None:
        """The version asked for, or None for the current one."""
        version = self.delta.partition("@")[2]
        return int(version) if version else None

    def describe(self) -> str:
        """As an expression writes it: `math`, `-math@3`, `0.6*math`."""
        sign = "-" if self.weight < 0 else ""
        size = abs(self.weight)
        return sign + self.delta if size == 1 else f"{sign}{_shortest(size)}*{self.delta}"


class Recipe(Outside):
    """Merge `terms` by `method`, then multiply the merged task vector by `scale`.

    `head` is the delta whose classification head answers, written as in a term.
    """

    method: Annotated[str, Field(pattern=f"^{WORD}$")] = "task_arithmetic"
    terms: Annotated[tuple[Term, ...], Field(min_length=1, max_length=MAX_TERMS), BeforeValidator(list_as_tuple)]
    scale: _Weight = 1.0
    params: Annotated[dict[_ParamKey, _ParamValue], Field(max_length=MAX_PARAMS)] = {}
    head: _DeltaText | None = None

    def describe(self) -> str | None:
        """The shortest expression that `expression.parse` reads back to an equal recipe; None where terms have params,
        which no expression writes.
        """
        if any(term.params for term in self.terms):
            return None
        terms, options = [term.describe() for term in self.terms], self._describe_options()
        if self.method == "task_arithmetic" and not options:
            return terms[0] + "".join(f" - {term[1:]}" if term[0] == "-" else f" + {term}" for term in terms[1:])
        return f"{self.method}({', '.join(terms)}{'; ' if options else ''}{', '.join(options)})"

    def _describe_options(self) -> list[str]:
        options = [f"{key}={str(value).lower()}" for key, value in self.params.items()]
        if self.scale != 1:
            options.append(f"scale={_shortest(self.scale)}")
        if self.head is not None:
            options.append(f"head={self.head}")
        return options

    def canonical(
        self,
        digests: Mapping[str, str],
        symmetric: bool,
        defaults: Mapping[str, Scalar],
        head: str | None = None,
    ) -> CanonicalRecipe:
        """This recipe with names resolved and defaults filled in, so that equal meanings are equal values.

        `digests` maps each term's `delta` text to its content digest, `symmetric` says that the method does not care
        about the order of terms, `defaults` are the method's parameters, and `head` is the digest of the delta whose
        head answers (this recipe's own `head` is text, and is not looked at).
        Raises InvalidRecipe when two terms are the same delta.
        """
        _check_distinct(self.terms, digests)
        params = {**defaults, **self.params}
        terms = [(digests[term.delta], *_canonical_term(term, params)) for term in self.terms]
        if symmetric:
            terms.sort()
        settings = tuple(settings for _, _, settings in terms)
        return CanonicalRecipe(
            method=self.method,
            terms=tuple((digest, weight) for digest, weight, _ in terms),
            scale=self.scale + 0.0,
            params=tuple(sorted(params.items())),
            head=head,
            settings=settings if any(settings) else (),
        )


def _shortest(number: float) -> str:
    return repr(number).removesuffix(".0")


def _canonical_term(term: Term, params: Mapping[str, Scalar]) -> tuple[float, TermSettings]:
    """The weight where no rule holds, and the term's settings as far as they say something else than `params`."""
    weight, rules = _canonical_weight(term)
    settings = {WEIGHT: rules}
    for key in term.params.keys() - {WEIGHT}:
        default = params.get(key)
        found = canonical_rules(term.params[key])
        is_number = isinstance(default, int | float) and not isinstance(default, bool)
        settings[key] = without_default(found, float(default or 0)) if is_number else found
    return weight, tuple((key, settings[key]) for key in sorted(settings) if settings[key])


def _canonical_weight(term: Term) -> tuple[float, tuple[CanonicalRule, ...]]:
    rules = canonical_rules(term.params.get(WEIGHT, ()))
    weight = term.weight + 0.0  # + 0.0 turns -0.0 into 0.0
    if rules and rules[-1][0] is None:  # holds wherever no other rule does, so that the plain weight never holds
        weight = rules[-1][1][0] if len(rules[-1][1]) == 1 else 1.0
    return weight, without_default(rules, weight)


def _check_distinct(terms: tuple[Term, ...], digests: Mapping[str, str]) -> None:
    seen: dict[str, str] = {}
    for term in terms:
        digest = digests[term.delta]
        if digest in seen:
            raise InvalidRecipe(
                f"{seen[digest]!r} and {term.delta!r} are the same delta; name it once, with one weight", param="terms"
            )
        seen[digest] = term.delta


@dataclass(frozen=True, slots=True)
class CanonicalRecipe:
    """What a recipe means: content digests in place of names, every parameter present. Its identity is `hash`.

    `settings` are the terms' own, in the order of `terms`; empty where no term has any.
    """

    method: str
    terms: tuple[tuple[str, float], ...]
    scale: float
    params: tuple[tuple[str, Scalar], ...]
    head: str | None
    settings: tuple[TermSettings, ...] = ()

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no blanks, every number a float in its shortest exact form."""
        content: dict[str, object] = {
            "method": self.method,
            "terms": self.terms,
            "scale": self.scale,
            "params": {key: _plain_number(value) for key, value in self.params},
            "head": self.head,
        }
        if self.settings:  # a key that others lack, so that their hashes stay what they were
            content["settings"] = [dict(settings) for settings in self.settings]
        return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def hash(self) -> str:
        """`sha256:<hex>` of the canonical JSON."""
        return "sha256:" + hashlib.sha256(self.to_json().encode()).hexdigest()


def _plain_number(value: Scalar) -> Scalar:
    """1 and 1.0 mean the same, and so do 0.0 and -0.0; true is not a number."""
    return value if isinstance(value, bool | str) else float(value) + 0.0
