"""A recipe and the table of methods: what it means for terms whose content is known. Knows nothing of files."""

from __future__ import annotations

from collections.abc import Mapping

from patchbay.merge.methods import find_method
from patchbay.merge.recipe import CanonicalRecipe, Recipe
from patchbay.merge.settings import check_term


def named(recipe: Recipe) -> Recipe:
    """The recipe with the method that it means in place of `auto`: an answer's recipe gives the same answer again, also
    where another method is the best by then.

    Raises UnknownMethod, and InvalidRecipe for parameters and numbers of terms that the method does not take.
    """
    method = find_method(recipe.method)
    method.check_terms([term.weight for term in recipe.terms])
    method.filled(recipe.params)
    for term in recipe.terms:
        check_term(method.name, method.defaults, term)
    return recipe.model_copy(update={"method": method.name})


def settled(recipe: Recipe, digests: Mapping[str, str]) -> CanonicalRecipe:
    """What `recipe` means for terms with these content digests, which are by their `delta` text. Raises as `named`."""
    method = find_method(recipe.method)
    params = method.filled(recipe.params)
    return named(recipe).model_copy(update={"params": params}).canonical(digests, method.symmetric, {})
