"""What the names in a recipe stand for on the command line: `--delta NAME=PATH`, and recipes that are a file alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from patchbay.errors import InvalidName, InvalidRecipe

if TYPE_CHECKING:
    from patchbay.merge import Recipe

BindingOption = Annotated[
    list[str] | None,
    typer.Option(
        "--delta",
        metavar="NAME=PATH",
        help="What a name in the recipe stands for: a delta file, or a fine-tuned model's folder. Repeatable.",
        show_default=False,
    ),
]
ALONE = "delta"  # the name of a file that is exported by itself and whose own name is none


def bound_paths(texts: Sequence[str] | None) -> dict[str, Path]:
    """Raises InvalidRecipe for what is no NAME=PATH or named twice, InvalidName for a name that no recipe can have."""
    paths: dict[str, Path] = {}
    for text in texts or ():
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise InvalidRecipe(f"--delta {text!r} is not NAME=PATH", param="delta")
        _check_name(name)
        if name == "base":  # what a mergekit document calls the base
            raise InvalidName(f"--delta {text!r}: that is the base's own name; choose another", param="delta")
        if name in paths:
            raise InvalidRecipe(f"--delta names {name!r} twice: give each name one path", param="delta")
        paths[name] = Path(path).expanduser()
    return paths


def recipe_or_file(text: str, paths: Mapping[str, Path]) -> tuple[Recipe, dict[str, Path]]:
    """A recipe and what its names stand for; `text` may also be the path of one delta file or model folder.

    A name that `--delta` binds goes before a path that is called the same.
    """
    from patchbay.merge import Recipe, Term
    from patchbay.merge.read import is_recipe_file, read_recipe

    file = Path(text).expanduser()
    if text in paths or is_recipe_file(text) or not file.exists():
        return read_recipe(text).recipe, dict(paths)
    name = file.stem if _is_name(file.stem) else ALONE
    return Recipe(terms=(Term(delta=name),)), {name: file}


def _check_name(name: str) -> None:
    if not _is_name(name):
        raise InvalidName(
            f"--delta {name!r}: a name has 1 to 63 of a-z, 0-9, '.', '_' and '-' and starts with a letter or a digit",
            param="delta",
        )


def _is_name(text: str) -> bool:
    from patchbay.merge.recipe import NAME

    return re.fullmatch(NAME, text) is not None
