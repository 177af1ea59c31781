from __future__ import annotations

from pathlib import Path

import pytest
import torch

from patchbay.errors import InvalidExpression, InvalidRecipe
from patchbay.merge import mergekit, parse
from patchbay.merge.read import MAX_BYTES, Written, read_recipe


def test_an_expression() -> None:
    assert read_recipe("linear(a, 2*b; head=a)").recipe == parse("linear(a, 2*b; head=a)")
    with pytest.raises(InvalidExpression):
        read_recipe("a +")


def test_a_file(tmp_path: Path) -> None:
    file, recipe = tmp_path / "recipe.JSON", parse("linear(a, 2*b; scale=0.5, head=a)")
    file.write_text(recipe.model_dump_json())
    assert read_recipe(str(file)) == Written(recipe)


DOCUMENT = """
merge_method: ties
base_model: base
models:
  - model: a
    parameters: {weight: 0.5, density: 0.4}
  - model: b
    parameters: {weight: 1.0, density: 0.4}
"""


@pytest.mark.parametrize(
    ("more", "dtype"),
    [
        ("", None),
        ("dtype: float32", torch.float32),
        ("dtype: float32\nout_dtype: bfloat16", torch.bfloat16),
    ],
)
def test_a_mergekit_document(tmp_path: Path, more: str, dtype: torch.dtype | None) -> None:
    file = tmp_path / "recipe.yml"
    file.write_text(DOCUMENT + more)
    assert read_recipe(str(file)) == Written(mergekit.read(DOCUMENT).recipe, dtype)


def test_a_document_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    for content, message in (("slices: []", "slices"), (DOCUMENT + "dtype: int8", "dtype is one of float32")):
        file.write_text(content)
        with pytest.raises(InvalidRecipe, match=message):
            read_recipe(str(file))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "JSON"),
        (b'{"terms": [{"delta": "a"}], "scale": 1, "scale": 2}', "'scale' is given twice"),
        (b'{"terms": [{"delta": "a", "delta": "b"}]}', "'delta' is given twice"),
        (b"[]", "valid dictionary"),
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
