from __future__ import annotations

from pathlib import Path

import pytest

from patchbay.errors import InvalidExpression, InvalidRecipe
from patchbay.merge import parse
from patchbay.merge.read import MAX_BYTES, read_recipe


def test_an_expression() -> None:
    assert read_recipe("linear(a, 2*b; head=a)") == parse("linear(a, 2*b; head=a)")
    with pytest.raises(InvalidExpression):
        read_recipe("a +")


def test_a_file(tmp_path: Path) -> None:
    file, recipe = tmp_path / "recipe.JSON", parse("linear(a, 2*b; scale=0.5, head=a)")
    file.write_text(recipe.model_dump_json())
    assert read_recipe(str(file)) == recipe


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "JSON"),
        (b"[]", "object"),
        (b'{"terms": []}', "terms"),
        (b'{"terms": [{"delta": "A"}]}', r"terms\.0\.delta"),
        (b'{"terms": [{"delta": "a"}], "more": 1}', "more"),
        (b"\xff\xfe", "not text"),
        (b" " * (MAX_BYTES + 1), "no recipe"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "recipe.json"
    file.write_bytes(content)
    with pytest.raises(InvalidRecipe, match=message):
        read_recipe(str(file))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_recipe(str(tmp_path / "none.json"))
