"""Expressions: what they mean, the way back to text, and what each mistake is told."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from patchbay.errors import InvalidExpression
from patchbay.merge.expression import MAX_LENGTH, parse
from patchbay.merge.recipe import (
    KEY,
    MAX_INTEGER,
    MAX_PARAMS,
    MAX_TERMS,
    MAX_WEIGHT,
    NAME,
    RESERVED_KEYS,
    RESERVED_WORDS,
    WORD,
    Recipe,
    Term,
)

LAW = settings(deadline=None)  # a busy machine is no failure

TRICKY_NAMES = ["1e", "1e-5", "0.5", "2024", "true", "a-", "a.", "e5", "scale", "head", "task_arithmetic", "inf", "nan"]

NAMES = st.sampled_from(TRICKY_NAMES) | st.from_regex(NAME, fullmatch=True)
DELTAS = st.builds(lambda name, version: name + version, NAMES, st.sampled_from(["", "@1", "@42", "@999999999"]))
WEIGHTS = st.sampled_from([1.0, -1.0, 0.0, 0.5, -0.5, 1e-05, 5e-324]) | st.floats(-MAX_WEIGHT, MAX_WEIGHT)
SCALARS = st.one_of(
    st.booleans(),
    st.integers(-MAX_INTEGER, MAX_INTEGER),
    st.floats(allow_nan=False, allow_infinity=False),
    st.from_regex(WORD, fullmatch=True).filter(lambda word: word not in RESERVED_WORDS),
)
KEYS = st.from_regex(KEY, fullmatch=True).filter(lambda key: key not in RESERVED_KEYS)
RECIPES = st.builds(
    Recipe,
    method=st.just("task_arithmetic") | st.from_regex(WORD, fullmatch=True),
    terms=st.lists(st.builds(Term, delta=DELTAS, weight=WEIGHTS), min_size=1, max_size=MAX_TERMS).map(tuple),
    scale=st.just(1.0) | WEIGHTS,
    params=st.just({}) | st.dictionaries(KEYS, SCALARS, max_size=MAX_PARAMS),
    head=st.none() | DELTAS,
)
PLAIN_SUMS = st.builds(Recipe, terms=st.lists(st.builds(Term, delta=DELTAS, weight=WEIGHTS), min_size=1, max_size=8))
FRAGMENTS = st.lists(
    st.sampled_from(
        ["math", "code-2", "0.5", "11", "1e", "1e+5", "Math", "true", "scale", "head", "density", "3", "é", "\n"]
        + [*"+-*@(),;=", " ", " ", " - ", "; ", "0.2*"]
    ),
    max_size=30,
).map("".join)


def sum_of(*terms: tuple[str, float]) -> Recipe:
    return Recipe(terms=tuple(Term(delta=delta, weight=weight) for delta, weight in terms))


def types_of(recipe: Recipe) -> dict[str, type]:
    return {key: type(value) for key, value in recipe.params.items()}


# meaning


@pytest.mark.parametrize(
    ("text", "recipe"),
    [
        ("math", sum_of(("math", 1.0))),
        ("math@3", sum_of(("math@3", 1.0))),
        ("0.6*math + 0.4*code", sum_of(("math", 0.6), ("code", 0.4))),
        ("0.6*math+0.4*code", sum_of(("math", 0.6), ("code", 0.4))),
        ("math - 0.5*toxic", sum_of(("math", 1.0), ("toxic", -0.5))),
        ("math@2 - toxic@1 + code", sum_of(("math@2", 1.0), ("toxic@1", -1.0), ("code", 1.0))),
        ("0.5*math", sum_of(("math", 0.5))),
        ("-0.5*math", sum_of(("math", -0.5))),
        ("- math", sum_of(("math", -1.0))),
        (" \t0.5 * math\n", sum_of(("math", 0.5))),
        (".5*math", sum_of(("math", 0.5))),
        ("5.*math", sum_of(("math", 5.0))),
        ("1e-05*math", sum_of(("math", 1e-05))),
        ("1E+1*math", sum_of(("math", 10.0))),
        ("10*math - 10*code", sum_of(("math", 10.0), ("code", -10.0))),
        ("my-delta-2", sum_of(("my-delta-2", 1.0))),
        ("a-0.5", sum_of(("a-0.5", 1.0))),
        ("a - b", sum_of(("a", 1.0), ("b", -1.0))),
        ("0.5*0.5", sum_of(("0.5", 0.5))),
        ("2024 + 1e-5", sum_of(("2024", 1.0), ("1e-5", 1.0))),
        ("1e + 5", sum_of(("1e", 1.0), ("5", 1.0))),
        ("1e+5x", sum_of(("1e", 1.0), ("5x", 1.0))),
        ("ties", sum_of(("ties", 1.0))),
        ("task_arithmetic(math, -code)", sum_of(("math", 1.0), ("code", -1.0))),
    ],
)
def test_sums(text: str, recipe: Recipe) -> None:
    assert parse(text) == recipe


@pytest.mark.parametrize(
    ("text", "recipe"),
    [
        ("neuromerging(math, code)", Recipe(method="neuromerging", terms=(Term(delta="math"), Term(delta="code")))),
        (
            "ties(0.6*math, 0.4*code; density=0.2, scale=1.2)",
            Recipe(
                method="ties",
                terms=(Term(delta="math", weight=0.6), Term(delta="code", weight=0.4)),
                scale=1.2,
                params={"density": 0.2},
            ),
        ),
        (
            "ties ( - 0.5 * math @ 2,code ; head = 2b@3,scale=-2 )",
            Recipe(
                method="ties",
                terms=(Term(delta="math@2", weight=-0.5), Term(delta="code")),
                scale=-2.0,
                head="2b@3",
            ),
        ),
        (
            "dare_ties(a; a=1, b=1.0, c=-1, d=1e+300, e=true, f=false, g=sum, h=nan)",
            Recipe(
                method="dare_ties",
                terms=(Term(delta="a"),),
                params={"a": 1, "b": 1.0, "c": -1, "d": 1e300, "e": True, "f": False, "g": "sum", "h": "nan"},
            ),
        ),
    ],
)
def test_calls(text: str, recipe: Recipe) -> None:
    assert parse(text) == recipe
    assert types_of(parse(text)) == types_of(recipe)


# the way back


@pytest.mark.parametrize(
    "text",
    [
        "math",
        "-math@3",
        "0.6*math + 0.4*code",
        "math - 0.5*toxic",
        "math - toxic",
        "10*math",
        "1e-05*math",
        "neuromerging(math, code)",
        "ties(0.6*math, -0.4*code; density=0.2, rescale=true, seed=7, rule=sum, scale=1.2, head=math)",
        "task_arithmetic(math, code; scale=0.5)",
    ],
)
def test_a_recipe_is_described_as_one_would_write_it(text: str) -> None:
    assert parse(text).describe() == text


@LAW
@given(RECIPES)
def test_a_description_reads_back(recipe: Recipe) -> None:
    again = parse(recipe.describe())
    assert again == recipe
    assert types_of(again) == types_of(recipe)


@LAW
@given(PLAIN_SUMS)
def test_a_described_sum_reads_back(recipe: Recipe) -> None:
    assert "(" not in recipe.describe()
    assert parse(recipe.describe()) == recipe


def test_the_longest_recipe_still_fits() -> None:
    delta = "a" * 63 + "@999999999"
    recipe = Recipe(
        method="m" * 63,
        terms=(Term(delta=delta, weight=-1.2345678901234567e-100),) * MAX_TERMS,
        scale=-1.2345678901234567e-100,
        params={f"{n}".rjust(32, "k"): "w" * 63 for n in range(MAX_PARAMS)},
        head=delta,
    )
    assert parse(recipe.describe()) == recipe


# mistakes: `^` stands before the character that the error points at

MISTAKES = [
    ("^", "the expression is empty"),
    ("  ^", "the expression is empty"),
    ("math ^/ 2", "'/' has no meaning"),
    ('^"math"', "has no meaning"),
    ("math ^− code", "'−' only looks like `-`; type that instead"),
    ("0.5^×math", "'×' only looks like `*`"),
    ("0.5 ^math", "a `*` is missing between `0.5` and `math`"),
    ("ties(0.5 ^math)", "a `*` is missing between `0.5` and `math`"),
    ("math ^code", "an operator is missing between `math` and `code`"),
    ("math@3 ^code", "an operator is missing between `3` and `code`"),
    ("ties(math ^code)", "a comma is missing between `math` and `code`"),
    ("math + ^+ code", "two operators in a row"),
    ("math - ^- code", "two operators in a row"),
    ("math + ^-0.5*code", "two operators in a row"),
    ("-^-math", "two operators in a row"),
    ("^+math", "a term does not start with `+`"),
    ("ties(^+math)", "a term does not start with `+`"),
    ("a ^-b", "a `-` that subtracts has a blank on both sides"),
    ("a ^-0.5*b", "a `-` that subtracts has a blank on both sides"),
    ("a- ^b", "the `-` of `a-` is part of that name"),
    ("^a-0.5*b", "expected a number, not `a-0.5`; a `-` that subtracts has blanks"),
    ("^math*0.5", "expected a number, not `math`; weights come first"),
    ("0.5*^0.5*math", "a delta has one weight"),
    ("0.5*^", "expected a delta's name, not the end"),
    ("math + ^", "expected a delta's name, not the end"),
    ("math - ^", "expected a delta's name, not the end"),
    ("^*math", "expected a delta's name, not `*`"),
    ("^10.1*math", "`10.1` is out of range: weights and scales lie within -10 and 10"),
    ("math - ^1e999*code", "`1e999` is out of range"),
    ("ties(a; scale=^11)", "`11` is out of range"),
    ("ties(a; scale=-^11)", "`11` is out of range"),
    ("math@^0", "a positive integer as in `math@3`, not `0`"),
    ("math@^03", "a positive integer as in `math@3`, not `03`"),
    ("math@^1.5", "a positive integer as in `math@3`, not `1.5`"),
    ("math@^x", "a positive integer as in `math@3`, not `x`"),
    ("math@^-1", "a positive integer as in `math@3`, not `-`"),
    ("math@^3-b", "a positive integer as in `math@3`, not `3-b`"),
    ("math@^", "a positive integer as in `math@3`, not the end"),
    ("math@1^@2", "an operator may follow `1`, but not `@`"),
    ("^Math", "a delta's name is lower case: write `math`"),
    ("my^Math", "a delta's name is lower case: write `mymath`"),
    ("^TIES(math)", "a method is lower case: write `ties`"),
    ("0.5*^.math", "a delta's name starts with a letter or a digit"),
    ("^" + "a" * 64, "has at most 63 characters"),
    ("^2(math)", "a method starts with a letter"),
    ("^(a + b)", "a parenthesis only follows a method"),
    ("ties(^linear(a, b), c)", "calls do not nest"),
    ("a + ^ties(b)", "calls do not nest"),
    ("0.5*^ties(a)", "calls do not nest or carry a weight"),
    ("ties(a) ^+ b", "nothing follows its `)`"),
    ("ties(a)^)", "nothing follows its `)`"),
    ("a^)", "this `)` closes nothing"),
    ("a^, b", "a sum is joined with `+` and `-`"),
    ("a^; scale=2", "options belong inside a method"),
    ("a ^= b", "an operator may follow `a`, but not `=`"),
    ("ties(a ^+ b)", "terms are separated with commas"),
    ("ties(a ^- b)", "a negative weight is written `-0.5*math`"),
    ("ties(a, density^=1)", "options come after a `;`"),
    ("ties(^)", "expected a delta's name, not `)`"),
    ("ties(a, ^)", "expected a delta's name, not `)`"),
    ("ties(^; density=1)", "expected a delta's name, not `;`"),
    ("ties(^", "expected a delta's name, not the end"),
    ("ties(a^", "`)` to close the parenthesis, not the end"),
    ("ties(a; density=1^", "`)` to close the parenthesis, not the end"),
    ("ties(a; density=1 ^seed=2)", "expected `,`, or `)` to close the parenthesis, not `seed`"),
    ("ties(a; density=1^; seed=2)", "expected `,`, or `)` to close the parenthesis, not `;`"),
    ("ties(a; ^)", "expected an option such as `density=0.2`, not `)`"),
    ("ties(a; density=1, ^)", "expected an option such as `density=0.2`, not `)`"),
    ("ties(a; ^0.5)", "expected an option such as `density=0.2`, not `0.5`"),
    ("ties(a; ^Density=1)", "expected an option such as `density=0.2`, not `Density`"),
    ("ties(a; density ^0.2)", "expected `=` and a value after `density`, not `0.2`"),
    ("ties(a; density=^)", "expected a number, true, false or a word, not `)`"),
    ("ties(a; density=^=1)", "expected a number, true, false or a word, not `=`"),
    ("ties(a; density=-^x)", "expected a number, not `x`"),
    ("ties(a; rule=^Sum)", "a value is lower case: write `sum`"),
    ("ties(a; rule=^2x)", "a value starts with a letter"),
    ("ties(a; scale=^true)", "expected a number, not `true`"),
    ("ties(a; head=^)", "expected a delta's name, not `)`"),
    ("ties(a; head=^-a)", "expected a delta's name, not `-`"),
    ("ties(a; x=^1e400)", "finite"),
    ("ties(a; x=^9007199254740993)", "2**53"),
    ("ties(a; x=1, ^x=1)", "`x` is given twice"),
    ("ties(a; scale=1, ^scale=1)", "`scale` is given twice"),
    ("ties(a; head=a, x=1, ^head=a)", "`head` is given twice"),
    (" + ".join("abcdefgh") + " ^+ i", "at most 8 terms"),
    ("ties(" + ", ".join("abcdefgh") + ", ^i)", "at most 8 terms"),
    ("ties(a; scale=1, " + ", ".join(f"{key}=1" for key in "abcdefgh") + ", ^i=1)", "at most 8 parameters"),
]


@pytest.mark.parametrize(("marked", "reason"), MISTAKES, ids=[marked or "empty" for marked, _ in MISTAKES])
def test_a_mistake_is_explained_at_its_place(marked: str, reason: str) -> None:
    position, text = marked.index("^"), marked.replace("^", "")
    with pytest.raises(InvalidExpression) as caught:
        parse(text)
    assert reason in caught.value.reason
    assert caught.value.position == position


def test_the_message_shows_the_place() -> None:
    with pytest.raises(InvalidExpression) as caught:
        parse("math\n+ Code")
    assert str(caught.value).splitlines()[1:] == ["  math + Code", "         ^"]


def test_characters_that_cannot_be_printed_are_not_repeated() -> None:
    with pytest.raises(InvalidExpression) as caught:
        parse("math \x1b[31m \ud800")
    assert "\x1b" not in str(caught.value)
    str(caught.value).encode("utf-8")


def test_text_over_the_cap_is_refused_and_not_echoed_whole() -> None:
    assert parse("math" + " " * (MAX_LENGTH - 4)) == sum_of(("math", 1.0))
    with pytest.raises(InvalidExpression, match="at most 2,000 characters, this one has 1,000,000") as caught:
        parse("a" * 1_000_000)
    assert caught.value.position == MAX_LENGTH
    assert len(str(caught.value)) < 3 * MAX_LENGTH


# any text at all


def assert_parses_or_explains(text: str) -> None:
    try:
        recipe = parse(text)
    except InvalidExpression as error:
        assert 0 <= error.position <= len(text)
        assert error.reason
    else:
        assert parse(recipe.describe()) == recipe


@LAW
@given(st.text(max_size=60) | st.text(alphabet="ab1.5eE+-*@(),;= \n", max_size=60))
@example("\ud800")
@example("١*math")
def test_any_text_parses_or_is_explained(text: str) -> None:
    assert_parses_or_explains(text)


@LAW
@given(FRAGMENTS)
def test_any_row_of_fragments_parses_or_is_explained(text: str) -> None:
    assert_parses_or_explains(text)


@pytest.mark.parametrize("unit", ["A", " ", *"1.-(@;=", "1.", "1e", "1e+", "1e+1", "-1", "- ", "a-", "a - ", "a("])
@pytest.mark.parametrize("end", ["", "*a", "x", "!"])
def test_two_thousand_hostile_characters_are_answered(unit: str, end: str) -> None:
    for start in ("", "ties(", "ties(a; x="):
        room = MAX_LENGTH - len(start) - len(end)
        assert_parses_or_explains(start + (unit * room)[:room] + end)
