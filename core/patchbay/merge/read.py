"""A recipe as it is given to a command: an expression, or a file with one. Knows nothing of deltas."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError

from patchbay.errors import InvalidRecipe, complaint
from patchbay.merge import mergekit
from patchbay.merge.expression import parse
from patchbay.merge.recipe import Recipe

MAX_BYTES = 1 << 20
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Written(NamedTuple):
    """A recipe, and the dtype that its file asks the merged model to be written in."""

    recipe: Recipe
    dtype: torch.dtype | None = None


def is_recipe_file(text: str) -> bool:
    """Whether `text` is taken for the name of a file with a recipe."""
    return Path(text).suffix.lower() in (".json", ".yaml", ".yml")


def read_recipe(text: str) -> Written:
    """`ties(a, b; density=0.2)`, or the name of a file: .json with a recipe's fields, .yaml or .yml of mergekit's.

    Raises InvalidExpression for text, InvalidRecipe for files that are too large or no recipe, FileNotFoundError.
    """
    if not is_recipe_file(text):
        return Written(parse(text))
    content = _content(Path(text).expanduser())
    return Written(_from_json(content)) if Path(text).suffix.lower() == ".json" else _from_yaml(content)


def _content(file: Path) -> str:
    if file.stat().st_size > MAX_BYTES:
        raise InvalidRecipe(f"{file} has more than {MAX_BYTES:,} bytes: it is no recipe", param="recipe")
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRecipe(f"{file} is not text", param="recipe") from error


def _from_json(text: str) -> Recipe:
    try:
        return Recipe.model_validate(json.loads(text, object_pairs_hook=_distinct))
    except json.JSONDecodeError as error:
        raise InvalidRecipe(f"the file is not JSON: {error}", param="recipe") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part)[:300] for part in first["loc"]) or "recipe"
        raise InvalidRecipe(f"{place}: {complaint(first['msg'])[:500]}", param=place) from error


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of a key that is given twice json would take the last."""
    twice = duplicate_key(pairs)
    if twice is not None:
        raise InvalidRecipe(f"{twice[:300]!r} is given twice in one object; keep one", param="recipe")
    return dict(pairs)


def duplicate_key(pairs: Sequence[tuple[str, Any]]) -> str | None:
    """Of a JSON object's keys the first of those that are given most often, where any is given twice."""
    counted = Counter(key for key, _ in pairs).most_common(1)
    return counted[0][0] if counted and counted[0][1] > 1 else None


def _from_yaml(text: str) -> Written:
    """mergekit writes in `out_dtype`, or else in `dtype`; sums are made in fp32 here, whatever `dtype` says."""
    document = mergekit.read(text)
    name = document.out_dtype or document.dtype
    return Written(document.recipe, _DTYPES[name] if name else None)
