"""The tree in the docstring is the tree in the code, and codes are distinct: the service maps by them."""

from __future__ import annotations

import inspect
import re

import pytest

from patchbay import errors
from patchbay.errors import InvalidExpression, NotFound, PatchbayError, WrongShape

CLASSES = {name: c for name, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, PatchbayError)}


def drawn_parents() -> dict[str, str]:
    """Class -> parent, as the docstring draws it; four characters are one level."""
    parents, path = {}, []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"^([│├└─\s]*)([A-Z][A-Za-z]+)(\s|$)", line):
            indent, name, _ = match.groups()
            if not indent and name != "PatchbayError":
                continue
            path = [*path[: len(indent) // 4], name]
            parents[name] = path[-2] if len(path) > 1 else "Exception"
    return parents


def test_docstring_draws_the_tree() -> None:
    assert drawn_parents() == {name: c.__base__.__name__ for name, c in CLASSES.items()}


def test_codes_are_distinct_and_snake_case() -> None:
    codes = [c.code for c in CLASSES.values()]
    assert len(set(codes)) == len(codes)
    assert all("code" in vars(c) and re.fullmatch(r"[a-z]+(_[a-z]+)*", c.code) for c in CLASSES.values())


def test_message_and_param() -> None:
    error = WrongShape("two sizes", param="a.weight")
    assert (str(error), error.message, error.param) == ("two sizes", "two sizes", "a.weight")
    assert PatchbayError("alone").param is None


def test_invalid_expression_points_at_the_place() -> None:
    error = InvalidExpression("a name is missing", "math + * 2", 7)
    _, text, caret = str(error).splitlines()
    assert text[caret.index("^")] == "*"
    assert error.position == 7
    assert error.reason == "a name is missing"


def test_not_found_lists_at_most_three_close_names() -> None:
    known = ["math", "maths", "math2", "mathe", "poetry"]
    error = NotFound.named("delta", "mat", known, param="model")
    listed = error.message.partition("close names: ")[2].split(", ")
    assert error.param == "model"
    assert "'mat'" in error.message
    assert len(listed) == 3
    assert set(listed) < set(known) - {"poetry"}


@pytest.mark.parametrize("known", [[], ["poetry"]])
def test_not_found_invents_no_names(known: list[str]) -> None:
    assert NotFound.named("delta", "math", known).message == "there is no delta 'math'"
