"""Deltas -> plans, or deltas of their own: recipes, the expression grammar and the table of methods."""

from patchbay.merge.expression import parse
from patchbay.merge.matrix import MatrixPlan
from patchbay.merge.merged import Merged, build
from patchbay.merge.method import Method
from patchbay.merge.methods import AUTO, METHODS, find_method
from patchbay.merge.plan import MergePlan, build_plan
from patchbay.merge.recipe import CanonicalRecipe, Recipe, Term
from patchbay.merge.settle import named, settled

__all__ = [
    "AUTO",
    "METHODS",
    "CanonicalRecipe",
    "MatrixPlan",
    "MergePlan",
    "Merged",
    "Method",
    "Recipe",
    "Term",
    "build",
    "build_plan",
    "find_method",
    "named",
    "parse",
    "settled",
]
