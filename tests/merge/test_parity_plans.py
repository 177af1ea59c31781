"""Methods that are plans here give mergekit's tensors, too: slerp, NuSLERP and Model Stock."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from benchmarks.plans import Drawn, draw_delta
from tests.delta.samples import spec
from tests.golden.mergekit import PLANS, inputs
from tests.merge.test_parity import golden

from patchbay.delta import Delta
from patchbay.merge import METHODS, CanonicalRecipe, build

WORDS = {"nuslerp_flatten": {True: ("scope", "tensor"), False: ("scope", "neuron")}}  # mergekit's -> ours


def difference(name: str, place: int) -> torch.Tensor:
    base, tuned = inputs(name)
    return tuned[place - 1] - base


def ours(
    method: str, params: Mapping[str, Any], places: tuple[int, ...], names: tuple[str, ...]
) -> dict[str, torch.Tensor]:
    base = Drawn({name: spec(name, tuple(inputs(name)[0].shape)) for name in names}, {n: inputs(n)[0] for n in names})
    terms = [place for place in places if place]
    empty = draw_delta({}, 0.5, 0)
    deltas = [
        Delta(empty.manifest, {}, {name: difference(name, place) for name in names}, {}, {}, {}) for place in terms
    ]
    weights = params.get("weight", [1.0] * len(terms))
    given = dict(
        WORDS[key][value] if key in WORDS else (key, value) for key, value in params.items() if key != "weight"
    )
    recipe = CanonicalRecipe(
        method,
        tuple((str(term), weight) for term, weight in zip(terms, weights, strict=True)),
        1.0,
        tuple(sorted(METHODS[method].filled(given).items())),
        None,
    )
    plan = build(recipe, deltas, base).plan
    merged = dict(plan.vectors)
    for name, matrix in plan.matrices.items():
        parts = [c[:, None] * d.vectors[name] for c, d in zip(matrix.coefficients, deltas, strict=True)]
        merged[name] = torch.stack(parts).sum(0) + (matrix.base_scale - 1)[:, None] * base.stored(name)
    return merged


@pytest.mark.parametrize("case", PLANS)
def test_mergekit(case: str) -> None:
    method, params, places, names = PLANS[case]
    made, expected = golden()
    assert made["plans"][case] == [method, dict(params), list(places), list(names)]
    found = ours(method, params, places, names)
    assert sorted(found) == sorted(names)
    for name in names:
        torch.testing.assert_close(found[name], expected[f"{case}/{name}"], rtol=0, atol=1e-6, msg=f"{case} {name}")
