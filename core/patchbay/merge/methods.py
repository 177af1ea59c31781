"""The table of merging methods: one row each.

A new method is a pure function in a file of its own and a row here.
"""

from __future__ import annotations

from collections.abc import Mapping

from patchbay.errors import UnknownMethod
from patchbay.merge.linear import arithmetic_weights, mean_weights
from patchbay.merge.method import Method
from patchbay.merge.neuro import elected_vector, neuromerging

METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method(
            name="task_arithmetic",
            title="weighted sum of task vectors",
            paper="https://arxiv.org/abs/2212.04089",
            combine=arithmetic_weights,
        ),
        Method(
            name="linear",
            title="weighted mean of the fine-tuned models",
            paper="https://arxiv.org/abs/2203.05482",
            combine=mean_weights,
        ),
        Method(
            name="neuromerging",
            title="election in neuronal subspaces",
            paper="https://arxiv.org/abs/2503.05320",
            plan=neuromerging,
            vector=elected_vector,
            defaults={"lambda1": 0.0, "lambda2": 1.0, "rescale": True},
        ),
    )
}


def find_method(name: str) -> Method:
    """Raises UnknownMethod, which lists the methods there are."""
    if name not in METHODS:
        raise UnknownMethod(f"there is no method {name!r}; the methods are {', '.join(METHODS)}", param="method")
    return METHODS[name]
