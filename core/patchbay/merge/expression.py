"""The text form of a recipe, as typed into the `model` field. Knows no delta and no method: only how they are written.

    expression := sum | call
    sum        := item { ("+" | "-") term }                        the method is task_arithmetic
    call       := method "(" item { "," item } [ ";" option { "," option } ] ")"
    item       := [ "-" ] term
    term       := [ number "*" ] delta
    delta      := name [ "@" version ]
    option     := "head" "=" delta | "scale" "=" [ "-" ] number | key "=" ( [ "-" ] number | "true" | "false" | word )

A `-` between blanks subtracts; inside a name it is part of the name. A run of name characters is a number only where
a number belongs (before `*`, after `=`), so a delta may be called `2024`. `Recipe.describe` is the way back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from patchbay.errors import InvalidExpression
from patchbay.merge.recipe import (
    KEY,
    MAX_PARAMS,
    MAX_TERMS,
    MAX_WEIGHT,
    NAME,
    RESERVED_KEYS,
    VERSION,
    WORD,
    Recipe,
    Scalar,
    Term,
    valid_scalar,
)

MAX_LENGTH = 2_000
_BLANKS = " \t\r\n"
_SYMBOLS = "+-*@(),;="
_RUN = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._-]*")
_NUMBER = re.compile(r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_LOOK_ALIKES = {"−": "-", "–": "-", "—": "-", "×": "*", "·": "*", "∗": "*", "，": ",", "；": ";", "（": "(", "）": ")"}

_AFTER_SUM = {
    ",": "a sum is joined with `+` and `-`; commas belong inside `method(...)`",
    ";": "options belong inside a method, as in `task_arithmetic(math, code; scale=0.5)`",
    ")": "this `)` closes nothing; leave it out",
}
_AFTER_ITEM = {
    "+": "inside `method(...)` terms are separated with commas",
    "-": "inside `method(...)` terms are separated with commas; a negative weight is written `-0.5*math`",
    "=": "options come after a `;`, as in `ties(math, code; density=0.2)`",
}


def parse(text: str) -> Recipe:
    """The recipe that `text` writes. Raises InvalidExpression, whose `position` is where `text` stops making sense."""
    if len(text) > MAX_LENGTH:
        _fail(f"an expression has at most {MAX_LENGTH:,} characters, this one has {len(text):,}", text, MAX_LENGTH)
    return _Parser(text).expression()


def _fail(reason: str, text: str, position: int) -> NoReturn:
    """Shows the text on one line, without characters that a terminal or an encoder would stumble over."""
    shown = "".join(" " if c in _BLANKS else c if c.isprintable() else "\ufffd" for c in text[:MAX_LENGTH])
    raise InvalidExpression(reason, shown, position)


@dataclass(frozen=True, slots=True)
class _Token:
    """`kind` is "run" (a name, a number, a key ...: its place decides), "end", or the symbol itself."""

    kind: str
    text: str
    position: int

    @property
    def end(self) -> int:
        return self.position + len(self.text)

    @property
    def is_number(self) -> bool:
        return _NUMBER.fullmatch(self.text) is not None

    def __str__(self) -> str:
        return f"`{self.text}`" if self.text else "the end"


def _tokenize(text: str) -> Iterator[_Token]:
    position = 0
    while position < len(text):
        if text[position] in _BLANKS:
            position += 1
        else:
            token = _token_at(text, position)
            yield token
            position = token.end
    yield _Token("end", "", len(text))


def _token_at(text: str, position: int) -> _Token:
    character = text[position]
    if run := _run_at(text, position):
        return _Token("run", run, position)
    if character in _SYMBOLS:
        return _Token(character, character, position)
    if meant := _LOOK_ALIKES.get(character):
        _fail(f"{character!r} only looks like `{meant}`; type that instead", text, position)
    _fail(f"{character!r} has no meaning in an expression; use names, numbers and + - * @ ( ) , ; =", text, position)


def _run_at(text: str, position: int) -> str:
    """Name characters, or the number that reaches past them: `+` is no name character, but belongs to `1e+5`."""
    run, number = _RUN.match(text, position), _NUMBER.match(text, position)
    if run and number and number.end() > run.end() and not _RUN.match(text, number.end()):
        return number.group()
    return run.group() if run else ""


class _Parser:
    """Recursive descent over the tokens: each method reads one rule of the grammar and returns what it means."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(_tokenize(text))
        self.index = 0

    @property
    def token(self) -> _Token:
        return self.tokens[self.index]

    @property
    def before(self) -> _Token:
        return self.tokens[self.index - 1]

    @property
    def next_kind(self) -> str:
        return self.tokens[self.index + 1].kind if self.token.kind != "end" else "end"

    def advance(self) -> _Token:
        self.index += 1
        return self.before

    def accept(self, kind: str) -> bool:
        found = self.token.kind == kind
        self.index += found
        return found

    def fail(self, reason: str, position: int | None = None) -> NoReturn:
        _fail(reason, self.text, self.token.position if position is None else position)

    def expression(self) -> Recipe:
        if self.token.kind == "end":
            self.fail("the expression is empty; write a delta's name, or a sum such as `0.6*math + 0.4*code`")
        return self.call() if self.token.kind == "run" and self.next_kind == "(" else self.sum()

    def sum(self) -> Recipe:
        terms = [self.item()]
        while self.token.kind in ("+", "-"):
            self.check_count(terms)
            terms.append(self.term(self.operator()))
        if self.token.kind != "end":
            self.fail_after(_AFTER_SUM, "an operator")
        return Recipe(terms=tuple(terms))

    def operator(self) -> int:
        before, operator, after = self.before, self.advance(), self.token
        blanks = before.end < operator.position and operator.end < after.position
        if operator.kind == "-" and after.kind == "run" and not blanks:
            self.fail("a `-` that subtracts has a blank on both sides, as in `a - b`", operator.position)
        return 1 if operator.kind == "+" else -1

    def call(self) -> Recipe:
        method = self.word("a method", WORD)
        self.advance()
        terms = self.items()
        options = self.options() if self.accept(";") else {}
        if not self.accept(")"):
            self.fail(f"expected `,`, or `)` to close the parenthesis, not {self.token}")
        if self.token.kind != "end":
            self.fail("a method holds the whole expression: nothing follows its `)`")
        fields = {key: options.pop(key) for key in RESERVED_KEYS & options.keys()}
        return Recipe.model_validate({"method": method, "terms": terms, "params": options, **fields})

    def items(self) -> list[Term]:
        terms = [self.item()]
        while self.accept(","):
            self.check_count(terms)
            terms.append(self.item())
        if self.token.kind not in (";", ")", "end"):
            self.fail_after(_AFTER_ITEM, "a comma")
        return terms

    def check_count(self, terms: list[Term]) -> None:
        if len(terms) == MAX_TERMS:
            self.fail(f"a recipe has at most {MAX_TERMS} terms; leave this one out")

    def fail_after(self, reasons: dict[str, str], joint: str) -> NoReturn:
        """Fails at a token that cannot follow a term; `joint` is what joins terms here."""
        before, token = self.before, self.token
        if token.kind != "run":
            self.fail(reasons.get(token.kind, f"{joint} may follow {before}, but not {token}"))
        if before.text.endswith("-"):
            self.fail(f"the `-` of {before} is part of that name; to subtract, put a blank on both sides: `a - b`")
        weighs = before.is_number and self.tokens[self.index - 2].kind != "@"
        self.fail(f"{'a `*`' if weighs else joint} is missing between {before} and {token}")

    def item(self) -> Term:
        return self.term(-1 if self.accept("-") else 1)

    def term(self, sign: int) -> Term:
        if self.token.kind in ("+", "-"):
            twice = self.before.kind in ("+", "-")
            self.fail("two operators in a row; keep one" if twice else "a term does not start with `+`; leave it out")
        weight = float(sign)
        if self.next_kind == "*":
            weight *= self.weight()
            self.advance()
        return Term(delta=self.delta(), weight=weight)

    def weight(self) -> float:
        if not self.token.is_number:
            joined = re.search(r"-[0-9.]+$", self.token.text)
            hint = "a `-` that subtracts has blanks: `a - 0.5*b`" if joined else "weights come first, as in `0.5*math`"
            self.fail(f"expected a number, not {self.token}; {hint}")
        return self.bounded()

    def bounded(self) -> float:
        if float(self.token.text) > MAX_WEIGHT:
            self.fail(f"{self.token} is out of range: weights and scales lie within -{MAX_WEIGHT:g} and {MAX_WEIGHT:g}")
        return float(self.advance().text)

    def delta(self) -> str:
        if self.next_kind == "*":
            self.fail("a delta has one weight; multiply the numbers")
        if self.token.kind == "(":
            self.fail("a parenthesis only follows a method, as in `ties(math, code)`")
        name = self.word("a delta's name", NAME)
        if self.token.kind == "(":
            self.fail("calls do not nest or carry a weight: a method holds the whole expression", self.before.position)
        if not self.accept("@"):
            return name
        if not re.fullmatch(VERSION, self.token.text):
            self.fail(f"expected a version after `@`, a positive integer as in `math@3`, not {self.token}")
        return f"{name}@{self.advance().text}"

    def word(self, what: str, pattern: str) -> str:
        token = self.token
        if token.kind != "run":
            self.fail(f"expected {what}, not {token}")
        if upper := re.search("[A-Z]", token.text):
            self.fail(f"{what} is lower case: write `{token.text.lower()}`", token.position + upper.start())
        if not re.fullmatch(pattern, token.text):
            start = "a letter" if pattern == WORD else "a letter or a digit"
            self.fail(f"{what} starts with {start} and has at most 63 characters; {token} does not fit")
        return self.advance().text

    def options(self) -> dict[str, Scalar]:
        options: dict[str, Scalar] = {}
        while not options or self.accept(","):
            key = self.key(options)
            options[key] = self.value(key)
        return options

    def key(self, options: dict[str, Scalar]) -> str:
        key = self.token.text
        if not re.fullmatch(KEY, key):
            self.fail(f"expected an option such as `density=0.2`, not {self.token}")
        if key in options:
            self.fail(f"`{key}` is given twice; keep one")
        if key not in RESERVED_KEYS and len(options.keys() - RESERVED_KEYS) == MAX_PARAMS:
            self.fail(f"a recipe has at most {MAX_PARAMS} parameters; this is one more")
        self.advance()
        if not self.accept("="):
            self.fail(f"expected `=` and a value after `{key}`, not {self.token}")
        return key

    def value(self, key: str) -> Scalar:
        if key == "head":
            return self.delta()
        sign = -1 if self.accept("-") else 1
        if self.token.is_number:
            return sign * (self.bounded() if key == "scale" else self.number())
        takes_words = sign > 0 and key != "scale"
        if not takes_words or self.token.kind != "run":
            self.fail(f"expected a number{', true, false or a word' if takes_words else ''}, not {self.token}")
        word = self.word("a value", WORD)
        return word == "true" if word in ("true", "false") else word

    def number(self) -> Scalar:
        """Whole where written without point and exponent, as in JSON."""
        text = self.token.text
        try:
            number = valid_scalar(int(text) if text.isdigit() else float(text))
        except ValueError as error:
            self.fail(str(error))
        self.advance()
        return number
