"""Deltas -> plans: recipes, the expression grammar and the table of methods."""

from patchbay.merge.expression import parse
from patchbay.merge.methods import METHODS, MatrixPlan, Method, find_method
from patchbay.merge.plan import MergePlan, build_plan
from patchbay.merge.recipe import CanonicalRecipe, Recipe, Term

__all__ = [
    "METHODS",
    "CanonicalRecipe",
    "MatrixPlan",
    "MergePlan",
    "Method",
    "Recipe",
    "Term",
    "build_plan",
    "find_method",
    "parse",
]
