"""The published form's laws (numbers as in the list that the method was built from), then the sampled form's search."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.compress.problems import Tensors, flat, parts_of, problem_of, random_tensors, tensors

from patchbay.compress.nps import TopkNps
from patchbay.compress.options import Options, Scope
from patchbay.compress.parts import SparsePart
from patchbay.compress.prune import KeepLargest, num_kept
from patchbay.compress.sampled_nps import SCALES, SampledNps

GOLDEN = torch.tensor([0.5, -0.4, 0.3, -0.2, 0.1, 0.05, -0.02, 0.01])
MATRICES = random_tensors(seed=6, a=(12, 10), b=(9, 9), c=(3, 2, 5))
SCOPES: tuple[Scope, ...] = ("retained", "all")
SUPPORTS = [{"support": "topk", "scope": scope} for scope in SCOPES] + [{"support": "sampled"}]
DENSITIES = (0.0, 0.03, 0.25, 0.5, 1.0)


def topk(matrices: Tensors, density: float, weights: tuple[float, ...], scope: Scope = "retained") -> torch.Tensor:
    options = {"support": "topk", "scope": scope, "groups": len(weights), "values": "fp32"}
    return flat(parts_of(matrices, density, weights, **options))


def whole(matrices: Tensors) -> torch.Tensor:
    return torch.cat([matrices[name].flatten() for name in sorted(matrices)])


def by_definition(tau: torch.Tensor, density: float, weights: tuple[float, ...], scope: Scope) -> torch.Tensor:
    """The pseudocode, on one long vector: stable ranks, groups of ranks, keep the first K."""
    total, groups = len(tau), len(weights)
    keep, order = num_kept(density, total), torch.argsort(-tau.abs(), stable=True)
    factors, out = torch.tensor(weights), torch.zeros(total)
    if scope == "retained":
        kept = order[:keep]
        out[kept] = tau[kept] * factors[torch.arange(keep) * groups // max(1, keep)]
        return out
    group = torch.empty(total, dtype=torch.int64)
    group[order] = torch.arange(total) * groups // total
    again = tau * factors[group]
    kept = torch.argsort(-again.abs(), stable=True)[:keep]
    out[kept] = again[kept]
    return out


@pytest.mark.parametrize(
    ("scope", "expected"),
    [("retained", [0.5, -0.4, 0.9, -0.6, 0, 0, 0, 0]), ("all", [0.5, -0.4, 0.3, 0, 0.3, 0, 0, 0])],
)
def test_golden_example(scope: Scope, expected: list[float]) -> None:
    # In fp32 3 * .1 is a little more than .3: still the same four.
    assert topk({"a": GOLDEN}, 0.5, (1.0, 3.0), scope).tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("weights", [(2.0,), (1.0, 3.0), (0.5, 1.0, 2.0, 3.9, 0.1)])
def test_topk_is_the_definition(density: float, weights: tuple[float, ...], scope: Scope) -> None:
    found = topk(MATRICES, density, weights, scope)
    assert torch.equal(found, by_definition(whole(MATRICES), density, weights, scope))


@given(tensors(), st.floats(0, 1), st.integers(1, 6))
def test_retained_is_the_definition_also_among_ties(
    vector: dict[str, torch.Tensor], density: float, groups: int
) -> None:
    weights = tuple(1.0 + number / 4 for number in range(groups))
    assert torch.equal(topk(vector, density, weights), by_definition(whole(vector), density, weights, "retained"))


@pytest.mark.parametrize("groups", [1, 2, 5, 8])
def test_1_groups_are_disjoint_and_sum_to_the_vector(groups: int) -> None:
    """One group at weight 1 and all others at 0 is that group alone."""
    single = [topk(MATRICES, 1.0, tuple(float(m == g) for m in range(groups))) for g in range(groups)]
    assert torch.equal(sum(single), whole(MATRICES))
    sizes = [int(torch.count_nonzero(group)) for group in single]
    assert sum(sizes) == len(whole(MATRICES))
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("options", SUPPORTS)
@pytest.mark.parametrize("groups", [1, 3, 8])
def test_2_density_one_with_weights_one_is_the_fine_tune(options: dict[str, str], groups: int) -> None:
    kept = flat(parts_of(MATRICES, 1.0, (1.0,) * groups, groups=groups, values="fp32", **options))
    torch.testing.assert_close(kept, whole(MATRICES), rtol=1e-6, atol=0)


@pytest.mark.parametrize("scope", SCOPES)
@given(tensors(), st.sampled_from(DENSITIES), st.integers(1, 9))
def test_3_weights_one_are_plain_magnitude_pruning(
    scope: Scope, vector: dict[str, torch.Tensor], density: float, groups: int
) -> None:
    pruner = KeepLargest(vector.__getitem__, sorted(vector), num_kept(density, len(whole(vector))))
    plain = torch.cat([pruner(name, vector[name]).to_dense().flatten() for name in sorted(vector)])
    assert torch.equal(topk(vector, density, (1.0,) * groups, scope), plain)


@pytest.mark.parametrize("options", SUPPORTS)
@pytest.mark.parametrize("density", DENSITIES)
def test_4_number_kept_is_the_floor(options: dict[str, str], density: float) -> None:
    weights = (0.5, 2.0, 1.0, 3.0)
    kept = flat(parts_of(MATRICES, density, weights, groups=4, values="fp32", **options))
    assert int(torch.count_nonzero(kept)) == num_kept(density, len(kept))


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.3, 2.0, 3.9)])
def test_5_supports_are_nested(weights: tuple[float, ...]) -> None:
    supports = [topk(MATRICES, density, weights) != 0 for density in (0.05, 0.2, 0.21, 0.7)]
    assert all(bool((larger | ~smaller).all()) for smaller, larger in zip(supports, supports[1:], strict=False))


@pytest.mark.parametrize("options", SUPPORTS)
@pytest.mark.parametrize("factor", [4.0, -1.0, -0.125])
def test_6_scaling_and_sign(options: dict[str, str], factor: float) -> None:
    weights, more = (0.5, 2.0, 1.0, 3.0), {"groups": 4, "values": "fp32", **options}
    scaled = flat(parts_of({name: factor * t for name, t in MATRICES.items()}, 0.25, weights, **more))
    torch.testing.assert_close(scaled, factor * flat(parts_of(MATRICES, 0.25, weights, **more)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("scope", SCOPES)
def test_7_permuted_entries_give_the_permuted_result(scope: Scope) -> None:
    tau, order = whole(MATRICES), torch.randperm(231, generator=torch.Generator().manual_seed(0))
    straight = topk({"a": tau}, 0.3, (0.5, 2.0, 1.0), scope)
    assert torch.equal(topk({"a": tau[order]}, 0.3, (0.5, 2.0, 1.0), scope), straight[order])


def test_8_retained_support_does_not_depend_on_the_weights() -> None:
    plain = topk(MATRICES, 0.3, (1.0, 1.0, 1.0))
    again = topk(MATRICES, 0.3, (0.7, 0.2, 2.5))
    assert torch.equal(plain != 0, again != 0)
    ratio = (again / whole(MATRICES)).abs()
    assert (float(ratio.max()), float(ratio[again != 0].min())) == pytest.approx((2.5, 0.2))


@pytest.mark.parametrize("options", SUPPORTS)
def test_vectors_without_prunable_matrices_are_empty(options: dict[str, str]) -> None:
    assert parts_of({}, 0.3, **options) == {}


@pytest.mark.parametrize("values", ["auto", "sign", "bf16", "int8"])
def test_values_are_those_asked_for(values: str) -> None:
    kept = parts_of(MATRICES, 0.2, support="sampled", values=values)
    assert {part.values for part in kept.values()} <= (
        {"sign_tensor", "int4"} if values in ("auto", "sign") else {values}
    )
    kept = parts_of(MATRICES, 0.2, support="topk", values=values)
    assert {part.values for part in kept.values()} == {"int4" if values == "auto" else values}


@pytest.mark.parametrize("groups", [1, 2, 3, 8, 50])
@pytest.mark.parametrize("ratio", [0.001, 0.3])
@pytest.mark.parametrize("density", [0.0, 1e-4, 0.04, 0.4, 1.0])
def test_rule_keeps_the_budget_without_calibration_inputs(groups: int, ratio: float, density: float) -> None:
    """Whatever region it chooses has at least as many entries as are kept. Noise that is loud is left out."""
    problem = problem_of(MATRICES, ratio)
    method = SampledNps(problem, Options(groups=groups))
    method.tune(density)
    assert method.choice is not None
    weights = method.choice.weights
    assert len(weights) == groups
    assert set(weights) <= {0.0, *SCALES}
    pruner = method.pruner(density)
    parts = [pruner(name, MATRICES[name]) for name in sorted(MATRICES)]
    kept = sum(len(part.rows.positions) for part in parts if isinstance(part, SparsePart))
    assert kept == num_kept(density, 231)
    if groups == 8 and density == 0.04:
        inside = sum(weight > 0 for weight in weights)
        assert inside == 8 if ratio == 0.001 else inside < 7


def test_untuned_pruner_is_the_rules() -> None:
    tuned, untuned = (SampledNps(problem_of(MATRICES), Options()) for _ in range(2))
    tuned.tune(0.2)
    first, second = tuned.pruner(0.2), untuned.pruner(0.2)
    for name in sorted(MATRICES):
        one, other = first(name, MATRICES[name]), second(name, MATRICES[name])
        assert isinstance(one, SparsePart) and isinstance(other, SparsePart)
        assert torch.equal(one.rows.to_dense(), other.rows.to_dense())


def test_params_say_what_was_found() -> None:
    method = TopkNps(problem_of(MATRICES), Options(support="topk", scope="all", groups=2))
    method.weights = (1.5, 0.5)
    assert method.params == {"support": "topk", "scope": "all", "w1": 1.5, "w2": 0.5}
    sampled = SampledNps(problem_of(MATRICES), Options(groups=1))
    sampled.tune(0.1)
    assert sampled.params == {"support": "sampled", "columns": False, "low_rank": 0.0, "w1": 1.0}
