"""YAML is read strictly, within bounds, and every refusal says where."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchbay.errors import InvalidRecipe
from patchbay.merge.document import MAX_BYTES, MAX_DEPTH, MAX_NODES, Node, load

LAW = settings(deadline=None)  # a busy machine is no failure


def plain(node: Node) -> object:
    """Scalars as they were written."""
    if isinstance(node.content, dict):
        return {key: plain(value) for key, value in node.content.items()}
    return [plain(item) for item in node.content] if isinstance(node.content, list) else node.content


def test_values_know_where_they_were_written() -> None:
    root = load("a: 1\nb:\n  - {c: x}\n  - [2, ~]\n")
    assert plain(root) == {"a": "1", "b": [{"c": "x"}, ["2", None]]}
    found = root.mapping()["b"].items()[0].mapping()["c"]
    assert (found.path, found.line, found.column) == ("b.0.c", 3, 9)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1", 1),
        ("-0.5", -0.5),
        ("+.5", 0.5),
        ("1e-3", 1e-3),
        ("2.", 2),
        ("1E+2", 100),
        ("0", 0),
        ("-0.5e0", -0.5),
        ("00.5", 0.5),
    ],
)
def test_numbers(text: str, number: float) -> None:
    assert load(f"a: {text}").mapping()["a"].number() == number


@pytest.mark.parametrize(
    "text", ["'1'", '"1"', "one", "true", "[1]", "{a: 1}", ".inf", ".nan", "1e999", "1_000", "0x10", "1:30", "9" * 500]
)
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(InvalidRecipe, match=r"line 1, column [34]: a is a finite number") as caught:
        load(f"a: {text}").content["a"].number()  # type: ignore[index,call-overload]
    assert caught.value.param == "a"


@pytest.mark.parametrize("text", ["010", "-010", "+07", "00", "08", "0" * 500])
def test_a_number_that_yaml_reads_as_octal(text: str) -> None:
    """010 is 8 to mergekit's loader, and ten to most people."""
    with pytest.raises(InvalidRecipe, match=r"line 1, column 8: b.a begins with 0, which YAML 1.1 .*octal") as caught:
        load(f"b: {{a: {text}}}").mapping()["b"].mapping()["a"].number()
    assert caught.value.param == "b.a" and len(caught.value.message) < 200
    assert load(f"a: {text}").mapping()["a"].text() == text


@pytest.mark.parametrize(("text", "flag"), [("true", True), ("False", False), ("yes", True), ("off", False)])
def test_flags(text: str, flag: bool) -> None:
    assert load(f"a: {text}").mapping()["a"].flag() is flag


@pytest.mark.parametrize("text", ["1", "'true'", "maybe", "[true]"])
def test_what_is_no_flag(text: str) -> None:
    with pytest.raises(InvalidRecipe, match="a is true or false"):
        load(f"a: {text}").mapping()["a"].flag()


def test_bounds() -> None:
    assert load("a: -10").mapping()["a"].number(10) == -10
    with pytest.raises(InvalidRecipe, match="a lies within -10 and 10"):
        load("a: -10.1").mapping()["a"].number(10)


REFUSED = {
    "alias": ("a: &x 1\nb: *x", "line 2, column 4: aliases"),
    "alias of itself": ("&a [*a]", "line 1, column 5: aliases"),
    "laughs": ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "line 2, column 8: aliases"),
    "merge key": ("<<: {a: 1}", "line 1, column 1: a key"),
    "key twice": ("a: 1\nb: {c: 1,\n  c: 2}", "line 3, column 3: 'c' is given twice"),
    "key a number": ("1: 2", "a key is one word"),
    "key a list": ("? [a]\n: 1", "a key is one word"),
    "key true": ("true: 1", "a key is one word"),
    "key with a surrogate": ('"\\ud800": 1', "a key is one word"),
    "key very long": ("a" * 65 + ": 1", "a key is one word"),
    "python": ("a: !!python/object/apply:os.system [ls]", "line 1, column 4: tags"),
    "python scalar": ("a: !!python/name:os.system x", "tags"),
    "binary": ("a: !!binary aGk=", "tags"),
    "tag of ours": ("!recipe {a: 1}", "line 1, column 1: tags"),
    "text by tag": ("a: !!str 5", "tags"),
    "two documents": ("a: 1\n---\na: 2", "line 2, column 1: not YAML"),
    "open bracket": ("a: [1,\nb", "line 2, column 2: not YAML"),
    "tab": ("a:\n\tb: 1", "line 2, column 1: not YAML"),
    "control character": ("a: 1\nb: \x00", "line 2, column 4: a character"),
    "surrogate": ("a: \ud800", "line 1, column 4: a character"),
    "another version": ("%YAML 2.0\n---\na: 1", "line 1"),
    "nothing": ("", "the document is empty"),
    "a comment": ("# a", "the document is empty"),
    "deep": ("[" * 60_000, f"nested more than {MAX_DEPTH} deep"),
    "deep in blocks": ("- " * 30_000, f"nested more than {MAX_DEPTH} deep"),
    "wide": ("[" + "a," * MAX_NODES + "]", "at most 10,000 keys and values"),
    "too long": ("#" * (MAX_BYTES + 1), "at most 65,536 bytes"),
    "too long in bytes": ("#" + "é" * (MAX_BYTES // 2), "at most 65,536 bytes"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidRecipe) as caught:
        load(text)
    assert message in caught.value.message
    assert len(caught.value.message) < 300 and caught.value.message.isprintable()


def test_the_bounds_are_reached() -> None:
    assert load("#" * (MAX_BYTES - 2) + "\na").content == "a"
    assert len(load("[" + "a," * (MAX_NODES - 1) + "]").items()) == MAX_NODES - 1
    assert load("[" * MAX_DEPTH + "a" + "]" * MAX_DEPTH).items()


@LAW
@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        load(text)
    except InvalidRecipe as error:
        assert error.message


@LAW
@given(st.text("ab:-[]{}?!&*#|>'\"%@`,\n 1.~", max_size=60))
def test_any_syntax_is_read_or_refused(text: str) -> None:
    test_any_text_is_read_or_refused.hypothesis.inner_test(text)  # type: ignore[attr-defined]
